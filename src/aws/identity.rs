//! The source graph made alive: who asks whom for what, and what is kept in between.
//!
//! Every source of every profile is one [`Node`]; profiles that share a source share its node, so that it is asked
//! once. What a node gave as a step towards a role is kept in memory while it is good for more. The last step is
//! taken anew at each fetch: keeping that is the business of [`crate::creds::cache`].
//!
//! What leaves this room is temporary: keys without an end are exchanged for a session first. A person is asked for
//! a code only in [`Devices::prepare`], before a tunnel starts; afterwards a node that needs another one says so.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;

use super::{
    client::{Clients, Endpoints, Failure},
    credentials::Credentials,
    http::Http,
    login_session, metadata, process,
    profile::{
        AssumeRole, Assumed, Container, Instance, Keys, LoginSession, Process, Profile, Source, WebIdentity,
    },
    session::{IdentityError, SsoSessionState, SsoSource},
    sts::{self, Mfa},
    web_identity,
};
use crate::{
    clock::Clock,
    creds::{FetchError, RoleSource, secret::RoleCredentials},
    human::{BoxFuture, Human, Question},
    names::{ProfileName, Region},
    printable::one_line,
};

/// How long a session of long-lived keys lasts that is renewed without anybody.
const SESSION: Duration = Duration::from_secs(3600);

/// How long one lasts that took a person and a device: what AWS gives by default.
const MFA_SESSION: Duration = Duration::from_secs(12 * 3600);

/// A person may mistype a code, or type one that was used already.
const CODES: usize = 3;

/// How many codes come from a device in a row before its digits end: six everywhere.
const CODE_LENGTH: usize = 6;

/// Every source of the profiles at hand.
pub(crate) struct Identities {
    context: Arc<Context>,
    sessions: Vec<Arc<SsoSessionState>>,
    clients: Vec<(Region, Endpoints, Arc<Clients>)>,
    nodes: Vec<Arc<Node>>,
}

/// What all nodes share.
struct Context {
    clock: Clock,
    http: Http,
    home: PathBuf,
    endpoints: Endpoints,
    /// Names our sessions in CloudTrail where the configuration does not.
    session_name: String,
}

/// One source, alive.
pub(crate) struct Node {
    /// The first profile that came here, for sentences.
    profile: String,
    source: Source,
    kind: Kind,
    region: Region,
    clients: Arc<Clients>,
    context: Arc<Context>,
    held: Mutex<Option<Arc<Credentials>>>,
}

enum Kind {
    Sso(SsoSource),
    Keys(Keys),
    Process(Process),
    WebIdentity(WebIdentity),
    Login(LoginSession),
    Container(Container),
    Instance(Instance),
    Assumed { role: AssumeRole, from: Arc<Node> },
}

impl Identities {
    /// Prepares for `profiles`; touches neither disk nor network.
    pub(crate) fn new(home: PathBuf, endpoints: Endpoints, clock: Clock, session_name: String) -> Self {
        let context = Context { clock, http: Http::default(), home, endpoints, session_name };
        Self { context: Arc::new(context), sessions: Vec::new(), clients: Vec::new(), nodes: Vec::new() }
    }

    /// Returns the sessions of Identity Center that the profiles so far need.
    pub(crate) fn sessions(&self) -> &[Arc<SsoSessionState>] {
        &self.sessions
    }

    /// Returns where the credentials of a profile come from, alive.
    pub(crate) fn source(&mut self, profile: &Profile) -> Arc<dyn RoleSource> {
        let node = self.node(profile, &profile.source);
        Arc::new(ProfileSource { profile: profile.name.clone(), node })
    }

    fn node(&mut self, profile: &Profile, source: &Source) -> Arc<Node> {
        let region = region(profile, source);
        if let Some(known) = self.nodes.iter().find(|node| node.source == *source && node.region == region) {
            return Arc::clone(known);
        }
        let endpoints = self.context.endpoints.or(&profile.urls);
        let kind = match source {
            Source::Sso(sso) => {
                let known = self.sessions.iter().find(|state| *state.session() == sso.session).cloned();
                let state = known.unwrap_or_else(|| {
                    let context = &self.context;
                    let state = SsoSessionState::new(
                        sso.session.clone(),
                        &context.home,
                        &endpoints,
                        context.clock.clone(),
                    );
                    let state = Arc::new(state);
                    self.sessions.push(Arc::clone(&state));
                    state
                });
                Kind::Sso(SsoSource::new(profile.name.clone(), sso, state))
            }
            Source::Keys(keys) => Kind::Keys(keys.clone()),
            Source::Process(process) => Kind::Process(process.clone()),
            Source::WebIdentity(web) => Kind::WebIdentity(web.clone()),
            Source::Login(session) => Kind::Login(session.clone()),
            Source::Container(container) => Kind::Container(container.clone()),
            Source::Instance(instance) => Kind::Instance(instance.clone()),
            Source::Assumed(assumed) => {
                let Assumed { role, from } = &**assumed;
                Kind::Assumed { role: role.clone(), from: self.node(profile, from) }
            }
        };
        let node = Arc::new(Node {
            profile: profile.name.to_string(),
            source: source.clone(),
            kind,
            clients: self.clients(&region, &endpoints),
            region,
            context: Arc::clone(&self.context),
            held: Mutex::default(),
        });
        self.nodes.push(Arc::clone(&node));
        node
    }

    fn clients(&mut self, region: &Region, endpoints: &Endpoints) -> Arc<Clients> {
        let known = self.clients.iter().find(|(r, e, _)| r == region && e == endpoints);
        if let Some((.., clients)) = known {
            return Arc::clone(clients);
        }
        let clients = Arc::new(Clients::new(region.clone(), endpoints.clone()));
        self.clients.push((region.clone(), endpoints.clone(), Arc::clone(&clients)));
        clients
    }

    /// Returns the sources so far that a person may have to give a code to.
    pub(crate) fn devices(&self) -> Devices {
        Devices(self.nodes.iter().filter(|node| node.device().is_some()).cloned().collect())
    }
}

/// Sources that need a code.
pub(crate) struct Devices(Vec<Arc<Node>>);

impl Devices {
    /// Asks a person for every code that is needed now. `None`: nobody may be asked.
    pub(crate) async fn prepare(&self, human: Option<&dyn Human>) -> Result<(), IdentityError> {
        // A node comes after those that it starts from.
        for node in &self.0 {
            node.prepare(human).await?;
        }
        Ok(())
    }
}

/// Where to ask STS: the profile's region, or one of the partition that the role is in.
fn region(profile: &Profile, source: &Source) -> Region {
    let of_role = |source: &Source| match source {
        Source::Assumed(assumed) => assumed.role.arn.home_region(),
        Source::WebIdentity(web) => web.role.home_region(),
        _ => None,
    };
    #[expect(clippy::expect_used, reason = "a region by its grammar")]
    let usual = || "us-east-1".parse().expect("a region");
    profile.region.clone().or_else(|| of_role(source)).unwrap_or_else(usual)
}

impl Node {
    fn now(&self) -> SystemTime {
        self.context.clock.now()
    }

    /// Returns the device whose code this node needs.
    fn device(&self) -> Option<&str> {
        match &self.kind {
            Kind::Keys(keys) if keys.are_long_lived() => keys.mfa_serial.as_deref(),
            Kind::Assumed { role, .. } => role.mfa_serial.as_deref(),
            _ => None,
        }
    }

    async fn prepare(&self, human: Option<&dyn Human>) -> Result<(), IdentityError> {
        let Some(serial) = self.device() else { return Ok(()) };
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.are_fresh(self.now())) {
            return Ok(());
        }
        let device = one_line(serial);
        let nobody =
            || IdentityError::CodeNeeded { profile: one_line(&self.profile), device: device.clone() };
        let human = human.ok_or_else(nobody)?;
        for _ in 0..CODES {
            let text = format!("Code of {device} for profile {}: ", one_line(&self.profile));
            let answer = human.ask(Question { text, echo: true }).await.ok_or_else(nobody)?;
            let code = SecretString::from(answer.expose_secret().trim().to_owned());
            let digits = code.expose_secret().bytes().filter(u8::is_ascii_digit).count();
            if digits != CODE_LENGTH || code.expose_secret().len() != CODE_LENGTH {
                human.tell("A code has six digits.");
                continue;
            }
            match self.with_code(&Mfa { serial, code: &code }).await {
                Ok(credentials) => {
                    *held = Some(Arc::new(credentials));
                    return Ok(());
                }
                Err(Refused::Code(said)) => human.tell(&format!("AWS does not accept this code: {said}")),
                Err(Refused::Fetch(error)) => return Err(IdentityError::Fetch(error)),
            }
        }
        Err(IdentityError::WrongCodes { device })
    }

    async fn with_code(&self, mfa: &Mfa<'_>) -> Result<Credentials, Refused> {
        let now = || self.now();
        let given = match &self.kind {
            Kind::Assumed { role, from } => {
                let from = from.step().await.map_err(Refused::Fetch)?;
                sts::assume_role(&self.clients, &from, role, self.session_name(role), Some(mfa), now).await
            }
            Kind::Keys(keys) => {
                let keys = Credentials::of_keys(keys, self.now());
                let seconds = i32::try_from(MFA_SESSION.as_secs()).unwrap_or(i32::MAX);
                sts::session_token(&self.clients, &keys, seconds, Some(mfa), now).await
            }
            _ => return Err(Refused::Fetch(self.needs_code())),
        };
        given.map_err(|error| match error {
            sts::Error::WrongCode(failure) => Refused::Code(failure.words().to_owned()),
            error => Refused::Fetch(self.sts(error)),
        })
    }

    /// Returns what the next step is taken with: what is kept if that is good for more, else something new.
    fn step(&self) -> BoxFuture<'_, Result<Arc<Credentials>, FetchError>> {
        Box::pin(async move {
            let mut held = self.held.lock().await;
            if let Some(held) = held.as_ref()
                && held.are_fresh(self.now())
            {
                return Ok(Arc::clone(held));
            }
            if self.device().is_some() {
                let alive = held.as_ref().filter(|held| held.are_alive(self.now()));
                return alive.cloned().ok_or_else(|| self.needs_code());
            }
            match self.ask().await {
                Ok(credentials) => {
                    let credentials = Arc::new(credentials);
                    *held = Some(Arc::clone(&credentials));
                    Ok(credentials)
                }
                // What is still good is used to its end.
                Err(error) => match held.as_ref().filter(|held| held.are_alive(self.now())) {
                    Some(held) => {
                        tracing::warn!(profile = %self.profile, %error, "a step of a chain was not renewed; it is still good");
                        Ok(Arc::clone(held))
                    }
                    None => Err(error),
                },
            }
        })
    }

    /// Returns new credentials.
    async fn fetch(&self) -> Result<Credentials, FetchError> {
        if self.device().is_some() {
            return Ok(self.step().await?.copy());
        }
        self.ask().await
    }

    async fn ask(&self) -> Result<Credentials, FetchError> {
        let now = || self.now();
        let http = &self.context.http;
        match &self.kind {
            Kind::Sso(source) => Ok(Credentials::of_role(source.fetch().await?)),
            Kind::Keys(keys) => {
                let keys = Credentials::of_keys(keys, self.now());
                if keys.expires_at.is_some_and(|at| at <= self.now()) {
                    return Err(self.keys_ended());
                }
                Ok(keys)
            }
            Kind::Process(process) => process::credentials(process, now).await.map_err(|error| {
                self.transient(
                    "the program of profile `{}` (credential_process) gave no credentials",
                    Box::new(error),
                )
            }),
            Kind::WebIdentity(web) => self.web_identity(web).await,
            Kind::Login(session) => {
                let endpoints = &self.context.endpoints;
                login_session::credentials(session, &self.region, endpoints, http, now).await.map_err(
                    |error| {
                        let sentence = error.to_string();
                        match error {
                            login_session::Error::LoginNeeded(_) => FetchError::LoginNeeded { sentence },
                            login_session::Error::Denied(_) => FetchError::Denied { sentence },
                            login_session::Error::Transient(_) => {
                                FetchError::Transient { sentence, source: None }
                            }
                        }
                    },
                )
            }
            Kind::Container(container) => metadata::container(container, http, now).await.map_err(|error| {
                self.transient("the container endpoint gave profile `{}` no credentials", Box::new(error))
            }),
            Kind::Instance(instance) => metadata::instance(instance, http, now).await.map_err(|error| {
                self.transient("the instance metadata gave profile `{}` no credentials", Box::new(error))
            }),
            Kind::Assumed { role, from } => {
                let start = from.step().await?;
                let name = self.session_name(role);
                match sts::assume_role(&self.clients, &start, role, name, None, now).await {
                    // Ended before its time, as after a revocation: once more from the start.
                    Err(sts::Error::Expired(_)) if from.forget(&start).await => {
                        let start = from.step().await?;
                        sts::assume_role(&self.clients, &start, role, name, None, now).await
                    }
                    other => other,
                }
                .map_err(|error| self.sts(error))
            }
        }
    }

    async fn web_identity(&self, web: &WebIdentity) -> Result<Credentials, FetchError> {
        let token = web_identity::token(&web.token, &self.context.http).await.map_err(|error| {
            self.transient("there is no token for the web identity of profile `{}`", Box::new(error))
        })?;
        let name = web.session_name.as_deref().unwrap_or(&self.context.session_name);
        let now = || self.now();
        let given = sts::assume_role_with_web_identity(&self.clients, web, name, &token, now).await;
        given.map_err(|error| match error {
            sts::Error::Expired(failure) => FetchError::LoginNeeded {
                sentence: format!(
                    "the token of the web identity of profile `{}` has expired: {}",
                    one_line(&self.profile),
                    failure.words()
                ),
            },
            error => self.sts(error),
        })
    }

    /// Ends when somebody may have logged in.
    async fn revived(&self) {
        let mut node = self;
        loop {
            match &node.kind {
                Kind::Sso(source) => return source.revived().await,
                Kind::Assumed { from, .. } => node = from,
                _ => std::future::pending().await,
            }
        }
    }

    /// Forgets what is kept, if that is `old`; returns whether another try can be different.
    async fn forget(&self, old: &Arc<Credentials>) -> bool {
        let mut held = self.held.lock().await;
        if self.device().is_some() || matches!(self.kind, Kind::Keys(_)) {
            return false;
        }
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, old)) {
            *held = None;
        }
        true
    }

    fn session_name<'a>(&'a self, role: &'a AssumeRole) -> &'a str {
        role.session_name.as_deref().unwrap_or(&self.context.session_name)
    }

    fn needs_code(&self) -> FetchError {
        FetchError::LoginNeeded {
            sentence: format!(
                "profile `{}` needs a new code of its MFA device; start `broker` again on your laptop",
                one_line(&self.profile)
            ),
        }
    }

    fn keys_ended(&self) -> FetchError {
        FetchError::LoginNeeded {
            sentence: format!(
                "the temporary keys of profile `{}` have ended; put new ones in their place on your laptop, and start \
                 `broker` again",
                one_line(&self.profile)
            ),
        }
    }

    fn transient(&self, sentence: &str, source: Box<dyn std::error::Error + Send + Sync>) -> FetchError {
        // The cause stays on this machine: it may name paths, and what a program said.
        FetchError::Transient {
            sentence: sentence.replace("{}", &one_line(&self.profile)),
            source: Some(source),
        }
    }

    fn sts(&self, error: sts::Error) -> FetchError {
        let profile = one_line(&self.profile);
        match error {
            sts::Error::Expired(_) => self.keys_ended(),
            sts::Error::Denied(failure) | sts::Error::WrongCode(failure) => {
                FetchError::Denied { sentence: self.denied(&profile, &failure) }
            }
            sts::Error::Transient(failure) => FetchError::Transient {
                sentence: format!("AWS gave no credentials for profile `{profile}` at the moment"),
                source: Some(Box::new(failure)),
            },
        }
    }

    fn denied(&self, profile: &str, failure: &Failure) -> String {
        let said = failure.words();
        match &self.kind {
            Kind::Assumed { role, .. } => {
                format!("AWS denies role `{}` (profile `{profile}`) to you: {said}", role.arn)
            }
            Kind::WebIdentity(web) => {
                format!("AWS denies role `{}` (profile `{profile}`) to this web identity: {said}", web.role)
            }
            _ => format!("AWS does not accept the keys of profile `{profile}`: {said}"),
        }
    }
}

enum Refused {
    Code(String),
    Fetch(FetchError),
}

/// What one profile hands out.
struct ProfileSource {
    profile: ProfileName,
    node: Arc<Node>,
}

impl ProfileSource {
    async fn fetch_now(&self) -> Result<RoleCredentials, FetchError> {
        let node = &self.node;
        let now = || node.now();
        let mut given = node.fetch().await?;
        if given.session_token.is_none() {
            let seconds = i32::try_from(SESSION.as_secs()).unwrap_or(i32::MAX);
            let session = sts::session_token(&node.clients, &given, seconds, None, now).await;
            given = session.map_err(|error| node.sts(error))?;
        } else if given.expires_at.is_none() {
            // Nobody says when these end, so AWS is asked whether they have.
            let account = sts::account(&node.clients, &given).await.map_err(|error| node.sts(error))?;
            given.account = given.account.or(account);
        }
        given.into_role().ok_or_else(|| FetchError::Denied {
            sentence: format!(
                "profile `{}` has only long-lived keys, which never leave your laptop",
                self.profile
            ),
        })
    }
}

impl RoleSource for ProfileSource {
    fn fetch(&self) -> BoxFuture<'_, Result<RoleCredentials, FetchError>> {
        Box::pin(self.fetch_now())
    }

    fn revived(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.node.revived())
    }
}
