//! The commands that steer a running tunnel from another terminal.

use std::{process::ExitCode, sync::Arc};

use clap::{Args, ValueEnum as _};
use clap_complete::ArgValueCandidates;
use serde_json::json;

use super::{
    Output, SETTLING, completions,
    connect::{ShellArgument, usage},
    failure::{Failure, Kind},
    host::interrupted,
    identity::{Identity, Login},
    stop_signal,
    terminal::Terminal,
    tunnels::{self, Running, failure},
};
use crate::{
    clock::{self, Clock},
    config::{self, Environment},
    control::{
        client::Error,
        message::{Answer, Answered, Ended, Refreshed, Request, Revoked},
    },
    printable::one_line,
    tasks::reraise,
};

/// Print the exports of a running tunnel, for another terminal on the host.
///
/// They are for the login shell of the host unless you choose another, name the token's file there, and hold no secret. Paste
/// them there, or run one command with them: `ssh HOST "$(broker env HOST); aws sts get-caller-identity"`. Ends with 1 while
/// the tunnel is not in service: not up yet, its connection lost, or ending.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker env bastion\n  broker env bastion --print-env json")]
pub(super) struct Env {
    /// The host as you typed it at connect, where it leads, or the process id of the tunnel
    #[arg(value_name = "HOST", add = ArgValueCandidates::new(completions::tunnels))]
    host: String,

    /// Language of the exports (default: the login shell of the host)
    #[arg(long, value_name = "SHELL")]
    print_env: Option<ShellArgument>,
}

/// End running tunnels cleanly, and wait until they have ended.
///
/// Each revokes its roles, removes what lies on its host and disconnects, as at Ctrl-C; what runs there loses access.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker stop bastion\n  broker stop --all")]
pub(super) struct Stop {
    /// The host as you typed it at connect, where it leads, or the process id of the tunnel
    #[arg(value_name = "HOST", required_unless_present = "all", add = ArgValueCandidates::new(completions::tunnels))]
    host: Option<String>,

    /// End every tunnel of yours
    #[arg(long, conflicts_with = "host")]
    all: bool,
}

/// Fetch new credentials of every role now.
///
/// Ends with 1 if a role got none; what is in memory is served until it expires.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker refresh\n  broker refresh bastion")]
pub(super) struct Refresh {
    /// Only those of this tunnel: the host, or the process id
    #[arg(value_name = "HOST", add = ArgValueCandidates::new(completions::tunnels))]
    host: Option<String>,
}

/// Stop serving a role on a host, and print the policy that ends what was handed out.
///
/// The role is closed at once, and what lies on the host for it is emptied; the tunnel and its other roles go on.
/// Credentials that a process has already are valid until they expire: only AWS can end them, with the policy that is
/// printed. Nothing is changed in AWS. `broker grant` serves the role again.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  broker revoke bastion -p deploy\n  broker revoke bastion > AWSRevokeOlderSessions.json"
)]
pub(super) struct Revoke {
    /// The host as you typed it at connect, where it leads, or the process id of the tunnel
    #[arg(value_name = "HOST", add = ArgValueCandidates::new(completions::tunnels))]
    host: String,

    /// Only this profile; without it every one that is served there
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(completions::profiles))]
    profile: Option<String>,
}

/// Add a role to a running tunnel, or have a profile lead to what ~/.aws/config says now.
///
/// `--profile NAME` and /slot/NAME work on the host at once, without reconnecting. Signs in first if that is needed.
/// `broker revoke` undoes it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker grant bastion -p deploy")]
pub(super) struct Grant {
    /// The host as you typed it at connect, where it leads, or the process id of the tunnel
    #[arg(value_name = "HOST", add = ArgValueCandidates::new(completions::tunnels))]
    host: String,

    /// Profile from ~/.aws/config to serve
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(completions::profiles))]
    profile: String,

    /// Sign in with a code on another device instead of a browser here
    #[arg(long)]
    device_code: bool,
}

/// Say yes to what waits under `connect --confirm`.
///
/// Without -p and --uid, to everything that waits on that host. It holds until the tunnel ends or `broker deny` changes it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker approve bastion\n  broker approve bastion -p deploy --uid 1000")]
pub(super) struct Approve {
    #[command(flatten)]
    which: Which,
}

/// Say no to what waits under `connect --confirm`, or take back a yes.
///
/// It holds until the tunnel ends or `broker approve` changes it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker deny bastion\n  broker deny bastion -p deploy --uid 1000")]
pub(super) struct Deny {
    #[command(flatten)]
    which: Which,
}

/// Which question is answered.
#[derive(Args, Debug)]
struct Which {
    /// The host as you typed it at connect, where it leads, or the process id of the tunnel
    #[arg(value_name = "HOST", add = ArgValueCandidates::new(completions::tunnels))]
    host: String,

    /// Only for this profile
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(completions::profiles))]
    profile: Option<String>,

    /// Only for this user of the host
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
}

/// Runs `broker env`.
pub(super) async fn env(
    arguments: &Env,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let name = arguments.print_env.and_then(|shell| shell.to_possible_value());
    let shell = name.map(|name| name.get_name().to_owned());
    let tunnel = one(&arguments.host, environment, terminal).await?;
    let Answer::Env { exports, notices } = ask(&tunnel, Request::Env { shell }).await? else {
        return Err(confused(&tunnel));
    };
    tell(&notices, terminal);
    terminal.data(exports.as_bytes()).map_err(not_printed)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `broker stop`.
pub(super) async fn stop(
    arguments: &Stop,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let meant = match &arguments.host {
        Some(host) => vec![one(host, environment, terminal).await?],
        None => tunnels::all(environment, |text| terminal.warning(text)).await,
    };
    if meant.is_empty() {
        terminal.notice("no tunnel runs here");
    }
    let stopping: Vec<_> = meant
        .iter()
        .map(|(peer, report)| {
            let (peer, id, host) = (peer.clone(), report.id, one_line(&report.host));
            async move { (host, peer.stop(id).await) }
        })
        .collect();
    let mut together = tokio::task::JoinSet::new();
    for stop in stopping {
        together.spawn(stop);
    }
    let mut first = None;
    while let Some(ended) = together.join_next().await {
        match reraise(ended) {
            (host, Ok(Ended { stays_until: Some(until), .. })) => terminal.notice(&format!(
                "{host}: stopped; role credentials stay there until {} at the latest, and `broker clean {host}` removes \
                 them now",
                one_line(&until)
            )),
            (host, Ok(Ended { host_clean: Some(true), .. })) => terminal.notice(&format!("{host}: stopped; no credentials were left there")),
            (host, Ok(Ended { host_clean: None, .. })) => terminal.notice(&format!("{host}: stopped before anything was there")),
            (host, Ok(Ended { host_clean: Some(false), .. })) => terminal.warning(&format!(
                "{host}: stopped, but it is not known whether the host is clean: what lay there removes itself within \
                 45 s, and `broker clean {host}` looks"
            )),
            // It was on its way out already.
            (host, Err(Error::Gone { .. })) => {
                terminal.notice(&format!("{host}: it has ended by itself"));
            }
            (host, Err(error)) => {
                let failure = failure(error);
                terminal.warning(&format!("{host}: {failure}"));
                first.get_or_insert(failure);
            }
        }
    }
    first.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Runs `broker refresh`.
pub(super) async fn refresh(
    arguments: &Refresh,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let meant = match &arguments.host {
        Some(host) => vec![one(host, environment, terminal).await?],
        None => tunnels::all(environment, |text| terminal.warning(text)).await,
    };
    if meant.is_empty() {
        return Err(Failure::new(Kind::Failed, "no tunnel runs here"));
    }
    let mut all_well = true;
    for tunnel in &meant {
        let host = one_line(&tunnel.1.host);
        let Answer::Refreshed { roles } = ask(tunnel, Request::Refresh).await? else {
            return Err(confused(tunnel));
        };
        for Refreshed { profile, expires_at, trouble } in roles {
            let profile = one_line(&profile);
            let until = expires_at.and_then(clock::utc);
            match (trouble, until) {
                (None, until) => {
                    let until = until.map(|until| format!(", valid until {until}")).unwrap_or_default();
                    terminal.notice(&format!("{host}: new credentials for `{profile}`{until}"));
                }
                (Some(trouble), until) => {
                    all_well = false;
                    let meanwhile = match until {
                        Some(until) => format!("; those in memory are served until {until}"),
                        None => "; there are none to serve".to_owned(),
                    };
                    terminal.warning(&format!("{host}: `{profile}`: {}{meanwhile}", one_line(&trouble)));
                }
            }
        }
    }
    if all_well {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(Kind::Failed, "not every role got new credentials"))
}

/// Runs `broker revoke`.
pub(super) async fn revoke(
    arguments: &Revoke,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let tunnel = one(&arguments.host, environment, terminal).await?;
    let request = Request::Revoke { profile: arguments.profile.clone() };
    let Answer::Revoked { profiles, notices } = ask(&tunnel, request).await? else {
        return Err(confused(&tunnel));
    };
    let now = Clock::system().now();
    let host = one_line(&tunnel.1.host);
    for Revoked { profile, role } in &profiles {
        let role = role.as_deref().map_or(String::new(), |role| format!(" ({})", one_line(role)));
        terminal.notice(&format!("{host} gets nothing for `{}`{role} any more", one_line(profile)));
    }
    tell(&notices, terminal);
    let roles: Vec<String> =
        profiles.iter().filter_map(|revoked| revoked.role.as_deref().map(one_line)).collect();
    let role = if roles.is_empty() { "the role".to_owned() } else { roles.join(" and ") };
    terminal.notice(&format!(
        "what was handed out before is valid until it expires; to end it, attach the policy on stdout to {role} (as \
         `AWSRevokeOlderSessions`; for a role of IAM Identity Center, as the inline policy of its permission set): it ends \
         the sessions of everybody who has that role now"
    ));
    terminal.data(policy(now).as_bytes()).map_err(not_printed)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the policy that the console's "Revoke active sessions" attaches, for sessions that began before `now`.
fn policy(now: std::time::SystemTime) -> String {
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "AWSRevokeOlderSessions",
            "Effect": "Deny",
            "Action": ["*"],
            "Resource": ["*"],
            "Condition": { "DateLessThan": { "aws:TokenIssueTime": clock::utc_millis(now) } },
        }],
    });
    format!("{policy:#}\n")
}

/// Runs `broker grant`.
pub(super) async fn grant(
    arguments: &Grant,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    // Here, where a person can be asked; the tunnel finds the login in the cache that both share.
    let profiles = config::profiles(std::slice::from_ref(&arguments.profile), environment).map_err(usage)?;
    let endpoints = environment.endpoints().map_err(|e| usage(e.into()))?;
    let identity = Identity::new(&profiles, environment, &endpoints, &Clock::system());
    let login = Login { terminal, batch: output.batch, device_code: arguments.device_code };
    let work = async {
        let tunnel = one(&arguments.host, environment, terminal).await?;
        super::with_ticks(terminal, Box::pin(identity.sign_in(&login))).await?;
        let request = Request::Grant { profile: arguments.profile.clone() };
        let Answer::Granted { profile, role, replaced, default, notices } = ask(&tunnel, request).await?
        else {
            return Err(confused(&tunnel));
        };
        let role = role.as_deref().map_or(String::new(), |role| format!(" ({})", one_line(role)));
        let (host, profile) = (one_line(&tunnel.1.host), one_line(&profile));
        let what = if replaced { "now get" } else { "can get" };
        let how = if default { String::new() } else { format!(" with `--profile {profile}`") };
        terminal.notice(&format!("AWS SDKs on {host} {what} `{profile}`{role}{how}"));
        tell(&notices, terminal);
        Ok(ExitCode::SUCCESS)
    };
    tokio::select! {
        granted = Box::pin(work) => granted,
        _ = stop => {
            drop(tokio::time::timeout(SETTLING, identity.settle()).await);
            Err(interrupted())
        }
    }
}

/// Runs `broker approve`.
pub(super) async fn approve(
    arguments: &Approve,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    confirm(&arguments.which, true, environment, terminal).await
}

/// Runs `broker deny`.
pub(super) async fn deny(
    arguments: &Deny,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    confirm(&arguments.which, false, environment, terminal).await
}

async fn confirm(
    which: &Which,
    allow: bool,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let tunnel = one(&which.host, environment, terminal).await?;
    let host = one_line(&tunnel.1.host);
    let request = Request::Confirm { allow, profile: which.profile.clone(), uid: which.uid };
    let Answer::Confirmed { answered } = ask(&tunnel, request).await? else { return Err(confused(&tunnel)) };
    if answered.is_empty() {
        let waiting = &tunnel.1.waiting;
        let hint = (!waiting.is_empty()).then(|| {
            let asked = waiting.iter().map(|asked| {
                let uid = asked.uid.map_or(String::new(), |uid| format!(" --uid {uid}"));
                format!("-p {}{uid}", one_line(&asked.profile))
            });
            format!("what waits there: {}", asked.collect::<Vec<_>>().join(", "))
        });
        return Err(Failure::new(Kind::Failed, format!("nothing like that waits on {host}")).with_hint(hint));
    }
    for Answered { profile, uid } in answered {
        let who = uid.map_or("somebody".to_owned(), |uid| format!("uid {uid}"));
        let may = if allow { "may use" } else { "may not use" };
        terminal.notice(&format!("{who} on {host} {may} `{}`", one_line(&profile)));
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(host: &str, environment: &Environment, terminal: &Terminal) -> Result<Running, Failure> {
    tunnels::one(host, environment, |text| terminal.warning(text)).await
}

async fn ask((peer, report): &Running, request: Request) -> Result<Answer, Failure> {
    peer.ask(report.id, request).await.map_err(failure)
}

fn confused((peer, _): &Running) -> Failure {
    failure(Error::Confused { pid: peer.pid })
}

fn tell(notices: &[String], terminal: &Terminal) {
    for notice in notices {
        terminal.warning(&one_line(notice));
    }
}

fn not_printed(error: std::io::Error) -> Failure {
    Failure::new(Kind::Failed, error)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_policy_is_the_one_that_the_console_attaches() {
        let policy: serde_json::Value =
            serde_json::from_str(&policy(UNIX_EPOCH + Duration::from_millis(1_767_225_600_123))).unwrap();
        assert_eq!(
            policy["Statement"][0]["Condition"]["DateLessThan"]["aws:TokenIssueTime"],
            "2026-01-01T00:00:00.123Z"
        );
        assert_eq!(policy["Statement"][0]["Effect"], "Deny");
        assert_eq!(policy["Version"], "2012-10-17");
    }
}
