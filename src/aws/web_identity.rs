//! The token of a web identity: from a file, or from the CI system that we run in. Read anew for every use.

use std::time::Duration;

use secrecy::SecretString;

use super::{
    client::check_url,
    http::{Call, Http},
    process,
    profile::IdentityToken,
};
use crate::{printable::one_line, private_fs};

/// Whom the token is for; what AWS's own action for GitHub asks for, too.
const AUDIENCE: &str = "sts.amazonaws.com";

/// GitHub's service answers in well under a second.
const GITHUB_DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    File(#[from] private_fs::Error),
    #[error("`{0}` does not exist")]
    NoFile(String),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("GitHub gave no token: {0}")]
    GitHub(String),
    #[error("{0} is empty or has characters that no token has")]
    Garbled(String),
}

/// Returns the token.
pub(super) async fn token(from: &IdentityToken, http: &Http) -> Result<SecretString, Error> {
    let text = match from {
        IdentityToken::File(path) => {
            let file = path.clone();
            let read = super::session::blocking(move || private_fs::read_config(&file)).await?;
            let bytes = read.ok_or_else(|| Error::NoFile(path.display().to_string()))?;
            zeroize::Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
        IdentityToken::Variable { token, .. } => zeroize::Zeroizing::new(token.expose().to_owned()),
        IdentityToken::GitHub { url, token } => github(url, token.expose(), http).await?,
        IdentityToken::Buildkite => {
            let words = ["buildkite-agent", "oidc", "request-token", "--audience", AUDIENCE];
            let output = process::run(&words.map(str::to_owned), 1).await?;
            zeroize::Zeroizing::new(String::from_utf8_lossy(&output).into_owned())
        }
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Garbled(from.to_string()));
    }
    Ok(token.to_owned().into())
}

async fn github(url: &str, token: &str, http: &Http) -> Result<zeroize::Zeroizing<String>, Error> {
    let wrong = |fault: &str| Error::GitHub(one_line(fault));
    check_url(url).map_err(|fault| wrong(&format!("`ACTIONS_ID_TOKEN_REQUEST_URL` is {fault}")))?;
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}audience={AUDIENCE}");
    let authorization = zeroize::Zeroizing::new(format!("bearer {token}"));
    let headers = [("authorization", authorization.as_str()), ("accept", "application/json")];
    let call = Call { method: "GET", url: &url, headers: &headers, body: None, deadline: GITHUB_DEADLINE };
    let answer = http.call(call).await.map_err(|e| wrong(&e.to_string()))?;
    if answer.status != 200 {
        return Err(wrong(&format!(
            "HTTP {} (does the job have `permissions: id-token: write`?)",
            answer.status
        )));
    }
    let mut value: serde_json::Value =
        serde_json::from_slice(&answer.body).map_err(|_| wrong("its answer is no JSON"))?;
    match value.get_mut("value").map(serde_json::Value::take) {
        Some(serde_json::Value::String(token)) => Ok(zeroize::Zeroizing::new(token)),
        _ => Err(wrong("its answer has no token")),
    }
}
