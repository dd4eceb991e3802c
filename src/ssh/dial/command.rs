//! `ProxyCommand`: a process of the user's, whose standard input and output are the connection.
//!
//! It runs in a process group of its own, so that Ctrl-C at the terminal ends us in order and not the connection
//! first. The group's leader is a guard: a shell that waits at the end of a pipe from us and then ends the group.
//! That pipe ends in every way that we can end, `kill -9` among them, and as the guard is in the group, its number
//! cannot have become another's.

use std::{
    future::Future,
    io,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
    time::timeout,
};

use super::Broken;
use crate::{
    human::Human,
    printable::one_line,
    ssh::{
        child,
        error::Error,
        target::{ProxyCommand, Target},
    },
};

/// Ends the group when standard input does: politely, and one second later in any case.
const GUARD: &str =
    "trap '' HUP INT TERM; read -r _; kill -s TERM 0; kill -s CONT 0; sleep 1; kill -s KILL 0";

/// How long a process that closed its output may take to end, and its last words to come.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// A running ProxyCommand. Dropping it ends its process group.
pub(super) struct Proxy {
    stdout: ChildStdout,
    stdin: Option<ChildStdin>,
    running: Option<Running>,
    /// How it ended, once it is known that it did.
    ending: Option<Pin<Box<dyn Future<Output = Broken> + Send>>>,
    program: String,
    /// Holds our end of its pipe.
    _guard: Child,
}

struct Running {
    child: Child,
    said: JoinSet<()>,
}

/// Starts the command for the connection to `target`.
pub(super) fn start(proxy: &ProxyCommand, target: &Target, human: &Arc<dyn Human>) -> Result<Proxy, Error> {
    let program = one_line(proxy.line.split_whitespace().next().unwrap_or_default());
    let failed = |source| Error::NoProxy { host: target.original.clone(), program: program.clone(), source };
    let guard = Command::new("/bin/sh")
        .args(["-c", GUARD])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let group = guard.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
    let mut child = Command::new(&proxy.shell)
        .arg("-c")
        .arg(format!("exec {}", proxy.line))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(group)
        .spawn()
        .map_err(failed)?;
    let missing = || failed(io::ErrorKind::BrokenPipe.into());
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let mut said = JoinSet::new();
    said.spawn(child::pass_on(stderr, "ProxyCommand", Arc::clone(human)));
    Ok(Proxy { stdout, stdin, running: Some(Running { child, said }), ending: None, program, _guard: guard })
}

async fn ended(running: Option<Running>, program: String) -> Broken {
    let how = match running {
        Some(Running { mut child, mut said }) => {
            let status = timeout(END_TIMEOUT, child.wait()).await;
            drop(timeout(END_TIMEOUT, said.join_next()).await);
            match status {
                Ok(Ok(status)) => child::told(status),
                Ok(Err(error)) => format!("could not be waited for: {error}"),
                Err(_) => "closed its output".to_owned(),
            }
        }
        None => "ended".to_owned(),
    };
    Broken::Command { program, how }
}

impl Proxy {
    /// Waits for its end, and says how it came.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let (running, program) = (&mut self.running, &self.program);
        let ending = self.ending.get_or_insert_with(|| Box::pin(ended(running.take(), program.clone())));
        let broken = ready!(ending.as_mut().poll(cx));
        // Whoever asks again hears it in fewer words.
        let again = program.clone();
        self.ending = Some(Box::pin(async move { Broken::Command { program: again, how: "ended".into() } }));
        Poll::Ready(broken.into_error())
    }
}

impl AsyncRead for Proxy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stdout).poll_read(cx, buffer));
        if read.is_ok() && (buffer.filled().len() > before || buffer.remaining() == 0) {
            return Poll::Ready(Ok(()));
        }
        self.poll_ended(cx).map(Err)
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(stdin) = &mut self.stdin {
            match ready!(Pin::new(stdin).poll_write(cx, bytes)) {
                Ok(written) => return Poll::Ready(Ok(written)),
                // It reads no more, so that it has ended or soon will.
                Err(_) => self.stdin = None,
            }
        }
        self.poll_ended(cx).map(Err)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe holds nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}
