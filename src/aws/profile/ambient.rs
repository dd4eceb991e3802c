//! What the environment offers besides the files: keys, web identities, the endpoints of containers and instances.
//!
//! Pure: variables come in as a function, and nothing is asked.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    errors::Error,
    source::{Container, ContainerToken, IdentityToken, Instance, Keys, RoleArn, Secret, WebIdentity},
};
use crate::{aws::client::check_url, aws::time, printable::one_line};

/// The default address of IMDS on every instance.
const IMDS: &str = "http://169.254.169.254";

/// The address of the container endpoint to which `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` is relative.
const ECS: &str = "http://169.254.170.2";

/// Where plain http may go besides this machine: ECS and EKS.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// What GitLab's own documentation calls the `id_tokens` entry for AWS.
const GITLAB: &str = "GITLAB_OIDC_TOKEN";

/// What the environment offers. Every part may be wrong by itself, and only whoever wants it is told so.
#[derive(Default)]
pub(crate) struct Ambient {
    keys: Option<Result<Keys, Fault>>,
    web: Web,
    container: Option<Result<Container, Fault>>,
    instance: Option<Instance>,
    instance_is_meant: bool,
    login_directory: PathBuf,
    home: PathBuf,
    depth: usize,
}

/// How many brokers have started each other as `credential_process`; told to every such program.
pub(crate) const DEPTH: &str = "BROKER_DEPTH";

/// The variables of web identity, each of which counts before the profile's.
#[derive(Default)]
struct Web {
    token_file: Option<PathBuf>,
    role_arn: Option<String>,
    session_name: Option<String>,
    /// Of the CI system that we run in.
    token: Option<IdentityToken>,
}

/// What is wrong with a variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Fault {
    pub(crate) variable: &'static str,
    pub(crate) fault: String,
}

impl From<Fault> for Error {
    fn from(Fault { variable, fault }: Fault) -> Self {
        Self::Variable { variable, fault }
    }
}

impl fmt::Debug for Ambient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ambient").finish_non_exhaustive()
    }
}

impl Ambient {
    /// Reads the variables; `get` returns those that are set and not empty.
    pub(crate) fn read<'a>(get: impl Fn(&str) -> Option<&'a str>, home: &Path) -> Self {
        let disabled =
            get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = get("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let ipv6 = get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let usual = if ipv6 { "http://[fd00:ec2::254]" } else { IMDS };
        let instance = Instance { endpoint: endpoint.unwrap_or(usual).trim_end_matches('/').to_owned() };
        let relative = get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{ECS}{path}"));
        let full = || get("AWS_CONTAINER_CREDENTIALS_FULL_URI").map(str::to_owned);
        Self {
            keys: keys(&get),
            web: Web {
                token_file: get("AWS_WEB_IDENTITY_TOKEN_FILE").map(|path| expand_home(path, home)),
                role_arn: get("AWS_ROLE_ARN").map(str::to_owned),
                session_name: get("AWS_ROLE_SESSION_NAME").map(str::to_owned),
                token: ci_token(&get),
            },
            container: relative.or_else(full).map(|url| container(url, &get)),
            instance: (!disabled).then_some(instance),
            instance_is_meant: endpoint.is_some() && !disabled,
            login_directory: get("AWS_LOGIN_CACHE_DIRECTORY")
                .map_or_else(|| home.join(".aws/login/cache"), |path| expand_home(path, home)),
            home: home.to_owned(),
            depth: get(DEPTH).and_then(|depth| depth.parse().ok()).unwrap_or(0),
        }
    }

    /// Returns the keys that stand in the environment.
    pub(super) fn keys(&self) -> Result<Option<Keys>, Error> {
        Ok(self.keys.clone().transpose()?)
    }

    /// Returns the container's endpoint.
    pub(super) fn container(&self) -> Result<Option<Container>, Error> {
        Ok(self.container.clone().transpose()?)
    }

    /// Returns the instance's endpoint, unless it is switched off.
    pub(super) fn instance(&self) -> Option<Instance> {
        self.instance.clone()
    }

    /// Returns the instance's endpoint if somebody named one: no other machine should wait for an answer of it.
    pub(super) fn meant_instance(&self) -> Option<Instance> {
        self.instance.clone().filter(|_| self.instance_is_meant)
    }

    /// Returns how many brokers have started each other so far.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Returns where `aws login` puts its sessions.
    pub(super) fn login_directory(&self) -> &Path {
        &self.login_directory
    }

    /// Returns the path that a setting means, with `~` for the home directory.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        expand_home(text, &self.home)
    }

    /// Returns the web identity that the environment names, with what it leaves open from `profile`.
    pub(super) fn web_identity<'a>(
        &self,
        profile: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<WebIdentity>, Error> {
        let Web { token_file, role_arn, session_name, token } = &self.web;
        let file =
            token_file.clone().or_else(|| profile("web_identity_token_file").map(|path| self.path(path)));
        let token = match (file, token, role_arn) {
            (Some(file), _, _) => IdentityToken::File(file),
            // No AWS SDK knows these: they count only where a role is named for them.
            (None, Some(token), Some(_)) => token.clone(),
            (None, _, _) => return Ok(None),
        };
        let from_profile = || profile("role_arn").map(str::to_owned);
        let Some(role) = role_arn.clone().or_else(from_profile) else {
            return Err(Error::Variable {
                variable: "AWS_ROLE_ARN",
                fault: format!("not set, but there is {token}"),
            });
        };
        let role: RoleArn = role
            .parse()
            .map_err(|e| Error::Variable { variable: "AWS_ROLE_ARN", fault: format!("wrong: {e}") })?;
        let session_name = session_name.clone().or_else(|| profile("role_session_name").map(str::to_owned));
        Ok(Some(WebIdentity { role, session_name, token }))
    }
}

fn keys<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<Result<Keys, Fault>> {
    let access_key_id = get("AWS_ACCESS_KEY_ID")?;
    let Some(secret) = get("AWS_SECRET_ACCESS_KEY") else {
        let fault = "not set, but `AWS_ACCESS_KEY_ID` is".to_owned();
        return Some(Err(Fault { variable: "AWS_SECRET_ACCESS_KEY", fault }));
    };
    let secret_text = |text: &str| Arc::new(text.to_owned().into());
    let expires_at: Option<SystemTime> = match get("AWS_CREDENTIAL_EXPIRATION").map(time::parse) {
        Some(None) => {
            let fault = "not a time (such as `2026-01-01T08:00:00Z`)".to_owned();
            return Some(Err(Fault { variable: "AWS_CREDENTIAL_EXPIRATION", fault }));
        }
        other => other.flatten(),
    };
    Some(Ok(Keys {
        place: "the environment".to_owned(),
        access_key_id: access_key_id.to_owned(),
        secret_access_key: secret_text(secret),
        session_token: get("AWS_SECURITY_TOKEN").or_else(|| get("AWS_SESSION_TOKEN")).map(secret_text),
        expires_at,
        account: get("AWS_ACCOUNT_ID").and_then(|account| account.parse().ok()),
        mfa_serial: None,
    }))
}

fn ci_token<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<IdentityToken> {
    if let (Some(url), Some(token)) =
        (get("ACTIONS_ID_TOKEN_REQUEST_URL"), get("ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
    {
        return Some(IdentityToken::GitHub { url: url.to_owned(), token: Secret::new(token) });
    }
    if let Some(token) = get(GITLAB) {
        return Some(IdentityToken::Variable { name: GITLAB, token: Secret::new(token) });
    }
    get("BUILDKITE_AGENT_ACCESS_TOKEN").map(|_| IdentityToken::Buildkite)
}

fn container<'a>(url: String, get: &impl Fn(&str) -> Option<&'a str>) -> Result<Container, Fault> {
    if let Err(fault) = container_url(&url) {
        return Err(Fault {
            variable: "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            fault: format!("`{}`, which is {fault}", one_line(&url)),
        });
    }
    let token =
        match (get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), get("AWS_CONTAINER_AUTHORIZATION_TOKEN")) {
            (Some(path), _) => ContainerToken::File(PathBuf::from(path)),
            (None, Some(token)) => ContainerToken::Text(Secret::new(token)),
            (None, None) => ContainerToken::None,
        };
    Ok(Container { url, token })
}

/// As the SDKs allow it: https anywhere, plain http to this machine, ECS and EKS.
pub(crate) fn container_url(url: &str) -> Result<(), &'static str> {
    let host = url.strip_prefix("http://").map(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        }
    });
    match host {
        Some(host) if CONTAINER_HOSTS.contains(&host) || host == "localhost" => {
            // The rest of the URL must be sound all the same.
            check_url(&url.replacen("http://", "https://", 1)).map(drop)
        }
        Some(host) if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) => check_url(url).map(drop),
        _ => check_url(url).map(drop),
    }
}

fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => PathBuf::from(path),
    }
}
