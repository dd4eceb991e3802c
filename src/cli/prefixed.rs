//! Output of one of several hosts: every line behind the host's name, and none inside another's.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// A longer line is broken, in bytes: nobody's unfinished line may fill our memory.
const LONGEST_LINE: usize = 32 * 1024;

/// Writes whole lines to `inner`, each behind a name.
pub(super) struct Prefixed<W> {
    name: Vec<u8>,
    inner: W,
    /// A line that has no end yet.
    begun: Vec<u8>,
    /// Whole lines that are not written yet.
    whole: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Prefixed<W> {
    pub(super) fn new(host: &str, inner: W) -> Self {
        let name = format!("{}: ", crate::printable::one_line(host)).into_bytes();
        Self { name, inner, begun: Vec::new(), whole: Vec::new() }
    }

    /// Ends a line that the host did not end, and writes everything.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        if !self.begun.is_empty() {
            self.take(b"\n");
        }
        self.flush().await
    }

    fn take(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(part);
            let ended = part.ends_with(b"\n");
            if ended || self.begun.len() >= LONGEST_LINE {
                self.whole.extend_from_slice(&self.name);
                self.whole.append(&mut self.begun);
                if !ended {
                    self.whole.push(b'\n');
                }
            }
        }
    }

    fn poll_write_whole(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.whole.is_empty() {
            // In one piece, so that no other host's line comes between.
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.whole))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.whole.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Prefixed<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_whole(cx))?;
        self.take(bytes);
        // What cannot be written now is written before the next.
        if let Poll::Ready(Err(error)) = self.poll_write_whole(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_whole(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_line_is_behind_the_name_however_it_comes() {
        let mut out = Prefixed::new("web1", Vec::new());
        for piece in ["a", "b\nc\n\nd", "", "e\n", "end"] {
            out.write_all(piece.as_bytes()).await.unwrap();
        }
        assert_eq!(out.inner, b"web1: ab\nweb1: c\nweb1: \nweb1: de\n");
        out.finish().await.unwrap();
        assert!(out.inner.ends_with(b"web1: end\n"));
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_broken() {
        let mut out = Prefixed::new("h", Vec::new());
        out.write_all(&[b'x'; LONGEST_LINE]).await.unwrap();
        out.write_all(b"yz\n").await.unwrap();
        assert_eq!(
            out.inner.split(|byte| *byte == b'\n').map(<[u8]>::len).collect::<Vec<_>>(),
            [LONGEST_LINE + 3, 5, 0]
        );
    }
}
