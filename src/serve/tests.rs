use std::{
    future::{pending, ready},
    sync::Arc,
};

use secrecy::ExposeSecret as _;
use tokio::{io::DuplexStream, sync::oneshot};

use super::*;
use crate::{
    audit::{Log, Memory},
    caller::Uid,
    clock::Clock,
    creds::{
        RoleSource,
        cache::Cache,
        fake::{Source, Then, Time},
        secret::BearerToken,
    },
    tls::{Identity, Stream, Wish},
};

const US: Uid = Uid(1000);
const NEIGHBOUR: Uid = Uid(65534);
const HOUR: Then = Then::Lives(Duration::from_secs(3600));
const ENDPOINT: Endpoint<'_> = Endpoint { port: Some(4144), name: None, originator_port: Some(40000) };

struct Lab {
    grants: Arc<Grants>,
    time: Time,
    memory: Memory,
}

impl Lab {
    fn new() -> Self {
        let (log, memory) = Log::to_memory();
        let grants = Grants::new(log);
        grants.allow([US]);
        Self { grants, time: Time::new(), memory }
    }

    /// Adds a grant and returns its header value.
    fn add(&self, profile: &str, then: Then) -> (String, Arc<Source>) {
        let source = Source::new(&self.time, then);
        let cache = Cache::new(Arc::clone(&source) as Arc<dyn RoleSource>, self.time.clock());
        let token = BearerToken::generate().unwrap();
        let grant = Grant::new(profile.parse().unwrap(), None, None, None, token, cache);
        let grant = self.grants.add(grant).unwrap();
        (grant.token.expose_for_token_file().expose_secret().to_owned(), source)
    }

    /// Sends `request` as `caller` through a pipe of `size` bytes and returns all that comes back.
    async fn send(&self, size: usize, request: &[u8], caller: Result<Uid, Unproven>) -> String {
        let (ours, theirs) = tokio::io::duplex(size);
        let served = connection(ours, &ENDPOINT, ready(caller.map(Caller::Uid)), &self.grants);
        tokio::join!(served, exchange_as_client(theirs, request)).1
    }

    async fn get(&self, path: &str, token: &str, caller: Uid) -> String {
        self.send(1 << 16, request(path, Some(token)).as_bytes(), Ok(caller)).await
    }

    fn reasons(&mut self) -> Vec<&'static str> {
        self.memory.entries().into_iter().filter_map(|entry| entry.reason).collect()
    }
}

fn request(path: &str, token: Option<&str>) -> String {
    let token = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nUser-Agent: test\r\n{token}\r\n")
}

async fn exchange_as_client(stream: DuplexStream, request: &[u8]) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let send = async { drop(writer.write_all(request).await) };
    let receive = async { drop(reader.read_to_end(&mut answer).await) };
    tokio::join!(send, receive);
    String::from_utf8(answer).unwrap()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("closed")
}

#[tokio::test]
async fn a_request_gets_its_credentials_whatever_the_pipe() {
    let mut lab = Lab::new();
    let (token, source) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    for size in [1, 8, 1 << 16] {
        let answer = lab.send(size, request("/", Some(&token)).as_bytes(), Ok(US)).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<&str> = head.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "Cache-Control: no-store",
                "Connection: close",
                &format!("Content-Length: {}", body.len()),
                "Content-Type: application/json",
                "HTTP/1.1 200 OK",
                "X-Content-Type-Options: nosniff",
            ]
        );
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["SecretAccessKey"], "canary-secret-1");
        assert_eq!(body["Expiration"], "2026-01-01T01:00:00Z");
    }
    assert_eq!(source.calls(), 1);
    let last = lab.memory.entries().pop().unwrap();
    assert_eq!(last.decision, Some(Decision::Allowed));
    assert_eq!((last.uid, last.originator_port), (Some(1000), Some(40000)));
    assert_eq!(last.access_key_id, AccessKeyId::parse("ASIAEXAMPLE000000001"));
    assert_eq!(last.user_agent, Some(Text::of_user_agent(b"test")));
}

#[tokio::test]
async fn every_wrong_way_in_gets_the_same_bytes() {
    let lab = Lab::new();
    let (a, _) = lab.add("a", HOUR);
    let (b, _) = lab.add("b", HOUR);
    lab.grants.first_fetch().await;
    let wrong = lab.get("/", "Bearer wrong", US).await;
    assert_eq!(status(&wrong), "401");
    for (path, token, caller) in [
        ("/", b.as_str(), US),
        ("/slot/a", &b, US),
        ("/slot/b", &a, US),
        ("/slot/none", &a, US),
        ("/nowhere", &a, US),
        ("/?x", &a, US),
        ("/healthcheck", &b, US),
        ("/healthcheck", "Bearer wrong", US),
        ("/", &a, NEIGHBOUR),
        ("/", "Bearer wrong", NEIGHBOUR),
        ("/nowhere", "", NEIGHBOUR),
    ] {
        assert_eq!(lab.get(path, token, caller).await, wrong, "{path} {caller}");
    }
    assert_eq!(status(&lab.get("/", &a, US).await), "200");
    assert_eq!(status(&lab.get("/slot/b", &b, US).await), "200");
    let none = lab.send(1 << 16, request("/", None).as_bytes(), Ok(US)).await;
    assert_eq!(status(&none), "401");
    assert!(none.contains("token files"), "{none}");
    let nowhere = lab.send(1 << 16, request("/nowhere", None).as_bytes(), Ok(US)).await;
    assert_eq!(nowhere, none, "no path can be told from another without a token");
}

#[tokio::test]
async fn a_health_check_needs_the_token_and_shows_no_secret() {
    let lab = Lab::new();
    let (a, _) = lab.add("a", HOUR);
    let (b, _) = lab.add("b", Then::LoginNeeded);
    lab.grants.first_fetch().await;
    for path in ["/healthcheck", "/healthcheck/slot/a"] {
        let answer = lab.get(path, &a, US).await;
        assert_eq!(status(&answer), "200");
        assert!(answer.contains("2026-01-01T01:00:00Z") && !answer.contains("canary"), "{answer}");
    }
    assert_eq!(status(&lab.get("/healthcheck/slot/b", &b, US).await), "403");
}

#[tokio::test]
async fn a_neighbour_with_our_token_raises_the_alarm() {
    let mut lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    lab.memory.entries();
    // The wrong one first: the alarm does not drown in the burst that it begins.
    for token in ["Bearer wrong", &token, &token, "Bearer wrong"] {
        lab.get("/", token, NEIGHBOUR).await;
    }
    let lines: Vec<_> = lab.memory.entries().into_iter().map(|entry| (entry.event, entry.uid)).collect();
    assert_eq!(lines, [(Event::Request, Some(65534)), (Event::TokenTheftSuspected, Some(65534))]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_answered_before_the_caller_is_proven() {
    let lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    for request in [request("/", Some(&token)), "POST / HTTP/1.1\r\n\r\n".into()] {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (prove, proven) = oneshot::channel();
        let caller = async { proven.await.unwrap_or(Err(Unproven::Gone)).map(Caller::Uid) };
        let client = async {
            theirs.write_all(request.as_bytes()).await.unwrap();
            let early = timeout(Duration::from_millis(500), theirs.read_u8()).await;
            assert!(early.is_err(), "{early:?}");
            prove.send(Ok(US)).unwrap();
            let mut answer = String::new();
            theirs.read_to_string(&mut answer).await.unwrap();
            assert!(["200", "405"].contains(&status(&answer)), "{answer}");
        };
        tokio::join!(connection(ours, &ENDPOINT, caller, &lab.grants), client);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unproven_caller_is_told_so_in_time() {
    let mut lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    let request = request("/", Some(&token));
    for unproven in
        [Unproven::Late, Unproven::NoHelper, Unproven::Gone, Unproven::Ambiguous, Unproven::Hidden]
    {
        let answer = lab.send(1 << 16, request.as_bytes(), Err(unproven)).await;
        assert_eq!(status(&answer), "503");
        assert!(answer.contains(&unproven.to_string()) && !answer.contains("canary"), "{answer}");
    }
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let begun = Instant::now();
    let served = connection(ours, &ENDPOINT, pending(), &lab.grants);
    let answer = tokio::join!(served, exchange_as_client(theirs, request.as_bytes())).1;
    assert_eq!(status(&answer), "503");
    assert!(begun.elapsed() <= ANSWER_TIMEOUT + Duration::from_millis(2), "{:?}", begun.elapsed());
    assert!(lab.reasons().contains(&"unproven_caller"));
}

#[tokio::test(start_paused = true)]
async fn two_hundred_processes_that_start_at_once_are_one_fetch() {
    let lab = Lab::new();
    let (token, source) = lab.add("a", HOUR);
    source.hold();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut clients = tokio::task::JoinSet::new();
    let mut servers = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (grants, request) = (Arc::clone(&lab.grants), request("/", Some(&token)));
        servers.spawn(async move { connection(ours, &ENDPOINT, ready(Ok(Caller::Uid(US))), &grants).await });
        clients.spawn(async move { exchange_as_client(theirs, request.as_bytes()).await });
    }
    let people = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        source.let_go();
        let answers = clients.join_all().await;
        assert!(answers.iter().all(|answer| status(answer) == "200"));
        drop(stop);
    };
    tokio::join!(lab.grants.run(async { drop(stopped.await) }), people);
    servers.join_all().await;
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_nothing_is_there_the_answer_comes_within_its_time() {
    for (then, hold, expected) in [
        (HOUR, true, "503"),
        (Then::Transient, false, "503"),
        (Then::LoginNeeded, false, "403"),
        (Then::Denied, false, "403"),
    ] {
        let lab = Lab::new();
        let (token, source) = lab.add("a", then);
        if hold {
            source.hold();
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let client = async {
            let begun = Instant::now();
            let answer = lab.get("/", &token, US).await;
            assert_eq!(status(&answer), expected, "{then:?}");
            assert!(begun.elapsed() <= ANSWER_TIMEOUT + Duration::from_millis(2), "{then:?}");
            drop(stop);
        };
        tokio::join!(lab.grants.run(async { drop(stopped.await) }), client);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_revoked_while_a_request_waits_is_not_handed_out() {
    let lab = Lab::new();
    let (token, source) = lab.add("a", HOUR);
    source.hold();
    let (stop, stopped) = oneshot::channel::<()>();
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        lab.grants.revoke_all();
        source.let_go();
    };
    let client = async {
        let answer = lab.get("/", &token, US).await;
        assert_eq!(status(&answer), "401", "{answer}");
        drop(stop);
    };
    tokio::join!(lab.grants.run(async { drop(stopped.await) }), revoke, client);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_cut_off() {
    let lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    // One byte a second: too slow for the head.
    let (ours, theirs) = tokio::io::duplex(64);
    let (mut reader, mut writer) = tokio::io::split(theirs);
    let begun = Instant::now();
    let drip = async {
        for byte in request("/", Some(&token)).bytes() {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let receive = async {
        let mut answer = String::new();
        reader.read_to_string(&mut answer).await.unwrap();
        assert_eq!(status(&answer), "408");
        assert!(begun.elapsed() <= Duration::from_secs(7), "{:?}", begun.elapsed());
    };
    tokio::join!(connection(ours, &ENDPOINT, ready(Ok(Caller::Uid(US))), &lab.grants), drip, receive);

    // Never reads its answer.
    let (ours, mut theirs) = tokio::io::duplex(64);
    let begun = Instant::now();
    let request = request("/", Some(&token));
    tokio::join!(connection(ours, &ENDPOINT, ready(Ok(Caller::Uid(US))), &lab.grants), async {
        theirs.write_all(request.as_bytes()).await.unwrap();
    });
    assert_eq!(begun.elapsed(), EXCHANGE_TIMEOUT);
}

#[tokio::test]
async fn a_client_that_says_it_has_nothing_more_to_send_is_answered() {
    let lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let client = async {
        theirs.write_all(request("/", Some(&token)).as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        assert_eq!(status(&answer), "200");
    };
    tokio::join!(connection(ours, &ENDPOINT, ready(Ok(Caller::Uid(US))), &lab.grants), client);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_request_is_told_so_and_closed() {
    let mut lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    let good = request("/", Some(&token));
    let huge = good.replace("test", &"a".repeat(300_000));
    for (sent, expected) in [
        (format!("{}body", good.replace("GET", "POST")), "405"),
        (good.replace("127.0.0.1:4144", "evil.example"), "421"),
        (good.replace("\r\n\r\n", "\r\nOrigin: x\r\n\r\n"), "403"),
        (good.replace("\r\n", "\n"), "400"),
        (format!("{good}{good}"), "400"),
        (format!("{good}body"), "400"),
        (huge, "431"),
    ] {
        let answer = lab.send(1 << 16, sent.as_bytes(), Ok(US)).await;
        assert_eq!(status(&answer), expected);
        assert!(answer.contains("\r\nConnection: close\r\n") && !answer.contains("canary"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 4").count(), 1);
    }
    assert!(lab.reasons().ends_with(&[
        "method",
        "wrong_host",
        "browser",
        "malformed",
        "body",
        "body",
        "long_head"
    ]));
    let (ours, theirs) = tokio::io::duplex(8);
    drop(theirs);
    // Not waited for, and not a line in the log.
    connection(ours, &ENDPOINT, pending(), &lab.grants).await;
    assert!(lab.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_neighbours_cannot_keep_us_from_our_user() {
    let mut lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    lab.memory.entries();
    let mut servers = tokio::task::JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..1000 {
        let (ours, theirs) = tokio::io::duplex(64);
        let grants = Arc::clone(&lab.grants);
        servers.spawn(async move {
            connection(ours, &ENDPOINT, ready(Ok(Caller::Uid(NEIGHBOUR))), &grants).await
        });
        held.push(theirs);
    }
    for _ in 0..1000 - 8 {
        servers.join_next().await.unwrap().unwrap();
    }
    assert_eq!(servers.len(), 8, "the rest was closed at once, without a byte");
    let begun = Instant::now();
    assert_eq!(status(&lab.get("/", &token, US).await), "200");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    servers.join_all().await;
    lab.grants.run(ready(())).await;
    let lines = lab.memory.entries();
    assert!(lines.len() < 10, "{lines:?}");
    let strangers: u64 =
        lines.iter().filter(|line| line.uid == Some(65534)).map(|l| l.count.unwrap_or(1)).sum();
    assert_eq!(strangers, 1000);
}

#[tokio::test]
async fn a_request_over_tls_is_answered_and_closed_as_every_other_one() {
    let (identity, _) = Identity::new(&Wish::Auto, Clock::system().now()).unwrap();
    let lab = Lab::new();
    let (token, _) = lab.add("dev", HOUR);
    lab.grants.first_fetch().await;
    for caller in [US, NEIGHBOUR] {
        let (ours, theirs) = tokio::io::duplex(1 << 12);
        let proof = ready(Ok(Caller::Uid(caller)));
        let served = connection(Stream::new(ours, Some(&identity)), &ENDPOINT, proof, &lab.grants);
        let asked = async {
            let mut stream = identity.connect(theirs).await.unwrap();
            stream.write_all(request("/", Some(&token)).as_bytes()).await.unwrap();
            let mut answer = String::new();
            // Only a proper end of TLS is no error here.
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (_, answer) = tokio::join!(served, asked);
        let expected = if caller == US { "200" } else { "401" };
        assert_eq!(status(&answer), expected, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_that_stands_still_is_given_up_in_time() {
    let (identity, _) = Identity::new(&Wish::Auto, Clock::system().now()).unwrap();
    let lab = Lab::new();
    let patience = front::HEAD_TIMEOUT + FAREWELL_TIMEOUT + Duration::from_millis(100);
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let (ours, mut theirs) = tokio::io::duplex(1 << 12);
        theirs.write_all(said).await.unwrap();
        let caller = ready(Ok(Caller::Uid(US)));
        let served = connection(Stream::new(ours, Some(&identity)), &ENDPOINT, caller, &lab.grants);
        timeout(patience, served).await.expect("it is given up");
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"", "nothing is said in the clear");
    }
}

#[tokio::test]
async fn an_unconfirmed_role_is_not_handed_out_and_its_health_is_told() {
    let mut lab = Lab::new();
    let (token, _) = lab.add("a", HOUR);
    lab.grants.first_fetch().await;
    lab.grants.require_confirmation();
    let answer = lab.get("/", &token, US).await;
    assert!(
        status(&answer) == "503" && answer.contains("broker approve") && !answer.contains("canary"),
        "{answer}"
    );
    assert_eq!(status(&lab.get("/healthcheck", &token, US).await), "200");
    assert_eq!(status(&lab.get("/", &token, NEIGHBOUR).await), "401", "who may not ask is not asked about");
    let waiting = lab.grants.waiting();
    assert_eq!(
        (waiting.len(), waiting[0].uid, waiting[0].user_agent.as_deref()),
        (1, Some(US.0), Some("test"))
    );
    lab.grants.confirm(|_, _| true, false);
    assert_eq!(status(&lab.get("/", &token, US).await), "403");
    lab.grants.confirm(|_, _| true, true);
    assert_eq!(status(&lab.get("/", &token, US).await), "200");
    assert!(lab.reasons().contains(&"unconfirmed"));
}
