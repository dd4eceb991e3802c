//! One host to connect to, with everything that ssh_config and the command line said about it.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use russh::keys::PrivateKey;
use secrecy::SecretString;

use super::algorithms::Algorithms;

/// Where to connect, as whom, and what to trust: `ssh::config` makes it, `ssh::session` uses it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    /// The host as typed; what `Host` patterns matched and what messages call it.
    pub(crate) original: String,
    /// The name or address to dial (`HostName`).
    pub(crate) hostname: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    /// The name that known_hosts is asked for instead of `hostname` (`HostKeyAlias`).
    pub(crate) host_key_alias: Option<String>,
    pub(crate) way: Way,
    pub(crate) address_family: AddressFamily,
    /// Where our end of the TCP connection is.
    pub(crate) bind: Bind,
    /// `ConnectionAttempts`: how often every address is tried before we give up; at least 1.
    pub(crate) connection_attempts: u32,
    /// `TCPKeepAlive`
    pub(crate) tcp_keep_alive: bool,
    /// Bounds dialling, version exchange and key exchange, as `ConnectTimeout` does.
    pub(crate) connect_timeout: Duration,
    pub(crate) identities: Identities,
    pub(crate) authentication: Authentication,
    /// What we offer and accept.
    pub(crate) algorithms: Arc<Algorithms>,
    pub(crate) known_hosts: KnownHostsFiles,
    /// `RevokedHostKeys`: files of keys, or revocation lists.
    pub(crate) revoked_host_keys: Vec<PathBuf>,
    /// `RequiredRSASize`: keys of RSA with fewer bits are neither believed nor used.
    pub(crate) required_rsa_size: u32,
    pub(crate) strict_host_key_checking: StrictHostKeyChecking,
    /// `--host-key SHA256:…`: the only key that this host may have; known_hosts is not asked.
    pub(crate) pinned_host_key: Option<String>,
    /// `ServerAliveInterval`; ours is 15 s where the configuration says nothing.
    pub(crate) server_alive_interval: Duration,
    /// `ServerAliveCountMax`; the link is dead after interval × count.
    pub(crate) server_alive_count_max: usize,
    pub(crate) rekey: Rekey,
    /// `LogLevel` below `INFO`: what a server says before the login is not shown, nor that its key was written down.
    pub(crate) quiet: bool,
    /// Never ask a person (`--batch`, `BatchMode`).
    pub(crate) batch: bool,
    pub(crate) session: Wishes,
}

/// `RekeyLimit`: after how much in one direction, and how long, there are new keys; `None` for what is usual.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Rekey {
    pub(crate) bytes: Option<u64>,
    pub(crate) after: Option<Duration>,
}

/// What carries the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// TCP.
    Direct,
    /// The standard input and output of a process (`ProxyCommand`).
    Command(ProxyCommand),
    /// A channel of a connection to this host (`ProxyJump`), whose own way may be another one.
    Jump(Box<Target>),
}

/// `ProxyCommand`, ready to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ProxyCommand {
    /// The user's shell.
    pub(crate) shell: PathBuf,
    /// The line for it, tokens expanded.
    pub(crate) line: String,
}

/// `BindAddress` and `BindInterface`; the former wins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Bind {
    pub(crate) address: Option<String>,
    pub(crate) interface: Option<String>,
}

/// What the user wants of a shell or command there.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Wishes {
    /// Variables that the server is asked to set (`SendEnv`, `SetEnv`), of which it takes those it likes.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) tty: Tty,
    /// `RemoteCommand`: what runs where nothing else was asked for.
    pub(crate) command: Option<String>,
    /// `EscapeChar`
    pub(crate) escape: Option<u8>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { environment: Vec::new(), tty: Tty::Auto, command: None, escape: Some(b'~') }
    }
}

impl fmt::Debug for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A value may be a passcode.
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("Wishes").field("environment", &names).field("tty", &self.tty).finish_non_exhaustive()
    }
}

/// `RequestTTY`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tty {
    /// For a shell when our standard input is a terminal.
    Auto,
    /// When our standard input is a terminal.
    Yes,
    Force,
    No,
}

impl Target {
    /// Returns the same target, for when nobody can be asked, here or on the way.
    pub(crate) fn for_nobody(&self) -> Self {
        let way = match &self.way {
            Way::Jump(hop) => Way::Jump(Box::new(hop.for_nobody())),
            way @ (Way::Direct | Way::Command(_)) => way.clone(),
        };
        Self { batch: true, way, ..self.clone() }
    }
}

/// `AddressFamily`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AddressFamily {
    Any,
    Inet,
    Inet6,
}

/// What we authenticate with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Identities {
    /// `IdentityFile`s in order; the defaults where none is configured.
    pub(crate) files: Vec<PathBuf>,
    /// Whether `files` were named by the user; a default that does not exist is not worth a word.
    pub(crate) explicit: bool,
    /// `CertificateFile`s in order; those beside `files` come by themselves.
    pub(crate) certificates: Vec<PathBuf>,
    /// `IdentitiesOnly`: offer only keys of the agent whose public half is among `files`.
    pub(crate) only: bool,
    /// The agent's socket (`IdentityAgent`, `SSH_AUTH_SOCK`); `None` for no agent.
    pub(crate) agent: Option<PathBuf>,
    /// `--identity-env`: a key that is tried before all others.
    pub(crate) environment: Option<EnvironmentKey>,
    pub(crate) unlocked: Unlocked,
}

/// How we may log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Authentication {
    /// The methods, in the order in which they are tried.
    pub(crate) methods: Vec<Method>,
    /// `NumberOfPasswordPrompts`: how often a person may mistype.
    pub(crate) prompts: usize,
    pub(crate) tickets: Tickets,
}

/// What happens with a Kerberos ticket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tickets {
    /// `GSSAPIDelegateCredentials`: the host gets one with which it can act for us.
    pub(crate) delegate: bool,
    /// Whether the user asked for `GSSAPIAuthentication`: where only the system's configuration did, one that does not
    /// fit is not worth a word.
    pub(crate) by_user: bool,
}

/// A method that we have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Method {
    Gssapi,
    PublicKey,
    KeyboardInteractive,
    Password,
}

impl Default for Authentication {
    fn default() -> Self {
        let methods = vec![Method::PublicKey, Method::KeyboardInteractive, Method::Password];
        Self { methods, prompts: 3, tickets: Tickets::default() }
    }
}

/// A private key that came in a variable of the environment.
#[derive(Clone)]
pub(crate) struct EnvironmentKey {
    pub(crate) name: String,
    pub(crate) text: Arc<SecretString>,
}

impl fmt::Debug for EnvironmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnvironmentKey({})", self.name)
    }
}

impl Eq for EnvironmentKey {}

impl PartialEq for EnvironmentKey {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.text, &other.text)
    }
}

/// Keys that a passphrase has opened: a person types it once, and a reconnect needs nobody.
#[derive(Clone, Default)]
pub(crate) struct Unlocked(Arc<Mutex<HashMap<PathBuf, Arc<PrivateKey>>>>);

impl Unlocked {
    pub(super) fn find(&self, path: &Path) -> Option<Arc<PrivateKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    pub(super) fn keep(&self, path: &Path, key: &Arc<PrivateKey>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), Arc::clone(key));
    }
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unlocked")
    }
}

/// What was typed does not make another host of it.
impl PartialEq for Unlocked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Unlocked {}

/// Where host keys are looked up, and where a new one is written: the first of `user`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KnownHostsFiles {
    pub(crate) user: Vec<PathBuf>,
    pub(crate) global: Vec<PathBuf>,
    /// `HashKnownHosts`.
    pub(crate) hash: bool,
    pub(crate) command: Option<KnownHostsCommand>,
}

/// `KnownHostsCommand`: run without a shell, and what it prints is read as a known_hosts file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KnownHostsCommand {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<Vec<Part>>,
}

/// A part of an argument: what is known from the start, and what only a connection tells.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    Text(String),
    /// `%H`: the host as known_hosts has it.
    Name,
    /// `%I`: why it is run.
    Invocation,
    /// `%t`, `%f` and `%K`: the type, the fingerprint and all of the key that the host shows.
    KeyType,
    Fingerprint,
    Key,
}

/// `StrictHostKeyChecking`. A changed or revoked key stops us whatever this says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StrictHostKeyChecking {
    /// A new key is refused.
    Yes,
    /// A new key is shown to the person; refused when nobody can answer.
    Ask,
    /// A new key of an unknown host is written down and used.
    AcceptNew,
}
