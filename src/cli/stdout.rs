//! stdout, for as much as a host has to say.
//!
//! `tokio`'s copies every piece and hands it to a thread, which slows a large file down. A pipe can be written without
//! either, if a write returns instead of waiting. Whoever shares the pipe must not find that changed, so it is opened
//! once more, for us alone.

use std::io;

use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    stdio,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe::{OpenOptions, Sender},
};

use crate::{ssh::terminal::Output, tasks::reraise};

/// This process's stdout on Linux (proc(5)).
const PATH: &str = "/proc/self/fd/1";

/// This process's stdout. Whoever reads it may take any time.
#[derive(Debug)]
pub(super) enum Stdout {
    Pipe(Sender),
    /// A terminal, a file, or a pipe that we may not open: a thread waits for it, so that a disk that hangs does not stop
    /// the tunnel. For a large file that is slower than what `ssh` does, which waits itself.
    Other,
}

impl Stdout {
    pub(super) fn open() -> Self {
        OpenOptions::new().open_sender(PATH).map_or(Self::Other, Self::Pipe)
    }
}

impl Output for Stdout {
    async fn put(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(&bytes).await,
            Self::Other => reraise(tokio::task::spawn_blocking(move || write_all(&bytes)).await),
        }
    }
}

fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let stdout = stdio::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(stdout, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever shares the file with us made it so.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
