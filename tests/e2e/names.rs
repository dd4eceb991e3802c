//! Where a host has no `/run/user/UID`, the name of our directory stays ours when the tunnel has ended: somebody of ours
//! may still have it in their environment, and whatever lay there would be read and run.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, process::Command};

use nix::sys::signal::Signal;
use sandbox::{home::run_within, users::User};

use crate::support::{BASTION, PATIENCE, World, eventually, offers, program};

/// What another user tries, to have a directory of this name. Prints what worked.
const THIEF: &str = r#"
mkdir -p "$1" && echo made
mkdir "$1/4144" && echo "made in it"
mv "$1" "$1.old" && echo moved
rmdir "$1" && echo removed
ln -sfn /tmp "$1" && echo linked
touch "$1/config" && echo wrote
true
"#;

fn thief(world: &World, name: &str) -> String {
    let command = world.as_user(&User::other(), "sh", &["-c", THIEF, "sh", name]);
    // `mkdir -p` is content with what is there.
    run_within(command, &[], PATIENCE).stdout().replace("made\n", "")
}

#[test]
fn after_the_end_nobody_else_can_make_a_directory_of_our_name() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"]).status();
    assert!(mount.unwrap().success());
    let mut world = World::new();
    let (uid, other) = (world.sshd.user().uid, User::other());
    let name = format!("/dev/shm/broker-{uid}");
    for kill in [false, true] {
        for transport in ["auto", "tcp", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
            let mut tunnel = world.tunnel(&["-p", "dev", "--transport", transport]);
            let directory = tunnel.directory();
            assert_eq!(
                directory.parent(),
                Some(PathBuf::from(&name).as_path()),
                "there is no /run/user/{uid} here"
            );
            let environment = tunnel.environment.clone();
            if kill {
                tunnel.process.signal(Signal::SIGKILL);
                let output = tunnel.process.wait(PATIENCE);
                world.heard("a killed broker", &output);
            } else {
                let output = tunnel.stop(&mut world);
                assert_eq!(output.code, Some(130), "{output}");
            }
            world.wait_for_clean_host();
            // Exactly this, and nothing in it.
            let left = std::fs::symlink_metadata(&name).unwrap();
            assert_eq!((left.is_dir(), left.uid(), left.mode() & 0o7777), (true, uid, 0o700), "{transport}");
            assert_eq!(std::fs::read_dir(&name).unwrap().count(), 0, "{transport}");
            assert_eq!(thief(&world, &name), "", "{transport}");
            // A pane that was forgotten finds nothing, as it should.
            let mut pane = world.on_host("sh", &["-c", "cat \"$AWS_CONFIG_FILE\""]);
            pane.envs(&environment);
            let output = world.run(pane);
            assert!(output.code == Some(1) && output.stdout.is_empty(), "{output}");
        }
    }

    // It is no leftover to a doctor, and goes when it is asked to, which is said.
    let output = world.run(world.broker(&["doctor", BASTION, "--batch"]));
    assert!(!output.stdout().contains("leftovers: `"), "{output}");
    let output = world.run(world.broker(&["clean", BASTION, "--batch"])).success();
    assert_eq!(output.stdout(), format!("removed {name}\n"));
    assert!(!PathBuf::from(&name).exists());
    let output = world.run(world.broker(&["clean", BASTION, "--batch"])).success();
    assert!(output.stderr().contains("nothing of any broker is on"), "{output}");

    // Where another user has our name, one of a random name is ours, and the same every time.
    let in_tmp = format!("/tmp/broker-{uid}");
    let made = run_within(world.as_user(&other, "mkdir", &[&name, &in_tmp]), &[], PATIENCE);
    let _theirs = made.success();
    let mut before = None;
    for _ in 0..3 {
        let tunnel = world.tunnel(&["-p", "dev"]);
        let directory = tunnel.directory();
        let parent = directory.parent().unwrap().to_owned();
        assert!(parent.to_str().unwrap().starts_with(&format!("{name}.")), "{}", parent.display());
        assert!(before.as_ref().is_none_or(|before| *before == parent), "{before:?} {}", parent.display());
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        eventually("it is empty", PATIENCE, || match std::fs::read_dir(&parent).unwrap().count() {
            0 => Ok(()),
            n => Err(format!("{n} entries")),
        });
        assert_eq!(thief(&world, parent.to_str().unwrap()), "");
        before = Some(parent);
    }
    std::fs::remove_dir(&name).unwrap();
    std::fs::remove_dir(&in_tmp).unwrap();
    world.assert_clean();
}

#[test]
fn where_there_is_a_runtime_directory_nothing_at_all_stays() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let user = world.sshd.user().clone();
    let run = PathBuf::from(format!("/run/user/{}", user.uid));
    std::fs::create_dir_all(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(user.uid), Some(user.gid)).unwrap();
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert!(tunnel.directory().starts_with(&run), "{}", tunnel.directory().display());
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    eventually("it is empty", PATIENCE, || match std::fs::read_dir(&run).unwrap().count() {
        0 => Ok(()),
        n => Err(format!("{n} entries")),
    });
    assert!(!PathBuf::from(format!("/dev/shm/broker-{}", user.uid)).exists());
    std::fs::remove_dir(run).unwrap();
    world.assert_clean();
}
