//! `broker ssh-config`: what ssh_config says about a host, as we understand it.

use std::process::ExitCode;

use clap::Args;

use super::{
    Output,
    connect::usage,
    failure::{Failure, Kind},
    host::HowToReach,
    terminal::Terminal,
};
use crate::config::{self, Environment};

/// Print what ssh_config and these options say about a host, in the format of `ssh -G`.
///
/// For comparing with `ssh -G HOST`: the same files, the same rules. Nothing is connected to. Where neither says anything
/// about ServerAliveInterval and ConnectTimeout it is our default that is printed; default lists of algorithms are left out.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  broker ssh-config bastion
  broker ssh-config bastion | grep proxyjump")]
pub(super) struct Arguments {
    /// The host, also as a URL (ssh://…), or an alias from ssh_config
    #[arg(value_name = "[USER@]HOST[:PORT]")]
    host: String,

    #[command(flatten)]
    pub(super) reach: HowToReach,
}

/// Runs `broker ssh-config`.
pub(super) fn run(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let flags = arguments.reach.flags(&arguments.host, output.batch);
    let mut warnings = Vec::new();
    let text = config::ssh_config(&flags, environment, &mut warnings).map_err(usage)?;
    for warning in warnings {
        terminal.warning(&warning);
    }
    terminal.data(text.as_bytes()).map_err(|error| Failure::new(Kind::Failed, error))?;
    Ok(ExitCode::SUCCESS)
}
