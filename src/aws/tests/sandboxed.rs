//! The way from the files of a home to credentials, against the pretend AWS that all tests share.

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
        let profile =
            Profiles::load(&files, Ambient::default()).unwrap().resolve(&"prod".parse().unwrap()).unwrap();
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
        let refreshes = world.aws.calls().iter().filter(|call| *call == "CreateToken(refresh_token)").count();
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
        let expected = "the SSO session `corp` expired; run `broker login --sso-session corp` on your laptop";
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
