//! The way to a [`Target`]: TCP, a channel through jump hosts, or a process of the user's.
//!
//! [`dial`] may be called again at any time, as after a lost link: it keeps nothing. What it returns owns whatever
//! carries it (sockets, sessions with jump hosts, child processes), and dropping that ends all of it, so that one
//! connection never depends on another one's hops.

mod command;
mod jump;
mod tcp;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(super) use self::tcp::is_loopback;
pub(crate) use self::tcp::{Before, Cause};
use super::{
    error::Error,
    handler::Ended,
    session::HostKeys,
    target::{Target, Way},
};
use crate::human::Human;

/// A stream of bytes to the target, and everything that carries it.
#[derive(Debug)]
pub(crate) struct Dialled(Carrier);

enum Carrier {
    Tcp(tcp::Tcp),
    Command(Box<command::Proxy>),
    Jump(Box<jump::Carried>),
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Command(_) => "Command",
            Self::Jump(_) => "Jump",
        })
    }
}

/// What carried the connection, and is gone: comes out of the stream inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection to the jump host `{hop}` ended")]
    Jump { hop: String, source: Ended },
    /// Its line may hold a secret, so that only the program is named.
    #[error("the ProxyCommand (`{program}`) {how}")]
    Command { program: String, how: String },
}

impl Broken {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Jump { source, .. } => source.hint(),
            Self::Command { .. } => Some(
                "what it said is above; run it by itself in a shell: it should show a line that starts with `SSH-2.0-`"
                    .into(),
            ),
        }
    }

    fn into_error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, self)
    }
}

impl Dialled {
    /// Returns the address that answered, where we connected to it ourselves.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match &self.0 {
            Carrier::Tcp(tcp) => Some(tcp.peer()),
            Carrier::Command(_) | Carrier::Jump(_) => None,
        }
    }

    /// Returns whether a person was needed on the way.
    pub(crate) fn took_a_person(&self) -> bool {
        match &self.0 {
            Carrier::Jump(carried) => carried.took_a_person(),
            // A command may ask on the terminal, of which we learn nothing.
            Carrier::Tcp(_) | Carrier::Command(_) => false,
        }
    }

    fn stream(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.0 {
            Carrier::Tcp(tcp) => Pin::new(tcp),
            Carrier::Command(proxy) => Pin::new(proxy.as_mut()),
            Carrier::Jump(carried) => Pin::new(carried.as_mut()),
        }
    }
}

/// Goes the way to `target`, where it was reached `before`. `host_keys` decides on the jump hosts' keys, and `human` is asked what they ask for.
pub(crate) async fn dial(
    target: &Target,
    before: Option<Before>,
    host_keys: &Arc<dyn HostKeys>,
    human: &Arc<dyn Human>,
) -> Result<Dialled, Error> {
    Ok(Dialled(match &target.way {
        Way::Direct => Carrier::Tcp(tcp::connect(target, before).await?),
        Way::Command(proxy) => Carrier::Command(Box::new(command::start(proxy, target, human)?)),
        // A chain is as deep as it has hops, and each is resolved before we dial: it ends.
        Way::Jump(hop) => {
            Carrier::Jump(Box::new(Box::pin(jump::through(hop, target, host_keys, human)).await?))
        }
    }))
}

/// Reads and writes.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
