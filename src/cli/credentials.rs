//! `broker credentials`: one set of role credentials for this machine.

use std::{
    process::ExitCode,
    slice,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use super::{
    Output, SETTLING,
    failure::{Failure, Kind},
    identity::{self, Identity, Login, Whose},
    picker, stop_signal,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    aws::{
        client::Endpoints,
        kept::Kept,
        profile::{Profile, SsoRole},
    },
    clock::{self, Clock},
    config::{Environment, whose},
    creds::{FetchError, RoleSource, freshness, secret::RoleCredentials},
    remote::exports::{self, Shell},
    serve,
};

/// Print one set of role credentials, for this machine.
///
/// As JSON it is what `credential_process` in ~/.aws/config wants, so that every SDK here can use whatever broker can;
/// with --format it is exports for a shell. Only temporary credentials are printed: long-lived keys become a
/// session of an hour.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  broker credentials -p deploy
  source <(broker credentials -p deploy --format bash)

In a profile of ~/.aws/config, for SDKs:
  credential_process = /usr/local/bin/broker credentials --batch -p deploy")]
pub(super) struct Arguments {
    #[command(flatten)]
    whose: Whose,

    /// What to print: JSON for credential_process, or exports in the language of a shell
    #[arg(long, value_name = "FORMAT", default_value = "process")]
    format: Format,

    /// Fail unless they live at least this long, such as 30m
    #[arg(long, value_name = "TIME", value_parser = life)]
    min_life: Option<Duration>,

    /// Sign in with a code on another device instead of a browser here
    #[arg(long)]
    device_code: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object, as credential_process has it
    Process,
    /// POSIX sh, also for bash, zsh, dash, ksh and ash
    #[value(alias = "bash", alias = "zsh")]
    Sh,
    /// fish
    Fish,
    /// csh and tcsh
    #[value(alias = "tcsh")]
    Csh,
    /// PowerShell 5.1 and 7
    #[value(name = "powershell", alias = "pwsh")]
    PowerShell,
    /// cmd.exe, as a batch file to `call`
    Cmd,
    /// {"set":{NAME:VALUE},"unset":[NAME]}
    Json,
    /// NAME=VALUE lines
    #[value(alias = "env")]
    Dotenv,
}

impl Format {
    fn shell(self) -> Option<Shell> {
        Some(match self {
            Self::Process => return None,
            Self::Sh => Shell::Sh,
            Self::Fish => Shell::Fish,
            Self::Csh => Shell::Csh,
            Self::PowerShell => Shell::PowerShell,
            Self::Cmd => Shell::Cmd,
            Self::Json => Shell::Json,
            Self::Dotenv => Shell::Dotenv,
        })
    }
}

fn life(text: &str) -> Result<Duration, String> {
    let seconds = whose::parse_seconds(text).ok_or("not a length of time (such as `30m`)")?;
    Ok(Duration::from_secs(seconds.into()))
}

/// They end too soon for what they are wanted for.
#[derive(Debug, thiserror::Error)]
#[error("the credentials of profile `{profile}` live {left} s more, which is less than {wanted} s")]
struct TooShort {
    profile: String,
    left: u64,
    wanted: u64,
}

/// Runs `broker credentials`.
pub(super) async fn run(
    mut arguments: Arguments,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    picker::choose_one(&mut arguments.whose, &|_| true, output, environment, terminal).await?;
    let clock = Clock::system();
    let wanted = arguments.whose.wanted(&environment.host_name);
    if let [_, second, ..] = wanted.profiles.as_slice() {
        let error = format!("`{second}` is a second profile, and one set of credentials is of one profile");
        return Err(Failure::new(Kind::Usage, error));
    }
    let mut notices = Vec::new();
    let profiles = whose::profiles(&wanted, environment, &mut notices).map_err(super::connect::usage)?;
    let endpoints = environment.endpoints().map_err(|e| super::connect::usage(e.into()))?;
    for notice in &notices {
        terminal.notice(notice);
    }
    let Some(profile) = profiles.first() else {
        return Err(Failure::new(Kind::Failed, "no profile"));
    };
    let shelf = Shelf::new(profile, environment, &endpoints);
    let left = |credentials: &RoleCredentials| {
        credentials.expires_at.duration_since(clock.now()).unwrap_or_default()
    };
    let least = arguments.min_life.unwrap_or_default();
    let kept = shelf.find(clock.now()).filter(|kept| left(kept) >= least);
    let credentials = match kept {
        // Programs that ask for credentials do so again when these have become shorter than that.
        Some(kept) if left(&kept) > freshness::REFRESH => kept,
        kept => {
            let login = Login { terminal, batch: output.batch, device_code: arguments.device_code };
            match obtain(profile, environment, &endpoints, &clock, &login).await {
                Ok(credentials) => {
                    shelf.keep(&credentials);
                    credentials
                }
                Err(failure) => match kept.filter(|_| failure.kind == Kind::Failed) {
                    Some(kept) => {
                        terminal.warning(&format!(
                            "{failure}; these, which were fetched before, live {} s more",
                            left(&kept).as_secs()
                        ));
                        kept
                    }
                    None => return Err(failure),
                },
            }
        }
    };
    let left = left(&credentials);
    if left < least {
        let profile = profile.name.to_string();
        let error = TooShort { profile, left: left.as_secs(), wanted: least.as_secs() };
        let hint = "AWS decides how long they live: the permission set's session duration, or `--duration` of a role";
        return Err(Failure::new(Kind::Failed, error).with_hint(Some(hint.to_owned())));
    }
    let text = render(arguments.format, &credentials, profile.region.as_ref())
        .ok_or_else(|| Failure::new(Kind::Failed, "AWS gave credentials whose end cannot be written"))?;
    terminal.data(text.as_bytes()).map_err(|e| Failure::new(Kind::Failed, e))?;
    Ok(ExitCode::SUCCESS)
}

/// Where credentials of one profile are kept, if it is a role of an SSO session.
struct Shelf<'a> {
    kept: Kept,
    role: Option<&'a SsoRole>,
    endpoints: Endpoints,
}

impl<'a> Shelf<'a> {
    fn new(profile: &'a Profile, environment: &Environment, endpoints: &Endpoints) -> Self {
        let kept = Kept::new(&environment.home, &environment.session_directories());
        Self { kept, role: profile.source.sso_role(), endpoints: endpoints.or(&profile.urls) }
    }

    fn find(&self, now: SystemTime) -> Option<RoleCredentials> {
        self.kept.find(self.role?, &self.endpoints, now)
    }

    fn keep(&self, credentials: &RoleCredentials) {
        let Some(role) = self.role else { return };
        // Whoever asks next has to ask AWS.
        if let Err(error) = self.kept.keep(role, &self.endpoints, credentials) {
            tracing::warn!(error = %crate::causes::chain(&error), "did not keep the role credentials");
        }
    }
}

/// Gets new credentials, with all that this may take.
async fn obtain(
    profile: &Profile,
    environment: &Environment,
    endpoints: &Endpoints,
    clock: &Clock,
    login: &Login<'_>,
) -> Result<RoleCredentials, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let identity = Identity::new(slice::from_ref(profile), environment, endpoints, clock);
    let source = identity.source(profile);
    let fetched = async {
        identity.sign_in(login).await?;
        match fetch(&*source).await {
            // The token looked valid, but AWS had ended the session.
            Err(FetchError::LoginNeeded { .. }) if !login.batch => {
                identity.sign_in(login).await?;
                fetch(&*source).await
            }
            other => other,
        }
        .map_err(|error| identity::no_credentials(profile.name.as_str(), Arc::new(error), login.batch))
    };
    tokio::select! {
        fetched = with_ticks(login.terminal, Box::pin(fetched)) => fetched,
        _ = stop => {
            drop(tokio::time::timeout(SETTLING, identity.settle()).await);
            Err(Failure::new(Kind::Interrupted, "interrupted"))
        }
    }
}

/// A source has its own deadlines for each call; this one holds even if one of them is wrong about that.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

async fn fetch(source: &dyn RoleSource) -> Result<RoleCredentials, FetchError> {
    tokio::time::timeout(FETCH_TIMEOUT, source.fetch()).await.unwrap_or_else(|_| {
        Err(FetchError::Transient {
            sentence: format!("there was no answer within {} seconds", FETCH_TIMEOUT.as_secs()),
            source: None,
        })
    })
}

fn render(
    format: Format,
    credentials: &RoleCredentials,
    region: Option<&crate::names::Region>,
) -> Option<Zeroizing<String>> {
    match format.shell() {
        None => serve::reply::credentials_text(credentials),
        Some(shell) => {
            let until = clock::utc(credentials.expires_at)?;
            Some(shell.render(&exports::Environment::of_credentials(
                credentials_of(credentials),
                &until,
                region,
            )))
        }
    }
}

fn credentials_of(credentials: &RoleCredentials) -> exports::Credentials<'_> {
    exports::Credentials {
        access_key_id: &credentials.access_key_id,
        secret_access_key: &credentials.secret_access_key,
        session_token: &credentials.session_token,
    }
}
