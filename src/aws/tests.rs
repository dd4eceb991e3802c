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

#[tokio::test]
async fn a_token_is_refreshed_when_it_must_be_and_used_while_it_can_be() {
    /// Life of the token, its refresh token, the answer to a refresh, what comes of it, and how many refreshes.
    type Case = (i64, Option<&'static str>, fn() -> Answer, Result<&'static str, &'static str>, usize);
    let html = || (200, "", "<html>log in to the wifi</html>".to_owned());
    let no_life = || (200, "", json!({"accessToken": "new", "expiresIn": 0}).to_string());
    let unmarked = || (400, "", "{}".to_owned());
    let cases: [Case; 11] = [
        (3600, Some("r"), || new_token("new", None), Ok("old"), 0),
        (600, None, || new_token("new", None), Ok("old"), 0),
        (600, Some("r"), || new_token("new", None), Ok("new"), 1),
        (600, Some("r"), invalid_grant, Ok("old"), 1),
        (600, Some("r"), html, Ok("old"), 1),
        (-1, Some("r"), || new_token("new", None), Ok("new"), 1),
        (-1, Some("r"), invalid_grant, Err("login"), 1),
        (-1, Some("r"), html, Err("transient"), 1),
        (-1, Some("r"), no_life, Err("transient"), 1),
        (-1, Some("r"), unmarked, Err("transient"), 1),
        (-1, None, || new_token("new", None), Err("login"), 0),
    ];
    for (i, (life, refresh, answer, expected, refreshes)) in cases.into_iter().enumerate() {
        let home = tempfile::tempdir().unwrap();
        saved(home.path(), "old", life, refresh);
        let aws = Fake::start(move |call| match call.name.as_str() {
            "GetRoleCredentials" => role_credentials(3600),
            _ => answer(),
        });
        let state = aws.state(home.path());
        let outcome = fetch(&state).await;
        match (&outcome, expected) {
            (Ok(_), Ok(token)) => {
                assert_eq!(aws.calls.lock().unwrap().last().unwrap().token, token, "case {i}");
                assert_eq!(file(home.path())["accessToken"], token, "case {i}");
            }
            (Err(FetchError::LoginNeeded { sentence }), Err("login")) => assert_eq!(
                sentence,
                "the SSO session `corp` expired; run `broker login --sso-session corp` on your laptop"
            ),
            (Err(FetchError::Transient { .. }), Err("transient")) => {}
            _ => panic!("case {i}: {outcome:?}"),
        }
        // What was tried once is not tried at every request, unless there is nothing else to live on.
        if !matches!(expected, Err("transient")) {
            assert_eq!(fetch(&state).await.is_ok(), outcome.is_ok(), "case {i}");
        }
        let tried = aws.names().iter().filter(|name| *name == "CreateToken(refresh_token)").count();
        assert_eq!(tried, refreshes, "case {i}");
    }
}

#[tokio::test]
async fn a_refresh_is_tried_again_after_a_minute() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", 600, Some("r"));
    let broken = Arc::new(Mutex::new(true));
    let aws = Fake::start({
        let broken = Arc::clone(&broken);
        move |call| match call.name.as_str() {
            "GetRoleCredentials" => role_credentials(3600),
            _ if *broken.lock().unwrap() => (400, "", String::new()),
            _ => new_token("new", None),
        }
    });
    let now = Arc::new(AtomicU64::new(NOW));
    let clock = Clock::from_fn({
        let now = Arc::clone(&now);
        move || time::from_epoch(now.load(Ordering::SeqCst))
    });
    let state = aws.state_of(session(), home.path(), clock);
    fetch(&state).await.unwrap();
    *broken.lock().unwrap() = false;
    now.fetch_add(59, Ordering::SeqCst);
    fetch(&state).await.unwrap();
    assert_eq!(file(home.path())["accessToken"], "old");
    now.fetch_add(1, Ordering::SeqCst);
    fetch(&state).await.unwrap();
    assert_eq!(file(home.path())["accessToken"], "new");
}

#[tokio::test]
async fn many_who_need_a_refresh_make_one() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", -1, Some("r"));
    let aws = Fake::start(|call| match call.name.as_str() {
        "GetRoleCredentials" => role_credentials(3600),
        _ => {
            // Long enough for all others to arrive.
            std::thread::sleep(Duration::from_millis(100));
            new_token("new", Some("r2"))
        }
    });
    // As two processes with two tunnels each.
    let (one, two) = (aws.state(home.path()), aws.state(home.path()));
    let (a, b, c, d) = tokio::join!(fetch(&one), fetch(&one), fetch(&two), fetch(&two));
    assert!([a, b, c, d].iter().all(Result::is_ok));
    let refreshes = aws.names().iter().filter(|name| name.starts_with("CreateToken")).count();
    assert_eq!(refreshes, 1, "{:?}", aws.names());
}

#[tokio::test]
async fn a_refresh_keeps_what_the_answer_does_not_replace() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", -1, Some("kept"));
    let path = TokenFile::new(home.path(), &session()).path().to_owned();
    let mut content = file(home.path());
    content["futureField"] = json!(7);
    private_fs::write(&path, content.to_string().as_bytes()).unwrap();
    let aws = Fake::start(|call| match call.name.as_str() {
        "GetRoleCredentials" => role_credentials(3600),
        _ => new_token("new", None),
    });
    fetch(&aws.state(home.path())).await.unwrap();
    assert_eq!(
        aws.body("CreateToken(refresh_token)"),
        json!({"clientId": "client", "clientSecret": "client-secret", "grantType": "refresh_token", "refreshToken": "kept"})
    );
    content["accessToken"] = "new".into();
    content["expiresAt"] = time::format(time::from_epoch(NOW + 3600)).into();
    assert_eq!(file(home.path()), content);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn a_refresh_that_another_tool_won_is_no_reason_to_log_in() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", -1, Some("r"));
    let root = home.path().to_owned();
    let aws = Fake::start(move |call| match call.name.as_str() {
        "GetRoleCredentials" => role_credentials(3600),
        _ => {
            // An AWS CLI, which does not know our lock, was a moment faster.
            saved(&root, "theirs", 3600, Some("r2"));
            invalid_grant()
        }
    });
    fetch(&aws.state(home.path())).await.unwrap();
    assert_eq!(aws.calls.lock().unwrap().last().unwrap().token, "theirs");
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once_and_then_a_person_must_log_in() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", 3600, Some("r"));
    let aws = Fake::start(|call| match (call.name.as_str(), call.token.as_str()) {
        ("GetRoleCredentials", "fresh") => role_credentials(3600),
        ("GetRoleCredentials", _) => (
            401,
            "UnauthorizedException",
            json!({"message": "Session token not found or invalid"}).to_string(),
        ),
        _ => new_token("new", Some("r2")),
    });
    let state = aws.state(home.path());
    let expected = "the SSO session `corp` was ended; run `broker login --sso-session corp` on your laptop";
    let calls = ["GetRoleCredentials", "CreateToken(refresh_token)", "GetRoleCredentials"];
    let error = fetch(&state).await.unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(aws.names(), calls);

    // A person logs in, with whatever tool: everything recovers by itself.
    saved(home.path(), "fresh", 3600, Some("r3"));
    fetch(&state).await.unwrap();
}

#[tokio::test]
async fn a_dead_session_is_not_asked_for_again_and_again() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "old", 3600, Some("r"));
    let aws = Fake::start(|call| match call.name.as_str() {
        "GetRoleCredentials" => (401, "UnauthorizedException", "{}".to_owned()),
        _ => invalid_grant(),
    });
    let state = aws.state(home.path());
    for _ in 0..3 {
        assert!(matches!(fetch(&state).await, Err(FetchError::LoginNeeded { .. })));
        assert!(matches!(state.ensure(LoginPolicy::Never).await, Err(IdentityError::LoginNeeded { .. })));
    }
    assert_eq!(aws.names(), ["GetRoleCredentials", "CreateToken(refresh_token)"]);
}

#[tokio::test]
async fn each_answer_of_the_portal_has_its_meaning() {
    let good = role_credentials(3600).2;
    let long = format!("{good}{}", " ".repeat(2 << 20));
    let cases: Vec<(Answer, &str, &str)> = vec![
        (
            (403, "ForbiddenException", json!({"message": "No access"}).to_string()),
            "denied",
            "AWS denies role `Deploy` in account 111122223333 (profile `prod`) to you: No access",
        ),
        (
            (404, "ResourceNotFoundException", json!({"message": "no such account"}).to_string()),
            "denied",
            "no such account",
        ),
        ((403, "", "<html>proxy</html>".to_owned()), "transient", ""),
        ((401, "", "<html>proxy</html>".to_owned()), "transient", ""),
        ((200, "", "<html>wifi</html>".to_owned()), "transient", ""),
        ((200, "", "{\"roleCredentials\":{\"accessKeyId\":\"A\"".to_owned()), "transient", ""),
        ((200, "", json!({"roleCredentials": {"accessKeyId": 7}}).to_string()), "transient", ""),
        ((200, "", "{}".to_owned()), "transient", ""),
        ((200, "", long), "transient", ""),
        (role_credentials(-1), "transient", ""),
        ((429, "TooManyRequestsException", "{}".to_owned()), "transient", ""),
        ((503, "", String::new()), "transient", ""),
    ];
    for (answer, kind, text) in cases {
        let home = tempfile::tempdir().unwrap();
        saved(home.path(), "token", 3600, None);
        let shown = format!("{:.80?}", answer.2);
        let aws = Fake::start(move |_| answer.clone());
        let error = fetch(&aws.state(home.path())).await.unwrap_err();
        let found = match &error {
            FetchError::Denied { .. } => "denied",
            FetchError::Transient { .. } => "transient",
            FetchError::LoginNeeded { .. } => "login",
        };
        assert_eq!(found, kind, "{shown} gave {error:?}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(aws.names().len() <= 3, "no more than three tries");
    }
}

#[tokio::test]
async fn a_stalled_portal_is_given_up() {
    tokio::time::pause();
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "token", 3600, None);
    let aws = Fake::start(|_| {
        std::thread::park();
        role_credentials(3600)
    });
    // Time is paused: the deadline comes as soon as nothing else happens.
    assert!(matches!(fetch(&aws.state(home.path())).await, Err(FetchError::Transient { .. })));
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_gets_no_token() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "token", 3600, None);
    let aws = Fake::start(|_| role_credentials(3600));
    let https = || Some(aws.endpoint.replace("http:", "https:"));
    let endpoints = Endpoints::new(|_| https()).unwrap();
    let clock = Clock::from_fn(|| time::from_epoch(NOW));
    let state = Arc::new(SsoSessionState::new(session(), home.path(), &endpoints, clock));
    assert!(matches!(fetch(&state).await, Err(FetchError::Transient { .. })));
    assert!(aws.names().is_empty());
}

#[tokio::test]
async fn credentials_are_what_the_portal_gave() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path(), "token", 3600, None);
    let aws = Fake::start(|_| role_credentials(3600));
    let credentials = fetch(&aws.state(home.path())).await.unwrap();
    assert_eq!(credentials.access_key_id, "ASIAFAKE");
    assert_eq!(credentials.secret_access_key.expose_secret(), "secret");
    assert_eq!(credentials.session_token.expose_secret(), "session");
    assert_eq!(credentials.expires_at, time::from_epoch(NOW + 3600));
    assert_eq!(credentials.issued_at, time::from_epoch(NOW));
    assert_eq!(credentials.account, Some(role().account));
}

#[tokio::test]
async fn an_unusable_file_asks_for_a_login_and_is_replaced_by_it() {
    let home = tempfile::tempdir().unwrap();
    private_fs::write(TokenFile::new(home.path(), &session()).path(), b"{\"accessToken\":").unwrap();
    let aws = device_center(VecDeque::new());
    let state = aws.state(home.path());
    let error = state.ensure(LoginPolicy::Never).await.unwrap_err();
    assert!(
        error.to_string().starts_with("the saved token of the SSO session `corp` cannot be used"),
        "{error}"
    );
    assert!(aws.names().is_empty());
    let person = Person::new(None);
    state.ensure(LoginPolicy::With { human: &person, method: LoginMethod::DeviceCode }).await.unwrap();
    fetch(&state).await.unwrap();
    assert_eq!(file(home.path())["accessToken"], "new");
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

#[tokio::test]
async fn a_device_code_leads_to_a_token_that_the_aws_cli_can_use() {
    let home = tempfile::tempdir().unwrap();
    let aws = device_center(VecDeque::from([(
        400,
        "AuthorizationPendingException",
        json!({"error": "authorization_pending"}).to_string(),
    )]));
    let state = aws.state(home.path());
    let person = Person::new(None);
    state.login(&person, LoginMethod::DeviceCode, false).await.unwrap();
    let told = person.seen();
    assert!(told.contains("https://device.example/") && told.contains("ABCD-EFGH"), "{told}");
    assert_eq!(
        aws.names(),
        [
            "RegisterClient",
            "StartDeviceAuthorization",
            "CreateToken(device_code)",
            "CreateToken(device_code)"
        ]
    );
    assert_eq!(
        aws.body("RegisterClient"),
        json!({"clientName": "botocore-client-corp", "clientType": "public"})
    );
    assert_eq!(
        file(home.path()),
        json!({
            "startUrl": "https://corp.awsapps.com/start", "region": "eu-west-1", "accessToken": "new",
            "expiresAt": "2027-01-15T09:00:00Z", "clientId": "id", "clientSecret": "cs",
            "registrationExpiresAt": "2027-04-15T08:00:00Z", "refreshToken": "r",
        })
    );
    fetch(&state).await.unwrap();

    // The registration is kept for the next time.
    state.login(&person, LoginMethod::DeviceCode, false).await.unwrap();
    assert_eq!(aws.names().iter().filter(|name| *name == "RegisterClient").count(), 1);

    assert!(matches!(state.logout().await.unwrap(), Logout::Done));
    assert_eq!(
        aws.calls.lock().unwrap().last().map(|call| (call.name.clone(), call.token.clone())).unwrap(),
        ("Logout".into(), "new".into())
    );
    assert!(matches!(state.logout().await.unwrap(), Logout::NobodyWasLoggedIn));
    assert!(
        matches!(fetch(&state).await, Err(FetchError::LoginNeeded { sentence }) if sentence.starts_with("nobody is logged in"))
    );
}

#[tokio::test]
async fn a_start_url_of_ones_own_is_followed_at_a_login_and_its_region_stays_with_the_token() {
    let home = tempfile::tempdir().unwrap();
    let aws = device_center(VecDeque::new());
    // As the configuration has it: another region, and a name that AWS does not know.
    let company = TcpListener::bind("127.0.0.1:0").unwrap();
    let start_url = format!("http://{}/aws", company.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = company.accept().unwrap();
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).unwrap() > 0);
        let to = "https://ssoins-abc.portal.us-east-2.app.aws:443/";
        stream
            .write_all(
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
            )
            .unwrap();
    });
    let vanity = SsoSession { start_url: start_url.parse().unwrap(), ..session() };
    let state = aws.state_of(vanity.clone(), home.path(), Clock::from_fn(|| time::from_epoch(NOW)));
    let person = Person::new(None);
    state.login(&person, LoginMethod::DeviceCode, false).await.unwrap();
    assert!(person.seen().contains("`sso_region = us-east-2`"), "{}", person.seen());
    assert_eq!(
        aws.body("StartDeviceAuthorization")["startUrl"],
        "https://ssoins-abc.portal.us-east-2.app.aws"
    );
    let written = file(home.path());
    assert_eq!((&written["startUrl"], &written["region"]), (&json!(start_url), &json!("us-east-2")));

    // Whatever is done with the token, and with its successors, is done there.
    let region = |state: &SsoSessionState, token: &SsoToken| state.clients_of(token).region().to_string();
    let token = state.any_token().await.unwrap();
    assert_eq!(region(&state, &token), "us-east-2");
    let later = aws.state_of(vanity, home.path(), Clock::from_fn(|| time::from_epoch(NOW + 3500)));
    let refreshed = later.any_token().await.unwrap();
    assert!(aws.names().iter().any(|name| name == "CreateToken(refresh_token)"), "{:?}", aws.names());
    assert_eq!(region(&later, &refreshed), "us-east-2");
    // Where AWS itself answers, the configuration counts.
    let plain = aws.state_of(session(), home.path(), Clock::from_fn(|| time::from_epoch(NOW)));
    assert_eq!(region(&plain, &token), "eu-west-1");
}

#[tokio::test]
async fn a_login_that_was_denied_leaves_no_token() {
    let home = tempfile::tempdir().unwrap();
    let aws = device_center(VecDeque::from([(
        400,
        "AccessDeniedException",
        json!({"error": "access_denied", "error_description": "ask\u{7} your admin"}).to_string(),
    )]));
    let error =
        aws.state(home.path()).login(&Person::new(None), LoginMethod::DeviceCode, false).await.unwrap_err();
    let IdentityError::Login { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "the login was denied: ask\u{fffd} your admin");
    assert!(!TokenFile::new(home.path(), &session()).path().exists());
}

#[tokio::test]
async fn a_home_that_cannot_be_written_means_a_token_in_memory() {
    let home = tempfile::tempdir().unwrap();
    // Root may write everywhere, but not below a file.
    private_fs::write(&home.path().join(".aws"), b"").unwrap();
    let aws = device_center(VecDeque::new());
    let state = aws.state(home.path());
    state.login(&Person::new(None), LoginMethod::DeviceCode, false).await.unwrap();
    fetch(&state).await.unwrap();
}

#[tokio::test]
async fn a_legacy_profile_confirms_its_code_in_the_browser() {
    let home = tempfile::tempdir().unwrap();
    let aws = device_center(VecDeque::new());
    let legacy = SsoSession { name: SessionKey::StartUrl, ..session() };
    let state = aws.state_of(legacy.clone(), home.path(), Clock::from_fn(|| time::from_epoch(NOW)));
    let error = fetch(&state).await.unwrap_err();
    assert!(error.to_string().contains("`broker login -p prod`"), "{error}");
    let (browser, mut visits) = mpsc::unbounded_channel();
    let person = Person::new(Some(browser));
    state.login(&person, LoginMethod::Browser, false).await.unwrap();
    assert_eq!(visits.recv().await.unwrap(), "https://device.example/?user_code=ABCD-EFGH");
    assert!(person.seen().contains("ABCD-EFGH"));
    assert!(TokenFile::new(home.path(), &legacy).path().exists());
}

#[tokio::test]
async fn the_browser_leads_to_a_token_and_shows_how_it_went() {
    for (answer, page) in
        [(new_token("new", Some("r")), "You are signed in"), (invalid_grant(), "The sign-in did not work")]
    {
        let home = tempfile::tempdir().unwrap();
        let fails = answer.0 != 200;
        let aws = Fake::start(move |call| match call.name.as_str() {
            "RegisterClient" => (
                200,
                "",
                json!({"clientId": "id", "clientSecret": "cs", "clientSecretExpiresAt": NOW + 90 * 86_400})
                    .to_string(),
            ),
            _ => answer.clone(),
        });
        let state = aws.state(home.path());
        let (browser, mut visits) = mpsc::unbounded_channel();
        let person = Person::new(Some(browser));
        let (result, url) = tokio::join!(state.login(&person, LoginMethod::Browser, false), async {
            let url = visits.recv().await.unwrap();
            let parameter = |name: &str| {
                let (_, rest) = url.split_once(&format!("{name}=")).unwrap();
                rest.split('&').next().unwrap().replace("%3A", ":").replace("%2F", "/")
            };
            let redirect = parameter("redirect_uri");
            let state = parameter("state");
            let host = redirect.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
            let shown = tokio::task::spawn_blocking(move || {
                let mut stream = TcpStream::connect(&host).unwrap();
                write!(
                    stream,
                    "GET /oauth/callback?code=the-code&state={state} HTTP/1.1\r\nHost: {host}\r\n\r\n"
                )
                .unwrap();
                let mut shown = String::new();
                stream.read_to_string(&mut shown).unwrap();
                shown
            });
            let shown = shown.await.unwrap();
            assert!(shown.contains(page), "{shown}");
            url
        });
        assert_eq!(result.is_err(), fails);
        assert!(
            url.starts_with(&format!("{}/authorize?response_type=code&client_id=id&", aws.endpoint)),
            "{url}"
        );
        let redeemed = aws.body("CreateToken(authorization_code)");
        assert_eq!(redeemed["code"], "the-code");
        let verifier = redeemed["codeVerifier"].as_str().unwrap();
        let challenge = base64::Engine::encode(
            &base64::engine::general_purpose::URL_SAFE_NO_PAD,
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes()),
        );
        assert!(url.ends_with(&format!("code_challenge={challenge}")), "{url}");
        assert_eq!(
            aws.body("RegisterClient"),
            json!({
                "clientName": "botocore-client-corp", "clientType": "public", "scopes": ["sso:account:access"],
                "grantTypes": ["authorization_code", "refresh_token"],
                "redirectUris": ["http://127.0.0.1/oauth/callback"], "issuerUrl": "https://corp.awsapps.com/start",
            })
        );
        if !fails {
            assert_eq!(file(home.path())["accessToken"], "new");
            assert_eq!(file(home.path())["refreshToken"], "r");
        }
        assert!(!person.seen().contains(verifier));
    }
}

/// The way from the files of a home to credentials, against the pretend AWS that all tests share.
mod sandboxed {
    use sandbox::aws::{Consent, FakeAws, Fault, Operation, Rotation, TokenSeed};

    use super::*;
    use crate::aws::profile::{Ambient, ConfigFiles, Profiles, Source};

    const PROFILES: [(&str, &str, &str); 1] = [("prod", "111122223333", "Deploy")];

    struct World {
        aws: Arc<FakeAws>,
        home: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let aws = FakeAws::start().await;
            aws.add_role("111122223333", "production", "Deploy");
            let home = tempfile::tempdir().unwrap();
            aws.seed_home(home.path(), "corp", &PROFILES, "eu-west-1");
            Self { aws: Arc::new(aws), home }
        }

        fn source(&self) -> (Arc<SsoSessionState>, SsoSource) {
            let home = self.home.path();
            let files =
                ConfigFiles { config: home.join(".aws/config"), credentials: home.join(".aws/credentials") };
            let profile = Profiles::load(&files, Ambient::default())
                .unwrap()
                .resolve(&"prod".parse().unwrap())
                .unwrap();
            let Source::Sso(role) = profile.source else { panic!("{:?}", profile.source) };
            let endpoint = || Some(self.aws.endpoint());
            let endpoints = Endpoints::new(|_| endpoint()).unwrap();
            let aws = Arc::clone(&self.aws);
            let clock = Clock::from_fn(move || aws.now());
            let state = Arc::new(SsoSessionState::new(role.session.clone(), home, &endpoints, clock));
            let source = SsoSource::new(profile.name, &role, Arc::clone(&state));
            (state, source)
        }
    }

    /// Opens `url` and follows its redirects, as a browser does; returns the last answer.
    fn browse(mut url: String) -> String {
        loop {
            let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
            let mut stream = TcpStream::connect(host).unwrap();
            write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            match header(&answer, "location") {
                target if target.is_empty() => return answer,
                target => url = target,
            }
        }
    }

    #[tokio::test]
    async fn a_login_in_the_browser_ends_in_credentials_and_goes_on_by_refreshes() {
        for rotation in [Rotation::Rotate, Rotation::Keep, Rotation::Omit] {
            let world = World::new().await;
            world.aws.set_rotation(rotation);
            world.aws.set_access_token_life(Duration::from_secs(3600));
            let (state, source) = world.source();
            let (browser, mut visits) = mpsc::unbounded_channel();
            let person = Person::new(Some(browser));
            let policy = LoginPolicy::With { human: &person, method: LoginMethod::Browser };
            let (done, page) = tokio::join!(state.ensure(policy), async {
                let url = visits.recv().await.unwrap();
                tokio::task::spawn_blocking(move || browse(url)).await.unwrap()
            });
            done.unwrap();
            assert!(page.contains("You are signed in"), "{page}");
            let credentials = source.fetch().await.unwrap();
            assert_eq!(Some(credentials.access_key_id), world.aws.last_issued("111122223333", "Deploy"));
            for _ in 0..3 {
                world.aws.advance(Duration::from_secs(3700));
                source.fetch().await.unwrap();
            }
            let refreshes =
                world.aws.calls().iter().filter(|call| *call == "CreateToken(refresh_token)").count();
            assert_eq!(refreshes, 3, "{rotation:?}: {:?}", world.aws.calls());
        }
    }

    #[tokio::test]
    async fn no_fault_of_the_portal_is_more_than_a_pause() {
        let world = World::new().await;
        world.aws.seed_token(world.home.path(), "corp");
        let (_, source) = world.source();
        for fault in [
            Fault::Status(500),
            Fault::Garbage,
            Fault::Html,
            Fault::Truncated,
            Fault::HugeBody,
            Fault::Reset,
            Fault::Expired,
            Fault::MissingField("sessionToken"),
            Fault::MissingField("expiration"),
        ] {
            world.aws.fault(Operation::GetRoleCredentials, fault.clone());
            let error = source.fetch().await.unwrap_err();
            assert!(matches!(error, FetchError::Transient { .. }), "{fault:?}: {error:?}");
            let told = format!("{error:?} {error}");
            assert!(!world.aws.secrets().iter().any(|secret| told.contains(secret)), "{fault:?}: {told}");
            world.aws.clear_faults();
            source.fetch().await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_expired_session_says_how_to_log_in() {
        for seed in [
            TokenSeed { expired: true, without_refresh_token: true, ..TokenSeed::default() },
            TokenSeed { expired: true, registration_expired: true, ..TokenSeed::default() },
        ] {
            let world = World::new().await;
            world.aws.seed_token_with(world.home.path(), "corp", seed);
            let (state, source) = world.source();
            let expected =
                "the SSO session `corp` expired; run `broker login --sso-session corp` on your laptop";
            assert_eq!(source.fetch().await.unwrap_err().to_string(), expected);
            assert_eq!(state.ensure(LoginPolicy::Never).await.unwrap_err().to_string(), expected);
            assert!(world.aws.calls().is_empty());
        }
    }

    #[tokio::test]
    async fn a_stale_registration_is_replaced_in_the_device_flow() {
        let world = World::new().await;
        world.aws.set_device_interval(1);
        let (state, source) = world.source();
        let person = Person::new(None);
        state.login(&person, LoginMethod::DeviceCode, false).await.unwrap();
        world.aws.expire_registrations();
        state.login(&person, LoginMethod::DeviceCode, false).await.unwrap();
        source.fetch().await.unwrap();
        let registrations = world.aws.calls().iter().filter(|call| *call == "RegisterClient").count();
        assert_eq!(registrations, 2, "{:?}", world.aws.calls());

        world.aws.set_consent(Consent::Denied);
        let error = state.login(&person, LoginMethod::DeviceCode, false).await.unwrap_err();
        assert!(matches!(error, IdentityError::Login { .. }));
        // The login that did not happen took nothing away.
        source.fetch().await.unwrap();
    }

    #[tokio::test]
    async fn a_role_that_was_taken_away_is_denied_by_name() {
        let world = World::new().await;
        world.aws.seed_token(world.home.path(), "corp");
        let (_, source) = world.source();
        source.fetch().await.unwrap();
        world.aws.remove_role("111122223333", "Deploy");
        let FetchError::Denied { sentence } = source.fetch().await.unwrap_err() else { panic!("not denied") };
        assert!(sentence.contains("role `Deploy` in account 111122223333 (profile `prod`)"), "{sentence}");
    }
}
