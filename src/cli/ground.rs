//! What the tunnels of one process stand on: the log of decisions, and the certificate for their ports.

use std::sync::Arc;

use tokio::{sync::oneshot, task::JoinSet};

use super::{
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::{
    audit,
    causes::chain,
    clock::Clock,
    config::{Environment, Plan},
    tls,
};

/// Returns who we are to TLS clients at the port (`--tls`).
pub(super) fn certificate(
    plan: &Plan,
    clock: &Clock,
    terminal: &Terminal,
) -> Result<Option<Arc<tls::Identity>>, Failure> {
    let Some(wish) = &plan.tls else { return Ok(None) };
    let (identity, warnings) = tls::Identity::new(wish, clock.now()).map_err(|error| {
        let hint = error.hint();
        Failure::new(Kind::Usage, error).with_hint(hint)
    })?;
    for warning in warnings {
        terminal.warning(&warning);
    }
    Ok(Some(Arc::new(identity)))
}

/// Opens the log of decisions, which `tasks` write until nobody holds the sender any more.
pub(super) fn open_log(
    environment: &Environment,
    clock: &Clock,
    terminal: &Arc<Terminal>,
    tasks: &mut JoinSet<()>,
) -> (audit::Log, Arc<oneshot::Sender<()>>) {
    let (stop_writing, written) = oneshot::channel::<()>();
    let log = match audit::open(&environment.audit_log(), clock.clone()) {
        Ok((log, audit)) => {
            let terminal = Arc::clone(terminal);
            tasks.spawn(async move {
                drop(audit.run(async { drop(written.await) }, |e| terminal.warning(&not_logged(e))).await);
            });
            log
        }
        Err(e) => {
            terminal.warning(&not_logged(&e));
            audit::discard(clock.clone())
        }
    };
    (log, Arc::new(stop_writing))
}

/// Says that decisions are not logged, why, and what to do.
fn not_logged(error: &audit::Error) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("decisions are not logged: {}{hint}", chain(error))
}
