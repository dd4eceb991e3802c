//! The three calls of the OIDC service, and what their answers mean.

use std::time::{Duration, SystemTime};

use aws_sdk_ssooidc::operation::create_token::builders::CreateTokenFluentBuilder;
use secrecy::{ExposeSecret, SecretString};

use super::{
    client::{Clients, Failure},
    profile::StartUrl,
    time,
    token::Registration,
};

const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Why no token came, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The person has not answered yet.
    #[error("the login is still pending")]
    Pending,
    /// As `Pending`, and we ask too often.
    #[error("the login is still pending, and we ask too often")]
    SlowDown,
    /// The code of this login is too old.
    #[error("the code expired")]
    Expired,
    /// The person, or their administrator, said no.
    #[error("the login was denied")]
    Denied(#[source] Failure),
    /// The client registration is not accepted; a new one may be.
    #[error("AWS does not know the registration of this client any more")]
    StaleClient(#[source] Failure),
    /// The grant (code or refresh token) is not accepted, now or later.
    #[error("AWS does not accept it any more")]
    Refused(#[source] Failure),
    /// Worth another try after a while.
    #[error("the sign-in service of AWS did not answer properly")]
    Transient(#[source] Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.code.as_deref() {
            Some("AuthorizationPendingException") => Self::Pending,
            Some("SlowDownException") => Self::SlowDown,
            Some("ExpiredTokenException") => Self::Expired,
            Some("AccessDeniedException") => Self::Denied(failure),
            Some("InvalidClientException" | "UnauthorizedClientException") => Self::StaleClient(failure),
            Some(_) if failure.is_refusal() => Self::Refused(failure),
            _ => Self::Transient(failure),
        }
    }
}

/// What CreateToken gave.
pub(crate) struct Issued {
    pub(crate) access_token: SecretString,
    pub(crate) refresh_token: Option<SecretString>,
    pub(crate) expires_in: Duration,
}

/// A login by device code that a person has to confirm.
pub(crate) struct DeviceAuthorization {
    pub(crate) device_code: SecretString,
    pub(crate) user_code: String,
    pub(crate) verification_uri: String,
    pub(crate) verification_uri_complete: Option<String>,
    pub(crate) expires_in: Duration,
    pub(crate) interval: Duration,
}

/// Registers a client. `browser` registers it for authorization codes instead of device codes.
pub(crate) async fn register_client(
    clients: &Clients,
    portal: &StartUrl,
    name: &str,
    scopes: &[String],
    browser: Option<&str>,
) -> Result<Registration, Error> {
    let mut request = clients.oidc().register_client().client_name(name).client_type("public");
    if !scopes.is_empty() {
        request = request.set_scopes(Some(scopes.to_vec()));
    }
    if let Some(redirect_uri) = browser {
        request = request
            .grant_types("authorization_code")
            .grant_types("refresh_token")
            .redirect_uris(redirect_uri)
            .issuer_url(portal.as_str());
    }
    let answer = request.send().await.map_err(Failure::from)?;
    let (Some(client_id), Some(client_secret)) = (answer.client_id, answer.client_secret) else {
        return Err(Error::Transient(Failure::garbled("a registration without id or secret")));
    };
    Ok(Registration {
        client_id,
        client_secret: client_secret.into(),
        expires_at: time::from_epoch(u64::try_from(answer.client_secret_expires_at).unwrap_or(0)),
    })
}

/// Starts a login by device code.
pub(crate) async fn start_device_authorization(
    clients: &Clients,
    portal: &StartUrl,
    registration: &Registration,
) -> Result<DeviceAuthorization, Error> {
    let answer = clients
        .oidc()
        .start_device_authorization()
        .client_id(&registration.client_id)
        .client_secret(registration.client_secret.expose_secret())
        .start_url(portal.as_str())
        .send()
        .await
        .map_err(Failure::from)?;
    let (Some(device_code), Some(user_code), Some(verification_uri)) =
        (answer.device_code, answer.user_code, answer.verification_uri)
    else {
        return Err(Error::Transient(Failure::garbled("a device authorization without its codes")));
    };
    Ok(DeviceAuthorization {
        device_code: device_code.into(),
        user_code,
        verification_uri,
        verification_uri_complete: answer.verification_uri_complete,
        expires_in: seconds(answer.expires_in).unwrap_or(Duration::from_secs(600)),
        interval: seconds(answer.interval).unwrap_or(Duration::from_secs(5)),
    })
}

/// Asks whether the person has confirmed the device code.
pub(crate) async fn redeem_device_code(
    clients: &Clients,
    registration: &Registration,
    device_code: &SecretString,
) -> Result<Issued, Error> {
    let request = create_token(clients, registration);
    issued(request.grant_type(DEVICE_CODE).device_code(device_code.expose_secret())).await
}

/// Redeems the code that the browser brought back.
pub(crate) async fn redeem_authorization_code(
    clients: &Clients,
    registration: &Registration,
    code: &SecretString,
    verifier: &SecretString,
    redirect_uri: &str,
) -> Result<Issued, Error> {
    let request = create_token(clients, registration)
        .grant_type("authorization_code")
        .code(code.expose_secret())
        .code_verifier(verifier.expose_secret())
        .redirect_uri(redirect_uri);
    issued(request).await
}

/// Redeems a refresh token.
pub(crate) async fn refresh(
    clients: &Clients,
    registration: &Registration,
    refresh_token: &SecretString,
) -> Result<Issued, Error> {
    let request = create_token(clients, registration);
    issued(request.grant_type("refresh_token").refresh_token(refresh_token.expose_secret())).await
}

fn create_token(clients: &Clients, registration: &Registration) -> CreateTokenFluentBuilder {
    clients
        .oidc()
        .create_token()
        .client_id(&registration.client_id)
        .client_secret(registration.client_secret.expose_secret())
}

async fn issued(request: CreateTokenFluentBuilder) -> Result<Issued, Error> {
    let answer = request.send().await.map_err(Failure::from)?;
    let sound = |token: &String| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    let (Some(access_token), Some(expires_in)) =
        (answer.access_token.filter(sound), seconds(answer.expires_in))
    else {
        return Err(Error::Transient(Failure::garbled("a token that is incomplete or already expired")));
    };
    Ok(Issued {
        access_token: access_token.into(),
        refresh_token: answer.refresh_token.filter(sound).map(SecretString::from),
        expires_in,
    })
}

fn seconds(count: i32) -> Option<Duration> {
    u64::try_from(count).ok().filter(|count| *count > 0).map(Duration::from_secs)
}

impl Issued {
    /// Returns when the access token expires, if it was issued at `now`.
    pub(crate) fn expires_at(&self, now: SystemTime) -> SystemTime {
        now.checked_add(self.expires_in).unwrap_or(now)
    }
}
