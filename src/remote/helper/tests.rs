//! The helper in real shells, over pipes instead of an SSH channel.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use super::*;

mod configuration;
mod crowd;
mod dead;
mod linger;
mod pretended;

use crate::remote::{
    home::{self, HomeFile},
    install::{self, Content, File, FileName, Installed},
    leftovers::{self, State, Sweep, sweep},
    managed::{self, Wanted},
    sockets::{Listener, ListenerProblem, verify},
};

/// The one patience of these tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// The shells that may be `/bin/sh` somewhere.
const SHELLS: [&str; 5] = ["dash", "bash", "ksh", "zsh", "busybox"];

const SECRET: &str = "Bearer canary-5f1d";

/// A host: a shell that is its `/bin/sh`, and a runtime directory.
pub(in crate::remote) struct Host {
    directory: TempDir,
    shell: &'static str,
}

/// One link to it.
pub(in crate::remote) struct Link {
    pub(in crate::remote) helper: Helper,
    pub(in crate::remote) facts: Facts,
    process: Child,
    actor: JoinSet<Result<(), Error>>,
}

impl Host {
    pub(in crate::remote) fn new(shell: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for path in ["", "run", "home"] {
            let path = directory.path().join(path);
            drop(std::fs::create_dir(&path));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        // Shells are POSIX when they are called `sh`.
        symlink(Path::new("/usr/bin").join(shell), directory.path().join("sh")).unwrap();
        Self { directory, shell }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn sh(&self) -> String {
        self.path("sh").to_str().unwrap().to_owned()
    }

    /// What is left below the runtime directory.
    fn left(&self) -> Vec<PathBuf> {
        fn walk(path: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                found.push(entry.path());
                walk(&entry.path(), found);
            }
        }
        let mut found = Vec::new();
        walk(&self.path("run"), &mut found);
        found
    }

    fn command(&self, argv: &[&str]) -> Command {
        // A shell cannot catch what was ignored when it started, as by those who run the tests under `nohup`.
        let mut command = Command::new("/usr/bin/env");
        command.arg("--default-signal=HUP,INT,QUIT");
        command.args(argv).env("XDG_RUNTIME_DIR", self.path("run")).env("HOME", self.path("home"));
        command
            .env("SHELL", "/bin/my shell")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(in crate::remote) async fn link(&self) -> Link {
        self.link_at(PACE).await
    }

    /// A link that does not see what this machine's user has in places that all tests share.
    async fn visitor(&self) -> Link {
        let nonce = Nonce::generate().unwrap();
        let script = "mount -t tmpfs none /dev/shm && mount -t tmpfs none /run && exec \"$@\"";
        let command = nonce.bootstrap_by(&self.sh());
        let command = self.command(&["unshare", "-m", "sh", "-ec", script, "sh", "sh", "-c", &command]);
        link(PACE, nonce, command).await.expect(self.shell)
    }

    async fn link_at(&self, pace: Pace) -> Link {
        let nonce = Nonce::generate().unwrap();
        let command = nonce.bootstrap_by(&self.sh());
        link(pace, nonce, self.command(&["/bin/sh", "-c", &command])).await.expect(self.shell)
    }
}

async fn link(pace: Pace, nonce: Nonce, mut command: Command) -> Result<Link, Error> {
    let mut process = command.spawn().unwrap();
    let (stdin, stdout) = streams(&mut process);
    let (helper, actor_future, facts) = start_at(pace, stdin, stdout, nonce).await?;
    let mut actor = JoinSet::new();
    actor.spawn(actor_future);
    Ok(Link { helper, facts, process, actor })
}

fn streams(process: &mut Child) -> (ChildStdin, ChildStdout) {
    (process.stdin.take().unwrap(), process.stdout.take().unwrap())
}

#[test]
fn facts_of_a_hostile_host_can_be_shown() {
    let rows =
        ["uid 1000", "system Linux\u{1b}]0;OWNED\u{7}", "shell /bin/\u{9b}2J", "parent 1 2", "sockets no"];
    let facts = Facts::read(&rows.map(str::to_owned)).unwrap();
    assert_eq!(facts.system, "Linux\u{fffd}]0;OWNED\u{fffd}");
    assert_eq!(facts.shell.as_deref(), Some("/bin/\u{fffd}2J"));
}

impl Link {
    async fn install(&self, key: &str, files: Vec<File>) -> Result<Installed, install::Error> {
        self.helper.directory(Key::new(key).unwrap(), Stay::Goes).await?.install(files).await
    }

    /// As `kill -9` of us: both pipes close, and nothing is said.
    async fn kill(mut self) -> Child {
        self.actor.shutdown().await;
        self.process
    }

    async fn actor_ends(&mut self) -> Result<(), Error> {
        timeout(PATIENCE, self.actor.join_next()).await.expect("in time").unwrap().unwrap()
    }
}

fn text(name: &str, content: &str) -> File {
    File { name: FileName::new(name).unwrap(), content: Content::text(content.to_owned()) }
}

fn secret(name: &str, content: &str) -> File {
    File { name: FileName::new(name).unwrap(), content: Content::Secret(content.to_owned().into()) }
}

/// Waits until `done`; the helper is another process, and nothing but looking tells what it has done.
async fn until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The processes with this in their command line.
fn processes(needle: &str) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let lines = entries.filter_map(|path| Some((std::fs::read(path.join("cmdline")).ok()?, path)));
    let lines = lines.map(|(line, path)| (path, String::from_utf8_lossy(&line).replace('\0', " ")));
    lines.filter(|(_, line)| line.contains(needle)).collect()
}

#[tokio::test]
async fn every_shell_runs_the_helper_and_nothing_stays() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let mut link = host.link().await;
        let facts = &link.facts;
        assert_eq!(facts.uid, Uid(rustix::process::getuid().as_raw()), "{shell}");
        assert_eq!(facts.system, "Linux");
        assert_eq!(facts.shell.as_deref(), Some("/bin/my shell"));
        assert_eq!(facts.home.as_deref(), host.path("home").to_str());
        assert_eq!(facts.parent.pid, std::process::id());
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        assert_eq!(facts.parent.started, Some(started), "{shell}");
        assert!(facts.boot_id.as_ref().is_some_and(|id| id.len() == 36) && facts.shows_sockets);

        let directory = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap();
        let path = PathBuf::from(directory.path());
        let user = format!("run/broker-{}", facts.uid);
        assert_eq!((directory.place(), &path), (Place::Runtime, &host.path(&user).join("4144")), "{shell}");
        let again = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap();
        assert_eq!(again.path(), directory.path());
        let odd = " a'b\\c\"$(x)`y`\t-n \\n %s\n\n  trailing \n.\né\n";
        let files = vec![text("env.sh", odd), text("empty", ""), secret("token-a=20b", SECRET)];
        let installed = directory.install(files).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("env.sh")).unwrap(), odd, "{shell}");
        assert_eq!(std::fs::read_to_string(path.join("empty")).unwrap(), "");
        assert_eq!(std::fs::read_to_string(path.join("token-a=20b")).unwrap(), SECRET, "{shell}: no newline");
        installed.write(secret("token-a=20b", " -n odd \\n  ")).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("token-a=20b")).unwrap(), " -n odd \\n  ", "{shell}");
        for file in std::fs::read_dir(&path).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o7777, 0o600, "{shell}");
        }
        for directory in [&path, &host.path(&user)] {
            assert_eq!(std::fs::metadata(directory).unwrap().mode() & 0o7777, 0o700, "{shell}");
        }
        installed.remove().await.unwrap();
        assert_eq!(host.left(), [] as [PathBuf; 0], "{shell}");

        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        link.helper.clone().bye().await;
        assert_eq!(host.left(), [] as [PathBuf; 0], "{shell}");
        assert!(link.actor_ends().await.is_ok());
        assert!(timeout(PATIENCE, link.process.wait()).await.unwrap().unwrap().success(), "{shell}");
    }
}

#[tokio::test]
async fn every_login_shell_passes_the_command_on() {
    let host = Host::new("dash");
    for outer in ["dash", "bash", "zsh", "ksh", "fish", "tcsh", "busybox sh"] {
        let nonce = Nonce::generate().unwrap();
        let command = nonce.bootstrap();
        assert!(!command.contains(['!', '\\', '\n']) && command.matches('\'').count() == 2);
        let mut argv: Vec<_> = outer.split(' ').collect();
        argv.extend(["-c", &command]);
        let link = link(PACE, nonce, host.command(&argv)).await.expect(outer);
        assert_eq!(link.facts.parent.pid, std::process::id(), "{outer} must not stay between");
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn noise_of_rc_files_is_skipped() {
    let host = Host::new("dash");
    for noise in
        ["echo Welcome; printf '\\033]0;title\\007'", "yes noise | head -c 60000", "echo broker-0 ready"]
    {
        let nonce = Nonce::generate().unwrap();
        let command = format!("{noise}; {}", nonce.bootstrap());
        link(PACE, nonce, host.command(&["sh", "-c", &command])).await.expect(noise).helper.bye().await;
    }
}

/// Runs `script` in the place of the login shell and returns the error of the handshake and what it received.
async fn instead_of_the_helper(script: &str) -> (Error, String) {
    let host = Host::new("dash");
    let received = host.path("received");
    let nonce = Nonce::generate().unwrap();
    let mut command = host.command(&["sh", "-c", script]);
    command.env("SSH_ORIGINAL_COMMAND", nonce.bootstrap()).env("RECEIVED", &received);
    let error = link(PACE, nonce, command).await.err().expect("no helper");
    (error, std::fs::read_to_string(received).unwrap_or_default())
}

#[tokio::test]
async fn a_forced_command_that_echoes_the_command_receives_nothing() {
    for echo in [
        "echo \"$SSH_ORIGINAL_COMMAND\"",
        "echo $SSH_ORIGINAL_COMMAND",
        "for w in $SSH_ORIGINAL_COMMAND; do echo $w; done",
    ] {
        let script = format!("{echo}; timeout 1 cat > $RECEIVED");
        let (error, received) = instead_of_the_helper(&script).await;
        assert!(matches!(error, Error::NoHelper { why: "it ended the command", .. }), "{error:?}");
        assert_eq!(received, "");
    }
}

#[tokio::test]
async fn what_the_host_says_instead_is_told_without_its_escapes() {
    let (error, _) = instead_of_the_helper("printf 'This account is \\033[5mnot available.'; exit 1").await;
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("This account is") && source.contains("not available."), "{source}");
    assert!(!source.contains('\u{1b}'));
    assert!(error.hint().unwrap().contains("nologin"));
}

#[tokio::test]
async fn endless_noise_is_given_up() {
    for script in ["yes", "cat /dev/zero"] {
        let (error, _) = instead_of_the_helper(script).await;
        assert!(matches!(error, Error::NoHelper { why: "it printed too much", .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_says_nothing_is_given_up_after_ten_seconds() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let (stdout, stdin) = tokio::io::split(ours);
    let before = Instant::now();
    let error = start(stdin, stdout, Nonce::generate().unwrap()).await.err().unwrap();
    assert!(matches!(error, Error::NoHelper { why: "it did not answer in time", said: None }), "{error:?}");
    assert_eq!(before.elapsed().as_secs(), READY_TIMEOUT.as_secs());
}

#[tokio::test]
async fn files_go_within_a_second_when_we_are_killed() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        assert!(!host.left().is_empty());
        let mut process = link.kill().await;
        until(shell, Duration::from_secs(1), || host.left().is_empty()).await;
        timeout(PATIENCE, process.wait()).await.expect("the channel can close").unwrap();
    }
}

#[tokio::test]
async fn files_go_when_the_transfer_of_one_breaks_off() {
    let host = Host::new("dash");
    let nonce = Nonce::generate().unwrap();
    let mut process = host.command(&["sh", "-c", &nonce.bootstrap()]).spawn().unwrap();
    let (mut stdin, stdout) = streams(&mut process);
    let script = format!("w=30; {}\n1 dir x\n2 put env.sh 600 8\nhalf\n3 ", script());
    stdin.write_all(script.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stdout).lines();
    until_line(&mut lines, " 1 ok ").await;
    drop(stdin);
    until("removed", Duration::from_secs(1), || host.left().is_empty()).await;
}

async fn until_line(lines: &mut tokio::io::Lines<BufReader<ChildStdout>>, needle: &str) {
    while let Some(line) = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap() {
        if line.contains(needle) {
            return;
        }
    }
    panic!("no {needle}");
}

#[tokio::test]
async fn files_go_when_we_fall_silent_and_no_process_stays() {
    let mut links = Vec::new();
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link_at(Pace { beat: Duration::from_secs(3600), silence: 2 }).await;
        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        assert!(!host.left().is_empty());
        links.push((host, link));
    }
    for (host, mut link) in links {
        until(host.shell, Duration::from_secs(4), || host.left().is_empty()).await;
        assert!(matches!(link.actor_ends().await, Err(Error::Ended { .. })), "{}", host.shell);
        timeout(PATIENCE, link.process.wait()).await.expect("the channel can close").unwrap();
    }
}

#[tokio::test]
async fn a_killed_helper_is_noticed_at_once_and_its_files_go_later() {
    let mut hosts = Vec::new();
    for shell in SHELLS {
        let host = Host::new(shell);
        let mut link = host.link_at(Pace { beat: Duration::from_secs(3600), silence: 3 }).await;
        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        link.process.kill().await.unwrap();
        assert!(link.actor_ends().await.is_err());
        assert!(!host.left().is_empty(), "{shell}: the watchdog does not keep the channel open");
        hosts.push(host);
    }
    for host in hosts {
        until(host.shell, Duration::from_secs(6), || host.left().is_empty()).await;
    }
}

#[tokio::test]
async fn heartbeats_keep_the_files_and_leave_no_process() {
    let mut hosts = Vec::new();
    // Nothing else sleeps for this long, to the second.
    let silence = 1_000_000_000 + std::process::id();
    let watchdogs = || processes(&format!("sleep {silence}"));
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link_at(Pace { beat: Duration::from_millis(100), silence }).await;
        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        hosts.push((host, link));
    }
    // Several heartbeats later each has its one watchdog, and not one per heartbeat.
    let mut seen = HashSet::new();
    until("watchdogs come and go", PATIENCE, || {
        seen.extend(watchdogs());
        seen.len() >= 5 * SHELLS.len()
    })
    .await;
    until("one watchdog each", PATIENCE, || watchdogs().len() == SHELLS.len()).await;
    for (host, mut link) in hosts {
        assert!(!host.left().is_empty(), "{}", host.shell);
        link.helper.clone().bye().await;
        link.process.wait().await.unwrap();
        drop(link.actor.join_next().await);
    }
    until("no sleep is left", Duration::from_secs(2), || watchdogs().is_empty()).await;
}

#[tokio::test]
async fn beats_within_the_silence_keep_the_files() {
    let mut links = Vec::new();
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link_at(Pace { beat: Duration::from_millis(300), silence: 2 }).await;
        link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
        links.push((host, link));
    }
    // That nothing ends can only be seen by waiting longer than the silence that would end it.
    let (_, first) = links.first_mut().unwrap();
    assert!(timeout(Duration::from_secs(4), first.actor.join_next()).await.is_err());
    for (host, mut link) in links {
        assert!(link.actor.try_join_next().is_none() && !host.left().is_empty(), "{}", host.shell);
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn signals_remove_the_files_too() {
    for shell in SHELLS {
        for signal in ["HUP", "TERM", "INT"] {
            let host = Host::new(shell);
            let mut link = host.link_at(Pace { beat: Duration::from_millis(200), silence: 30 }).await;
            link.install("4144", vec![secret("token", SECRET)]).await.unwrap();
            let pid = link.process.id().unwrap().to_string();
            assert!(Command::new("kill").args(["-s", signal, &pid]).status().await.unwrap().success());
            until(&format!("{shell} {signal}"), Duration::from_secs(10), || host.left().is_empty()).await;
            assert!(link.actor_ends().await.is_err());
        }
    }
}

#[tokio::test]
async fn a_new_link_takes_over_and_the_old_one_removes_nothing_of_it() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let old = host.link().await;
        old.install("4144", vec![secret("token-old", SECRET), secret("token", "old")]).await.unwrap();
        let new = host.link().await;
        let installed = new.install("4144", vec![secret("token", "new")]).await.unwrap();
        let path = PathBuf::from(installed.path());
        assert!(!path.join("token-old").exists(), "{shell}: what the old link left is gone");
        let mut process = old.kill().await;
        timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(path.join("token")).unwrap(), "new", "{shell}");
        installed.remove().await.unwrap();
        assert_eq!(host.left(), [] as [PathBuf; 0], "{shell}");
        new.helper.bye().await;
    }
}

/// A host of its own for user 65534, prepared by root with `prepare`, in private file systems.
async fn as_nobody(prepare: &str) -> Result<(Link, TempDir), Error> {
    let directory = tempfile::tempdir().unwrap();
    let nonce = Nonce::generate().unwrap();
    let script = format!(
        "mount -t tmpfs -o mode=1777 none /dev/shm && mount -t tmpfs -o mode=1777 none /tmp && mount -t tmpfs none /run && \
         mkdir -m 700 /tmp/home && chown 65534 /tmp/home && {prepare} && \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp/home \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", &script, "sh", "sh", "-c", &nonce.bootstrap()]);
    command.env_remove("XDG_RUNTIME_DIR").stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok((link(PACE, nonce, command).await?, directory))
}

/// Reads a file as the process of the link sees it.
fn inside(link: &Link, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", link.process.id().unwrap()))
}

#[tokio::test]
async fn places_that_others_hold_are_passed_over() {
    let squat = |base: &str| format!("mkdir -m 777 {base}/broker-65534");
    let runtime = "mkdir -p /run/user/65534 && chown 65534 /run/user/65534 && chmod 700 /run/user/65534";
    for (prepare, place, path) in [
        ("true".to_owned(), Place::SharedMemory, "/dev/shm/broker-65534/4144"),
        (runtime.to_owned(), Place::Runtime, "/run/user/65534/broker-65534/4144"),
        (format!("{runtime} && chown 0 /run/user/65534"), Place::SharedMemory, "/dev/shm/broker-65534/4144"),
        (format!("{runtime} && chmod 777 /run/user/65534"), Place::SharedMemory, "/dev/shm/broker-65534/4144"),
        (squat("/dev/shm"), Place::Temporary, "/tmp/broker-65534/4144"),
        ("ln -s /tmp/home /dev/shm/broker-65534".to_owned(), Place::Temporary, "/tmp/broker-65534/4144"),
        ("touch /dev/shm/broker-65534".to_owned(), Place::Temporary, "/tmp/broker-65534/4144"),
        ("umount /dev/shm && mount -t tmpfs -o mode=777 none /dev/shm".to_owned(), Place::Temporary, "/tmp/broker-65534/4144"),
        (
            format!("{} && ln -s /tmp/home /tmp/broker-65534", squat("/dev/shm")),
            Place::Random,
            "/dev/shm/broker-65534.",
        ),
        ("chmod 755 /dev/shm /tmp".to_owned(), Place::Home, "/tmp/home/.cache/broker-65534-"),
        // Ours, but open to others: closed again. A symlink in the place of the inner directory: replaced.
        (
            "mkdir -m 777 /dev/shm/broker-65534 && ln -s /tmp/home /dev/shm/broker-65534/4144 && chown -h 65534 /dev/shm/broker-65534 /dev/shm/broker-65534/4144".to_owned(),
            Place::SharedMemory,
            "/dev/shm/broker-65534/4144",
        ),
    ] {
        let (link, _directory) = as_nobody(&prepare).await.expect(&prepare);
        let directory = link.helper.directory(Key::port(4144), Stay::Goes).await.expect(&prepare);
        assert!(directory.place() == place && directory.path().starts_with(path), "{prepare}: {directory:?}");
        let path = directory.path().to_owned();
        let installed = directory.install(vec![secret("token", SECRET)]).await.unwrap();
        let real = inside(&link, &path);
        for directory in [&*real, real.parent().unwrap()] {
            let metadata = std::fs::symlink_metadata(directory).unwrap();
            assert!(metadata.is_dir() && metadata.uid() == 65534 && metadata.mode() & 0o777 == 0o700, "{prepare}");
        }
        assert!(!inside(&link, "/tmp/home/token").exists());
        installed.remove().await.unwrap();
        // Where others could make one of that name, the empty directory stays ours.
        let kept = matches!(place, Place::SharedMemory | Place::Temporary | Place::Random);
        let left = std::fs::read_dir(real.parent().unwrap()).ok().map(Iterator::count);
        assert_eq!(left, kept.then_some(0), "{prepare}");
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn no_safe_place_is_an_error() {
    let (link, _directory) = as_nobody("chmod 755 /dev/shm /tmp && chown 0 /tmp/home").await.unwrap();
    let error = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap_err();
    assert!(matches!(error, Error::NoPlace), "{error:?}");
    assert!(error.hint().is_some());
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_nothing() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let nonce = Nonce::generate().unwrap();
        let script =
            format!("mount -t tmpfs -o size=16k,mode=700 none {} && exec \"$@\"", host.path("run").display());
        let bootstrap = nonce.bootstrap_by(&host.sh());
        let command = host.command(&["unshare", "-m", "sh", "-ec", &script, "sh", "sh", "-c", &bootstrap]);
        let link = link(PACE, nonce, command).await.unwrap();
        let directory = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap();
        let real = inside(&link, directory.path());
        let huge = "x".repeat(99).repeat(300);
        let files = vec![secret("token", SECRET), text("env.sh", &huge)];
        let error = directory.install(files).await.unwrap_err();
        let install::Error::Helper(error) = error else { panic!("{error:?}") };
        assert!(matches!(&error, Error::Write { name } if name == "env.sh"), "{shell}: {error:?}");
        assert!(!real.exists(), "{shell}");
        let files = vec![text("env.sh", "small\n"), secret("token", SECRET)];
        link.install("4144", files).await.expect("there is room again");
        assert!(real.join("token").exists());
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn content_that_would_end_its_transfer_is_not_sent() {
    let host = Host::new("dash");
    let nonce = Nonce::generate().unwrap();
    let terminator = nonce.as_str().to_owned();
    let command = host.command(&["sh", "-c", &nonce.bootstrap()]);
    let link = link(PACE, nonce, command).await.unwrap();
    let error = link.install("1", vec![text("env.sh", &format!("a\n{terminator}\nb\n"))]).await.unwrap_err();
    assert!(matches!(error, install::Error::Helper(Error::Unfit { .. })), "{error:?}");
    assert_eq!(host.left(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn no_secret_is_in_an_argv_or_environment() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let log = host.path("trace");
        let nonce = Nonce::generate().unwrap();
        let bootstrap = nonce.bootstrap_by(&host.sh());
        let log_path = log.to_str().unwrap();
        let strace = ["strace", "-f", "-v", "-s", "4096", "-e", "trace=execve", "-o", log_path];
        let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().await.is_ok();
        let mut argv = if has_strace { strace.to_vec() } else { vec![] };
        argv.extend(["sh", "-c", &bootstrap]);
        let mut link = link(PACE, nonce, host.command(&argv)).await.unwrap();
        let directory = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap();
        let files = (0..20).map(|i| secret(&format!("token-{i}"), SECRET)).collect();
        let install = directory.install(files);
        tokio::pin!(install);
        // Looked at all the while; with strace every exec is seen, and not only what `ps` catches.
        let installed = loop {
            tokio::select! {
                installed = &mut install => break installed.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(2)) => {
                    assert_eq!(processes("canary-5f1d"), [], "{shell}");
                }
            }
        };
        installed.remove().await.unwrap();
        link.helper.clone().bye().await;
        link.process.wait().await.unwrap();
        if has_strace {
            let log = std::fs::read_to_string(log).unwrap();
            assert!(log.contains("execve(") && log.contains("\"mv\"") && !log.contains("canary"), "{shell}");
        }
    }
}

#[tokio::test]
async fn callers_and_listeners_are_told_from_real_sockets() {
    let ours = Uid(rustix::process::getuid().as_raw());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let v4 = |stream: &TcpStream| match stream.local_addr().unwrap() {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => SocketAddrV4::new(address.ip().to_ipv4_mapped().unwrap(), address.port()),
    };
    let plain = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mapped = TcpStream::connect((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)).unwrap();
    let half_closed = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    half_closed.shutdown(std::net::Shutdown::Write).unwrap();
    let gone = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let gone_from = v4(&gone);
    drop(gone);
    // bash as another user: prints the port that it calls from, and stays connected.
    let call = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; p=$(readlink /proc/self/fd/3); p=${{p#*[}}; grep -h \" ${{p%]}} \" /proc/net/tcp; cat"
    );
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", &call]);
    let mut nobody = nobody.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let (_stdin, stdout) = streams(&mut nobody);
    let row = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await.unwrap().unwrap().unwrap();
    let from = row.split_whitespace().nth(1).unwrap().split_once(':').unwrap().1;
    let foreign = SocketAddrV4::new(Ipv4Addr::LOCALHOST, u16::from_str_radix(from, 16).unwrap());

    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        let helper = &link.helper;
        let (a, b, c, d, e) = tokio::join!(
            helper.caller(v4(&plain), port),
            helper.caller(v4(&mapped), port),
            helper.caller(v4(&half_closed), port),
            helper.caller(gone_from, port),
            helper.caller(foreign, port),
        );
        assert_eq!((a, b, c, d), (Ok(ours), Ok(ours), Ok(ours), Err(Unproven::Gone)), "{shell}");
        assert_eq!(e, Ok(Uid(65534)), "{shell}");
        assert_eq!(helper.caller(v4(&plain), port ^ 1).await, Err(Unproven::Gone), "{shell}");

        let listening = helper.listeners(port).await.unwrap();
        let expected = Listener { address: Ipv4Addr::LOCALHOST.into(), uid: ours };
        assert_eq!(listening, Listening { port, listeners: vec![expected] }, "{shell}");
        assert_eq!(verify(&listening, ours), Ok(vec![]));
        assert_eq!(helper.listeners(1).await.unwrap().listeners, []);
    }

    let exposed = TcpListener::bind(("::", 0)).unwrap();
    let port = exposed.local_addr().unwrap().port();
    let host = Host::new("dash");
    let link = host.link().await;
    let verdict = verify(&link.helper.listeners(port).await.unwrap(), ours);
    assert!(matches!(verdict, Err(ListenerProblem::Exposed { .. })), "{verdict:?}");
}

#[tokio::test]
async fn a_host_without_a_builtin_printf_is_refused() {
    let rows = ["missing printf".to_owned()];
    assert!(matches!(Facts::read(&rows), Err(Error::Unsuitable { missing }) if missing == "printf"));
    assert!(matches!(Facts::read(&[]), Err(Error::Garbled { .. })));
}

/// Paths below the host's directory, by what was done with them.
async fn swept(host: &Host, link: &Link, how: Sweep) -> Vec<(State, String)> {
    let base = host.directory.path().to_str().unwrap();
    let mut found: Vec<_> = sweep(&link.helper, how)
        .await
        .unwrap()
        .into_iter()
        .filter_map(|leftover| Some((leftover.state, leftover.path.strip_prefix(base)?.to_owned())))
        .collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}
