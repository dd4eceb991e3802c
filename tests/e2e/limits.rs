//! What a process may lack: a reader of its stderr, room for its output, descriptors, processes, a place for its log.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use nix::sys::signal::Signal;
use sandbox::home::{Output, Stream};

use crate::support::{ENDS, PATIENCE, World};

/// A named pipe of the laptop's user that is full, with the end that keeps it open.
fn full_pipe(world: &mut World) -> (PathBuf, File) {
    let path = world.laptop.join("full");
    let mut make = world.laptop.command("mkfifo");
    make.arg(&path);
    let _made = world.run(make).success();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(&path).unwrap();
    while pipe.write(&[b'x'; 4096]).is_ok() {}
    (path, pipe)
}

#[test]
fn with_nobody_reading_stderr_the_tunnel_serves_and_ends() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (pipe, _open) = full_pipe(&mut world);
    let connect = world.connect(&["-p", "dev", "-N", "--print-env", "sh", "-v"]);
    let mut wrapped = world.in_shell("sh", "exec \"$0\" \"$@\" 2> \"$PIPE\"", &connect);
    wrapped.env("PIPE", pipe);
    let mut process = world.laptop.spawn(wrapped);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    let mut tunnel = world.attach(process);
    let user = world.sshd.user().clone();
    let (url, token) = (tunnel.url().to_owned(), tunnel.token());
    // Every one of them is a line of the log: far more than the queue holds.
    for _ in 0..20 {
        assert_eq!(world.fetch(&user, &url, Some(&token)).status(), 200);
    }
    tunnel.process.signal(Signal::SIGTERM);
    let output = tunnel.process.wait(ENDS);
    world.heard("broker", &output);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Runs `broker connect` with these arguments below `limit`, a line of sh, and takes the last look.
fn limited(world: &mut World, limit: &str, arguments: &[&str]) -> Output {
    let connect = world.connect(arguments);
    let output = world.run(world.in_shell("sh", &format!("{limit} exec \"$0\" \"$@\""), &connect));
    assert!(!output.stderr().contains("panicked"), "{limit}: {output}");
    world.wait_for_clean_host();
    world.assert_clean();
    output
}

#[test]
fn with_few_descriptors_it_works_or_says_that_there_are_too_few() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let output = limited(&mut world, "ulimit -n 32;", &["-p", "dev", "--", "echo", "works"]);
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    for limit in ["ulimit -n 4;", "ulimit -n 6;", "ulimit -n 9;", "ulimit -n 12;"] {
        let output = limited(&mut world, limit, &["-p", "dev", "--", "echo", "works"]);
        match output.code {
            Some(0) => assert_eq!(output.stdout(), "works\n", "{limit}: {output}"),
            Some(255) => assert!(output.stderr().contains("open files"), "{limit}: {output}"),
            other => panic!("{limit}: {other:?}: {output}"),
        }
    }
}

#[test]
fn with_little_memory_it_works_or_says_that_there_is_too_little() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (mut refused, mut worked) = (0, 0);
    for mib in (24..=112).step_by(16) {
        let limit = format!("ulimit -v $(({mib} * 1024));");
        let output = limited(&mut world, &limit, &["-p", "dev", "--", "echo", "works"]);
        match output.code {
            Some(0) => worked += 1,
            Some(255) => {
                assert!(output.stderr().contains("of memory here"), "{mib}: {output}");
                refused += 1;
            }
            // Too little to be loaded.
            _ => assert_eq!((worked, refused, output.stdout().as_str()), (0, 0, ""), "{mib}: {output}"),
        }
    }
    assert!(worked > 0 && refused > 0, "{worked} {refused}");
}

#[test]
fn without_further_processes_it_works_or_says_so() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let output = limited(&mut world, "ulimit -u 1;", &["-p", "dev", "--", "echo", "works"]);
    match output.code {
        Some(0) => assert_eq!(output.stdout(), "works\n", "{output}"),
        Some(255) => assert!(output.stderr().contains("thread"), "{output}"),
        other => panic!("{other:?}: {output}"),
    }
}

#[test]
fn output_that_has_no_room_is_an_error_and_not_silence() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "--", "echo", "lost"]);
    let output = world.run(world.in_shell("sh", "exec \"$0\" \"$@\" > /dev/full", &connect));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(output.stderr().contains("No space left on device"), "{output}");
    let connect = world.connect(&["-p", "dev", "-N"]);
    let output = world.run(world.in_shell("sh", "exec \"$0\" \"$@\" > /dev/full", &connect));
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr().contains("No space left on device"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn where_no_log_can_be_written_that_is_said() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = world.connect(&["-p", "dev", "--", "echo", "works"]);
    let script = "rm -rf ~/.local/state/broker; mkdir -p ~/.local/state; : > ~/.local/state/broker; exec \"$0\" \"$@\"";
    let output = world.run(world.in_shell("sh", script, &connect));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    assert!(output.stderr().contains("warning: decisions are not logged"), "{output}");
    assert!(output.stderr().contains("/.local/state/broker"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn closed_descriptors_are_taken_for_the_end_of_a_file() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let closed = ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"];
    for closed in closed {
        let connect = world.connect(&["-p", "dev", "--", "cat; echo works >&2; exit 3"]);
        let output = world.run(world.in_shell("sh", &format!("exec \"$0\" \"$@\" {closed}"), &connect));
        assert_eq!(output.code, Some(3), "{closed}: {output}");
    }
    world.wait_for_clean_host();
    world.assert_clean();
}
