//! Servers that break the protocol at every step: each costs little memory, time and output, and learns nothing.
//!
//! `servers/rude.py` lets everybody in and refuses our helper; what counts is that `broker` ends in words of its own.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sandbox::home::{Output, Stream};

use crate::{
    hostile::{Server, assert_printable},
    support::{PATIENCE, World},
};

/// What a server may make `broker` hold at most, in KiB: a debug build takes 40 MiB for itself.
const MEMORY: usize = 128 * 1024;

/// What a server may make `broker` print, in bytes: a banner of 16 KiB, and an error.
const OUTPUT: usize = 24 * 1024;

/// Runs `broker connect` to a rude server with somebody who answers `x` to everything, and bounds what it may cost.
/// Returns what it said and how many questions there were.
fn visit(world: &mut World, mode: &str, arguments: &[&str], seconds: u64) -> (Output, usize) {
    let server = Server::run(world, include_str!("servers/rude.py"), mode);
    // Somebody who thinks gives a server the time to talk.
    let script = "#!/bin/sh\necho asked >>\"$HOME/asked\"\ncase $1 in *Think*) sleep 3 ;; esac\n[ ${#1} -lt 5000 ] && echo x\n";
    let askpass = world.laptop.write("askpass", script, 0o700);
    world.laptop.write("asked", "", 0o600);
    let mut connect =
        world.broker(&[&["connect", mode, "-p", "dev", "--transport", "tcp"], arguments].concat());
    connect.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force");
    let started = Instant::now();
    let mut process = world.laptop.spawn(connect);
    let mut most = 0;
    // The kernel forgets the most that a process had when it ends.
    while !process.has_ended() && started.elapsed() < PATIENCE + Duration::from_secs(seconds) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim);
        let peak = peak.and_then(|peak| peak.split(' ').next()?.parse().ok()).unwrap_or(0);
        most = most.max(peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = process.wait(PATIENCE);
    let took = started.elapsed();
    let asked = world.laptop.read("asked").lines().count();
    let said = output.stderr();
    println!(
        "{mode}: {:?} in {took:.1?}, {most} KiB, {} bytes, {asked} questions: {}",
        output.code,
        said.len(),
        said.lines().filter(|line| line.contains("error")).collect::<Vec<_>>().join(" | ")
    );
    assert_printable(&output);
    assert!(most > 0 && most < MEMORY, "{mode}: {most} KiB");
    assert!(said.len() < OUTPUT, "{mode}: {} bytes: {output}", said.len());
    assert!(took < Duration::from_secs(seconds), "{mode} took {took:?}");
    assert_eq!(output.stdout(), "", "{mode}: nothing may be published");
    assert!(said.contains("broker: error: "), "{mode}: {output}");
    server.assert_told_nothing(world);
    world.heard(mode, &output);
    (output, asked)
}

#[test]
fn what_a_server_says_before_it_lets_us_in_is_bounded() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // In the end they are servers that do not run our helper (6), or such that do not speak SSH (5).
    for (mode, codes) in [
        ("disconnect-huge", &[5][..]),
        ("disconnect-bytes", &[5]),
        ("disconnect-short", &[5]),
        ("debug-flood", &[5]),
        ("ignore-flood", &[5]),
        ("unimplemented-flood", &[6]),
        ("ext-info-short", &[5, 6]),
        ("ext-info-count", &[5, 6]),
        ("ext-info-junk", &[5, 6]),
        ("ext-info-flood", &[5, 6]),
        ("unknown-message", &[5, 6]),
        ("newkeys-again", &[5, 6]),
        ("service-again", &[5, 6]),
        ("failure-names", &[5]),
        ("failure-short", &[5]),
        ("failure-flood", &[5, 6]),
        ("banner-bytes", &[5, 6]),
        ("banner-huge", &[5]),
        ("info-unasked", &[5, 6]),
        ("info-count", &[5, 6]),
        ("success-unasked", &[5, 6]),
        ("empty-packet", &[5, 6]),
    ] {
        let (output, asked) = visit(&mut world, mode, &["-N", "--batch"], 15);
        assert!(codes.contains(&output.code.unwrap()), "{mode}: {output}");
        assert_eq!(asked, 0, "{mode}");
    }
    world.assert_clean();
}

#[test]
fn what_a_server_asks_is_bounded() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for (mode, most) in [
        ("prompts-many", 48),
        ("prompts-huge", 48),
        ("prompts-none", 0),
        ("prompts-endless", 48),
        ("prompts-meanwhile", 1),
        ("failure-loop", 0),
    ] {
        let (output, asked) = visit(&mut world, mode, &["-N"], 20);
        assert_eq!(output.code, Some(5), "{mode}: {output}");
        assert!(asked <= most, "{mode}: {asked} questions");
    }
    world.assert_clean();
}

#[test]
fn what_a_server_sends_while_a_command_runs_is_bounded() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for mode in [
        "global-flood",
        "global-huge",
        "hostkeys-flood",
        "window-overflow",
        "unknown-channels",
        "close-unknown",
        "extended-flood",
        "requests-odd",
        "opens-flood",
        "opens-odd",
        "open-confirmed-twice",
        "open-failure-huge",
        "data-after-eof",
        "length-lies",
        "rekeys",
        "rekey-storm",
    ] {
        let (output, _) = visit(&mut world, mode, &["-N", "--batch"], 20);
        assert!([5, 6].contains(&output.code.unwrap()), "{mode}: {output}");
        if mode == "opens-flood" {
            assert!(output.stderr().contains("was not asked for"), "{output}");
        }
        if mode == "rekeys" {
            assert_eq!(output.code, Some(6), "an honest rekey disturbs nothing: {output}");
        }
    }
    world.assert_clean();
}

#[test]
fn a_server_that_keeps_talking_and_never_answers_is_given_up() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (output, _) = visit(&mut world, "auth-drips", &["-N", "--batch"], 40);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("did not answer within 30 s"), "{output}");
    world.assert_clean();
}

#[test]
fn a_password_that_has_expired_is_guessed_and_said() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    let server = Server::run(&world, include_str!("servers/rude.py"), "password-expired");
    let askpass = world.laptop.write("askpass", "#!/bin/sh\necho x\n", 0o700);
    let mut connect = world.broker(&["connect", &server.alias, "-p", "dev", "-N"]);
    connect.env("SSH_ASKPASS", askpass).env("SSH_ASKPASS_REQUIRE", "force");
    let mut process = world.laptop.spawn(connect);
    let said = process.wait_for_line(Stream::Stderr, "has not answered to the password yet", PATIENCE);
    assert!(said.contains("if it has expired, log in once with `ssh`"), "{said}");
    process.signal(Signal::SIGINT);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(130), "{output}");
    assert_printable(&output);
    world.assert_clean();
}
