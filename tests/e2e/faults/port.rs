//! What the host has in our place when we come back, and what ends meanwhile.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sandbox::{
    aws::{Fault, Operation},
    home::Stream,
    users::User,
};

use super::{
    QUICK, assert_ended, assert_serves_as_before, assert_stops_clean, kill_helper, refuse_connections,
};
use crate::support::{PATIENCE, World, eventually, holder_of_ours, offers, within};

#[test]
fn row_12_a_port_that_another_user_took_meanwhile_is_told_and_never_replaced() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for arguments in [&["-p", "dev"][..], &["-p", "dev", "-R", "4144"]] {
        let mut tunnel = world.tunnel(arguments);
        tunnel.process.signal(Signal::SIGSTOP);
        world.sshd.kill_connections();
        let other = User::other();
        let squatter = crate::users::squat(&world, &other, "127.0.0.1", 4144);
        tunnel.process.signal(Signal::SIGCONT);
        let said = tunnel.process.wait_for_line(Stream::Stderr, "trying again", PATIENCE);
        assert!(said.contains(&format!("in use by another user (uid {})", other.uid)), "{said}");
        // It waits 15 s for the port on purpose.
        let output = assert_ended(&mut world, &mut tunnel, 6, PATIENCE + Duration::from_secs(15));
        assert!(output.stderr().contains("the port on bastion is lost"), "{output}");
        crate::users::assert_nobody_came(&squatter);
        drop(squatter);
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn row_12_a_port_that_is_free_again_soon_is_taken_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    tunnel.process.signal(Signal::SIGSTOP);
    world.sshd.kill_connections();
    let squatter = crate::users::squat(&world, &User::other(), "127.0.0.1", 4144);
    tunnel.process.signal(Signal::SIGCONT);
    tunnel.process.wait_for_line(Stream::Stderr, "trying again", PATIENCE);
    drop(squatter);
    tunnel.wait_until_back(Duration::from_secs(10));
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_13_a_stopped_sshd_child_gives_the_port_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for transport in ["tcp", "auto", "unix"].into_iter().filter(|transport| offers(transport)) {
        let arguments = [&["-p", "dev", "--transport", transport], &QUICK[..]].concat();
        let mut process =
            world.laptop.spawn(world.connect(&[&["-N", "--print-env", "sh"], &arguments[..]].concat()));
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
        process.wait_for_line(Stream::Stdout, "export", PATIENCE);
        let mut tunnel = world.attach(process);
        let directory = tunnel.directory();
        world.sshd.stop_connections();
        tunnel.wait_until_lost(Duration::from_secs(8));
        tunnel.wait_until_back(Duration::from_secs(10));
        assert!(directory.join("config").exists(), "the same directory");
        if transport == "unix" {
            let socket = directory.join("s");
            let ask = format!(
                "curl -sS --unix-socket {} -H \"Authorization: $(cat {}/token-dev)\" http://broker/",
                socket.display(),
                directory.display()
            );
            let output = world.laptop.run(world.on_host("sh", &["-c", &ask])).success();
            assert!(output.stdout().contains("AccessKeyId"), "{}", output.stderr());
        } else {
            let token = tunnel.token();
            assert_serves_as_before(&mut world, &tunnel, &token);
        }
        world.sshd.cont_connections();
        for id in world.processes_on_host().into_keys() {
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGCONT);
        }
        assert_stops_clean(&mut world, tunnel);
    }
}

#[test]
fn row_14_the_port_of_another_broker_of_ours_is_left_to_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut first = world.tunnel(&["-p", "dev"]);
    first.process.signal(Signal::SIGSTOP);
    world.sshd.kill_connections();
    let second = world.tunnel(&["-p", "dev"]);
    assert!(second.url().ends_with(":4144/"), "{}", second.url());
    let token = second.token();
    first.process.signal(Signal::SIGCONT);
    let said = first.process.wait_for_line(Stream::Stderr, "trying again", PATIENCE);
    assert!(said.contains(holder_of_ours()), "{said}");
    for _ in 0..3 {
        assert_serves_as_before(&mut world, &second, &token);
    }
    assert!(!second.process.text(Stream::Stderr).contains("connecting again"));
    let stopped = second.stop(&mut world);
    assert_eq!(stopped.code, Some(130));
    first.wait_until_back(Duration::from_secs(15));
    assert_stops_clean(&mut world, first);
}

#[test]
fn row_33_credentials_that_end_during_the_outage_are_never_served() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let life = Duration::from_secs(20);
    world.aws.set_role_life(life);
    let began = Instant::now();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let (token, user) = (tunnel.token(), world.sshd.user().clone());
    world.aws.fault(Operation::GetRoleCredentials, Fault::error(500, "InternalServerException", "down"));
    let broken = refuse_connections(&world);
    world.sshd.kill_connections();
    tunnel.wait_until_lost(PATIENCE);
    assert!(!within((life * 2).saturating_sub(began.elapsed()), || tunnel.process.has_ended()));
    let _healed = broken.heal();
    tunnel.wait_until_back(PATIENCE);
    let answer = world.fetch(&user, tunnel.url(), Some(&token));
    assert_eq!(answer.status(), 503, "{answer:?}");
    world.aws.clear_faults();
    eventually("there are credentials again", PATIENCE * 2, || {
        let answer = world.fetch(&user, tunnel.url(), Some(&token));
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_34_a_killed_helper_is_replaced_and_callers_are_told_apart_all_the_time() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let (token, other) = (tunnel.token(), User::other());
    kill_helper(&world);
    tunnel.wait_until_lost(Duration::from_secs(3));
    // A thief, all the way through.
    let port = std::cell::Cell::new(0);
    let url = tunnel.url().to_owned();
    eventually("it is back", PATIENCE, || {
        let curl = world.as_user(
            &other,
            "curl",
            &["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &format!("Authorization: {token}"), &url],
        );
        let answer = world.laptop.run(curl);
        assert!(!answer.stdout().starts_with("200"), "a thief was served");
        port.set(port.get() + 1);
        if tunnel.process.text(Stream::Stderr).contains("back after") {
            Ok(())
        } else {
            Err("not yet".into())
        }
    });
    assert_serves_as_before(&mut world, &tunnel, &token);
    // The dead helper's dead-man switch goes on by itself, and does not touch what is not its own.
    eventually("it has ended", Duration::from_secs(45), || {
        let helpers = world.running_on_host().iter().filter(|command| command.contains("sh -c a=")).count();
        if helpers <= 2 { Ok(()) } else { Err(format!("{helpers} processes")) }
    });
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}
