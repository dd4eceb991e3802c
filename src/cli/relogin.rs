//! A sign-in that ends while tunnels run: one browser window for it, opened by one of the brokers of this machine.
//!
//! What has to be done is said by whoever watches the credentials; here it is only made easy. Whoever has no browser,
//! or wants none, logs in with `broker login` or `aws sso login` anywhere, and all tunnels go on.

use std::{convert::Infallible, sync::Arc};

use secrecy::SecretString;
use tokio::{sync::Notify, task::JoinSet};

use super::{identity::Identity, terminal::Terminal};
use crate::{
    aws::session::SsoSessionState,
    creds::{FetchError, grant::Grants},
    human::{BoxFuture, Human, Question},
};

/// Opens a window whenever a sign-in that these grants need has ended.
pub(super) async fn keep(identity: &Identity, grants: &Grants, terminal: &Arc<Terminal>) -> Infallible {
    if !terminal.has_browser() {
        std::future::pending::<()>().await;
    }
    let mut changes = grants.changes();
    let mut windows = JoinSet::new();
    loop {
        let dead = |error: Arc<FetchError>| matches!(*error, FetchError::LoginNeeded { .. });
        if grants.list().iter().any(|grant| grant.status().trouble.is_some_and(dead)) {
            // Sessions that are well, or have their window, have nothing to do here and end at once.
            for session in identity.sessions() {
                windows.spawn(window(session, Arc::clone(terminal)));
            }
        }
        tokio::select! {
            // The sender lives as long as the grants do.
            _ = changes.changed() => {}
            Some(ended) = windows.join_next() => {
                if let Err(error) = ended && let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
                // Wait for news, or those that end at once would be started again and again.
                drop(changes.changed().await);
            }
        }
    }
}

async fn window(session: Arc<SsoSessionState>, terminal: Arc<Terminal>) {
    let person = Person { terminal, nobody: Notify::new() };
    let outcome = tokio::select! {
        outcome = session.login_again(&person) => outcome,
        () = person.nobody.notified() => return,
    };
    if let Err(error) = outcome {
        let causes = crate::causes::chain(&error);
        person.terminal.warning(&format!("{causes}; tunnels that need it wait for a login, from wherever"));
    }
}

/// A person who works on the host's terminal at the moment: nothing is asked there, and what is said is a line of ours.
struct Person {
    terminal: Arc<Terminal>,
    /// There is no window after all.
    nobody: Notify,
}

impl Human for Person {
    fn ask(&self, _: Question) -> BoxFuture<'_, Option<SecretString>> {
        Box::pin(async { None })
    }

    fn tell(&self, text: &str) {
        self.terminal.notice(text);
    }

    fn browse(&self, url: &str) -> bool {
        let opened = self.terminal.browse(url);
        if !opened {
            self.nobody.notify_one();
        }
        opened
    }
}
