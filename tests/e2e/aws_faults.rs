//! AWS that answers wrongly, late or not at all: at the start a clear error before any host sees us, while running
//! credentials to their end, then a sentence, and recovery by itself.

use std::time::{Duration, Instant};

use sandbox::aws::{Fault, Operation, Rotation, TokenSeed};

use crate::{
    refusals::{Case, FAILED, LOGIN_NEEDED, ROLE_DENIED, all},
    support::{ACCOUNT, BASTION, PATIENCE, Tunnel, World},
};

const CONNECT: [&str; 5] = ["connect", BASTION, "--batch", "-p", "dev"];

/// Nothing of a start that failed at AWS reaches the host.
#[track_caller]
fn assert_unseen(world: &World, name: &str) {
    assert_eq!(world.sshd.knocks(), 0, "{name}: the host saw us before we had credentials");
}

#[test]
fn a_role_that_cannot_be_had_ends_the_start() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let words_of_dev = ["`dev`", "Developer", ACCOUNT];
    let (transient, denied): (&[&str], &[&str]) =
        (&["profile `dev`", "AWS gave no credentials", "try again"], &words_of_dev);
    let cases = [
        ("forbidden", Fault::error(403, "ForbiddenException", "No access"), ROLE_DENIED, denied, "No access"),
        (
            "no such account",
            Fault::error(404, "ResourceNotFoundException", "Account not found"),
            ROLE_DENIED,
            denied,
            "Account not found",
        ),
        (
            "throttled",
            Fault::error(429, "TooManyRequestsException", "Rate exceeded"),
            FAILED,
            transient,
            "Rate exceeded",
        ),
        ("bare 401", Fault::Status(401), FAILED, transient, "HTTP 401"),
        ("bare 403", Fault::Status(403), FAILED, transient, "HTTP 403"),
        ("500", Fault::Status(500), FAILED, transient, "HTTP 500"),
        ("503", Fault::error(503, "ServiceUnavailable", "down"), FAILED, transient, "503"),
        ("garbage", Fault::Garbage, FAILED, transient, "no answer of AWS"),
        ("captive portal", Fault::Html, FAILED, transient, "no answer of AWS"),
        ("truncated", Fault::Truncated, FAILED, transient, ""),
        ("huge", Fault::HugeBody, FAILED, transient, "HTTP 200"),
        ("reset", Fault::Reset, FAILED, transient, ""),
        ("expired", Fault::Expired, FAILED, transient, "clock"),
        ("no key", Fault::MissingField("secretAccessKey"), FAILED, transient, "incomplete"),
        ("no expiry", Fault::MissingField("expiration"), FAILED, transient, ""),
        ("nothing", Fault::MissingField("roleCredentials"), FAILED, transient, "without credentials"),
        (
            "revoked",
            Fault::error(401, "UnauthorizedException", "Session token not found or invalid"),
            LOGIN_NEEDED,
            &["`corp`", "broker login --sso-session corp"],
            "was ended",
        ),
    ];
    all(cases, |(name, fault, kind, words, more)| {
        world.aws.fault(Operation::GetRoleCredentials, fault);
        let words = [words, &[more]].concat();
        Case { name, arguments: &CONNECT, kind, words: &words }.is_refused_at_leisure(&mut world);
        assert_unseen(&world, name);
    });
    world.aws.clear_faults();
    // What the profile asks for does not exist.
    world.aws.remove_role(ACCOUNT, "Developer");
    Case { name: "role taken away", arguments: &CONNECT, kind: ROLE_DENIED, words: &words_of_dev }
        .is_refused(&mut world);
    // One of two is denied: nothing is served.
    let both = [&CONNECT[..], &["-p", "audit"]].concat();
    Case { name: "one of two", arguments: &both, kind: ROLE_DENIED, words: &words_of_dev }
        .is_refused(&mut world);
    assert_unseen(&world, "denied");
    world.assert_clean();
}

#[test]
fn an_aws_that_does_not_answer_is_given_up() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.fault(Operation::GetRoleCredentials, Fault::Hang);
    let started = Instant::now();
    let words = ["profile `dev`", "no answer in time", "try again"];
    Case { name: "portal hangs", arguments: &CONNECT, kind: FAILED, words: &words }
        .is_refused_at_leisure(&mut world);
    world.aws.clear_faults();
    world.aws.seed_token_with(
        world.laptop.path(),
        "corp",
        TokenSeed { expired: true, ..TokenSeed::default() },
    );
    world.own_aws_files();
    world.aws.fault(Operation::CreateToken, Fault::Hang);
    // Two of the three wait for the first one's refresh, and say that.
    let words = ["`corp`", "could not be refreshed", "network"];
    Case { name: "sign-in service hangs", arguments: &CONNECT, kind: FAILED, words: &words }
        .is_refused_at_leisure(&mut world);
    assert!(started.elapsed() < 2 * PATIENCE, "{:?}", started.elapsed());
    assert_unseen(&world, "hang");
    world.assert_clean();
}

#[test]
fn a_token_that_cannot_be_refreshed_ends_the_start() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let login: &[&str] = &["SSO session `corp` expired", "broker login --sso-session corp"];
    let transient: &[&str] = &["SSO session `corp` could not be refreshed", "network"];
    let seed = |world: &World, seed: TokenSeed| {
        world.aws.seed_token_with(world.laptop.path(), "corp", seed);
        world.own_aws_files();
    };
    let expired = TokenSeed { expired: true, ..TokenSeed::default() };
    // Or the first of several tries would use the refresh token up.
    world.aws.set_rotation(Rotation::Keep);
    for (name, token, words) in [
        ("no refresh token", TokenSeed { without_refresh_token: true, ..expired }, login),
        ("registration expired", TokenSeed { registration_expired: true, ..expired }, login),
    ] {
        seed(&world, token);
        Case { name, arguments: &CONNECT, kind: LOGIN_NEEDED, words }.is_refused(&mut world);
    }
    assert!(world.aws.calls().is_empty(), "a token that cannot be good was sent: {:?}", world.aws.calls());
    std::fs::remove_file(sandbox::aws::FakeAws::token_path(world.laptop.path(), "corp")).unwrap();
    let words = ["nobody is logged in to the SSO session `corp`", "broker login --sso-session corp"];
    Case { name: "no token", arguments: &CONNECT, kind: LOGIN_NEEDED, words: &words }.is_refused(&mut world);

    seed(&world, expired);
    world.aws.revoke_refresh_tokens();
    Case { name: "revoked", arguments: &CONNECT, kind: LOGIN_NEEDED, words: login }.is_refused(&mut world);
    let cases = [
        (
            "invalid grant",
            Fault::error(400, "InvalidGrantException", "Invalid grant"),
            LOGIN_NEEDED,
            login,
            "",
        ),
        (
            "invalid client",
            Fault::error(401, "InvalidClientException", "Invalid client"),
            LOGIN_NEEDED,
            login,
            "",
        ),
        ("denied", Fault::error(400, "AccessDeniedException", "Access denied"), LOGIN_NEEDED, login, ""),
        ("throttled", Fault::error(400, "SlowDownException", "Slow down"), FAILED, transient, ""),
        ("429", Fault::Status(429), FAILED, transient, "HTTP 429"),
        ("bare 401", Fault::Status(401), FAILED, transient, "HTTP 401"),
        ("bare 403", Fault::Status(403), FAILED, transient, "HTTP 403"),
        ("500", Fault::error(500, "InternalServerException", "oops"), FAILED, transient, "oops"),
        ("garbage", Fault::Garbage, FAILED, transient, "no answer of AWS"),
        ("captive portal", Fault::Html, FAILED, transient, "no answer of AWS"),
        ("truncated", Fault::Truncated, FAILED, transient, ""),
        ("huge", Fault::HugeBody, FAILED, transient, "HTTP 200"),
        ("reset", Fault::Reset, FAILED, transient, ""),
        ("no token in it", Fault::MissingField("accessToken"), FAILED, transient, ""),
    ];
    all(cases, |(name, fault, kind, words, more)| {
        // A refresh that was answered wrongly may have used the refresh token up.
        seed(&world, expired);
        world.aws.fault(Operation::CreateToken, fault);
        let words = [words, &[more]].concat();
        Case { name, arguments: &CONNECT, kind, words: &words }.is_refused_at_leisure(&mut world);
    });
    assert_unseen(&world, "no token");
    world.aws.clear_faults();
    seed(&world, expired);
    let output = world.run(world.connect(&["-p", "dev", "--", "true"]));
    assert_eq!(output.code, Some(0), "{output}");
    world.assert_clean();
}

/// What a program on the host gets: status and body.
struct Answer {
    status: u16,
    body: serde_json::Value,
}

/// Asks as the host's user does.
fn ask(world: &World, tunnel: &Tunnel) -> Answer {
    const CURL: &str = r#"
t=$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
printf 'header = "Authorization: %s"\n' "$(cat "$t")" |
  curl -sS -m 5 -K - -w '\n%{http_code}' "$AWS_CONTAINER_CREDENTIALS_FULL_URI""#;
    let mut curl = world.on_host("sh", &["-c", CURL]);
    curl.envs(&tunnel.environment);
    // Not kept for the last look: credentials are what this prints.
    let output = world.laptop.run(curl).success();
    let text = output.stdout();
    let (body, status) = text.rsplit_once('\n').unwrap();
    Answer { status: status.parse().unwrap(), body: serde_json::from_str(body).unwrap() }
}

/// Asks until the answer is the `wanted` one; all before must have one of the statuses.
#[track_caller]
fn ask_until(world: &World, tunnel: &Tunnel, wanted: impl Fn(&Answer) -> bool, before: &[u16]) -> Answer {
    // A dead session is looked at every 30 s.
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let answer = ask(world, tunnel);
        if wanted(&answer) {
            return answer;
        }
        let Answer { status, body } = answer;
        assert!(before.contains(&status), "{status} {body}");
        assert!(Instant::now() < until, "still {status} {body}");
    }
}

fn served(answer: &Answer) -> bool {
    answer.status == 200
}

fn key(answer: &Answer) -> String {
    answer.body["AccessKeyId"].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
}

/// Lives through `fault` while running: credentials to their end, then a sentence with `words`.
fn live_through(name: &str, fault: Fault, life: Duration, status: u16, words: &[&str]) {
    let mut world = World::new();
    world.aws.set_role_life(life);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let first = key(&ask_until(&world, &tunnel, served, &[]));
    let calls = world.aws.calls().len();
    world.aws.fault(Operation::GetRoleCredentials, fault);
    if life > SHORT {
        // The refresh fails, and what is still good goes on being handed out.
        ask_until(&world, &tunnel, |answer| served(answer) && world.aws.calls().len() > calls, &[200]);
        assert_eq!(key(&ask(&world, &tunnel)), first, "{name}");
    }
    let worded = |answer: &Answer| {
        let sentence = answer.body["Message"].as_str().unwrap_or_default();
        answer.status == status && words.iter().all(|word| sentence.contains(word))
    };
    let refused = ask_until(&world, &tunnel, worded, &[200, 503]);
    let sentence = refused.body["Message"].as_str().unwrap();
    for alarm in ["Os {", "Error(", "SdkError", "hyper", "HTTP"] {
        assert!(!sentence.contains(alarm), "{name}: {sentence}");
    }
    // A denial is asked again after a minute, which is longer than a test should wait.
    if status == 503 {
        world.aws.clear_faults();
        world.aws.set_role_life(Duration::from_secs(3600));
        let second = key(&ask_until(&world, &tunnel, served, &[503]));
        assert_ne!(first, second, "{name}: expired credentials were served");
    }
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{name}\n{output}");
    world.assert_clean();
}

/// Role credentials that are about to expire when they come.
const SHORT: Duration = Duration::from_secs(3);

/// Refreshed after twelve seconds, as no role is asked for twice within ten, and good for six more.
const LONGER: Duration = Duration::from_secs(18);

const AT_THE_MOMENT: &[&str] = &["AWS gave no credentials for profile `dev` at the moment"];

#[test]
fn credentials_outlive_an_outage_of_aws_and_come_back_after_it() {
    if sandbox::isolated!() {
        return;
    }
    live_through("500", Fault::Status(500), LONGER, 503, AT_THE_MOMENT);
}

#[test]
fn a_role_that_is_taken_away_while_running_is_said_to_be() {
    if sandbox::isolated!() {
        return;
    }
    let words = ["Developer", ACCOUNT, "No access"];
    live_through("forbidden", Fault::error(403, "ForbiddenException", "No access"), LONGER, 403, &words);
}

#[test]
fn nonsense_from_aws_while_running_is_lived_through() {
    if sandbox::isolated!() {
        return;
    }
    let cases = [
        ("throttled", Fault::error(429, "TooManyRequestsException", "Rate exceeded")),
        ("garbage", Fault::Garbage),
        ("captive portal", Fault::Html),
        ("reset", Fault::Reset),
        ("expired", Fault::Expired),
        ("incomplete", Fault::MissingField("sessionToken")),
    ];
    all(cases, |(name, fault)| live_through(name, fault, SHORT, 503, AT_THE_MOMENT));
}

#[test]
fn a_session_that_ends_while_running_asks_for_a_login_and_recovers_after_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(Duration::from_secs(6));
    let tunnel = world.tunnel(&["-p", "dev"]);
    let first = key(&ask_until(&world, &tunnel, served, &[]));
    world.aws.expire_access_tokens();
    world.aws.revoke_refresh_tokens();
    let refused = ask_until(&world, &tunnel, |answer| answer.status == 403, &[200, 503]);
    let sentence = refused.body.to_string();
    assert!(
        sentence.contains("broker login --sso-session corp") && sentence.contains("`corp`"),
        "{sentence}"
    );
    // Somebody logs in, with whatever tool.
    world.aws.seed_token(world.laptop.path(), "corp");
    world.own_aws_files();
    world.aws.set_role_life(Duration::from_secs(3600));
    let second = key(&ask_until(&world, &tunnel, served, &[403, 503]));
    assert_ne!(first, second);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}
