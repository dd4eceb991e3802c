//! `broker login`: sign in to IAM Identity Center, so that tunnels and the AWS CLI have a token.

use std::{process::ExitCode, sync::Arc};

use clap::Args;

use super::{
    failure::{Failure, Kind},
    stop_signal,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    aws::{login::LoginMethod, profile::SsoSession, session::SsoSessionState},
    clock::Clock,
    config::{
        self, Environment,
        whose::{self, Wanted},
    },
    tunnel::{Event, Step},
};

/// Sign in to IAM Identity Center.
///
/// The token goes to ~/.aws/sso/cache, where the AWS CLI and the SDKs look for it too; `broker logout` removes it.
/// Tunnels that wait for a login go on by themselves.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  broker login\n  broker login -p deploy --device-code")]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,

    /// Show a code to type on another device instead of opening a browser here
    #[arg(long)]
    device_code: bool,

    /// Keep the token in the keyring of the desktop, out of reach of the AWS CLI, until `broker logout`
    #[cfg(feature = "keyring")]
    #[arg(long)]
    keyring: bool,
}

/// Which session of Identity Center is meant.
#[derive(Args, Debug)]
pub(super) struct Which {
    /// The session of this profile (default: AWS_PROFILE, then the default or only profile)
    #[arg(short, long, value_name = "NAME")]
    profile: Option<String>,

    /// This session of ~/.aws/config
    #[arg(long, value_name = "NAME", conflicts_with = "profile")]
    sso_session: Option<String>,
}

/// Runs `broker login`.
pub(super) async fn run(
    arguments: &Arguments,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let session = session(&arguments.which, environment).map_err(super::connect::usage)?;
    let endpoints = environment.endpoints().map_err(|e| super::connect::usage(e.into()))?;
    let subject = session.to_string();
    let state = SsoSessionState::new(session, &environment.home, &endpoints, Clock::system());
    let method = method(arguments.device_code, terminal);
    terminal.event(&Event::Started { step: Step::SignIn, subject: subject.clone() });
    #[cfg(feature = "keyring")]
    let keyring = arguments.keyring;
    #[cfg(not(feature = "keyring"))]
    let keyring = false;
    let login = with_ticks(terminal, state.login(terminal.as_ref(), method, keyring));
    tokio::select! {
        done = login => done.map_err(super::identity::failure)?,
        _ = stop => return Err(Failure::new(Kind::Interrupted, "interrupted")),
    }
    terminal.event(&Event::Done { step: Step::SignIn, subject });
    Ok(ExitCode::SUCCESS)
}

/// Returns the session that is meant.
pub(super) fn session(which: &Which, environment: &Environment) -> Result<SsoSession, config::Error> {
    if let Some(name) = &which.sso_session {
        return Ok(environment.aws_profiles()?.sso_session(name)?);
    }
    let wanted = Wanted { profiles: which.profile.iter().cloned().collect(), ..Wanted::default() };
    let profiles = whose::profiles(&wanted, environment, &mut Vec::new())?;
    // One name, or the one that is meant without a name: there is always a first.
    let Some(profile) = profiles.first() else {
        return Err(config::Error::NoProfile { path: environment.aws_files().config, known: Vec::new() });
    };
    profile
        .source
        .sso_session()
        .cloned()
        .ok_or_else(|| config::Error::NoSession { profile: profile.name.to_string() })
}

/// Returns how to sign in: in a browser here if there can be one.
pub(super) fn method(device_code: bool, terminal: &Terminal) -> LoginMethod {
    if device_code || !terminal.has_browser() { LoginMethod::DeviceCode } else { LoginMethod::Browser }
}
