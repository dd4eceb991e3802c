//! The laptop's disk, the network's moods, and ends at any instruction.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::{
    aws::{Rotation, TokenSeed},
    home::Stream,
    sshd::SshdOptions,
};

use super::{assert_stops_clean, broken};
use crate::support::{PATIENCE, World, eventually, holder_of_ours};

/// Puts a file system of its own, with what was there, in the place of a directory of the laptop's user.
fn small_disk(world: &World, directory: &str) {
    let path = world.laptop.mkdir(directory, 0o700);
    let user = world.laptop.user();
    let script = format!(
        "cp -a '{path}' /run/kept && mount -t tmpfs -o size=64k,mode=700,uid={},gid={} none '{path}' && cp -a /run/kept/. '{path}/' && rm -r /run/kept",
        user.uid,
        user.gid,
        path = path.display()
    );
    let status = Command::new("sh").args(["-ec", &script]).status().unwrap();
    assert!(status.success());
}

fn fill(path: &Path) {
    let _full = Command::new("dd")
        .arg("if=/dev/zero")
        .arg(format!("of={}", path.join("fill").display()))
        .args(["bs=1k", "status=none"])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
}

#[test]
fn row_23_with_a_full_disk_everybody_is_served_and_no_file_is_torn() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_rotation(Rotation::Keep);
    world.aws.seed_token_with(
        world.laptop.path(),
        "corp",
        TokenSeed { expired: true, ..TokenSeed::default() },
    );
    world.own_aws_files();
    for directory in [".aws/sso/cache", ".local/state/broker"] {
        small_disk(&world, directory);
        fill(&world.laptop.join(directory));
    }
    let cache = || files(&world.laptop.join(".aws/sso/cache"));
    let before = cache();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let (token, user) = (tunnel.token(), world.sshd.user().clone());
    for _ in 0..20 {
        assert_eq!(world.fetch(&user, tunnel.url(), Some(&token)).status(), 200);
    }
    let said = tunnel.process.text(Stream::Stderr);
    assert_eq!(said.matches("decisions are not logged").count(), 1, "once, in words: {said}");
    assert_eq!(files(&world.laptop.join(".aws/sso/cache")), before, "the old file, whole");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

/// The files of a directory with their contents, but for locks and fillers.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                std::fs::read(entry.path()).unwrap_or_default(),
            )
        })
        .filter(|(name, _)| name != "fill" && !name.ends_with(".lock"))
        .collect();
    files.sort();
    files
}

#[test]
fn row_24_with_a_home_that_cannot_be_written_it_works_from_memory() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.seed_token_with(
        world.laptop.path(),
        "corp",
        TokenSeed { expired: true, ..TokenSeed::default() },
    );
    world.own_aws_files();
    let home = world.laptop.path().display().to_string();
    let status = Command::new("sh")
        .args(["-ec", &format!("mount --bind '{home}' '{home}' && mount -o remount,ro,bind '{home}'")])
        .status()
        .unwrap();
    assert!(status.success());
    let output = world.run(world.connect(&["-p", "dev", "--", "echo", "works"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    assert!(output.stderr().contains("decisions are not logged"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn row_26_killed_at_any_step_of_a_write_the_cache_is_old_or_new_and_never_torn() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    world.aws.set_rotation(Rotation::Keep);
    let cache = world.laptop.join(".aws/sso/cache");
    let seed = |world: &World| {
        world.aws.seed_token_with(
            world.laptop.path(),
            "corp",
            TokenSeed { expired: true, ..TokenSeed::default() },
        );
        world.own_aws_files();
    };
    seed(&world);
    let tokens = files(&cache).len();
    let (mut killed, mut replaced) = (0, 0);
    for syscall in ["write", "fsync", "fdatasync", "rename", "renameat", "renameat2", "flock", "unlink"] {
        for when in 1.. {
            seed(&world);
            let old = files(&cache);
            let mut strace = world.laptop.command("strace");
            let broker = world.broker(&["credentials", "--batch", "-p", "dev"]);
            let inject = format!("inject={syscall}:signal=KILL:when={when}");
            strace
                .args(["-f", "-qq", "-o", "/dev/null", "-e", "signal=none", "-e"])
                .arg(format!("trace={syscall}"));
            strace.args(["-e", &inject]);
            strace.arg(broker.get_program()).args(broker.get_args());
            strace.envs(broker.get_envs().filter_map(|(name, value)| Some((name, value?))));
            let output = world.laptop.run(strace);
            for (name, content) in files(&cache) {
                if old.iter().any(|(known, _)| *known == name) {
                    serde_json::from_slice::<serde_json::Value>(&content)
                        .unwrap_or_else(|e| panic!("{syscall} {when}: {name} is torn: {e}"));
                }
            }
            let done = output.code == Some(0);
            if done {
                break;
            }
            killed += 1;
            replaced += usize::from(files(&cache) != old);
            // The next one finds its way, and leaves no litter.
            seed(&world);
            let next = world.laptop.run(world.broker(&["credentials", "--batch", "-p", "dev"]));
            assert_eq!(next.code, Some(0), "{syscall} {when}: {next}");
            assert_eq!(files(&cache).len(), tokens, "{syscall} {when}: {:?}", names(&cache));
            assert!(when < 200, "{syscall} is called without end");
        }
    }
    super::seen(26, &format!("killed at {killed} steps, {replaced} of them after a change"));
    assert!(killed >= 3, "killed only {killed} times");
    world.assert_clean();
}

fn names(directory: &Path) -> Vec<String> {
    files(directory).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn row_39_after_a_kill_the_next_start_has_the_same_port() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for _ in 0..3 {
        let mut tunnel = world.tunnel(&["-p", "dev"]);
        assert!(tunnel.url().ends_with(":4144/"), "{}", tunnel.process.text(Stream::Stderr));
        let file = tunnel.token_file();
        tunnel.process.signal(Signal::SIGKILL);
        let killed = tunnel.process.wait(PATIENCE);
        world.heard("broker", &killed);
        // At once, before anybody there has noticed.
        let next = world.tunnel(&["-p", "dev"]);
        eventually("the old token is gone", Duration::from_secs(5), || {
            let there = std::fs::read_to_string(&file).unwrap_or_default();
            if file != next.token_file() && !there.is_empty() { Err(there) } else { Ok(()) }
        });
        let said = next.process.text(Stream::Stderr);
        assert!(next.url().ends_with(":4144/"), "{said}");
        let output = next.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

#[test]
fn row_39_after_a_kill_a_connection_that_the_host_still_believes_in_gives_the_port_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // One that lives keeps what it has, although it does not move.
    let living = world.tunnel(&["-p", "dev"]);
    living.process.signal(Signal::SIGSTOP);
    let output = world.run(world.connect(&["-p", "audit", "-N", "-R", "4144"]));
    assert_eq!(output.code, Some(6), "{output}");
    living.process.signal(Signal::SIGCONT);
    let (token, user) = (living.token(), world.sshd.user().clone());
    assert_eq!(world.fetch(&user, living.url(), Some(&token)).status(), 200);
    let said = living.stop(&mut world);
    assert!(!said.stderr().contains("connecting again"), "{said}");
    world.wait_for_clean_host();

    let killed = kill_while_the_host_stands_still(&mut world);
    let next = world.tunnel(&["-p", "dev", "-R", "4144"]);
    let token = next.token();
    assert_eq!(world.fetch(&user, next.url(), Some(&token)).status(), 200);
    for id in killed {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGCONT);
    }
    world.sshd.cont_connections();
    let output = next.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Has a host not notice that a broker was killed; returns the processes there that stand still.
fn kill_while_the_host_stands_still(world: &mut World) -> Vec<i32> {
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    world.sshd.stop_connections();
    tunnel.process.signal(Signal::SIGKILL);
    let killed = tunnel.process.wait(PATIENCE);
    world.heard("broker", &killed);
    world.processes_on_host().into_keys().collect()
}

#[test]
fn a_new_broker_beside_a_connection_that_the_host_still_believes_in_says_so_and_works() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let stopped = kill_while_the_host_stands_still(&mut world);
    // As one of another laptop would be.
    std::fs::remove_dir_all(world.laptop.join(".local/state/broker/connections")).unwrap();
    let next = world.tunnel(&["-p", "dev"]);
    let said = next.process.text(Stream::Stderr);
    assert!(said.contains("port 4144") && said.contains(holder_of_ours()), "{said}");
    assert!(!next.url().ends_with(":4144/"), "the port of a process that may live is not taken");
    let (token, user) = (next.token(), world.sshd.user().clone());
    assert_eq!(world.fetch(&user, next.url(), Some(&token)).status(), 200);
    // Asked for by number it is refused, with the reason.
    let output = world.run(world.connect(&["-p", "audit", "-N", "-R", "4144"]));
    assert_eq!(output.code, Some(6), "{output}");
    world.sshd.cont_connections();
    for id in stopped {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGCONT);
    }
    let output = next.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn row_43_a_bad_line_is_slow_and_nothing_worse() {
    if sandbox::isolated!() {
        return;
    }
    // 300 ms there and back, and of every hundred packets five are lost.
    let mut world = World::with(SshdOptions::default().relay());
    world.sshd.delay_network(Duration::from_millis(150));
    let port = world.sshd.port();
    let lossy = broken(&format!(
        "tcp dport {port} numgen random mod 100 < 5 drop\n tcp sport {port} numgen random mod 100 < 5 drop"
    ));
    let tunnel = world.tunnel(&["-p", "dev"]);
    let (token, user) = (tunnel.token(), world.sshd.user().clone());
    let mut asked_again = 0;
    let mut times: Vec<Duration> = (0..60)
        .map(|_| {
            // A packet that is lost thrice takes longer than the 900 ms after which we answer 503, before an SDK gives
            // up at 1 s. All of them ask again then, at least twice.
            for _ in 0..3 {
                let began = Instant::now();
                match world.fetch(&user, tunnel.url(), Some(&token)).status() {
                    200 => return began.elapsed(),
                    503 => asked_again += 1,
                    other => panic!("answered with {other}"),
                }
            }
            panic!("no answer in three tries");
        })
        .collect();
    times.sort();
    super::seen(
        43,
        &format!(
            "of 60 requests the middle one took {:?}, the longest {:?}; {asked_again} were asked again",
            times[30], times[59]
        ),
    );
    assert!(asked_again <= 12, "{asked_again} of 60 were asked again");
    assert!(times[30] < Duration::from_millis(1500), "{times:?}");
    assert!(!tunnel.process.text(Stream::Stderr).contains("connecting again"));
    drop(lossy);
    world.sshd.delay_network(Duration::ZERO);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn row_2_a_host_that_was_started_anew_is_known_by_its_boot_id() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let boot = world.laptop.write("boot", "11111111-2222-3333-4444-555555555555\n", 0o644);
    let mounted = Command::new("mount")
        .arg("--bind")
        .arg(&boot)
        .arg("/proc/sys/kernel/random/boot_id")
        .status()
        .unwrap();
    assert!(mounted.success());
    world.sshd.kill_connections();
    tunnel.process.wait_for_line(Stream::Stderr, "bastion was started anew meanwhile", PATIENCE);
    tunnel.wait_until_back(PATIENCE);
    assert_stops_clean(&mut world, tunnel);
}
