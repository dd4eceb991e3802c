//! One refresh, as a task of its own: AWS may take the old refresh token back with its answer, so whoever asked and
//! left must not take the answer along. The task writes the new token down; the session owns it and joins it.

use std::{sync::Arc, time::SystemTime};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::JoinSet;

use super::{
    client::{Clients, chain},
    oidc,
    session::blocking,
    token::{Registration, SsoToken, TokenFile},
};
use crate::{clock::Clock, private_fs};

/// What a refresh starts from.
pub(super) struct Refresh {
    pub(super) clients: Arc<Clients>,
    pub(super) clock: Clock,
    pub(super) file: TokenFile,
    pub(super) old: Arc<SsoToken>,
    /// Held until the new token is in the file; an error where no lock can be had, as in a read-only HOME.
    pub(super) lock: Result<private_fs::Lock, private_fs::Error>,
}

/// A new token.
pub(super) struct Refreshed {
    pub(super) token: Arc<SsoToken>,
    /// Whether it is in the file.
    pub(super) saved: bool,
}

/// The refresh that is under way, if there is one. Whoever leaves [`Self::join`] finds it here again.
#[derive(Default)]
pub(super) struct Refreshing(JoinSet<Result<Refreshed, oidc::Error>>);

impl Refreshing {
    /// Starts one.
    pub(super) fn start(&mut self, refresh: Refresh) {
        self.0.spawn(refresh.run());
    }

    /// Returns what came of the one that is under way; `None` when none is.
    pub(super) async fn join(&mut self) -> Option<Result<Refreshed, oidc::Error>> {
        match self.0.join_next().await? {
            Ok(done) => Some(done),
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody aborts it but the end of the runtime, which never polls us again.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl Refresh {
    async fn run(self) -> Result<Refreshed, oidc::Error> {
        let Self { clients, clock, file, old, lock } = self;
        let (Some(refresh_token), Some(registration)) = (&old.refresh_token, &old.registration) else {
            // Looked at before; there is nothing to send.
            return Err(oidc::Error::Expired);
        };
        let issued = oidc::refresh(&clients, registration, refresh_token).await?;
        let token = Arc::new(successor(&old, issued, clock.now()));
        let saved = save(&file, &token).await;
        drop(lock);
        Ok(Refreshed { token, saved })
    }
}

fn successor(old: &SsoToken, issued: oidc::Issued, now: SystemTime) -> SsoToken {
    let copy = |secret: &SecretString| SecretString::from(secret.expose_secret().to_owned());
    SsoToken {
        expires_at: issued.expires_at(now),
        access_token: issued.access_token,
        // An answer without one means that the old one stays good.
        refresh_token: issued.refresh_token.or_else(|| old.refresh_token.as_ref().map(copy)),
        registration: old.registration.as_ref().map(|registration| Registration {
            client_id: registration.client_id.clone(),
            client_secret: copy(&registration.client_secret),
            expires_at: registration.expires_at,
        }),
        rest: old.rest.clone(),
    }
}

/// Writes the token down; `false` when it stays in memory only.
async fn save(file: &TokenFile, token: &Arc<SsoToken>) -> bool {
    let (file, token) = (file.clone(), Arc::clone(token));
    match blocking(move || file.store(&token)).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(
                error = %chain(&error),
                "could not save the SSO token; it is kept in memory until broker ends"
            );
            false
        }
    }
}
