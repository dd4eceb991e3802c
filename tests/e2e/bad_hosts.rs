//! Hosts that break under us: no room, no helper, another directory than ours. We say why, and leave nothing.

use std::{
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sandbox::{home::Stream, sshd::SshdOptions, users::User};

use crate::support::{BASTION, PATIENCE, World, eventually, offers, program};

const TRANSPORTS: [&str; 4] = ["auto", "tcp", "unix", "file"];

/// A directory of the host's user.
fn own_directory(path: &Path, mode: u32) {
    let user = User::host();
    std::fs::create_dir_all(path).unwrap();
    chown(path, Some(user.uid), Some(user.gid)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mount(directory: &Path, options: &str) {
    let mut mount = Command::new("mount");
    let status = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(directory).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_place_whose_path_is_too_long_for_a_socket_is_passed_over() {
    if sandbox::isolated!() {
        return;
    }
    let long = PathBuf::from("/dev/shm").join("l".repeat(90));
    own_directory(&long, 0o700);
    let options = SshdOptions::default().config(format!("SetEnv XDG_RUNTIME_DIR={}", long.display()));
    let mut world = World::with(options);
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "unix"]);
    assert_eq!(tunnel.directory().parent().unwrap().parent(), Some(Path::new("/dev/shm")));
    assert!(tunnel.directory().join("s").exists());
    tunnel.stop(&mut world);
    // One that fits is taken.
    let options = SshdOptions::default().config("SetEnv XDG_RUNTIME_DIR=/dev/shm/short");
    own_directory(Path::new("/dev/shm/short"), 0o700);
    let mut world = World::with(options);
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "unix"]);
    assert!(tunnel.directory().starts_with("/dev/shm/short"));
    tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn where_every_path_is_too_long_for_a_socket_the_reason_is_told_and_auto_does_without() {
    if sandbox::isolated!() {
        return;
    }
    // Before the checkout may be hidden by what follows.
    let _program = program();
    mount(&User::host().home, "mode=755");
    for place in ["/tmp", "/dev/shm"] {
        mount(Path::new(place), "mode=755");
    }
    let home = User::host().home.join("h".repeat(80));
    own_directory(&User::host().home, 0o755);
    own_directory(&home, 0o700);
    let mut world = World::with(SshdOptions::default().config(format!("SetEnv HOME={}", home.display())));
    let output = world.run(world.connect(&["-p", "dev", "-N", "--transport", "unix"]));
    assert_eq!((output.code, output.stdout()), (Some(6), String::new()), "{output}");
    for part in ["is too long for a unix socket", BASTION, "hint: give XDG_RUNTIME_DIR"] {
        assert!(output.stderr().contains(part), "{part}: {output}");
    }
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "auto"]);
    assert!(tunnel.directory().starts_with(&home) && !tunnel.directory().join("s").exists());
    // Other machines may see this directory, so the port is asked by `credential_process` alone, which knows this one.
    let config = std::fs::read_to_string(tunnel.directory().join("config")).unwrap();
    let line = config.lines().find_map(|line| line.strip_prefix("credential_process = ")).unwrap();
    let output = world.laptop.run(world.on_host("/bin/sh", &["-c", line])).success();
    let credentials: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(credentials["SecretAccessKey"].is_string());
    tunnel.stop(&mut world);
    world.assert_clean();
}

/// The process id of the helper that made this directory.
fn helper_of(directory: &Path) -> Pid {
    let owner = std::fs::read_to_string(directory.join(".owner")).unwrap();
    Pid::from_raw(owner.lines().nth(1).unwrap().parse().unwrap())
}

#[test]
fn a_helper_that_is_killed_ends_the_tunnel_in_words_and_nothing_stays() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for transport in TRANSPORTS.into_iter().filter(|transport| offers(transport)) {
        let tunnel = world.tunnel(&["-p", "dev", "--transport", transport, "--reconnect-for", "0"]);
        kill(helper_of(&tunnel.directory()), Signal::SIGKILL).unwrap();
        let mut process = tunnel.process;
        let output = process.wait(PATIENCE);
        world.heard("broker connect -N", &output);
        assert_eq!(output.code, Some(5), "{transport}: {output}");
        assert!(output.stderr().contains("the helper on bastion"), "{transport}: {output}");
    }
    // Their watchdogs live, and wait for as long as a laptop may be silent.
    eventually("the host is clean", Duration::from_secs(50), || {
        let left = world.left_on_host();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    world.assert_clean();
}

#[test]
fn a_link_in_the_place_of_our_directory_is_not_followed() {
    if sandbox::isolated!() {
        return;
    }
    for transport in TRANSPORTS.into_iter().filter(|transport| offers(transport)) {
        let mut world = World::new();
        if transport == "file" {
            world.aws.set_role_life(Duration::from_secs(15));
        }
        let precious = PathBuf::from("/dev/shm/precious");
        own_directory(&precious, 0o700);
        std::fs::write(precious.join("thesis"), "precious").unwrap();
        let tunnel = world.tunnel(&["-p", "dev", "--transport", transport, "--reconnect-for", "0"]);
        let (directory, moved) = (tunnel.directory(), PathBuf::from("/dev/shm/moved"));
        std::fs::rename(&directory, &moved).unwrap();
        symlink(&precious, &directory).unwrap();
        let mut process = tunnel.process;
        if transport == "file" {
            // The next renewal finds what happened.
            let output = process.wait(PATIENCE);
            world.heard("broker connect -N", &output);
            assert_eq!(output.code, Some(5), "{output}");
            assert!(output.stderr().contains("could not write"), "{output}");
        } else {
            process.signal(Signal::SIGINT);
            let output = process.wait(PATIENCE);
            world.heard("broker connect -N", &output);
            assert_eq!(output.code, Some(130), "{transport}: {output}");
        }
        let entries: Vec<_> = std::fs::read_dir(&precious).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(entries, ["thesis"], "{transport}");
        std::fs::remove_dir_all(&moved).unwrap();
        std::fs::remove_dir_all(&precious).unwrap();
        std::fs::remove_dir_all(directory.parent().unwrap()).ok();
        world.assert_clean();
    }
}

#[test]
fn a_disk_that_fills_up_under_a_running_tunnel_ends_it_in_words_with_nothing_half_written() {
    if sandbox::isolated!() {
        return;
    }
    mount(Path::new("/dev/shm"), "mode=1777,size=256k");
    let mut world = World::new();
    world.aws.set_role_life(Duration::from_secs(15));
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "file", "--reconnect-for", "0"]);
    // The disk is full when it gives no more.
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "of=/dev/shm/fill", "bs=1k"]);
    let full = sandbox::home::run_within(dd, &[], PATIENCE);
    assert!(full.code != Some(0) && full.stderr().contains("No space left"), "{full}");
    let role = tunnel.directory().join("role-dev.json");
    let mut process = tunnel.process;
    eventually("it ends", PATIENCE, || {
        // What lies there is whole as long as it lies there.
        if let Ok(text) = std::fs::read_to_string(&role) {
            assert!(text.is_empty() || serde_json::from_str::<serde_json::Value>(&text).is_ok(), "cut off");
        }
        if process.has_ended() { Ok(()) } else { Err(process.text(Stream::Stderr)) }
    });
    let output = process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("could not write"), "{output}");
    std::fs::remove_file("/dev/shm/fill").unwrap();
    world.wait_for_clean_host();
    world.assert_clean();
}
