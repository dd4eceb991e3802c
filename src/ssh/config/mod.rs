//! ssh_config: what OpenSSH's configuration files and options say about one host, as a [`Target`].
//!
//! Owns the reading of `~/.ssh/config`, `/etc/ssh/ssh_config` and `-o` options, in OpenSSH's order and with its rules:
//! [`mod@line`] takes text apart, [`evaluate`] finds out which blocks apply and which value came first, this module
//! makes typed values of what was found. It opens no key, no agent and no known_hosts file; it only names them.
//!
//! What we cannot do is never read as something else: a `Match` criterion that nobody knows makes its block not
//! apply, with a warning; a keyword without which we would reach the wrong place is an error.

mod algorithms;
mod aliases;
mod authentication;
mod canonical;
mod criteria;
mod destination;
mod evaluate;
mod expand;
mod files;
mod glob;
mod host_keys;
mod keyword;
mod line;
#[cfg(test)]
mod oracle;
pub(crate) mod pattern;
mod print;
#[cfg(test)]
mod tests;
mod way;
mod wishes;

use std::{collections::BTreeMap, fmt, io, path::PathBuf, sync::Arc, time::Duration};

pub(crate) use self::files::FilesRead;
pub(crate) use self::{canonical::find_host, destination::Destination, line::Place, print::print};
use self::{
    evaluate::{Evaluated, Setting},
    way::Visited,
};
use super::target::{AddressFamily, EnvironmentKey, Identities, Rekey, Target, Unlocked};
use crate::private_fs;
pub(crate) use aliases::aliases;

/// How long dialling may take where `ConnectTimeout` says nothing: OpenSSH waits for the kernel, two minutes and
/// more, which looks like a hang to whoever mistyped a name.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// `ServerAliveInterval` where the configuration says nothing: with the count below, a dead link is noticed in 45 s.
const SERVER_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// `ServerAliveCountMax` where the configuration says nothing; OpenSSH's default.
const SERVER_ALIVE_COUNT_MAX: usize = 3;

/// OpenSSH's default `IdentityFile`s, in its order.
const IDENTITY_FILES: [&str; 5] = ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"];

/// What was asked for on the command line. A value here wins over `options`, and those over every file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Request {
    /// The host as typed, without user and port: see [`Destination::parse`].
    pub(crate) host: String,
    /// `-l`, else the user of the destination.
    pub(crate) user: Option<String>,
    /// `-P`, else the port of the destination.
    pub(crate) port: Option<u16>,
    /// `-i`, in order; files of the configuration follow.
    pub(crate) identity_files: Vec<PathBuf>,
    /// `-o KEYWORD=VALUE`, in order; the first of one keyword wins.
    pub(crate) options: Vec<(String, String)>,
    /// `-4`, `-6`
    pub(crate) address_family: Option<AddressFamily>,
    /// `-J`
    pub(crate) jump: Option<String>,
    /// What will run there: `Match command` and `Match sessiontype` ask.
    pub(crate) session: Session,
    /// `--batch`
    pub(crate) batch: bool,
    /// `--host-key`
    pub(crate) pinned_host_key: Option<String>,
    /// `--dangerous-legacy-algorithms`: hosts, as typed or named as jump hosts.
    pub(crate) dangerous_legacy: Vec<String>,
    /// `--identity-env`
    pub(crate) key: Option<EnvironmentKey>,
}

/// What runs on the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Session {
    #[default]
    Shell,
    Command(String),
    /// `-N`, and what a jump host is for.
    None,
}

/// The machine and the person that we run for.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) home: PathBuf,
    pub(crate) local_user: String,
    pub(crate) local_hostname: String,
    pub(crate) ssh_auth_sock: Option<PathBuf>,
    /// `-F`
    pub(crate) user_config: ConfigFile,
    /// `/etc/ssh/ssh_config`; the system's known_hosts files lie beside it.
    pub(crate) system_config: PathBuf,
    /// For `${VAR}`, `IdentityAgent $VAR` and `SHELL`.
    pub(crate) env: BTreeMap<String, String>,
    /// Whether the resolver finds a name: for `CanonicalizeHostname`.
    pub(crate) find_host: fn(&str) -> bool,
    /// What was read before, for whoever resolves many hosts at a time.
    pub(crate) files: Option<FilesRead>,
}

/// Which configuration the user wants read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum ConfigFile {
    /// `~/.ssh/config` and the system's.
    Default,
    /// `-F FILE`: this one instead of both.
    Path(PathBuf),
    /// `-F none`: neither.
    None,
}

/// Something that we left out and the user should know of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Warning {
    pub(crate) place: Place,
    pub(crate) text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{place}: {why}")]
    Line { place: Place, why: String },
    #[error("{place}: `{keyword}` is not supported yet")]
    NotSupported { place: Place, keyword: &'static str },
    #[error("the jump hosts lead in a circle: `{}` is reached through itself", host.escape_debug())]
    JumpLoop { host: String },
    #[error("{place}: the configuration refuses this connection: {message}")]
    Refused { place: Place, message: String },
    #[error("`{}` is not a destination: {why}", typed.escape_debug())]
    Destination { typed: String, why: String },
    #[error("`{}` is not a host name: {why}", host.escape_debug())]
    Host { host: String, why: &'static str },
    #[error("`{}` is not a user name: {why}", user.escape_debug())]
    User { user: String, why: &'static str },
    #[error("bad owner or permissions on `{}`", path.display())]
    Permissions { path: PathBuf, source: private_fs::Error },
    #[error("could not read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not text in UTF-8", path.display())]
    NotText { path: PathBuf },
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::JumpLoop { host } => Some(format!(
                "keep it out of the block that says `ProxyJump` (`Host * !{host}`), or put `ProxyJump none` for it above"
            )),
            Self::NotSupported { keyword: "ProxyUseFdpass", .. } => {
                Some("use a ProxyCommand that passes the bytes on, with `-o ProxyUseFdpass=no`".to_owned())
            }
            Self::NotSupported { .. } => None,
            Self::Permissions { path, source: private_fs::Error::Exposed { .. } } => Some(format!(
                "who can change it can run commands as you; run `chmod go-w '{}'`",
                path.display()
            )),
            Self::Destination { .. } => {
                Some("write `[user@]host[:port]` or `ssh://[user@]host[:port]`".to_owned())
            }
            Self::Permissions { source, .. } => source.hint(),
            Self::Host { .. } | Self::User { .. } => {
                Some("write `[user@]host[:port]`, and look at `HostName` and `User` in ssh_config".to_owned())
            }
            Self::Line { .. } => Some(
                "correct it, or do without ssh_config: `-F none` and, as needed, `-l`, `-P` and `-i`"
                    .to_owned(),
            ),
            Self::Read { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("it must be yours: look with `ls -ld '{}'`", path.display()))
            }
            Self::Read { .. } | Self::NotText { .. } => {
                Some("name another file with `-F FILE`, or `-F none`".to_owned())
            }
            Self::Refused { .. } => None,
        }
    }

    fn bad(place: &Place, why: impl Into<String>) -> Self {
        // What is quoted from a file may hold anything.
        Self::Line { place: place.clone(), why: crate::printable::one_line(&why.into()) }
    }
}

/// Finds out what the configuration says about the host that was asked for. Reads files: call it off the runtime's
/// thread.
pub(crate) fn resolve(
    request: &Request,
    surroundings: &Surroundings,
) -> Result<(Target, Vec<Warning>), Error> {
    resolve_behind(request, surroundings, Vec::new())
}

/// The same for a jump host on the way to those `behind` it.
fn resolve_behind(
    request: &Request,
    surroundings: &Surroundings,
    behind: Vec<Visited>,
) -> Result<(Target, Vec<Warning>), Error> {
    let mut resolver = Resolver::new(request, surroundings, behind)?;
    Ok((resolver.target()?, resolver.evaluated.warnings))
}

struct Resolver<'a> {
    request: &'a Request,
    surroundings: &'a Surroundings,
    home: &'a str,
    evaluated: Evaluated,
    /// The hosts that will be reached through this one.
    behind: Vec<Visited>,
    /// Whether the jump hosts are resolved too.
    follow: bool,
}

impl<'a> Resolver<'a> {
    fn new(
        request: &'a Request,
        surroundings: &'a Surroundings,
        behind: Vec<Visited>,
    ) -> Result<Self, Error> {
        let home =
            surroundings.home.to_str().ok_or_else(|| Error::NotText { path: surroundings.home.clone() })?;
        destination::check_host(&request.host)?;
        let evaluated = evaluate::evaluate(request, surroundings, home)?;
        Ok(Self { request, surroundings, home, evaluated, behind, follow: true })
    }
}

impl Resolver<'_> {
    fn target(&mut self) -> Result<Target, Error> {
        let port = match self.setting("port") {
            Some(setting) => destination::port(setting.value()).ok_or_else(|| not_a_value(setting))?,
            None => 22,
        };
        let user = self.user(port)?;
        // In one spelling, as a token too.
        if let Some(alias) = self.evaluated.first.get_mut("hostkeyalias").and_then(|s| s.args.first_mut()) {
            alias.make_ascii_lowercase();
        }
        let host_key_alias = self.setting("hostkeyalias").map(|s| s.value().to_owned());
        let tokens = self.tokens(port, Some(&user));
        let identities = self.identities(&tokens)?;
        let known_hosts = self.known_hosts(&tokens)?;
        let revoked_host_keys = self.revoked_host_keys(&tokens)?;
        let address_family = match (self.request.address_family, self.setting("addressfamily")) {
            (Some(family), _) => family,
            (None, Some(setting)) => keyword::family(setting.value()).ok_or_else(|| not_a_value(setting))?,
            (None, None) => AddressFamily::Any,
        };
        let connect_timeout = match self.seconds("connecttimeout")? {
            // `none` and 0 mean the kernel's patience, which nobody at a terminal has.
            None | Some((0, _)) => CONNECT_TIMEOUT,
            Some((seconds, _)) => Duration::from_secs(seconds.into()),
        };
        let batch = self.request.batch || self.flag("batchmode")?;
        let authentication = self.authentication()?;
        let algorithms = Arc::new(self.algorithms()?);
        let hostname = self.evaluated.host.clone();
        let strict_host_key_checking = self.strict_host_key_checking()?;
        let (server_alive_interval, server_alive_count_max) = self.server_alive()?;
        let here = Visited { hostname: hostname.clone(), port, user: user.clone() };
        self.refuse_loop(&here)?;
        let way = self.way(here)?;
        let connection_attempts = match self.setting("connectionattempts") {
            // Only one that counts is refused, as by OpenSSH.
            Some(setting) => keyword::count(setting.value()).filter(|count| *count > 0).ok_or_else(|| {
                let why = format!("`connectionattempts`: `{}` is no value that it can have", setting.value());
                Error::bad(&setting.place, why)
            })?,
            None => 1,
        };
        let target = Target {
            original: self.request.host.clone(),
            hostname,
            port,
            host_key_alias,
            way,
            address_family,
            bind: self.bind(),
            connection_attempts,
            tcp_keep_alive: self.setting("tcpkeepalive").is_none() || self.flag("tcpkeepalive")?,
            connect_timeout,
            identities,
            authentication,
            algorithms,
            known_hosts,
            revoked_host_keys,
            required_rsa_size: self.required_rsa_size()?,
            strict_host_key_checking,
            pinned_host_key: self.request.pinned_host_key.clone(),
            server_alive_interval,
            server_alive_count_max,
            rekey: self.rekey()?,
            quiet: self.setting("loglevel").is_some_and(|level| keyword::is_quiet(level.value())),
            batch,
            session: self.wishes(port, &user)?,
            user,
        };
        Ok(target)
    }

    fn setting(&self, keyword: &str) -> Option<&Setting> {
        self.evaluated.first.get(keyword)
    }

    fn flag(&self, keyword: &str) -> Result<bool, Error> {
        match self.setting(keyword) {
            Some(setting) => keyword::flag(setting.value()).ok_or_else(|| not_a_value(setting)),
            None => Ok(false),
        }
    }

    fn seconds(&self, keyword: &str) -> Result<Option<(u32, &Setting)>, Error> {
        self.setting(keyword)
            .map(|s| keyword::time(s.value()).map(|seconds| (seconds, s)).ok_or_else(|| not_a_value(s)))
            .transpose()
    }

    fn tokens<'t>(&'t self, port: u16, user: Option<&'t str>) -> expand::Tokens<'t> {
        expand::Tokens {
            host: &self.evaluated.host,
            original: &self.request.host,
            port,
            user,
            host_key_alias: self.setting("hostkeyalias").map_or(&self.request.host, Setting::value),
            home: self.home,
            local_user: &self.surroundings.local_user,
            local_hostname: &self.surroundings.local_hostname,
            jump: self.evaluated.jump_host(),
        }
    }

    /// A name that was typed stands as it is; one of the configuration may hold tokens (OpenSSH 10).
    fn user(&self, port: u16) -> Result<String, Error> {
        let user = match (&self.request.user, self.setting("user")) {
            (Some(user), _) => user.clone(),
            (None, Some(setting)) => self.expand(setting.value(), &self.tokens(port, None), setting)?,
            (None, None) => self.surroundings.local_user.clone(),
        };
        destination::check_user(&user)?;
        Ok(user)
    }

    fn expand(&self, text: &str, tokens: &expand::Tokens<'_>, from: &Setting) -> Result<String, Error> {
        expand::all(text, tokens, &self.surroundings.env).map_err(|why| Error::bad(&from.place, why))
    }

    /// Expands a path as OpenSSH does: the tilde first, so that no token can bring one in.
    fn path(&self, text: &str, tokens: &expand::Tokens<'_>, from: &Setting) -> Result<PathBuf, Error> {
        let text = expand::tilde(text, self.home).map_err(|why| Error::bad(&from.place, why))?;
        self.expand(&text, tokens, from).map(PathBuf::from)
    }

    fn identities(&self, tokens: &expand::Tokens<'_>) -> Result<Identities, Error> {
        let mut files = Vec::new();
        let mut add = |path: PathBuf| {
            if !files.contains(&path) {
                files.push(path);
            }
        };
        for path in &self.request.identity_files {
            // A path that is not UTF-8 can hold no token that was meant as one.
            match path.to_str() {
                Some(text) => {
                    let args = vec![text.to_owned()];
                    let typed = Setting { args, place: Place::CommandLine, by_user: true };
                    add(self.path(text, tokens, &typed)?);
                }
                None => add(path.clone()),
            }
        }
        for setting in &self.evaluated.identity_files {
            if !setting.value().eq_ignore_ascii_case("none") {
                add(self.path(setting.value(), tokens, setting)?);
            }
        }
        let configured = &self.evaluated.identity_files;
        if self.request.identity_files.is_empty() && configured.is_empty() {
            for name in IDENTITY_FILES {
                add(self.surroundings.home.join(".ssh").join(name));
            }
        }
        let explicit = !self.request.identity_files.is_empty() || configured.iter().any(|s| s.by_user);
        let mut certificates = Vec::new();
        for setting in self.evaluated.lists.get("certificatefile").into_iter().flatten() {
            if !setting.value().eq_ignore_ascii_case("none") {
                certificates.push(self.path(setting.value(), tokens, setting)?);
            }
        }
        Ok(Identities {
            files,
            explicit,
            certificates,
            only: self.flag("identitiesonly")?,
            agent: self.agent(tokens)?,
            environment: self.request.key.clone(),
            unlocked: Unlocked::default(),
        })
    }

    fn agent(&self, tokens: &expand::Tokens<'_>) -> Result<Option<PathBuf>, Error> {
        let Some(setting) = self.setting("identityagent") else {
            return Ok(self.surroundings.ssh_auth_sock.clone());
        };
        match setting.value() {
            "none" => Ok(None),
            "SSH_AUTH_SOCK" => Ok(self.surroundings.ssh_auth_sock.clone()),
            text => match text.strip_prefix('$') {
                // The old form: a variable that is not set means no agent.
                Some(name) if !name.starts_with('{') => {
                    Ok(self.surroundings.env.get(name).map(PathBuf::from))
                }
                _ => self.path(text, tokens, setting).map(Some),
            },
        }
    }

    fn rekey(&self) -> Result<Rekey, Error> {
        let Some(setting) = self.setting("rekeylimit") else { return Ok(Rekey::default()) };
        let (bytes, seconds) = keyword::rekey(&setting.args).ok_or_else(|| not_a_value(setting))?;
        let after = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Ok(Rekey { bytes: (bytes > 0).then_some(bytes), after })
    }

    /// A tunnel must notice that its link is dead, so that 0 (never ask) is not taken.
    fn server_alive(&mut self) -> Result<(Duration, usize), Error> {
        let interval = self.seconds("serveraliveinterval")?.map(|(seconds, s)| (seconds, s.place.clone()));
        let count = match self.setting("serveralivecountmax") {
            Some(s) => Some((keyword::count(s.value()).ok_or_else(|| not_a_value(s))?, s.place.clone())),
            None => None,
        };
        let mut zero = |keyword: &str, place, default: String| {
            let text =
                format!("`{keyword} 0` is not taken, a tunnel must notice a dead link: it is {default}");
            self.evaluated.warnings.push(Warning { place, text });
        };
        let interval = match interval {
            Some((0, place)) => {
                zero("ServerAliveInterval", place, format!("{} s", SERVER_ALIVE_INTERVAL.as_secs()));
                SERVER_ALIVE_INTERVAL
            }
            Some((seconds, _)) => Duration::from_secs(seconds.into()),
            None => SERVER_ALIVE_INTERVAL,
        };
        let count = match count {
            Some((0, place)) => {
                zero("ServerAliveCountMax", place, SERVER_ALIVE_COUNT_MAX.to_string());
                SERVER_ALIVE_COUNT_MAX
            }
            Some((count, _)) => usize::try_from(count).unwrap_or(SERVER_ALIVE_COUNT_MAX),
            None => SERVER_ALIVE_COUNT_MAX,
        };
        Ok((interval, count))
    }
}

/// The syntax was checked when the line was read; this keeps that from being an assumption.
fn not_a_value(setting: &Setting) -> Error {
    Error::bad(&setting.place, format!("`{}` is no value that it can have", setting.value()))
}
