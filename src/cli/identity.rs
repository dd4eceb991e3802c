//! Who we are to AWS: signing in, and what each profile is granted from.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    failure::{Failure, Kind},
    login,
    terminal::Terminal,
};
use crate::{
    aws::{
        client::Endpoints,
        profile::{Profile, Source, SsoSession},
        session::{IdentityError, LoginPolicy, SsoSessionState, SsoSource, WITHOUT_BATCH},
    },
    clock::Clock,
    config::{Environment, Plan},
    creds::{
        FetchError,
        cache::Cache,
        grant::{Grant, Grants},
        secret::BearerToken,
    },
    tunnel::{Event, Step},
};

/// How a person may sign in.
pub(super) struct Login<'a> {
    pub(super) terminal: &'a Terminal,
    pub(super) batch: bool,
    pub(super) device_code: bool,
}

impl Login<'_> {
    fn policy(&self) -> LoginPolicy<'_> {
        if self.batch {
            LoginPolicy::Never
        } else {
            LoginPolicy::With { human: self.terminal, method: login::method(self.device_code, self.terminal) }
        }
    }
}

/// The sessions of Identity Center that the profiles of one tunnel need.
pub(super) struct Identity {
    sessions: Mutex<Vec<Arc<SsoSessionState>>>,
    home: PathBuf,
    endpoints: Endpoints,
    clock: Clock,
}

impl Identity {
    pub(super) fn new(
        profiles: &[Profile],
        environment: &Environment,
        endpoints: &Endpoints,
        clock: &Clock,
    ) -> Self {
        let (home, endpoints, clock) = (environment.home.clone(), endpoints.clone(), clock.clone());
        let identity = Self { sessions: Mutex::default(), home, endpoints, clock };
        for profile in profiles {
            let Source::Sso(role) = &profile.source;
            drop(identity.session(&role.session));
        }
        identity
    }

    /// Returns the session, which all profiles of it share.
    fn session(&self, wanted: &SsoSession) -> Arc<SsoSessionState> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sessions.iter().find(|known| known.session() == wanted) {
            return Arc::clone(known);
        }
        let clock = self.clock.clone();
        let session = Arc::new(SsoSessionState::new(wanted.clone(), &self.home, &self.endpoints, clock));
        sessions.push(Arc::clone(&session));
        session
    }

    pub(super) async fn sign_in(&self, login: &Login<'_>) -> Result<(), Failure> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for session in &sessions {
            let subject = session.session().to_string();
            login.terminal.event(&Event::Started { step: Step::SignIn, subject: subject.clone() });
            session.ensure(login.policy()).await.map_err(identity)?;
            login.terminal.event(&Event::Done { step: Step::SignIn, subject });
        }
        Ok(())
    }

    /// Returns a grant of the profile, which opens nothing yet.
    pub(super) fn grant(&self, profile: &Profile, on_request: bool) -> Result<Grant, Failure> {
        let Source::Sso(role) = &profile.source;
        let source = SsoSource::new(profile.name.clone(), role, self.session(&role.session));
        let (source, clock) = (Arc::new(source), self.clock.clone());
        Ok(Grant::new(
            profile.name.clone(),
            Some(role.role.clone()),
            profile.region.clone(),
            profile.output.clone(),
            BearerToken::generate().map_err(|e| Failure::new(Kind::Failed, e))?,
            if on_request { Cache::on_request(source, clock) } else { Cache::new(source, clock) },
        ))
    }

    pub(super) fn grant_all(&self, plan: &Plan, grants: &Grants) -> Result<(), Failure> {
        let named = plan.profiles.iter().map(|profile| (profile, false));
        for (profile, on_request) in named.chain(plan.on_request.iter().map(|profile| (profile, true))) {
            let grant = self.grant(profile, on_request)?;
            grants.add(grant).map_err(|e| Failure::new(Kind::Failed, e))?;
        }
        Ok(())
    }

    pub(super) async fn first_credentials(&self, grants: &Grants, login: &Login<'_>) -> Result<(), Failure> {
        let wanted = grants.list().into_iter().filter(|grant| !grant.is_unasked());
        let roles: Vec<String> = wanted.filter_map(|grant| Some(grant.role.as_ref()?.to_string())).collect();
        let subject = roles.join(", ");
        login.terminal.event(&Event::Started { step: Step::Credentials, subject: subject.clone() });
        let mut fetched = grants.first_fetch().await;
        let dead = |(_, result): &(_, Result<_, Arc<FetchError>>)| matches!(result, Err(e) if matches!(**e, FetchError::LoginNeeded { .. }));
        if !login.batch && fetched.iter().any(dead) {
            // The token looked valid, but AWS had ended the session.
            self.sign_in(login).await?;
            grants.poke();
            fetched = grants.first_fetch().await;
        }
        let mut failures = fetched.into_iter().filter_map(|(profile, result)| Some((profile, result.err()?)));
        let Some((profile, error)) = failures.next() else {
            login.terminal.event(&Event::Done { step: Step::Credentials, subject });
            return Ok(());
        };
        for (profile, error) in failures {
            login.terminal.warning(&format!("profile `{profile}`: {error}"));
        }
        let (kind, hint) = match &*error {
            FetchError::LoginNeeded { .. } => {
                (Kind::LoginNeeded, login.batch.then(|| WITHOUT_BATCH.to_owned()))
            }
            FetchError::Denied { .. } => (
                Kind::RoleDenied,
                Some(format!(
                    "check account and role of profile `{profile}`, or ask who manages access in AWS"
                )),
            ),
            FetchError::Transient { .. } => (Kind::Failed, Some("try again in a moment".to_owned())),
        };
        Err(Failure::new(kind, NoCredentials { profile: profile.to_string(), source: error }).with_hint(hint))
    }
}

/// The first fetch of one profile failed.
#[derive(Debug, thiserror::Error)]
#[error("no credentials for profile `{profile}`")]
struct NoCredentials {
    profile: String,
    #[source]
    source: Arc<FetchError>,
}

/// Returns why there is no identity.
pub(super) fn identity(error: IdentityError) -> Failure {
    let kind = match &error {
        IdentityError::LoginNeeded { .. } | IdentityError::Login { .. } => Kind::LoginNeeded,
        IdentityError::Transient { .. } => Kind::Failed,
    };
    let hint = error.hint();
    Failure::new(kind, error).with_hint(hint)
}
