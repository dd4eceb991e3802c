//! What can go wrong with a connection, by what the caller can do about it.

use std::{fmt, time::Duration};

use super::{auth, dial, handler::Ended};

/// The step in which a server behind a ProxyCommand has to answer.
pub(super) const BEHIND_PROXY: &str = "key exchange, through its ProxyCommand";

/// Why a connection could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not reach `{host}:{port}`")]
    Unreachable { host: String, port: u16, source: dial::Cause },
    /// A jump host on the way, and nothing that the target did.
    #[error("the way through the jump host `{hop}` is closed")]
    Jump { hop: String, source: Box<Self> },
    /// A jump host that let us in does not connect us further.
    #[error("the jump host `{hop}` did not connect us to `{host}:{port}`: {text}")]
    JumpRefused { hop: String, host: String, port: u16, prohibited: bool, text: String },
    /// Nothing knows a key of the jump host, so that it cannot be trusted.
    #[error("nothing decides on the host key of the jump host `{hop}`")]
    NoJumpKeys { hop: String },
    #[error("could not start the ProxyCommand (`{program}`) for `{host}`")]
    NoProxy { host: String, program: String, source: std::io::Error },
    /// What carries the connection broke before it was one.
    #[error("could not reach `{host}`")]
    Broken { host: String, source: Box<dial::Broken> },
    #[error(transparent)]
    HostKey(#[from] HostKeyRefused),
    #[error(transparent)]
    Authentication(Box<auth::Refused>),
    /// The connection ended, before or after it was ready.
    #[error("the connection to `{host}` ended")]
    Closed { host: String, source: Ended },
    /// What answers did not even begin to speak SSH, or stopped in the middle.
    #[error("`{host}` broke off before the connection was encrypted")]
    NoHandshake { host: String, source: Ended },
    /// The server does something that we do not, or does it wrong.
    #[error("could not speak SSH with `{host}`")]
    Protocol { host: String, source: russh::Error },
    /// The algorithms that the server offers are not safe together.
    #[error("`{host}` offers no safe encryption: {why}")]
    Weak { host: String, why: &'static str },
    #[error("`{host}` did not answer within {} s ({step})", after.as_secs())]
    Stalled { host: String, step: &'static str, after: Duration },
    #[error(transparent)]
    ForwardRefused(#[from] ForwardRefused),
    #[error(transparent)]
    ChannelRefused(#[from] ChannelRefused),
}

impl Error {
    /// Returns whether it is the key of the host, or of one on the way to it, that stopped us.
    pub(crate) fn is_host_key(&self) -> bool {
        match self {
            Self::HostKey(_) => true,
            Self::Jump { source, .. } => source.is_host_key(),
            _ => false,
        }
    }

    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, host, .. } => source.hint(host),
            Self::Jump { source, .. } => source.hint(),
            Self::NoJumpKeys { .. } => None,
            Self::NoProxy { .. } => Some("it is run by `$SHELL -c`: is SHELL set to a shell?".into()),
            Self::Broken { source, .. } => source.hint(),
            Self::JumpRefused { hop, prohibited: true, .. } => {
                Some(format!("ask for `AllowTcpForwarding local` (or `yes`) in sshd_config of {hop}"))
            }
            Self::JumpRefused { hop, host, .. } => {
                Some(format!("`HostName` and `Port` are looked up and dialled on {hop}: is {host} up, and known there?"))
            }
            Self::HostKey(refused) => refused.hint.clone(),
            Self::Authentication(refused) => refused.hint(),
            Self::Weak { .. } => Some("ask its administrator for a current sshd".into()),
            Self::Protocol { source, .. } => protocol_hint(source),
            Self::Closed { source, .. } => source.hint(),
            Self::NoHandshake { .. } => Some(
                "is it an SSH server that listens there? one that is overloaded or does not like your address \
                 (MaxStartups, a firewall, fail2ban) breaks off like this too"
                    .into(),
            ),
            Self::Stalled { step: BEHIND_PROXY, .. } => Some(
                "the ProxyCommand runs but brings no answer; it cannot ask anything at the terminal: log in to what it \
                 needs first, or give it an agent or SSH_ASKPASS"
                    .into(),
            ),
            Self::Stalled { .. } => {
                Some("is it an SSH server that listens there, and does the network carry large packets (MTU)?".into())
            }
            Self::ForwardRefused(refused) => refused.hint(),
            Self::ChannelRefused(refused) => refused.hint(),
        }
    }
}

fn protocol_hint(error: &russh::Error) -> Option<String> {
    match error {
        russh::Error::NoCommonAlgo { theirs, .. } => {
            let listed = super::algorithms::listed(theirs);
            let dangerous = super::algorithms::dangerous_way(theirs)
                .map(|way| format!("; until there is one, `{way} HOST` takes what is known to be broken"));
            let way = dangerous.unwrap_or_default();
            Some(format!("the server offers only {listed}; ask its administrator for a current sshd{way}"))
        }
        russh::Error::Version => Some("is there really an SSH server behind this port?".into()),
        _ => None,
    }
}

/// A host key that was not accepted, with the finding of whoever judged it.
pub(crate) struct HostKeyRefused {
    /// What was found; printed as it is, with its own sources.
    pub(crate) error: Box<dyn std::error::Error + Send + Sync>,
    pub(crate) hint: Option<String>,
}

impl fmt::Debug for HostKeyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl fmt::Display for HostKeyRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl std::error::Error for HostKeyRefused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// The server does not forward what we asked for. It never says why; `remote` finds out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardRefused {
    #[error("the server refused to forward {what}")]
    Denied { what: String },
    #[error("the server did not answer the request to forward {what} within {} s", after.as_secs())]
    TimedOut { what: String, after: Duration },
    #[error("the connection ended before {what} was forwarded")]
    Closed { what: String, source: Ended },
}

impl ForwardRefused {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { .. } => Some("ask for `AllowTcpForwarding remote` in sshd_config".into()),
            Self::TimedOut { .. } => Some("try again; the host may be overloaded".into()),
            Self::Closed { source, .. } => source.hint(),
        }
    }
}

/// The server does not open a channel, or does not do on it what we asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelRefused {
    /// The channel itself was refused; the text is the server's, safe to print.
    #[error("`{host}` refused {what}: {text}")]
    Open { host: String, what: &'static str, prohibited: bool, text: String },
    /// The channel was there, but not the command, shell or terminal on it.
    #[error("`{host}` refused to run {what}")]
    Request { host: String, what: &'static str },
    #[error("the server did not answer within {} s ({what})", after.as_secs())]
    TimedOut { what: &'static str, after: Duration },
    #[error("the connection ended before {what} was open")]
    Closed { what: &'static str, source: Ended },
}

impl ChannelRefused {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Open { .. } => Some(
                "the tunnel needs one session on the connection and a shell or command another one: \
                 ask for `MaxSessions 2` or more in sshd_config"
                    .into(),
            ),
            Self::Request { .. } => {
                Some("the account must be able to run commands (`ssh HOST true` must work)".into())
            }
            Self::TimedOut { .. } => Some("try again; the host may be overloaded".into()),
            Self::Closed { source, .. } => source.hint(),
        }
    }
}
