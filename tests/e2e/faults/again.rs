//! What is not the same behind a reconnect, and what may not be left of the links before.

use std::time::Duration;

use nix::sys::signal::Signal;
use sandbox::{home::Stream, sshd::SshdOptions, users::User};

use super::{assert_stops_clean, cut_network};
use crate::support::{BASTION, PATIENCE, World, eventually};

#[test]
fn where_callers_cannot_be_told_apart_every_link_has_new_tokens() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().without_proc_net());
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", "tcp", "--trust-host-users"]);
    let user = world.sshd.user().clone();
    let (first, directory) = (tunnel.token(), tunnel.directory());
    let all = || {
        ["dev", "audit"].map(|profile| {
            std::fs::read_to_string(directory.join(format!("token-{profile}"))).unwrap_or_default()
        })
    };
    let before = all();
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&first)).status(), 200);
    world.sshd.kill_connections();
    tunnel.wait_until_lost(PATIENCE);
    tunnel.wait_until_back(PATIENCE);
    let after = all();
    for (old, new) in before.iter().zip(&after) {
        world.keep_token(new);
        assert!(!new.is_empty() && old != new, "a token that anybody may have seen is used again");
    }
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&first)).status(), 401, "the old one");
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&after[0])).status(), 200, "the new one");
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn a_plain_shell_gets_another_port_when_its_own_is_another_users_for_good() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut terminal = world.laptop.terminal(world.broker(&["connect", BASTION, "-p", "dev"]), 40, 200);
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    terminal.send("PS1='pro''mpt> '\n");
    terminal.wait_for_text("prompt> ", PATIENCE);
    terminal.signal(Signal::SIGSTOP);
    world.sshd.kill_connections();
    let squatter = crate::users::squat(&world, &User::other(), "127.0.0.1", 4144);
    terminal.signal(Signal::SIGCONT);
    terminal.wait_for_text("in use by another user", PATIENCE);
    terminal.wait_for_text("as somebody else has 4144", PATIENCE * 2);
    terminal.wait_for_text("this is a new shell", PATIENCE);
    terminal.send(
        "curl -s -o /dev/null -w 'got %{http_code}\\n' -H \"Authorization: $(cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\")\" \
         \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"\n",
    );
    terminal.wait_for_text("got 200", PATIENCE);
    crate::users::assert_nobody_came(&squatter);
    drop(squatter);
    terminal.send("exit 4\n");
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(4), "{output}");
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn status_tells_that_it_is_away_since_when_and_why() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let report = |world: &mut World| {
        let output = world.run(world.broker(&["status", "--json"])).success();
        let json: serde_json::Value = serde_json::from_str(&output.stdout()).unwrap();
        json["tunnels"][0].clone()
    };
    let up = report(&mut world);
    assert_eq!(up["state"], "up");
    tunnel.process.signal(Signal::SIGSTOP);
    world.sshd.kill_connections();
    let broken = cut_network(&world);
    tunnel.process.signal(Signal::SIGCONT);
    tunnel.wait_until_lost(PATIENCE);
    let away = report(&mut world);
    assert_eq!(away["state"], "reconnecting", "{away}");
    assert!(away["since"].as_str() >= up["since"].as_str(), "{away}");
    assert!(away["trouble"].as_str().is_some_and(|trouble| trouble.contains("was lost")), "{away}");
    let table = world.run(world.broker(&["status"])).success();
    assert!(table.stdout().contains("reconnecting"), "{table}");
    let _healed = broken.heal();
    tunnel.wait_until_back(PATIENCE);
    let back = report(&mut world);
    assert_eq!((&back["state"], &back["trouble"]), (&"up".into(), &serde_json::Value::Null), "{back}");
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn after_many_links_one_helper_and_its_watchdog_run_and_nothing_else() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let count = |world: &World| world.running_on_host().len();
    let alone = count(&world);
    for _ in 0..6 {
        world.sshd.kill_connections();
        tunnel.wait_until_lost(PATIENCE);
        tunnel.wait_until_back(PATIENCE);
    }
    eventually("what the links before had is gone", Duration::from_secs(10), || match count(&world) {
        now if now <= alone => Ok(()),
        now => Err(format!("{now}, at first {alone}: {:?}", world.running_on_host())),
    });
    let said = tunnel.process.text(Stream::Stderr);
    assert_eq!(said.matches("back after").count(), 6, "{said}");
    assert_stops_clean(&mut world, tunnel);
}
