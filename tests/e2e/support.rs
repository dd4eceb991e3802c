//! A world for one test: Identity Center, a host with sshd, a laptop, and what must be true of all of it at the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sandbox::{
    aws::FakeAws,
    home::{Home, Host, Output, Process, Stream, run_within},
    reach::reachable,
    secrets::{Place, assert_no_secret},
    sshd::{Program, Sshd, SshdOptions},
    users::{AsUser as _, User},
};

pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-west-1";

/// Longer than anything may take that does not wait on purpose; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a stop may take (`product.md` 7), as the user sees it: in tests that have the machine alone.
pub const STOP: Duration = Duration::from_secs(2);

/// The same beside other tests, which take the processor from it.
pub const ENDS: Duration = Duration::from_secs(8);

/// What processes on a busy host may take to end by themselves; less than the dead-man switch, which must not be needed.
pub const TIDY: Duration = Duration::from_secs(15);

/// The alias of the host in the laptop's ssh_config.
pub const BASTION: &str = "bastion";

/// Everything that a tunnel connects.
pub struct World {
    pub aws: FakeAws,
    pub sshd: Sshd,
    pub laptop: Home,
    /// What programs of this test printed, for the last look.
    said: Vec<Place>,
    /// Tokens that broker put on the host, as far as the test saw them.
    tokens: Vec<String>,
    /// What programs of this test printed as events.
    events: Vec<String>,
}

impl World {
    /// A host with sshd's defaults, and a laptop whose user is logged in, with profiles `dev` and `audit`.
    pub fn new() -> Self {
        Self::with(SshdOptions::default())
    }

    /// The same, and the host's user has an empty home that no other test sees.
    pub fn fresh_home() -> Self {
        Self::with_fresh_home(SshdOptions::default())
    }

    /// The same with another sshd, whose user's home is emptied.
    pub fn with_fresh_home(options: SshdOptions) -> Self {
        let User { uid, gid, home, .. } = &options.user;
        let owner = format!("uid={uid},gid={gid},mode=755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &owner, "none"]).arg(home).status();
        assert!(mounted.unwrap().success(), "{} can be covered", home.display());
        Self::with(options)
    }

    /// The same with another sshd.
    pub fn with(options: SshdOptions) -> Self {
        let aws = FakeAws::start_blocking();
        aws.add_role(ACCOUNT, "Development", "Developer");
        aws.add_role(ACCOUNT, "Development", "Auditor");
        // What the host's own login gives its users: where its AWS is.
        let environment: Vec<String> =
            aws.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let sshd = Sshd::start(options.config(format!("SetEnv {}", environment.join(" "))));
        let laptop = Home::of(User::laptop());
        let profiles = [("dev", ACCOUNT, "Developer"), ("audit", ACCOUNT, "Auditor")];
        aws.seed_home(laptop.path(), "corp", &profiles, REGION);
        aws.seed_token(laptop.path(), "corp");
        laptop.add_host(&Host {
            alias: BASTION.into(),
            port: sshd.port(),
            user: sshd.user().name.clone(),
            known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
            key: sshd.client_key(),
        });
        let world = Self { aws, sshd, laptop, said: Vec::new(), tokens: Vec::new(), events: Vec::new() };
        world.own_aws_files();
        world
    }

    /// Gives what root's process wrote into the laptop's `~/.aws` to its user.
    pub fn own_aws_files(&self) {
        let User { uid, gid, .. } = *self.laptop.user();
        let mut paths = vec![self.laptop.join(".aws")];
        while let Some(path) = paths.pop() {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
            if path.is_dir() {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
    }

    /// Writes the host's key, as it is now, into the laptop's known_hosts.
    pub fn trust_host(&self) {
        let line = self.sshd.known_hosts_line("127.0.0.1");
        self.laptop.write(".ssh/known_hosts", format!("{line}\n"), 0o600);
    }

    /// `broker` with these arguments, as the laptop's user.
    pub fn broker(&self, arguments: &[&str]) -> Command {
        let mut command = self.laptop.command(program());
        command.args(arguments).envs(self.aws.environment()).env("TERM", "xterm");
        command
    }

    /// `broker connect bastion` with these further arguments, never asking anybody.
    pub fn connect(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["connect", BASTION, "--batch"];
        all.extend_from_slice(arguments);
        self.broker(&all)
    }

    /// Runs a command to its end and keeps what it said for the last look.
    pub fn run(&mut self, command: Command) -> Output {
        let output = self.laptop.run(command);
        self.heard("a command", &output);
        output
    }

    /// Keeps what a program said for the last look.
    pub fn heard(&mut self, name: &str, output: &Output) {
        self.said.push(Place::output(format!("{name}: stdout"), output.stdout.clone()));
        self.said.push(Place::output(format!("{name}: stderr"), output.stderr.clone()));
        // A command may say something there as well, and `credential_process` passes on what an SDK would read.
        let is_event = |line: &&str| line.starts_with("{\"") && !line.starts_with("{\"code\"");
        let events: String = output.stderr().split_inclusive('\n').filter(is_event).collect();
        if !events.is_empty() {
            self.events.push(events);
        }
    }

    /// Starts `broker connect bastion -N` and waits for the exports.
    pub fn tunnel(&mut self, arguments: &[&str]) -> Tunnel {
        let mut all = vec!["-N", "--print-env", "sh"];
        all.extend_from_slice(arguments);
        let mut process = self.laptop.spawn(self.connect(&all));
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
        self.attach(process)
    }

    /// The tunnel of a `broker connect -N --print-env sh` that is ready.
    pub fn attach(&mut self, process: Process) -> Tunnel {
        let exports = process.text(Stream::Stdout);
        let environment = self.environment_after(&exports);
        let tunnel = Tunnel { process, exports, environment };
        self.tokens.extend(tunnel.tokens());
        tunnel
    }

    /// The environment of a login of the host's user after reading `exports`.
    fn environment_after(&self, exports: &str) -> BTreeMap<String, String> {
        let mut command = self.on_host("sh", &["-c", "eval \"$EXPORTS\"; unset EXPORTS; env -0"]);
        command.env("EXPORTS", exports);
        let output = self.laptop.run(command).success();
        output
            .stdout()
            .split('\0')
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// A file in the home of the host's user.
    pub fn home_file(&self, path: &str) -> PathBuf {
        self.sshd.user().home.join(path)
    }

    /// Writes a file into the home of the host's user, as that user would.
    pub fn plant(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let user = self.sshd.user();
        let mut directory = user.home.clone();
        let parts: Vec<_> = path.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            directory.push(part);
            if !directory.is_dir() {
                std::fs::create_dir(&directory).unwrap();
                std::os::unix::fs::chown(&directory, Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        let file = self.home_file(path);
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&file, Some(user.uid), Some(user.gid)).unwrap();
        file
    }

    /// A program as the host's user, as after another login.
    pub fn on_host(&self, program: &str, arguments: &[&str]) -> Command {
        self.as_user(self.sshd.user(), program, arguments)
    }

    /// A program as any user of the host.
    pub fn as_user(&self, user: &User, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.as_user(user);
        command.args(arguments).envs(self.aws.environment());
        command
    }

    /// The ARN that GetCallerIdentity gives a role.
    pub fn arn(role: &str) -> String {
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/AWSReservedSSO_{role}_0123456789abcdef/sandbox-user")
    }

    /// The audit log's lines.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = self.laptop.read(".local/state/broker/audit.log");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Everything of ours that lies on the host.
    pub fn left_on_host(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let places = ["/dev/shm", "/run/user", "/tmp", "/var/tmp"].map(PathBuf::from);
        let home = self.sshd.user().home.clone();
        let mut directories: Vec<PathBuf> = places.into_iter().chain([home]).collect();
        while let Some(directory) = directories.pop() {
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                let ours = entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with(&format!("broker-{}", self.sshd.user().uid));
                if ours && is_kept_name(&path, self.sshd.user().uid) {
                    // What is said to stay: nothing but its name.
                } else if ours {
                    found.push(path);
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_busy(&path) {
                    directories.push(path);
                }
            }
        }
        found
    }

    /// The last look: nothing lies on the host, no helper runs there, no secret is in anything that anybody can see.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.left_on_host(), Vec::<PathBuf>::new(), "left on the host");
        self.assert_no_secret();
    }

    /// No secret is in any output, log, argument list or file, but the SSO cache of the laptop.
    #[track_caller]
    pub fn assert_no_secret(&self) {
        self.assert_no_secret_but(&[]);
    }

    /// The same where `except` are files that hold role credentials on purpose.
    #[track_caller]
    pub fn assert_no_secret_but(&self, except: &[PathBuf]) {
        crate::events::assert_documented(&self.events);
        let mut secrets = self.aws.secrets();
        secrets.extend(self.tokens.iter().map(|token| token.trim_start_matches("Bearer ").to_owned()));
        let mut places = self.said.clone();
        places.push(Place::output("sshd's log", self.sshd.log()));
        places.push(Place::Arguments);
        places.push(Place::below(self.laptop.join(".local")));
        for directory in ["/dev/shm".into(), "/run".into(), self.sshd.user().home.clone()] {
            places.push(Place::BelowBut(directory, except.to_vec()));
        }
        assert_no_secret(&secrets, &places);
    }

    /// Asks `url` as an SDK of `user` would, with this `Authorization` header or none.
    ///
    /// The token reaches curl on stdin, so that it is in no argument list.
    pub fn fetch(&mut self, user: &User, url: &str, authorization: Option<&str>) -> Answer {
        let arguments = ["-sS", "-i", "--max-time", "10", "--header", "@-", url];
        let mut curl = self.as_user(user, "curl", &arguments);
        // A proxy of the machine must not answer for us.
        curl.env("NO_PROXY", "*");
        let header = authorization.map(|token| format!("Authorization: {token}\n")).unwrap_or_default();
        let output = run_within(curl, header.as_bytes(), PATIENCE).success();
        Answer(output.stdout)
    }

    /// Keeps a token for the last look, for tests that do not start a [`Tunnel`].
    pub fn keep_token(&mut self, token: &str) {
        self.tokens.push(token.to_owned());
    }

    /// The same program with the same arguments and environment, run by `shell -c script` of the laptop's user as
    /// `"$0" "$@"`.
    pub fn in_shell(&self, shell: &str, script: &str, command: &Command) -> Command {
        let mut wrapped = self.laptop.command(shell);
        wrapped.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    }

    /// Waits until nothing of ours lies on the host and nothing of its user runs there.
    #[track_caller]
    pub fn wait_for_clean_host(&self) {
        eventually("the host is clean", TIDY, || {
            let (left, running) = (self.left_on_host(), self.running_on_host());
            if left.is_empty() && running.is_empty() {
                Ok(())
            } else {
                Err(format!("left there: {left:?}, running: {running:?}"))
            }
        });
    }

    /// The command lines of the host's user in this test's network.
    pub fn running_on_host(&self) -> Vec<String> {
        self.processes_on_host().into_values().collect()
    }

    /// The processes of the host's user in this test's network, with their command lines, but for the server.
    pub fn processes_on_host(&self) -> BTreeMap<i32, String> {
        use std::os::unix::fs::MetadataExt as _;

        let here = std::fs::read_link("/proc/self/ns/net").unwrap();
        // The others serve as the user who logged in.
        let servers = match self.sshd.program() {
            Program::Openssh => Vec::new(),
            _ => self.sshd.connections(),
        };
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let running = processes.filter_map(|entry| {
            let id = entry
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .filter(|id| !servers.contains(&nix::unistd::Pid::from_raw(*id)))?;
            let ours = entry.metadata().ok()?.uid() == self.sshd.user().uid
                && std::fs::read_link(entry.path().join("ns/net")).ok()? == here;
            let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            // One that has ended and was not waited for has no command line.
            (ours && !command.is_empty()).then(|| (id, command.replace('\0', " ")))
        });
        running.collect()
    }

    /// Kills the one process of the host's user whose command line begins like this.
    #[track_caller]
    pub fn kill_on_host(&self, begins: &str) {
        let found: Vec<i32> = self
            .processes_on_host()
            .into_iter()
            .filter_map(|(id, command)| command.starts_with(begins).then_some(id))
            .collect();
        let [id] = found[..] else { panic!("not one but {} of `{begins}`", found.len()) };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}

/// What came back to an SDK: the whole answer, byte by byte.
#[derive(Clone, Eq, PartialEq)]
pub struct Answer(pub Vec<u8>);

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Answer {
    fn parts(&self) -> (String, String) {
        let text = String::from_utf8(self.0.clone()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
        (head.to_owned(), body.to_owned())
    }

    pub fn status(&self) -> u16 {
        self.parts().0.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The header lines without the status line.
    pub fn headers(&self) -> Vec<String> {
        self.parts().0.split("\r\n").skip(1).map(str::to_owned).collect()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.parts().1).unwrap()
    }

    /// The public half of the credentials.
    pub fn key_id(&self) -> String {
        assert_eq!(self.status(), 200, "{}", self.json()["message"]);
        self.json()["AccessKeyId"].as_str().unwrap().to_owned()
    }
}

/// Waits until `look` finds what is waited for, and returns it; the last thing that was wrong is told at the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + deadline;
    loop {
        match look() {
            Ok(found) => return found,
            Err(wrong) if Instant::now() >= until => panic!("not within {deadline:?}: {what}; {wrong}"),
            // Nobody tells when a file or a process is gone.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Whether this is the one thing that stays: where other users could make a directory of our name, an empty one of ours.
fn is_kept_name(path: &Path, uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let public =
        path.parent().is_some_and(|parent| [Path::new("/dev/shm"), Path::new("/tmp")].contains(&parent));
    let ours = std::fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o7777 == 0o700);
    public && ours && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Other tests' temporary homes come and go below the shared `/tmp`.
fn is_busy(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    ["home-", "bastion-", "sshd-", "."].iter().any(|prefix| name.starts_with(prefix))
}

/// `broker connect -N`, up and running.
pub struct Tunnel {
    pub process: Process,
    pub exports: String,
    /// What a shell of the host's user has after reading the exports.
    pub environment: BTreeMap<String, String>,
}

impl Tunnel {
    pub fn url(&self) -> &str {
        &self.environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
    }

    pub fn token_file(&self) -> PathBuf {
        PathBuf::from(&self.environment["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
    }

    /// The whole header value.
    pub fn token(&self) -> String {
        match self.environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN") {
            Some(token) => token.clone(),
            None => std::fs::read_to_string(self.token_file()).unwrap(),
        }
    }

    /// The directory of ours on the host.
    pub fn directory(&self) -> PathBuf {
        Path::new(&self.environment["AWS_CONFIG_FILE"]).parent().unwrap().to_owned()
    }

    /// Every token that lies on the host.
    pub fn tokens(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory()).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("token-"))
            .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
            .collect()
    }

    /// Stops it as Ctrl-C does, and returns what it said in all. It has no long time.
    pub fn stop(mut self, world: &mut World) -> Output {
        self.process.signal(nix::sys::signal::Signal::SIGINT);
        let output = self.process.wait(ENDS);
        world.heard("broker connect -N", &output);
        output
    }
}

/// The `broker` that this test was built with, where every user can reach it.
pub fn program() -> PathBuf {
    reachable(Path::new(env!("CARGO_BIN_EXE_broker")))
}

/// The software development kits that `tests/run` installed, where every user can reach them.
pub fn sdk(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_broker")).parent().unwrap().parent().unwrap();
    let path = target.join("sdks").join(path);
    assert!(path.exists(), "{} is missing: run tests/run once, which installs it", path.display());
    reachable(&path)
}

/// Returns whether this server can do this transport: dropbear forwards no unix sockets.
pub fn offers(transport: &str) -> bool {
    transport != "unix" || Program::asked_for() != Program::Dropbear
}

/// How a port is told that another connection of ours has: dropbear listens as root.
pub fn holder_of_ours() -> &'static str {
    match Program::asked_for() {
        Program::Dropbear => "in use by root (uid 0)",
        _ => "in use by a process of yours",
    }
}

/// Returns whether something happens within this time.
pub fn within(time: Duration, mut happens: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if happens() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

/// A file of this checkout.
pub fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares `text` with the file that was read and approved; `BLESS=1` writes it anew.
#[track_caller]
pub fn snapshot(path: &Path, text: &str) {
    if std::env::var_os("BLESS").is_some_and(|bless| bless == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let approved = std::fs::read_to_string(path).unwrap_or_default();
    let name = path.display();
    assert_eq!(
        text, approved,
        "not as in {name}; if it should be, BLESS=1 rewrites the file, to be read before it is committed"
    );
}
