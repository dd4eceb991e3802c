//! The listener on 127.0.0.1 that the browser comes back to.
//!
//! Any web page can send the browser here, so that only one request counts: a GET of our path, for our Host, with
//! our state. Everything else is told to go away and changes nothing. Connections belong to [`Callback`] and end
//! with it.

use std::{
    convert::Infallible,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    LoginError,
    page::{self, Page},
};
use crate::tasks::reraise;

/// As long as the AWS CLI waits for a person, and as long as AWS keeps the code.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// A browser on this machine sends its request at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The page waits for the code to be redeemed, which is one call of AWS.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);

/// The last page travels over loopback; a browser that is gone must not hold us up.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Browsers open two or three connections at a time; anybody else may wait.
const CONNECTIONS: usize = 16;

const PATH: &str = "/oauth/callback";

/// What the browser brought back, with our state.
pub(super) enum Answer {
    Code(SecretString),
    Error { error: String, description: Option<String> },
}

/// The browser that waits for its page. Dropped without a word, it shows the page of failure.
pub(super) struct Waiting(oneshot::Sender<&'static Page>);

impl Waiting {
    /// Shows the page of success.
    pub(super) fn succeeded(self) {
        // A browser that left needs no page.
        let _ = self.0.send(&page::SUCCESS);
    }

    /// Shows the page of failure.
    pub(super) fn failed(self) {
        let _ = self.0.send(&page::FAILURE);
    }
}

/// A bound listener, its connections, and the state that it waits for.
pub(super) struct Callback {
    listener: TcpListener,
    connections: JoinSet<()>,
    desk: Arc<Desk>,
    arrivals: mpsc::Receiver<(Answer, Waiting)>,
}

/// What all connections share.
struct Desk {
    state: SecretString,
    host: String,
    taken: AtomicBool,
    arrivals: mpsc::Sender<(Answer, Waiting)>,
}

impl Callback {
    /// Binds a free port.
    pub(super) async fn bind(state: SecretString) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let host = format!("127.0.0.1:{}", listener.local_addr()?.port());
        let (sender, arrivals) = mpsc::channel(1);
        let desk = Arc::new(Desk { state, host, taken: AtomicBool::new(false), arrivals: sender });
        Ok(Self { listener, connections: JoinSet::new(), desk, arrivals })
    }

    /// Returns the URL to come back to.
    pub(super) fn redirect_uri(&self) -> String {
        format!("http://{}{PATH}", self.desk.host)
    }

    /// Returns the state that must come back.
    pub(super) fn state(&self) -> &SecretString {
        &self.desk.state
    }

    /// Serves until the right request comes.
    pub(super) async fn wait(&mut self) -> Result<(Answer, Waiting), LoginError> {
        let deadline = Instant::now() + LOGIN_TIMEOUT;
        loop {
            tokio::select! {
                arrival = self.arrivals.recv() => return arrival.ok_or(LoginError::TimedOut),
                () = sleep_until(deadline) => return Err(LoginError::TimedOut),
                accepted = self.listener.accept(), if self.connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        self.connections.spawn(connection(stream, Arc::clone(&self.desk)));
                    }
                    // Out of descriptors, or gone before we got to it: the browser tries again.
                    Err(error) => {
                        tracing::debug!(%error, "could not accept a connection of the browser");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = self.connections.join_next() => reraise(ended),
            }
        }
    }

    /// Lets the last page reach the browser, then closes everything.
    pub(super) async fn finish(self) {
        let Self { listener, mut connections, .. } = self;
        drop(listener);
        let flushed = timeout(FLUSH_TIMEOUT, async {
            while let Some(ended) = connections.join_next().await {
                reraise(ended);
            }
        });
        drop(flushed.await);
    }
}

async fn connection(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.serve(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(64)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the browser broke");
    }
}

impl Desk {
    async fn serve<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let answer = match self.judge(request) {
            Ok(answer) => answer,
            Err(status) => return reply(status, &page::STRANGER),
        };
        if self.taken.swap(true, Ordering::SeqCst) {
            return reply(StatusCode::BAD_REQUEST, &page::STRANGER);
        }
        let (sender, page) = oneshot::channel();
        if self.arrivals.send((answer, Waiting(sender))).await.is_err() {
            return reply(StatusCode::BAD_REQUEST, &page::FAILURE);
        }
        match timeout(PAGE_TIMEOUT, page).await {
            Ok(Ok(page)) => reply(StatusCode::OK, page),
            Ok(Err(_)) | Err(_) => reply(StatusCode::OK, &page::FAILURE),
        }
    }

    /// Returns what a request brings, if it is the one that we wait for.
    fn judge<B>(&self, request: &Request<B>) -> Result<Answer, StatusCode> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let for_us = hosts.next().is_some_and(|host| host.as_bytes() == self.host.as_bytes());
        if !for_us || hosts.next().is_some() || request.uri().authority().is_some() {
            return Err(StatusCode::BAD_REQUEST);
        }
        if request.uri().path() != PATH {
            return Err(StatusCode::NOT_FOUND);
        }
        if request.method() != Method::GET {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        let query = Query::parse(request.uri().query().unwrap_or_default()).ok_or(StatusCode::BAD_REQUEST)?;
        let state = query.state.ok_or(StatusCode::BAD_REQUEST)?;
        if !bool::from(state.as_bytes().ct_eq(self.state.expose_secret().as_bytes())) {
            return Err(StatusCode::BAD_REQUEST);
        }
        match (query.error, query.code) {
            (Some(error), _) => Ok(Answer::Error { error, description: query.error_description }),
            (None, Some(code)) => Ok(Answer::Code(code.into())),
            (None, None) => Err(StatusCode::BAD_REQUEST),
        }
    }
}

#[derive(Default)]
struct Query {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

impl Query {
    /// Reads the parameters that count; `None` when one of them is there twice or not readable.
    fn parse(query: &str) -> Option<Self> {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "state" => &mut parsed.state,
                "code" => &mut parsed.code,
                "error" => &mut parsed.error,
                "error_description" => &mut parsed.error_description,
                _ => continue,
            };
            if slot.replace(percent_decode(value)?).is_some() {
                return None;
            }
        }
        Some(parsed)
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn reply(status: StatusCode, page: &Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page.html.clone())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONNECTION, "close"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    if let Ok(policy) = header::HeaderValue::from_str(&page::POLICY) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const STATE: &str = "right-state";

    async fn callback() -> Callback {
        Callback::bind(STATE.to_owned().into()).await.unwrap()
    }

    /// Sends one request as it is and returns the whole answer.
    async fn send(host: &str, request: String) -> String {
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn get(host: &str, target: &str) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    }

    #[tokio::test]
    async fn only_the_right_request_ends_the_wait() {
        let mut callback = callback().await;
        let host = callback.desk.host.clone();
        let right = format!("{PATH}?code=c%2B1&state={STATE}");
        let browser = async {
            let port = host.rsplit_once(':').unwrap().1;
            for (request, status) in [
                (get(&host, &format!("{PATH}?code=evil&state=wrong")), "400"),
                (get(&host, &format!("{PATH}?code=evil")), "400"),
                (get(&host, &format!("{PATH}?error=access_denied")), "400"),
                (get(&host, &format!("{PATH}?error=access_denied&state=wrong")), "400"),
                (get(&host, &format!("{PATH}?state={STATE}")), "400"),
                (get(&host, &format!("{PATH}?code=a&code=b&state={STATE}")), "400"),
                (get(&host, &format!("{PATH}?code=a&state=x&state={STATE}")), "400"),
                (get(&host, &format!("{PATH}?code=%zz&state={STATE}")), "400"),
                (get(&host, &format!("/?code=a&state={STATE}")), "404"),
                (get(&host, &format!("{PATH}/?code=a&state={STATE}")), "404"),
                (get(&format!("localhost:{port}"), &right), "400"),
                (get("127.0.0.1", &right), "400"),
                (get("evil.example", &right), "400"),
                (format!("GET {right} HTTP/1.1\r\n\r\n"), "400"),
                (format!("GET {right} HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n"), "400"),
                (format!("GET http://{host}{right} HTTP/1.1\r\nHost: {host}\r\n\r\n"), "400"),
                (format!("POST {right} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"), "405"),
                (format!("HEAD {right} HTTP/1.1\r\nHost: {host}\r\n\r\n"), "405"),
            ] {
                let answer = send(&host, request.clone()).await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}\n{answer}");
                assert!(!answer.contains("evil"), "nothing that was sent comes back: {answer}");
            }
            tokio::join!(send(&host, get(&host, &right)), async {
                // The second of two right ones is a stranger, whichever it is.
                send(&host, get(&host, &right)).await
            })
        };
        let login = async {
            let (answer, page) = callback.wait().await.unwrap();
            let Answer::Code(code) = answer else { panic!("not a code") };
            assert_eq!(code.expose_secret(), "c+1");
            // Serves the second one while the first waits for its page.
            let second = timeout(Duration::from_millis(200), callback.wait()).await;
            assert!(second.is_err(), "one login, one answer");
            page.succeeded();
            callback.finish().await;
        };
        let ((first, second), ()) = tokio::join!(browser, login);
        let (good, bad) = if first.starts_with("HTTP/1.1 200") { (first, second) } else { (second, first) };
        assert!(good.starts_with("HTTP/1.1 200") && good.contains("You are signed in"), "{good}");
        assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
        for part in [
            "content-security-policy: default-src 'none'; style-src 'sha256-",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "connection: close",
            "prefers-color-scheme: dark",
        ] {
            assert!(good.contains(part), "{part}\n{good}");
        }
        assert!(!good.contains("<script") && !good.contains(STATE));
    }

    #[tokio::test]
    async fn an_error_with_the_right_state_ends_the_wait() {
        let mut callback = callback().await;
        let host = callback.desk.host.clone();
        let target = format!("{PATH}?error=access_denied&error_description=not+you%21&state={STATE}");
        let login = async {
            let (answer, page) = callback.wait().await.unwrap();
            let Answer::Error { error, description } = answer else { panic!("not an error") };
            assert_eq!((error.as_str(), description.as_deref()), ("access_denied", Some("not you!")));
            page.failed();
            callback.finish().await;
        };
        let (answer, ()) = tokio::join!(send(&host, get(&host, &target)), login);
        assert!(answer.contains("The sign-in did not work"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_never_comes_back_is_given_up() {
        let mut callback = callback().await;
        let started = Instant::now();
        assert!(matches!(callback.wait().await, Err(LoginError::TimedOut)));
        assert_eq!(started.elapsed(), LOGIN_TIMEOUT);
    }

    #[tokio::test]
    async fn nobody_but_this_machine_can_reach_it() {
        let callback = callback().await;
        assert_eq!(callback.listener.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
        assert!(callback.redirect_uri().ends_with(PATH));
    }

    #[test]
    fn the_policy_allows_exactly_the_style_of_the_page() {
        let html = &page::SUCCESS.html;
        let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, style.as_bytes());
        let hash = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, digest);
        assert!(page::POLICY.contains(&format!("'sha256-{hash}'")));
        assert!(!html.contains("style=") && !html.contains("src=") && !html.contains("href="));
    }

    proptest! {
        #[test]
        fn no_query_makes_the_parser_panic(query in "[ -~]{0,64}") {
            drop(Query::parse(&query));
        }
    }
}
