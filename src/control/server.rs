//! The listening end: who may ask, how much, for how long.

use std::{io, os::fd::IntoRawFd as _, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    message::{Answer, Envelope, Refusal, RefusalKind, Reply, Request, VERSION},
    place::{self, Unfit},
    wire::{self, LONGEST_REQUEST},
};
use crate::{human::BoxFuture, tasks::reraise};

/// What answers.
pub(crate) trait Desk: Send + Sync {
    /// Answers a request about the tunnel `id`, or about the process. Ends by itself within [`PATIENCE`].
    fn answer(&self, id: Option<u32>, request: Request) -> BoxFuture<'_, Result<Answer, Refusal>>;

    /// Whether this process has no tunnel any more, and ends.
    fn is_over(&self) -> bool {
        true
    }
}

/// A socket of this process that other terminals find. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    socket: Socket,
}

#[derive(Debug)]
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // If it cannot be removed, the next command finds that nobody listens.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Nobody can steer this process.
#[derive(Debug, thiserror::Error)]
#[error("there is no place for a control socket")]
pub(crate) struct NoPlace(#[source] Unfit);

impl Server {
    /// Listens in the first of these directories that is ours alone or can be made.
    pub(crate) fn open(directories: &[PathBuf]) -> Result<Self, NoPlace> {
        let mut first = None;
        for directory in directories {
            match Self::open_in(directory) {
                Ok(server) => return Ok(server),
                Err(unfit) => {
                    tracing::debug!(%unfit, "no control socket there");
                    // The place that people know is the one to be told of.
                    first.get_or_insert(unfit);
                }
            }
        }
        Err(NoPlace(first.unwrap_or_else(|| Unfit::TooLong(PathBuf::new()))))
    }

    fn open_in(directory: &std::path::Path) -> Result<Self, Unfit> {
        place::prepare(directory)?;
        let (hidden, path) = place::new_name(directory, std::process::id())?;
        let failed = |verb: &'static str, source: io::Error| Unfit::Io { verb, path: path.clone(), source };
        let listener = UnixListener::bind(&hidden).map_err(|e| failed("listen on", e))?;
        if let Err(source) = std::fs::rename(&hidden, &path) {
            drop(Socket(hidden));
            return Err(failed("name", source));
        }
        Ok(Self { listener, socket: Socket(path) })
    }

    /// Answers until `shutdown` completes; then nobody finds us any more, and who has an answer coming gets it.
    pub(crate) async fn run(self, desk: Arc<dyn Desk>, shutdown: impl Future<Output = ()>) {
        let Self { listener, socket } = self;
        let mut clients = JoinSet::new();
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if is_ours(&stream) && clients.len() < MOST_CLIENTS => {
                        let desk = Arc::clone(&desk);
                        clients.spawn(async move { client(stream, &*desk).await });
                    }
                    // Not a byte is read from them or said to them.
                    Ok((stranger, _)) => drop(stranger),
                    // No descriptor left, most often: whoever holds them will let some go.
                    Err(error) => {
                        tracing::debug!(%error, "could not accept on the control socket");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = clients.join_next() => reraise(ended),
            }
        }
        drop(socket);
        let last = async {
            while let Some(ended) = clients.join_next().await {
                reraise(ended);
            }
        };
        if timeout(LAST_ANSWERS, last).await.is_err() {
            clients.shutdown().await;
        }
    }
}

/// Whether the process at the other end runs as our own user: nobody else, and not root either, which has no need to ask.
fn is_ours(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == ours => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "another user connected to the control socket and got nothing");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "it is not known who connected to the control socket");
            false
        }
    }
}

async fn client(mut stream: UnixStream, desk: &dyn Desk) {
    let said: Result<serde_json::Value, _> = wire::read(&mut stream, LONGEST_REQUEST, REQUEST_TIMEOUT).await;
    let (reply, stops) = match said.map(understood) {
        Ok(Ok(Envelope { id, request, .. })) => {
            let stops = request == Request::Stop;
            let answer = timeout(PATIENCE, desk.answer(id, request)).await.unwrap_or_else(|_| {
                Err(Refusal::new(
                    RefusalKind::Failed,
                    format!("it was not done within {} s", PATIENCE.as_secs()),
                ))
            });
            (answer.map_or_else(Reply::Error, Reply::Ok), stops)
        }
        Ok(Err(refusal)) => (Reply::Error(refusal), false),
        Err(error) => {
            let refusal = Refusal::new(RefusalKind::Usage, format!("not understood: {error}"));
            (Reply::Error(refusal), false)
        }
    };
    if let Err(error) = wire::write(&mut stream, &reply, ANSWER_TIMEOUT).await {
        tracing::debug!(%error, "a control client went away before it had its answer");
    }
    if stops
        && desk.is_over()
        && let Ok(stream) = stream.into_std()
    {
        // Left open on purpose: the kernel closes it when this process ends, which is what the other end waits for.
        let _open_until_we_end = stream.into_raw_fd();
    }
}

fn understood(said: serde_json::Value) -> Result<Envelope, Refusal> {
    let version = said.get("v").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let message = format!(
            "this broker is version {} and was asked in another version of the protocol",
            env!("CARGO_PKG_VERSION")
        );
        let hint = "use the same version of broker for both, or stop the old one with Ctrl-C".to_owned();
        return Err(Refusal::new(RefusalKind::Failed, message).with_hint(hint));
    }
    serde_json::from_value(said)
        .map_err(|error| Refusal::new(RefusalKind::Usage, format!("not understood: {error}")))
}

/// Enough for everything that one person can do at once; more would be a program that has gone wrong.
pub(super) const MOST_CLIENTS: usize = 16;

/// A request is one short line, and whoever connects has it ready.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest that anything takes which can be asked for: new credentials while AWS is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The other end is on this machine and waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// A stop may take 2 s in all, of which this is the last.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// Long enough not to burn the processor while there is no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
