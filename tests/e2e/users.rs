//! Other users of the host, and other tunnels to it: who gets nothing, and who is not disturbed.

use std::process::Command;

use sandbox::{
    home::{Process, Stream},
    sshd::Program,
    users::User,
};
use serde_json::Value;

use crate::support::{ACCOUNT, PATIENCE, Tunnel, World, eventually, holder_of_ours, sdk};

/// Listens on an address and tells of everything that reaches it.
const SQUATTER: &str = r#"
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    print("somebody came", flush=True)
    print("and said", connection.recv(4096), flush=True)
"#;

/// Another user listens there until the end of the test.
pub(crate) fn squat(world: &World, user: &User, address: &str, port: u16) -> Process {
    squat_with(world, |line| world.as_user(user, line[0], &line[1..]), address, port)
}

/// The same by a program that `start` makes of its command line.
pub fn squat_with(world: &World, start: impl Fn(&[&str]) -> Command, address: &str, port: u16) -> Process {
    let mut squatter = world.laptop.spawn(start(&["python3", "-c", SQUATTER, address, &port.to_string()]));
    squatter.wait_for_line(Stream::Stdout, "listening", PATIENCE);
    squatter
}

#[track_caller]
pub fn assert_nobody_came(squatter: &Process) {
    assert_eq!(squatter.text(Stream::Stdout), "listening\n");
}

fn root() -> User {
    User::find("root").unwrap()
}

/// Waits for an audit line, which is written a moment after its answer.
fn audited(world: &World, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(what, PATIENCE, || {
        let lines = world.audit();
        lines.iter().find(|line| wanted(line)).cloned().ok_or_else(|| format!("{lines:?}"))
    })
}

/// Our user's programs get credentials through the tunnel.
#[track_caller]
fn assert_works(world: &mut World, tunnel: &Tunnel) {
    let user = world.sshd.user().clone();
    let answer = world.fetch(&user, tunnel.url(), Some(&tunnel.token()));
    assert!(answer.key_id().starts_with("ASIA"));
}

#[track_caller]
fn assert_stops(world: &mut World, tunnel: Tunnel) {
    let output = tunnel.stop(world);
    assert_eq!(output.code, Some(130), "{output}");
}

#[test]
fn a_stolen_token_is_worth_nothing_to_another_user_and_raises_an_alarm() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let (host, other, root) = (world.sshd.user().clone(), User::other(), root());
    let slot = format!("{}slot/audit", tunnel.url());
    let audit = std::fs::read_to_string(tunnel.token_file().with_file_name("token-audit")).unwrap();
    world.keep_token(&audit);
    let refused = world.fetch(&host, tunnel.url(), Some("Bearer wrong"));
    assert_eq!(refused.status(), 401);
    let unreadable = world.as_user(&other, "cat", &[tunnel.token_file().to_str().unwrap()]);
    assert_ne!(world.run(unreadable).code, Some(0), "another user can read the token");
    for thief in [&other, &root] {
        let stolen = world.fetch(thief, tunnel.url(), Some(&tunnel.token()));
        assert_eq!(stolen, refused, "{}", thief.name);
        assert_eq!(world.fetch(thief, &slot, Some(&audit)), refused, "{}", thief.name);
        let alarm = audited(&world, "an alarm", |line| {
            line["event"] == "token_theft_suspected" && line["uid"] == thief.uid
        });
        assert_eq!(alarm["decision"], "refused");
        assert_works(&mut world, &tunnel);
    }
    // Without a token of ours there is nothing to learn, and no alarm.
    for guess in [None, Some("Bearer guess")] {
        assert_eq!(world.fetch(&other, tunnel.url(), guess), refused);
    }
    audited(&world, "a stranger", |line| line["event"] == "request" && line["uid"] == other.uid);
    // Our own requests were granted, and nobody else's.
    let allowed: Vec<u64> = world
        .audit()
        .iter()
        .filter(|line| line["decision"] == "allowed")
        .map(|line| line["uid"].as_u64().unwrap())
        .collect();
    assert!(!allowed.is_empty() && allowed.iter().all(|uid| *uid == u64::from(host.uid)), "{allowed:?}");
    assert_stops(&mut world, tunnel);
    world.assert_clean();
}

#[test]
fn root_is_served_only_when_allowed() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "--allow-uid", "0"]);
    let (other, root) = (User::other(), root());
    assert!(world.fetch(&root, tunnel.url(), Some(&tunnel.token())).key_id().starts_with("ASIA"));
    assert_eq!(world.fetch(&other, tunnel.url(), Some(&tunnel.token())).status(), 401);
    assert_works(&mut world, &tunnel);
    assert_stops(&mut world, tunnel);
    world.assert_clean();
}

#[test]
fn nothing_reaches_another_user_who_holds_our_port_on_ipv6() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let squatter = squat(&world, &User::other(), "::1", 4144);
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(tunnel.url(), "http://127.0.0.1:4144/");
    assert_works(&mut world, &tunnel);
    let python = sdk("python/bin/python");
    let boto3 = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    let mut login = world.on_host(python.to_str().unwrap(), &["-c", boto3]);
    login.envs(&tunnel.environment);
    let output = world.run(login);
    assert_eq!(output.stdout().trim(), World::arn("Developer"), "{output}");
    assert_nobody_came(&squatter);
    assert_stops(&mut world, tunnel);
    assert_nobody_came(&squatter);
    world.assert_clean();
}

#[test]
fn when_another_user_holds_our_port_we_say_whose_it_is_and_use_another() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for other in [User::other(), root()] {
        // On every address, and on the one that we would publish.
        for address in ["0.0.0.0", "127.0.0.1"] {
            let squatter = squat(&world, &other, address, 4144);
            let tunnel = world.tunnel(&["-p", "dev"]);
            assert_ne!(tunnel.url(), "http://127.0.0.1:4144/");
            let port = tunnel.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
            let said = tunnel.process.text(Stream::Stderr);
            assert!(said.contains("port 4144") && said.contains(&format!("uid {}", other.uid)), "{said}");
            assert!(said.contains(&format!("using port {port}")), "{said}");
            assert_works(&mut world, &tunnel);
            // dropbear has [::1] alone beside root, and only the self-test tells: its nonce is nothing to anybody.
            if other.uid == 0 && Program::asked_for() == Program::Dropbear {
                assert_stops(&mut world, tunnel);
                continue;
            }
            assert_nobody_came(&squatter);
            assert_stops(&mut world, tunnel);
            assert_nobody_came(&squatter);
        }
    }
    world.assert_clean();
}

#[test]
fn the_port_of_our_own_is_the_same_every_time() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let _squatter = squat(&world, &User::other(), "127.0.0.1", 4144);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let first = tunnel.url().to_owned();
    assert_stops(&mut world, tunnel);
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(tunnel.url(), first);
    assert_stops(&mut world, tunnel);
    world.assert_clean();
}

#[test]
fn a_port_that_was_asked_for_is_never_replaced() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let other = User::other();
    let squatter = squat(&world, &other, "127.0.0.1", 4144);
    let output = world.run(world.connect(&["-p", "dev", "-N", "-R", "4144"]));
    assert_eq!(output.code, Some(6), "{output}");
    assert_eq!(output.stdout(), "", "exports of a tunnel that is not there");
    let said = output.stderr();
    assert!(said.contains("port 4144") && said.contains(&format!("uid {}", other.uid)), "{said}");
    assert!(said.contains("broker: hint: "), "{said}");
    assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new());
    // Under a command it is our failure, and the command does not run.
    let output = world.run(world.connect(&["-p", "dev", "-R", "4144", "--", "echo ran"]));
    assert_eq!((output.code, output.stdout()), (Some(255), String::new()), "{output}");
    assert_nobody_came(&squatter);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_second_tunnel_of_ours_works_beside_the_first() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let first = world.tunnel(&["-p", "dev"]);
    let second = world.tunnel(&["-p", "audit"]);
    assert_ne!(first.url(), second.url());
    assert_ne!(first.token(), second.token());
    let said = second.process.text(Stream::Stderr);
    assert!(said.contains("port 4144") && said.contains(holder_of_ours()), "{said}");
    let user = world.sshd.user().clone();
    let crossed = world.fetch(&user, first.url(), Some(&second.token()));
    assert_eq!(crossed.status(), 401, "a token of one tunnel opens the other");
    assert_works(&mut world, &first);
    assert_works(&mut world, &second);
    // Whichever ends, the other stays.
    let (first_url, first_file) = (first.url().to_owned(), first.token_file());
    assert_stops(&mut world, first);
    assert!(!first_file.exists());
    assert_works(&mut world, &second);
    // And the port that is free again is taken by the next.
    let third = world.tunnel(&["-p", "dev"]);
    assert_eq!(third.url(), first_url);
    assert_stops(&mut world, second);
    assert_works(&mut world, &third);
    assert_stops(&mut world, third);
    world.assert_clean();
}

#[test]
fn an_explicit_port_of_our_own_other_tunnel_is_refused_in_words() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let first = world.tunnel(&["-p", "dev"]);
    let output = world.run(world.connect(&["-p", "audit", "-N", "-R", "4144"]));
    assert_eq!((output.code, output.stdout()), (Some(6), String::new()), "{output}");
    assert!(output.stderr().contains(holder_of_ours()), "{output}");
    assert_works(&mut world, &first);
    assert_stops(&mut world, first);
    world.assert_clean();
}

#[test]
fn two_that_start_at_once_share_one_refresh_and_both_work() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // A second refresh with the same token would end the session.
    let seed = sandbox::aws::TokenSeed { expired: true, ..Default::default() };
    world.aws.seed_token_with(world.laptop.path(), "corp", seed);
    world.own_aws_files();
    let start = |profile| world.connect(&["-N", "--print-env", "sh", "-p", profile]);
    let mut both = ["dev", "audit"].map(|profile| world.laptop.spawn(start(profile)));
    for process in &mut both {
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    }
    let refreshes = world.aws.calls().iter().filter(|call| *call == "CreateToken(refresh_token)").count();
    assert_eq!(refreshes, 1, "{:?}", world.aws.calls());
    for (process, role) in both.into_iter().zip(["Developer", "Auditor"]) {
        let tunnel = world.attach(process);
        let user = world.sshd.user().clone();
        let answer = world.fetch(&user, tunnel.url(), Some(&tunnel.token()));
        assert_eq!(answer.key_id(), world.aws.last_issued(ACCOUNT, role).unwrap());
        assert_stops(&mut world, tunnel);
    }
    world.assert_clean();
}

/// Opens many connections, says nothing on them, and holds them.
const HOLDER: &str = r#"
import socket, sys
held = []
for _ in range(400):
    connection = socket.socket()
    connection.settimeout(5)
    try:
        connection.connect(("127.0.0.1", int(sys.argv[1])))
        held.append(connection)
    except OSError:
        pass
print("holding", len(held), flush=True)
sys.stdin.read()
"#;

/// Asks as fast as one process can, with this header, until it is killed.
const FLOODER: &str = r#"
import socket, sys
header = sys.stdin.readline().strip()
asked = 0
while True:
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {header}\r\n\r\n".encode())
            connection.recv(4096)
    except OSError:
        pass
    asked += 1
    if asked == 50:
        print("flooding", flush=True)
"#;

#[test]
fn a_neighbour_who_asks_all_the_time_or_says_nothing_does_not_keep_us_from_our_own() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let other = User::other();
    let port = tunnel.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let mut holder = world.laptop.spawn(world.as_user(&other, "python3", &["-c", HOLDER, &port]));
    holder.wait_for_line(Stream::Stdout, "holding", PATIENCE);
    let mut flooder = world.laptop.spawn(world.as_user(&other, "python3", &["-c", FLOODER, &port]));
    flooder.send(format!("{}\n", tunnel.token()));
    flooder.wait_for_line(Stream::Stdout, "flooding", PATIENCE);
    for _ in 0..20 {
        // The most impatient SDKs give up after a second; this machine may be busy.
        let asked = std::time::Instant::now();
        assert_works(&mut world, &tunnel);
        assert!(asked.elapsed() < std::time::Duration::from_secs(3), "{:?}", asked.elapsed());
    }
    drop((holder, flooder));
    // The log of all this stays short and says how often.
    let strangers = |line: &&Value| line["uid"] == other.uid;
    assert!(world.audit().iter().filter(strangers).count() < 20);
    assert_works(&mut world, &tunnel);
    assert_stops(&mut world, tunnel);
    let audit = world.audit();
    let counted = |line: &Value| line["uid"] == other.uid && line["count"].as_u64().is_some_and(|n| n > 10);
    assert!(audit.iter().any(counted), "{audit:?}");
    world.assert_clean();
}

/// Asks over an IPv6 socket, as Java does, with the header that comes on stdin, and prints the status.
const MAPPED: &str = r#"
import socket, sys
connection = socket.socket(socket.AF_INET6)
connection.connect(("::ffff:127.0.0.1", int(sys.argv[1])))
header = sys.stdin.readline().strip()
connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {header}\r\n\r\n".encode())
print(connection.recv(12).decode())
"#;

#[test]
fn whose_an_ipv6_socket_is_makes_the_same_difference() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let header = format!("{}\n", tunnel.token());
    let port = tunnel.url().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    for (user, status) in [(world.sshd.user().clone(), "200"), (User::other(), "401")] {
        let asks = world.as_user(&user, "python3", &["-c", MAPPED, &port]);
        let output = world.laptop.run_with(asks, header.as_bytes());
        assert_eq!(output.stdout().trim(), format!("HTTP/1.1 {status}"), "{}: {output}", user.name);
    }
    audited(&world, "an alarm", |line| line["event"] == "token_theft_suspected");
    assert_stops(&mut world, tunnel);
    world.assert_clean();
}

#[test]
fn the_most_talkative_log_holds_no_secret() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for format in ["text", "json"] {
        // Everything that there is to talk about: a refresh, new credentials, answers, refusals, a theft.
        let seed = sandbox::aws::TokenSeed { expired: true, ..Default::default() };
        world.aws.seed_token_with(world.laptop.path(), "corp", seed);
        world.own_aws_files();
        let arguments =
            ["-N", "--print-env", "sh", "-p", "dev", "-p", "audit", "-vv", "--log-format", format];
        let mut process = world.laptop.spawn(world.connect(&arguments));
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.wait_for_line(Stream::Stderr, "127.0.0.1:4144", PATIENCE);
        let tunnel = world.attach(process);
        assert_works(&mut world, &tunnel);
        let host = world.sshd.user().clone();
        let _refused = world.fetch(&host, &format!("{}slot/audit", tunnel.url()), Some(&tunnel.token()));
        let _stolen = world.fetch(&User::other(), tunnel.url(), Some(&tunnel.token()));
        let output = tunnel.stop(&mut world);
        assert!(output.stderr().lines().count() > 10, "it is not talkative: {output}");
        if format == "json" {
            for line in output.stderr().lines() {
                let parsed: Result<Value, _> = serde_json::from_str(line);
                assert!(parsed.is_ok(), "not JSON: {line}");
            }
        }
    }
    world.assert_clean();
}
