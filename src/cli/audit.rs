//! `broker audit`: the log of every decision, and whether anybody changed it.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::{
    audit::{self, Verified},
    config::Environment,
    private_fs,
};

/// Show the log of every decision, or check it.
///
/// Each line is one JSON object: who asked for what on which host, and what came of it. It holds no secret. Without
/// `verify` the log goes to stdout as it is.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  broker audit | jq 'select(.decision == \"refused\")'\n  broker audit verify"
)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check that no line was changed, added or taken out, and print the hash of the last one
    ///
    /// Whoever can write the file can also make a new chain: compare the hash with one that you noted elsewhere.
    Verify,
}

/// Years of decisions of one person, in bytes.
const LARGEST: u64 = 1 << 30;

/// Runs `broker audit`.
pub(super) fn run(
    arguments: &Arguments,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let path = environment.audit_log();
    let text = private_fs::read_up_to(&path, LARGEST).map_err(|e| {
        let hint = e.hint();
        Failure::new(Kind::Failed, e).with_hint(hint)
    })?;
    let Some(text) = text else {
        terminal.notice(&format!("nothing was decided yet: there is no `{}`", path.display()));
        return Ok(ExitCode::SUCCESS);
    };
    let data = match arguments.action {
        None => text.to_vec(),
        Some(Action::Verify) => {
            let Verified { lines, torn, head } = audit::verify(&text).map_err(|e| {
                Failure::new(Kind::Failed, e).with_hint(Some(format!(
                    "look at that line of `{}`; what follows it proves nothing",
                    path.display()
                )))
            })?;
            let unfinished = match torn {
                0 => String::new(),
                torn => format!(", {torn} of them left unfinished by a process that was killed"),
            };
            terminal.notice(&format!("{lines} lines follow from each other{unfinished}; the last one has"));
            format!("{head}\n").into_bytes()
        }
    };
    terminal.data(&data).map_err(|e| Failure::new(Kind::Failed, e))?;
    Ok(ExitCode::SUCCESS)
}
