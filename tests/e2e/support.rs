//! A world for one test: Identity Center, a host with sshd, a laptop, and what must be true of all of it at the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sandbox::{
    aws::FakeAws,
    home::{Home, Host, Output, Process, Stream},
    secrets::{Place, assert_no_secret},
    sshd::{Sshd, SshdOptions},
    users::{AsUser as _, User},
};

pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-west-1";

/// Longer than anything may take that does not wait on purpose; a test that needs it all has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a stop may take (`product.md` 7), as the user sees it.
pub const STOP: Duration = Duration::from_secs(2);

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
}

impl World {
    /// A host with sshd's defaults, and a laptop whose user is logged in, with profiles `dev` and `audit`.
    pub fn new() -> Self {
        Self::with(SshdOptions::default())
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
        let world = Self { aws, sshd, laptop, said: Vec::new(), tokens: Vec::new() };
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
    }

    /// Starts `broker connect bastion -N` and waits for the exports.
    pub fn tunnel(&mut self, arguments: &[&str]) -> Tunnel {
        let mut all = vec!["-N", "--print-env", "sh"];
        all.extend_from_slice(arguments);
        let mut process = self.laptop.spawn(self.connect(&all));
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
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
                if ours {
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
        let mut secrets = self.aws.secrets();
        secrets.extend(self.tokens.iter().map(|token| token.trim_start_matches("Bearer ").to_owned()));
        let mut places = self.said.clone();
        places.push(Place::output("sshd's log", self.sshd.log()));
        places.push(Place::Arguments);
        places.push(Place::below(self.laptop.join(".local")));
        places.push(Place::below("/dev/shm"));
        places.push(Place::below("/run"));
        places.push(Place::below(&self.sshd.user().home));
        assert_no_secret(&secrets, &places);
    }
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
    fn tokens(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory()).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("token-"))
            .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
            .collect()
    }

    /// Stops it as Ctrl-C does, and returns what it said in all. It has two seconds.
    pub fn stop(mut self, world: &mut World) -> Output {
        self.process.signal(nix::sys::signal::Signal::SIGINT);
        let output = self.process.wait(STOP);
        world.heard("broker connect -N", &output);
        output
    }
}

/// The `broker` that this test was built with, where every user can reach it.
fn program() -> PathBuf {
    reachable(Path::new(env!("CARGO_BIN_EXE_broker")))
}

/// The software development kits that `tests/run` installed, where every user can reach them.
pub fn sdk(path: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_broker")).parent().unwrap().parent().unwrap();
    let path = target.join("sdks").join(path);
    assert!(path.exists(), "{} is missing: run tests/run once, which installs it", path.display());
    reachable(&path)
}

/// A checkout may lie where only its owner may look. The test's mount namespace shows its target directory in `/mnt`.
fn reachable(path: &Path) -> PathBuf {
    static MOUNTED: std::sync::Once = std::sync::Once::new();
    let target = Path::new(env!("CARGO_BIN_EXE_broker")).parent().unwrap().parent().unwrap();
    MOUNTED.call_once(|| {
        let mounted = Command::new("mount").arg("--bind").arg(target).arg("/mnt").status().unwrap();
        assert!(mounted.success(), "could not mount {} on /mnt", target.display());
    });
    Path::new("/mnt").join(path.strip_prefix(target).unwrap())
}
