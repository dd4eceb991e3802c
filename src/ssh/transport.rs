//! The byte stream below SSH: cut when it stalls, and by hand.
//!
//! russh polls none of its timers while a write is blocked, so a dead peer with a full send buffer would hang
//! the connection for ever. Here every write has to make progress, and [`Kill`] ends both directions at once. And russh
//! queues every answer to a login without a bound, also while a person is thinking: so a server that has not let us in
//! may say so much and no more.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep},
};

use super::read_ahead::ReadAhead;

/// How long bytes may wait to be written without any progress. As long as TCP_USER_TIMEOUT: one reason, one number.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a server may send before it lets us in, in bytes. The longest honest banners, moduli and questions are some dozens
/// of KB; the smallest answer is 36 bytes on the wire and some 600 in russh's queue, which makes 17 MB of it.
const MOST_BEFORE_LOGIN: usize = 1 << 20;

/// Why we cut a connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Killed {
    #[error("nothing could be sent for {} s", STALL_TIMEOUT.as_secs())]
    Stalled,
    #[error("the server broke the rules: {0}")]
    Violation(String),
    /// Asked for a sign of life, it gave none.
    #[error("the server did not answer when it was asked whether it is there")]
    Unanswered,
    #[error("closed by us")]
    Ours,
}

/// The handle that ends a [`Transport`].
#[derive(Clone, Debug)]
pub(crate) struct Kill(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    killed: watch::Sender<Option<Killed>>,
    /// Whether nothing more is read for now.
    held: AtomicBool,
    /// Whether the server has let us in.
    trusted: AtomicBool,
    wakers: Mutex<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Kill {
    fn new() -> Self {
        Self(Arc::new(Switch {
            killed: watch::Sender::new(None),
            held: AtomicBool::new(false),
            trusted: AtomicBool::new(false),
            wakers: Mutex::default(),
        }))
    }

    /// Makes every read and write fail from now on. The first reason stays.
    pub(crate) fn kill(&self, why: Killed) {
        self.0.killed.send_if_modified(|killed| {
            let first = killed.is_none();
            if first {
                *killed = Some(why);
            }
            first
        });
        let Wakers { reader, writer } = std::mem::take(&mut *self.wakers());
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Stops reading, or goes on with it. Whoever stops it goes on soon: nothing of the connection arrives meanwhile.
    pub(super) fn hold(&self, held: bool) {
        let was = self.0.held.swap(held, Ordering::AcqRel);
        if was && !held {
            let reader = self.wakers().reader.take();
            if let Some(waker) = reader {
                waker.wake();
            }
        }
    }

    /// Lets the server send as much as it likes: it has let us in.
    pub(super) fn trust(&self) {
        self.0.trusted.store(true, Ordering::Release);
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    /// Returns why it was killed, if it was.
    pub(crate) fn reason(&self) -> Option<Killed> {
        self.0.killed.borrow().clone()
    }

    /// Waits until it is killed.
    pub(crate) async fn killed(&self) {
        // The sender lives in `self`, so waiting cannot fail before the value comes.
        drop(self.0.killed.subscribe().wait_for(Option::is_some).await);
    }

    fn wakers(&self) -> MutexGuard<'_, Wakers> {
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> io::Result<()> {
        match self.reason() {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)),
        }
    }
}

/// A byte stream with a stall guard and a kill switch.
pub(crate) struct Transport<S> {
    inner: ReadAhead<S>,
    kill: Kill,
    /// What may still come before the server lets us in.
    left: usize,
    stall: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    /// Wraps `inner`; the handle ends it.
    pub(crate) fn new(inner: S) -> (Self, Kill) {
        let kill = Kill::new();
        let transport = Self {
            inner: ReadAhead::new(inner),
            kill: kill.clone(),
            left: MOST_BEFORE_LOGIN,
            stall: Box::pin(tokio::time::sleep(STALL_TIMEOUT)),
            waiting: false,
        };
        (transport, kill)
    }

    /// Passes `polled` on, and turns a wait without progress into an error.
    fn guard<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = false;
            return polled;
        }
        self.kill.wakers().writer = Some(cx.waker().clone());
        if let Err(killed) = self.kill.check() {
            return Poll::Ready(Err(killed));
        }
        if !self.waiting {
            self.waiting = true;
            self.stall.as_mut().reset(Instant::now() + STALL_TIMEOUT);
        }
        if self.stall.as_mut().poll(cx).is_ready() {
            self.kill.kill(Killed::Stalled);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Killed::Stalled)));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.kill.check()?;
        if self.kill.0.held.load(Ordering::Acquire) {
            self.kill.wakers().reader = Some(cx.waker().clone());
            // It may have gone on just before the waker was there, or been killed.
            self.kill.check()?;
            if self.kill.0.held.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if !self.kill.0.trusted.load(Ordering::Acquire) {
            let Some(left) = self.left.checked_sub(buffer.filled().len() - before) else {
                let what = format!("it sent more than {} KiB before it let us in", MOST_BEFORE_LOGIN / 1024);
                self.kill.kill(Killed::Violation(what));
                return Poll::Ready(self.kill.check());
            };
            self.left = left;
        }
        if polled.is_pending() {
            self.kill.wakers().reader = Some(cx.waker().clone());
            self.kill.check()?;
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.kill.check()?;
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.guard(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.kill.check()?;
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.guard(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Never an error: russh would return before it calls `Handler::disconnected`, and the reason would be lost.
        if self.kill.reason().is_some() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.guard(cx, polled).map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_no_progress_is_cut_after_the_stall_timeout() {
        let (ours, _theirs) = duplex(16);
        let (mut transport, kill) = Transport::new(ours);
        let started = Instant::now();
        let error = transport.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), STALL_TIMEOUT.as_secs());
        assert_eq!(kill.reason(), Some(Killed::Stalled));
        assert!(transport.read(&mut [0; 1]).await.is_err(), "reading must not go on either");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_progress_is_not_a_stall() {
        let (ours, mut theirs) = duplex(16);
        let (mut transport, kill) = Transport::new(ours);
        let write = async { transport.write_all(&[0; 64]).await };
        let read = async {
            for _ in 0..4 {
                tokio::time::sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 16]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(write, read);
        written.unwrap();
        assert_eq!(kill.reason(), None);
    }

    #[tokio::test]
    async fn what_is_held_is_not_read_until_it_goes_on_and_can_be_killed() {
        let (ours, mut theirs) = duplex(16);
        let (mut transport, kill) = Transport::new(ours);
        theirs.write_all(b"x").await.unwrap();
        kill.hold(true);
        let mut byte = [0; 1];
        {
            let mut read = std::pin::pin!(transport.read(&mut byte));
            assert!(futures_pending(read.as_mut()).await, "nothing is read while it is held");
            kill.hold(false);
            assert_eq!(read.await.unwrap(), 1);
        }
        kill.hold(true);
        let (read, ()) = tokio::join!(transport.read(&mut byte), async {
            tokio::task::yield_now().await;
            kill.kill(Killed::Ours);
        });
        assert!(read.is_err());
    }

    #[tokio::test]
    async fn a_server_that_has_not_let_us_in_may_say_so_much_and_no_more() {
        for trusted in [false, true] {
            let (ours, mut theirs) = duplex(1 << 16);
            let (mut transport, kill) = Transport::new(ours);
            if trusted {
                kill.trust();
            }
            let (mut buffer, sent) = (vec![0; MOST_BEFORE_LOGIN], vec![0; MOST_BEFORE_LOGIN]);
            let (read, written) = tokio::join!(transport.read_exact(&mut buffer), theirs.write_all(&sent));
            read.unwrap();
            written.unwrap();
            theirs.write_all(b"x").await.unwrap();
            assert_eq!(transport.read(&mut buffer).await.is_ok(), trusted);
            assert_eq!(matches!(kill.reason(), Some(Killed::Violation(_))), !trusted);
        }
    }

    /// Whether `future` waits when it is polled once.
    async fn futures_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn killing_wakes_a_reader_and_a_writer_at_once() {
        let (ours, _theirs) = duplex(16);
        let (transport, kill) = Transport::new(ours);
        let (mut reader, mut writer) = tokio::io::split(transport);
        let cut = async {
            tokio::task::yield_now().await;
            kill.kill(Killed::Violation("test".into()));
        };
        let mut buffer = [0; 1];
        let (read, written, ()) = tokio::join!(reader.read(&mut buffer), writer.write_all(&[0; 64]), cut);
        assert!(read.is_err() && written.is_err());
        writer.shutdown().await.expect("shutdown hides no reason");
        kill.killed().await;
    }
}
