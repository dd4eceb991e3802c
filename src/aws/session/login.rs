//! Who has a person log in, when several want to: one at a time in this process and on this machine.

use std::sync::Arc;

use tokio::time::sleep;

use super::{IdentityError, LOOK, LoginPolicy, Memory, NoToken, SsoSessionState, Why, blocking};
use crate::{
    aws::{
        client::chain,
        login::{self, LoginMethod},
        token::Stored,
        window::Right,
    },
    human::Human,
};

impl SsoSessionState {
    /// Makes sure that there is a token: the one at hand, a refreshed one, or one that a person gets by logging in.
    pub(crate) async fn ensure(&self, policy: LoginPolicy<'_>) -> Result<(), IdentityError> {
        let Err(no_token) = self.token().await else { return Ok(()) };
        match (no_token, policy) {
            (NoToken::LoginNeeded(_), LoginPolicy::With { human, method }) => {
                let _one_at_a_time = self.login.lock().await;
                let Some(right) = self.turn(human).await else { return Ok(()) };
                self.login_now(human, method, right, false).await
            }
            (NoToken::LoginNeeded(why), LoginPolicy::Never) => {
                Err(IdentityError::LoginNeeded { sentence: self.login_needed(&why, None) })
            }
            (NoToken::Transient(source), _) => {
                Err(IdentityError::Transient { sentence: self.unreachable(), source: Some(source) })
            }
        }
    }

    /// Waits until nobody else on this machine has a person log in; `None` when there is a token by then.
    async fn turn(&self, human: &dyn Human) -> Option<Right> {
        let mut told = false;
        loop {
            let right = self.right().await;
            // Perhaps whoever had it before us has logged in.
            if self.token().await.is_ok() {
                return None;
            }
            if right.is_some() {
                return right;
            }
            if !told {
                let session = &self.session;
                human.tell(&format!(
                    "another broker on this machine waits for a login to `{session}`: finish that one, or run \
                     `broker login` in another terminal"
                ));
                told = true;
            }
            sleep(LOOK).await;
        }
    }

    async fn right(&self) -> Option<Right> {
        let window = self.window.clone();
        blocking(move || window.take()).await
    }

    /// Logs in, whether or not there is a token already or somebody else is about to. `keyring` puts the token there.
    pub(crate) async fn login(
        &self,
        human: &dyn Human,
        method: LoginMethod,
        keyring: bool,
    ) -> Result<(), IdentityError> {
        let _one_at_a_time = self.login.lock().await;
        let right = self.right().await.unwrap_or_default();
        self.login_now(human, method, right, keyring).await
    }

    /// Has a person log in again because the sign-in has ended: in one browser window, whichever of the brokers on this
    /// machine opens it, and once. Ends as soon as anybody has logged in; `false` when there is nothing to open.
    pub(crate) async fn login_again(&self, human: &dyn Human) -> Result<bool, IdentityError> {
        let Ok(_one_at_a_time) = self.login.try_lock() else { return Ok(false) };
        // Nobody is asked to come back who has never been here, or who has logged out.
        let Err(NoToken::LoginNeeded(Why::Expired | Why::Ended)) = self.token().await else {
            return Ok(false);
        };
        let Some(right) = self.right().await else { return Ok(false) };
        // Perhaps whoever had the right before us has logged in.
        let Err(NoToken::LoginNeeded(_)) = self.token().await else { return Ok(false) };
        let Some(stamp) = self.seen() else { return Ok(false) };
        let (window, now) = (self.window.clone(), self.clock.now());
        if !blocking(move || !window.was_open(stamp, now) && window.note(stamp, now)).await {
            return Ok(false);
        }
        let elsewhere = async {
            loop {
                self.revived().await;
                if self.token().await.is_ok() {
                    return;
                }
            }
        };
        tokio::select! {
            done = self.login_now(human, LoginMethod::Browser, right, false) => done?,
            () = elsewhere => {}
        }
        Ok(true)
    }

    async fn login_now(
        &self,
        human: &dyn Human,
        method: LoginMethod,
        right: Right,
        keyring: bool,
    ) -> Result<(), IdentityError> {
        let token = login::login(&self.session, method, &self.home, &self.clients, &self.clock, human)
            .await
            .map_err(|source| IdentityError::Login { session: self.session.to_string(), source })?;
        let token = Arc::new(token);
        let mut memory = self.memory().await;
        let lock = self.lock_file().await;
        let (file, stored) = (self.file.clone(), Arc::clone(&token));
        let stored = blocking(move || file.store_login(&stored, keyring)).await;
        *memory = Memory { unsaved: stored.is_err(), token: Some(token), ..Memory::default() };
        drop((lock, right));
        let session = &self.session;
        match stored {
            Ok(Stored::File) => {}
            Ok(Stored::Keyring) => human.tell(&format!("the token of `{session}` is in the keyring")),
            Ok(Stored::FileInstead(error)) => human.tell(&format!(
                "the token of `{session}` is in `{}`, as without a keyring: {error}",
                self.file.path().display()
            )),
            Err(error) => tracing::warn!(
                error = %chain(&error),
                "could not save the SSO token; it is kept in memory until broker ends"
            ),
        }
        Ok(())
    }
}
