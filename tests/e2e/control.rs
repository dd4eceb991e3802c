//! Looking at tunnels and steering them from another terminal, and who cannot.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use sandbox::{
    home::{Output, Process, Stream},
    users::User,
};
use serde_json::Value;

use crate::support::{BASTION, ENDS, PATIENCE, Tunnel, World, eventually, offers, sdk};

/// What `broker status --json` says.
fn status(world: &mut World) -> Value {
    let output = world.run(world.broker(&["status", "--json"])).success();
    serde_json::from_str(&output.stdout()).unwrap()
}

fn tunnels(world: &mut World) -> Vec<Value> {
    status(world)["tunnels"].as_array().unwrap().clone()
}

/// The control sockets of the laptop's user.
fn sockets(world: &World) -> Vec<PathBuf> {
    let state = world.laptop.join(".local/state/broker");
    let Ok(entries) = std::fs::read_dir(state) else { return Vec::new() };
    let runs = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("run-"));
    let mut sockets: Vec<PathBuf> = runs
        .flat_map(|run| std::fs::read_dir(run.path()).unwrap().map(|entry| entry.unwrap().path()))
        .collect();
    sockets.sort();
    sockets
}

fn pid(tunnel: &Tunnel) -> String {
    tunnel.process.pid().to_string()
}

/// Waits for the end of a tunnel that somebody else ended.
#[track_caller]
fn ended(world: &mut World, mut process: Process) -> Output {
    let output = process.wait(ENDS);
    world.heard("broker connect -N", &output);
    output
}

fn token_of(world: &mut World, tunnel: &Tunnel, profile: &str) -> String {
    let token = std::fs::read_to_string(tunnel.directory().join(format!("token-{profile}"))).unwrap();
    world.keep_token(&token);
    token
}

/// What an SDK of the host gets for `path`.
fn ask(world: &mut World, tunnel: &Tunnel, path: &str, token: &str) -> crate::support::Answer {
    let user = world.sshd.user().clone();
    world.fetch(&user, &format!("{}{path}", tunnel.url()), Some(token))
}

/// The ARN that boto3 on the host gets with this profile.
fn arn(world: &mut World, tunnel: &Tunnel, profile: &str) -> Output {
    const ARN: &str = "import boto3, sys; \
                       print(boto3.Session(profile_name=sys.argv[1]).client('sts').get_caller_identity()['Arn'])";
    let python = sdk("python/bin/python");
    let mut boto3 = world.on_host(python.to_str().unwrap(), &["-c", ARN, profile]);
    boto3.envs(&tunnel.environment);
    world.run(boto3)
}

#[test]
fn two_tunnels_are_seen_told_apart_and_ended_from_another_terminal() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    assert_eq!(tunnels(&mut world), Vec::<Value>::new());
    let none = world.run(world.broker(&["env", BASTION]));
    assert_eq!(none.code, Some(1), "{none}");
    let one = world.tunnel(&["-p", "dev"]);
    let two = world.tunnel(&["-p", "audit"]);
    let uid = world.sshd.user().uid;
    assert_eq!(ask(&mut world, &one, "", &one.token()).status(), 200);
    assert_eq!(ask(&mut world, &one, "", "Bearer wrong").status(), 401);

    let seen = tunnels(&mut world);
    let [first, second] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!((first["pid"].to_string(), second["pid"].to_string()), (pid(&one), pid(&two)));
    assert_eq!((&first["host"], &first["state"]), (&BASTION.into(), &"up".into()));
    assert_eq!(first["port"], 4144);
    assert_ne!(second["port"], 4144);
    let profile = &first["profiles"][0];
    assert_eq!((&profile["profile"], &profile["default"]), (&"dev".into(), &true.into()));
    assert_eq!(profile["role"], "123456789012/Developer");
    assert!(profile["expires_at"].as_str().unwrap().ends_with('Z'));
    let request = &profile["requests"][0];
    assert_eq!((&request["uid"], &request["allowed"]), (&uid.into(), &1.into()), "{first}");
    let refused = &first["refused"][0];
    assert_eq!((&refused["uid"], &refused["refused"]), (&uid.into(), &1.into()), "{first}");

    let table = world.run(world.broker(&["status"])).success().stdout();
    for part in ["bastion", "127.0.0.1:4144", "123456789012/Developer (default)", &format!("uid {uid}: 1")] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains('\u{1b}'), "{table}");

    let ambiguous = world.run(world.broker(&["env", BASTION, "--print-env", "sh"]));
    assert_eq!(ambiguous.code, Some(2), "{ambiguous}");
    assert!(
        ambiguous.stderr().contains(&pid(&one)) && ambiguous.stderr().contains(&pid(&two)),
        "{ambiguous}"
    );
    let exports = world.run(world.broker(&["env", &pid(&two), "--print-env", "sh"])).success();
    assert_eq!(exports.stdout(), two.exports);
    assert!(!exports.stdout().contains(two.token().trim_start_matches("Bearer ")));

    // So that its end takes a while after its host is clean: the last lines of its log have to wait.
    let log = std::fs::File::open(world.laptop.join(".local/state/broker/audit.log")).unwrap();
    log.lock().unwrap();
    let stopped = world.run(world.broker(&["stop", &pid(&two)])).success();
    assert!(stopped.stderr().contains("no credentials were left there"), "{stopped}");
    // It has ended, and whoever waited for that may rely on it.
    assert!(!Path::new(&format!("/proc/{}/fd/0", pid(&two))).exists(), "it still runs");
    drop(log);
    assert!(!two.directory().exists());
    let output = ended(&mut world, two.process);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stderr().contains("stopped by `broker stop`"), "{output}");
    assert_eq!(ask(&mut world, &one, "", &one.token()).status(), 200);

    // By another of its names, now that it is the only one.
    let address = format!("{}@127.0.0.1:{}", world.sshd.user().name, world.sshd.port());
    let fish = world.run(world.broker(&["env", &address, "--print-env", "fish"])).success();
    assert!(fish.stdout().contains("set -e -g AWS_PROFILE;"), "{fish}");
    let login_shell = world.run(world.broker(&["env", BASTION])).success();
    assert_eq!(login_shell.stdout(), one.exports, "the login shell of the host is bash");
    world.run(world.broker(&["stop", "--all"])).success();
    assert_eq!(ended(&mut world, one.process).code, Some(0));
    assert_eq!(tunnels(&mut world), Vec::<Value>::new());
    assert_eq!(sockets(&world), Vec::<PathBuf>::new());
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Connects to a unix socket, asks for the status, and prints what comes back.
const INTRUDER: &str = r#"
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
try:
    s.connect(sys.argv[1])
    s.sendall(b'{"v":1,"request":"status"}\n')
    print(s.recv(4096))
except (PermissionError, ConnectionError) as e:
    print(type(e).__name__)
"#;

#[test]
fn nobody_else_gets_a_byte_out_of_the_socket() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let [socket] = sockets(&world).try_into().unwrap();
    let (ours, other, root) = (world.laptop.user().clone(), User::other(), User::find("root").unwrap());
    let python = |world: &mut World, user: &User| {
        let command = world.as_user(user, "python3", &["-c", INTRUDER, socket.to_str().unwrap()]);
        world.run(command).success().stdout()
    };
    assert!(python(&mut world, &ours).contains("bastion"), "the intruder's program does not work");
    assert_eq!(python(&mut world, &other).trim(), "PermissionError");
    let nothing = ["b''", "ConnectionResetError", "BrokenPipeError"];
    assert!(nothing.contains(&python(&mut world, &root).trim()));
    // Even where the file system lets everybody in.
    let mut path = socket.as_path();
    while path != Path::new("/tmp") {
        let open = if path == socket { 0o777 } else { 0o755 };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(open)).unwrap();
        path = path.parent().unwrap();
    }
    let said = python(&mut world, &other);
    assert!(nothing.contains(&said.trim()), "{said}");
    // And a directory that others may look into is none that we trust.
    assert_eq!(tunnels(&mut world), Vec::<Value>::new());
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_killed_brokers_socket_is_removed_and_a_stopped_ones_is_not() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut dead = world.tunnel(&["-p", "dev"]);
    let silent = world.tunnel(&["-p", "dev"]);
    assert_eq!(sockets(&world).len(), 2);
    dead.process.signal(Signal::SIGKILL);
    let output = dead.process.wait(ENDS);
    world.heard("broker", &output);
    silent.process.signal(Signal::SIGSTOP);
    let seen = status(&mut world);
    assert_eq!(seen["tunnels"], Value::Array(Vec::new()), "{seen}");
    assert_eq!(seen["silent"][0]["pid"].to_string(), pid(&silent), "{seen}");
    let [left] = sockets(&world).try_into().unwrap();
    assert!(left.file_name().unwrap().to_string_lossy().starts_with(&pid(&silent)));
    silent.process.signal(Signal::SIGCONT);
    eventually("it answers again", PATIENCE, || {
        let seen = tunnels(&mut world);
        if seen.len() == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(silent.stop(&mut world).code, Some(130));
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn without_a_place_for_the_socket_the_tunnel_works_and_says_so() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // Neither place that a user without a session has.
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let run = world.laptop.write(format!(".local/state/broker/run-{name}"), "", 0o600);
    let User { uid, gid, .. } = *world.laptop.user();
    let shared = PathBuf::from(format!("/tmp/.broker-control-{uid}"));
    // Other tests may be using it: what is in its way is there for this one alone.
    std::fs::create_dir_all(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut mount = std::process::Command::new("mount");
    assert!(mount.args(["-t", "tmpfs", "none"]).arg(&shared).status().unwrap().success());
    let tunnel = world.tunnel(&["-p", "dev"]);
    let said = tunnel.process.text(Stream::Stderr);
    assert!(said.contains("will not find this tunnel") && said.contains(run.to_str().unwrap()), "{said}");
    assert_eq!(ask(&mut world, &tunnel, "", &tunnel.token()).status(), 200);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_role_that_is_taken_back_is_gone_and_nothing_takes_its_place() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let (dev, audit) = (tunnel.token(), token_of(&mut world, &tunnel, "audit"));
    let revoked = world.run(world.broker(&["revoke", BASTION, "-p", "dev"])).success();
    let policy: Value = serde_json::from_str(&revoked.stdout()).unwrap();
    assert_eq!(policy["Statement"][0]["Effect"], "Deny");
    let since = policy["Statement"][0]["Condition"]["DateLessThan"]["aws:TokenIssueTime"].as_str().unwrap();
    assert!(since.len() == 24 && since.ends_with('Z'), "{since}");
    assert!(revoked.stderr().contains("123456789012/Developer"), "{revoked}");

    assert_eq!(ask(&mut world, &tunnel, "", &dev).status(), 401);
    assert_eq!(std::fs::read_to_string(tunnel.token_file()).unwrap(), "", "its token lies there");
    // Whoever asks without a name must not get another role than before.
    assert_eq!(ask(&mut world, &tunnel, "", &audit).status(), 401);
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &audit).status(), 200);
    assert_ne!(arn(&mut world, &tunnel, "default").code, Some(0));
    assert_eq!(arn(&mut world, &tunnel, "audit").success().stdout().trim(), World::arn("Auditor"));
    let again = world.run(world.broker(&["revoke", BASTION, "-p", "dev"]));
    assert_eq!(again.code, Some(1), "{again}");
    assert!(again.stdout().is_empty() && again.stderr().contains("audit"), "{again}");

    world.run(world.broker(&["grant", BASTION, "-p", "dev"])).success();
    let new = token_of(&mut world, &tunnel, "dev");
    assert_ne!(new, dev);
    assert_eq!(ask(&mut world, &tunnel, "", &dev).status(), 401);
    assert_eq!(ask(&mut world, &tunnel, "", &new).status(), 200);
    assert_eq!(arn(&mut world, &tunnel, "default").success().stdout().trim(), World::arn("Developer"));

    world.run(world.broker(&["revoke", BASTION])).success();
    assert_eq!(ask(&mut world, &tunnel, "", &new).status(), 401);
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &audit).status(), 401);
    assert_eq!(tunnels(&mut world)[0]["profiles"], Value::Array(Vec::new()), "the tunnel goes on");
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_role_is_added_without_reconnecting_on_every_transport() {
    if sandbox::isolated!() {
        return;
    }
    for transport in ["auto", "tcp", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
        let mut world = World::new();
        let tunnel = world.tunnel(&["-p", "dev", "--transport", transport]);
        let connections = world.sshd.connections();
        assert_ne!(arn(&mut world, &tunnel, "audit").code, Some(0), "{transport}: it is there already");
        let granted = world.run(world.broker(&["grant", BASTION, "-p", "audit"])).success();
        assert!(granted.stderr().contains("--profile audit"), "{granted}");
        let got = arn(&mut world, &tunnel, "audit").success();
        assert_eq!(got.stdout().trim(), World::arn("Auditor"), "{transport}");
        assert_eq!(arn(&mut world, &tunnel, "default").success().stdout().trim(), World::arn("Developer"));
        assert_eq!(world.sshd.connections(), connections, "{transport}: it connected anew");
        if transport == "file" {
            world.run(world.broker(&["revoke", BASTION, "-p", "audit"])).success();
            let file = tunnel.directory().join("role-audit.json");
            assert_eq!(std::fs::read_to_string(file).unwrap(), "", "credentials stay behind");
            assert_ne!(arn(&mut world, &tunnel, "audit").code, Some(0));
        } else {
            let _kept = token_of(&mut world, &tunnel, "audit");
        }
        assert_eq!(tunnel.stop(&mut world).code, Some(130));
        world.assert_clean();
    }
}

#[test]
fn a_role_that_cannot_be_had_changes_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    world.aws.remove_role(crate::support::ACCOUNT, "Auditor");
    let denied = world.run(world.broker(&["grant", BASTION, "-p", "audit"]));
    assert_eq!(denied.code, Some(7), "{denied}");
    let unknown = world.run(world.broker(&["grant", BASTION, "-p", "nobody"]));
    assert_eq!(unknown.code, Some(2), "{unknown}");
    let seen = tunnels(&mut world);
    assert_eq!(seen[0]["profiles"].as_array().unwrap().len(), 1, "{seen:?}");
    assert!(!tunnel.directory().join("token-audit").exists());
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn new_credentials_are_fetched_when_they_are_asked_for() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let before = ask(&mut world, &tunnel, "", &tunnel.token()).key_id();
    let refreshed = world.run(world.broker(&["refresh", BASTION])).success();
    assert!(refreshed.stderr().contains("new credentials for `dev`, valid until"), "{refreshed}");
    let after = ask(&mut world, &tunnel, "", &tunnel.token()).key_id();
    assert_ne!(after, before);
    world.aws.remove_role(crate::support::ACCOUNT, "Developer");
    let failed = world.run(world.broker(&["refresh"]));
    assert_eq!(failed.code, Some(1), "{failed}");
    assert!(failed.stderr().contains("those in memory are served until"), "{failed}");
    assert_eq!(ask(&mut world, &tunnel, "", &tunnel.token()).key_id(), after);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_tunnel_whose_time_is_over_says_so_before_and_ends_with_success() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for (option, reason) in [("--max-lifetime", "its 6 s are over"), ("--idle-timeout", "nobody asked")] {
        let mut tunnel = world.tunnel(&["-p", "dev", option, "6s"]);
        let ends = tunnels(&mut world)[0]["ends_at"].is_string();
        assert_eq!(ends, option == "--max-lifetime");
        let warning = tunnel.process.wait_for_line(Stream::Stderr, "the tunnel", PATIENCE);
        assert!(warning.contains("warning") && warning.contains("ends in"), "{warning}");
        if option == "--idle-timeout" {
            // Somebody asks, so that it goes on for its whole time.
            assert_eq!(ask(&mut world, &tunnel, "", &tunnel.token()).status(), 200);
            let again = tunnel.process.wait_for_line(Stream::Stderr, "the tunnel", PATIENCE);
            assert!(again.contains("ends in"), "{again}");
        }
        let output = tunnel.process.wait(PATIENCE);
        assert_eq!(output.code, Some(0), "{output}");
        assert!(
            output.stderr().contains(reason) && output.stderr().contains("no credentials were left"),
            "{output}"
        );
        world.heard("broker", &output);
        assert_eq!(world.left_on_host(), Vec::<PathBuf>::new());
    }
    let mut cut = world.connect(&["-p", "dev", "--max-lifetime", "3s", "--", "sleep", "12"]);
    cut.stdin(std::process::Stdio::null());
    let output = world.run(cut);
    assert_eq!(output.code, Some(255), "a command that was cut short has not succeeded: {output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn nothing_is_handed_out_before_a_person_said_yes() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--confirm"]);
    let (dev, audit) = (tunnel.token(), token_of(&mut world, &tunnel, "audit"));
    let uid = world.sshd.user().uid;
    let refused = ask(&mut world, &tunnel, "", &dev);
    assert_eq!(refused.status(), 503);
    assert!(refused.json()["message"].as_str().unwrap().contains("broker approve"), "{refused:?}");
    let waiting = tunnels(&mut world)[0]["waiting"].clone();
    assert_eq!((&waiting[0]["profile"], &waiting[0]["uid"]), (&"dev".into(), &uid.into()), "{waiting}");
    assert!(tunnel.process.text(Stream::Stderr).contains(&format!("uid {uid} on bastion asks for `dev`")));

    let wrong = world.run(world.broker(&["approve", BASTION, "-p", "audit"]));
    assert_eq!(wrong.code, Some(1), "{wrong}");
    let approved =
        world.run(world.broker(&["approve", BASTION, "-p", "dev", "--uid", &uid.to_string()])).success();
    assert!(approved.stderr().contains("may use `dev`"), "{approved}");
    assert_eq!(ask(&mut world, &tunnel, "", &dev).status(), 200);
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &audit).status(), 503, "another role");
    world.run(world.broker(&["deny", BASTION])).success();
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &audit).status(), 403);
    assert_eq!(ask(&mut world, &tunnel, "", &dev).status(), 403, "the yes was taken back");
    world.run(world.broker(&["approve", BASTION])).success();
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &audit).status(), 200);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    let events: Vec<String> =
        world.audit().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    assert!(events.contains(&"approved".to_owned()) && events.contains(&"denied".to_owned()), "{events:?}");
    world.assert_clean();
}

#[test]
fn credentials_in_files_wait_for_a_yes_too() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "--confirm", "--transport", "file"]);
    let file = tunnel.directory().join("role-dev.json");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    world.run(world.broker(&["approve", BASTION])).success();
    eventually("the credentials are there", PATIENCE, || {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("AccessKeyId") { Ok(()) } else { Err(text) }
    });
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_person_at_the_tunnels_own_terminal_is_asked_there() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut command =
        world.broker(&["connect", BASTION, "-p", "dev", "-N", "--print-env", "sh", "--confirm"]);
    command.arg("--color=never");
    let mut terminal = world.laptop.terminal(command, 40, 200);
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    let directory = world.left_on_host().into_iter().next().unwrap();
    let directory = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let token = std::fs::read_to_string(directory.join("token-dev")).unwrap();
    world.keep_token(&token);
    let user = world.sshd.user().clone();
    let url = "http://127.0.0.1:4144/";
    assert_eq!(world.fetch(&user, url, Some(&token)).status(), 503);
    terminal.wait_for_text("allow it from now on? [y/N]", PATIENCE);
    terminal.send("y\n");
    eventually("the answer counts", PATIENCE, || match world.fetch(&user, url, Some(&token)).status() {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    terminal.signal(Signal::SIGINT);
    let output = terminal.wait(ENDS);
    assert_eq!(output.code, Some(130), "{output}");
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn an_allowed_profile_is_fetched_when_somebody_asks_for_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let nothing = world.run(world.connect(&["-p", "dev", "-N", "--allow", "nothing-*"]));
    assert_eq!(nothing.code, Some(2), "{nothing}");
    let tunnel = world.tunnel(&["-p", "dev", "--allow", "au*"]);
    let profiles = tunnels(&mut world)[0]["profiles"].clone();
    assert_eq!((&profiles[1]["profile"], &profiles[1]["on_request"]), (&"audit".into(), &true.into()));
    assert_eq!(world.aws.last_issued(crate::support::ACCOUNT, "Auditor"), None, "nobody asked yet");
    assert_eq!(arn(&mut world, &tunnel, "audit").success().stdout().trim(), World::arn("Auditor"));
    let token = token_of(&mut world, &tunnel, "audit");
    assert_eq!(ask(&mut world, &tunnel, "slot/audit", &token).status(), 200);
    assert_eq!(ask(&mut world, &tunnel, "", &token).status(), 401);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn with_the_token_in_the_environment_exports_for_another_terminal_still_hold_none() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "--token", "env"]);
    let exports = world.run(world.broker(&["env", BASTION, "--print-env", "sh"])).success();
    assert!(!exports.stdout().contains(tunnel.token().trim_start_matches("Bearer ")), "{exports}");
    assert!(exports.stdout().contains("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), "{exports}");
    let line = format!(". {}/env.sh", tunnel.directory().display());
    assert!(exports.stderr().contains(&line), "{exports}");
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    assert_eq!(world.left_on_host(), Vec::<PathBuf>::new());
}

#[test]
fn a_watched_status_draws_over_itself_only_on_a_terminal() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let mut terminal = world.laptop.terminal(world.broker(&["status", "--watch"]), 24, 60);
    terminal.wait_for_text("nobody asked", PATIENCE);
    assert_eq!(ask(&mut world, &tunnel, "", &tunnel.token()).status(), 200);
    terminal.wait_for_text("\u{1b}[3A\r\u{1b}[J", PATIENCE);
    let settings = terminal.settings();
    terminal.signal(Signal::SIGINT);
    let output = terminal.wait(ENDS);
    assert_eq!((output.code, terminal.settings()), (Some(130), settings), "{output}");
    let longest =
        output.stdout().split("\u{1b}[J").flat_map(str::lines).map(|line| line.chars().count()).max();
    assert!(longest.unwrap() < 60 + "broker: error: ".len(), "{output}");

    let mut piped = world.laptop.spawn(world.broker(&["status", "--watch", "--json"]));
    piped.wait_for_line(Stream::Stdout, "\"allowed\":1", PATIENCE);
    assert_eq!(ask(&mut world, &tunnel, "", &tunnel.token()).status(), 200);
    piped.wait_for_line(Stream::Stdout, "\"allowed\":2", PATIENCE);
    piped.signal(Signal::SIGINT);
    let output = piped.wait(ENDS);
    assert!(!output.stdout().contains('\u{1b}'), "{output}");
    assert!(output.stdout().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{output}");
    assert_eq!(output.stdout().lines().count(), 2, "once for each change: {output}");
    world.heard("broker status", &output);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}

#[test]
fn stopped_before_it_is_up_it_ends_as_well() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(sandbox::sshd::SshdOptions::default().relay());
    world.sshd.pause_network(true);
    let process = world.laptop.spawn(world.connect(&["-p", "dev", "-N"]));
    eventually("it is there", PATIENCE, || {
        let seen = tunnels(&mut world);
        match seen.first() {
            Some(tunnel) if tunnel["state"] == "starting" => Ok(()),
            _ => Err(format!("{seen:?}")),
        }
    });
    let env = world.run(world.broker(&["env", BASTION]));
    assert_eq!(env.code, Some(1), "{env}");
    assert!(env.stderr().contains("is not up yet"), "{env}");
    world.run(world.broker(&["stop", BASTION])).success();
    assert_eq!(ended(&mut world, process).code, Some(0));
    world.sshd.pause_network(false);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn shells_complete_commands_hosts_and_profiles() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let file = "[lists]\nweb = [\"bastion\"]\n[hosts.\"web9 web*\"]\n";
    world.laptop.write(".config/broker/config.toml", file, 0o600);
    let directory = crate::support::program().parent().unwrap().display().to_string();
    let complete = |world: &mut World, shell: &str, script: &str| {
        let mut command = world.laptop.command(shell);
        command.args(["-c", script]).env("PATH", format!("{directory}:/usr/bin:/bin"));
        let output = world.run(command).success();
        assert_eq!(output.stderr(), "", "{shell}");
        output.stdout().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for (words, wanted, unwanted) in [
        ("broker re", &["refresh", "revoke"][..], "status"),
        ("broker stop ", &[BASTION], "dev"),
        ("broker connect b", &[BASTION], "dev"),
        ("broker connect @", &["@web"], BASTION),
        ("broker connect we", &["web9"], BASTION),
        ("broker connect ada@we", &["ada@web9"], "@web"),
        ("broker man re", &["refresh", "revoke"], BASTION),
        ("broker connect bastion -p ", &["dev", "audit"], BASTION),
        ("broker env bastion --print-env po", &["powershell"], "sh"),
    ] {
        let fish = format!("broker completions fish | source; complete -C '{words}'");
        let bash = format!(
            "source <(broker completions bash)\n\
             read -r _ _ function _ < <(complete -p broker | sed 's/.* -F/x -F/')\n\
             IFS=' ' read -ra COMP_WORDS <<< '{words}'; [[ '{words}' != *' ' ]] || COMP_WORDS+=('')\n\
             COMP_LINE='{words}' COMP_POINT={} COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_TYPE=9\n\
             \"$function\" broker \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\" && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len()
        );
        for (shell, script) in [("fish", fish), ("bash", bash)] {
            let found = complete(&mut world, shell, &script);
            for wanted in wanted {
                assert!(found.iter().any(|word| word == wanted), "{shell}: {words}: {found:?}");
            }
            assert!(!found.iter().any(|word| word == unwanted), "{shell}: {words}: {found:?}");
        }
    }
    let zsh =
        "autoload -Uz compinit && compinit -D && source <(broker completions zsh) && print $_comps[broker]";
    assert_eq!(complete(&mut world, "zsh", zsh).len(), 1);
    // And as a person has it, with all that a shell does to a line: `@` parts words in bash.
    for (shell, set_up) in [
        (&["bash", "--norc", "-i"][..], "source <(broker completions bash)"),
        (&["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -D -u; source <(broker completions zsh)"),
        (&["fish", "--no-config", "-i"], "broker completions fish | source"),
    ] {
        let mut command = world.laptop.command(shell[0]);
        command.args(&shell[1..]).env("PATH", format!("{directory}:/usr/bin:/bin")).env("TERM", "xterm");
        let mut terminal = world.laptop.terminal(command, 40, 200);
        terminal.send(format!("{set_up}; echo is''-set-up\r"));
        terminal.wait_for_text("is-set-up", PATIENCE);
        terminal.send("broker connect @w\t-p nobody -N\r");
        terminal.wait_for_text("`nobody`", PATIENCE);
        terminal.send("exit\r");
        let _status = terminal.wait(PATIENCE);
    }
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.assert_clean();
}
