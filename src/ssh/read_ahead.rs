//! Reads ahead, and keeps no room for it in between.
//!
//! russh reads each packet in two small steps, so one read from the kernel should serve several packets. A buffer for
//! each connection would be most of what an idle tunnel costs, so all connections of a thread read into one, which one of
//! them keeps for as long as something in it was not asked for yet.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One read from the kernel, in bytes.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream that is read in large pieces.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    inner: S,
    /// `taken..read` of it was read and not asked for yet.
    buffer: Vec<u8>,
    taken: usize,
    read: usize,
}

impl<S> ReadAhead<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, buffer: Vec::new(), taken: 0, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = self.buffer.get(self.taken..self.read).filter(|rest| !rest.is_empty()) {
            let now = rest.get(..buffer.remaining()).unwrap_or(rest);
            buffer.put_slice(now);
            self.taken += now.len();
            if self.taken == self.read {
                (self.taken, self.read) = (0, 0);
                SCRATCH.set(std::mem::take(&mut self.buffer));
            }
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() >= READ {
            return Pin::new(&mut self.inner).poll_read(cx, buffer);
        }
        // Taken, not borrowed: a stream may be carried by another one.
        let mut scratch = SCRATCH.take();
        scratch.resize(READ, 0);
        let mut read = ReadBuf::new(&mut scratch);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut read);
        let (count, now) = (read.filled().len(), read.filled().len().min(buffer.remaining()));
        buffer.put_slice(read.filled().get(..now).unwrap_or_default());
        if now < count {
            (self.buffer, self.taken, self.read) = (scratch, now, count);
        } else {
            SCRATCH.set(scratch);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn everything_comes_in_order_in_whatever_pieces_and_nothing_is_kept_behind_it() {
        let (mut theirs, ours) = tokio::io::duplex(READ);
        let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let copy = sent.clone();
        let sending = async move { theirs.write_all(&copy).await.unwrap() };
        let reading = async {
            let mut ours = ReadAhead::new(ours);
            let mut got = Vec::new();
            let mut piece = vec![0; 70_000];
            for size in [1, 4, 7, 300, 5000, READ - 1, READ, 70_000].into_iter().cycle() {
                match ours.read(&mut piece[..size]).await.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
            assert_eq!((ours.buffer.capacity(), ours.taken, ours.read), (0, 0, 0));
            got
        };
        let ((), got) = tokio::join!(sending, reading);
        assert!(got == sent, "{} of {}", got.len(), sent.len());
    }
}
