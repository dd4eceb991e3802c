//! A pipe in memory that keeps no room for what might come.
//!
//! The pipes of `tokio` hold on to as much as ever waited in them, and who reads them needs a buffer of its own. There
//! are some for each tunnel, which is silent nearly always: here whoever reads takes the bytes as they are, and an
//! empty pipe has no buffer.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    room: usize,
    /// Nothing more will be written.
    over: bool,
    /// Nobody reads any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    /// Takes the oldest bytes; what is left is as large as its buffer.
    fn take(&mut self, most: usize) -> Vec<u8> {
        let rest = self.waiting.split_off(self.waiting.len().min(most));
        std::mem::replace(&mut self.waiting, rest)
    }
}

#[derive(Debug)]
struct Shared(Mutex<State>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) {
        let mut state = self.state();
        state.over = true;
        wake(state.reader.take());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Makes a pipe in which at most `room` bytes wait.
pub(crate) fn pipe(room: usize) -> (Writer, Reader) {
    let shared = Arc::new(Shared(Mutex::new(State { room, ..State::default() })));
    (Writer(Arc::clone(&shared)), Reader(shared))
}

/// The end that is written to. Shutting it down, or dropping it, is the end of what is read.
#[derive(Debug)]
pub(crate) struct Writer(Arc<Shared>);

/// The end that is read from. Once it is dropped, writing fails.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Shared>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.deaf = true;
        state.waiting = Vec::new();
        wake(state.writer.take());
    }
}

impl Reader {
    /// Returns what waits, but not more than `most` bytes; `None` at the end. Nothing is lost when this is cancelled.
    pub(crate) async fn receive(&mut self, most: usize) -> Option<Bytes> {
        poll_fn(|cx| self.poll_receive(cx, most)).await
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Option<Bytes>> {
        let mut state = self.0.state();
        if state.waiting.is_empty() {
            if state.over {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = state.take(most);
        wake(state.writer.take());
        Poll::Ready(Some(taken.into()))
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        if state.waiting.is_empty() {
            if state.over {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buffer.put_slice(&state.take(buffer.remaining()));
        wake(state.writer.take());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        if state.deaf || state.over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = state.room.saturating_sub(state.waiting.len());
        let now = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if now.is_empty() && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.waiting.extend_from_slice(now);
        wake(state.reader.take());
        Poll::Ready(Ok(now.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.finish();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinSet,
        time::timeout,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A task of its own is polled again only if it is woken.
    fn apart<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinSet<T> {
        let mut task = JoinSet::new();
        task.spawn(future);
        task
    }

    async fn soon<T: 'static>(mut task: JoinSet<T>) -> T {
        timeout(SOON, task.join_next()).await.expect("it is woken").unwrap().unwrap()
    }

    #[tokio::test]
    async fn everything_comes_in_order_through_a_pipe_that_is_too_small_for_it() {
        let sent: Vec<u8> = (0..50_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        for in_pieces in [true, false] {
            let (mut writer, mut reader) = pipe(700);
            let copy = sent.clone();
            let writing = apart(async move {
                for piece in copy.chunks(1234) {
                    writer.write_all(piece).await.unwrap();
                }
                writer.shutdown().await.unwrap();
            });
            let reading = apart(async move {
                let mut got = Vec::new();
                if in_pieces {
                    while let Some(bytes) = reader.receive(300).await {
                        assert!((1..=300).contains(&bytes.len()), "{}", bytes.len());
                        got.extend_from_slice(&bytes);
                    }
                } else {
                    reader.read_to_end(&mut got).await.unwrap();
                }
                got
            });
            let got = soon(reading).await;
            assert!(got == sent, "{} of {}", got.len(), sent.len());
            soon(writing).await;
        }
    }

    #[tokio::test]
    async fn an_empty_pipe_has_no_buffer() {
        let (mut writer, mut reader) = pipe(1 << 16);
        writer.write_all(&[7; 20_000]).await.unwrap();
        assert_eq!(reader.receive(15_000).await.unwrap().len(), 15_000);
        assert_eq!(reader.receive(15_000).await.unwrap().len(), 5_000);
        assert_eq!(reader.0.state().waiting.capacity(), 0);
        writer.write_all(&[7; 20_000]).await.unwrap();
        reader.read_exact(&mut [0; 20_000]).await.unwrap();
        assert_eq!(reader.0.state().waiting.capacity(), 0);
    }

    #[tokio::test]
    async fn a_full_pipe_lets_nobody_write_until_something_is_read() {
        let (mut writer, mut reader) = pipe(4);
        writer.write_all(b"full").await.unwrap();
        let more = async { writer.write_all(b"more").await };
        let mut more = std::pin::pin!(more);
        assert!(timeout(Duration::from_millis(20), &mut more).await.is_err());
        assert_eq!(reader.receive(9).await.unwrap(), "full");
        timeout(SOON, more).await.unwrap().unwrap();
        assert_eq!(reader.receive(9).await.unwrap(), "more");
    }

    #[tokio::test]
    async fn the_end_is_told_after_what_was_written_before_it() {
        let (mut writer, mut reader) = pipe(9);
        writer.write_all(b"last").await.unwrap();
        drop(writer);
        assert_eq!(reader.receive(9).await.unwrap(), "last");
        assert_eq!(reader.receive(9).await, None);
        assert_eq!(reader.read(&mut [0; 9]).await.unwrap(), 0);

        // It wakes who waits for it already.
        let (writer, mut reader) = pipe(9);
        let reading = apart(async move { reader.receive(9).await });
        tokio::task::yield_now().await;
        drop(writer);
        assert_eq!(soon(reading).await, None);
    }

    #[tokio::test]
    async fn writing_to_nobody_fails_also_for_who_waits_already() {
        let (mut writer, reader) = pipe(4);
        writer.write_all(b"full").await.unwrap();
        let writing = apart(async move {
            let waited = writer.write_all(b"more").await;
            (waited, writer.write(b"x").await)
        });
        tokio::task::yield_now().await;
        drop(reader);
        let (waited, then) = soon(writing).await;
        assert_eq!(waited.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(then.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
