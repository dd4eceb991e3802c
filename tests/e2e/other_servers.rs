//! Servers that are not OpenSSH, in the place of the host's sshd: `BROKER_TEST_SERVER=dropbear|asyncssh|embedded`.
//!
//! Every test has its host from [`World`](crate::support::World), so that tests about what a user does run on each of them
//! as they are; `tests/servers` runs those that can, and says why the others cannot. The sshd is there all the same, and
//! nobody connects to it.

use std::{path::Path, process::Command, sync::Mutex};

use sandbox::{
    bastion::{Bastion, Options},
    home::{Home, Host, Process, Stream},
    sshd::Sshd,
    users::{AsUser as _, User},
};
use tempfile::TempDir;

use crate::support::{BASTION, PATIENCE, reachable, sdk};

/// Which server stands in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Dropbear,
    Asyncssh,
    /// The one of the sandbox.
    Embedded,
}

impl Kind {
    /// What the environment asks for; nothing means the system's sshd.
    pub fn asked_for() -> Option<Self> {
        let name = std::env::var("BROKER_TEST_SERVER").ok().filter(|name| !name.is_empty())?;
        Some(match name.as_str() {
            "dropbear" => Self::Dropbear,
            "asyncssh" => Self::Asyncssh,
            "embedded" => Self::Embedded,
            other => panic!("BROKER_TEST_SERVER is `{other}`: it can be dropbear, asyncssh or embedded"),
        })
    }
}

/// A server that runs until it is dropped.
pub struct Server {
    host: Host,
    /// Worlds are shared between threads.
    process: Mutex<Process>,
    _directory: TempDir,
}

impl Server {
    /// Starts it for the user of `sshd`, whose sessions have `environment`.
    pub fn start(kind: Kind, sshd: &Sshd, laptop: &Home, environment: &[(String, String)]) -> Self {
        let directory = tempfile::Builder::new().prefix("sshd-").tempdir().unwrap();
        let place = directory.path();
        std::os::unix::fs::chown(place, Some(sshd.user().uid), Some(sshd.user().gid)).unwrap();
        let user = sshd.user();
        let (process, port, key, client_key) = match kind {
            Kind::Dropbear => dropbear(sshd, laptop, place, environment),
            Kind::Asyncssh => {
                let script = place.join("server.py");
                std::fs::write(&script, include_str!("servers/server.py")).unwrap();
                let record = place.join("record");
                let mut python = Command::new(sdk("python/bin/python"));
                python.as_user(user).arg(script).arg("honest").arg(record).envs(environment.iter().cloned());
                let mut process = laptop.spawn(python);
                let (port, key) = announced(&mut process);
                (process, port, key, sshd.client_key())
            }
            Kind::Embedded => {
                let mut server = Command::new(reachable(&std::env::current_exe().unwrap()));
                server.as_user(user).args(["--exact", "other_servers::embedded", "--nocapture", "--ignored"]);
                server.envs(environment.iter().cloned()).env(PLACE, place);
                let mut process = laptop.spawn(server);
                let (port, key) = announced(&mut process);
                let client_key = std::fs::read_to_string(place.join("client_key")).unwrap();
                (process, port, key, client_key)
            }
        };
        let host = Host {
            alias: BASTION.into(),
            port,
            user: user.name.clone(),
            known_hosts_line: format!("[127.0.0.1]:{port} {key}\n"),
            key: client_key,
        };
        Self { host, process: Mutex::new(process), _directory: directory }
    }

    pub fn pid(&self) -> i32 {
        self.process.lock().unwrap().pid().cast_signed()
    }

    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// What a server says when it listens: its port and its key.
fn announced(process: &mut Process) -> (u16, String) {
    let mut after = |word: &str| {
        let line = process.wait_for_line(Stream::Stdout, word, PATIENCE);
        line.split_once(word).unwrap().1.trim().to_owned()
    };
    let key = after("hostkey ");
    (after("port ").parse().unwrap(), key)
}

/// It takes only the keys in the user's own home, so this namespace gets an empty one; and only users whose shell is in
/// `/etc/shells`.
fn dropbear(
    sshd: &Sshd,
    laptop: &Home,
    place: &Path,
    environment: &[(String, String)],
) -> (Process, u16, String, String) {
    let User { uid, gid, home, shell: login, .. } = sshd.user();
    let login = login.display();
    let (home, place) = (home.display(), place.display());
    let prepare = format!(
        "mountpoint -q {home} || mount -t tmpfs -o mode=755,uid={uid},gid={gid} tmpfs {home}; mkdir -p -m 700 {home}/.ssh\n\
         ssh-keygen -y -f {} >{home}/.ssh/authorized_keys; chown -R {uid}:{gid} {home}\n\
         umount -l /etc/shells 2>/dev/null || true\n\
         (cat /etc/shells; echo {login}) >{place}/shells; mount --bind {place}/shells /etc/shells\n\
         dropbearkey -t ed25519 -f {place}/key | grep ^ssh-",
        sshd.client_key_path().display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-ec", &prepare]);
    let key = laptop.run(shell).success().stdout();
    let key = key.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let mut dropbear = Command::new("dropbear");
    // It sets the login's own variables itself.
    dropbear
        .env_clear()
        .envs(environment.iter().cloned())
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin");
    dropbear.args(["-F", "-E", "-e", "-p", "127.0.0.1:2222", "-r", &format!("{place}/key")]);
    dropbear.args(["-P", &format!("{place}/pid")]);
    let mut process = laptop.spawn(dropbear);
    process.wait_for_line(Stream::Stderr, "Not backgrounding", PATIENCE);
    (process, 2222, key, sshd.client_key())
}

/// Where the embedded server puts the key that opens it.
const PLACE: &str = "BROKER_TEST_SERVER_PLACE";

/// No test: the embedded server, as the host's user, in a process of its own.
#[test]
#[ignore = "it is a server, which the tests start"]
fn embedded() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let user = User::current();
    let env = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect();
    let options = Options { home: user.home, shell: user.shell, env, ..Options::default() };
    let bastion = Bastion::start(options);
    std::fs::write(Path::new(&place).join("client_key"), bastion.client_key()).unwrap();
    let line = bastion.known_hosts_line("127.0.0.1");
    println!("hostkey {}", line.trim().split_once(' ').unwrap().1);
    println!("port {}", bastion.port());
    // The end of it is the end.
    drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
}
