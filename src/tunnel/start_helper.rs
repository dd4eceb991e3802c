//! The helper's way onto the host, and how it is found out early that there is none.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, task::JoinSet};

use super::{Error, Inputs, link::TaskEnd, reraise};
use crate::{
    remote::helper::{self, Facts, Helper, Nonce, Said},
    ssh::{
        inbox::Exit,
        process::{Event as ProcessEvent, Keep, Process},
        session::Session,
    },
};

/// Starts the helper over an exec channel of its own; its work goes on in `tasks`.
pub(super) async fn start_helper(
    inputs: &Inputs,
    session: &Session,
    tasks: &mut JoinSet<TaskEnd>,
) -> Result<(Helper, Facts), Error> {
    let nonce = Nonce::generate()?;
    let (process, pump) = session.exec(&nonce.bootstrap(), Keep::All).await?;
    let Process { stdin, mut events, .. } = process;
    let (mut output, stdout) = tokio::io::duplex(HELPER_BUFFER);
    let mut carrying = JoinSet::new();
    carrying.spawn(async move {
        let copy = async move {
            while let Some(event) = events.next().await {
                let bytes = match event {
                    // What a login shell complains about belongs to the noise that explains a missing helper.
                    ProcessEvent::Stdout(bytes) | ProcessEvent::Stderr(bytes) => bytes,
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
    let (helper, actor, facts) = started.map_err(|source| Error::Helper { host: inputs.host(), source })?;
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
