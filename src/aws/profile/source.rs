//! Where credentials come from, as configuration says it. Nothing here has been asked yet.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::SystemTime};

use secrecy::{ExposeSecret as _, SecretString};

use super::SsoSession;
use crate::{
    names::{AccountId, Region, Role},
    printable::one_line,
};

/// Where the credentials of a profile come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Sso(SsoRole),
    Keys(Keys),
    Process(Process),
    WebIdentity(WebIdentity),
    Login(LoginSession),
    Container(Container),
    Instance(Instance),
    Assumed(Box<Assumed>),
}

/// A role that an SSO session may have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SsoRole {
    pub(crate) session: SsoSession,
    pub(crate) role: Role,
}

/// Keys as they stand in a file or in the environment.
#[derive(Clone)]
pub(crate) struct Keys {
    /// Where they stand, for people: a section and its file, or the environment.
    pub(crate) place: String,
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: Arc<SecretString>,
    /// `None`: long-lived keys.
    pub(crate) session_token: Option<Arc<SecretString>>,
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) account: Option<AccountId>,
    /// The device whose code a session of these keys needs.
    pub(crate) mfa_serial: Option<String>,
}

impl Keys {
    /// Returns whether they would live on after us, so that they must not leave this machine.
    pub(crate) fn are_long_lived(&self) -> bool {
        self.session_token.is_none()
    }
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        let secret = |keys: &Self| keys.secret_access_key.expose_secret().to_owned();
        let token = |keys: &Self| keys.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        self.access_key_id == other.access_key_id
            && self.mfa_serial == other.mfa_serial
            && secret(self) == secret(other)
            && token(self) == token(other)
    }
}

impl Eq for Keys {}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// `credential_process`: a program that prints credentials.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Process {
    pub(crate) profile: String,
    /// The program and its arguments; never empty.
    pub(crate) words: Vec<String>,
    pub(crate) account: Option<AccountId>,
    /// How many brokers run each other's `credential_process` already.
    pub(crate) depth: usize,
}

/// A role for a token that somebody else signed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WebIdentity {
    pub(crate) role: RoleArn,
    pub(crate) session_name: Option<String>,
    pub(crate) token: IdentityToken,
}

/// Where the token of a web identity is. It is read anew for every use, because it is replaced meanwhile.
#[derive(Clone, Eq, PartialEq)]
pub(crate) enum IdentityToken {
    File(PathBuf),
    /// GitHub Actions: an address and a token for it.
    GitHub {
        url: String,
        token: Secret,
    },
    /// GitLab CI: the token itself.
    Variable {
        name: &'static str,
        token: Secret,
    },
    /// Buildkite: its agent gives one.
    Buildkite,
}

impl fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the token in `{}`", path.display()),
            Self::GitHub { .. } => f.write_str("the token of GitHub Actions"),
            Self::Variable { name, .. } => write!(f, "the token in `{name}`"),
            Self::Buildkite => f.write_str("the token of the Buildkite agent"),
        }
    }
}

/// A secret that a source carries about. Comparable, so that equal sources are asked once.
#[derive(Clone)]
pub(crate) struct Secret(Arc<SecretString>);

impl Secret {
    /// Takes over `text`.
    pub(crate) fn new(text: &str) -> Self {
        Self(Arc::new(text.to_owned().into()))
    }

    /// Returns the secret itself.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

/// `login_session`: what `aws login` left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LoginSession {
    pub(crate) profile: String,
    /// The text whose SHA-256 names the file.
    pub(crate) name: String,
    /// `~/.aws/login/cache`, or `AWS_LOGIN_CACHE_DIRECTORY`.
    pub(crate) directory: PathBuf,
}

/// The credentials of a container (ECS, EKS, or another `broker`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Container {
    pub(crate) url: String,
    pub(crate) token: ContainerToken,
}

/// What a container's endpoint wants to see.
#[derive(Clone, Eq, PartialEq)]
pub(crate) enum ContainerToken {
    None,
    Text(Secret),
    File(PathBuf),
}

impl fmt::Debug for ContainerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Text(_) => "Text(<redacted>)",
            Self::File(_) => "File",
        })
    }
}

/// The credentials of an EC2 instance, by IMDSv2.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Instance {
    pub(crate) endpoint: String,
}

/// A role that is assumed with the credentials of another source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Assumed {
    pub(crate) role: AssumeRole,
    pub(crate) from: Source,
}

/// One AssumeRole.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct AssumeRole {
    pub(crate) arn: RoleArn,
    pub(crate) external_id: Option<String>,
    pub(crate) mfa_serial: Option<String>,
    /// Seconds; AWS's own default (an hour) where there are none.
    pub(crate) duration: Option<u32>,
    pub(crate) session_name: Option<String>,
    pub(crate) restriction: Restriction,
}

/// What makes an assumed role smaller and visible (`--session-policy`, `--source-ip`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Restriction {
    /// A session policy as JSON.
    pub(crate) policy: Option<String>,
    /// Managed policies that are session policies, too.
    pub(crate) policy_arns: Vec<String>,
    /// Who is at the other end, for CloudTrail; left out where the role's trust policy does not allow it.
    pub(crate) source_identity: Option<String>,
}

impl Source {
    /// Returns the role that the configuration names, as far as it does.
    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::Sso(sso) => Some(sso.role.clone()),
            Self::WebIdentity(web) => web.role.role(),
            Self::Assumed(assumed) => assumed.role.arn.role(),
            _ => None,
        }
    }

    /// Returns whether this gives the credentials of a role, so that a role assumed with them lasts an hour at most.
    pub(crate) fn is_role(&self) -> bool {
        match self {
            Self::Sso(_)
            | Self::WebIdentity(_)
            | Self::Container(_)
            | Self::Instance(_)
            | Self::Assumed(_) => true,
            Self::Keys(_) | Self::Process(_) | Self::Login(_) => false,
        }
    }

    /// Returns the role of an SSO session that this is by itself.
    pub(crate) fn sso_role(&self) -> Option<&SsoRole> {
        match self {
            Self::Sso(role) => Some(role),
            _ => None,
        }
    }

    /// Returns the SSO session at the root of this source.
    pub(crate) fn sso_session(&self) -> Option<&SsoSession> {
        match self {
            Self::Sso(sso) => Some(&sso.session),
            Self::Assumed(assumed) => assumed.from.sso_session(),
            _ => None,
        }
    }
}

/// The name of an IAM role: `arn:aws:iam::123456789012:role/path/name`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct RoleArn {
    text: String,
    account: AccountId,
}

/// A text that names no role.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not the ARN of a role (such as `arn:aws:iam::123456789012:role/Deploy`)")]
pub(crate) struct NotARoleArn(String);

impl FromStr for RoleArn {
    type Err = NotARoleArn;

    fn from_str(text: &str) -> Result<Self, NotARoleArn> {
        let wrong = || NotARoleArn(one_line(text));
        let mut parts = text.splitn(6, ':');
        let (Some("arn"), Some(partition), Some("iam"), Some(""), Some(account), Some(resource)) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let account: AccountId = account.parse().map_err(|_| wrong())?;
        let named =
            resource.strip_prefix("role/").is_some_and(|name| !name.is_empty() && !name.ends_with('/'));
        let sound = text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic());
        if !partition.starts_with("aws") || !named || !sound {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), account })
    }
}

impl RoleArn {
    /// Returns the ARN as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the account that the role is in.
    pub(crate) fn account(&self) -> &AccountId {
        &self.account
    }

    /// Returns account and name, without the path.
    pub(crate) fn role(&self) -> Option<Role> {
        let name = self.text.rsplit('/').next()?.parse().ok()?;
        Some(Role { account: self.account.clone(), name })
    }

    /// Returns a region of the partition that the role is in, for when none is configured.
    pub(crate) fn home_region(&self) -> Option<Region> {
        let region = match self.text.split(':').nth(1)? {
            "aws-cn" => "cn-north-1",
            "aws-us-gov" => "us-gov-west-1",
            _ => "us-east-1",
        };
        region.parse().ok()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
