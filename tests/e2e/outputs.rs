//! Where the output of a host's command goes: all of it, in order, into whatever our stdout is.

use std::{
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Stdio,
};

use crate::support::World;

/// More than any pipe, socket or terminal holds at once.
const LINES: u32 = 500_000;

fn expected() -> Vec<u8> {
    let mut lines = Vec::new();
    for line in 1..=LINES {
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

#[test]
fn all_of_it_comes_in_order_into_a_pipe_or_a_file() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let seq = format!("seq {LINES}");
    for script in [
        "\"$0\" \"$@\" | cat > ~/out",
        // Whoever reads takes their time.
        "\"$0\" \"$@\" | dd bs=700 status=none > ~/out",
        "\"$0\" \"$@\" > ~/out",
        "echo kept > ~/out; \"$0\" \"$@\" >> ~/out; sed -i 1d ~/out",
    ] {
        let connect = world.connect(&["-p", "dev", "--", &seq]);
        let output = world.run(world.in_shell("sh", script, &connect));
        assert_eq!(output.code, Some(0), "{script}: {output}");
        assert!(world.laptop.read("out").as_bytes() == expected(), "{script}");
    }
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn the_pipe_that_others_write_too_stays_as_it_was() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // While the host speaks, and afterwards.
    let script = "look() { grep flags /proc/self/fdinfo/3 3>&1 >&2; }; \
                  { \"$0\" \"$@\" & read -r _ < ~/speaks; look; wait; look; } | { read -r _; echo > ~/speaks; cat > ~/out; }";
    let mut make = world.laptop.command("mkfifo");
    make.arg(world.laptop.join("speaks"));
    drop(world.run(make).success());
    let connect = world.connect(&["-p", "dev", "--", &format!("seq {LINES}")]);
    let output = world.run(world.in_shell("sh", script, &connect));
    let said = output.stderr();
    let flags: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("flags:")).collect();
    assert_eq!(flags.len(), 2, "{output}");
    for flags in flags {
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & rustix::fs::OFlags::NONBLOCK.bits(), 0, "{output}");
    }
    assert!(world.laptop.read("out").as_bytes() == expected().split_at(2).1);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn where_others_made_it_not_wait_we_wait() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    // As programs in Node.js give their children.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    // Less than we write at once.
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
    let mut connect = world.connect(&["-p", "dev", "--", &format!("seq {LINES}")]);
    connect.stdin(Stdio::null()).stdout(OwnedFd::from(ours)).stderr(Stdio::inherit());
    let mut broker = connect.spawn().unwrap();
    drop(connect);
    let mut got = Vec::new();
    theirs.read_to_end(&mut got).unwrap();
    assert_eq!(broker.wait().unwrap().code(), Some(0));
    assert!(got == expected(), "{} bytes", got.len());
    world.wait_for_clean_host();
    world.assert_clean();
}
