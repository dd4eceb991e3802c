//! Whose credentials, in words of the command line, and the way to them: sign-ins, codes, the first fetch.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{
    completions,
    failure::{Failure, Kind},
    login,
    terminal::Terminal,
};
use crate::{
    aws::{
        client::Endpoints,
        identity::Identities,
        profile::Profile,
        session::{IdentityError, LoginPolicy, SsoSessionState, WITHOUT_BATCH},
    },
    clock::Clock,
    config::{
        Environment, Plan,
        whose::{self, Chain, Through, Wanted, WantedRole},
    },
    creds::{
        FetchError, RoleSource,
        cache::Cache,
        grant::{Grant, Grants},
        secret::BearerToken,
    },
    human::Human,
    tunnel::{Event, Step},
};

/// Whose credentials are wanted.
#[derive(Args, Clone, Debug)]
pub(super) struct Whose {
    /// Profile from ~/.aws/config; `connect` takes several, of which the first is the default role
    #[arg(short, long = "profile", value_name = "NAME", add = ArgValueCandidates::new(completions::profiles))]
    profiles: Vec<String>,

    /// Account of a role that no profile names; with --role
    #[arg(long, value_name = "ID", requires = "role", conflicts_with = "profiles", help_heading = ROLE)]
    account: Option<String>,

    /// A role (permission set) of --account
    #[arg(long, value_name = "NAME", requires = "account", help_heading = ROLE)]
    role: Option<String>,

    /// The SSO session of ~/.aws/config through which --role is had (default: the only one)
    #[arg(long, value_name = "NAME", requires = "role", help_heading = ROLE)]
    sso_session: Option<String>,

    /// Address of the access portal through which --role is had, without any ~/.aws/config; with --sso-region
    #[arg(long, value_name = "URL", requires_all = ["role", "sso_region"], conflicts_with = "sso_session", help_heading = ROLE)]
    start_url: Option<String>,

    /// Region of that Identity Center
    #[arg(long, value_name = "REGION", requires = "start_url", help_heading = ROLE)]
    sso_region: Option<String>,

    /// Assume this role with the profile's credentials, and hand out its credentials instead
    #[arg(long, value_name = "ARN", help_heading = LESS)]
    role_arn: Option<String>,

    /// How long credentials of --role-arn live, such as 15m; they are renewed while broker runs
    #[arg(long, value_name = "TIME", requires = "role_arn", help_heading = LESS)]
    duration: Option<String>,

    /// Allow no more than this policy does: a JSON file, or the ARN of a managed policy; repeat for more ARNs
    #[arg(long = "session-policy", value_name = "FILE|ARN", requires = "role_arn", help_heading = LESS)]
    session_policies: Vec<String>,

    /// Deny everything that does not come from this address, such as that of the host
    #[arg(long, value_name = "IP", requires = "role_arn", help_heading = LESS)]
    source_ip: Option<IpAddr>,
}

const ROLE: &str = "A role without a profile";
const LESS: &str = "Hand out less";

impl Whose {
    /// Whether neither a profile nor a role is named.
    pub(super) fn names_none(&self) -> bool {
        self.profiles.is_empty() && self.role.is_none()
    }

    /// Takes this profile, which a person chose.
    pub(super) fn choose(&mut self, profile: String) {
        self.profiles = vec![profile];
    }

    /// Returns what is wanted; `destination` is where it goes, for CloudTrail.
    pub(super) fn wanted(&self, destination: &str) -> Wanted {
        let role = self.account.clone().zip(self.role.clone()).map(|(account, role)| WantedRole {
            account,
            role,
            through: match (self.start_url.clone(), self.sso_region.clone()) {
                (Some(start_url), Some(region)) => Through::Portal { start_url, region },
                _ => Through::Session(self.sso_session.clone()),
            },
        });
        let chain = self.role_arn.clone().map(|role_arn| Chain {
            role_arn,
            duration: self.duration.clone(),
            session_policies: self.session_policies.clone(),
            source_ip: self.source_ip,
            destination: destination.to_owned(),
        });
        Wanted { profiles: self.profiles.clone(), role, chain }
    }
}

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

    fn human(&self) -> Option<&dyn Human> {
        (!self.batch).then_some(self.terminal)
    }
}

/// Everything that the profiles of one command need to be asked for.
pub(super) struct Identity {
    identities: Mutex<Identities>,
    clock: Clock,
}

impl Identity {
    /// Prepares for these profiles; others may come later.
    pub(super) fn new(
        profiles: &[Profile],
        environment: &Environment,
        endpoints: &Endpoints,
        clock: &Clock,
    ) -> Self {
        let name = whose::clean(&format!("broker-{}-{}", environment.user, environment.host_name));
        let home = environment.home.clone();
        let identities = Identities::new(home, endpoints.clone(), clock.clone(), name);
        let identity = Self { identities: Mutex::new(identities), clock: clock.clone() };
        for profile in profiles {
            drop(identity.source(profile));
        }
        identity
    }

    fn identities(&self) -> MutexGuard<'_, Identities> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where the credentials of a profile come from.
    pub(super) fn source(&self, profile: &Profile) -> Arc<dyn RoleSource> {
        self.identities().source(profile)
    }

    /// Returns the sessions of Identity Center that the profiles need.
    pub(super) fn sessions(&self) -> Vec<Arc<SsoSessionState>> {
        self.identities().sessions().to_vec()
    }

    /// Waits for refreshes of tokens whose askers have left: what AWS answers is worth keeping.
    pub(super) async fn settle(&self) {
        for session in self.sessions() {
            session.settle().await;
        }
    }

    /// Does all that may need a person: sign-ins, then codes of MFA devices.
    pub(super) async fn sign_in(&self, login: &Login<'_>) -> Result<(), Failure> {
        for session in &self.sessions() {
            let subject = session.session().to_string();
            login.terminal.event(&Event::Started { step: Step::SignIn, subject: subject.clone() });
            session.ensure(login.policy()).await.map_err(failure)?;
            login.terminal.event(&Event::Done { step: Step::SignIn, subject });
        }
        let devices = self.identities().devices();
        devices.prepare(login.human()).await.map_err(failure)
    }

    /// Returns a grant of the profile, which opens nothing yet.
    pub(super) fn grant(&self, profile: &Profile, on_request: bool) -> Result<Grant, Failure> {
        Self::grant_from(profile, self.cache(profile, on_request))
    }

    fn cache(&self, profile: &Profile, on_request: bool) -> Arc<Cache> {
        let (source, clock) = (self.source(profile), self.clock.clone());
        if on_request { Cache::on_request(source, clock) } else { Cache::new(source, clock) }
    }

    fn grant_from(profile: &Profile, cache: Arc<Cache>) -> Result<Grant, Failure> {
        Ok(Grant::new(
            profile.name.clone(),
            profile.source.role(),
            profile.region.clone(),
            profile.output.clone(),
            BearerToken::generate().map_err(|e| Failure::new(Kind::Failed, e))?,
            cache,
        ))
    }

    /// Grants everything of the plan, with credentials that are fetched once for all tunnels of `shared`.
    pub(super) fn grant_shared(
        &self,
        plan: &Plan,
        grants: &Grants,
        shared: &mut Shared,
    ) -> Result<(), Failure> {
        let named = plan.profiles.iter().map(|profile| (profile, false));
        for (profile, on_request) in named.chain(plan.on_request.iter().map(|profile| (profile, true))) {
            let known = shared.0.iter().find(|(known, lazy, _)| known == profile && *lazy == on_request);
            let cache = match known {
                Some((.., cache)) => Arc::clone(cache),
                None => {
                    let cache = self.cache(profile, on_request);
                    shared.0.push((profile.clone(), on_request, Arc::clone(&cache)));
                    cache
                }
            };
            let grant = Self::grant_from(profile, cache)?;
            grants.add(grant).map_err(|e| Failure::new(Kind::Failed, e))?;
        }
        Ok(())
    }

    pub(super) fn grant_all(&self, plan: &Plan, grants: &Grants) -> Result<(), Failure> {
        let named = plan.profiles.iter().map(|profile| (profile, false));
        for (profile, on_request) in named.chain(plan.on_request.iter().map(|profile| (profile, true))) {
            let grant = self.grant(profile, on_request)?;
            grants.add(grant).map_err(|e| Failure::new(Kind::Failed, e))?;
        }
        Ok(())
    }

    /// Fetches the credentials of all grants, and signs in anew where AWS wants that.
    pub(super) async fn first_credentials(&self, grants: &Grants, login: &Login<'_>) -> Result<(), Failure> {
        let wanted = grants.list().into_iter().filter(|grant| !grant.is_unasked());
        let names =
            wanted.map(|grant| grant.role.as_ref().map_or(grant.profile.to_string(), ToString::to_string));
        let subject = names.collect::<Vec<_>>().join(", ");
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
        Err(no_credentials(profile.as_str(), error, login.batch))
    }
}

/// Credentials that several tunnels of this process serve: fetched once, renewed once.
#[derive(Default)]
pub(super) struct Shared(Vec<(Profile, bool, Arc<Cache>)>);

/// Says why there are no credentials for a profile.
pub(super) fn no_credentials(profile: &str, error: Arc<FetchError>, batch: bool) -> Failure {
    let (kind, hint) = match &*error {
        // What else is missing, such as a session of `aws login`, we could not ask for either.
        FetchError::LoginNeeded { sentence } => {
            let ours = sentence.contains("broker login");
            let hint = if ours { batch.then_some(WITHOUT_BATCH) } else { Some("then start this again") };
            (Kind::LoginNeeded, hint.map(str::to_owned))
        }
        FetchError::Denied { .. } => (
            Kind::RoleDenied,
            Some(format!("check account and role of profile `{profile}`, or ask who manages access in AWS")),
        ),
        FetchError::Transient { .. } => (Kind::Failed, Some("try again in a moment".to_owned())),
    };
    Failure::new(kind, NoCredentials { profile: profile.to_owned(), source: error }).with_hint(hint)
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
pub(super) fn failure(error: IdentityError) -> Failure {
    let kind = match &error {
        IdentityError::LoginNeeded { .. }
        | IdentityError::Login { .. }
        | IdentityError::CodeNeeded { .. }
        | IdentityError::WrongCodes { .. } => Kind::LoginNeeded,
        IdentityError::Transient { .. } => Kind::Failed,
        IdentityError::Fetch(FetchError::LoginNeeded { .. }) => Kind::LoginNeeded,
        IdentityError::Fetch(FetchError::Denied { .. }) => Kind::RoleDenied,
        IdentityError::Fetch(FetchError::Transient { .. }) => Kind::Failed,
    };
    let hint = error.hint();
    Failure::new(kind, error).with_hint(hint)
}
