//! `broker logout`: end a sign-in, here and at AWS, and leave the others alone.

use std::{process::ExitCode, sync::Arc};

use super::{
    failure::{Failure, Kind},
    login::{self, Which},
    stop_signal,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    aws::{
        kept::Kept,
        session::{Logout, SsoSessionState},
    },
    clock::Clock,
    config::Environment,
};

/// Sign out of IAM Identity Center.
///
/// Ends the session at AWS and removes its token from ~/.aws/sso/cache, and what is kept of its roles on this machine;
/// other sessions stay. Role credentials that were handed out before live on until they expire, and running tunnels
/// get no new ones before the next login.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  broker logout\n  broker logout --sso-session corp")]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
}

/// Runs `broker logout`.
pub(super) async fn run(
    arguments: &Arguments,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let session = login::session(&arguments.which, environment).map_err(super::connect::usage)?;
    let endpoints = environment.endpoints().map_err(|e| super::connect::usage(e.into()))?;
    let subject = session.to_string();
    let kept = Kept::new(&environment.home, &environment.session_directories());
    let roles = environment.aws_profiles().map(|profiles| profiles.roles_of(&session)).unwrap_or_default();
    let forgotten = kept.forget(&session, &roles);
    let state = SsoSessionState::new(session, &environment.home, &endpoints, Clock::system());
    let ended = tokio::select! {
        ended = with_ticks(terminal, state.logout()) => ended,
        _ = stop => return Err(Failure::new(Kind::Interrupted, "interrupted")),
    };
    let ended = ended.map_err(|e| {
        let hint = e.hint();
        Failure::new(Kind::Failed, e).with_hint(hint)
    })?;
    if let Err(error) = forgotten {
        let text = crate::causes::chain(&error);
        terminal.warning(&format!(
            "role credentials of {subject} stay on this machine until they expire: {text}"
        ));
    }
    match ended {
        Logout::Done => terminal.notice(&format!("signed out of {subject}")),
        Logout::NobodyWasLoggedIn => terminal.notice(&format!("nobody was signed in to {subject}")),
        Logout::OnlyHere(error) => terminal.warning(&format!(
            "the token of {subject} is removed from this machine, but AWS could not be told, so that the session \
             there lives on until it expires: {}",
            crate::causes::chain(&error)
        )),
    }
    Ok(ExitCode::SUCCESS)
}
