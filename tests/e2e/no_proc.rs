//! Hosts without `/proc`, as macOS and the BSDs are: what is refused there, what works there, and that it goes away.
//!
//! The programs are Linux's; what these systems' own say differently is in the helper's tests as text.

use sandbox::{
    home::{Output, Process, Stream},
    node::Node,
    users::User,
};

use crate::{
    nodes::NODE,
    support::{ENDS, PATIENCE, World, eventually, offers, program, sdk},
};

const BOTO3: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                     print(boto3.Session(profile_name=p).get_credentials().get_frozen_credentials().access_key)";

/// Takes `/proc` from a host, which calls itself by another system's name from now on.
pub fn without_proc(node: &Node) {
    let script = "set -e; printf '#!/bin/sh\\ncase $1 in -s) echo Darwin;; -n) echo mac;; *) echo Darwin mac;; esac\\n' \
                  > /run/uname; chmod 755 /run/uname; mount --bind /run/uname /usr/bin/uname; mount -t tmpfs none /proc";
    let output = sandbox::home::run_within(
        node.command(&User::find("root").unwrap(), "sh", &["-c", script]),
        &[],
        PATIENCE,
    );
    assert_eq!(output.code, Some(0), "{output}");
}

impl World {
    fn mac(&mut self, arguments: &[&str]) -> Process {
        let mut all = vec!["connect", NODE, "--batch", "-N", "--print-env", "sh", "-p", "dev", "-p", "audit"];
        all.extend_from_slice(arguments);
        self.laptop.spawn(self.broker(&all))
    }

    /// Runs boto3 on the host, in the environment that the tunnel printed.
    fn key_on(&mut self, node: &Node, exports: &str, profile: &str) -> Output {
        let script = format!("eval \"$EXPORTS\"; exec \"$0\" -c '{BOTO3}' {profile}");
        let python = sdk("python/bin/python");
        let mut command = node.command(self.sshd.user(), "sh", &["-c", &script, python.to_str().unwrap()]);
        command.env("EXPORTS", exports);
        self.run(command)
    }

    fn wait_until_nothing_is_on(&mut self, node: &Node) {
        let user = self.sshd.user().clone();
        let name = format!("broker-{}*", user.uid);
        let home = user.home.to_str().unwrap().to_owned();
        let places = [
            &home, "/dev/shm", "/tmp", "/run", "-name", &*name, "-not", "-path", "*/home-*", "-not", "-empty",
        ];
        eventually("the host is clean", PATIENCE, || {
            let found = self.laptop.run(node.command(&user, "find", &places)).stdout();
            if found.is_empty() { Ok(()) } else { Err(found) }
        });
    }
}

#[test]
fn a_host_without_proc_is_served_in_every_way_that_can_be_checked() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let mut world = World::fresh_home();
    let node = Node::start(NODE);
    without_proc(&node);
    let sshd = world.login_node(&node);

    // A port whose callers cannot be told apart is opened for nobody who did not say so.
    let mut process = world.mac(&["--transport", "tcp"]);
    let output = process.wait(PATIENCE);
    assert_eq!((output.code, output.stdout()), (Some(6), String::new()), "{output}");
    for part in ["Darwin", "does not show who owns a connection", "hint", "`--trust-host-users`"] {
        assert!(output.stderr().contains(part), "{part}: {output}");
    }
    world.heard("refused", &output);
    world.wait_until_nothing_is_on(&node);

    let instead = match offers("unix") {
        true => "served through a unix socket instead",
        false => "role credentials are kept in files there instead",
    };
    for (flags, says) in [
        (&["--transport", "auto"][..], instead),
        (&["--transport", "unix"], ""),
        (&["--transport", "file"], ""),
        (&["--transport", "tcp", "--trust-host-users"], "(--trust-host-users)"),
        (&["--transport", "auto", "--trust-host-users", "--install-profiles"], "(--trust-host-users)"),
    ] {
        if !offers(flags[1]) {
            continue;
        }
        let mut process = world.mac(flags);
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
        let exports = process.text(Stream::Stdout);
        assert!(process.text(Stream::Stderr).contains(says), "{flags:?}: {}", process.text(Stream::Stderr));
        for profile in ["", "dev", "audit"] {
            let output = world.key_on(&node, &exports, profile);
            assert!(output.stdout().starts_with("ASIA"), "{flags:?} {profile}: {output}");
        }
        if flags.contains(&"--install-profiles") {
            let output = world.key_on(&node, "", "audit");
            assert!(output.stdout().starts_with("ASIA"), "{flags:?}: {output}");
        }
        process.signal(nix::sys::signal::Signal::SIGINT);
        let output = process.wait(ENDS);
        assert_eq!(output.code, Some(130), "{flags:?}: {output}");
        assert!(output.stderr().contains("no credentials were left there"), "{flags:?}: {output}");
        world.heard("a tunnel", &output);
        world.wait_until_nothing_is_on(&node);
        assert!(!world.home_file(".aws").exists(), "{flags:?}");

        // The dead-man switch needs no `/proc` either.
        let mut process = world.mac(flags);
        process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
        process.signal(nix::sys::signal::Signal::SIGKILL);
        let output = process.wait(PATIENCE);
        world.heard("a killed broker", &output);
        world.wait_until_nothing_is_on(&node);
    }

    let clean = world.broker(&["clean", NODE, "--batch"]);
    drop(world.run(clean).success());
    let doctor = world.broker(&["doctor", NODE, "--batch"]);
    let output = world.run(doctor);
    assert!(output.stdout().contains("does not show who owns a connection"), "{output}");
    drop(sshd);
    world.assert_clean();
}
