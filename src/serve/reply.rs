//! What we answer: the one place where credentials become bytes, which are wiped when they have been sent.

use std::{convert::Infallible, pin::Pin, task};

use bytes::Buf;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body, Frame, SizeHint},
    header::{
        ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
    },
};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use zeroize::Zeroizing;

use super::front::Refusal;
use crate::{
    caller::Unproven,
    clock,
    creds::{FetchError, cache::Unavailable, confirm::Unconfirmed, grant::Refused, secret::RoleCredentials},
    names::AccountId,
    printable,
};

/// Exactly this: Go and Kotlin compare it with `==`, so no charset.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// botocore prints our sentence in its exception; more than this is no sentence.
const LONGEST_SENTENCE: usize = 1000;

/// An answer before it is put into HTTP.
#[derive(Debug)]
pub(crate) struct Reply {
    status: u16,
    body: Wiped,
}

/// Bytes that are overwritten when they are dropped.
pub(crate) struct Wiped {
    bytes: Zeroizing<Vec<u8>>,
    sent: usize,
}

/// The superset that every SDK reads as the container protocol, and every `credential_process` reader as its own.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Credentials<'a> {
    version: u8,
    /// Any other word is an error to the Rust SDK, and one .NET version wants this one.
    code: &'static str,
    r#type: &'static str,
    last_updated: Option<String>,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    /// The container protocol's name for it.
    token: &'a str,
    /// `credential_process`'s name for it.
    session_token: &'a str,
    expiration: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_arn: Option<&'a str>,
}

/// Java reads the small names, JavaScript the large ones.
#[derive(Serialize)]
struct Failure<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(rename = "Code")]
    code_again: &'a str,
    #[serde(rename = "Message")]
    message_again: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health<'a> {
    code: &'a str,
    expiration: &'a str,
}

/// Returns credentials as `credential_process` reads them, in one line; `None` when their end cannot be written.
pub(crate) fn credentials_text(credentials: &RoleCredentials) -> Option<Zeroizing<String>> {
    let reply = Reply::credentials(credentials);
    if reply.status != 200 {
        return None;
    }
    let text = std::str::from_utf8(&reply.body.bytes).ok()?;
    let mut line = Zeroizing::new(String::with_capacity(text.len() + 1));
    line.push_str(text);
    line.push('\n');
    Some(line)
}

impl Reply {
    /// Answers with credentials.
    pub(crate) fn credentials(credentials: &RoleCredentials) -> Self {
        let Some(expiration) = clock::utc(credentials.expires_at) else { return Self::broken() };
        let secret = credentials.secret_access_key.expose_secret();
        let token = credentials.session_token.expose_secret();
        let size = credentials.access_key_id.len() + secret.len() + 2 * token.len();
        Self::json(
            200,
            size,
            &Credentials {
                version: 1,
                code: "Success",
                r#type: "AWS-HMAC",
                last_updated: clock::utc(credentials.issued_at),
                access_key_id: &credentials.access_key_id,
                secret_access_key: secret,
                token,
                session_token: token,
                expiration: &expiration,
                account_id: credentials.account.as_ref().map(AccountId::as_str),
                role_arn: credentials.role_arn.as_deref(),
            },
        )
    }

    /// Answers that credentials would be there.
    pub(crate) fn health(credentials: &RoleCredentials) -> Self {
        let Some(expiration) = clock::utc(credentials.expires_at) else { return Self::broken() };
        Self::json(200, 0, &Health { code: "Success", expiration: &expiration })
    }

    /// Answers a caller who may not have what it asks for: the same bytes whatever the reason, save when there
    /// was no token at all, which tells nobody anything and helps those whose SDK is old.
    pub(crate) fn refused(refused: Refused) -> Self {
        match refused {
            Refused::NoAuthorization => Self::failure(
                401,
                "Unauthorized",
                "the request carried no token: this SDK is probably older than token files (November 2023); update \
                 it, or connect with `--token env`",
            ),
            Refused::WrongToken | Refused::WrongPath | Refused::Foreign | Refused::Theft => {
                Self::failure(401, "Unauthorized", "this token does not open this path")
            }
        }
    }

    /// Answers that there are no credentials now, and what to do.
    pub(crate) fn unavailable(unavailable: &Unavailable) -> Self {
        match unavailable {
            Unavailable::Waiting => Self::failure(
                503,
                "Unavailable",
                "credentials are being fetched and will be there in a moment; try again",
            ),
            Unavailable::Failed(error) => {
                let (status, code) = match **error {
                    // Not 5xx: SDKs would ask again at once and many times, and only a person can help.
                    FetchError::LoginNeeded { .. } => (403, "LoginRequired"),
                    FetchError::Denied { .. } => (403, "AccessDenied"),
                    FetchError::Transient { .. } => (503, "Unavailable"),
                };
                Self::failure(status, code, &error.to_string())
            }
        }
    }

    /// Answers that a person has not said yes, and what they can do.
    pub(crate) fn unconfirmed(unconfirmed: Unconfirmed, profile: &str) -> Self {
        match unconfirmed {
            Unconfirmed::Waiting => Self::failure(
                503,
                "Unavailable",
                &format!(
                    "profile `{profile}` waits for a yes from the person who runs broker: there `broker approve` gives it; \
                     then try again"
                ),
            ),
            // Not 5xx, or SDKs would go on asking.
            Unconfirmed::Denied => Self::failure(
                403,
                "AccessDenied",
                &format!(
                    "the person who runs broker said no to profile `{profile}`; there `broker approve` changes that"
                ),
            ),
        }
    }

    /// Answers a caller of whom the host could not say who it is.
    pub(crate) fn unproven(unproven: Unproven) -> Self {
        Self::failure(503, "Unavailable", &format!("{unproven}; try again"))
    }

    /// Answers a request that is none.
    pub(crate) fn not_let_in(refusal: Refusal) -> Self {
        let code = match refusal.status() {
            405 => "MethodNotAllowed",
            421 => "MisdirectedRequest",
            _ => "BadRequest",
        };
        Self::failure(refusal.status(), code, &refusal.to_string())
    }

    fn broken() -> Self {
        Self::failure(503, "Unavailable", "the credentials that AWS sent make no sense")
    }

    fn failure(status: u16, code: &str, sentence: &str) -> Self {
        let mut message = format!("broker: {}", printable::one_line(sentence));
        while message.len() > LONGEST_SENTENCE {
            message.pop();
        }
        let failure = Failure { code, message: &message, code_again: code, message_again: &message };
        Self::json(status, 0, &failure)
    }

    fn json(status: u16, size: usize, value: &impl Serialize) -> Self {
        // With room for every byte escaped, so that the buffer never moves and leaves a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(6 * size + 4 * LONGEST_SENTENCE));
        // Writing strings and numbers to memory cannot fail.
        drop(serde_json::to_writer(&mut *bytes, value));
        Self { status, body: Wiped { bytes, sent: 0 } }
    }

    /// Returns the HTTP status.
    #[cfg(test)]
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == 405 {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        headers
    }

    /// Returns the answer for hyper, which adds the length.
    pub(crate) fn into_response(self) -> Response<Wiped> {
        let headers = self.headers();
        let mut response = Response::new(self.body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        *response.headers_mut() = headers;
        response
    }

    /// Returns the whole answer as bytes, for requests that hyper never sees. Holds no secret.
    pub(crate) fn into_raw(self) -> Vec<u8> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let mut head = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in &self.headers() {
            head.push_str(&title_case(name));
            head.push_str(": ");
            head.push_str(value.to_str().unwrap_or_default());
            head.push_str("\r\n");
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", self.body.remaining()));
        let mut raw = head.into_bytes();
        raw.extend_from_slice(self.body.chunk());
        raw
    }
}

fn title_case(name: &HeaderName) -> String {
    let mut start = true;
    let case = |c: char| {
        let cased = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        cased
    };
    name.as_str().chars().map(case).collect()
}

impl std::fmt::Debug for Wiped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wiped(<redacted>)")
    }
}

impl Buf for Wiped {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        self.sent = self.bytes.len().min(self.sent + count);
    }
}

/// One frame, the bytes themselves, so that hyper sends them from here and keeps no copy.
impl Body for Wiped {
    type Data = Self;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Self>, Infallible>>> {
        let frame = self.has_remaining().then(|| {
            let bytes = std::mem::take(&mut self.bytes);
            Ok(Frame::data(Self { bytes, sent: std::mem::take(&mut self.sent) }))
        });
        task::Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        !self.has_remaining()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::{Value, json};

    use super::*;

    fn credentials() -> RoleCredentials {
        RoleCredentials {
            access_key_id: "ASIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "canary-secret".to_owned().into(),
            session_token: "canary+session/==".to_owned().into(),
            issued_at: UNIX_EPOCH + Duration::from_millis(1_767_222_000_900),
            expires_at: UNIX_EPOCH + Duration::from_millis(1_767_225_599_900),
            account: Some("111122223333".parse().unwrap()),
            role_arn: None,
        }
    }

    #[test]
    fn the_body_is_what_every_sdk_reads() {
        let reply = Reply::credentials(&credentials());
        assert_eq!(reply.status(), 200);
        let body: Value = serde_json::from_slice(reply.body.chunk()).unwrap();
        let expected = json!({
            "Version": 1, "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2025-12-31T23:00:00Z",
            "AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "SecretAccessKey": "canary-secret",
            "Token": "canary+session/==", "SessionToken": "canary+session/==",
            "Expiration": "2025-12-31T23:59:59Z", "AccountId": "111122223333",
        });
        assert_eq!(body, expected);
        assert!(!format!("{reply:?}").contains("canary"));
    }

    #[test]
    fn the_buffer_of_the_secrets_never_moves() {
        let mut hostile = credentials();
        hostile.session_token = "\u{1}".repeat(1000).into();
        let reply = Reply::credentials(&hostile);
        let size = 20 + 13 + 2000;
        assert!(reply.body.bytes.capacity() == 6 * size + 4 * LONGEST_SENTENCE, "it was not grown");
    }

    #[test]
    fn a_failure_is_one_sentence_in_both_spellings() {
        let error =
            FetchError::LoginNeeded { sentence: "the session ended\r\nX-Evil: 1\u{1b}[2J; log in".into() };
        let reply = Reply::unavailable(&Unavailable::Failed(error.into()));
        assert_eq!(reply.status(), 403);
        let body: Value = serde_json::from_slice(reply.body.chunk()).unwrap();
        let sentence = "broker: the session ended X-Evil: 1\u{fffd}[2J; log in";
        assert_eq!(
            body,
            json!({ "code": "LoginRequired", "message": sentence, "Code": "LoginRequired", "Message": sentence })
        );
    }

    #[test]
    fn each_situation_has_its_status() {
        let failed = |error: FetchError| Reply::unavailable(&Unavailable::Failed(error.into())).status();
        let sentence = || "x".to_owned();
        assert_eq!(failed(FetchError::LoginNeeded { sentence: sentence() }), 403);
        assert_eq!(failed(FetchError::Denied { sentence: sentence() }), 403);
        assert_eq!(failed(FetchError::Transient { sentence: sentence(), source: None }), 503);
        assert_eq!(Reply::unavailable(&Unavailable::Waiting).status(), 503);
        assert_eq!(Reply::unproven(Unproven::Gone).status(), 503);
    }

    #[test]
    fn every_refusal_but_the_missing_token_looks_alike() {
        let raw = |refused| Reply::refused(refused).into_raw();
        let wrong = raw(Refused::WrongToken);
        assert!(wrong.starts_with(b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\n"));
        for refused in [Refused::WrongPath, Refused::Foreign, Refused::Theft] {
            assert_eq!(raw(refused), wrong);
        }
        assert_ne!(raw(Refused::NoAuthorization), wrong);
    }
}
