//! The registration of our client with one Identity Center, kept where and as the AWS CLI keeps its own.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

use super::{LoginError, Scene};
use crate::{
    aws::{
        oidc,
        profile::{SessionKey, SsoSession},
        time,
        token::{self, Registration},
    },
    private_fs,
};

/// A registration must outlive a login, which takes ten minutes at most (the AWS CLI's figure).
const LEFT: Duration = Duration::from_secs(15 * 60);

/// The scope without which a token opens no role; the AWS CLI asks for it where none is configured.
const DEFAULT_SCOPE: &str = "sso:account:access";

/// Where the browser comes back to, as it is registered: without a port.
const REDIRECT_URI: &str = "http://127.0.0.1/oauth/callback";

const BROWSER_GRANTS: [&str; 2] = ["authorization_code", "refresh_token"];

/// What a client is registered for; the two do not replace each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flow {
    AuthorizationCode,
    DeviceCode,
}

/// Returns the registration at hand, or a new one.
pub(super) async fn registration(scene: &Scene<'_>, flow: Flow) -> Result<Registration, LoginError> {
    let path = path(scene.home, scene.session);
    let now = scene.clock.now();
    let cached = tokio::task::spawn_blocking({
        let path = path.clone();
        move || private_fs::read(&path)
    });
    match cached.await {
        Ok(Ok(Some(bytes))) => {
            if let Some(registration) = parse(&bytes, flow, now) {
                return Ok(registration);
            }
        }
        Ok(Err(error)) => tracing::warn!(%error, "ignored a client registration"),
        Ok(Ok(None)) | Err(_) => {}
    }
    let scopes = scopes(scene.session, flow);
    let name = match &scene.session.name {
        SessionKey::Session(name) if name.is_ascii() => format!("botocore-client-{name}"),
        SessionKey::Session(_) | SessionKey::StartUrl => {
            let epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            format!("botocore-client-{epoch}")
        }
    };
    let redirect_uri = (flow == Flow::AuthorizationCode).then_some(REDIRECT_URI);
    let registration =
        oidc::register_client(scene.clients, scene.portal, &name, &scopes, redirect_uri).await?;
    let bytes = to_json(&registration, &scopes, flow);
    let written = tokio::task::spawn_blocking(move || private_fs::write(&path, &bytes)).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "could not keep the client registration; the next login makes a new one");
    }
    Ok(registration)
}

/// Forgets a registration that AWS does not accept.
pub(super) async fn forget(scene: &Scene<'_>) {
    let path = path(scene.home, scene.session);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || private_fs::remove(&path)).await {
        tracing::warn!(%error, "could not remove a stale client registration");
    }
}

/// Returns the scopes to ask for.
pub(super) fn scopes(session: &SsoSession, flow: Flow) -> Vec<String> {
    match flow {
        Flow::AuthorizationCode if session.scopes.is_empty() => vec![DEFAULT_SCOPE.to_owned()],
        Flow::AuthorizationCode | Flow::DeviceCode => session.scopes.clone(),
    }
}

fn path(home: &Path, session: &SsoSession) -> PathBuf {
    token::directory(home).join(format!("{}.json", token::file_stem(&cache_key(session))))
}

/// Returns what the AWS CLI hashes: Python's JSON of these five members, sorted.
fn cache_key(session: &SsoSession) -> String {
    let scopes = if session.scopes.is_empty() {
        "null".to_owned()
    } else {
        let scopes: Vec<_> = session.scopes.iter().map(|scope| token::python_json(scope)).collect();
        format!("[{}]", scopes.join(", "))
    };
    let name = match &session.name {
        SessionKey::Session(name) => token::python_json(name),
        SessionKey::StartUrl => "null".to_owned(),
    };
    format!(
        r#"{{"region": {}, "scopes": {scopes}, "session_name": {name}, "startUrl": {}, "tool": "botocore"}}"#,
        token::python_json(session.region.as_str()),
        token::python_json(session.start_url.as_str()),
    )
}

fn parse(bytes: &[u8], flow: Flow, now: SystemTime) -> Option<Registration> {
    let mut map: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    // None at all means the device flow, which is older than this member.
    let for_browser = match map.get("grantTypes") {
        None => false,
        Some(Value::Array(grants)) => {
            let mut grants: Vec<_> = grants.iter().filter_map(Value::as_str).collect();
            grants.sort_unstable();
            grants == BROWSER_GRANTS
        }
        Some(_) => return None,
    };
    let registration = token::registration_in(&mut map, "expiresAt")?;
    let left = registration.expires_at.duration_since(now).ok()?;
    (left > LEFT && for_browser == (flow == Flow::AuthorizationCode)).then_some(registration)
}

fn to_json(registration: &Registration, scopes: &[String], flow: Flow) -> zeroize::Zeroizing<Vec<u8>> {
    let mut map = Map::new();
    map.insert("clientId".to_owned(), registration.client_id.as_str().into());
    map.insert("clientSecret".to_owned(), registration.client_secret.expose_secret().into());
    map.insert("expiresAt".to_owned(), time::format(registration.expires_at).into());
    if !scopes.is_empty() {
        map.insert("scopes".to_owned(), scopes.into());
    }
    if flow == Flow::AuthorizationCode {
        map.insert("grantTypes".to_owned(), BROWSER_GRANTS.as_slice().into());
    }
    token::to_bytes(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::token::tests::session;

    #[test]
    fn the_file_is_named_as_the_aws_cli_names_it() {
        let session = SsoSession {
            name: SessionKey::Session("test-session".into()),
            start_url: "https://mysigin.com".parse().unwrap(),
            region: "us-west-2".parse().unwrap(),
            scopes: Vec::new(),
        };
        assert_eq!(token::file_stem(&cache_key(&session)), "e29e77fd24ed96c96917a17e551cd7c94998d6bd");
        let session =
            SsoSession { scopes: vec!["a".into(), "b".into()], name: SessionKey::StartUrl, ..session };
        assert_eq!(
            cache_key(&session),
            r#"{"region": "us-west-2", "scopes": ["a", "b"], "session_name": null, "startUrl": "https://mysigin.com", "tool": "botocore"}"#
        );
    }

    #[test]
    fn a_registration_is_reused_for_its_own_flow_and_while_it_lasts() {
        let now = time::from_epoch(1_800_000_000);
        let registration = |left: u64| Registration {
            client_id: "id".into(),
            client_secret: "secret".to_owned().into(),
            expires_at: now + Duration::from_secs(left),
        };
        for flow in [Flow::AuthorizationCode, Flow::DeviceCode] {
            let json = to_json(&registration(901), &scopes(&session(), flow), flow);
            for other in [Flow::AuthorizationCode, Flow::DeviceCode] {
                assert_eq!(parse(&json, other, now).is_some(), flow == other, "{flow:?} for {other:?}");
            }
            let json = to_json(&registration(900), &[], flow);
            assert!(parse(&json, flow, now).is_none());
        }
        assert!(parse(b"{}", Flow::DeviceCode, now).is_none());
        assert!(parse(b"\xff", Flow::DeviceCode, now).is_none());
    }

    #[test]
    fn the_content_is_that_of_the_aws_cli() {
        let registration = Registration {
            client_id: "id".into(),
            client_secret: "secret".to_owned().into(),
            expires_at: time::from_epoch(1_800_000_000),
        };
        let json = to_json(&registration, &[DEFAULT_SCOPE.into()], Flow::AuthorizationCode);
        assert_eq!(
            serde_json::from_slice::<Value>(&json).unwrap(),
            serde_json::json!({
                "clientId": "id", "clientSecret": "secret", "expiresAt": "2027-01-15T08:00:00Z",
                "scopes": ["sso:account:access"], "grantTypes": ["authorization_code", "refresh_token"],
            })
        );
        let json = to_json(&registration, &[], Flow::DeviceCode);
        assert_eq!(serde_json::from_slice::<Map<String, Value>>(&json).unwrap().len(), 3);
    }
}
