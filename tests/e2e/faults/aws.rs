//! AWS, and what we know of it, fails while a tunnel runs.

use std::time::{Duration, Instant};

use sandbox::aws::{Fault, Operation};

use super::{assert_serves_as_before, assert_stops_clean};
use crate::support::{ACCOUNT, Answer, PATIENCE, Tunnel, World, eventually};

/// Refreshed after twelve seconds, as no role is asked for twice within ten, and good for six more.
const LIFE: Duration = Duration::from_secs(18);

/// Asks as the host's user does, with the token of this profile.
fn ask(world: &mut World, tunnel: &Tunnel, profile: &str) -> Answer {
    let token = std::fs::read_to_string(tunnel.directory().join(format!("token-{profile}"))).unwrap();
    let url = format!("{}slot/{profile}", tunnel.url());
    let user = world.sshd.user().clone();
    world.fetch(&user, &url, Some(&token))
}

/// Asks every tenth of a second until `enough`; each answer must be 200.
#[track_caller]
fn served_until(
    world: &mut World,
    tunnel: &Tunnel,
    mut enough: impl FnMut(&World, &Answer) -> bool,
) -> Answer {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = ask(world, tunnel, "dev");
        assert_eq!(answer.status(), 200, "{:?}", answer.json()["message"]);
        if enough(world, &answer) {
            return answer;
        }
        assert!(Instant::now() < until, "it did not come");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn count(world: &World, call: &str) -> usize {
    world.aws.calls().iter().filter(|made| made.starts_with(call)).count()
}

#[test]
fn row_17_a_sign_in_that_ends_is_renewed_once_and_no_request_fails() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(LIFE);
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let first = ask(&mut world, &tunnel, "dev").key_id();
    world.aws.expire_access_tokens();
    served_until(&mut world, &tunnel, |_, answer| answer.key_id() != first);
    assert_eq!(count(&world, "CreateToken(refresh_token)"), 1, "{:?}", world.aws.calls());
    assert_eq!(count(&world, "RegisterClient"), 0);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_19_a_role_that_is_taken_away_leaves_the_others_alone() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(LIFE);
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    world.aws.remove_role(ACCOUNT, "Auditor");
    let until = Instant::now() + PATIENCE;
    loop {
        assert_eq!(ask(&mut world, &tunnel, "dev").status(), 200);
        let answer = ask(&mut world, &tunnel, "audit");
        if answer.status() == 403 {
            let sentence = answer.json()["Message"].to_string();
            assert!(sentence.contains("Auditor") && sentence.contains(ACCOUNT), "{sentence}");
            break;
        }
        assert!(matches!(answer.status(), 200 | 503), "{answer:?}");
        assert!(Instant::now() < until, "{answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ask(&mut world, &tunnel, "dev").status(), 200);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_20_a_throttling_aws_is_asked_seldom_while_credentials_last() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(LIFE);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let first = ask(&mut world, &tunnel, "dev").key_id();
    let before = count(&world, "GetRoleCredentials");
    world
        .aws
        .fault(Operation::GetRoleCredentials, Fault::error(429, "TooManyRequestsException", "Rate exceeded"));
    // The refresh is due, and is refused again and again.
    let mut since = None;
    served_until(&mut world, &tunnel, |world, answer| {
        assert_eq!(answer.key_id(), first);
        if since.is_none() && count(world, "GetRoleCredentials") > before {
            since = Some(Instant::now());
        }
        since.is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(4))
    });
    let calls = count(&world, "GetRoleCredentials") - before;
    // Tries are a second apart and more, with jitter, and each is up to three calls of the SDK.
    assert!((1..=9).contains(&calls), "{calls} calls in four seconds");
    world.aws.clear_faults();
    eventually("there are credentials again", PATIENCE * 2, || {
        let answer = ask(&mut world, &tunnel, "dev");
        if answer.status() == 200 && answer.key_id() != first { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_28_whoever_logs_out_elsewhere_has_credentials_to_their_end_and_is_told() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(LIFE);
    let began = Instant::now();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let output = world.run(world.broker(&["logout", "--sso-session", "corp"])).success();
    assert!(output.stderr().contains("corp"), "{output}");
    let mut ended = None;
    eventually("a login is asked for", PATIENCE * 2, || {
        let answer = ask(&mut world, &tunnel, "dev");
        match answer.status() {
            200 => assert!(
                ended.is_none() && began.elapsed() < LIFE + Duration::from_secs(6),
                "served beyond its end"
            ),
            403 => {
                assert!(answer.json()["Message"].to_string().contains("broker login"), "{answer:?}");
                return Ok(());
            }
            503 => ended = Some(()),
            other => panic!("{other}"),
        }
        Err(format!("{answer:?}"))
    });
    assert_eq!(count(&world, "CreateDeviceAuthorization") + count(&world, "StartDeviceAuthorization"), 0);
    let said = tunnel.process.text(sandbox::home::Stream::Stderr);
    assert_eq!(said.matches("broker login --sso-session corp").count(), 1, "told once: {said}");
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_32_two_hundred_processes_at_once_are_all_answered_without_a_call() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let calls = world.aws.calls().len();
    let script = "t=$(cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\"); for i in $(seq 200); do \
                  printf 'header = \"Authorization: %s\"\\n' \"$t\" | \
                  curl -s -o /dev/null -m 20 -K - -w '%{http_code} %{time_total}\\n' \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\" & done; wait";
    let mut stampede = world.on_host("sh", &["-c", script]);
    stampede.envs(&tunnel.environment);
    let output = world.run(stampede).success();
    let text = output.stdout();
    assert_eq!(text.lines().filter(|line| line.starts_with("200 ")).count(), 200, "{text}");
    assert_eq!(world.aws.calls().len(), calls);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_22_without_a_name_service_what_runs_goes_on_and_comes_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // The host by a name, which only this file knows.
    let hosts = world.laptop.write("hosts", "127.0.0.1 localhost\n127.0.0.1 bastion.test\n", 0o644);
    let resolver =
        world.laptop.write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", 0o644);
    for (from, to) in [(&hosts, "/etc/hosts"), (&resolver, "/etc/resolv.conf")] {
        let mounted = std::process::Command::new("mount").arg("--bind").arg(from).arg(to).status().unwrap();
        assert!(mounted.success());
    }
    let known = format!("UserKnownHostsFile={}", world.laptop.join(".ssh/known_anew").display());
    let named =
        ["-p", "dev", "-o", "HostName=bastion.test", "-o", "StrictHostKeyChecking=accept-new", "-o", &known];
    let mut tunnel = world.tunnel(&named);
    let token = tunnel.token();
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    assert_serves_as_before(&mut world, &tunnel, &token);
    let output = world.run(world.connect(&[&named[..], &["--", "true"]].concat()));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(output.stderr().contains("bastion.test"), "{output}");
    world.sshd.kill_connections();
    tunnel.wait_until_lost(PATIENCE);
    // Either where the host was is still known, or the name service comes back.
    if !crate::support::within(Duration::from_secs(4), || {
        tunnel.process.text(sandbox::home::Stream::Stderr).contains("back after")
    }) {
        assert!(std::net::TcpStream::connect(("127.0.0.1", 4144)).is_err(), "nobody is served meanwhile");
        std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 bastion.test\n").unwrap();
    }
    tunnel.wait_until_back(PATIENCE);
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

/// Prints the status of an answer.
const ASK: &str = "curl -s -o /dev/null -w %{http_code} -H \"Authorization: $(cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\")\" \
                   \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"";

#[test]
fn row_7_a_laptop_whose_clock_is_wrong_serves_what_is_good_and_nothing_else() {
    if sandbox::isolated!() {
        return;
    }
    for (skew, life) in [("+30m", 12), ("-30m", 12), ("+2h", 1)] {
        let mut world = World::new();
        world.aws.set_role_life(Duration::from_secs(life * 3600));
        let connect = world.connect(&["-p", "dev", "--", ASK]);
        let mut faked = world.laptop.command("faketime");
        faked.args(["-f", skew]).arg(connect.get_program()).args(connect.get_args());
        faked.envs(connect.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = world.run(faked);
        if life == 12 {
            assert_eq!((output.code, output.stdout().as_str()), (Some(0), "200"), "{skew}: {output}");
        } else {
            // Everything that AWS gives is over already by this clock: said in words, not served, not asked for again and again.
            assert_eq!(output.code, Some(255), "{skew}: {output}");
            assert!(output.stderr().contains("clock"), "{skew}: {output}");
        }
        world.wait_for_clean_host();
        world.assert_clean();
    }
}
