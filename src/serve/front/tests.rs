use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;

use super::*;

const PORT: Option<u16> = Some(4144);
const TOKEN: &str = "Bearer abcDEF_-012";

/// A request with the usual fields and `more`.
fn with(more: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nAuthorization: {TOKEN}\r\n{more}\r\n")
}

fn get(target: &str) -> String {
    with("").replacen(" / ", &format!(" {target} "), 1)
}

fn host(host: &str) -> String {
    with("").replacen("127.0.0.1:4144", host, 1)
}

#[test]
fn what_sdks_send_is_let_in() {
    for (who, head) in [
        (
            "botocore",
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nAccept-Encoding: identity\r\nUser-Agent: python-urllib3/2.2\r\n\
             Accept: application/json\r\nAuthorization: Bearer abcDEF_-012\r\n\r\n",
        ),
        (
            "JavaScript v3",
            "GET / HTTP/1.1\r\nauthorization: Bearer abcDEF_-012\r\nHost: 127.0.0.1:4144\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            "curl",
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nAuthorization: Bearer abcDEF_-012\r\nUser-Agent: curl/8.5.0\r\n\
             Accept: */*\r\n\r\n",
        ),
        (
            "Java v2",
            "GET / HTTP/1.1\r\nAccept: application/json\r\nUser-Agent: aws-sdk-java/2.31 md/io#sync lang/java#21\r\n\
             Authorization: Bearer abcDEF_-012\r\nHost: 127.0.0.1:4144\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            "CRT, without the port",
            "GET / HTTP/1.1\r\nAccept: application/json\r\nUser-Agent: aws-sdk-crt\r\nConnection: close\r\n\
             Accept-Encoding: identity\r\nAuthorization: Bearer abcDEF_-012\r\nHost: 127.0.0.1\r\n\r\n",
        ),
        (
            "Go v2",
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nUser-Agent: Go-http-client/1.1\r\nAccept: application/json\r\n\
             Amz-Sdk-Invocation-Id: 1\r\nAuthorization: Bearer abcDEF_-012\r\nAccept-Encoding: gzip\r\n\r\n",
        ),
        (
            "Rust",
            "GET / HTTP/1.1\r\naccept: application/json\r\nauthorization: Bearer abcDEF_-012\r\n\
             amz-sdk-request: attempt=1; max=3\r\nhost: localhost:4144\r\n\r\n",
        ),
        ("an empty body", &with("Content-Length: 0\r\n")),
        ("blanks", &with("User-Agent:\t x \t\r\nX-Empty:\r\n")),
    ] {
        let ask = check(head.as_bytes(), PORT, None).unwrap_or_else(|refusal| panic!("{who}: {refusal}"));
        assert_eq!(ask.route(), &Route::Default, "{who}");
        assert_eq!(ask.authorization(), Some(TOKEN.as_bytes()), "{who}");
        assert!(!format!("{ask:?}").contains("abcDEF"));
        let mut blanked = head.as_bytes().to_vec();
        ask.blank(&mut blanked);
        assert!(!String::from_utf8_lossy(&blanked).contains("abcDEF"), "{who}");
        assert_eq!(check(&blanked, PORT, None).unwrap().route(), &Route::Default, "{who}");
    }
}

#[test]
fn hosts_are_names_of_loopback_with_our_port_or_none() {
    for good in ["127.0.0.1", "127.0.0.1:4144", "localhost", "LocalHost:4144", "[::1]", "[::1]:4144"] {
        assert!(check(host(good).as_bytes(), PORT, None).is_ok(), "{good}");
    }
    for good in ["127.0.0.1", "localhost", "[::1]", "broker"] {
        assert!(check(host(good).as_bytes(), None, None).is_ok(), "{good} on the unix socket");
    }
    for bad in ["127.0.0.1:4144", "localhost:80", "evil.example"] {
        assert_eq!(check(host(bad).as_bytes(), None, None).unwrap_err(), Refusal::WrongHost, "{bad}");
    }
    for (name, fine) in
        [("broker.corp", true), ("Broker.Corp:4144", true), ("broker.corp:80", false), ("corp", false)]
    {
        assert_eq!(check(host(name).as_bytes(), PORT, Some("broker.corp")).is_ok(), fine, "{name}");
        assert!(check(host(name).as_bytes(), PORT, None).is_err(), "{name}");
    }
}

#[test]
fn anything_but_a_plain_get_for_us_is_refused() {
    use Refusal::{Body, Browser, LongHead, LongTarget, Malformed, Method, NoHost, Proxy, WrongHost};
    let line = |line: &str| with("").replacen("GET / HTTP/1.1", line, 1);
    let cases: Vec<(String, Refusal)> = vec![
        // Methods.
        (line("POST / HTTP/1.1"), Method),
        (line("PUT / HTTP/1.1"), Method),
        (line("HEAD / HTTP/1.1"), Method),
        (line("DELETE / HTTP/1.1"), Method),
        (line("OPTIONS / HTTP/1.1"), Method),
        (line("OPTIONS * HTTP/1.1"), Method),
        (line("TRACE / HTTP/1.1"), Method),
        (line("CONNECT 127.0.0.1:4144 HTTP/1.1"), Method),
        (line("get / HTTP/1.1"), Method),
        (line("G\u{e9}T / HTTP/1.1"), Malformed),
        // Request lines.
        (line("GET http://127.0.0.1:4144/ HTTP/1.1"), Malformed),
        (line("GET http://169.254.169.254/ HTTP/1.1"), Malformed),
        (line("GET * HTTP/1.1"), Malformed),
        (line("GET 127.0.0.1:4144 HTTP/1.1"), Malformed),
        (line("GET / HTTP/1.0"), Malformed),
        (line("GET / HTTP/0.9"), Malformed),
        (line("GET / HTTP/2.0"), Malformed),
        (line("GET / HTTP/1.10"), Malformed),
        (line("GET / http/1.1"), Malformed),
        (line("PRI * HTTP/2.0"), Malformed),
        (line("GET /"), Malformed),
        (line("GET"), Malformed),
        (line(""), Malformed),
        (line("GET  / HTTP/1.1"), Malformed),
        (line("GET /  HTTP/1.1"), Malformed),
        (line("GET\t/\tHTTP/1.1"), Malformed),
        (line(" GET / HTTP/1.1"), Malformed),
        (line("GET / HTTP/1.1 "), Malformed),
        (line("GET /a b HTTP/1.1"), Malformed),
        (line("GET /#x HTTP/1.1"), Malformed),
        (line("GET /\u{e9} HTTP/1.1"), Malformed),
        (format!("\r\n{}", with("")), Malformed),
        (get(&format!("/{}", "a".repeat(1024))), LongTarget),
        // Hosts.
        ("GET / HTTP/1.1\r\n\r\n".into(), NoHost),
        ("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n".into(), NoHost),
        (with("Host: 127.0.0.1:4144\r\n"), NoHost),
        (with("hOST: evil.example\r\n"), NoHost),
        (host(""), WrongHost),
        (host("evil.example"), WrongHost),
        (host("evil.example:4144"), WrongHost),
        (host("127.0.0.1.nip.io"), WrongHost),
        (host("127.0.0.1:80"), WrongHost),
        (host("127.0.0.1:04144"), WrongHost),
        (host("127.0.0.1:4144:4144"), WrongHost),
        (host("127.0.0.1:"), WrongHost),
        (host("127.0.0.1, evil.example"), WrongHost),
        (host("user@127.0.0.1:4144"), WrongHost),
        (host("0.0.0.0:4144"), WrongHost),
        (host("127.1"), WrongHost),
        (host("127.0.0.2"), WrongHost),
        (host("::1"), WrongHost),
        (host("broker"), WrongHost),
        (host("169.254.170.2"), WrongHost),
        // Bodies and other protocols.
        (with("Content-Length: 5\r\n"), Body),
        (with("Content-Length: 00\r\n"), Body),
        (with("Content-Length: +0\r\n"), Body),
        (with("Content-Length: -1\r\n"), Body),
        (with("Content-Length:\r\n"), Body),
        (with("Content-Length: 0, 0\r\n"), Body),
        (with("Content-Length: 0\r\nContent-Length: 0\r\n"), Body),
        (with("Transfer-Encoding: chunked\r\n"), Body),
        (with("Transfer-Encoding: identity\r\n"), Body),
        (with("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), Body),
        (with("TE: trailers\r\n"), Body),
        (with("Trailer: X\r\n"), Body),
        (with("Expect: 100-continue\r\n"), Body),
        (with("Upgrade: websocket\r\n"), Body),
        (with("Connection: Upgrade, HTTP2-Settings\r\n"), Body),
        (with("Connection: authorization\r\n"), Body),
        (with("Connection:\r\n"), Body),
        // Browsers.
        (with("Origin: http://127.0.0.1:4144\r\n"), Browser),
        (with("Origin: null\r\n"), Browser),
        (with("Referer: http://evil.example/\r\n"), Browser),
        (with("Cookie: a=b\r\n"), Browser),
        (with("Sec-Fetch-Site: none\r\n"), Browser),
        (with("sec-fetch-mode: navigate\r\n"), Browser),
        (with("Sec-WebSocket-Key: x\r\n"), Browser),
        (with("Access-Control-Request-Method: GET\r\n"), Browser),
        (with("Access-Control-Request-Private-Network: true\r\n"), Browser),
        // Proxies.
        (with("Forwarded: for=1.2.3.4\r\n"), Proxy),
        (with("X-Forwarded-For: 1.2.3.4\r\n"), Proxy),
        (with("X-Forwarded-Host: 127.0.0.1\r\n"), Proxy),
        (with("x-forwarded: x\r\n"), Proxy),
        (with("Via: 1.1 proxy\r\n"), Proxy),
        (with("X-Real-IP: 127.0.0.1\r\n"), Proxy),
        (with("Proxy-Authorization: Basic x\r\n"), Proxy),
        (with("Proxy-Connection: keep-alive\r\n"), Proxy),
        // Fields.
        (with("Authorization: Bearer x\r\n"), Malformed),
        (with("AUTHORIZATION:\r\n"), Malformed),
        (with("X-Folded: a\r\n b\r\n"), Malformed),
        (with(" X-Folded-From-The-Start: a\r\n"), Malformed),
        (with("Space-Before-Colon : a\r\n"), Malformed),
        (with("Transfer-Encoding : chunked\r\n"), Malformed),
        (with("Content\tLength: 5\r\n"), Malformed),
        (with(": no name\r\n"), Malformed),
        (with("no colon\r\n"), Malformed),
        (with("X-\u{e9}: a\r\n"), Malformed),
        (with("X: a\0b\r\n"), Malformed),
        (with("X: a\u{7f}\r\n"), Malformed),
        (with("X: a\u{1b}[2J\r\n"), Malformed),
        (with("X: a\u{b}\r\n"), Malformed),
        // Line ends.
        (with("X: a\nTransfer-Encoding: chunked\r\n"), Malformed),
        (with("X: a\rTransfer-Encoding: chunked\r\n"), Malformed),
        (with("X: a\r\r\n"), Malformed),
        (with("").replace("\r\n", "\n"), Malformed),
        (with("").replace("\r\n", "\r"), Malformed),
        (with("").replacen("\r\n", "\n", 1), Malformed),
        (format!("{}X", with("")), Malformed),
        (format!("{}GET / HTTP/1.1\r\n\r\n", with("")), Malformed),
        (with("").trim_end().into(), Malformed),
        (String::new(), Malformed),
        ("\r\n\r\n".into(), Malformed),
        ("\u{16}\u{3}\u{1}\u{2}".into(), Malformed),
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n".into(), Malformed),
        // Sizes.
        (with(&format!("X: {}\r\n", "a".repeat(8192))), LongHead),
        (with(&"X: a\r\n".repeat(31)), LongHead),
    ];
    assert!(cases.len() >= 60);
    for (head, expected) in cases {
        match check(head.as_bytes(), PORT, None) {
            Err(refusal) => assert_eq!(refusal, expected, "{head:?}"),
            Ok(ask) => panic!("{head:?} was let in: {ask:?}"),
        }
        assert!((400..500).contains(&expected.status()));
    }
    assert!(check(with(&"X: a\r\n".repeat(30)).as_bytes(), PORT, None).is_ok());
}

#[test]
fn paths_lead_to_their_grant_or_nowhere() {
    let slot = |profile: &str| Route::Slot(profile.parse().unwrap());
    for (target, expected) in [
        ("/", Route::Default),
        ("/healthcheck", Route::Health(None)),
        ("/healthcheck/slot/a", Route::Health(Some("a".parse().unwrap()))),
        ("/slot/a", slot("a")),
        ("/slot/team%20a", slot("team a")),
        ("/slot/%C3%BCber", slot("über")),
        ("/slot/a%2fb", Route::Unknown),
        ("/slot/100%25", slot("100%")),
        ("/slot/a+b", slot("a+b")),
        ("/slot/%2561", slot("%61")),
        ("/slot/", Route::Unknown),
        ("/slot", Route::Unknown),
        ("/slot/a/", Route::Unknown),
        ("/slot/a/b", Route::Unknown),
        ("/slot/../healthcheck", Route::Unknown),
        ("/slot/%2e%2e", Route::Unknown),
        ("/slot/a%00", Route::Unknown),
        ("/slot/a%", Route::Unknown),
        ("/slot/a%4", Route::Unknown),
        ("/slot/a%zz", Route::Unknown),
        ("/slot/a%+1", Route::Unknown),
        ("/slot/%ff", Route::Unknown),
        ("/slot/a?x=1", Route::Unknown),
        ("/?x=1", Route::Unknown),
        ("/?", Route::Unknown),
        ("//", Route::Unknown),
        ("//evil.example/", Route::Unknown),
        ("/%2f", Route::Unknown),
        ("/Slot/a", Route::Unknown),
        ("/healthcheck/", Route::Unknown),
        ("/role-arn/arn:aws:iam::1:role/x", Route::Unknown),
        ("/latest/meta-data/", Route::Unknown),
    ] {
        let ask = check(get(target).as_bytes(), PORT, None).unwrap();
        assert_eq!(ask.route(), &expected, "{target}");
    }
}

#[test]
fn an_empty_token_is_none_and_a_user_agent_is_safe_to_log() {
    let head = with("User-Agent: a\u{9b}31m\u{202e}b\r\n").replace(TOKEN, " ");
    let ask = check(head.as_bytes(), PORT, None).unwrap();
    assert_eq!(ask.authorization(), None);
    assert_eq!(ask.user_agent(), Some(&Text::of_user_agent("a\u{fffd}31m\u{fffd}b".as_bytes())));
}

/// Reads a head that arrives in the given pieces, and then the end of the stream.
async fn read(pieces: &[&[u8]]) -> Option<Result<Head, Refusal>> {
    let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
    let send = async move {
        for piece in pieces {
            theirs.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (head, ()) = tokio::join!(read_head(&mut ours), send);
    head
}

#[tokio::test]
async fn a_head_is_read_however_it_is_cut() {
    let text = with("");
    for cut in 1..text.len() {
        let (one, two) = text.as_bytes().split_at(cut);
        let Head { head, rest } = read(&[one, two]).await.unwrap().unwrap();
        assert_eq!((head.as_slice(), rest.len()), (text.as_bytes(), 0), "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    assert_eq!(read(&bytes).await.unwrap().unwrap().head.as_slice(), text.as_bytes());
    let more = read(&[text.as_bytes(), b"rest"]).await.unwrap().unwrap();
    assert_eq!(more.head.as_slice(), text.as_bytes());
    let at_once = read(&[format!("{text}rest").as_bytes()]).await.unwrap().unwrap();
    assert_eq!(at_once.rest.as_slice(), b"rest");
}

#[tokio::test]
async fn reading_ends_as_soon_as_there_is_no_hope() {
    assert!(read(&[]).await.is_none());
    for (sent, expected) in [
        (b"GET / HTTP/1.1\r\nHost".as_slice(), Refusal::Malformed),
        (b"GET / HTTP/1.1\n", Refusal::Malformed),
        (b"\x16\x03\x01\x02\x00", Refusal::Malformed),
        (&[b'a'; LONGEST_HEAD], Refusal::LongHead),
    ] {
        assert_eq!(read(&[sent]).await.unwrap().err(), Some(expected));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        drop(check(&bytes, PORT, None));
    }

    /// Whatever is changed in a good request: if it is still let in, then it is canonical.
    #[test]
    fn what_is_let_in_is_canonical(
        edits in proptest::collection::vec((0usize..140, proptest::option::of(any::<u8>()), any::<bool>()), 0..4),
        spice in proptest::sample::select(vec![
            "", "\n", "\r", "\r\n", "\0", " ", "\t", "Host: x\r\n", "Content-Length: 1\r\n", "Origin: x\r\n",
            "Transfer-Encoding: chunked\r\n", "\r\n\r\n", ":", "GET / HTTP/1.1\r\n",
        ]),
        at in 0usize..140,
    ) {
        let mut head = with("User-Agent: x\r\n").into_bytes();
        let at = at.min(head.len());
        head.splice(at..at, spice.bytes());
        for (at, byte, insert) in edits {
            let at = at.min(head.len() - 1);
            let end = if insert { at } else { at + 1 };
            head.splice(at..end, byte);
        }
        if check(&head, PORT, None).is_ok() {
            prop_assert!(head.starts_with(b"GET /"));
            prop_assert!(head.ends_with(b"\r\n\r\n"));
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let body = text.strip_suffix("\r\n\r\n").unwrap();
            prop_assert!(!body.contains("\r\n\r\n"));
            prop_assert_eq!(body.matches('\r').count(), body.matches("\r\n").count());
            prop_assert_eq!(body.matches('\n').count(), body.matches("\r\n").count());
            let mut lines = body.split("\r\n");
            prop_assert!(lines.next().unwrap().ends_with(" http/1.1"));
            let names: Vec<&str> = lines.map(|line| line.split(':').next().unwrap()).collect();
            for bad in ["transfer-encoding", "origin", ""] {
                prop_assert!(!names.contains(&bad));
            }
            for once in ["host", "authorization"] {
                prop_assert!(names.iter().filter(|name| **name == once).count() <= 1);
            }
            prop_assert!(names.contains(&"host"));
        }
    }
}
