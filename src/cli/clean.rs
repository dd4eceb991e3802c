//! `broker clean HOST`: nothing of ours stays on a host, whatever happened to the broker that left it.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use clap_complete::ArgValueCompleter;

use super::{
    Output, completions,
    failure::{Failure, Kind},
    host::{HowToReach, interrupted, visit},
    stop_signal,
    terminal::Terminal,
};
use crate::{
    config::Environment,
    remote::{
        leftovers::{Leftover, State, Sweep},
        managed::Cleaned,
    },
    tunnel::Visit,
};

/// Remove everything that any broker ever left on a host.
///
/// That is the private directories with tokens, scripts and sockets, wherever they were made, and our block in
/// ~/.aws/config there; also role credentials that `--linger` left. What a running broker uses is left alone. Safe at
/// any time; needs no AWS login.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker clean bastion\n  broker clean ada@bastion --force")]
pub(super) struct Arguments {
    /// The host: [USER@]HOST[:PORT], ssh://[USER@]HOST[:PORT], or an alias from ssh_config
    #[arg(value_name = "[USER@]HOST[:PORT]", add = ArgValueCompleter::new(completions::hosts))]
    host: String,

    /// Remove what running brokers use as well, also on other hosts that share the home directory
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    pub(super) reach: HowToReach,
}

/// Runs `broker clean`.
pub(super) async fn run(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let target = arguments.reach.target(&arguments.host, output, environment, terminal)?;
    let work = async {
        let visit = visit(&target, terminal).await?;
        let cleaned = clean(&visit, arguments, terminal).await;
        visit.close().await;
        cleaned
    };
    tokio::select! {
        done = Box::pin(work) => done,
        _ = stop => Err(interrupted()),
    }
}

async fn clean(visit: &Visit, arguments: &Arguments, terminal: &Terminal) -> Result<ExitCode, Failure> {
    let how = if arguments.force { Sweep::Force } else { Sweep::Dead };
    let found = visit.sweep(how).await.map_err(super::connect::tunnel_failure)?;
    for leftover in &found {
        tell(leftover, terminal).map_err(|e| Failure::new(Kind::Failed, e))?;
    }
    let blocks = visit.sweep_profiles(&found, how).await.map_err(|e| Failure::new(Kind::Failed, e))?;
    for block in &blocks {
        tell_of_block(block, terminal).map_err(|e| Failure::new(Kind::Failed, e))?;
    }
    if found.is_empty() && blocks.is_empty() {
        terminal.notice(&format!("nothing of any broker is on {}", arguments.host));
    }
    if found.iter().any(|leftover| leftover.state == State::Stuck) {
        return Err(Failure::new(
            Kind::Failed,
            format!("not everything could be removed from {}", arguments.host),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(leftover: &Leftover, terminal: &Terminal) -> std::io::Result<()> {
    let Leftover { path, state } = leftover;
    match state {
        State::Removed => return terminal.data(format!("removed {path}\n").as_bytes()),
        State::Stuck => terminal.warning(&format!("`{path}` could not be removed")),
        State::Live => terminal.warning(&format!(
            "`{path}` is in use by a running broker and stays; stop that one, or pass `--force`"
        )),
        State::Elsewhere => terminal.warning(&format!(
            "`{path}` was made on another host that shares this home, and stays; run `broker clean` on that host, or pass `--force`"
        )),
        State::Dead | State::Lingers => {}
    }
    Ok(())
}

fn tell_of_block(Cleaned { mark, state }: &Cleaned, terminal: &Terminal) -> std::io::Result<()> {
    match state {
        State::Removed => return terminal.data(format!("removed the block {mark} from ~/.aws/config\n").as_bytes()),
        State::Live => terminal.warning(&format!(
            "the block {mark} in `~/.aws/config` belongs to a running broker and stays; stop that one, or pass `--force`"
        )),
        State::Elsewhere => terminal.warning(&format!(
            "the block {mark} in `~/.aws/config` was made on another host that shares this home, and stays; run `broker clean` on that host, or pass `--force`"
        )),
        State::Dead | State::Lingers | State::Stuck => {}
    }
    Ok(())
}
