//! `login_session`: what `aws login` (AWS CLI 2.32 and later) left in `~/.aws/login/cache`, read and refreshed.
//!
//! The file holds credentials that live 15 minutes, and a refresh token that is bound to a key in the same file
//! (DPoP, RFC 9449). A refresh goes the way of the SSO token: lock, read again, ask, write the whole file anew, with
//! all that others wrote into it. Wire format: botocore 1.44.5, `LoginCredentialFetcher`, and its model of the
//! `signin` service.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{
    client::Endpoints,
    credentials::Credentials,
    http::{Call, Http},
    profile::LoginSession,
    session::blocking,
    time, token,
};
use crate::{
    names::Region,
    printable::one_line,
    private_fs::{self, Lock},
    random,
};

/// As the AWS CLI and every SDK have it.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// One call to a service that answers in well under a second.
const DEADLINE: Duration = Duration::from_secs(10);

/// Longer than a refresh takes, so that we outwait another process's.
const LOCK_TIMEOUT: Duration = Duration::from_secs(12);

/// The longest life that the service gives.
const LONGEST_LIFE: u64 = 12 * 3600;

/// Why there are no credentials, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A person has to run `aws login`.
    #[error("{0}")]
    LoginNeeded(String),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Transient(String),
}

/// Returns the credentials of the session, refreshed if they are about to end.
pub(super) async fn credentials(
    session: &LoginSession,
    region: &Region,
    endpoints: &Endpoints,
    http: &Http,
    now: impl Fn() -> SystemTime,
) -> Result<Credentials, Error> {
    let path = path(session);
    let read = |path: PathBuf| blocking(move || private_fs::read(&path));
    let file = parse(read(path.clone()).await, session)?;
    if let Some(credentials) = file.credentials(now())
        && credentials.expires_at.is_some_and(|at| at > now() + REFRESH)
    {
        return Ok(credentials);
    }
    let lock = lock(&path).await;
    // Perhaps another process was faster.
    let mut file = parse(read(path.clone()).await, session)?;
    let old = file.credentials(now());
    if let Some(credentials) = old.as_ref()
        && credentials.expires_at.is_some_and(|at| at > now() + REFRESH)
    {
        return file.credentials(now()).ok_or_else(|| needed(session, "is not whole"));
    }
    match file.refresh(session, region, endpoints, http, &now).await {
        Ok(()) => {}
        // What is still good is served to its end.
        Err(Error::Transient(why)) => {
            tracing::warn!(profile = %session.profile, why, "the session of `aws login` was not refreshed");
            return old.ok_or(Error::Transient(why));
        }
        Err(error) => return Err(error),
    }
    let credentials = file.credentials(now());
    let bytes = token::to_bytes(file.0);
    if let Err(error) = blocking(move || private_fs::write(&path, &bytes)).await {
        tracing::warn!(profile = %session.profile, %error, "could not save the session of `aws login`");
    }
    drop(lock);
    credentials.ok_or_else(|| Error::Transient("the sign-in service gave incomplete credentials".to_owned()))
}

fn path(session: &LoginSession) -> PathBuf {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, session.name.trim().as_bytes());
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    session.directory.join(hex).with_extension("json")
}

async fn lock(path: &std::path::Path) -> Option<Lock> {
    let path = path.with_extension("lock");
    let lock = blocking(move || private_fs::lock(&path, LOCK_TIMEOUT)).await;
    // Where no lock file can be made, nobody else refreshes either.
    lock.inspect_err(|error| tracing::warn!(%error, "could not lock the session of `aws login`")).ok()
}

fn needed(session: &LoginSession, fact: &str) -> Error {
    let profile = one_line(&session.profile);
    Error::LoginNeeded(format!(
        "the session that `aws login` made for profile `{profile}` {fact}; run `aws login --profile {profile}` on your laptop"
    ))
}

fn parse(
    read: Result<Option<Zeroizing<Vec<u8>>>, private_fs::Error>,
    session: &LoginSession,
) -> Result<File, Error> {
    let bytes = match read {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(needed(session, "does not exist")),
        Err(error) => {
            tracing::warn!(%error, hint = error.hint().as_deref(), "ignored a session of `aws login`");
            return Err(needed(session, "cannot be used"));
        }
    };
    serde_json::from_slice(&bytes).map(File).map_err(|_| needed(session, "is not whole"))
}

/// The whole file, so that nothing that others wrote is lost.
struct File(Map<String, Value>);

impl File {
    fn text(&self, key: &str) -> Option<&str> {
        let text = self.0.get(key)?.as_str()?;
        (!text.is_empty()).then_some(text)
    }

    /// Returns the credentials if there are any that live.
    fn credentials(&self, now: SystemTime) -> Option<Credentials> {
        let access = self.0.get("accessToken")?.as_object()?;
        let text = |key: &str| {
            let text = access.get(key)?.as_str()?;
            (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
        };
        let expires_at = time::parse(access.get("expiresAt")?.as_str()?)?;
        Some(Credentials {
            access_key_id: text("accessKeyId")?,
            secret_access_key: text("secretAccessKey")?.into(),
            session_token: Some(text("sessionToken")?.into()),
            issued_at: now,
            expires_at: Some(expires_at).filter(|at| *at > now)?.into(),
            account: text("accountId").and_then(|account| account.parse().ok()),
            role_arn: None,
        })
    }

    async fn refresh(
        &mut self,
        session: &LoginSession,
        region: &Region,
        endpoints: &Endpoints,
        http: &Http,
        now: impl Fn() -> SystemTime,
    ) -> Result<(), Error> {
        let whole = || needed(session, "is not whole");
        let (Some(client_id), Some(refresh_token), Some(pem)) =
            (self.text("clientId"), self.text("refreshToken"), self.text("dpopKey"))
        else {
            return Err(whole());
        };
        // The region of the sign-in counts before the profile's; older logins did not write it down.
        let region = match self.text("signInRegion") {
            Some(region) => region.parse().map_err(|_| whole())?,
            None => region.clone(),
        };
        let url = format!("{}/v1/token", endpoints.signin(&region));
        let proof = Zeroizing::new(proof(pem, &url, now()).ok_or_else(whole)?);
        let body = Zeroizing::new(
            json!({"clientId": client_id, "grantType": "refresh_token", "refreshToken": refresh_token})
                .to_string(),
        );
        let headers = [("content-type", "application/json"), ("dpop", proof.as_str())];
        let call =
            Call { method: "POST", url: &url, headers: &headers, body: Some(&body), deadline: DEADLINE };
        let answer = http
            .call(call)
            .await
            .map_err(|e| Error::Transient(format!("the sign-in service of AWS did not answer: {e}")))?;
        let object: Option<Map<String, Value>> = serde_json::from_slice(&answer.body).ok();
        match (answer.status, object) {
            (200, Some(object)) => self.take(object, now()).ok_or_else(|| {
                Error::Transient("the sign-in service of AWS gave an incomplete answer".to_owned())
            }),
            (status @ 400..=499, Some(object)) if status != 429 => {
                let text = |key: &str| object.get(key).and_then(Value::as_str).map(one_line);
                match text("error").as_deref() {
                    Some("TOKEN_EXPIRED" | "AUTHCODE_EXPIRED") => Err(needed(session, "expired")),
                    Some("USER_CREDENTIALS_CHANGED") => {
                        Err(needed(session, "ended, because your password was changed"))
                    }
                    Some("INSUFFICIENT_PERMISSIONS") => Err(Error::Denied(format!(
                        "AWS does not let you refresh the session of `aws login` (profile `{}`); the policy \
                         `SignInLocalDevelopmentAccess` does",
                        one_line(&session.profile)
                    ))),
                    _ => Err(needed(
                        session,
                        &format!(
                            "was refused ({})",
                            text("message")
                                .or_else(|| text("error"))
                                .unwrap_or_else(|| format!("HTTP {status}"))
                        ),
                    )),
                }
            }
            (status, _) => {
                Err(Error::Transient(format!("the sign-in service of AWS answered with HTTP {status}")))
            }
        }
    }

    /// Puts new credentials in the place of the old ones.
    fn take(&mut self, mut answer: Map<String, Value>, now: SystemTime) -> Option<()> {
        let fresh = answer.get("accessToken")?.as_object()?;
        let text = |key: &str| fresh.get(key)?.as_str().filter(|text| !text.is_empty());
        let seconds =
            answer.get("expiresIn")?.as_u64().filter(|seconds| (1..=LONGEST_LIFE).contains(seconds))?;
        let account = self.0.get("accessToken").and_then(|old| old.get("accountId")).cloned();
        let access = json!({
            "accessKeyId": text("accessKeyId")?,
            "secretAccessKey": text("secretAccessKey")?,
            "sessionToken": text("sessionToken")?,
            "accountId": account,
            "expiresAt": time::format(now + Duration::from_secs(seconds)),
        });
        // An answer without one means that the old one stays good.
        if let Some(Value::String(refresh_token)) = answer.remove("refreshToken") {
            self.0.insert("refreshToken".to_owned(), refresh_token.into());
        }
        self.0.insert("accessToken".to_owned(), access);
        Some(())
    }
}

/// Returns the header that proves that we hold the key to which the refresh token is bound.
fn proof(pem: &str, url: &str, now: SystemTime) -> Option<String> {
    let base64: Zeroizing<String> =
        Zeroizing::new(pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect());
    let der = Zeroizing::new(STANDARD.decode(base64.as_bytes()).ok()?);
    let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).ok()?;
    // Uncompressed: 04, x, y.
    let (x, y) = key.public_key().as_ref().strip_prefix(&[4])?.split_at_checked(32)?;
    let mut id = [0u8; 16];
    random::fill(&mut id).ok()?;
    let header = json!({
        "typ": "dpop+jwt",
        "alg": "ES256",
        "jwk": {"kty": "EC", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y), "crv": "P-256"},
    });
    let payload = json!({
        "htm": "POST",
        "htu": url,
        "iat": now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs(),
        "jti": uuid(id),
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&payload));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
}

/// Writes a random UUID (version 4).
fn uuid(bytes: [u8; 16]) -> String {
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | (4 << 76) | (2 << 62);
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}
