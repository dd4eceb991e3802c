//! `broker profiles`: what is configured, what could be, and the lines that make the one of the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Output, SETTLING,
    failure::{Failure, Kind},
    identity,
    login::{self, Which},
    stop_signal,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    aws::{
        discover::{self, Account},
        profile::{Profiles, SessionKey, Source},
        session::{LoginPolicy, SsoSessionState},
    },
    clock::Clock,
    config::Environment,
    human::{Human as _, Question},
    names::{AccountId, Region, RoleName},
    private_fs,
};

/// List the profiles of ~/.aws/config, or everything that you may use.
///
/// With --discover, IAM Identity Center is asked for every account and role of yours. With --write as well, a profile
/// is added to ~/.aws/config for each role that has none; what is there stays as it is, byte by byte.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  broker profiles
  broker profiles --discover --filter prod
  broker profiles --discover --sso-session corp --write --region eu-west-1

To undo --write: take the sections out of ~/.aws/config again; they are at its end.")]
pub(super) struct Arguments {
    /// Ask AWS for every account and role
    #[arg(long)]
    discover: bool,

    #[command(flatten)]
    which: Which,

    /// Only what has this text in the name of its account, role or profile, or in the account's id
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Add a profile for each role that has none to ~/.aws/config, after showing what would be added
    #[arg(long, requires = "discover")]
    write: bool,

    /// Region of the profiles that --write adds
    #[arg(long, value_name = "REGION", requires = "write")]
    region: Option<Region>,
}

/// A role that may be had, and what it is called here.
struct Found<'a> {
    account: &'a Account,
    role: &'a RoleName,
    profiles: Vec<String>,
}

/// Runs `broker profiles`.
pub(super) async fn run(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let all = environment.aws_profiles().map_err(|e| super::connect::usage(e.into()))?;
    let data = if arguments.discover {
        let accounts = discovered(arguments, output, environment, terminal).await?;
        let found = found(&accounts, &all, arguments.filter.as_deref());
        if arguments.write {
            return add(arguments, output, environment, &found, &all, terminal).await;
        }
        if arguments.json { json_of(&found) } else { table_of(&found) }
    } else {
        configured(&all, arguments)
    };
    terminal.data(data.as_bytes()).map_err(|e| Failure::new(Kind::Failed, e))?;
    Ok(ExitCode::SUCCESS)
}

async fn discovered(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<Vec<Account>, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let session = login::session(&arguments.which, environment).map_err(super::connect::usage)?;
    let endpoints = environment.endpoints().map_err(|e| super::connect::usage(e.into()))?;
    let state = Arc::new(SsoSessionState::new(session, &environment.home, &endpoints, Clock::system()));
    let policy = if output.batch {
        LoginPolicy::Never
    } else {
        LoginPolicy::With { human: terminal.as_ref(), method: login::method(false, terminal) }
    };
    let work = async {
        state.ensure(policy).await.map_err(identity::failure)?;
        let progress = |done: usize, all: usize| {
            if done == all || done.is_multiple_of(PROGRESS) {
                terminal.notice(&format!("{done} of {all} accounts"));
            }
        };
        let accounts = discover::discover(&state, progress).await.map_err(identity::failure)?;
        keep_names(&accounts, environment);
        Ok(accounts)
    };
    tokio::select! {
        found = with_ticks(terminal, Box::pin(work)) => found,
        _ = stop => {
            drop(tokio::time::timeout(SETTLING, state.settle()).await);
            Err(Failure::new(Kind::Interrupted, "interrupted"))
        }
    }
}

fn names_file(environment: &Environment) -> PathBuf {
    environment.state_directory().join("accounts.json")
}

/// Keeps what accounts are called, which no configuration says, for the choice of a profile.
fn keep_names(accounts: &[Account], environment: &Environment) {
    let mut names = account_names(environment);
    names.extend(accounts.iter().map(|account| (account.id.as_str().to_owned(), account.name.clone())));
    // A comfort: without it, accounts are shown by number.
    if let Err(error) = private_fs::write(&names_file(environment), json!(names).to_string().as_bytes()) {
        tracing::debug!(%error, "could not keep the names of the accounts");
    }
}

/// Returns what accounts are called, by number, as far as it was ever seen.
pub(super) fn account_names(environment: &Environment) -> BTreeMap<String, String> {
    let bytes = private_fs::read(&names_file(environment)).ok().flatten().unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Often enough to be believed, seldom enough to be read.
const PROGRESS: usize = 50;

fn has(text: &str, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| text.to_lowercase().contains(&filter.to_lowercase()))
}

fn found<'a>(accounts: &'a [Account], all: &Profiles, filter: Option<&str>) -> Vec<Found<'a>> {
    let configured: Vec<(AccountId, RoleName, String)> = all
        .names()
        .iter()
        .filter_map(|name| match all.resolve(name).ok()?.source {
            Source::Sso(sso) => Some((sso.role.account, sso.role.name, name.to_string())),
            _ => None,
        })
        .collect();
    let of = |account: &AccountId, role: &RoleName| {
        let here = configured.iter().filter(|(a, r, _)| (a, r) == (account, role));
        here.map(|(.., name)| name.clone()).collect::<Vec<_>>()
    };
    let each = accounts.iter().flat_map(|account| {
        account.roles.iter().map(move |role| Found { account, role, profiles: of(&account.id, role) })
    });
    each.filter(|one| {
        let Account { id, name, .. } = one.account;
        has(&format!("{name} {id} {} {}", one.role, one.profiles.join(" ")), filter)
    })
    .collect()
}

fn table_of(found: &[Found<'_>]) -> String {
    let mut text = String::new();
    for Found { account, role, profiles } in found {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{}\t{role}\t{}", account.id, account.name, profiles.join(","));
    }
    text
}

fn json_of(found: &[Found<'_>]) -> String {
    let list: Vec<Value> = found
        .iter()
        .map(|Found { account, role, profiles }| {
            json!({
                "accountId": account.id.as_str(),
                "accountName": account.name,
                "emailAddress": account.email,
                "roleName": role.as_str(),
                "profiles": profiles,
            })
        })
        .collect();
    format!("{}\n", Value::from(list))
}

fn configured(all: &Profiles, arguments: &Arguments) -> String {
    let mut list = Vec::new();
    for name in all.names().iter().filter(|name| has(name.as_str(), arguments.filter.as_deref())) {
        let (kind, role, region, problem) = match all.resolve(name) {
            Ok(profile) => (
                Some(kind(&profile.source)),
                profile.source.role().map(|role| role.to_string()),
                profile.region.map(|region| region.to_string()),
                None,
            ),
            Err(error) => (None, None, None, Some(error.to_string())),
        };
        list.push((name.to_string(), kind, role, region, problem));
    }
    if arguments.json {
        let list: Vec<Value> = list
            .into_iter()
            .map(|(name, kind, role, region, problem)| {
                json!({"profile": name, "source": kind, "role": role, "region": region, "problem": problem})
            })
            .collect();
        return format!("{}\n", Value::from(list));
    }
    let mut text = String::new();
    for (name, kind, role, region, problem) in list {
        let what = problem.unwrap_or_else(|| {
            [kind.map(str::to_owned), role, region].into_iter().flatten().collect::<Vec<_>>().join("\t")
        });
        let _ = writeln!(text, "{name}\t{what}");
    }
    text
}

fn kind(source: &Source) -> &'static str {
    match source {
        Source::Sso(_) => "sso",
        Source::Keys(_) => "keys",
        Source::Process(_) => "credential_process",
        Source::WebIdentity(_) => "web identity",
        Source::Login(_) => "login_session",
        Source::Container(_) => "container",
        Source::Instance(_) => "instance",
        Source::Assumed(_) => "role",
    }
}

/// Shows what would be added, asks, and adds it.
async fn add(
    arguments: &Arguments,
    output: &Output,
    environment: &Environment,
    found: &[Found<'_>],
    all: &Profiles,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let session = login::session(&arguments.which, environment).map_err(super::connect::usage)?;
    let path = environment.aws_files().config;
    let file = |e: private_fs::Error| {
        let hint = e.hint();
        Failure::new(Kind::Failed, e).with_hint(hint)
    };
    let before = private_fs::read_config(&path).map_err(file)?.unwrap_or_default();
    let reference = match &session.name {
        SessionKey::Session(name) => format!("sso_session = {name}\n"),
        SessionKey::StartUrl => {
            format!("sso_start_url = {}\nsso_region = {}\n", session.start_url.as_str(), session.region)
        }
    };
    let region = arguments.region.as_ref().map(|region| format!("region = {region}\n")).unwrap_or_default();
    let mut taken: BTreeSet<String> = all.names().iter().map(ToString::to_string).collect();
    let mut text = String::new();
    let mut count = 0;
    for Found { account, role, .. } in found.iter().filter(|one| one.profiles.is_empty()) {
        let name = name_for(account, role, &taken);
        let id = &account.id;
        let _ = write!(
            text,
            "\n[profile {name}]\n{reference}sso_account_id = {id}\nsso_role_name = {role}\n{region}"
        );
        taken.insert(name);
        count += 1;
    }
    if count == 0 {
        terminal.notice("every role has a profile already");
        return Ok(ExitCode::SUCCESS);
    }
    if !before.is_empty() && !before.ends_with(b"\n") {
        text.insert(0, '\n');
    }
    let shown: String = text.lines().map(|line| format!("+{line}\n")).collect();
    terminal.tell(&format!("At the end of {}:\n{shown}", path.display()));
    if !output.batch {
        let question = Question { text: format!("Add these {count} profiles? [y/N] "), echo: true };
        let answer = terminal.ask(question).await;
        let yes = answer.is_some_and(|answer| {
            ["y", "yes"]
                .contains(&secrecy::ExposeSecret::expose_secret(&answer).trim().to_lowercase().as_str())
        });
        if !yes {
            terminal.notice("nothing was added");
            return Ok(ExitCode::SUCCESS);
        }
    }
    private_fs::extend(&path, &before, &text).map_err(file)?;
    terminal.notice(&format!("added {count} profiles to {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// Names a profile after account and role, in letters that need no quoting anywhere.
fn name_for(account: &Account, role: &RoleName, taken: &BTreeSet<String>) -> String {
    let plain: String = account
        .name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' })
        .collect();
    let plain = plain.trim_matches(['-', '.']).to_owned();
    let role: String = role
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' })
        .collect();
    let name = format!("{}-{role}", if plain.is_empty() { account.id.as_str() } else { &plain });
    let with_id = format!("{role}-{}", account.id);
    if taken.contains(&name) { with_id } else { name }
}
