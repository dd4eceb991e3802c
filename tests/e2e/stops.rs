//! Every way to end: the host is clean, the terminal is as it was, and the exit status tells what happened.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;
use sandbox::{
    aws::{Consent, Fault, Operation},
    home::{Output, Process, Stream, Terminal, run_within},
    sshd::SshdOptions,
};

use crate::support::{BASTION, PATIENCE, STOP, World, eventually};

/// What a killed broker's token files may outlive it by.
const KILLED: Duration = Duration::from_secs(1);

/// What token files may outlive the last sign of life by.
const SILENCE: Duration = Duration::from_secs(45);

fn wait_until_gone(file: &std::path::Path, deadline: Duration) {
    let what = format!("{} is gone", file.display());
    eventually(&what, deadline, || if file.exists() { Err("it is there".to_owned()) } else { Ok(()) });
}

#[test]
fn killed_the_tokens_are_gone_within_a_second() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let files = [tunnel.token_file(), tunnel.token_file().with_file_name("token-audit")];
    for file in &files {
        world.keep_token(&std::fs::read_to_string(file).unwrap());
    }
    tunnel.process.signal(Signal::SIGKILL);
    for file in &files {
        wait_until_gone(file, KILLED);
    }
    let output = tunnel.process.wait(STOP);
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn on_a_silent_link_the_tokens_are_gone_within_45_seconds_and_we_notice_too() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().relay());
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", "0"]);
    let file = tunnel.token_file();
    // The host hears nothing more, not even that the connection has ended.
    world.sshd.pause_network(true);
    let since = std::time::Instant::now();
    wait_until_gone(&file, SILENCE);
    assert!(!world.sshd.connections().is_empty(), "sshd noticed, so the link was not silent");
    let output = tunnel.process.wait(SILENCE.saturating_sub(since.elapsed()) + Duration::from_secs(2));
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("the connection to bastion was lost"), "{output}");
    world.heard("broker", &output);
    assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new());
    world.assert_no_secret();
    world.sshd.pause_network(false);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn of_a_laptop_that_sleeps_the_tokens_are_gone_within_45_seconds() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", "0"]);
    let file = tunnel.token_file();
    tunnel.process.signal(Signal::SIGSTOP);
    wait_until_gone(&file, SILENCE);
    assert!(!world.sshd.connections().is_empty(), "sshd noticed, so the link was not silent");
    // Awake again, it finds out what has happened and does not go on as if nothing had.
    tunnel.process.signal(Signal::SIGCONT);
    let output = tunnel.process.wait(PATIENCE);
    assert_eq!(output.code, Some(5), "{output}");
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_link_with_nothing_to_say_stays_and_serves() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    // Longer than the dead-man switch waits. Nothing can be waited for: that nothing happens is the point.
    let ended = crate::support::within(Duration::from_secs(35), || {
        tunnel.process.has_ended() || !tunnel.token_file().exists()
    });
    assert!(!ended, "a quiet tunnel ended: {}", tunnel.process.text(Stream::Stderr));
    let user = world.sshd.user().clone();
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status(), 200);
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn when_sshd_dies_we_say_so_and_the_host_is_clean() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", "0"]);
    assert_eq!(world.sshd.kill_connections(), 1);
    let output = tunnel.process.wait(PATIENCE);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("the connection to bastion was lost"), "{output}");
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn every_signal_to_end_leaves_a_clean_host_within_two_seconds() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut tunnel = world.tunnel(&["-p", "dev"]);
        tunnel.process.signal(signal);
        let output = tunnel.process.wait(STOP);
        // At once: whoever sees us end may rely on it.
        assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new(), "{signal}");
        assert_eq!(output.code, Some(130), "{signal}: {output}");
        assert!(output.stderr().contains("no credentials were left there"), "{signal}: {output}");
        world.heard("broker", &output);
        world.wait_for_clean_host();
    }
    let down = world.audit().iter().filter(|line| line["event"] == "tunnel_down").count();
    assert_eq!(down, 2);
    world.assert_clean();
}

#[test]
fn with_a_host_that_does_not_answer_a_stop_takes_two_seconds_all_the_same() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    world.sshd.stop_connections();
    tunnel.process.signal(Signal::SIGINT);
    let output = tunnel.process.wait(STOP + Duration::from_millis(300));
    assert_eq!(output.code, Some(130), "{output}");
    assert!(output.stderr().contains("removes itself"), "it claims that the host is clean: {output}");
    world.heard("broker", &output);
    world.sshd.cont_connections();
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Ctrl-C of somebody who runs `process` in a terminal.
fn interrupt(world: &mut World, mut process: Process) -> Output {
    process.signal(Signal::SIGINT);
    let output = process.wait(STOP);
    assert_eq!((output.code, output.stdout()), (Some(130), String::new()), "{output}");
    world.heard("broker", &output);
    output
}

#[test]
fn while_we_wait_for_the_person_or_for_aws_a_stop_takes_two_seconds() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.fault(Operation::GetRoleCredentials, Fault::Hang);
    let _output = interrupt_once_asked(&mut world, "GetRoleCredentials", "");

    std::fs::remove_dir_all(world.laptop.join(".aws/sso")).unwrap();
    world.aws.set_consent(Consent::Pending);
    let said = interrupt_once_asked(&mut world, "CreateToken(device_code", "");
    assert!(said.stderr().contains("enter the code"), "{said}");
    // A browser in which nobody does anything.
    let _output = interrupt_once_asked(&mut world, "RegisterClient", "true");
    world.aws.fault(Operation::StartDeviceAuthorization, Fault::Hang);
    let _output = interrupt_once_asked(&mut world, "StartDeviceAuthorization", "");

    assert_eq!(world.sshd.knocks(), 0, "the host was contacted before there were credentials");
    world.assert_clean();
}

/// Starts a tunnel, waits until the pretend AWS gets this call from it, and interrupts.
#[track_caller]
fn interrupt_once_asked(world: &mut World, call: &str, browser: &str) -> Output {
    let before = world.aws.calls().len();
    let mut connect = world.broker(&["connect", BASTION, "-N", "-p", "dev"]);
    if !browser.is_empty() {
        connect.env("BROWSER", browser);
    }
    let process = world.laptop.spawn(connect);
    eventually(call, PATIENCE, || {
        let calls = world.aws.calls();
        let come = calls[before..].iter().any(|known| known.starts_with(call));
        if come { Ok(()) } else { Err(format!("{:?}", &calls[before..])) }
    });
    interrupt(world, process)
}

#[test]
fn while_sshd_says_nothing_a_stop_takes_two_seconds() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().relay());
    world.sshd.pause_network(true);
    let process = world.laptop.spawn(world.connect(&["-N", "-p", "dev"]));
    eventually("it connects", PATIENCE, || {
        if world.sshd.connections().is_empty() { Err("no connection".to_owned()) } else { Ok(()) }
    });
    let _output = interrupt(&mut world, process);
    world.sshd.pause_network(false);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn stopped_while_the_host_is_being_set_up_nothing_stays_there() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::with(SshdOptions::default().relay());
    // Slow enough to meet it between any two steps.
    world.sshd.delay_network(Duration::from_millis(60));
    let helper =
        |world: &World| world.running_on_host().iter().any(|command| command.contains("/bin/sh -c a="));
    type Reached<'a> = &'a dyn Fn(&World) -> bool;
    let stages: [(&str, Reached<'_>); 3] = [
        ("authenticated", &|world| world.sshd.logins() > 0),
        ("the helper runs", &helper),
        ("files lie there", &|world| !world.left_on_host().is_empty()),
    ];
    for (stage, reached) in stages {
        world.wait_for_clean_host();
        let process = world.laptop.spawn(world.connect(&["-N", "-p", "dev", "-p", "audit"]));
        eventually(stage, PATIENCE, || if reached(&world) { Ok(()) } else { Err("not yet".to_owned()) });
        let _output = interrupt(&mut world, process);
        world.wait_for_clean_host();
    }
    // And killed, at the latest stage.
    let mut process = world.laptop.spawn(world.connect(&["-N", "-p", "dev"]));
    eventually("files lie there", PATIENCE, || {
        if world.left_on_host().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    });
    process.signal(Signal::SIGKILL);
    let output = process.wait(STOP);
    world.heard("broker", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

/// An interactive shell on a terminal, and the terminal's settings as they were before.
fn shell(world: &World) -> (Terminal, String) {
    let connect = world.connect(&["-p", "dev", "--reconnect-for", "0"]);
    // The settings are those of a terminal in use, not of a new one; and there is job control, as people have it.
    let script = "stty erase ^H -ixon; echo be''fore; read x; set -m; \"$0\" \"$@\"; code=$?; \
                  if [ $code = 148 ]; then echo sus''pended; read x; fg; code=$?; fi; \
                  echo \"ended with $code\"; read x";
    let mut terminal = world.laptop.terminal(world.in_shell("bash", script, &connect), 40, 200);
    terminal.wait_for_text("before", PATIENCE);
    let settings = terminal.settings();
    terminal.send("\n");
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    terminal.send("PS1='pro''mpt> '\n");
    terminal.wait_for_text("prompt> ", PATIENCE);
    assert_ne!(terminal.settings(), settings, "the terminal is not raw, so that there is nothing to restore");
    (terminal, settings)
}

/// The shell has ended with `code`, and the terminal is as it was.
#[track_caller]
fn assert_restored(world: &mut World, (mut terminal, settings): (Terminal, String), code: u8) -> String {
    terminal.wait_for_text(&format!("ended with {code}\r\n"), PATIENCE);
    assert_eq!(terminal.settings(), settings);
    terminal.send("\n");
    let output = terminal.wait(PATIENCE);
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    output.stdout()
}

/// The broker that runs below the shell of [`shell`].
pub(crate) fn broker_below(terminal: &Terminal) -> nix::unistd::Pid {
    let pid = terminal.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    nix::unistd::Pid::from_raw(children.trim().parse().unwrap())
}

#[test]
fn the_terminal_is_as_it_was_after_every_end_of_a_shell() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();

    let (mut terminal, settings) = shell(&world);
    terminal.send("exit 7\n");
    assert_restored(&mut world, (terminal, settings), 7);

    let (mut terminal, settings) = shell(&world);
    terminal.send("\x04");
    assert_restored(&mut world, (terminal, settings), 0);

    let (mut terminal, settings) = shell(&world);
    terminal.send("\r~?");
    terminal.wait_for_text("Supported escape sequences", PATIENCE);
    terminal.send("\r~.");
    assert_restored(&mut world, (terminal, settings), 255);

    // Suspended, the terminal is the local shell's; resumed, it is the remote one's again.
    let (mut terminal, settings) = shell(&world);
    let raw = terminal.settings();
    terminal.send("\r~\x1a");
    terminal.wait_for_text("suspended", PATIENCE);
    assert_eq!(terminal.settings(), settings, "while we are suspended");
    terminal.send("\n");
    eventually("the terminal is raw again", PATIENCE, || {
        if terminal.settings() == raw { Ok(()) } else { Err("it is not".to_owned()) }
    });
    terminal.send("exit 8\n");
    assert_restored(&mut world, (terminal, settings), 8);

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (terminal, settings) = shell(&world);
        nix::sys::signal::kill(broker_below(&terminal), signal).unwrap();
        assert_restored(&mut world, (terminal, settings), 130);
    }

    let (terminal, settings) = shell(&world);
    world.sshd.kill_connections();
    let screen = assert_restored(&mut world, (terminal, settings), 255);
    assert!(screen.contains("the connection to bastion was lost"), "{screen}");
    world.assert_clean();
}

#[test]
fn ctrl_c_and_ctrl_z_are_the_remote_programs() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (mut terminal, settings) = shell(&world);
    terminal.send(
        "sh -c 'trap \"echo cau\"\"ght; exit 3\" INT; echo wai\"\"ting; while :; do sleep 0.1; done'\n",
    );
    terminal.wait_for_text("waiting", PATIENCE);
    terminal.send("\x03");
    terminal.wait_for_text("caught", PATIENCE);
    terminal.wait_for_text("prompt> ", PATIENCE);
    terminal.send("sleep 1000\n");
    terminal.wait_for_text("sleep 1000\r\n", PATIENCE);
    // Until then the key is the shell's, which ignores it.
    eventually("it runs", PATIENCE, || match world.running_on_host() {
        running if running.iter().any(|line| line.trim() == "sleep 1000") => Ok(()),
        running => Err(format!("{running:?}")),
    });
    terminal.send("\x1a");
    terminal.wait_for_text("Stopped", PATIENCE);
    terminal.send("kill %1; wait; stty size; echo \"$TERM\"; exit 0\n");
    terminal.wait_for_text("40 200", PATIENCE);
    terminal.wait_for_text("xterm", PATIENCE);
    assert_restored(&mut world, (terminal, settings), 0);
    world.assert_clean();
}

#[test]
fn another_size_of_the_window_reaches_the_remote_program() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (mut terminal, settings) = shell(&world);
    terminal.send("trap 'stty size' WINCH\n");
    terminal.wait_for_text("prompt> ", PATIENCE);
    terminal.resize(33, 111);
    // bash runs a trap when its line is complete.
    terminal.send("sleep 0.2; stty size\n");
    terminal.wait_for_text("33 111", PATIENCE);
    terminal.send("exit 0\n");
    assert_restored(&mut world, (terminal, settings), 0);
    world.assert_clean();
}

/// Runs a program on a terminal, closes the terminal when told to, and tells how the program ended.
const CLOSES_ITS_TERMINAL: &str = r#"
import os, pty, select, sys, time
pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
seen = b""
while b"AWS SDKs on" not in seen:
    seen += os.read(master, 4096)
print("ready", flush=True)
sys.stdin.readline()
os.close(master)
began = time.monotonic()
_, status = os.waitpid(pid, 0)
print("code", os.waitstatus_to_exitcode(status), "after", time.monotonic() - began, flush=True)
"#;

#[test]
fn a_closed_terminal_ends_us_and_leaves_a_clean_host() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    for arguments in [&["-p", "dev"][..], &["-p", "dev", "-N"]] {
        let connect = world.connect(arguments);
        let mut process =
            world.laptop.spawn(world.in_shell("bash", "exec python3 -c \"$CLOSER\" \"$0\" \"$@\"", &{
                let mut connect = connect;
                connect.env("CLOSER", CLOSES_ITS_TERMINAL);
                connect
            }));
        process.wait_for_line(Stream::Stdout, "ready", PATIENCE);
        process.send("\n");
        let output = process.wait(STOP);
        assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new());
        assert!(output.stdout().contains("code 130"), "{output}");
        world.heard("broker", &output);
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn the_exit_status_is_the_commands() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for (command, code) in [
        ("true", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("no-such-command-at-all", 127),
    ] {
        let output = world.run(world.connect(&["-p", "dev", "--", command]));
        assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new());
        assert_eq!(output.code, Some(code), "{command}: {output}");
        assert_eq!(output.stdout(), "", "{command}: {output}");
        // Our own failures can be told from the command's.
        assert!(!output.stderr().contains("broker: failed"), "{command}: {output}");
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn arguments_are_joined_and_read_by_the_login_shell() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let arguments = ["-p", "dev", "--", "printf", "'%s,'", "$((1+1))", "\"a  b\"", "'it'\\''s'", "a  b"];
    let output = world.run(world.connect(&arguments));
    assert_eq!((output.stdout(), output.code), ("2,a  b,it's,a,b,".to_owned(), Some(0)), "{output}");
    world.assert_clean();
}

#[test]
fn stdout_and_stderr_stay_apart() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let command = "echo to stdout; echo to stderr >&2; if [ -t 1 ]; then echo a terminal; fi";
    let output = world.run(world.connect(&["-q", "-p", "dev", "--", command]));
    assert_eq!((output.stdout(), output.stderr()), ("to stdout\n".into(), "to stderr\n".into()), "{output}");
    // With a terminal there is one stream, and the host's end of lines.
    let output = world.run(world.connect(&["-q", "-t", "-p", "dev", "--", command]));
    assert_eq!(output.stdout(), "to stdout\r\nto stderr\r\na terminal\r\n", "{output}");
    world.assert_clean();
}

/// Bytes of every value in no order that a terminal or a line discipline would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let digest = run_within(Command::new("sha256sum"), bytes, PATIENCE).success();
    digest.stdout().split(' ').next().unwrap().to_owned()
}

#[test]
fn ten_megabytes_pass_unchanged_both_ways() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    let bytes = noise(10 << 20);
    let connect = world.connect(&["-q", "-p", "dev", "--", "tee /dev/stderr | sha256sum"]);
    let output = run_within(connect, &bytes, PATIENCE);
    assert_eq!(output.stdout().split(' ').next().unwrap(), sha256(&bytes), "what the host got");
    assert!(output.stderr == bytes, "{} bytes came back changed", output.stderr.len());
    assert_eq!(output.code, Some(0));
    let connect = world.connect(&["-q", "-p", "dev", "--", "cat"]);
    let output = run_within(connect, &bytes, PATIENCE);
    assert!(output.stdout == bytes, "{} bytes came back changed", output.stdout.len());
    assert_eq!(output.code, Some(0));
    world.assert_clean();
}

#[test]
fn a_command_that_does_not_read_its_input_ends_all_the_same() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // More than pipes and windows hold.
    let connect = world.connect(&["-q", "-p", "dev", "--", "head -c 3 | sha256sum"]);
    let bytes = noise(10 << 20);
    let output = run_within(connect, &bytes, PATIENCE);
    assert_eq!(output.stdout().split(' ').next().unwrap(), sha256(&bytes[..3]), "{output}");
    assert_eq!(output.code, Some(0));
    world.heard("broker", &output);
    // And one whose input never ends.
    let mut process = world.laptop.spawn(world.connect(&["-p", "dev", "--", "echo done"]));
    process.wait_for_line(Stream::Stdout, "done", PATIENCE);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker", &output);
    world.assert_clean();
}

#[test]
fn when_nobody_reads_our_output_any_more_all_ends() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "--", "yes"]);
    let script = "\"$0\" \"$@\" | head -1; echo \"status ${PIPESTATUS[0]}\"";
    let output = world.run(world.in_shell("bash", script, &connect));
    assert_eq!(output.stdout(), "y\nstatus 141\n", "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_slow_reader_gets_everything_and_the_tunnel_serves_meanwhile() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let command = "echo \"$AWS_CONTAINER_CREDENTIALS_FULL_URI $AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\" >&2; \
                   head -c 20000000 /dev/zero; echo end";
    let connect = world.connect(&["-p", "dev", "--", command]);
    // `read` keeps the reader away from its pipe until it is told to go on.
    let script = "\"$0\" \"$@\" | { read -r x < \"$GO\"; wc -c; }";
    let go = world.laptop.join("go");
    let mut fifo = world.laptop.command("mkfifo");
    fifo.arg(&go);
    let _made = world.run(fifo).success();
    let mut wrapped = world.in_shell("bash", script, &connect);
    wrapped.env("GO", &go);
    let mut process = world.laptop.spawn(wrapped);
    let line = process.wait_for_line(Stream::Stderr, "http://127.0.0.1", PATIENCE);
    let (url, file) = line.split_once(' ').unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    world.keep_token(&token);
    let user = world.sshd.user().clone();
    for _ in 0..5 {
        assert_eq!(world.fetch(&user, url, Some(&token)).status(), 200);
    }
    std::fs::write(&go, "go\n").unwrap();
    let output = process.wait(PATIENCE);
    assert_eq!(output.stdout().trim(), "20000004", "{output}");
    world.heard("broker", &output);
    world.assert_clean();
}
