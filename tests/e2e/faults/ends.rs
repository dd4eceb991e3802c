//! When coming back is wrong or useless, and what else a loss means.

use std::time::Duration;

use nix::sys::signal::Signal;
use sandbox::{home::Stream, users::User};

use super::{assert_ended, assert_stops_clean, cut_network, long, refuse_connections};
use crate::support::{BASTION, PATIENCE, World, eventually};

#[test]
fn row_36_a_changed_host_key_ends_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // Also where new hosts are taken as they come.
    for checking in ["StrictHostKeyChecking=yes", "StrictHostKeyChecking=accept-new"] {
        let mut arguments = vec!["-p", "dev", "-o", checking];
        if checking.ends_with("accept-new") {
            arguments.extend(["-o", "UserKnownHostsFile=known_anew"]);
            world.laptop.write(".ssh/known_anew", "", 0o600);
        }
        let known = world.laptop.join(".ssh/known_anew").display().to_string();
        let arguments: Vec<String> =
            arguments.iter().map(|word| word.replace("known_anew", &known)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if checking.ends_with("=yes") {
            world.trust_host();
        }
        let mut tunnel = world.tunnel(&arguments);
        world.sshd.swap_host_key();
        world.sshd.kill_connections();
        let output = assert_ended(&mut world, &mut tunnel, 4, PATIENCE);
        assert!(output.stderr().contains("HAS CHANGED"), "{output}");
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn row_37_where_a_key_is_refused_in_batch_that_is_the_end_and_no_hammering() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    world.sshd.configure(&["PubkeyAuthentication no".to_owned(), "PasswordAuthentication yes".to_owned()]);
    let before = world.sshd.knocks();
    world.sshd.kill_connections();
    let output = assert_ended(&mut world, &mut tunnel, 5, PATIENCE);
    assert!(output.stderr().contains("bastion does not let us in again"), "{output}");
    assert!(output.stderr().contains("could not log in"), "{output}");
    assert_eq!(world.sshd.knocks(), before + 1);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn row_37_with_a_limit_the_door_is_knocked_at_once_a_minute() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let patience = if long() { "150s" } else { "12s" };
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", patience]);
    world.sshd.configure(&["PubkeyAuthentication no".to_owned(), "PasswordAuthentication yes".to_owned()]);
    let before = world.sshd.knocks();
    world.sshd.kill_connections();
    let output = assert_ended(&mut world, &mut tunnel, 5, Duration::from_secs(if long() { 170 } else { 25 }));
    assert!(output.stderr().contains("bastion was not back within"), "{output}");
    let knocked = world.sshd.knocks() - before;
    assert!((1..=if long() { 4 } else { 2 }).contains(&knocked), "{knocked} times");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_limit_of_nothing_means_not_to_come_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", "0"]);
    world.sshd.kill_connections();
    let output = assert_ended(&mut world, &mut tunnel, 5, PATIENCE);
    assert!(output.stderr().contains("the connection to bastion was lost"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn json_tells_of_loss_and_return() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-N", "--print-env", "sh", "-p", "dev", "--log-format", "json"]);
    let mut process = world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    let mut tunnel = world.attach(process);
    world.sshd.kill_connections();
    let lost = tunnel.process.wait_for_line(Stream::Stderr, "\"lost\"", PATIENCE);
    let back = tunnel.process.wait_for_line(Stream::Stderr, "\"back\"", PATIENCE);
    let field = |line: &str, name: &str| -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(line).unwrap()[name].clone()
    };
    assert_eq!(field(&lost, "host"), BASTION);
    assert_eq!((field(&back, "host"), field(&back, "port")), (BASTION.into(), 4144.into()));
    assert!(field(&back, "after_ms").as_u64().unwrap() < 5000);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn stopped_while_it_is_away_it_ends_at_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    for how in [refuse_connections, cut_network] {
        if tunnel.process.has_ended() {
            tunnel = world.tunnel(&["-p", "dev"]);
        }
        tunnel.process.signal(Signal::SIGSTOP);
        world.sshd.kill_connections();
        let broken = how(&world);
        tunnel.process.signal(Signal::SIGCONT);
        tunnel.wait_until_lost(PATIENCE);
        tunnel.process.signal(Signal::SIGTERM);
        let output = assert_ended(&mut world, &mut tunnel, 130, crate::support::ENDS);
        assert!(
            !output.stderr().contains("no credentials were left there"),
            "nobody can know that: {output}"
        );
        let _healed = broken.heal();
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn a_command_that_was_lost_ends_with_255_and_is_not_run_again() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let command = world.connect(&["-p", "dev", "--", "echo began; sleep 1000"]);
    let mut process = world.laptop.spawn(command);
    process.wait_for_line(Stream::Stdout, "began", PATIENCE);
    world.sshd.kill_connections();
    let output = process.wait(PATIENCE);
    assert_eq!((output.code, output.stdout()), (Some(255), "began\n".to_owned()), "{output}");
    assert!(output.stderr().contains("was lost"), "{output}");
    world.heard("broker", &output);
    world.kill_on_host("sleep 1000");
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Connects as often as it can to each port, says nothing and does not let go.
const FLOOD: &str = r#"
import resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = []
print("flooding", flush=True)
while True:
    for port in sys.argv[1:]:
        try:
            held.append(socket.create_connection(("127.0.0.1", int(port)), 2))
        except OSError:
            time.sleep(0.01)
"#;

#[test]
fn a_flood_of_strangers_has_the_link_renewed_and_no_command_ended() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    // Beside it a command, which must not lose the connection that it runs over.
    let script = "fetch() { curl -s -o /dev/null -w '%{http_code}' -H \"Authorization: $(cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\")\" \
                  \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"; }; echo \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"; read x; echo \"still here $(fetch)\"";
    let mut process = world.laptop.spawn(world.connect(&["-p", "dev", "--", script]));
    let url = process.wait_for_line(Stream::Stdout, "http://127.0.0.1:", PATIENCE);
    let port = url.trim().trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let mut flood =
        world.laptop.spawn(world.as_user(&User::other(), "python3", &["-c", FLOOD, "4144", &port]));
    flood.wait_for_line(Stream::Stdout, "flooding", PATIENCE);
    process.wait_for_line(Stream::Stderr, "is renewed", PATIENCE * 4);
    process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
    let said = tunnel.wait_until_lost(PATIENCE * 4);
    assert!(said.contains("is renewed"), "{said}");
    tunnel.wait_until_back(PATIENCE);
    drop(flood);
    process.send("\n");
    process.wait_for_line(Stream::Stdout, "still here 200", PATIENCE);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker", &output);
    eventually("it serves as before", PATIENCE, || {
        let user = world.sshd.user().clone();
        let answer = world.fetch(&user, tunnel.url(), Some(&token));
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_stops_clean(&mut world, tunnel);
}
