//! `broker completions`: words, hosts and profiles that a shell completes.
//!
//! The script that is printed asks this program, at every Tab, what may come next, so that it knows the tunnels that run,
//! the aliases of ssh_config and the profiles as they are then.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{
    CompletionCandidate,
    env::{CompleteEnv, Shells},
};

use super::{
    Cli,
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::{
    config::{Environment, file::File},
    control::client,
    ssh::config::aliases,
};

/// What tells us that a shell asks, and which.
const VARIABLE: &str = "BROKER_COMPLETE";

/// Print a script that has your shell complete commands, hosts and profiles.
///
/// Hosts are the aliases of your ssh_config, those of our configuration file with its lists, and those that tunnels lead to,
/// as they are when you press Tab.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples, each for the start-up file of its shell:
  source <(broker completions bash)
  source <(broker completions zsh)
  broker completions fish | source")]
pub(super) struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[expect(clippy::enum_variant_names, reason = "PowerShell is its name")]
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    /// bash 4 or newer
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// elvish
    Elvish,
    /// PowerShell 7
    #[value(name = "powershell", alias = "pwsh")]
    PowerShell,
}

/// Runs `broker completions`.
pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<ExitCode, Failure> {
    let name = arguments.shell.to_possible_value();
    let name = name.as_ref().map(clap::builder::PossibleValue::get_name).unwrap_or_default();
    let shells = Shells::builtins();
    let completer =
        shells.completer(name).ok_or_else(|| Failure::new(Kind::Usage, format!("no script for {name}")))?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "broker", "broker", "broker", &mut script)
        .and_then(|()| terminal.data(&script))
        .map_err(|e| Failure::new(Kind::Failed, e))?;
    Ok(ExitCode::SUCCESS)
}

/// Tells a shell what may come next, if it asks; `None` for an ordinary command line.
pub(super) fn answer(arguments: &[OsString]) -> Option<ExitCode> {
    let completing = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    match completing.try_complete(arguments.iter().cloned(), None) {
        Ok(false) => None,
        Ok(true) => Some(ExitCode::SUCCESS),
        // A shell shows nothing of it, and must not take it for words.
        Err(_) => Some(ExitCode::FAILURE),
    }
}

/// Returns the hosts that somebody may connect to, as the word that was begun names them: `USER@HOST`, too.
pub(super) fn hosts(word: &OsStr) -> Vec<CompletionCandidate> {
    let Some(word) = word.to_str() else { return Vec::new() };
    let user = word.rsplit_once('@').map_or("", |(user, _)| user);
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    let fits = |host: &String| host.starts_with(word);
    known_hosts()
        .into_iter()
        .map(|host| format!("{user}{host}"))
        .filter(fits)
        .map(CompletionCandidate::new)
        .collect()
}

fn known_hosts() -> BTreeSet<String> {
    let Ok(environment) = Environment::capture() else { return BTreeSet::new() };
    let mut hosts = aliases(&environment.home);
    hosts.extend(running(&environment));
    // A mistake in the file is told by whoever needs it.
    let file = File::load(&environment).unwrap_or_default();
    hosts.extend(file.named_hosts().map(str::to_owned));
    hosts
}

/// Returns the same, and the lists of them.
pub(super) fn hosts_and_lists(word: &OsStr) -> Vec<CompletionCandidate> {
    let mut candidates = hosts(word);
    let Ok(environment) = Environment::capture() else { return candidates };
    let file = File::load(&environment).unwrap_or_default();
    let lists = file.lists().map(|list| format!("@{list}"));
    let fits = |list: &String| word.to_str().is_some_and(|word| list.starts_with(word));
    candidates.extend(lists.filter(fits).map(CompletionCandidate::new));
    candidates
}

/// Returns the hosts that tunnels lead to.
pub(super) fn tunnels() -> Vec<CompletionCandidate> {
    let Ok(environment) = Environment::capture() else { return Vec::new() };
    running(&environment).into_iter().map(CompletionCandidate::new).collect()
}

fn running(environment: &Environment) -> Vec<String> {
    let directories = environment.runtime_directories();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let found = runtime.block_on(async { tokio::time::timeout(TAB, client::find(&directories)).await });
    let plain = |host: &String| host.chars().all(|c| c.is_ascii_graphic());
    found.unwrap_or_default().tunnels.into_iter().map(|(_, report)| report.host).filter(plain).collect()
}

/// Returns the profiles that may be served.
pub(super) fn profiles() -> Vec<CompletionCandidate> {
    let Ok(environment) = Environment::capture() else { return Vec::new() };
    let names = environment.aws_profiles().map(|profiles| profiles.names()).unwrap_or_default();
    names.iter().map(|name| CompletionCandidate::new(name.as_str())).collect()
}

/// What a person waits for after pressing Tab.
const TAB: Duration = Duration::from_millis(500);
