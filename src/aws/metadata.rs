//! Credentials of the container or the EC2 instance that we run in.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    credentials::Credentials,
    http::{Answer, Call, Http},
    profile::{Container, ContainerToken, Instance},
};
use crate::{printable::one_line, private_fs};

/// Both endpoints are on this machine or one hop away; what the SDKs allow, or a little more.
const DEADLINE: Duration = Duration::from_secs(5);

/// A machine that is no instance has nobody at that address, and often no answer at all.
const INSTANCE_DEADLINE: Duration = Duration::from_secs(2);

/// How long a session with IMDSv2 lasts; we need it for two requests.
const SESSION_SECONDS: &str = "300";

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    File(#[from] private_fs::Error),
    #[error("`{0}` does not exist")]
    NoFile(String),
    /// The endpoint understood and said no.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

/// Asks the container's endpoint.
pub(super) async fn container(
    container: &Container,
    http: &Http,
    now: impl FnOnce() -> SystemTime,
) -> Result<Credentials, Error> {
    let url = &container.url;
    super::profile::container_url(url).map_err(|fault| Error::Refused(format!("`{url}` is {fault}")))?;
    let token = match &container.token {
        ContainerToken::None => None,
        ContainerToken::Text(token) => Some(Zeroizing::new(token.expose().to_owned())),
        // Read anew each time: EKS replaces it.
        ContainerToken::File(path) => {
            let file = path.clone();
            let read = super::session::blocking(move || private_fs::read_config(&file)).await?;
            let bytes = read.ok_or_else(|| Error::NoFile(path.display().to_string()))?;
            Some(Zeroizing::new(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()))
        }
    };
    let mut headers = vec![("accept", "application/json")];
    if let Some(token) = &token {
        headers.push(("authorization", token.as_str()));
    }
    let answer = get(http, url, &headers, DEADLINE).await?;
    parse(&answer, url, now())
}

/// Asks the instance by IMDSv2, and by nothing older.
pub(super) async fn instance(
    instance: &Instance,
    http: &Http,
    now: impl FnOnce() -> SystemTime,
) -> Result<Credentials, Error> {
    let endpoint = &instance.endpoint;
    let url = format!("{endpoint}/latest/api/token");
    let headers = [("x-aws-ec2-metadata-token-ttl-seconds", SESSION_SECONDS)];
    let call =
        Call { method: "PUT", url: &url, headers: &headers, body: Some(""), deadline: INSTANCE_DEADLINE };
    let answer = checked(http.call(call).await.map_err(|e| Error::Failed(format!("`{url}`: {e}"))), &url)?;
    let session = Zeroizing::new(String::from_utf8_lossy(&answer.body).trim().to_owned());
    let headers = [("x-aws-ec2-metadata-token", session.as_str())];
    let base = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
    let role = get(http, &base, &headers, INSTANCE_DEADLINE).await?;
    let role = String::from_utf8_lossy(&role.body).lines().next().unwrap_or_default().trim().to_owned();
    if role.is_empty() || role.bytes().any(|b| !b.is_ascii_graphic() || b"/?#".contains(&b)) {
        return Err(Error::Refused("the instance has no role".to_owned()));
    }
    let url = format!("{base}{role}");
    let answer = get(http, &url, &headers, INSTANCE_DEADLINE).await?;
    parse(&answer, &url, now())
}

async fn get(
    http: &Http,
    url: &str,
    headers: &[(&'static str, &str)],
    deadline: Duration,
) -> Result<Answer, Error> {
    let call = Call { method: "GET", url, headers, body: None, deadline };
    checked(http.call(call).await.map_err(|e| Error::Failed(format!("`{url}`: {e}"))), url)
}

fn checked(answer: Result<Answer, Error>, url: &str) -> Result<Answer, Error> {
    let answer = answer?;
    let text = || one_line(&String::from_utf8_lossy(answer.body.get(..512).unwrap_or(&answer.body)));
    match answer.status {
        200 => Ok(answer),
        status @ (400..=499) => {
            Err(Error::Refused(format!("`{url}` answered with HTTP {status}: {}", text())))
        }
        status => Err(Error::Failed(format!("`{url}` answered with HTTP {status}"))),
    }
}

fn parse(answer: &Answer, url: &str, now: SystemTime) -> Result<Credentials, Error> {
    let failed = |fault: &str| Error::Failed(format!("`{url}` gave no credentials: {fault}"));
    let mut object: Map<String, Value> =
        serde_json::from_slice(&answer.body).map_err(|_| failed("it is no JSON object"))?;
    if let Some(code) = object.get("Code").and_then(Value::as_str).filter(|code| *code != "Success") {
        return Err(failed(&one_line(code)));
    }
    let credentials = Credentials::from_json(&mut object, "Token", now).map_err(|fault| failed(&fault))?;
    if credentials.session_token.is_none() || credentials.expires_at.is_none() {
        return Err(failed("`Token` or `Expiration` is missing"));
    }
    Ok(credentials)
}
