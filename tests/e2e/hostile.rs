//! Servers that lie, flood, hang and shout: `broker` ends in bounded time with words of its own and the right exit
//! code, prints nothing of theirs raw, and has told them no secret.
//!
//! Most of them are `servers/server.py`, a real SSH server that lets everybody in and then behaves as its argument
//! says; those that do not get as far as SSH are threads here.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::{
    home::{Home, Host, Output, Process, Stream},
    secrets::{Place, assert_no_secret},
};
use tempfile::TempDir;

use crate::support::{PATIENCE, World, sdk};

/// What a server may make `broker` use, in bytes of address space: far more than it needs, far less than a flood.
const MEMORY: usize = 1 << 30;

/// `servers/server.py`.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) alias: String,
    /// What it received.
    record: PathBuf,
    _directory: TempDir,
}

impl Server {
    /// Starts it as the host's user, and makes it known to the laptop as `mode`.
    fn start(world: &World, mode: &str) -> Self {
        Self::run(world, include_str!("servers/server.py"), mode)
    }

    /// The same for any such script.
    pub(crate) fn run(world: &World, text: &str, mode: &str) -> Self {
        let user = world.sshd.user();
        let directory = tempfile::Builder::new().prefix("sshd-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let script = directory.path().join("server.py");
        std::fs::write(&script, text).unwrap();
        for path in [directory.path(), &script] {
            chown(path, Some(user.uid), Some(user.gid)).unwrap();
        }
        let record = directory.path().join("record");
        let arguments = [script.to_str().unwrap(), mode, record.to_str().unwrap()];
        let python = sdk("python/bin/python");
        let mut process = world.laptop.spawn(world.on_host(python.to_str().unwrap(), &arguments));
        let key = process.wait_for_line(Stream::Stdout, "hostkey ", PATIENCE).split_off("hostkey ".len());
        let port = process.wait_for_line(Stream::Stdout, "port ", PATIENCE).split_off("port ".len());
        world.laptop.add_host(&Host {
            alias: mode.to_owned(),
            port: port.parse().unwrap(),
            user: user.name.clone(),
            known_hosts_line: format!("[127.0.0.1]:{port} {key}\n"),
            key: world.sshd.client_key(),
        });
        Self { process, alias: mode.to_owned(), record, _directory: directory }
    }

    /// `broker connect` to it.
    fn connect(&self, world: &World, arguments: &[&str]) -> Command {
        let mut all = vec!["connect", &self.alias, "--batch", "-p", "dev"];
        all.extend_from_slice(arguments);
        bounded(&world.broker(&all))
    }

    /// What it received in channels holds none of our secrets.
    #[track_caller]
    pub(crate) fn assert_told_nothing(&self, world: &World) {
        let told = std::fs::read(&self.record).unwrap();
        assert!(!String::from_utf8_lossy(&told).contains("Bearer"), "`{}` was told a token", self.alias);
        assert_no_secret(&world.aws.secrets(), &[Place::output(self.alias.clone(), told)]);
    }
}

/// The same command with bounded memory.
pub(crate) fn bounded(command: &Command) -> Command {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--as={MEMORY}")).arg("--").arg(command.get_program()).args(command.get_args());
    limited.env_clear().current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap());
    }
    limited
}

/// As `laptop.run`, but as the laptop's user: [`bounded`] does not keep that.
pub(crate) fn run(laptop: &Home, command: Command) -> (Output, Duration) {
    use std::os::unix::process::CommandExt as _;
    let mut command = command;
    let user = laptop.user();
    command.gid(user.gid).uid(user.uid);
    let started = Instant::now();
    let output = laptop.run(command);
    (output, started.elapsed())
}

/// A terminal would only show text.
#[track_caller]
pub(crate) fn assert_printable(output: &Output) {
    let odd = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes).chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    };
    assert_eq!(odd(&output.stderr), None, "{output}");
    assert_eq!(odd(&output.stdout), None, "{output}");
    assert!(output.stderr.len() < 100_000, "{} bytes of stderr", output.stderr.len());
    assert!(!output.stderr().contains("panicked"), "{output}");
}

#[test]
fn a_server_that_misbehaves_is_left_in_words_and_learns_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    for (mode, code, words) in [
        ("kinds", 5, "was not asked for"),
        ("disconnect", 5, "go away"),
        ("closes", 5, "closed the connection"),
        ("no-listener", 6, "ours alone"),
        ("garbage", 6, "did not run our helper"),
        ("megabyte", 6, "did not run our helper"),
        ("megabyte-later", 6, "helper"),
        ("odd-uid", 6, "incomplete facts"),
        ("others-listener", 6, "in use by another user (uid 666)"),
        ("wide-listener", 6, "ours alone"),
        ("odd-listener", 6, "helper"),
        ("odd-directory", 6, "helper"),
        ("unasked-line", 6, "helper"),
    ] {
        let mut server = Server::start(&world, mode);
        let (output, took) = run(&world.laptop, server.connect(&world, &["-N", "--transport", "tcp"]));
        println!("{mode}: {:?} in {took:.1?}", output.code);
        // This server cannot bear that we close the channel on its line, and may end the connection before we do.
        let lost = mode == "unasked-line" && output.code == Some(5);
        let (code, words) = if lost { (5, "closed the connection") } else { (code, words) };
        assert_eq!(output.code, Some(code), "{mode}: {output}");
        assert!(output.stderr().contains(words), "{mode}: {output}");
        assert_eq!(output.stdout(), "", "{mode}: nothing may be published");
        assert_printable(&output);
        assert!(took < Duration::from_secs(15), "{mode} took {took:?}");
        server.assert_told_nothing(&world);
        if mode == "kinds" {
            server.process.wait_for_line(Stream::Stdout, "kind session refused", PATIENCE);
            assert!(!server.process.text(Stream::Stdout).contains("OPENED"));
        }
    }
    assert!(!PathBuf::from("/tmp/pwned").exists());
    world.assert_clean();
}

#[test]
fn a_job_that_ends_oddly_has_an_exit_code_that_says_so() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    // They go on running: what they end by ending would not have to clean up after itself.
    let mut servers = Vec::new();
    for (mode, code, words) in [
        ("status-huge", 255, ""),
        ("status-256", 0, ""),
        ("status-twice", 3, ""),
        ("status-none", 255, "did not say how the command ended"),
        ("signal-odd", 255, ""),
        ("signal-kill", 137, ""),
        ("extended-odd", 4, ""),
        ("lost", 255, "lost"),
    ] {
        let server = Server::start(&world, mode);
        let (output, took) = run(&world.laptop, server.connect(&world, &["--", "true"]));
        println!("{mode}: {:?} in {took:.1?}: {}", output.code, output.stderr().replace('\n', " | "));
        assert_eq!(output.code, Some(code), "{mode}: {output}");
        assert!(output.stderr().contains(words), "{mode}: {output}");
        assert_printable(&output);
        assert!(took < Duration::from_secs(15), "{mode} took {took:?}");
        servers.push(server);
    }
    // After the one that was lost, the host cleans itself up: within 45 s, because this server keeps the helper's input.
    let lost = Instant::now();
    while !world.left_on_host().is_empty() {
        assert!(lost.elapsed() < Duration::from_secs(50), "{:?}", world.left_on_host());
        thread::yield_now();
    }
    world.assert_clean();
}

#[test]
fn a_flood_of_channels_or_banners_costs_little_and_ends_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for mode in ["flood", "banner"] {
        let mut server = Server::start(&world, mode);
        let mut broker = world.broker(&["connect", mode, "--batch", "-p", "dev", "-N"]);
        broker.arg("--print-env=sh");
        let mut process = world.laptop.spawn(broker);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
        if mode == "flood" {
            server.process.send("flood 4144\n");
            let line = server.process.wait_for_line(Stream::Stdout, "flood ", PATIENCE);
            println!("{line}");
            assert!(!line.contains(" 0 opened"), "{line}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        let peak: usize = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!("{mode}: {peak} KiB at most");
        assert!(peak < 128 * 1024, "{peak} KiB");
        process.signal(Signal::SIGINT);
        let output = process.wait(PATIENCE);
        assert_eq!(output.code, Some(130), "{output}");
        assert_printable(&output);
        world.heard(mode, &output);
    }
    world.assert_clean();
}

#[test]
fn a_server_that_hangs_is_given_up_with_the_step_that_it_hung_in() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    let modes = [
        ("auth-hangs", 5, "did not answer", 35),
        ("forward-hangs", 6, "forward port", 25),
        ("exec-hangs", 6, "did not answer in time", 25),
        ("echo", 6, "did not answer in time", 25),
        ("other-nonce", 6, "did not answer in time", 25),
    ];
    let servers = modes.map(|(mode, ..)| Server::start(&world, mode));
    let raw = [
        ("no-version", raw(|_| ()), 5, "", 25),
        ("no-end-of-version", raw(|stream| forever(stream, b"x")), 5, "", 25),
        ("lines-before-version", raw(|stream| forever(stream, b"\x1b[31mnot yet\r\n")), 5, "", 25),
        ("no-kex", raw(|stream| drop(stream.write_all(b"SSH-2.0-hangs\r\n"))), 5, "", 25),
        (
            "garbage-kex",
            raw(|stream| drop(stream.write_all(&[b"SSH-2.0-x\r\n", &[0xff; 5000][..]].concat()))),
            5,
            "",
            25,
        ),
        (
            "huge-packet",
            raw(|stream| drop(stream.write_all(b"SSH-2.0-x\r\n\x7f\xff\xff\xff\x04\x14"))),
            5,
            "",
            25,
        ),
        ("web", raw(|stream| drop(stream.write_all(b"HTTP/1.1 400 \x1b[31mBad Request\r\n\r\n"))), 5, "", 25),
    ];
    for (alias, port, ..) in &raw {
        let (alias, user) = ((*alias).to_owned(), world.sshd.user().name.clone());
        let key = world.sshd.client_key();
        world.laptop.add_host(&Host { alias, port: *port, user, known_hosts_line: String::new(), key });
    }
    let named = modes.into_iter().zip(&servers).map(|((mode, code, words, seconds), server)| {
        (mode, server.connect(&world, &["-N", "--transport", "tcp"]), code, words, seconds)
    });
    let raw = raw.into_iter().map(|(alias, _, code, words, seconds)| {
        let command = world.broker(&["connect", alias, "--batch", "-p", "dev", "-N"]);
        (alias, bounded(&command), code, words, seconds)
    });
    // Together, because each waits for a deadline of its own.
    thread::scope(|scope| {
        for (mode, command, code, words, seconds) in named.chain(raw) {
            let laptop = &world.laptop;
            scope.spawn(move || judge(laptop, mode, command, code, words, seconds));
        }
    });
    for server in &servers {
        server.assert_told_nothing(&world);
    }
    world.assert_clean();
}

fn judge(laptop: &Home, mode: &str, command: Command, code: i32, words: &str, seconds: u64) {
    let (output, took) = run(laptop, command);
    println!("{mode}: {:?} in {took:.1?}: {}", output.code, output.stderr().replace('\n', " | "));
    assert_eq!(output.code, Some(code), "{mode}: {output}");
    assert!(output.stderr().contains(words), "{mode}: {output}");
    assert_eq!(output.stdout(), "", "{mode}: nothing may be published");
    assert_printable(&output);
    assert!(took < Duration::from_secs(seconds), "{mode} took {took:?}");
}

/// Something that listens, and does this with whoever connects, and then waits for their end.
fn raw(greet: impl Fn(&mut TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            greet(&mut stream);
            let _gone = stream.read_to_end(&mut Vec::new());
        }
    });
    port
}

fn forever(stream: &mut TcpStream, what: &[u8]) {
    let much = what.repeat(1000);
    while stream.write_all(&much).is_ok() {}
}
