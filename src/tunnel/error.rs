//! Why there is no tunnel, or none any more, by what the caller can do about it.

use std::time::Duration;

use super::link::{LONGEST_SOCKET, Lost};
use crate::{
    causes,
    remote::{helper, install, probe::Refusal, sockets::ListenerProblem},
    ssh,
};

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Ssh(#[from] ssh::error::Error),
    #[error("{host} does not forward the port: {refusal}")]
    Forward { host: String, refusal: Refusal },
    #[error("the helper on {host} failed")]
    Helper {
        host: String,
        #[source]
        source: helper::Error,
    },
    #[error("could not put our files on {host}")]
    Install {
        host: String,
        #[source]
        source: install::Error,
    },
    #[error("no command runs on {host}, so there can be no shell or command with credentials there")]
    NothingRuns {
        host: String,
        #[source]
        source: Box<Self>,
    },
    #[error("no command runs on {host}, so nothing there could remove what `--linger` would leave")]
    CannotLinger {
        host: String,
        #[source]
        source: Box<Self>,
    },
    #[error("no command runs on {host}, and SFTP is no way there either: {refused}")]
    NoSftp {
        host: String,
        refused: ssh::error::ChannelRefused,
        /// Why no command runs.
        #[source]
        source: Box<Self>,
    },
    #[error(
        "{host} ({system}) does not show who owns a connection, so another user there could use your credentials unnoticed"
    )]
    CannotCheckCallers { host: String, system: String },
    #[error(
        "jobs of `{scheduler}` would take the token (`--token env`) from {host} to other machines, where it is all that \
         another user needs (`--trust-host-users`)"
    )]
    TokenTravels { host: String, scheduler: String },
    #[error("port {port} of {host} is not ours alone")]
    Listener {
        host: String,
        port: u16,
        #[source]
        problem: ListenerProblem,
    },
    #[error("{host} does not forward a unix socket (AllowStreamLocalForwarding)")]
    NoSocket {
        host: String,
        #[source]
        source: ssh::error::ForwardRefused,
    },
    #[error("`{path}` on {host} is too long for a unix socket, whose path may have {} bytes", LONGEST_SOCKET)]
    SocketPath { host: String, path: String },
    #[error("what we sent to port {port} of {host} did not come back to us, so something else is there")]
    SelfTest { host: String, port: u16 },
    #[error("the certificate is for `{name}`, which leads to {found} on {host} and not to 127.0.0.1 alone")]
    NameElsewhere { host: String, name: String, found: String },
    /// Another user has the port that programs on the host were told, or nobody can have it any more.
    #[error("the port on {host} is lost, and programs there were told this one: {refusal}")]
    PortLost { host: String, refusal: Refusal },
    #[error("the login on {host} takes a person, and nobody can be asked to log in again")]
    NeedsPerson { host: String },
    #[error("{host} does not let us in again")]
    LoggedOut {
        host: String,
        #[source]
        source: Box<Self>,
    },
    #[error("{host} was not back within {}", spoken(*after))]
    NotBack {
        host: String,
        after: Duration,
        /// What the last attempt came to.
        #[source]
        source: Box<Self>,
    },
    #[error(transparent)]
    NoRandomness(#[from] crate::random::NoRandomness),
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Error {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Ssh(e) => e.hint(),
            Self::Forward { refusal, .. } => refusal.hint(),
            Self::Helper { source, .. } => source.hint(),
            Self::Install { source, .. } => source.hint(),
            Self::NothingRuns { .. } => Some(
                "with `-N` role credentials are kept in files there over SFTP, if the server offers that, for \
                 programs that run there without a login"
                    .to_owned(),
            ),
            Self::CannotLinger { .. } => Some(
                "leave out `--linger`: role credentials lie in files there while we are connected".to_owned(),
            ),
            Self::NoSftp { .. } => Some(
                "the account must be able to run commands (`ssh HOST true` must work; a ForceCommand, a menu or \
                 nologin prevents it), or sshd_config needs `Subsystem sftp internal-sftp`"
                    .to_owned(),
            ),
            Self::CannotCheckCallers { .. } => {
                Some("if you trust every user of that host, pass `--trust-host-users`".to_owned())
            }
            Self::TokenTravels { .. } => Some("leave out one of the two".to_owned()),
            Self::Listener { problem, .. } => problem.hint(),
            Self::NameElsewhere { name, .. } => Some(format!(
                "let it lead to 127.0.0.1 alone there, by a line `127.0.0.1 {name}` in /etc/hosts; or pass `--tls auto`"
            )),
            Self::SelfTest { port, .. } => {
                // A neighbour that is a port for every port.
                Some(format!("choose another port with `-R`, such as `-R {}`", port ^ 1))
            }
            Self::NoSocket { .. } => Some(
                "use `--transport tcp`, or ask for `AllowStreamLocalForwarding yes` in sshd_config"
                    .to_owned(),
            ),
            Self::SocketPath { .. } => Some(
                "give XDG_RUNTIME_DIR there a directory of your own with a short path, or use `--transport tcp` or \
                 `--transport file`"
                    .to_owned(),
            ),
            Self::PortLost { refusal, .. } => Some(match refusal.hint() {
                Some(hint) => format!("{hint}; then tell the programs there the new port, or have them use the socket"),
                None => "connect again, and tell the programs there the new port".to_owned(),
            }),
            Self::NeedsPerson { .. } => Some(
                "log in with a key or an agent, which can do it again by themselves, or run it at a terminal".to_owned(),
            ),
            Self::LoggedOut { source, .. } | Self::NotBack { source, .. } => source.hint(),
            Self::Lost(Lost::Connection { source, .. }) => source.hint(),
            Self::Lost(Lost::Helper { source: Some(source), .. } | Lost::Sftp { source: Some(source), .. }) => {
                source.hint()
            }
            Self::Lost(Lost::Helper { .. } | Lost::Sftp { .. } | Lost::Outgrown { .. } | Lost::Asked { .. }) | Self::NoRandomness(_) => None,
        }
    }
}

impl Error {
    /// Whether processes on the host may still be reached in another way than by a port.
    pub(super) fn leaves_other_ways(&self) -> bool {
        match self {
            Self::Forward { .. } | Self::CannotCheckCallers { .. } => true,
            // sshd's own doing. A listener that is not there or another user's is a server that lies.
            Self::Listener { problem, .. } => matches!(problem, ListenerProblem::Exposed { .. }),
            _ => false,
        }
    }

    /// Whether files may still be put there over SFTP: a helper could not begin, or not do its work.
    pub(super) fn leaves_sftp(&self) -> bool {
        use helper::Error::{NoHelper, Unsuitable};
        matches!(
            self,
            Self::Helper { source: NoHelper { .. } | Unsuitable { .. }, .. }
                | Self::Ssh(ssh::error::Error::ChannelRefused(ssh::error::ChannelRefused::Request { .. }))
        )
    }

    /// Returns the error with all its causes, in one line.
    pub(crate) fn chain(&self) -> String {
        causes::chain(self)
    }

    /// Returns the error with its cause, in one line.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Listener { problem, .. } => format!("{self}: {problem}"),
            Self::Helper { source, .. } => source.to_string(),
            _ => self.to_string(),
        }
    }
}

/// Returns a duration as people say it.
pub(super) fn spoken(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
