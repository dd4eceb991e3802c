//! How we reach AWS: pinned endpoints, deadlines, few retries, answers of bounded size.
//!
//! The clients are built at their first use, because loading the machine's TLS roots takes time that a
//! command which needs no AWS should not pay. Only this file decides where an SSO token may travel.

use std::{fmt, net::IpAddr, sync::OnceLock, time::Duration};

use aws_sdk_sso::{
    config::{
        BehaviorVersion, ConfigBag, IdentityCache, Intercept, Region as SdkRegion, RuntimeComponents,
        interceptors::BeforeDeserializationInterceptorContextMut, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{BoxError, ProvideErrorMetadata, SdkError},
};

use super::profile::ServiceUrls;
use crate::{names::Region, printable::one_line};

/// Half of what a person accepts to wait before they wonder; a handshake across the world takes under 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One call with all its retries; a stalled server must not hold up a reconnect for longer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Three tries get over a reset connection and a throttle, and fit into [`CALL_TIMEOUT`].
const ATTEMPTS: u32 = 3;

/// The longest answer we read. Real ones are below 10 KB.
const LONGEST_BODY: u64 = 1 << 20;

/// Addresses to use in place of AWS's own: `AWS_ENDPOINT_URL_SSO`, `_SSO_OIDC`, `_STS` and `_SIGNIN`, what
/// `[services]` of a profile names, and nothing else.
///
/// `AWS_ENDPOINT_URL` is left out on purpose: it is set for emulators, which must not get SSO tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Endpoints {
    sso: Option<String>,
    sso_oidc: Option<String>,
    sts: Option<String>,
    signin: Option<String>,
}

/// The address of one service, which may see secrets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ServiceUrl(String);

/// A text that is no such address.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is {fault}")]
pub(crate) struct BadServiceUrl {
    text: String,
    fault: &'static str,
}

impl std::str::FromStr for ServiceUrl {
    type Err = BadServiceUrl;

    fn from_str(text: &str) -> Result<Self, BadServiceUrl> {
        match check_url(text) {
            Ok(_) => Ok(Self(text.trim_end_matches('/').to_owned())),
            Err(fault) => Err(BadServiceUrl { text: one_line(text), fault }),
        }
    }
}

/// An endpoint that must not be used.
#[derive(Debug, thiserror::Error)]
#[error("`{variable}` is `{url}`, which is {fault}")]
pub(crate) struct BadEndpoint {
    variable: &'static str,
    url: String,
    fault: &'static str,
}

impl BadEndpoint {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(format!(
            "unset `{}`, or give an https URL (plain http only to 127.0.0.1 or [::1])",
            self.variable
        ))
    }
}

impl Endpoints {
    /// Checks the values of the four variables; `get` returns those that are set.
    pub(crate) fn new(get: impl Fn(&str) -> Option<String>) -> Result<Self, BadEndpoint> {
        let checked = |variable| checked(variable, get(variable));
        Ok(Self {
            sso: checked("AWS_ENDPOINT_URL_SSO")?,
            sso_oidc: checked("AWS_ENDPOINT_URL_SSO_OIDC")?,
            sts: checked("AWS_ENDPOINT_URL_STS")?,
            signin: checked("AWS_ENDPOINT_URL_SIGNIN")?,
        })
    }

    /// Fills the gaps with what a profile names.
    pub(crate) fn or(&self, urls: &ServiceUrls) -> Self {
        let or = |ours: &Option<String>, theirs: &Option<ServiceUrl>| {
            ours.clone().or_else(|| theirs.as_ref().map(|url| url.0.clone()))
        };
        Self {
            sso: or(&self.sso, &urls.sso),
            sso_oidc: or(&self.sso_oidc, &urls.sso_oidc),
            sts: or(&self.sts, &urls.sts),
            signin: self.signin.clone(),
        }
    }

    /// Returns where the access portal answers.
    pub(super) fn portal(&self, region: &Region) -> String {
        self.sso.clone().unwrap_or_else(|| format!("https://portal.sso.{region}.{}", suffix(region)))
    }

    /// Returns where tokens of `aws login` are refreshed (the endpoint rules of the service, September 2026).
    pub(super) fn signin(&self, region: &Region) -> String {
        let host = match region.as_str() {
            r if r.starts_with("cn-") => "signin.amazonaws.cn",
            r if r.starts_with("us-gov-") => "signin.amazonaws-us-gov.com",
            r if r.starts_with("us-iso-") => "signin.c2shome.ic.gov",
            _ => "signin.aws.amazon.com",
        };
        self.signin.clone().unwrap_or_else(|| format!("https://{region}.{host}"))
    }

    fn sts(&self, region: &Region) -> String {
        self.sts.clone().unwrap_or_else(|| format!("https://sts.{region}.{}", suffix(region)))
    }

    fn oidc(&self, region: &Region) -> String {
        self.sso_oidc.clone().unwrap_or_else(|| format!("https://oidc.{region}.{}", suffix(region)))
    }
}

fn checked(variable: &'static str, url: Option<String>) -> Result<Option<String>, BadEndpoint> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    match check_url(&url) {
        Ok(_) => Ok(Some(url.trim_end_matches('/').to_owned())),
        Err(fault) => Err(BadEndpoint { variable, url: one_line(&url), fault }),
    }
}

/// Returns the host of a URL that may see secrets: https, or plain http to this machine.
pub(crate) fn check_url(url: &str) -> Result<&str, &'static str> {
    if !url.bytes().all(|b| b.is_ascii_graphic())
        || url.contains(['"', '\'', '<', '>', '\\', '^', '`', '{', '|', '}'])
    {
        return Err("not a URL");
    }
    let (rest, secure) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => return Err("neither https nor http"),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("a URL with a user name in it");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').ok_or("not a URL")?,
        None => authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon)),
    };
    let port_is_sound = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    if host.is_empty() || !port_is_sound {
        return Err("not a URL");
    }
    // Literals only: what `localhost` means is somebody else's decision.
    if !secure && !host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        return Err("plain http to another machine");
    }
    Ok(host)
}

/// The domain of the partition that `region` lies in.
fn suffix(region: &Region) -> &'static str {
    match region.as_str() {
        r if r.starts_with("cn-") => "amazonaws.com.cn",
        r if r.starts_with("eusc-") => "amazonaws.eu",
        r if r.starts_with("us-iso-") => "c2s.ic.gov",
        r if r.starts_with("us-isob-") => "sc2s.sgov.gov",
        r if r.starts_with("us-isof-") => "csp.hci.ic.gov",
        r if r.starts_with("eu-isoe-") => "cloud.adc-e.uk",
        _ => "amazonaws.com",
    }
}

/// The clients of one region: the portal and the OIDC service of an Identity Center, or STS.
pub(crate) struct Clients {
    region: Region,
    endpoints: Endpoints,
    sso: OnceLock<aws_sdk_sso::Client>,
    oidc: OnceLock<aws_sdk_ssooidc::Client>,
    sts: OnceLock<aws_sdk_sts::Client>,
}

// One text for three config types that share every setter but no trait.
macro_rules! build {
    ($service:ident, $clients:expr, $endpoint:expr) => {{
        let endpoint = $endpoint;
        let config = $service::Config::builder()
            .behavior_version(behavior(&endpoint))
            .region(SdkRegion::new($clients.region.as_str().to_owned()))
            .endpoint_url(endpoint)
            .identity_cache(IdentityCache::no_cache())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(CALL_TIMEOUT)
                    .operation_timeout(CALL_TIMEOUT)
                    .build(),
            )
            .interceptor(BoundedBody)
            .build();
        $service::Client::from_conf(config)
    }};
}

impl Clients {
    /// Keeps what is needed to build the clients, and builds none.
    pub(crate) fn new(region: Region, endpoints: Endpoints) -> Self {
        Self { region, endpoints, sso: OnceLock::new(), oidc: OnceLock::new(), sts: OnceLock::new() }
    }

    /// Returns the same for another region.
    pub(super) fn in_region(&self, region: Region) -> Self {
        Self::new(region, self.endpoints.clone())
    }

    /// Returns the region that these are for.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the client of the access portal.
    pub(crate) fn sso(&self) -> &aws_sdk_sso::Client {
        self.sso.get_or_init(|| build!(aws_sdk_sso, self, self.endpoints.portal(&self.region)))
    }

    /// Returns the client of the OIDC service.
    pub(crate) fn oidc(&self) -> &aws_sdk_ssooidc::Client {
        self.oidc.get_or_init(|| build!(aws_sdk_ssooidc, self, self.endpoints.oidc(&self.region)))
    }

    /// Returns the client of STS, which knows no credentials: each call brings its own.
    pub(crate) fn sts(&self) -> &aws_sdk_sts::Client {
        self.sts.get_or_init(|| build!(aws_sdk_sts, self, self.endpoints.sts(&self.region)))
    }

    /// Returns the page to which a browser is sent for a login, without its query.
    pub(crate) fn authorize_url(&self) -> String {
        format!("{}/authorize", self.endpoints.oidc(&self.region))
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("region", &self.region).finish_non_exhaustive()
    }
}

/// The newest behaviour, with proxies from the environment; without them for this machine, because the SDK
/// knows no exemption for loopback and would hand a token to `HTTP_PROXY`.
fn behavior(endpoint: &str) -> BehaviorVersion {
    if endpoint.starts_with("https://") {
        BehaviorVersion::latest()
    } else {
        #[expect(deprecated, reason = "the last one that reads no proxy variables; there is no other switch")]
        BehaviorVersion::v2025_01_17()
    }
}

/// Refuses an answer that says that it is longer than [`LONGEST_BODY`]; the SDK alone would read it to its end.
///
/// One that does not say so is bounded by [`CALL_TIMEOUT`] only: the type that could cut it off while it is read
/// lies in a crate that we do not name.
#[derive(Debug)]
struct BoundedBody;

#[derive(Debug, thiserror::Error)]
#[error("an answer of {length} bytes")]
struct TooLong {
    length: u64,
}

impl Intercept for BoundedBody {
    fn name(&self) -> &'static str {
        "BoundedBody"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        match context.response().headers().get("content-length").and_then(|length| length.parse().ok()) {
            Some(length) if length > LONGEST_BODY => Err(TooLong { length }.into()),
            Some(_) | None => Ok(()),
        }
    }
}

/// What AWS answered in place of what we asked for.
///
/// Made of text at once: the SDK's own error holds the raw answer, which may contain secrets.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    text: String,
    /// The type of the error, such as `InvalidGrantException`; `None` when AWS did not answer or not in its own form.
    pub(crate) code: Option<String>,
    /// What AWS says about it, on one line.
    pub(crate) message: Option<String>,
    status: Option<u16>,
}

impl Failure {
    /// Makes a failure of our own judgement about an answer.
    pub(crate) fn garbled(what: &str) -> Self {
        Self { text: what.to_owned(), code: None, message: None, status: None }
    }

    /// Returns whether AWS understood us and said no, so that the same question gets the same answer.
    pub(crate) fn is_refusal(&self) -> bool {
        self.code.is_some()
            && self
                .status
                .is_some_and(|status| (400..500).contains(&status) && status != 408 && status != 429)
    }

    /// Returns what AWS said, or else what happened.
    pub(crate) fn words(&self) -> &str {
        self.message.as_deref().or(self.code.as_deref()).unwrap_or(&self.text)
    }
}

impl<E> From<SdkError<E>> for Failure
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let response = error.raw_response();
        let status = response.map(|r| r.status().as_u16());
        let body = response
            .and_then(|r| r.body().bytes())
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
        // A captive portal answers 4xx too, but not with a type.
        let code = error.as_service_error().and_then(ProvideErrorMetadata::code).map(one_line);
        let member = |name: &str| body.as_ref()?.get(name)?.as_str().map(one_line);
        let message = error
            .as_service_error()
            .and_then(ProvideErrorMetadata::message)
            .map(one_line)
            .or_else(|| member("error_description"))
            .filter(|text| !text.is_empty());
        let text = match (&error, status) {
            (SdkError::ServiceError(_), Some(status)) => match (&code, &message) {
                (Some(code), Some(message)) => format!("{code} (HTTP {status}): {message}"),
                (Some(code), None) => format!("{code} (HTTP {status})"),
                (None, _) if status < 300 => {
                    format!(
                        "HTTP {status}, but no answer of AWS (is there a proxy or a captive portal in between?)"
                    )
                }
                (None, _) => format!("HTTP {status}, not in AWS's form"),
            },
            (SdkError::ResponseError(_), Some(status)) => {
                format!("an answer that is no AWS answer (HTTP {status})")
            }
            (SdkError::TimeoutError(_), _) => "no answer in time".to_owned(),
            _ => chain(&error),
        };
        Self { text, code, message, status }
    }
}

/// The error and its causes on one line, each text once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = one_line(&error.to_string());
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_or_loopback_may_see_a_token() {
        for good in
            ["https://portal.example", "https://x:8443/y?z#w", "http://127.0.0.1:9", "http://[::1]:9/"]
        {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "ftp://x",
            "http://example.com",
            "http://localhost:9",
            "http://127.0.0.1@example.com/",
            "http://127.0.0.1.example.com",
            "https://",
            "https://:1",
            "https://x:99999",
            "https://a b",
            "http://[::1",
            "https://x\u{1b}[2J",
            "https://u:p@x/",
            "https://x/\"",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        let set = |value: &'static str| {
            move |name: &str| (name == "AWS_ENDPOINT_URL_SSO").then(|| value.to_owned())
        };
        let error = Endpoints::new(set("http://evil.example")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`AWS_ENDPOINT_URL_SSO` is `http://evil.example`, which is plain http to another machine"
        );
        assert!(Endpoints::new(set("")).unwrap().sso.is_none());
    }

    #[test]
    fn endpoints_are_pinned_to_the_region() {
        let endpoints = Endpoints::default();
        let region = |name: &str| name.parse::<Region>().unwrap();
        assert_eq!(endpoints.portal(&region("eu-west-1")), "https://portal.sso.eu-west-1.amazonaws.com");
        assert_eq!(endpoints.oidc(&region("us-gov-west-1")), "https://oidc.us-gov-west-1.amazonaws.com");
        assert_eq!(endpoints.oidc(&region("cn-north-1")), "https://oidc.cn-north-1.amazonaws.com.cn");
    }

    #[test]
    fn plain_http_never_goes_through_a_proxy() {
        assert!(behavior("https://oidc.eu-west-1.amazonaws.com") == BehaviorVersion::latest());
        assert!(behavior("http://127.0.0.1:1") != BehaviorVersion::latest());
    }
}
