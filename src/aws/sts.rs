//! STS: other credentials for those at hand, and whether those are good.

use std::time::SystemTime;

use aws_sdk_sts::{
    config::{Builder, Credentials as SdkCredentials},
    types::{Credentials as Answered, PolicyDescriptorType},
};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    client::{Clients, Failure},
    credentials::Credentials,
    profile::{AssumeRole, RoleArn, WebIdentity},
    time,
};
use crate::names::AccountId;

/// What AWS gives at most to a role that is assumed with the credentials of a role.
pub(super) const CHAINED: u32 = 3600;

/// Why there are no credentials, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The credentials that we signed with have ended.
    #[error("AWS does not accept the credentials any more")]
    Expired(#[source] Failure),
    /// AWS understood and said no.
    #[error("AWS says no")]
    Denied(#[source] Failure),
    /// The code of the MFA device is wrong or was used before.
    #[error("AWS does not accept the code")]
    WrongCode(#[source] Failure),
    /// Worth another try after a while.
    #[error("STS did not answer properly")]
    Transient(#[source] Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let code_is_wrong = failure.message.as_deref().is_some_and(|text| {
            text.contains("MultiFactorAuthentication failed") || text.contains("MFA one time pass")
        });
        match failure.code.as_deref() {
            Some("AccessDenied") if code_is_wrong => Self::WrongCode(failure),
            Some("ExpiredToken" | "ExpiredTokenException" | "RequestExpired") => Self::Expired(failure),
            Some("Throttling" | "ThrottlingException" | "RequestLimitExceeded" | "IDPCommunicationError") => {
                Self::Transient(failure)
            }
            Some(_) if failure.is_refusal() => Self::Denied(failure),
            _ => Self::Transient(failure),
        }
    }
}

impl Error {
    /// Returns what AWS said.
    pub(super) fn failure(&self) -> &Failure {
        match self {
            Self::Expired(failure)
            | Self::Denied(failure)
            | Self::WrongCode(failure)
            | Self::Transient(failure) => failure,
        }
    }

    fn says(&self, text: &str) -> bool {
        self.failure().message.as_deref().is_some_and(|message| message.contains(text))
    }
}

/// The code that a person read from a device.
pub(super) struct Mfa<'a> {
    pub(super) serial: &'a str,
    pub(super) code: &'a SecretString,
}

/// Assumes a role with `from`.
pub(super) async fn assume_role(
    clients: &Clients,
    from: &Credentials,
    role: &AssumeRole,
    session_name: &str,
    mfa: Option<&Mfa<'_>>,
    now: impl Fn() -> SystemTime,
) -> Result<Credentials, Error> {
    let restriction = &role.restriction;
    let mut source_identity = restriction.source_identity.clone();
    let mut duration = role.duration;
    loop {
        let mut call = clients
            .sts()
            .assume_role()
            .role_arn(role.arn.as_str())
            .role_session_name(session_name)
            .set_external_id(role.external_id.clone())
            .set_duration_seconds(duration.and_then(|seconds| i32::try_from(seconds).ok()))
            .set_policy(restriction.policy.clone())
            .set_source_identity(source_identity.clone());
        for arn in &restriction.policy_arns {
            call = call.policy_arns(PolicyDescriptorType::builder().arn(arn).build());
        }
        if let Some(mfa) = mfa {
            call = call.serial_number(mfa.serial).token_code(mfa.code.expose_secret());
        }
        let sent = call.customize().config_override(signed_by(from)).send().await;
        let error = match sent {
            Ok(answer) => return credentials(answer.credentials, Some(&role.arn), now()),
            Err(error) => Error::from(Failure::from(error)),
        };
        // Naming the person in CloudTrail is a courtesy that the role's trust policy may not know of.
        if source_identity.is_some() && error.says("SetSourceIdentity") {
            tracing::debug!(role = %role.arn, "the trust policy of the role allows no source identity");
            source_identity = None;
        } else if duration.is_some_and(|seconds| seconds > CHAINED) && error.says("role chaining") {
            duration = Some(CHAINED);
        } else {
            return Err(error);
        }
    }
}

/// Assumes a role with a token that somebody else signed; nothing of ours signs this.
pub(super) async fn assume_role_with_web_identity(
    clients: &Clients,
    web: &WebIdentity,
    session_name: &str,
    token: &SecretString,
    now: impl Fn() -> SystemTime,
) -> Result<Credentials, Error> {
    let answer = clients
        .sts()
        .assume_role_with_web_identity()
        .role_arn(web.role.as_str())
        .role_session_name(session_name)
        .web_identity_token(token.expose_secret())
        .send()
        .await
        .map_err(Failure::from)?;
    credentials(answer.credentials, Some(&web.role), now())
}

/// Makes a session of long-lived keys.
pub(super) async fn session_token(
    clients: &Clients,
    keys: &Credentials,
    seconds: i32,
    mfa: Option<&Mfa<'_>>,
    now: impl Fn() -> SystemTime,
) -> Result<Credentials, Error> {
    let mut call = clients.sts().get_session_token().duration_seconds(seconds);
    if let Some(mfa) = mfa {
        call = call.serial_number(mfa.serial).token_code(mfa.code.expose_secret());
    }
    let answer = call.customize().config_override(signed_by(keys)).send().await.map_err(Failure::from)?;
    let mut session = credentials(answer.credentials, None, now())?;
    session.account.clone_from(&keys.account);
    Ok(session)
}

/// Asks AWS whose these are, which works for all that are good.
pub(super) async fn account(clients: &Clients, of: &Credentials) -> Result<Option<AccountId>, Error> {
    let call = clients.sts().get_caller_identity().customize().config_override(signed_by(of));
    let answer = call.send().await.map_err(Failure::from)?;
    Ok(answer.account.and_then(|account| account.parse().ok()))
}

fn signed_by(credentials: &Credentials) -> Builder {
    let token = credentials.session_token.as_ref().map(|token| token.expose_secret().to_owned());
    let secret = credentials.secret_access_key.expose_secret();
    aws_sdk_sts::Config::builder().credentials_provider(SdkCredentials::new(
        &credentials.access_key_id,
        secret,
        token,
        None,
        "broker",
    ))
}

fn credentials(
    answer: Option<Answered>,
    role: Option<&RoleArn>,
    now: SystemTime,
) -> Result<Credentials, Error> {
    let garbled = |what| Error::Transient(Failure::garbled(what));
    let answer = answer.ok_or_else(|| garbled("AWS answered without credentials"))?;
    let sound = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if ![&answer.access_key_id, &answer.secret_access_key, &answer.session_token]
        .into_iter()
        .all(|t| sound(t))
    {
        return Err(garbled("AWS answered with incomplete credentials"));
    }
    let expires_at = time::from_epoch(u64::try_from(answer.expiration.secs()).unwrap_or(0));
    if expires_at <= now {
        return Err(garbled("AWS answered with expired credentials; is the clock of this machine right?"));
    }
    Ok(Credentials {
        access_key_id: answer.access_key_id,
        secret_access_key: answer.secret_access_key.into(),
        session_token: Some(answer.session_token.into()),
        issued_at: now,
        expires_at: Some(expires_at),
        account: role.map(|role| role.account().clone()),
        role_arn: role.map(|role| role.as_str().to_owned()),
    })
}
