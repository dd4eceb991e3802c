//! The session and both logins over the wire, against a pretend Identity Center of a few lines.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    client::Endpoints,
    login::LoginMethod,
    profile::{SessionKey, SsoRole, SsoSession},
    session::{IdentityError, LoginPolicy, Logout, SsoSessionState, SsoSource},
    time,
    token::{Registration, SsoToken, TokenFile, tests::session},
};
use crate::{
    clock::Clock,
    creds::{FetchError, RoleSource as _, secret::RoleCredentials},
    human::{BoxFuture, Human, Question},
    names::Role,
    private_fs,
};

mod logins;
mod sandboxed;
mod tokens;

const NOW: u64 = 1_800_000_000;

#[derive(Clone, Debug)]
struct Call {
    /// `CreateToken(refresh_token)`, `GetRoleCredentials` and so on.
    name: String,
    token: String,
    body: Value,
}

type Answer = (u16, &'static str, String);

/// A server that answers by a function and remembers what it was asked.
struct Fake {
    endpoint: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Fake {
    fn start(answer: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&calls));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, &seen));
            }
        });
        Self { endpoint, calls }
    }

    fn names(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|call| call.name.clone()).collect()
    }

    fn body(&self, name: &str) -> Value {
        self.calls.lock().unwrap().iter().rev().find(|call| call.name == name).unwrap().body.clone()
    }

    fn state(&self, home: &Path) -> Arc<SsoSessionState> {
        self.state_of(session(), home, Clock::from_fn(|| time::from_epoch(NOW)))
    }

    fn state_of(&self, session: SsoSession, home: &Path, clock: Clock) -> Arc<SsoSessionState> {
        let endpoint = || Some(self.endpoint.clone());
        let endpoints = Endpoints::new(|_| endpoint()).unwrap();
        Arc::new(SsoSessionState::new(session, home, &endpoints, clock))
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&Call) -> Answer, seen: &Mutex<Vec<Call>>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let (head, length) = loop {
        let read = stream.read(&mut buffer).unwrap_or(0);
        // The end, or a TLS handshake, which is not spoken here.
        if read == 0 || bytes.is_empty() && buffer[0] == 0x16 {
            return;
        }
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes.drain(..end + 4).collect()).unwrap();
            let length = header(&head, "content-length").parse().unwrap_or(0);
            break (head, length);
        }
    };
    while bytes.len() < length {
        let read = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..read]);
    }
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
    let name = match path.as_str() {
        "/client/register" => "RegisterClient".to_owned(),
        "/device_authorization" => "StartDeviceAuthorization".to_owned(),
        "/token" => {
            format!("CreateToken({})", body["grantType"].as_str().unwrap().rsplit(':').next().unwrap())
        }
        "/federation/credentials" => "GetRoleCredentials".to_owned(),
        "/logout" => "Logout".to_owned(),
        other => other.to_owned(),
    };
    let call = Call { name, token: header(&head, "x-amz-sso_bearer_token"), body };
    seen.lock().unwrap().push(call.clone());
    let (status, kind, body) = answer(&call);
    let kind =
        if kind.is_empty() { String::new() } else { format!("x-amzn-ErrorType: {kind}:http://x/\r\n") };
    drop(write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ));
}

fn header(head: &str, name: &str) -> String {
    head.lines()
        .find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
        .unwrap_or_default()
}

fn new_token(access: &str, refresh: Option<&str>) -> Answer {
    let mut body = json!({"accessToken": access, "tokenType": "Bearer", "expiresIn": 3600});
    if let Some(refresh) = refresh {
        body["refreshToken"] = refresh.into();
    }
    (200, "", body.to_string())
}

fn role_credentials(expires_in: i64) -> Answer {
    let expiration = (i64::try_from(NOW).unwrap() + expires_in) * 1000;
    let body = json!({"roleCredentials": {
        "accessKeyId": "ASIAFAKE", "secretAccessKey": "secret", "sessionToken": "session", "expiration": expiration,
    }});
    (200, "", body.to_string())
}

fn invalid_grant() -> Answer {
    (
        400,
        "InvalidGrantException",
        json!({"error": "invalid_grant", "error_description": "no\u{1b}[2J more"}).to_string(),
    )
}

fn saved(home: &Path, access: &str, life: i64, refresh: Option<&str>) {
    saved_for(&session(), home, access, life, refresh);
}

fn saved_for(session: &SsoSession, home: &Path, access: &str, life: i64, refresh: Option<&str>) {
    let token = SsoToken::issued(
        session,
        access.to_owned().into(),
        time::from_epoch(NOW.saturating_add_signed(life)),
        refresh.map(|refresh| refresh.to_owned().into()),
        Registration {
            client_id: "client".into(),
            client_secret: "client-secret".to_owned().into(),
            expires_at: time::from_epoch(NOW + 86_400),
        },
    );
    TokenFile::new(home, session).store(&token).unwrap();
}

fn file(home: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(TokenFile::new(home, &session()).path()).unwrap()).unwrap()
}

fn role() -> Role {
    Role { account: "111122223333".parse().unwrap(), name: "Deploy".parse().unwrap() }
}

fn source(state: &Arc<SsoSessionState>) -> SsoSource {
    let role = SsoRole { session: state.session().clone(), role: role() };
    SsoSource::new("prod".parse().unwrap(), &role, Arc::clone(state))
}

async fn fetch(state: &Arc<SsoSessionState>) -> Result<RoleCredentials, FetchError> {
    source(state).fetch().await
}

/// A person who notes what they see and passes on where their browser went.
struct Person {
    told: Mutex<Vec<String>>,
    browser: Option<mpsc::UnboundedSender<String>>,
}

impl Person {
    fn new(browser: Option<mpsc::UnboundedSender<String>>) -> Self {
        Self { told: Mutex::default(), browser }
    }

    fn seen(&self) -> String {
        self.told.lock().unwrap().join("\n")
    }
}

impl Human for Person {
    fn ask(&self, question: Question) -> BoxFuture<'_, Option<SecretString>> {
        panic!("nothing to ask: {}", question.text)
    }

    fn tell(&self, text: &str) {
        self.told.lock().unwrap().push(text.to_owned());
    }

    fn browse(&self, url: &str) -> bool {
        self.browser.as_ref().is_some_and(|browser| browser.send(url.to_owned()).is_ok())
    }
}

/// An Identity Center that hands out device codes; polls get `answers` first, then a token.
fn device_center(answers: VecDeque<Answer>) -> Fake {
    let answers = Mutex::new(answers);
    Fake::start(move |call| match call.name.as_str() {
        "RegisterClient" => (
            200,
            "",
            json!({"clientId": "id", "clientSecret": "cs", "clientSecretExpiresAt": NOW + 90 * 86_400})
                .to_string(),
        ),
        "StartDeviceAuthorization" => (
            200,
            "",
            json!({"deviceCode": "dc", "userCode": "ABCD-EFGH", "verificationUri": "https://device.example/",
                   "verificationUriComplete": "https://device.example/?user_code=ABCD-EFGH",
                   "expiresIn": 600, "interval": 1})
            .to_string(),
        ),
        "GetRoleCredentials" => role_credentials(3600),
        "Logout" => (200, "", String::new()),
        _ => answers.lock().unwrap().pop_front().unwrap_or_else(|| new_token("new", Some("r"))),
    })
}
