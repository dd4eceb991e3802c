//! One SSO session, shared by all its profiles: whose token it is, when it is refreshed, when a person must log in.
//!
//! [`SsoSession`] is configuration; [`SsoSessionState`] owns the token. Every use of the token goes through
//! [`SsoSessionState::token`]: what is in memory while it is good, else the file, else one refresh at a time, in this
//! process by a mutex and across processes by the lock file. Whoever logs in, with `broker` or with `aws`, puts the
//! new token into the file, and the next request finds it there.

mod login;
mod source;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};

use super::{
    client::{Clients, Endpoints, chain},
    login::{LoginError, LoginMethod, vanity},
    oidc, portal,
    profile::{SessionKey, SsoSession},
    refreshing::{Refresh, Refreshed, Refreshing},
    token::{self, Loaded, SsoToken, Stamp, TokenFile, TokenState},
    window::Window,
};
use crate::{clock::Clock, creds::FetchError, human::Human, names::ProfileName, private_fs};

pub(crate) use source::SsoSource;

/// While a token is still good, a refresh that failed is not tried again sooner (botocore's figure).
const REFRESH_PAUSE: Duration = Duration::from_secs(60);

/// Soon enough that a person who logged in sees all tunnels work again; one look is one `stat` of a small file.
const LOOK: Duration = Duration::from_secs(1);

/// The live side of one SSO session.
pub(crate) struct SsoSessionState {
    session: SsoSession,
    file: TokenFile,
    home: PathBuf,
    clients: Arc<Clients>,
    /// Those of the region that the last token was from; see [`Self::clients_of`].
    there: std::sync::Mutex<Arc<Clients>>,
    clock: Clock,
    memory: Mutex<Memory>,
    /// Held while a person logs in, so that several tunnels open one browser window.
    login: Mutex<()>,
    window: Window,
    /// What the file was when it was looked at last.
    seen: std::sync::Mutex<Option<Stamp>>,
}

#[derive(Default)]
struct Memory {
    token: Option<Arc<SsoToken>>,
    /// The token could not be written: what is in the file is older.
    unsaved: bool,
    tried_at: Option<SystemTime>,
    /// AWS refused these: asking again is useless until the file holds others.
    dead_access: Option<Digest>,
    dead_refresh: Option<Digest>,
    refreshing: Refreshing,
}

/// Tells secrets apart without keeping them.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Digest([u8; 32]);

impl Digest {
    fn of(secret: &SecretString) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.expose_secret().as_bytes());
        Self(digest.as_ref().try_into().unwrap_or_default())
    }
}

/// Whether a person may be asked to log in.
pub(crate) enum LoginPolicy<'a> {
    /// `--batch`, or nobody there.
    Never,
    With {
        human: &'a dyn Human,
        method: LoginMethod,
    },
}

/// Why there is no identity, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A person has to log in.
    #[error("{sentence}")]
    LoginNeeded { sentence: String },
    /// A person tried to log in.
    #[error("could not log in to `{session}`")]
    Login {
        session: String,
        #[source]
        source: LoginError,
    },
    /// Worth another try after a while.
    #[error("{sentence}")]
    Transient {
        sentence: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A device has to be read, and nobody is there.
    #[error("profile `{profile}` needs a code of the MFA device `{device}`, and nobody can be asked for it")]
    CodeNeeded { profile: String, device: String },
    /// No code was accepted.
    #[error("no code of the MFA device `{device}` was accepted")]
    WrongCodes { device: String },
    /// A step on the way failed while a person was asked for a code.
    #[error(transparent)]
    Fetch(FetchError),
}

impl IdentityError {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Login { source, .. } => source.hint(),
            // The sentence names the command.
            Self::LoginNeeded { .. } => Some(WITHOUT_BATCH.to_owned()),
            Self::Transient { .. } => Some("check the network, then try again".to_owned()),
            Self::CodeNeeded { .. } => Some(
                "start this on a terminal and without `--batch`, or use credentials that need no code"
                    .to_owned(),
            ),
            Self::WrongCodes { .. } => Some("wait for the device's next code, and try again".to_owned()),
            Self::Fetch(_) => None,
        }
    }
}

/// The other way to a login.
pub(crate) const WITHOUT_BATCH: &str = "or start this without `--batch`, which lets you log in on the way";

/// What came of a logout.
#[derive(Debug)]
pub(crate) enum Logout {
    Done,
    NobodyWasLoggedIn,
    /// The token is gone from this machine, but AWS could not be told.
    OnlyHere(portal::Error),
}

/// Why there is no usable token.
#[derive(Debug)]
enum NoToken {
    LoginNeeded(Why),
    Transient(Box<dyn std::error::Error + Send + Sync>),
}

/// Why a person has to log in.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Why {
    NeverLoggedIn,
    Expired,
    Ended,
    /// The file is there and of no use, for this reason.
    UnusableFile(String),
}

impl SsoSessionState {
    /// Prepares the session whose token file is under `home`; touches neither disk nor network.
    pub(crate) fn new(session: SsoSession, home: &Path, endpoints: &Endpoints, clock: Clock) -> Self {
        let clients = Arc::new(Clients::new(session.region.clone(), endpoints.clone()));
        Self {
            file: TokenFile::new(home, &session),
            home: home.to_owned(),
            window: Window::new(home, &session),
            seen: std::sync::Mutex::default(),
            there: std::sync::Mutex::new(Arc::clone(&clients)),
            clients,
            clock,
            memory: Mutex::default(),
            login: Mutex::default(),
            session,
        }
    }

    /// Returns which session this is.
    pub(crate) fn session(&self) -> &SsoSession {
        &self.session
    }

    /// Returns the clients of the Identity Center that issued a token. A start URL in a domain of one's own may lead to
    /// another region than the configured one, and to another one at every login.
    pub(super) fn clients_of(&self, token: &SsoToken) -> Arc<Clients> {
        if vanity::is_of_aws(&self.session.start_url) {
            return Arc::clone(&self.clients);
        }
        let Some(region) = token.region() else { return Arc::clone(&self.clients) };
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if *there.region() != region {
            *there = Arc::new(there.in_region(region));
        }
        Arc::clone(&there)
    }

    /// Returns a token, and never asks a person for one.
    pub(super) async fn any_token(&self) -> Result<Arc<SsoToken>, IdentityError> {
        self.token().await.map_err(|error| match error {
            NoToken::LoginNeeded(why) => {
                IdentityError::LoginNeeded { sentence: self.login_needed(&why, None) }
            }
            NoToken::Transient(source) => {
                IdentityError::Transient { sentence: self.unreachable(), source: Some(source) }
            }
        })
    }

    /// Says why AWS did not list what the person may have.
    pub(super) fn refused_to_list(&self, error: portal::Error) -> IdentityError {
        match error {
            portal::Error::Unauthorized => {
                IdentityError::LoginNeeded { sentence: self.login_needed(&Why::Ended, None) }
            }
            error => IdentityError::Transient {
                sentence: format!(
                    "AWS did not list the accounts and roles of the SSO session `{}`",
                    self.session
                ),
                source: Some(Box::new(error)),
            },
        }
    }

    /// Ends when the token file is not what it was when it was looked at last.
    pub(super) async fn revived(&self) {
        let seen = self.seen();
        loop {
            let file = self.file.clone();
            if blocking(move || file.stamp()).await != seen {
                return;
            }
            sleep(LOOK).await;
        }
    }

    fn seen(&self) -> Option<Stamp> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a refresh that was under way when whoever wanted it left, so that its token is not lost.
    pub(crate) async fn settle(&self) {
        drop(self.memory().await);
    }

    async fn memory(&self) -> MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock().await;
        if let Some(Ok(refreshed)) = memory.refreshing.join().await {
            memory.renewed(refreshed);
        }
        memory
    }

    /// Ends the session at AWS and removes its token from this machine, also when AWS cannot be told.
    pub(crate) async fn logout(&self) -> Result<Logout, token::Error> {
        let mut memory = self.memory().await;
        let lock = self.lock_file().await;
        let loaded = self.load().await;
        let token = match loaded {
            Loaded::Found(token) => Some(Arc::new(token)),
            Loaded::Missing | Loaded::Unusable(_) => memory.token.clone(),
        };
        *memory = Memory::default();
        let file = self.file.clone();
        blocking(move || file.remove()).await?;
        let Some(token) = token else { return Ok(Logout::NobodyWasLoggedIn) };
        let told = portal::logout(&self.clients_of(&token), &token).await;
        drop(lock);
        Ok(match told {
            Err(error @ portal::Error::Transient(_)) => Logout::OnlyHere(error),
            // What AWS does not know any more is over there, too.
            Ok(()) | Err(portal::Error::Unauthorized | portal::Error::Denied(_)) => Logout::Done,
        })
    }

    /// Returns a token that AWS should accept.
    async fn token(&self) -> Result<Arc<SsoToken>, NoToken> {
        let mut memory = self.memory().await;
        if let Some(token) = &memory.token
            && token.state(self.clock.now()) == TokenState::Valid
            && memory.is_alive(token)
        {
            return Ok(Arc::clone(token));
        }
        let (candidate, why) = self.candidate(&memory).await;
        let Some(candidate) = candidate else { return Err(NoToken::LoginNeeded(why)) };
        memory.token = Some(Arc::clone(&candidate));
        let alive = memory.is_alive(&candidate);
        match candidate.state(self.clock.now()) {
            TokenState::Valid if alive => Ok(candidate),
            TokenState::RefreshSoon if alive => {
                let now = self.clock.now();
                let tried_lately = memory
                    .tried_at
                    .is_some_and(|at| now.duration_since(at).is_ok_and(|ago| ago < REFRESH_PAUSE));
                if tried_lately {
                    return Ok(candidate);
                }
                match self.refresh(&mut memory).await {
                    Ok(token) => Ok(token),
                    Err(error) => {
                        tracing::warn!(session = %self.session, ?error, "the SSO token was not refreshed; it is still good");
                        Ok(candidate)
                    }
                }
            }
            TokenState::Expired { refreshable: false } => Err(NoToken::LoginNeeded(Why::Expired)),
            TokenState::Valid | TokenState::RefreshSoon | TokenState::Expired { refreshable: true } => {
                self.refresh(&mut memory).await
            }
        }
    }

    /// Takes note that AWS refused `token`, and returns another one if there is a way to it.
    async fn replace(&self, token: &SsoToken) -> Result<Arc<SsoToken>, NoToken> {
        self.memory().await.dead_access = Some(Digest::of(&token.access_token));
        self.token().await
    }

    /// Returns the token to go on from: the file's, unless ours is newer.
    async fn candidate(&self, memory: &Memory) -> (Option<Arc<SsoToken>>, Why) {
        let unsaved = memory.token.as_ref().filter(|_| memory.unsaved).map(Arc::clone);
        match (self.load().await, unsaved) {
            // A later login by somebody who could write the file is worth more than what we could not save.
            (Loaded::Found(token), Some(ours)) if token.expires_at() <= ours.expires_at() => {
                (Some(ours), Why::Expired)
            }
            (Loaded::Found(token), _) => (Some(Arc::new(token)), Why::Expired),
            (_, Some(ours)) => (Some(ours), Why::Expired),
            (Loaded::Missing, None) => (None, Why::NeverLoggedIn),
            (Loaded::Unusable(error), None) => {
                let why = Why::UnusableFile(error.to_string());
                tracing::warn!(
                    session = %self.session, error = %chain(&error), hint = error.hint().as_deref(),
                    "ignored an SSO token; log in again"
                );
                (None, why)
            }
        }
    }

    /// Refreshes, if nobody else has done so meanwhile.
    async fn refresh(&self, memory: &mut Memory) -> Result<Arc<SsoToken>, NoToken> {
        let lock = match self.lock_file().await {
            Err(error @ private_fs::Error::Busy { .. }) => return Err(NoToken::Transient(Box::new(error))),
            // No lock file can be made, as in a read-only HOME: then nobody else refreshes there either.
            other => other,
        };
        let (current, why) = self.candidate(memory).await;
        let Some(current) = current else { return Err(NoToken::LoginNeeded(why)) };
        let alive = memory.is_alive(&current);
        memory.token = Some(Arc::clone(&current));
        if alive && current.state(self.clock.now()) == TokenState::Valid {
            return Ok(current);
        }
        let why = if alive { Why::Expired } else { Why::Ended };
        let (Some(refresh_token), Some(registration)) = (&current.refresh_token, &current.registration)
        else {
            return Err(NoToken::LoginNeeded(why));
        };
        let digest = Digest::of(refresh_token);
        if registration.expires_at <= self.clock.now() || memory.dead_refresh == Some(digest) {
            return Err(NoToken::LoginNeeded(why));
        }
        memory.tried_at = Some(self.clock.now());
        memory.refreshing.start(Refresh {
            clients: self.clients_of(&current),
            clock: self.clock.clone(),
            file: self.file.clone(),
            old: Arc::clone(&current),
            lock,
        });
        // Whoever leaves here leaves the refresh to the next look at the memory.
        let answer = memory.refreshing.join().await.unwrap_or(Err(oidc::Error::Expired));
        let refreshed = match answer {
            Ok(refreshed) => refreshed,
            Err(oidc::Error::Transient(failure)) => return Err(NoToken::Transient(Box::new(failure))),
            Err(error @ (oidc::Error::Pending | oidc::Error::SlowDown)) => {
                return Err(NoToken::Transient(Box::new(error)));
            }
            Err(error) => {
                // Perhaps a tool that does not know our lock was faster and used the refresh token up.
                if let (Some(other), _) = self.candidate(memory).await
                    && other.access_token.expose_secret() != current.access_token.expose_secret()
                    && memory.is_alive(&other)
                    && !matches!(other.state(self.clock.now()), TokenState::Expired { .. })
                {
                    memory.token = Some(Arc::clone(&other));
                    return Ok(other);
                }
                tracing::warn!(session = %self.session, error = %chain(&error), "AWS refused to refresh the SSO token");
                memory.dead_refresh = Some(digest);
                return Err(NoToken::LoginNeeded(why));
            }
        };
        let token = Arc::clone(&refreshed.token);
        memory.renewed(refreshed);
        tracing::debug!(session = %self.session, "refreshed the SSO token");
        Ok(token)
    }

    async fn load(&self) -> Loaded {
        let file = self.file.clone();
        // In this order: what comes in between is seen again.
        let (stamp, loaded) = blocking(move || (file.stamp(), file.load())).await;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
        loaded
    }

    async fn lock_file(&self) -> Result<private_fs::Lock, private_fs::Error> {
        let file = self.file.clone();
        let lock = blocking(move || file.lock()).await;
        if let Err(error) = &lock {
            tracing::warn!(session = %self.session, %error, "could not lock the SSO token");
        }
        lock
    }

    /// Says that a person has to log in, and how.
    fn login_needed(&self, why: &Why, profile: Option<&ProfileName>) -> String {
        let session = &self.session;
        let fact = match why {
            Why::NeverLoggedIn => format!("nobody is logged in to the SSO session `{session}`"),
            Why::Expired => format!("the SSO session `{session}` expired"),
            Why::Ended => format!("the SSO session `{session}` was ended"),
            // With a profile the sentence goes to the host as well, which has no business with our paths.
            Why::UnusableFile(error) if profile.is_none() => {
                format!("the saved token of the SSO session `{session}` cannot be used ({error})")
            }
            Why::UnusableFile(_) => format!("the saved token of the SSO session `{session}` cannot be used"),
        };
        let way = match (&session.name, profile) {
            (SessionKey::Session(_), _) => {
                format!("run `broker login --sso-session {session}` on your laptop")
            }
            (SessionKey::StartUrl, Some(profile)) => {
                format!("run `broker login -p {profile}` on your laptop")
            }
            (SessionKey::StartUrl, None) => {
                "run `broker login` with a profile that uses it on your laptop".to_owned()
            }
        };
        format!("{fact}; {way}")
    }

    fn unreachable(&self) -> String {
        format!("the SSO session `{}` could not be refreshed at the moment", self.session)
    }
}

impl Memory {
    fn renewed(&mut self, refreshed: Refreshed) {
        self.unsaved = !refreshed.saved;
        self.token = Some(refreshed.token);
        self.tried_at = None;
    }

    fn is_alive(&self, token: &SsoToken) -> bool {
        self.dead_access.is_none_or(|dead| dead != Digest::of(&token.access_token))
    }
}

/// Runs file work off the runtime's only thread: a home directory on a network may stall.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels it, and that never polls us again.
            Err(_) => std::future::pending().await,
        },
    }
}
