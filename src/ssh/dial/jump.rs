//! `ProxyJump`: a whole session with the jump host, and one channel of it.

use std::{
    io,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
    time::timeout,
};
use tracing::debug;

use super::{Broken, dial};
use crate::{
    human::Human,
    ssh::{
        error::{ChannelRefused, Error},
        pump::{Finished, Stream},
        session::{HostKeys, Session, Unauthenticated},
        target::Target,
    },
};

/// A channel through a jump host, and the session that it lives in.
pub(super) struct Carried {
    stream: Stream,
    /// Drives the channel.
    pump: JoinSet<Finished>,
    hop: String,
    /// Last: dropping it cuts the connection to the jump host.
    session: Session,
}

/// Logs in to `hop`, as its own configuration says, and has it connect to `target`.
pub(super) async fn through(
    hop: &Target,
    target: &Target,
    host_keys: &Arc<dyn HostKeys>,
    human: &Arc<dyn Human>,
) -> Result<Carried, Error> {
    let session = log_in(hop, host_keys, human).await.map_err(|error| match error {
        // The first hop that failed is the one to look at, and those behind it have done nothing.
        error @ (Error::Jump { .. } | Error::JumpRefused { .. }) => error,
        error => Error::Jump { hop: hop.original.clone(), source: Box::new(error) },
    })?;
    debug!(hop = hop.original, facts = ?session.facts(), "logged in to a jump host");
    let (host, port) = (target.hostname.as_str(), target.port);
    // The jump host dials for us: `ConnectTimeout` of the target is about that.
    let (stream, pump) = match timeout(target.connect_timeout, session.carry(host, port)).await {
        Ok(Ok(carried)) => carried,
        Ok(Err(refused)) => return Err(not_carried(hop, target, refused)),
        Err(_) => {
            let text = format!("no answer within {} s", target.connect_timeout.as_secs());
            return Err(refused_with(hop, target, false, text));
        }
    };
    let mut pumping = JoinSet::new();
    pumping.spawn(pump);
    Ok(Carried { stream, pump: pumping, hop: hop.original.clone(), session })
}

async fn log_in(
    hop: &Target,
    host_keys: &Arc<dyn HostKeys>,
    human: &Arc<dyn Human>,
) -> Result<Session, Error> {
    // Without a verdict of its own nothing is accepted from a jump host: the target's keys are not its keys.
    let keys = host_keys.of_jump().ok_or_else(|| Error::NoJumpKeys { hop: hop.original.clone() })?;
    let stream = dial(hop, None, &keys, human).await?;
    let (peer, person) = (stream.peer(), stream.took_a_person());
    let connection = Unauthenticated::open(stream, peer, hop, keys, Arc::clone(human)).await?;
    Ok(connection.authenticate(hop).await?.after_a_person(person))
}

fn not_carried(hop: &Target, target: &Target, refused: ChannelRefused) -> Error {
    match refused {
        ChannelRefused::Open { prohibited, text, .. } => refused_with(hop, target, prohibited, text),
        ChannelRefused::Closed { source, .. } => {
            let broken = Error::Closed { host: hop.original.clone(), source };
            Error::Jump { hop: hop.original.clone(), source: Box::new(broken) }
        }
        other => refused_with(hop, target, false, other.to_string()),
    }
}

fn refused_with(hop: &Target, target: &Target, prohibited: bool, text: String) -> Error {
    let (hop, host) = (hop.original.clone(), target.hostname.clone());
    Error::JumpRefused { hop, host, port: target.port, prohibited, text }
}

impl Carried {
    pub(super) fn took_a_person(&self) -> bool {
        self.session.took_a_person()
    }

    /// Says that the jump host is gone, where it is that and not the target behind it.
    fn broken(&self) -> Option<io::Error> {
        let source = self.session.ended_already()?;
        Some(Broken::Jump { hop: self.hop.clone(), source }.into_error())
    }
}

impl AsyncRead for Carried {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if read.is_ok() && (buffer.filled().len() > before || buffer.remaining() == 0) {
            return Poll::Ready(read);
        }
        if let Poll::Ready(Some(Err(error))) = self.pump.poll_join_next(cx)
            && error.is_panic()
        {
            resume_unwind(error.into_panic());
        }
        Poll::Ready(self.broken().map_or(read, Err))
    }
}

impl AsyncWrite for Carried {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        Poll::Ready(written.map_err(|error| self.broken().unwrap_or(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
