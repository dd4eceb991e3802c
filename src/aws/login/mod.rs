//! How a person signs in to IAM Identity Center: in the browser (authorization code with PKCE) or by device code.
//!
//! Owns the conversation with the person, with the browser and with the OIDC service. What comes out is a token; the
//! caller writes it into the cache. Registrations of our client are shared with the AWS CLI as well.

mod callback;
mod device;
mod page;
mod pkce;
mod registration;
pub(super) mod vanity;

use std::{io, path::Path};

use self::vanity::Portal;
use super::{
    client::{Clients, Failure},
    http::Http,
    oidc,
    profile::{SessionKey, SsoSession, StartUrl},
    token::SsoToken,
};
use crate::{clock::Clock, human::Human, printable::one_line};

/// How to log in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LoginMethod {
    /// Authorization code with PKCE, in a browser on this machine. Legacy profiles confirm a device code there, as
    /// with the AWS CLI: their tokens cannot be refreshed by the tools that read them.
    Browser,
    /// A code that the person types into a browser on any machine.
    DeviceCode,
}

/// Why a login failed, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("nobody finished the login in the browser in time")]
    TimedOut,
    #[error("the login was denied: {reason}")]
    Denied { reason: String },
    #[error("AWS refused the login: {reason}")]
    Refused { reason: String },
    #[error("the start URL `{url}` leads to no access portal: {reason}")]
    NoPortal { url: String, reason: String },
    #[error("could not listen on 127.0.0.1 for the browser")]
    Listen(#[source] io::Error),
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    #[error("the sign-in service of AWS did not answer properly")]
    Transient(#[source] Failure),
}

impl LoginError {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::TimedOut | Self::Denied { .. } => Some("try again, and confirm in the browser".to_owned()),
            Self::Refused { .. } => {
                Some("check `sso_start_url` and `sso_region` in ~/.aws/config".to_owned())
            }
            Self::NoPortal { .. } => Some(
                "check `sso_start_url`; the portal's own address (https://….awsapps.com/start) works without a redirect"
                    .to_owned(),
            ),
            Self::Listen(_) => Some("log in by device code".to_owned()),
            Self::Transient(_) => Some("check the network, then try again".to_owned()),
            Self::NoRandomness => None,
        }
    }
}

impl From<oidc::Error> for LoginError {
    fn from(error: oidc::Error) -> Self {
        match error {
            oidc::Error::Expired | oidc::Error::Pending | oidc::Error::SlowDown => Self::TimedOut,
            oidc::Error::Denied(failure) => Self::Denied { reason: failure.words().to_owned() },
            oidc::Error::StaleClient(failure) | oidc::Error::Refused(failure) => {
                Self::Refused { reason: failure.words().to_owned() }
            }
            oidc::Error::Transient(failure) => Self::Transient(failure),
        }
    }
}

/// What every step of a login needs.
struct Scene<'a> {
    session: &'a SsoSession,
    /// The session's access portal by the name that AWS gave it.
    portal: &'a StartUrl,
    home: &'a Path,
    clients: &'a Clients,
    clock: &'a Clock,
    human: &'a dyn Human,
}

/// Leads a person through a login and returns the token. Ends by itself after ten minutes or so.
pub(super) async fn login(
    session: &SsoSession,
    method: LoginMethod,
    home: &Path,
    clients: &Clients,
    clock: &Clock,
    human: &dyn Human,
) -> Result<SsoToken, LoginError> {
    let Portal { url: portal, region } = vanity::portal(session, &Http::default()).await?;
    let there = (region != *clients.region()).then(|| clients.in_region(region.clone()));
    let clients = there.as_ref().unwrap_or(clients);
    let configured = &session.region;
    let session = &SsoSession { region, ..session.clone() };
    let scene = Scene { session, portal: &portal, home, clients, clock, human };
    let token = match (method, &session.name) {
        (LoginMethod::Browser, SessionKey::Session(_)) => pkce::login(&scene).await,
        (LoginMethod::Browser, SessionKey::StartUrl) => device::login(&scene, true).await,
        (LoginMethod::DeviceCode, _) => device::login(&scene, false).await,
    }?;
    if session.region != *configured {
        // The AWS CLI rewrites the file; it is the person's, so that we say what to write.
        scene.tell(&format!(
            "the access portal of `{session}` is in {}, and not in {configured}: set `sso_region = {}` in ~/.aws/config, \
             or the AWS CLI and SDKs will not find it",
            session.region, session.region
        ));
    }
    Ok(token)
}

impl Scene<'_> {
    fn tell(&self, text: &str) {
        self.human.tell(text);
    }

    fn token(&self, issued: oidc::Issued, registration: super::token::Registration) -> SsoToken {
        let expires_at = issued.expires_at(self.clock.now());
        SsoToken::issued(self.session, issued.access_token, expires_at, issued.refresh_token, registration)
    }
}

/// Returns a URL from AWS if a browser may be sent there.
fn browsable(url: &str) -> Result<&str, LoginError> {
    match super::client::check_url(url) {
        Ok(_) => Ok(url),
        Err(fault) => Err(LoginError::Refused {
            reason: format!("it sent us to `{}`, which is {fault}", one_line(url)),
        }),
    }
}

/// Returns `bytes` random bytes in base64url.
fn random_text<const BYTES: usize>() -> Result<secrecy::SecretString, LoginError> {
    use base64::Engine as _;

    let mut bytes = zeroize::Zeroizing::new([0u8; BYTES]);
    crate::random::fill(bytes.as_mut_slice()).map_err(|_| LoginError::NoRandomness)?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes.as_slice()).into())
}
