//! The unix socket in our directory on the host.

use tracing::debug;

use super::{
    super::{Error, Inputs},
    Link,
};
use crate::ssh::error::ForwardRefused;

/// What every system takes for the path of a socket; Linux takes 107 bytes.
pub(crate) const LONGEST_SOCKET: usize = 103;

impl Link {
    /// Has sshd listen at a socket in `directory`. Where that cannot be, it is an error only if it is `required`.
    pub(super) async fn open_socket(
        &mut self,
        inputs: &Inputs,
        directory: &str,
        required: bool,
    ) -> Result<(), Error> {
        let (host, path) = (inputs.host(), format!("{directory}/s"));
        if path.len() > LONGEST_SOCKET {
            // sshd would only say no.
            debug!(path, "too long for a unix socket");
            return if required { Err(Error::SocketPath { host, path }) } else { Ok(()) };
        }
        match self.session.forward_streamlocal(&path).await {
            Ok(forward) => {
                self.forwards.push(forward);
                self.ways.socket = Some(path);
                Ok(())
            }
            Err(source @ ForwardRefused::Denied { .. }) if required => Err(Error::NoSocket { host, source }),
            Err(refused @ ForwardRefused::Denied { .. }) => {
                debug!(%refused, "no unix socket");
                Ok(())
            }
            Err(broken) => Err(Error::Ssh(broken.into())),
        }
    }
}
