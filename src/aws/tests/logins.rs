//! Both logins, and what they leave.

use super::*;

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
