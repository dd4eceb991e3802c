//! The link dies, is silent, or is held up; and so is the laptop, or its clock.

use std::{
    net::{Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::home::Stream;

use super::{
    BACK, QUICK, assert_serves_as_before, assert_stops_clean, cut_network, long, refuse_connections, tried,
};
use crate::support::{PATIENCE, Tunnel, World, eventually, within};

#[test]
fn row_1_a_killed_sshd_child_is_replaced_at_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let token = tunnel.token();
    for _ in 0..3 {
        assert_eq!(world.sshd.kill_connections(), 1);
        let said = tunnel.wait_until_lost(Duration::from_secs(2));
        assert!(said.contains("the connection to bastion was lost"), "{said}");
        let said = tunnel.wait_until_back(BACK);
        assert!(said.contains("on port 4144 as before"), "{said}");
        assert_serves_as_before(&mut world, &tunnel, &token);
    }
    assert_eq!(world.sshd.connections().len(), 1);
    // What is the same at every start is said once.
    let said = tunnel.process.text(Stream::Stderr);
    assert_eq!(said.matches("AWS SDKs on").count(), 1, "{said}");
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_1_a_request_under_way_is_cut_and_the_next_one_answered() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    // Connected and silent, as a client is between its connection and its request.
    let mut waiting = TcpStream::connect(("127.0.0.1", 4144)).unwrap();
    world.sshd.kill_connections();
    tunnel.wait_until_back(PATIENCE);
    let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\n\r\n";
    let mut answer = Vec::new();
    let _broken = std::io::Write::write_all(&mut waiting, request.as_bytes());
    let _ended = std::io::Read::read_to_end(&mut waiting, &mut answer);
    assert_eq!(answer, b"", "an old connection was answered over the new link");
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_2_a_restarted_sshd_is_found_again() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--transport", "auto"]);
    let token = tunnel.token();
    let broken = refuse_connections(&world);
    world.sshd.kill_connections();
    tunnel.wait_until_lost(Duration::from_secs(2));
    let said = tunnel.process.wait_for_line(Stream::Stderr, "trying again", PATIENCE);
    assert!(said.contains("connection refused"), "{said}");
    world.wait_for_clean_host();
    let healed = broken.heal();
    tunnel.wait_until_back(BACK);
    assert!(healed.elapsed() < BACK);
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_3_a_short_drop_is_not_even_noticed() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let arguments = ["-p", "dev", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=6"];
    let tunnel = world.tunnel(&arguments);
    let (token, user) = (tunnel.token(), world.sshd.user().clone());
    let broken = cut_network(&world);
    let lost = |tunnel: &Tunnel| tunnel.process.text(Stream::Stderr).contains("connecting again");
    assert!(!within(Duration::from_secs(2), || lost(&tunnel)));
    let _healed = broken.heal();
    // TCP sends again what was lost, later and later.
    eventually("it is answered", PATIENCE, || {
        let answer = world.fetch(&user, tunnel.url(), Some(&token));
        if answer.status() == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    assert!(!within(Duration::from_secs(5), || lost(&tunnel)));
    assert!(!tunnel.process.has_ended());
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_4_after_a_long_drop_our_own_stale_listener_is_freed() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let quick: &[&str] = if long() { &[] } else { &QUICK };
    let mut tunnel = world.tunnel(&[&["-p", "dev"], quick].concat());
    let (token, file) = (tunnel.token(), tunnel.token_file());
    let stale = world.sshd.connections();
    let broken = cut_network(&world);
    let since = Instant::now();
    tunnel.wait_until_lost(if long() { Duration::from_secs(47) } else { Duration::from_secs(8) });
    // Half-open: the host believes in the connection, and would for two hours.
    assert_eq!(world.sshd.connections(), stale);
    if long() {
        eventually("the host has no token", Duration::from_secs(46).saturating_sub(since.elapsed()), || {
            if file.exists() { Err("it has".to_owned()) } else { Ok(()) }
        });
        let left = Duration::from_secs(60).saturating_sub(since.elapsed());
        assert!(!within(left, || tunnel.process.has_ended()));
    }
    let healed = broken.heal();
    let said = tunnel.wait_until_back(PATIENCE);
    let took = healed.elapsed();
    super::seen(4, &format!("back {:.1} s after the network", took.as_secs_f64()));
    assert!(said.contains("on port 4144 as before"), "{said}");
    // Of one cut; that 95 of 100 are within five seconds is the benchmark's to show.
    assert!(took < BACK * 2, "{took:?}");
    assert_serves_as_before(&mut world, &tunnel, &token);
    eventually("the dead connection has ended", PATIENCE, || match world.sshd.connections() {
        now if now.len() == 1 && now != stale => Ok(()),
        now => Err(format!("{now:?}, before {stale:?}")),
    });
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_5_a_very_long_drop_costs_little() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&[&["-p", "dev"], &QUICK[..]].concat());
    let token = tunnel.token();
    let broken = cut_network(&world);
    tunnel.wait_until_lost(Duration::from_secs(8));
    let (outage, most) = if long() { (540, 50 * 8) } else { (25, 5 * 8) };
    assert!(!within(Duration::from_secs(outage), || tunnel.process.has_ended()));
    // Each attempt sends up to eight packets to find out.
    let tried = tried();
    assert!(tried > 0 && tried < most, "{tried} packets");
    let said = tunnel.process.text(Stream::Stderr);
    assert_eq!(said.matches("trying again").count(), 1, "the same is said once: {said}");
    let _healed = broken.heal();
    tunnel.wait_until_back(PATIENCE);
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_6_after_a_sleep_a_dead_link_is_noticed_within_five_seconds() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // With the keepalives of every day, which would take 45 s.
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    tunnel.process.signal(Signal::SIGSTOP);
    let broken = cut_network(&world);
    // As long as it takes to be a sleep, or as long as one is.
    std::thread::sleep(Duration::from_secs(if long() { 300 } else { 9 }));
    tunnel.process.signal(Signal::SIGCONT);
    let said = tunnel.wait_until_lost(Duration::from_millis(5200));
    assert!(said.contains("did not answer") || said.contains("broke"), "{said}");
    let _healed = broken.heal();
    tunnel.wait_until_back(Duration::from_secs(10));
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_6_after_a_sleep_a_living_link_goes_on() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    tunnel.process.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(9));
    tunnel.process.signal(Signal::SIGCONT);
    let lost = || tunnel.process.text(Stream::Stderr).contains("connecting again");
    assert!(!within(Duration::from_secs(6), lost), "{}", tunnel.process.text(Stream::Stderr));
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

/// Has one address lead to another; counts who came.
fn passes_on(from: (&'static str, u16), to: (&'static str, u16)) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let (listener, counted) = (TcpListener::bind(from).unwrap(), Arc::clone(&count));
    std::thread::spawn(move || {
        for here in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            let (here, there) = (here.unwrap(), TcpStream::connect(to).unwrap());
            for (mut from, mut to) in [(here.try_clone().unwrap(), there.try_clone().unwrap()), (there, here)]
            {
                std::thread::spawn(move || {
                    let _copied = std::io::copy(&mut from, &mut to);
                    let _ended = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    count
}

#[test]
fn a_name_with_several_machines_leads_back_to_the_one_that_it_was() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let hosts = world.laptop.write("hosts", "127.0.0.2 login\n", 0o644);
    let mounted = Command::new("mount").arg("--bind").arg(&hosts).arg("/etc/hosts").status().unwrap();
    assert!(mounted.success());
    let port = world.sshd.port();
    let came = passes_on(("127.0.0.2", port), ("127.0.0.1", port));
    let known_as = format!("HostKeyAlias=[127.0.0.1]:{port}");
    let mut tunnel = world.tunnel(&["-p", "dev", "-o", "HostName=login", "-o", &known_as]);
    let token = tunnel.token();
    // Another node of the same name, which getaddrinfo has come first (RFC 6724, rule 9).
    std::fs::write(&hosts, "127.0.0.1 login\n127.0.0.2 login\n").unwrap();
    for back in 1..3 {
        world.sshd.kill_connections();
        tunnel.wait_until_lost(PATIENCE);
        tunnel.wait_until_back(PATIENCE);
        assert_eq!(came.load(Ordering::Relaxed), 1 + back);
    }
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

/// Has packets to the host leave from this address of ours, as on another network.
fn leave_from(address: &str) {
    let mut route = Command::new("ip");
    route.args(["route", "replace", "local", "127.0.0.1", "dev", "lo", "src", address, "table", "local"]);
    assert!(route.status().unwrap().success());
}

#[test]
fn another_address_of_ours_has_a_dead_link_noticed_and_a_living_one_kept() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // With the keepalives of every day, which would take 45 s.
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let token = tunnel.token();
    leave_from("127.0.0.2");
    let lost = || tunnel.process.text(Stream::Stderr).contains("connecting again");
    assert!(!within(Duration::from_secs(6), lost), "{}", tunnel.process.text(Stream::Stderr));
    let broken = cut_network(&world);
    leave_from("127.0.0.1");
    let said = tunnel.wait_until_lost(Duration::from_millis(5500));
    assert!(said.contains("did not answer"), "{said}");
    let _healed = broken.heal();
    tunnel.wait_until_back(Duration::from_secs(10));
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}

#[test]
fn row_7_a_clock_that_jumps_has_a_dead_link_noticed_and_a_living_one_kept() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(Duration::from_secs(12 * 3600));
    let clock = world.laptop.write("clock", "+0s\n", 0o644);
    let mut connect = world.connect(&["-N", "--print-env", "sh", "-p", "dev"]);
    let library = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
    connect
        .env("LD_PRELOAD", String::from_utf8(library.stdout).unwrap().trim())
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut process = world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    let mut tunnel = world.attach(process);
    let token = tunnel.token();
    for jump in ["+1h\n", "-1h\n"] {
        std::fs::write(&clock, jump).unwrap();
        let lost = || tunnel.process.text(Stream::Stderr).contains("connecting again");
        assert!(!within(Duration::from_secs(6), lost), "{}", tunnel.process.text(Stream::Stderr));
    }
    let broken = cut_network(&world);
    std::fs::write(&clock, "+2h\n").unwrap();
    tunnel.wait_until_lost(Duration::from_millis(5500));
    let _healed = broken.heal();
    tunnel.wait_until_back(Duration::from_secs(10));
    assert_serves_as_before(&mut world, &tunnel, &token);
    assert_stops_clean(&mut world, tunnel);
}
