//! What is typed at us, as bytes that can be left for somebody else to read.
//!
//! A read of Tokio's stdin that has begun cannot be taken back: the next line that is typed would go into a shell that
//! is lost, and not to whoever asks for a password. So a terminal is read only when it has something.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, Interest, ReadBuf, unix::AsyncFd};

/// Standard input.
pub(super) enum Keyboard {
    Terminal(AsyncFd<File>),
    /// A pipe or a file, or a terminal that cannot be waited for.
    Other(tokio::io::Stdin),
}

impl Keyboard {
    /// Opens what is typed at, or standard input where that is no terminal.
    pub(super) fn open() -> Self {
        let terminal = io::stdin().is_terminal().then(terminal).and_then(Result::ok);
        terminal.map_or_else(|| Self::Other(tokio::io::stdin()), Self::Terminal)
    }

    /// Opens the terminal, whatever standard input is.
    pub(super) fn tty() -> io::Result<Self> {
        terminal().map(Self::Terminal)
    }
}

/// Opens the terminal for ourselves: that reads of it do not block would otherwise hold for everybody who has it open.
fn terminal() -> io::Result<AsyncFd<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/dev/tty", flags, Mode::empty())?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe for descriptors that others could close; a file is not one"
    )]
    AsyncFd::with_interest(File::from(file), Interest::READABLE)
}

impl AsyncRead for Keyboard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let terminal = match &mut *self {
            Self::Terminal(terminal) => terminal,
            Self::Other(stdin) => return Pin::new(stdin).poll_read(cx, buffer),
        };
        loop {
            let mut ready = ready!(terminal.poll_read_ready(cx))?;
            match ready.try_io(|terminal| terminal.get_ref().read(buffer.initialize_unfilled())) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // Somebody else read it.
                Err(_) => {}
            }
        }
    }
}
