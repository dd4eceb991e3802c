//! The outward half of a channel, and its end.
//!
//! [`Inbox`] takes what arrives without anybody's help. A [`Pump`] sends what the local side writes, within the
//! window of the server; then it says EOF and waits for the server to close. We close first only when the server
//! does not within [`LINGER`]: russh forgets a channel that it closed itself before the close of the server
//! arrives, and leaks it.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use russh::{ChannelWriteHalf, client::Msg};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tracing::debug;

use super::{
    chunk::Kind,
    inbox::{Channels, End, Inbox},
    pipe::{Reader, Writer, pipe},
    room::Place,
};

/// How long the server may take to close a channel after we said EOF. A client on the host closes at once when it
/// has its answer; one that does not keeps its place so long, and no longer.
const LINGER: Duration = Duration::from_secs(10);

/// Closing is one message into a queue that the session loop empties.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is sent in one piece of what the local side wrote.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// An answer of ours is a few KB, and a packet at most 32.
    Large,
    /// For what is sent once and long: russh never gives back the room that it needed for the most that waited to be
    /// encrypted at once.
    Small,
}

impl Step {
    /// What the local side may write ahead of the pump, in bytes.
    pub(super) fn write_ahead(self) -> usize {
        match self {
            Self::Large => 64 * 1024,
            Self::Small => 4 * 1024,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Large => 16 * 1024,
            Self::Small => 2 * 1024,
        }
    }
}

/// How a pump finished.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Finished {
    /// The server closed the channel.
    Closed,
    /// The server did not close in time, so we did.
    Lingered,
    /// More arrived than may, or the place was needed.
    Cut,
    /// The connection is gone.
    Lost,
}

impl From<&End> for Finished {
    fn from(end: &End) -> Self {
        match end {
            End::Closed => Self::Closed,
            End::TooMuch | End::Unkept(_) | End::Crowded => Self::Cut,
            End::Lost => Self::Lost,
        }
    }
}

/// Moves a channel's bytes until the channel is closed. Must be driven beside whatever uses the channel; dropping
/// it closes the channel.
#[must_use = "nothing is sent unless the pump is driven"]
pub(crate) struct Pump(Pin<Box<dyn Future<Output = Finished> + Send>>);

impl Pump {
    pub(super) fn new(future: impl Future<Output = Finished> + Send + 'static) -> Self {
        Self(Box::pin(future))
    }

    /// Makes the two ends of a byte stream over `channel`. `place` is dropped when the channel is closed.
    pub(super) fn stream(channel: Outward, place: Option<Place>) -> (Stream, Self) {
        let (local, outgoing) = pipe(Step::Large.write_ahead());
        let stream =
            Stream { incoming: Incoming(Arc::clone(&channel.inbox)), current: Bytes::new(), outgoing: local };
        let pump = Self::new(async move {
            let sent = async {
                channel.send(outgoing, Step::Large).await;
                channel.inbox.pump_waits(|state| state.is_deaf().then_some(())).await;
                if let Some(place) = &place {
                    place.answered();
                }
            };
            let finished = tokio::select! {
                biased;
                end = channel.inbox.ended() => Finished::from(&end),
                () = sent => channel.linger().await,
            };
            channel.finish(finished).await;
            drop(place);
            finished
        });
        (stream, pump)
    }
}

impl Future for Pump {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished> {
        self.0.as_mut().poll(cx)
    }
}

/// The sending half of a channel, and the duty to close it.
pub(super) struct Outward {
    id: u32,
    pub(super) write: Arc<ChannelWriteHalf<Msg>>,
    pub(super) inbox: Arc<Inbox>,
    channels: Arc<Channels>,
    done: bool,
}

impl Outward {
    pub(super) fn new(write: ChannelWriteHalf<Msg>, inbox: Arc<Inbox>, channels: Arc<Channels>) -> Self {
        Self { id: write.id().into(), write: Arc::new(write), inbox, channels, done: false }
    }

    /// Sends what comes out of `outgoing`, then EOF. Returns early only when the session is gone.
    pub(super) async fn send(&self, mut outgoing: Reader, step: Step) {
        while let Some(bytes) = outgoing.receive(step.bytes()).await {
            if Box::pin(self.write.data_bytes(bytes)).await.is_err() {
                return;
            }
            if step == Step::Small {
                // The session sends this piece before it hears of the next.
                tokio::task::yield_now().await;
            }
        }
        if Box::pin(self.write.eof()).await.is_err() {
            debug!(channel = self.id, "the session ended before the end of the stream was sent");
        }
    }

    /// Waits for the server to close the channel, bounded.
    pub(super) async fn linger(&self) -> Finished {
        match timeout(LINGER, self.inbox.ended()).await {
            Ok(end) => Finished::from(&end),
            Err(_) => Finished::Lingered,
        }
    }

    /// Closes what the server has not closed.
    pub(super) async fn finish(mut self, finished: Finished) {
        self.done = true;
        // A channel cut for its size was closed in the callback that noticed; here that is only said again.
        if matches!(finished, Finished::Lingered | Finished::Cut) {
            self.channels.cut(self.id);
            if !matches!(timeout(CLOSE_TIMEOUT, Box::pin(self.write.close())).await, Ok(Ok(()))) {
                debug!(channel = self.id, "could not close a channel");
            }
        }
        self.inbox.end(End::Lost);
    }
}

impl Drop for Outward {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let ended = {
            let mut state = self.inbox.state();
            // Whatever was on its way into a file is gone; the reader must not wait for it.
            state.overflow.busy = false;
            state.end.is_some()
        };
        self.inbox.end(End::Lost);
        if !ended {
            self.channels.cut(self.id);
            // Nobody can wait here; the queue has room unless the session is stuck, and then it is dead anyway.
            let mut close = pin!(self.write.close());
            let polled = close.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            debug!(channel = self.id, sent = polled.is_ready(), "closed a channel that was dropped");
        }
    }
}

/// The reading end; dropping it lets everything further be forgotten.
struct Incoming(Arc<Inbox>);

impl Drop for Incoming {
    fn drop(&mut self) {
        self.0.deafen();
    }
}

/// A byte stream over a channel. What is read waits in bounded memory; what is written goes out through the
/// [`Pump`], and shutting down says EOF to the server while reading goes on.
pub(crate) struct Stream {
    incoming: Incoming,
    current: Bytes,
    outgoing: Writer,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            let next = self.incoming.0.poll_reader(cx, |state| match state.pop() {
                // Only a subsystem could send anything but data, as its standard error: no part of the stream.
                Some(chunk) if chunk.kind == Kind::Extended => Some(Ok(Some(Bytes::new()))),
                Some(chunk) => Some(Ok(Some(chunk.bytes))),
                None => state.stream_end().map(|end| end.map(|()| None)),
            });
            match std::task::ready!(next)? {
                Some(bytes) => self.current = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.current.len().min(buffer.remaining());
        self.current.copy_to_slice(buffer.initialize_unfilled_to(n));
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outgoing).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_shutdown(cx)
    }
}
