//! The asking end: which tunnels there are, and one request to one of them.

use std::{io, path::PathBuf, time::Duration};

use tokio::{io::AsyncReadExt as _, net::UnixStream, task::JoinSet, time::timeout};

use super::{
    message::{Answer, Ended, Envelope, Refusal, Reply, Report, Request, VERSION},
    place::{self, Candidate},
    server::PATIENCE,
    wire::{self, LONGEST_ANSWER},
};
use crate::tasks::reraise;

/// A process that holds tunnels.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    path: PathBuf,
    pub(crate) pid: u32,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Each tunnel with the process that holds it, the oldest first.
    pub(crate) tunnels: Vec<(Peer, Report)>,
    /// Processes that are there and do not answer: stopped, or busy, or of another version.
    pub(crate) silent: Vec<(u32, Error)>,
}

/// Why a process did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the process {pid} has ended")]
    Gone { pid: u32 },
    #[error("the process {pid} does not answer")]
    Silent {
        pid: u32,
        #[source]
        source: wire::Error,
    },
    #[error("the process {pid} cannot be asked")]
    Closed {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("the control socket of process {pid} belongs to another user")]
    Foreign { pid: u32 },
    #[error("the process {pid} answered something else than it was asked")]
    Confused { pid: u32 },
    #[error("the process {pid} was told to end, and was still there {} s later", .after.as_secs())]
    StillThere { pid: u32, after: Duration },
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Returns every tunnel of this user, and removes the sockets of processes that are dead.
pub(crate) async fn find(directories: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let mut asking = JoinSet::new();
    for Candidate { path, pid } in place::candidates(directories) {
        asking.spawn(async move {
            let peer = Peer { path, pid };
            let told = peer.ask_within(None, Request::Status, STATUS_TIMEOUT).await;
            (peer, told)
        });
    }
    while let Some(told) = asking.join_next().await {
        match reraise(told) {
            (peer, Ok(Answer::Status { tunnels })) => {
                found.tunnels.extend(tunnels.into_iter().map(|tunnel| (peer.clone(), tunnel)));
            }
            (peer, Ok(_)) => found.silent.push((peer.pid, Error::Confused { pid: peer.pid })),
            (_, Err(Error::Gone { .. })) => {}
            (peer, Err(error)) => found.silent.push((peer.pid, error)),
        }
    }
    found.tunnels.sort_by_key(|(_, report)| (report.started_at, report.pid, report.id));
    found.silent.sort_by_key(|(pid, _)| *pid);
    found
}

impl Peer {
    /// Asks for something about one of its tunnels.
    pub(crate) async fn ask(&self, id: u32, request: Request) -> Result<Answer, Error> {
        self.ask_within(Some(id), request, PATIENCE + STATUS_TIMEOUT).await
    }

    /// Has it end, and waits until it has.
    pub(crate) async fn stop(&self, id: u32) -> Result<Ended, Error> {
        let mut stream = self.connect().await?;
        let answer = match self.talk(&mut stream, Some(id), Request::Stop, STOP_TIMEOUT).await {
            // It was on its way out already.
            Err(Error::Silent { pid, source: wire::Error::Torn }) => return Err(Error::Gone { pid }),
            answer => answer?,
        };
        let Answer::Stopped(how) = answer else { return Err(Error::Confused { pid: self.pid }) };
        // It never closes this end: the kernel does, when there is no such process any more.
        let mut nothing = [0; 16];
        let ended = async { while matches!(stream.read(&mut nothing).await, Ok(more) if more > 0) {} };
        match timeout(STOP_TIMEOUT, ended).await {
            Ok(()) => Ok(how),
            Err(_) => Err(Error::StillThere { pid: self.pid, after: STOP_TIMEOUT }),
        }
    }

    async fn ask_within(
        &self,
        id: Option<u32>,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, Error> {
        let mut stream = self.connect().await?;
        self.talk(&mut stream, id, request, patience).await
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        let pid = self.pid;
        let stream = match timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Nobody listens, and nobody ever will under this name. Another command may have been faster.
                drop(std::fs::remove_file(&self.path));
                return Err(Error::Gone { pid });
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Gone { pid }),
            Ok(Err(source)) => return Err(Error::Closed { pid, source }),
            Err(_) => return Err(Error::Silent { pid, source: wire::Error::Late(CONNECT_TIMEOUT) }),
        };
        let peer = stream.peer_cred().map_err(|source| Error::Closed { pid, source })?;
        if peer.uid() == rustix::process::geteuid().as_raw() {
            Ok(stream)
        } else {
            Err(Error::Foreign { pid })
        }
    }

    async fn talk(
        &self,
        stream: &mut UnixStream,
        id: Option<u32>,
        request: Request,
        patience: Duration,
    ) -> Result<Answer, Error> {
        let pid = self.pid;
        let silent = |source| Error::Silent { pid, source };
        let envelope = Envelope { v: VERSION, id, request };
        wire::write(stream, &envelope, STATUS_TIMEOUT).await.map_err(silent)?;
        match wire::read(stream, LONGEST_ANSWER, patience).await.map_err(silent)? {
            Reply::Ok(answer) => Ok(answer),
            Reply::Error(refusal) => Err(Error::Refused(refusal)),
        }
    }
}

/// A process that is alive takes connections at once, or has sixteen others waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that a status needs is in memory; a machine that swaps may need a moment.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// A stop takes 2 s whatever the host does; a laptop that just woke up may be slower.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
impl Peer {
    /// Returns a process that does not exist.
    pub(crate) fn nobody() -> Self {
        Self { path: PathBuf::new(), pid: 0 }
    }
}
