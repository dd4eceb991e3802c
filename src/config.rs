//! Flags > environment > files > defaults, into one validated [`Plan`].
//!
//! The only place that reads the environment. Everything that can be wrong without a network is found here.

mod allow;
pub(crate) mod file;
pub(crate) mod pin;
pub(crate) mod whose;

use std::{
    collections::BTreeMap,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::SecretString;

use self::{
    file::File,
    pin::Pin,
    whose::{ChainError, Wanted},
};
use crate::{
    aws::{
        client::{BadEndpoint, Endpoints},
        profile::{Ambient, ConfigFiles, Profile, Profiles},
    },
    remote::exports::Shell,
    ssh::{
        config::{ConfigFile, Destination, FilesRead, Request, Session, Surroundings, find_host},
        target::{AddressFamily, EnvironmentKey, Target, Tty, Wishes},
    },
    tls,
    tunnel::{CallerCheck, Options, PortWish, TokenPlace, Transport},
};

/// The environment of this process, read once.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
    key: Option<EnvironmentKey>,
    file: Arc<File>,
    file_mistake: Option<Arc<file::Error>>,
    /// What was read before, while many hosts are planned.
    read: Option<Read>,
    pub(crate) home: PathBuf,
    pub(crate) user: String,
    pub(crate) host_name: String,
}

/// Files of the user that are the same for every host.
#[derive(Clone, Debug, Default)]
struct Read {
    ssh: FilesRead,
    aws: Arc<OnceLock<Arc<Profiles>>>,
}

impl Environment {
    /// Returns the same, which reads each file once: for the plans of many hosts, and no longer than for them.
    pub(crate) fn reading_once(&self) -> Self {
        Self { read: Some(Read::default()), ..self.clone() }
    }

    /// Reads the environment, the home directory and the names of this user and machine.
    pub(crate) fn capture() -> Result<Self, Error> {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let home = std::env::home_dir().filter(|home| home.is_absolute()).ok_or(Error::NoHome)?;
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective())
            .ok()
            .flatten()
            .map(|user| user.name)
            .or_else(|| variables.get("USER").cloned())
            .ok_or(Error::NoUser)?;
        let host_name =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        Ok(Self {
            variables,
            key: None,
            file: Arc::default(),
            file_mistake: None,
            read: None,
            home,
            user,
            host_name,
        })
    }

    /// Returns a variable that is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Takes what our configuration file holds, or what is wrong with it where we can do without.
    pub(crate) fn take_file(&mut self, file: Result<File, file::Error>) {
        match file {
            Ok(file) => self.file = Arc::new(file),
            Err(mistake) => self.file_mistake = Some(Arc::new(mistake)),
        }
    }

    /// Returns what is wrong with our configuration file, of which nothing counts then.
    pub(crate) fn file_mistake(&self) -> Option<&file::Error> {
        self.file_mistake.as_deref()
    }

    /// Returns what our configuration file holds.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Takes the private key out of the variable `name`, for [`Self::key`].
    pub(crate) fn take_key(&mut self, name: &str, text: SecretString) {
        self.key = Some(EnvironmentKey { name: name.to_owned(), text: Arc::new(text) });
    }

    /// Returns the private key that was taken out of the variable `name`.
    fn key(&self, name: Option<&str>) -> Result<Option<EnvironmentKey>, Error> {
        let Some(name) = name else { return Ok(None) };
        match &self.key {
            Some(key) if key.name == name => Ok(Some(key.clone())),
            _ => Err(Error::NoKey { name: name.to_owned() }),
        }
    }

    /// Returns all variables.
    pub(crate) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Returns where state that outlives a process is kept: `$XDG_STATE_HOME/broker` (XDG Base Directory 0.8).
    pub(crate) fn state_directory(&self) -> PathBuf {
        self.get("XDG_STATE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| self.home.join(".local/state"))
            .join("broker")
    }

    /// Returns the directories of the user's session, which go with it: `$XDG_RUNTIME_DIR`, and where it usually is.
    pub(crate) fn session_directories(&self) -> Vec<PathBuf> {
        let named = self.get("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let system = PathBuf::from(format!("/run/user/{}", nix::unistd::Uid::effective()));
        named.into_iter().chain(system.is_dir().then_some(system)).collect()
    }

    /// Returns where control sockets may lie, the first that works first: what the session has for that, and what is
    /// there without a session; where both fail, below the state directory and in `/tmp`. One of several machines that
    /// share a home has its own.
    pub(crate) fn runtime_directories(&self) -> Vec<PathBuf> {
        let uid = nix::unistd::Uid::effective();
        // On macOS this is the user's alone; elsewhere it is not where another terminal would look.
        let temporary = self.get("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let temporary = temporary.filter(|_| cfg!(target_os = "macos"));
        let machine: String =
            self.host_name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let mut places: Vec<PathBuf> = self
            .session_directories()
            .into_iter()
            .chain(temporary)
            .map(|path| path.join("broker"))
            .chain([
                self.state_directory().join(format!("run-{machine}")),
                PathBuf::from(format!("/tmp/.broker-control-{uid}")),
            ])
            .collect();
        places.dedup();
        places
    }

    /// Returns where every decision is logged.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.state_directory().join("audit.log")
    }

    /// Returns the AWS configuration files (`AWS_CONFIG_FILE`, `AWS_SHARED_CREDENTIALS_FILE`).
    pub(crate) fn aws_files(&self) -> ConfigFiles {
        let path = |variable: &str, default: &str| match self.get(variable) {
            Some(path) => expand_home(path, &self.home),
            None => self.home.join(".aws").join(default),
        };
        ConfigFiles {
            config: path("AWS_CONFIG_FILE", "config"),
            credentials: path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        }
    }

    /// Returns the endpoints that the environment pins, each for one service, so that a stray `AWS_ENDPOINT_URL`
    /// (LocalStack) never sees an SSO token.
    pub(crate) fn endpoints(&self) -> Result<Endpoints, BadEndpoint> {
        Endpoints::new(|name| self.get(name).map(str::to_owned))
    }

    /// Returns every profile and session that the files hold, with what the environment adds to them.
    pub(crate) fn aws_profiles(&self) -> Result<Arc<Profiles>, crate::aws::profile::Error> {
        let before = self.read.as_ref().map(|read| &read.aws);
        if let Some(profiles) = before.and_then(|before| before.get()) {
            return Ok(Arc::clone(profiles));
        }
        let ambient = Ambient::read(|name| self.get(name), &self.home);
        let profiles = Arc::new(Profiles::load(&self.aws_files(), ambient)?);
        if let Some(before) = before {
            // Nobody else plans meanwhile.
            before.set(Arc::clone(&profiles)).unwrap_or_default();
        }
        Ok(profiles)
    }
}

fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(path),
    }
}

fn expand_home_of(path: PathBuf, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path,
    }
}

/// What the command line of `connect` said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) host: String,
    pub(crate) wanted: Wanted,
    pub(crate) remote_port: Option<u16>,
    pub(crate) transport: Option<Transport>,
    pub(crate) ssh_port: Option<u16>,
    pub(crate) login_name: Option<String>,
    pub(crate) identity_files: Vec<PathBuf>,
    pub(crate) ssh_config: Option<PathBuf>,
    pub(crate) ssh_options: Vec<(String, String)>,
    pub(crate) jump: Option<String>,
    pub(crate) inet4: bool,
    pub(crate) inet6: bool,
    pub(crate) host_key: Option<String>,
    pub(crate) dangerous_legacy: Vec<String>,
    pub(crate) identity_env: Option<String>,
    pub(crate) no_shell: bool,
    pub(crate) background: bool,
    pub(crate) print_env: Option<Shell>,
    pub(crate) command: Vec<String>,
    pub(crate) request_tty: Option<bool>,
    pub(crate) token_in_environment: bool,
    pub(crate) trust_host_users: bool,
    pub(crate) allow_uids: Vec<u32>,
    /// Patterns of profiles that are served when a process asks for them.
    pub(crate) allow: Vec<String>,
    pub(crate) install_profiles: bool,
    pub(crate) keep_config: bool,
    pub(crate) tls: Option<tls::Wish>,
    pub(crate) linger: Option<Duration>,
    pub(crate) reconnect_for: Option<Duration>,
    pub(crate) tmux: bool,
    pub(crate) batch: bool,
}

/// Everything that `connect` will do, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    /// At least one; the first is the default grant.
    pub(crate) profiles: Vec<Profile>,
    /// Those that are served when a process asks for them.
    pub(crate) on_request: Vec<Profile>,
    /// Which profiles the host may ever get.
    pub(crate) pin: Pin,
    pub(crate) options: Options,
    /// Whose certificate answers at the port; `None` for plain HTTP.
    pub(crate) tls: Option<tls::Wish>,
    /// Further uids on the host that may ask.
    pub(crate) allow_uids: Vec<u32>,
    pub(crate) job: Job,
    /// What the person should know before we start.
    pub(crate) warnings: Vec<String>,
}

/// What runs while the tunnel is up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Job {
    /// The login shell, with a terminal if we have one (`None`) or as `-t`/`-T` said.
    Shell { tty: Option<bool> },
    /// A command line for the login shell, as `ssh` would send it.
    Command { line: String, tty: bool },
    /// `-N`: exports on stdout, in this shell's language or in the login shell's. `-f`: leaves the terminal after that.
    Exports { shell: Option<Shell>, background: bool },
}

/// What is wrong with what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no home directory (HOME is not set, and the user database has none)")]
    NoHome,
    #[error("the name of this user is unknown (no entry in the user database, and USER is not set)")]
    NoUser,
    #[error("no profile was named, and `{}` has {}", path.display(), if known.is_empty() { "none" } else { "several and no usable default" })]
    NoProfile { path: PathBuf, known: Vec<String> },
    #[error("no profile that can be served matches `--allow {pattern}`")]
    NothingAllowed { pattern: String, known: Vec<String> },
    #[error("`--identity-env {name}`: there is no such variable, or it is empty")]
    NoKey { name: String },
    #[error("`-p {port}` is no profile")]
    PortAsProfile { port: String },
    #[error("`--tls` is for the port on the host, and `--transport {transport}` has none")]
    TlsWithoutPort { transport: &'static str },
    #[error("`--linger` leaves nothing to whoever uses {what}")]
    NothingLingers { what: &'static str },
    #[error("it is not said through which SSO session the role is wanted")]
    WhichSession { known: Vec<String> },
    #[error(
        "profile `{profile}` does not start from an SSO session, so there is nothing to sign in to or out of"
    )]
    NoSession { profile: String },
    #[error("`--start-url` cannot be used")]
    StartUrl(#[source] crate::aws::profile::BadStartUrl),
    #[error(transparent)]
    Pinned(#[from] Box<pin::Refused>),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    BadName(#[from] crate::names::BadName),
    #[error(transparent)]
    Profile(#[from] crate::aws::profile::Error),
    #[error(transparent)]
    Ssh(#[from] crate::ssh::config::Error),
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
}

impl Error {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome => Some("set HOME".to_owned()),
            Self::NoUser => Some("set USER".to_owned()),
            Self::NoKey { name } => Some(format!("put the text of a private key into `{name}`")),
            Self::NoProfile { known, .. } if known.is_empty() => {
                Some(crate::aws::profile::CONFIGURE.to_owned())
            }
            Self::NoProfile { known, .. } => {
                Some(format!("name one with `-p NAME`; there are: {}", crate::aws::profile::listed(known)))
            }
            Self::NothingAllowed { known, .. } => {
                Some(format!("there are: {}", crate::aws::profile::listed(known)))
            }
            Self::PortAsProfile { port } => {
                Some(format!("`-p` is --profile here; the SSH port is `-P {port}`"))
            }
            Self::TlsWithoutPort { transport: "unix" } => {
                Some("leave out `--tls`: the kernel lets nobody but your user open the socket".to_owned())
            }
            Self::TlsWithoutPort { .. } => Some("leave out `--tls`: nothing there asks us".to_owned()),
            Self::NothingLingers { .. } => Some(
                "leave out one of the two: what stays is reached through our configuration on the host"
                    .to_owned(),
            ),
            Self::WhichSession { known } if known.is_empty() => {
                Some("name the portal with `--start-url URL --sso-region REGION`".to_owned())
            }
            Self::WhichSession { known } => Some(format!(
                "name one with `--sso-session NAME`; there are: {}",
                crate::aws::profile::listed(known)
            )),
            Self::NoSession { .. } => Some("name a session with `--sso-session NAME`".to_owned()),
            Self::StartUrl(_) => Some("it is the address of your AWS access portal".to_owned()),
            Self::Pinned(e) => e.hint(),
            Self::Chain(e) => e.hint(),
            Self::BadName(_) => None,
            Self::Profile(e) => e.hint(),
            Self::Ssh(e) => e.hint(),
            Self::Endpoint(e) => e.hint(),
        }
    }
}

/// Makes the plan, or says which part of what was asked for is wrong.
pub(crate) fn plan(flags: Flags, environment: &Environment) -> Result<Plan, Error> {
    let mut warnings = Vec::new();
    match flags.transport {
        Some(Transport::Unix) if flags.tls.is_some() => {
            return Err(Error::TlsWithoutPort { transport: "unix" });
        }
        Some(Transport::File) if flags.tls.is_some() => {
            return Err(Error::TlsWithoutPort { transport: "file" });
        }
        _ => {}
    }
    if flags.linger.is_some() {
        if flags.token_in_environment {
            return Err(Error::NothingLingers { what: "a token (`--token env`)" });
        }
        if flags.keep_config && !flags.install_profiles {
            return Err(Error::NothingLingers {
                what: "the host's own configuration (`--remote-config keep`)",
            });
        }
    }
    let tls = flags.tls.clone().map(|wish| match wish {
        tls::Wish::Auto => tls::Wish::Auto,
        // A shell expands the first of the two only.
        tls::Wish::Own { certificate, key } => tls::Wish::Own {
            certificate: expand_home_of(certificate, &environment.home),
            key: expand_home_of(key, &environment.home),
        },
    });
    let profiles = whose::profiles(&flags.wanted, environment, &mut warnings)?;

    let target = target(&flags, environment, &mut warnings)?;
    let pin = environment.file.pin(&target.original, &target.hostname);
    pin.check(&target.original, &flags.wanted, &profiles, environment)?;
    let on_request = allow::allowed(&flags.allow, &profiles, &pin, &target.original, environment)?;

    let job = job(&flags, &target.session);
    Ok(Plan {
        target,
        profiles,
        on_request,
        pin,
        options: Options {
            transport: flags.transport.unwrap_or(Transport::Auto),
            port: flags.remote_port.map_or(PortWish::Auto, PortWish::Exactly),
            token: if flags.token_in_environment { TokenPlace::Environment } else { TokenPlace::File },
            caller_check: if flags.trust_host_users {
                CallerCheck::TrustHostUsers
            } else {
                CallerCheck::Required
            },
            install_profiles: flags.install_profiles,
            keep_config: flags.keep_config,
            tmux: flags.tmux,
            linger: flags.linger,
            reconnect_for: flags.reconnect_for,
        },
        tls,
        allow_uids: flags.allow_uids,
        job,
        warnings,
    })
}

/// What runs there: what was typed, else what ssh_config says (`RemoteCommand`, `RequestTTY`).
fn job(flags: &Flags, wishes: &Wishes) -> Job {
    if flags.no_shell {
        return Job::Exports { shell: flags.print_env, background: flags.background };
    }
    let tty = flags.request_tty.or(match wishes.tty {
        Tty::Auto => None,
        Tty::Yes => Some(std::io::stdin().is_terminal()),
        Tty::Force => Some(true),
        Tty::No => Some(false),
    });
    let typed = (!flags.command.is_empty()).then(|| flags.command.join(" "));
    match typed.or_else(|| wishes.command.clone()) {
        Some(line) => Job::Command { line, tty: tty == Some(true) },
        None => Job::Shell { tty },
    }
}

/// Resolves the host as `ssh` would; what it understood but will not do is added to `warnings`.
pub(crate) fn target(
    flags: &Flags,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Target, Error> {
    let (request, surroundings) = asked(flags, environment)?;
    let (target, remarks) = crate::ssh::config::resolve(&request, &surroundings)?;
    warnings.extend(remarks.iter().map(ToString::to_string));
    Ok(target)
}

/// Prints what ssh_config says about the host, in the format of `ssh -G`.
pub(crate) fn ssh_config(
    flags: &Flags,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    let (request, surroundings) = asked(flags, environment)?;
    let (text, remarks) = crate::ssh::config::print(&request, &surroundings)?;
    warnings.extend(remarks.iter().map(ToString::to_string));
    Ok(text)
}

/// Returns what was asked of ssh_config, and who asks.
fn asked(flags: &Flags, environment: &Environment) -> Result<(Request, Surroundings), Error> {
    let destination = Destination::parse(&flags.host)?;
    let request = Request {
        host: destination.host,
        user: flags.login_name.clone().or(destination.user),
        port: flags.ssh_port.or(destination.port),
        identity_files: flags.identity_files.clone(),
        options: flags.ssh_options.clone(),
        jump: flags.jump.clone(),
        session: if flags.no_shell {
            Session::None
        } else if flags.command.is_empty() {
            Session::Shell
        } else {
            Session::Command(flags.command.join(" "))
        },
        address_family: match (flags.inet4, flags.inet6) {
            (true, _) => Some(AddressFamily::Inet),
            (_, true) => Some(AddressFamily::Inet6),
            _ => None,
        },
        batch: flags.batch,
        pinned_host_key: flags.host_key.clone(),
        dangerous_legacy: flags.dangerous_legacy.clone(),
        key: environment.key(flags.identity_env.as_deref())?,
    };
    let surroundings = Surroundings {
        home: environment.home.clone(),
        local_user: environment.user.clone(),
        local_hostname: environment.host_name.clone(),
        ssh_auth_sock: environment.get("SSH_AUTH_SOCK").map(PathBuf::from),
        system_config: PathBuf::from("/etc/ssh/ssh_config"),
        user_config: match &flags.ssh_config {
            None => ConfigFile::Default,
            Some(path) if path == Path::new("none") => ConfigFile::None,
            Some(path) => ConfigFile::Path(path.clone()),
        },
        env: environment.variables().clone(),
        find_host,
        files: environment.read.as_ref().map(|read| read.ssh.clone()),
    };
    Ok((request, surroundings))
}

/// Resolves named profiles, without what the person should know of them.
pub(crate) fn profiles(named: &[String], environment: &Environment) -> Result<Vec<Profile>, Error> {
    let wanted = Wanted { profiles: named.to_vec(), ..Wanted::default() };
    whose::profiles(&wanted, environment, &mut Vec::new())
}
