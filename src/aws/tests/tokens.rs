//! A token over its life: refreshed, refused, revoked, and what it is good for.

use super::*;

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
