//! What an `ssh` user types and configures, on the real thing.

use sandbox::home::Output;

use crate::support::{BASTION, World};

fn prepend(world: &World, lines: &str) {
    let config = lines.to_owned() + &world.laptop.read(".ssh/config");
    world.laptop.write(".ssh/config", config, 0o600);
}

/// Runs a command there with these options in front of it.
fn there(world: &mut World, options: &[&str], command: &str) -> Output {
    let mut arguments = vec!["-p", "dev"];
    arguments.extend_from_slice(options);
    arguments.extend_from_slice(&["--", command]);
    world.run(world.connect(&arguments))
}

#[test]
fn ssh_config_prints_what_ssh_would_and_connects_to_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    prepend(&world, "Host bastion\n  ProxyJump a@hop:2222\n  Frobnicate yes\n  SetEnv A=b\n");
    let ours =
        world.run(world.broker(&["ssh-config", BASTION, "-o", "ConnectTimeout=1m", "-l", "typed"])).success();
    assert!(ours.stderr().contains(".ssh/config:3: `frobnicate` is unknown and ignored"), "{ours}");
    let mut ssh = world.laptop.ssh();
    // It refuses what it does not know.
    ssh.args(["-G", "-o", "IgnoreUnknown=frobnicate", "-o", "ConnectTimeout=1m", "-l", "typed", BASTION]);
    let theirs = world.run(ssh).success().stdout();
    let (ours, mut same) = (ours.stdout(), 0);
    for line in theirs.lines() {
        let keyword = line.split(' ').next().unwrap();
        let checked = [
            "hostname",
            "user",
            "port",
            "identityfile",
            "identitiesonly",
            "userknownhostsfile",
            "proxyjump",
            "connecttimeout",
            "setenv",
            "tcpkeepalive",
        ];
        if checked.contains(&keyword) {
            assert!(ours.lines().any(|our| our == line), "`{line}` is not in\n{ours}");
            same += 1;
        }
    }
    assert_eq!(same, 10);
    let refused = world.run(world.broker(&["ssh-config", "-o", "Port=x", BASTION]));
    assert_eq!(refused.code, Some(2), "{refused}");
    assert_eq!(world.sshd.knocks(), 0);
    world.assert_clean();
}

#[test]
fn the_session_is_what_ssh_config_says_until_something_else_is_typed() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    prepend(
        &world,
        "Host bastion\n  RemoteCommand test -t 0 && echo tty; echo %n $LC_SET $LC_SENT\n  SetEnv LC_SET=set REFUSED=x\n  \
         SendEnv LC_SENT\n",
    );
    let connect = |world: &World, options: &[&str]| {
        let mut arguments = vec!["-p", "dev"];
        arguments.extend_from_slice(options);
        let mut command = world.connect(&arguments);
        command.env("LC_SENT", "sent");
        command
    };
    let output = world.run(connect(&world, &[])).success();
    assert_eq!(output.stdout(), "bastion set sent\n", "{output}");
    for (options, tty) in [
        (&["-o", "RequestTTY=force"][..], true),
        (&["-o", "RequestTTY=yes"], false),
        (&["-t"], true),
        (&["-T", "-o", "RequestTTY=force"], false),
    ] {
        let output = world.run(connect(&world, options)).success();
        assert_eq!(output.stdout().contains("tty"), tty, "{options:?}: {output}");
    }
    let output = world.run(connect(&world, &["--", "echo typed"])).success();
    assert_eq!(output.stdout(), "typed\n");
    world.assert_clean();
}

#[test]
fn what_an_ssh_user_types_is_understood() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let user = world.sshd.user().name.clone();
    for (options, command, code, said) in [
        (&["-T"][..], "test -t 0", 1, ""),
        (&["-t"], "test -t 0", 0, ""),
        (&["-4"], "true", 0, ""),
        (&["-6"], "true", 255, "no IPv6 address"),
        (&["-l", "nobody-of-this-name"], "true", 255, "as `nobody-of-this-name`"),
        (&["-l", &user], "true", 0, ""),
        (&["-P", "1"], "true", 255, "connection refused"),
        (&["-o", "HostName=127.0.0.2", "-o", "ConnectTimeout=1"], "true", 255, "127.0.0.2"),
        (&["-o", "BindAddress=127.0.0.9"], "case $SSH_CONNECTION in 127.0.0.9*) ;; *) false;; esac", 0, ""),
        (&["-F", "none"], "true", 255, "bastion"),
        (&["-F", "/nowhere"], "true", 255, "/nowhere"),
        (
            &["-i", "/nowhere", "-o", "IdentitiesOnly=yes", "-F", "none", "-o", "HostName=127.0.0.1"],
            "true",
            255,
            "",
        ),
        (&["-v"], "true", 0, "logged in"),
    ] {
        let output = there(&mut world, options, command);
        assert_eq!(output.code, Some(code), "{options:?}: {output}");
        assert!(output.stderr().contains(said), "{options:?}: {output}");
    }
    let output = there(&mut world, &["-q"], "true").success();
    assert_eq!(output.stderr(), "");
    world.assert_clean();
}

#[test]
fn what_is_not_done_is_named_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    prepend(
        &world,
        "Host bastion\n  LocalForward 8080 web:80\n  LocalForward 8081 web:81\n  RemoteForward 1 web:1\n  DynamicForward 1080\nMatch final\n",
    );
    let output = there(&mut world, &[], "true").success();
    for keyword in ["LocalForward", "RemoteForward", "DynamicForward"] {
        assert_eq!(output.stderr().matches(&format!("`{keyword}` is ignored")).count(), 1, "{output}");
    }
    world.assert_clean();
}

#[cfg(not(feature = "gssapi"))]
#[test]
fn a_ticket_that_would_open_the_door_is_missed_when_nothing_else_does() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(sandbox::sshd::SshdOptions::default().config("GSSAPIAuthentication yes"));
    let text = "this broker was built without it";
    let wanted = ["-o", "GSSAPIAuthentication=yes"];
    let output = there(&mut world, &wanted, "true").success();
    assert_eq!(output.stderr().matches(text).count(), 1, "{output}");
    let nothing = ["-o", "PubkeyAuthentication=no", "-F", "none", "-o", "HostName=127.0.0.1", "-o"];
    let port = format!("Port={}", world.sshd.port());
    let accepted = ["-o", "StrictHostKeyChecking=accept-new"];
    let output = there(&mut world, &[&nothing[..], &[&port], &accepted, &wanted].concat(), "true");
    assert_eq!(output.code, Some(255), "{output}");
    let words = "tried gssapi-with-mic not (this broker was built without it, `--features gssapi`)";
    assert!(output.stderr().contains(words), "{output}");

    world.sshd.configure(&["GSSAPIAuthentication yes", "PubkeyAuthentication no"].map(str::to_owned));
    let output = there(&mut world, &["-o", "GSSAPIAuthentication=no"], "true");
    let words =
        "takes Kerberos tickets alone: `kinit`, and `-o GSSAPIAuthentication=yes` and a broker built with";
    assert!(output.stderr().contains(words), "{output}");
    world.assert_clean();
}
