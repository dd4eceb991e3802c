//! `connect -f` and service managers: ready is told when it is true, and nothing holds on to the terminal.

use std::{os::unix::net::UnixDatagram, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use sandbox::{
    aws::{Fault, Operation},
    home::{Stream, Terminal},
};

use crate::support::{ENDS, PATIENCE, World, checkout, eventually, within};

/// The process that a `-f` left behind, by what it told the person.
fn left_behind(stderr: &str) -> Pid {
    let (_, rest) = stderr.split_once("in the background as process ").expect("it says which process it is");
    Pid::from_raw(rest.split(';').next().unwrap().trim().parse().unwrap())
}

fn runs(pid: Pid) -> bool {
    // Whoever adopted it may not have looked yet.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

fn end(world: &World, pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    eventually("the background process ends", ENDS, || {
        if runs(pid) { Err("it runs".to_owned()) } else { Ok(()) }
    });
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn it_returns_when_the_tunnel_is_ready_and_the_tunnel_outlives_the_terminal() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "-f", "--print-env", "sh"]);
    let mut terminal = world.laptop.terminal(
        world.in_shell("sh", "\"$0\" \"$@\"; echo status $?; read -r wait", &connect),
        50,
        200,
    );
    terminal.wait_for_text("status 0", PATIENCE);
    let screen = terminal.screen();
    let pid = left_behind(&screen);
    assert!(runs(pid), "{screen}");
    // It has no terminal any more: not as its own, not open.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(
        (fields[3], fields[4]),
        (pid.to_string().as_str(), "0"),
        "a session of its own, and no tty: {stat}"
    );
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        assert!(!target.starts_with("/dev/pts") && !target.starts_with("/dev/tty"), "{target:?} is open");
    }
    terminal.signal(Signal::SIGHUP);
    terminal.signal(Signal::SIGKILL);
    let _ended = terminal.wait(PATIENCE);
    let url = "http://127.0.0.1:4144/";
    let file =
        screen.split("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE='").nth(1).unwrap().split('\'').next().unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    world.keep_token(&token);
    let user = world.sshd.user().clone();
    assert_eq!(world.fetch(&user, url, Some(&token)).status(), 200);
    end(&world, pid);
    let log = world.laptop.read(".local/state/broker/bastion.log");
    assert!(log.contains("stopped; no credentials were left there") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn what_fails_before_it_is_ready_fails_in_the_foreground() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let output = world.run(world.connect(&["-p", "nosuch", "-f"]));
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr().contains("nosuch"), "{output}");
    let output = world.run(world.connect(&["-p", "dev", "-f", "-o", "HostName=127.0.0.1", "-P", "1"]));
    assert_eq!(output.code, Some(5), "{output}");
    let output = world.run(world.connect(&["-p", "dev", "-f", "--", "true"]));
    assert_eq!(output.code, Some(255), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn when_the_one_who_waits_is_killed_no_tunnel_stays() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // The second process is in the middle of its start when the first is killed.
    world.aws.fault(Operation::GetRoleCredentials, Fault::Delay(Duration::from_secs(2)));
    let before = world.aws.calls().len();
    let mut process = world.laptop.spawn(world.connect(&["-p", "dev", "-f"]));
    eventually("it asks for credentials", PATIENCE, || {
        let calls = world.aws.calls();
        let asked = calls[before..].iter().any(|call| call.starts_with("GetRoleCredentials"));
        if asked { Ok(()) } else { Err(format!("{:?}", &calls[before..])) }
    });
    let first = Pid::from_raw(process.pid().cast_signed());
    let second = brokers().into_iter().find(|pid| *pid != first).expect("there are two processes");
    process.signal(Signal::SIGKILL);
    eventually("the second ends as well", PATIENCE, || {
        if runs(second) { Err("it runs".to_owned()) } else { Ok(()) }
    });
    let output = process.wait(PATIENCE);
    assert!(output.stderr().contains("the process that started this one is gone"), "{output}");
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

/// The brokers in this test's network.
fn brokers() -> Vec<Pid> {
    let here = std::fs::read_link("/proc/self/ns/net").unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == here)
            && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "broker")
    })
    .map(Pid::from_raw)
    .collect()
}

#[test]
fn a_service_manager_hears_when_we_are_ready_and_when_we_end() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let path = world.laptop.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connect = world.connect(&["-p", "dev", "-N"]);
    connect.env("NOTIFY_SOCKET", &path);
    let mut process = world.laptop.spawn(connect);
    let mut heard = [0; 256];
    let length = manager.recv(&mut heard).unwrap();
    assert_eq!(
        std::str::from_utf8(&heard[..length]),
        Ok("READY=1\nSTATUS=serving AWS credentials to bastion")
    );
    // Ready means that an SDK is served already.
    let user = world.sshd.user().clone();
    let answer = world.fetch(&user, "http://127.0.0.1:4144/healthcheck", None);
    assert_eq!(answer.status(), 401);
    process.signal(Signal::SIGTERM);
    let length = manager.recv(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"STOPPING=1");
    let output = process.wait(ENDS);
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

/// The one broker here that is not this one.
fn the_broker(before: &[Pid]) -> Pid {
    let new: Vec<Pid> = brokers().into_iter().filter(|pid| !before.contains(pid)).collect();
    let [pid] = new[..] else { panic!("{new:?}") };
    pid
}

fn hang_up(pid: Pid) {
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
}

#[test]
fn without_a_terminal_sighup_has_it_connect_anew_at_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // As a service manager starts it: in a session of its own.
    for limit in [&[][..], &["--reconnect-for", "0"]] {
        let connect = world.connect(&[&["-p", "dev", "-N", "--print-env", "sh"], limit].concat());
        let setsid = world.in_shell("sh", "exec setsid -w \"$0\" \"$@\"", &connect);
        let mut process = world.laptop.spawn(setsid);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        let mut tunnel = world.attach(process);
        let (pid, token, user) = (the_broker(&[]), tunnel.token(), world.sshd.user().clone());
        for _ in 0..2 {
            let connection = world.sshd.connections();
            hang_up(pid);
            let said = tunnel.process.wait_for_line(Stream::Stderr, "as SIGHUP asked for it", PATIENCE);
            assert!(said.contains("the connection to bastion is made anew"), "{said}");
            tunnel.process.wait_for_line(Stream::Stderr, "on port 4144 as before", PATIENCE);
            assert_ne!(world.sshd.connections(), connection, "another connection");
            assert_eq!(tunnel.token(), token);
            assert_eq!(world.fetch(&user, tunnel.url(), Some(&token)).status(), 200);
        }
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let output = tunnel.process.wait(ENDS);
        assert_eq!(output.code, Some(130), "{output}");
        world.heard("broker", &output);
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn sighup_while_it_is_away_has_the_next_attempt_made_now() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "-N", "--reconnect-for", "1h"]);
    let mut process = world.laptop.spawn(world.in_shell("sh", "exec setsid -w \"$0\" \"$@\"", &connect));
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let pid = the_broker(&[]);
    // Where the key is refused it knocks once a minute.
    world.sshd.configure(&["PubkeyAuthentication no".to_owned(), "PasswordAuthentication yes".to_owned()]);
    world.sshd.kill_connections();
    process.wait_for_line(Stream::Stderr, "trying again", PATIENCE);
    world.sshd.configure(&[]);
    hang_up(pid);
    process.wait_for_line(Stream::Stderr, "back after", Duration::from_secs(15));
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let output = process.wait(ENDS);
    assert_eq!(output.stderr().matches("as SIGHUP asked").count(), 0, "one wish, one connection: {output}");
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn in_the_background_sighup_has_it_connect_anew() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "-f", "--print-env", "sh"]);
    let script = "\"$0\" \"$@\"; echo status $?; read -r wait";
    let mut terminal = world.laptop.terminal(world.in_shell("sh", script, &connect), 50, 200);
    terminal.wait_for_text("status 0", PATIENCE);
    let pid = left_behind(&terminal.screen());
    hang_up(pid);
    eventually("it is back", PATIENCE, || {
        let log = world.laptop.read(".local/state/broker/bastion.log");
        if log.contains("on port 4144 as before") { Ok(()) } else { Err(log) }
    });
    assert!(runs(pid));
    terminal.send("\n");
    let output = terminal.wait(PATIENCE);
    world.heard("the terminal", &output);
    end(&world, pid);
}

#[test]
fn on_a_terminal_sighup_ends_it_unless_it_is_to_be_ignored() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "-N", "--print-env", "sh"]);
    for script in ["exec \"$0\" \"$@\"", "trap '' HUP; exec \"$0\" \"$@\""] {
        let ignored = script.starts_with("trap");
        let mut terminal = world.laptop.terminal(world.in_shell("sh", script, &connect), 50, 200);
        terminal.wait_for_text("AWS SDKs on", PATIENCE);
        let pid = the_broker(&[]);
        hang_up(pid);
        if ignored {
            let said = |terminal: &mut Terminal, word: &str| terminal.screen().contains(word);
            assert!(!within(Duration::from_secs(2), || !runs(pid) || said(&mut terminal, "SIGHUP")));
            nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        }
        let output = terminal.wait(ENDS);
        assert_eq!(output.code, Some(130), "{output}");
        assert!(output.stdout().contains("no credentials were left there"), "{output}");
        world.heard("the terminal", &output);
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn the_service_files_are_what_their_managers_read() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let unit = world.laptop.write(
        "broker@bastion.service",
        std::fs::read(checkout("docs/services/broker@.service")).unwrap(),
        0o644,
    );
    let mut verify = world.laptop.command("systemd-analyze");
    verify.args(["verify", "--user", "--man=no"]).arg(&unit).env("XDG_RUNTIME_DIR", world.laptop.path());
    let output = world.run(verify).success();
    assert_eq!(output.stderr(), "", "{output}");
    let mut read = world.laptop.command("python3");
    read.args([
        "-c",
        "import plistlib, sys; print(*plistlib.loads(sys.stdin.buffer.read())['ProgramArguments'])",
    ]);
    let plist = std::fs::read(checkout("docs/services/broker.plist")).unwrap();
    let output = world.laptop.run_with(read, &plist).success();
    assert_eq!(output.stdout(), "/usr/local/bin/broker connect HOST -N --batch\n");
}
