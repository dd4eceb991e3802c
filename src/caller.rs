//! Who is asking: the user id of a process on the host, as the host itself proves it.

use std::fmt;

use crate::audit::Public;

/// A numeric user id on the host.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Uid(pub(crate) u32);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Public for Uid {}

/// Who is asking, as far as it is checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    /// A process of this user.
    Uid(Uid),
    /// Somebody on a host whose users are all trusted (`--trust-host-users`).
    Trusted,
}

impl Caller {
    /// Returns the uid, where it is known.
    pub(crate) fn uid(self) -> Option<Uid> {
        match self {
            Self::Uid(uid) => Some(uid),
            Self::Trusted => None,
        }
    }
}

/// Why it is not known whose connection this is. The answer is never to go on without knowing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unproven {
    /// No answer within the time that a request has.
    #[error("the host did not say in time which user is asking")]
    Late,
    /// The helper on the host has ended.
    #[error("the helper on the host that tells which user is asking is not running")]
    NoHelper,
    /// The host knows no such connection; most often the caller has closed it already.
    #[error("the host does not know the connection that this request came from")]
    Gone,
    /// The host names more than one owner.
    #[error("the connection that this request came from has several owners")]
    Ambiguous,
    /// There is no `/proc/net/tcp`, or it cannot be read.
    #[error("the host does not show who owns a connection")]
    Hidden,
}
