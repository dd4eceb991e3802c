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

/// Why the host could not say whose connection this is. The answer is never to go on without knowing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unproven {
    /// No answer within the time that a request has.
    #[error("the host did not say in time which user is asking")]
    Late,
    /// The helper on the host is not there, or is being started again.
    #[error("the helper on the host that tells which user is asking is not running")]
    Gone,
    /// The host knows no such connection; most often the caller has closed it already.
    #[error("the host does not know the connection that this request came from")]
    Unknown,
}
