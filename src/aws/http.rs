//! The few plain HTTP calls that no SDK makes: one request, one bounded answer, one deadline, no redirects, no retries.

use std::{fmt, sync::OnceLock, time::Duration};

use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::{client::http::HttpConnector as _, http::Request};
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt as _, Limited};
use zeroize::Zeroizing;

use crate::printable::one_line;

/// More than any answer of these needs; a token of `aws login` is the longest, at a few KiB.
const LONGEST_ANSWER: usize = 256 * 1024;

/// A request that is about to be made.
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'static str, &'a str)],
    pub(super) body: Option<&'a str>,
    pub(super) deadline: Duration,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Where the server would rather have us go.
    pub(super) location: Option<String>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    #[error("{0}")]
    Failed(String),
}

/// The client. Its TLS roots are loaded at the first https URL; proxies of the environment count for those alone.
#[derive(Default)]
pub(super) struct Http {
    plain: OnceLock<Connector>,
    secure: OnceLock<Connector>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// Makes one call. `url` was checked by whoever knows what it may lead to.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, Error> {
        let connector = if call.url.starts_with("https://") {
            self.secure.get_or_init(|| {
                let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
                Connector::builder().proxy_config(ProxyConfig::from_env()).tls_provider(provider).build()
            })
        } else {
            self.plain.get_or_init(|| Connector::builder().build_http())
        };
        let request = request(&call).map_err(|fault| Error::Failed(one_line(&fault)))?;
        let answer = async {
            let response =
                connector.call(request).await.map_err(|e| Error::Failed(super::client::chain(&e)))?;
            let status = response.status().as_u16();
            let location = response.headers().get("location").map(str::to_owned);
            let body = Limited::new(response.into_body(), LONGEST_ANSWER)
                .collect()
                .await
                .map_err(|e| Error::Failed(one_line(&e.to_string())))?;
            Ok(Answer { status, location, body: Zeroizing::new(body.to_bytes().to_vec()) })
        };
        tokio::time::timeout(call.deadline, answer).await.unwrap_or(Err(Error::Late(call.deadline)))
    }
}

fn request(call: &Call<'_>) -> Result<Request, String> {
    let body = call.body.map_or_else(SdkBody::empty, |body| SdkBody::from(body.to_owned()));
    let mut request = Request::new(body);
    request.set_method(call.method).map_err(|e| e.to_string())?;
    request.set_uri(call.url).map_err(|e| e.to_string())?;
    for (name, value) in call.headers {
        let (name, value) = ((*name).to_owned(), (*value).to_owned());
        request.headers_mut().try_insert(name, value).map_err(|e| e.to_string())?;
    }
    Ok(request)
}
