//! One role of a session, as a source of credentials.

use std::sync::Arc;

use super::{Digest, NoToken, SsoSessionState, Why};
use crate::{
    aws::{portal, profile::SsoRole, token::SsoToken},
    creds::{FetchError, RoleSource, secret::RoleCredentials},
    human::BoxFuture,
    names::{ProfileName, Role},
};

/// The role of one profile, as a source of credentials.
pub(crate) struct SsoSource {
    profile: ProfileName,
    role: Role,
    session: Arc<SsoSessionState>,
}

impl SsoSource {
    /// Joins a profile's role with the session that it is fetched through.
    pub(crate) fn new(profile: ProfileName, role: &SsoRole, session: Arc<SsoSessionState>) -> Self {
        debug_assert_eq!(&role.session, session.session(), "a role of another session");
        Self { profile, role: role.role.clone(), session }
    }

    async fn fetch_now(&self) -> Result<RoleCredentials, FetchError> {
        let session = &self.session;
        let token = session.token().await.map_err(|error| self.no_token(error))?;
        match self.ask(&token).await {
            Err(portal::Error::Unauthorized) => {
                // Revoked, or logged out elsewhere: one other token, and no second try with that one's successor.
                let token = session.replace(&token).await.map_err(|error| self.no_token(error))?;
                match self.ask(&token).await {
                    Err(portal::Error::Unauthorized) => {
                        session.memory().await.dead_access = Some(Digest::of(&token.access_token));
                        Err(self.no_token(NoToken::LoginNeeded(Why::Ended)))
                    }
                    other => other.map_err(|error| self.refused(error)),
                }
            }
            other => other.map_err(|error| self.refused(error)),
        }
    }

    async fn ask(&self, token: &SsoToken) -> Result<RoleCredentials, portal::Error> {
        let clock = &self.session.clock;
        let clients = self.session.clients_of(token);
        portal::role_credentials(&clients, token, &self.role, || clock.now()).await
    }

    fn no_token(&self, error: NoToken) -> FetchError {
        match error {
            NoToken::LoginNeeded(why) => {
                FetchError::LoginNeeded { sentence: self.session.login_needed(&why, Some(&self.profile)) }
            }
            NoToken::Transient(source) => {
                FetchError::Transient { sentence: self.session.unreachable(), source: Some(source) }
            }
        }
    }

    fn refused(&self, error: portal::Error) -> FetchError {
        let Self { profile, role, .. } = self;
        match error {
            portal::Error::Denied(failure) => FetchError::Denied {
                sentence: format!(
                    "AWS denies role `{}` in account {} (profile `{profile}`) to you: {}",
                    role.name,
                    role.account,
                    failure.words()
                ),
            },
            // Handled before; a token that died just now is a matter for the next try.
            portal::Error::Unauthorized => self.no_token(NoToken::LoginNeeded(Why::Ended)),
            portal::Error::Transient(failure) => FetchError::Transient {
                sentence: format!("AWS gave no credentials for profile `{profile}` at the moment"),
                source: Some(Box::new(failure)),
            },
        }
    }
}

impl RoleSource for SsoSource {
    fn fetch(&self) -> BoxFuture<'_, Result<RoleCredentials, FetchError>> {
        Box::pin(self.fetch_now())
    }

    fn revived(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.session.revived())
    }
}
