//! One SSO session, shared by all its profiles: whose token it is, when it is refreshed, when a person must log in.
//!
//! [`SsoSession`] is configuration; [`SsoSessionState`] owns the token. Every use of the token goes through
//! [`SsoSessionState::token`]: what is in memory while it is good, else the file, else one refresh at a time, in this
//! process by a mutex and across processes by the lock file. Whoever logs in, with `broker` or with `aws`, puts the
//! new token into the file, and the next request finds it there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;

use super::{
    client::{Clients, Endpoints},
    login::{self, LoginError, LoginMethod},
    oidc, portal,
    profile::{SessionKey, SsoRole, SsoSession},
    token::{self, Loaded, SsoToken, TokenFile, TokenState},
};
use crate::{
    clock::Clock,
    creds::{FetchError, RoleSource, secret::RoleCredentials},
    human::{BoxFuture, Human},
    names::{ProfileName, Role},
    private_fs,
};

/// While a token is still good, a refresh that failed is not tried again sooner (botocore's figure).
const REFRESH_PAUSE: Duration = Duration::from_secs(60);

/// The live side of one SSO session.
pub(crate) struct SsoSessionState {
    session: SsoSession,
    file: TokenFile,
    home: PathBuf,
    clients: Clients,
    clock: Clock,
    memory: Mutex<Memory>,
    /// Held while a person logs in, so that several tunnels open one browser window.
    login: Mutex<()>,
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
        Self {
            file: TokenFile::new(home, &session),
            home: home.to_owned(),
            clients: Clients::new(session.region.clone(), endpoints.clone()),
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

    /// Returns the clients of this session's Identity Center.
    pub(super) fn clients(&self) -> &Clients {
        &self.clients
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

    /// Makes sure that there is a token: the one at hand, a refreshed one, or one that a person gets by logging in.
    pub(crate) async fn ensure(&self, policy: LoginPolicy<'_>) -> Result<(), IdentityError> {
        let Err(no_token) = self.token().await else { return Ok(()) };
        match (no_token, policy) {
            (NoToken::LoginNeeded(_), LoginPolicy::With { human, method }) => {
                let _one_at_a_time = self.login.lock().await;
                // Perhaps whoever held the lock before us has logged in.
                if self.token().await.is_ok() {
                    return Ok(());
                }
                self.login_now(human, method).await
            }
            (NoToken::LoginNeeded(why), LoginPolicy::Never) => {
                Err(IdentityError::LoginNeeded { sentence: self.login_needed(&why, None) })
            }
            (NoToken::Transient(source), _) => {
                Err(IdentityError::Transient { sentence: self.unreachable(), source: Some(source) })
            }
        }
    }

    /// Logs in, whether or not there is a token already.
    pub(crate) async fn login(&self, human: &dyn Human, method: LoginMethod) -> Result<(), IdentityError> {
        let _one_at_a_time = self.login.lock().await;
        self.login_now(human, method).await
    }

    async fn login_now(&self, human: &dyn Human, method: LoginMethod) -> Result<(), IdentityError> {
        let token = login::login(&self.session, method, &self.home, &self.clients, &self.clock, human)
            .await
            .map_err(|source| IdentityError::Login { session: self.session.to_string(), source })?;
        let token = Arc::new(token);
        let mut memory = self.memory.lock().await;
        let lock = self.lock_file().await;
        *memory = Memory { unsaved: !self.save(&token).await, token: Some(token), ..Memory::default() };
        drop(lock);
        Ok(())
    }

    /// Ends the session at AWS and removes its token from this machine, also when AWS cannot be told.
    pub(crate) async fn logout(&self) -> Result<Logout, private_fs::Error> {
        let mut memory = self.memory.lock().await;
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
        let told = portal::logout(&self.clients, &token).await;
        drop(lock);
        Ok(match told {
            Err(error @ portal::Error::Transient(_)) => Logout::OnlyHere(error),
            // What AWS does not know any more is over there, too.
            Ok(()) | Err(portal::Error::Unauthorized | portal::Error::Denied(_)) => Logout::Done,
        })
    }

    /// Returns a token that AWS should accept.
    async fn token(&self) -> Result<Arc<SsoToken>, NoToken> {
        let mut memory = self.memory.lock().await;
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
        self.memory.lock().await.dead_access = Some(Digest::of(&token.access_token));
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
    ///
    /// A caller that drops this future half-way may lose the new refresh token, and then a person must log in again.
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
        let answer = oidc::refresh(&self.clients, registration, refresh_token).await;
        let refreshed = match answer {
            Ok(issued) => self.refreshed(&current, issued),
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
        let refreshed = Arc::new(refreshed);
        memory.unsaved = !self.save(&refreshed).await;
        memory.token = Some(Arc::clone(&refreshed));
        memory.tried_at = None;
        drop(lock);
        tracing::debug!(session = %self.session, "refreshed the SSO token");
        Ok(refreshed)
    }

    fn refreshed(&self, old: &SsoToken, issued: oidc::Issued) -> SsoToken {
        let copy = |secret: &SecretString| SecretString::from(secret.expose_secret().to_owned());
        SsoToken {
            expires_at: issued.expires_at(self.clock.now()),
            access_token: issued.access_token,
            // An answer without one means that the old one stays good.
            refresh_token: issued.refresh_token.or_else(|| old.refresh_token.as_ref().map(copy)),
            registration: old.registration.as_ref().map(|registration| token::Registration {
                client_id: registration.client_id.clone(),
                client_secret: copy(&registration.client_secret),
                expires_at: registration.expires_at,
            }),
            rest: old.rest.clone(),
        }
    }

    async fn load(&self) -> Loaded {
        let file = self.file.clone();
        blocking(move || file.load()).await
    }

    async fn lock_file(&self) -> Result<private_fs::Lock, private_fs::Error> {
        let file = self.file.clone();
        let lock = blocking(move || file.lock()).await;
        if let Err(error) = &lock {
            tracing::warn!(session = %self.session, %error, "could not lock the SSO token");
        }
        lock
    }

    /// Writes the token down; `false` when it stays in memory only.
    async fn save(&self, token: &Arc<SsoToken>) -> bool {
        let (file, token) = (self.file.clone(), Arc::clone(token));
        match blocking(move || file.store(&token)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    session = %self.session, error = %chain(&error),
                    "could not save the SSO token; it is kept in memory until broker ends"
                );
                false
            }
        }
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
    fn is_alive(&self, token: &SsoToken) -> bool {
        self.dead_access.is_none_or(|dead| dead != Digest::of(&token.access_token))
    }
}

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
                        session.memory.lock().await.dead_access = Some(Digest::of(&token.access_token));
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
        portal::role_credentials(&self.session.clients, token, &self.role, || clock.now()).await
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

/// The error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
