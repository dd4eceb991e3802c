//! What is compared: `broker`, and what one could do without it, each from its start to its end.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::{
    aws::FakeAws,
    home::{Home, Host, Process, Stream},
    sshd::{Sshd, SshdOptions},
    users::User,
};
use tempfile::TempDir;

use crate::measure;

/// Far more than the slowest start on a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Twice what `broker` promises for its end.
const END_TIMEOUT: Duration = Duration::from_secs(4);

const ACCOUNT: &str = "123456789012";
const ROLE: &str = "Bench";

/// Key exchange and cipher of all rows but one: what both `broker` and every `ssh` can do.
const KEX: &str = "curve25519-sha256";
const CIPHER: &str = "chacha20-poly1305@openssh.com";

/// The ways from an SDK to credentials.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Variant {
    /// The server alone, asked over loopback: the limit of what is possible.
    Direct,
    Broker,
    /// `broker` on a host that does not tell whose a connection is, told to trust all its users: all but the uid check.
    Unchecked,
    /// `ssh -N -R` and the server.
    Ssh,
    /// `ssh -R` with a command that runs, which turns Nagle's algorithm off in sshd, and the server.
    SshSession,
    /// `ssh -N -R` with the key exchange that it chooses itself; only connects.
    SshOwnKex,
}

impl Variant {
    pub(crate) const ALL: [Self; 6] =
        [Self::Direct, Self::Broker, Self::Unchecked, Self::Ssh, Self::SshSession, Self::SshOwnKex];
    /// Those that connect.
    pub(crate) const CONNECTS: [Self; 4] = [Self::Broker, Self::Ssh, Self::SshSession, Self::SshOwnKex];
    /// Those that answer.
    pub(crate) const ANSWERS: [Self; 5] =
        [Self::Direct, Self::Broker, Self::Unchecked, Self::Ssh, Self::SshSession];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Broker => "broker",
            Self::Unchecked => "broker, no uid check",
            Self::Ssh => "ssh -N -R",
            Self::SshSession => "ssh -R + session",
            Self::SshOwnKex => "ssh -N -R, own kex",
        }
    }
}

/// The pretend AWS, the host, and the two people who use them.
pub(crate) struct World {
    pub(crate) aws: FakeAws,
    pub(crate) laptop: Home,
    pub(crate) host: Home,
    /// This program, where the user of the host can run it.
    pub(crate) exe: String,
    place: TempDir,
    broker: PathBuf,
    // Only to be dropped last: sessions of the tunnels run in them.
    _servers: [Sshd; 3],
}

impl World {
    pub(crate) fn new(broker: &str) -> Self {
        let aws = FakeAws::start_blocking();
        let laptop = Home::temporary();
        aws.add_role(ACCOUNT, "Benchmark", ROLE);
        aws.seed_home(laptop.path(), "bench", &[("bench", ACCOUNT, ROLE)], "eu-central-1");
        aws.seed_token(laptop.path(), "bench");

        let user = User::host();
        let options = || SshdOptions::new(user.clone()).config(format!("Ciphers {CIPHER}"));
        let same_kex = || options().config(format!("KexAlgorithms {KEX}"));
        let servers = [same_kex(), options(), same_kex().without_proc_net()].map(Sshd::start);
        for (alias, sshd) in ["host", "host-own-kex", "host-unchecked"].into_iter().zip(&servers) {
            laptop.add_host(&Host {
                alias: alias.to_owned(),
                port: sshd.port(),
                user: user.name.clone(),
                known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
                key: sshd.client_key(),
            });
        }

        let place = tempfile::Builder::new().prefix("bench-").tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let exe = place.path().join("tunnel");
        fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
        Self {
            aws,
            laptop,
            host: Home::of(user),
            exe: exe.display().to_string(),
            place,
            broker: PathBuf::from(broker),
            _servers: servers,
        }
    }

    /// Returns `broker`, at home on the laptop.
    pub(crate) fn broker(&self) -> Command {
        let mut command = self.laptop.command(&self.broker);
        command.envs(self.aws.environment());
        command
    }

    /// Starts the server that stands behind `ssh`, and returns its port.
    fn serve(&self, token: &str, marker: &str) -> (Process, u16) {
        let mut command = self.laptop.command(&self.exe);
        command.arg("serve");
        let mut server = Process::spawn(command);
        server.send(format!("{token}\n{marker}\n"));
        let line = server.wait_for_line(Stream::Stdout, "port ", READY_TIMEOUT);
        (server, line.trim_start_matches("port ").parse().unwrap())
    }

    /// Puts a token where the user of the host can read it.
    fn token_file(&self, token: &str) -> PathBuf {
        let path = self.place.path().join(format!("token-{}", random()));
        fs::write(&path, token).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }
}

/// Where an SDK on the host asks, and how it knows that the right one answered.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) variant: Variant,
    port: u16,
    path: String,
    pub(crate) token_file: PathBuf,
    /// An access key id that this run has issued, and nobody else knows.
    pub(crate) marker: String,
}

impl Endpoint {
    pub(crate) fn uri(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.port, self.path)
    }

    pub(crate) fn arguments(&self, command: &mut Command) {
        command.args([&self.port.to_string(), &self.path]).arg(&self.token_file).arg(&self.marker);
    }
}

/// A way that stands.
pub(crate) struct Tunnel {
    pub(crate) endpoint: Endpoint,
    /// From the start of the process to the line that says that it is ready.
    pub(crate) ready: Duration,
    /// Processor time of the same process until then.
    pub(crate) spent: Duration,
    /// The one that connects, and the server if that is another.
    processes: Vec<Process>,
    connects: bool,
}

impl Tunnel {
    pub(crate) fn open(world: &World, variant: Variant) -> Self {
        match variant {
            Variant::Broker | Variant::Unchecked => Self::broker(world, variant),
            Variant::Direct | Variant::Ssh | Variant::SshSession | Variant::SshOwnKex => {
                Self::peer(world, variant)
            }
        }
    }

    fn broker(world: &World, variant: Variant) -> Self {
        let port = free_port();
        let mut command = world.broker();
        let unchecked = variant == Variant::Unchecked;
        if unchecked {
            command.args(["connect", "host-unchecked", "--trust-host-users", "--transport", "tcp"]);
        } else {
            command.args(["connect", "host"]);
        }
        command.args(["-N", "-p", "bench", "--batch", "--print-env", "sh", "-R", &port.to_string()]);
        command.arg("-F").arg(world.laptop.join(".ssh/config"));
        let started = Instant::now();
        let mut broker = Process::spawn(command);
        let exported = |broker: &mut Process, name: &str| {
            let before = broker.text(Stream::Stdout);
            let line = match before.lines().find(|line| line.contains(name)) {
                Some(line) => line.to_owned(),
                None => broker.wait_for_line(Stream::Stdout, name, READY_TIMEOUT),
            };
            line.split_once('=').unwrap().1.trim_matches(['\'', '"']).to_owned()
        };
        let uri = exported(&mut broker, "AWS_CONTAINER_CREDENTIALS_FULL_URI=");
        let token_file = exported(&mut broker, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=");
        if unchecked {
            broker.wait_for_line(Stream::Stderr, "(--trust-host-users)", READY_TIMEOUT);
        }
        let ready = started.elapsed();
        let spent = measure::processor_time(&[broker.pid()]);
        let path =
            uri.strip_prefix(&format!("http://127.0.0.1:{port}")).expect("the port that was asked for");
        Self {
            endpoint: Endpoint {
                variant,
                port,
                path: path.to_owned(),
                token_file: token_file.into(),
                marker: world.aws.last_issued(ACCOUNT, ROLE).expect("the pretend AWS was asked"),
            },
            ready,
            spent,
            processes: vec![broker],
            connects: true,
        }
    }

    fn peer(world: &World, variant: Variant) -> Self {
        let (token, marker) = (random(), random());
        let (server, served) = world.serve(&token, &marker);
        let mut tunnel = Self {
            endpoint: Endpoint {
                variant,
                port: served,
                path: "/".to_owned(),
                token_file: world.token_file(&token),
                marker,
            },
            ready: Duration::ZERO,
            spent: Duration::ZERO,
            processes: vec![server],
            connects: false,
        };
        if variant != Variant::Direct {
            tunnel.connect(world, variant, served);
        }
        tunnel
    }

    fn connect(&mut self, world: &World, variant: Variant, served: u16) {
        let port = free_port();
        let mut command = world.laptop.ssh();
        // The later of two equal options does not count, so the level is set by -v and not by -o.
        command.args(["-v", "-o", "ExitOnForwardFailure=yes"]);
        command.args(["-R", &format!("127.0.0.1:{port}:127.0.0.1:{served}")]);
        match variant {
            Variant::SshSession => command.args(["host", "cat"]),
            Variant::SshOwnKex => command.args(["-N", "host-own-kex"]),
            Variant::Direct | Variant::Broker | Variant::Unchecked | Variant::Ssh => {
                command.args(["-N", "host"])
            }
        };
        let started = Instant::now();
        let mut ssh = Process::spawn(command);
        ssh.wait_for_line(Stream::Stderr, "remote forward success", READY_TIMEOUT);
        self.ready = started.elapsed();
        self.spent = measure::processor_time(&[ssh.pid()]);
        if variant == Variant::SshSession {
            // An answer proves that the session stands.
            ssh.send("session\n");
            ssh.wait_for_line(Stream::Stdout, "session", READY_TIMEOUT);
        }
        self.endpoint.port = port;
        self.processes.insert(0, ssh);
        self.connects = true;
    }

    /// Returns all local processes that this way needs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    /// Ends it, and returns how long that took. The port is free then.
    pub(crate) fn close(mut self) -> Duration {
        let started = Instant::now();
        if self.connects {
            let mut first = self.processes.remove(0);
            let pid = Pid::from_raw(first.pid().cast_signed()).unwrap();
            kill_process(pid, Signal::TERM).expect("it still runs");
            let _status = first.wait(END_TIMEOUT);
        }
        let took = started.elapsed();
        // The server ends with its handle.
        drop(self.processes);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.endpoint.port)).is_ok() {
            assert!(
                started.elapsed() < READY_TIMEOUT,
                "somebody still listens on port {}",
                self.endpoint.port
            );
            thread::sleep(Duration::from_millis(1));
        }
        took
    }
}

/// Returns a port that nothing listens on, outside the range that outgoing connections take theirs from.
fn free_port() -> u16 {
    loop {
        let port = 20_000 + (RandomState::new().hash_one(Instant::now()) % 10_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn random() -> String {
    let half = || RandomState::new().hash_one(Instant::now());
    format!("{:016X}{:016X}", half(), half())
}
