//! What the person is told while a tunnel runs: only what they can do something about, and each thing once.

use std::convert::Infallible;

use super::Event;
use crate::creds::{FetchError, grant::Grants};

/// Tells `observe` what goes wrong with the credentials that are served on `host`, and when all is well again.
pub(super) async fn watch(grants: &Grants, host: &str, observe: impl Fn(Event)) -> Infallible {
    let mut changes = grants.changes();
    let mut told = Vec::new();
    loop {
        let troubles = troubles(grants);
        for message in troubles.iter().filter(|trouble| !told.contains(*trouble)) {
            observe(Event::Warning { message: message.clone() });
        }
        if troubles.is_empty() && !told.is_empty() {
            observe(Event::Notice { message: format!("processes on {host} get credentials again") });
        }
        told = troubles;
        if let Some(uid) = grants.take_thief() {
            observe(Event::Warning {
                message: format!(
                    "another user of {host} (uid {uid}) presented a token of yours and was refused: somebody may \
                     read your files there"
                ),
            });
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns what a person can do something about, each sentence once.
fn troubles(grants: &Grants) -> Vec<String> {
    let mut troubles = Vec::new();
    for status in grants.list().iter().map(|grant| grant.status()) {
        let Some(error) = status.trouble else { continue };
        let hopeless = match &*error {
            FetchError::LoginNeeded { .. } | FetchError::Denied { .. } => true,
            // It passes, and meanwhile what is in memory is served.
            FetchError::Transient { .. } => status.expires_at.is_none(),
        };
        let sentence = error.to_string();
        if hopeless && !troubles.contains(&sentence) {
            troubles.push(sentence);
        }
    }
    troubles
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use secrecy::ExposeSecret as _;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        audit::{Entry, Log},
        caller::{Caller, Uid},
        creds::{
            cache::Cache,
            fake::{Source, Then, Time},
            grant::{Grant, Route},
            secret::BearerToken,
        },
    };

    struct Lab {
        grants: Arc<Grants>,
        source: Arc<Source>,
        told: Mutex<Vec<String>>,
        token: String,
    }

    fn lab() -> Lab {
        let (log, _) = Log::to_memory();
        let (time, grants) = (Time::new(), Grants::new(log));
        grants.allow([Uid(1000)]);
        let source = Source::new(&time, Then::Lives(Duration::from_secs(60)));
        let cache = Cache::new(Arc::clone(&source) as Arc<_>, time.clock());
        let token = BearerToken::generate().unwrap();
        let sent = token.expose_for_token_file().expose_secret().to_owned();
        grants.add(Grant::new("dev".parse().unwrap(), None, None, None, token, Arc::clone(&cache))).unwrap();
        let other = BearerToken::generate().unwrap();
        grants.add(Grant::new("same-role".parse().unwrap(), None, None, None, other, cache)).unwrap();
        Lab { grants, source, told: Mutex::default(), token: sent }
    }

    impl Lab {
        async fn watched_for(&self, time: Duration) -> Vec<String> {
            let observe = |event| match event {
                Event::Warning { message } | Event::Notice { message } => {
                    self.told.lock().unwrap().push(message);
                }
                other => panic!("{other:?}"),
            };
            let running = async {
                tokio::join!(self.grants.run(std::future::pending()), watch(&self.grants, "bastion", observe))
            };
            assert!(timeout(time, running).await.is_err());
            std::mem::take(&mut *self.told.lock().unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_session_is_told_once_and_so_is_its_end() {
        let lab = lab();
        assert!(lab.watched_for(Duration::from_secs(5)).await.is_empty());
        lab.source.then(Then::Transient);
        assert!(lab.watched_for(Duration::from_secs(50)).await.is_empty(), "there are valid credentials yet");
        lab.source.then(Then::LoginNeeded);
        let calls = lab.source.calls();
        let told = lab.watched_for(Duration::from_secs(40)).await;
        // Each failure of the source has a sentence of its own; two profiles share it.
        assert_eq!(told.len(), lab.source.calls() - calls, "{told:?}");
        assert!(
            !told.is_empty() && told.iter().all(|message| message.starts_with("canned failure")),
            "{told:?}"
        );
        lab.source.then(Then::Lives(Duration::from_secs(3600)));
        let told = lab.watched_for(Duration::from_secs(40)).await;
        assert_eq!(told.last().map(String::as_str), Some("processes on bastion get credentials again"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stolen_token_is_told_with_the_thief() {
        let lab = lab();
        let thief = Caller::Uid(Uid(666));
        let refused = lab.grants.open(&Route::Default, Some(lab.token.as_bytes()), thief).unwrap_err();
        let entry = Entry { event: crate::audit::Event::TokenTheftSuspected, ..Entry::default() };
        lab.grants.note_stranger(thief.uid(), Entry { reason: Some(refused.reason()), ..entry });
        let told = lab.watched_for(Duration::from_secs(1)).await;
        assert!(told.len() == 1 && told[0].contains("uid 666"), "{told:?}");
    }
}
