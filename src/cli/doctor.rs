//! `broker doctor`: what works, what does not, and the line that fixes it.

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde_json::json;

use super::{
    Output, completions,
    failure::{Failure, Kind},
    host::{HowToReach, interrupted, visit},
    stop_signal,
    terminal::Terminal,
};
use crate::{
    aws::{
        profile::SsoSession,
        token::{Loaded, TokenFile, TokenState},
    },
    clock::{self, Clock},
    config::Environment,
    tunnel::{Check, Level},
};

/// Look at what works, what does not, and which line fixes it.
///
/// With a host: the connection, what its sshd forwards, what endangers credentials there, and what brokers left. It
/// changes nothing there and needs no AWS login. Without one: the configuration and logins of this machine. Ends with
/// 0 if every line says ok, and with 1 otherwise.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  broker doctor\n  broker doctor ada@bastion\n  broker doctor bastion --json"
)]
pub(super) struct Arguments {
    /// The host to look at: [USER@]HOST[:PORT], ssh://[USER@]HOST[:PORT], or an alias from ssh_config
    #[arg(value_name = "[USER@]HOST[:PORT]", add = ArgValueCompleter::new(completions::hosts))]
    host: Option<String>,

    /// Print one JSON object per check
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(super) reach: HowToReach,
}

/// Runs `broker doctor`.
pub(super) async fn run(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let clock = Clock::system();
    let mut checks = own_file(environment);
    checks.extend(match &arguments.host {
        None => here(environment, &clock),
        Some(host) => {
            let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
            let target = arguments.reach.target(host, output, environment, terminal)?;
            let work = async {
                let visit = match visit(&target, terminal).await {
                    Ok(visit) => visit,
                    Err(failure) => return vec![unreachable(&failure)],
                };
                let mut checks = vec![Check::ok("connection", format!("logged in to {host}"))];
                checks.extend(visit.examine(&clock).await);
                visit.close().await;
                checks
            };
            tokio::select! {
                checks = Box::pin(work) => checks,
                _ = stop => return Err(interrupted()),
            }
        }
    });
    for check in &checks {
        terminal.data(line(check, arguments.json).as_bytes()).map_err(|e| Failure::new(Kind::Failed, e))?;
    }
    let fine = checks.iter().all(|check| check.level == Level::Ok);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(Kind::Failed.code()) })
}

fn line(check: &Check, as_json: bool) -> String {
    if as_json {
        return format!("{}\n", json!(check));
    }
    let level = match check.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Problem => "problem",
    };
    let fix = check.fix.as_ref().map(|fix| format!("\n{:8} fix: {fix}", "")).unwrap_or_default();
    format!("{level:8} {}{fix}\n", check.message)
}

/// Returns what keeps us from the host, with everything that is behind it.
fn unreachable(failure: &Failure) -> Check {
    let causes: String = failure.causes().iter().map(|cause| format!(": {cause}")).collect();
    // The helper comes behind a login that worked.
    let name = if failure.kind == Kind::ForwardRefused { "helper" } else { "connection" };
    Check::found(name, Level::Problem, format!("{failure}{causes}"), failure.hint.clone())
}

/// Looks at our own configuration file, where there is one.
fn own_file(environment: &Environment) -> Vec<Check> {
    const NAME: &str = "config-file";
    let path = environment.config_file();
    match environment.file_mistake() {
        Some(mistake) => {
            let message = format!("{}; nothing of that file counts", crate::causes::chain(mistake));
            vec![Check::found(NAME, Level::Problem, message, mistake.hint())]
        }
        None if environment.file().is_empty() => Vec::new(),
        None => vec![Check::ok(NAME, format!("`{}` is understood", path.display()))],
    }
}

/// Looks at this machine.
fn here(environment: &Environment, clock: &Clock) -> Vec<Check> {
    let mut checks = Vec::new();
    let files = environment.aws_files();
    let path = files.config.display().to_string();
    let mut sessions: Vec<SsoSession> = Vec::new();
    match environment.aws_profiles() {
        Err(error) => checks.push(Check::found("config", Level::Problem, error.to_string(), error.hint())),
        Ok(profiles) => {
            let names = profiles.names();
            let mut served = Vec::new();
            for name in &names {
                if let Ok(profile) = profiles.resolve(name) {
                    if let Some(session) = profile.source.sso_session()
                        && !sessions.contains(session)
                    {
                        sessions.push(session.clone());
                    }
                    served.push(name.to_string());
                }
            }
            checks.push(match (names.is_empty(), served.is_empty()) {
                (true, _) => Check::found(
                    "config",
                    Level::Problem,
                    format!("`{path}` has no profile"),
                    Some("aws configure sso".to_owned()),
                ),
                (false, true) => Check::found(
                    "profiles",
                    Level::Problem,
                    format!("none of the {} profiles in `{path}` can be served", names.len()),
                    Some("aws configure sso".to_owned()),
                ),
                (false, false) => {
                    Check::ok("profiles", format!("`{path}` has {} to serve", served.join(", ")))
                }
            });
        }
    }
    for session in &sessions {
        checks.push(token(session, environment, clock));
    }
    checks.push(agent(environment));
    checks.push(audit_log(environment));
    checks
}

fn token(session: &SsoSession, environment: &Environment, clock: &Clock) -> Check {
    const NAME: &str = "login";
    let login = Some("broker login".to_owned());
    match TokenFile::new(&environment.home, session).load() {
        Loaded::Missing => {
            Check::found(NAME, Level::Warning, format!("nobody is signed in to {session}"), login)
        }
        Loaded::Unusable(error) => {
            Check::found(NAME, Level::Problem, error.to_string(), error.hint().or(login))
        }
        Loaded::Found(token) => {
            let until = clock::utc(token.expires_at()).unwrap_or_default();
            match token.state(clock.now()) {
                TokenState::Valid | TokenState::RefreshSoon => {
                    Check::ok(NAME, format!("signed in to {session} until {until}"))
                }
                TokenState::Expired { refreshable: true } => {
                    Check::ok(NAME, format!("signed in to {session}; the token will be renewed without you"))
                }
                TokenState::Expired { refreshable: false } => Check::found(
                    NAME,
                    Level::Warning,
                    format!("the login to {session} ended at {until}"),
                    login,
                ),
            }
        }
    }
}

fn agent(environment: &Environment) -> Check {
    const NAME: &str = "agent";
    let Some(path) = environment.get("SSH_AUTH_SOCK") else {
        return Check::ok(NAME, "there is no agent (SSH_AUTH_SOCK); key files and passwords are used");
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Check::ok(NAME, format!("the agent at `{path}` answers")),
        Err(error) => Check::found(
            NAME,
            Level::Warning,
            format!("the agent at `{path}` does not answer: {error}"),
            Some("start it again (`eval \"$(ssh-agent)\"; ssh-add`), or unset SSH_AUTH_SOCK".to_owned()),
        ),
    }
}

/// Looks whether decisions can be logged, without making the log.
fn audit_log(environment: &Environment) -> Check {
    use rustix::fs::{Access, access};
    const NAME: &str = "audit-log";
    let log = environment.audit_log();
    // The nearest thing that is there decides.
    let mut nearest = log.as_path();
    while !nearest.exists() {
        match nearest.parent() {
            Some(parent) => nearest = parent,
            None => break,
        }
    }
    match access(nearest, Access::WRITE_OK) {
        Ok(()) => Check::ok(NAME, format!("decisions are logged to `{}`", log.display())),
        Err(error) => Check::found(
            NAME,
            Level::Warning,
            format!("decisions cannot be logged: `{}` is not writable ({error})", nearest.display()),
            Some(format!("chown -R \"$USER\" {}", nearest.display())),
        ),
    }
}
