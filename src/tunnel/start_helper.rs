//! The helper's way onto the host, and how it is found out early that there is none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, task::JoinSet};

use super::{Error, link::TaskEnd};
use crate::{
    remote::helper::{self, Facts, Helper, Nonce, Said},
    ssh::{
        inbox::Exit,
        pipe::pipe,
        process::{Event as ProcessEvent, Keep, Process},
        session::Session,
    },
    tasks::reraise,
};

/// Starts the helper over an exec channel of its own; its work goes on in `tasks`.
pub(super) async fn start_helper(
    host: &str,
    session: &Session,
    tasks: &mut JoinSet<TaskEnd>,
) -> Result<(Helper, Facts), Error> {
    let nonce = Nonce::generate()?;
    let (process, pump) = session.exec(&nonce.bootstrap(), Keep::AtMost(HELPER_WAITING)).await?;
    let Process { stdin, mut events, .. } = process;
    let (mut output, stdout) = pipe(HELPER_BUFFER);
    // Apart from the answers, into which it could fall at any byte; it may explain a missing helper.
    let complaints = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&complaints);
    let mut carrying = JoinSet::new();
    carrying.spawn(async move {
        let copy = async move {
            while let Some(event) = events.next().await {
                let bytes = match event {
                    ProcessEvent::Stdout(bytes) => bytes,
                    ProcessEvent::Stderr(bytes) => {
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        let room = LONGEST_COMPLAINT.saturating_sub(heard.len());
                        heard.extend(bytes.iter().take(room));
                        continue;
                    }
                    ProcessEvent::Exit(_) => break,
                };
                if output.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(copy, pump);
    });
    let started = tokio::select! {
        started = helper::start(stdin, stdout, nonce) => started,
        said = until_nothing_runs(session) => {
            let why = "another program than the login shell takes its commands";
            Err(helper::Error::NoHelper { why, said: Said::of(&said) })
        }
    };
    let (helper, actor, facts) = started.map_err(|source| {
        let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        Error::Helper { host: host.to_owned(), source: source.with_complaints(&complaints) }
    })?;
    let actor = Box::pin(actor);
    tasks.spawn(async move {
        let result = actor.await;
        // The channel closes by itself now that nobody writes to it.
        while let Some(carried) = carrying.join_next().await {
            reraise(carried);
        }
        TaskEnd::Helper(result.map_err(Into::into))
    });
    Ok((helper, facts))
}

/// Returns, with what was said instead, when it is certain that no command runs on the host.
///
/// That is sooner than a helper that says nothing would tell: an SFTP server or a menu that a ForceCommand runs instead
/// ends when its input does (sshd's own `internal-sftp` does at once). A slow login shell does not end before it has run
/// the command.
async fn until_nothing_runs(session: &Session) -> Vec<u8> {
    tokio::time::sleep(PROBE_AFTER).await;
    let probe = async {
        let (process, pump) = session.exec("echo broker-runs", Keep::AtMost(HELPER_BUFFER)).await.ok()?;
        let Process { stdin, mut events, .. } = process;
        drop(stdin);
        let ended = async {
            let mut said = Vec::new();
            while let Some(event) = events.next().await {
                match event {
                    ProcessEvent::Stdout(bytes) => said.extend_from_slice(&bytes),
                    ProcessEvent::Stderr(_) => {}
                    ProcessEvent::Exit(Exit::Status(_)) => return Some(said),
                    ProcessEvent::Exit(_) => return None,
                }
            }
            None
        };
        tokio::join!(ended, pump).0
    };
    match probe.await {
        Some(said) if !said.windows(RUNS.len()).any(|window| window == RUNS) => said,
        _ => std::future::pending().await,
    }
}

/// What the probe prints.
const RUNS: &[u8] = b"broker-runs";

/// A helper that was not heard so long is either slow or will not come.
const PROBE_AFTER: Duration = Duration::from_secs(1);

/// One answer of the helper in flight.
const HELPER_BUFFER: usize = 64 * 1024;

/// What is kept of a login shell's complaints: they are shown to a person.
const LONGEST_COMPLAINT: usize = 4 * 1024;

/// What the helper may have said and we have not yet taken; it is listened to all the time, and says less than that
/// in a minute.
const HELPER_WAITING: usize = 1 << 20;
