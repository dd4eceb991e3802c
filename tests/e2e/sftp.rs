//! Accounts where no command runs: files over SFTP, for programs that run there without a login.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sandbox::{
    home::{Output, Stream},
    sshd::SshdOptions,
    users::User,
};

use crate::support::{ENDS, PATIENCE, Tunnel, World, sdk};

const ARN: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                   print(boto3.Session(profile_name=p).client('sts').get_caller_identity()['Arn'])";

/// A host where this user may only use SFTP.
fn sftp_only(user: User) -> World {
    World::with(SshdOptions::new(user).config("ForceCommand internal-sftp"))
}

fn user() -> User {
    User::ensure("broker-sftp", "/bin/bash")
}

/// What boto3 gets there, by default and under the names of both profiles.
fn assert_roles(world: &mut World, environment: &[(&str, String)]) {
    for (profile, role) in [(None, "Developer"), (Some("dev"), "Developer"), (Some("audit"), "Auditor")] {
        let mut python = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
        python.args(profile).envs(environment.iter().cloned());
        let output = world.run(python);
        assert_eq!(output.stdout().trim(), World::arn(role), "{profile:?}: {output}");
    }
}

fn environment(tunnel: &Tunnel) -> Vec<(&str, String)> {
    tunnel.environment.iter().map(|(name, value)| (name.as_str(), value.clone())).collect()
}

/// Everything is private, and secrets are in the files that are for them only.
fn assert_private(world: &World, directory: &Path) {
    let secrets = world.aws.secrets();
    assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut roles = 0;
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let (name, metadata) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600, "{name}");
        assert_eq!(metadata.uid(), world.sshd.user().uid, "{name}");
        let text = fs::read_to_string(entry.path()).unwrap();
        let holds = secrets.iter().filter(|secret| text.contains(*secret)).count();
        let is_role = name.starts_with("role-");
        // A secret key and a session token, and nothing of the SSO session.
        assert_eq!(holds, if is_role { 2 } else { 0 }, "{name}");
        roles += usize::from(is_role);
    }
    assert_eq!(roles, 2);
}

/// Stops a tunnel that cleans up after itself.
fn stop(tunnel: Tunnel, world: &mut World) {
    let output = tunnel.stop(world);
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
}

/// Mounts an empty file system of the test's own.
fn mount(directory: &Path, options: &str) {
    fs::create_dir_all(directory).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(directory).status();
    assert!(mounted.unwrap().success());
}

/// An account that is shut in a directory, which shows its home, `size` large, as `/files`.
fn chroot(user: &User, size: &str) -> World {
    let (root, inside) = (Path::new("/run/chroot"), Path::new("/run/chroot/files"));
    mount(&user.home, &format!("size={size},mode=755,uid={},gid={}", user.uid, user.gid));
    fs::create_dir_all(inside).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(Command::new("mount").arg("--bind").args([&user.home, inside]).status().unwrap().success());
    let options = SshdOptions::new(user.clone())
        .config("ChrootDirectory /run/chroot")
        .config("ForceCommand internal-sftp -d /files");
    World::with(options)
}

#[test]
fn boto3_has_the_roles_where_only_sftp_is_allowed() {
    if sandbox::isolated!() {
        return;
    }
    for transport in ["auto", "file"] {
        let mut world = sftp_only(user());
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", transport]);
        let said = tunnel.process.text(Stream::Stderr);
        assert!(
            said.contains("no command runs on bastion (")
                && said.contains("role credentials are kept in files there"),
            "{said}"
        );
        assert!(said.contains("until they expire"), "{said}");
        assert!(tunnel.directory().starts_with("/dev/shm"), "{said}");
        assert_private(&world, &tunnel.directory());
        assert_roles(&mut world, &environment(&tunnel));
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        assert!(output.stderr().contains("no credentials were left there"), "{output}");
        world.assert_clean();
    }
}

#[test]
fn boto3_has_the_roles_where_the_login_shell_refuses() {
    if sandbox::isolated!() {
        return;
    }
    let user = User::ensure("broker-nologin", "/usr/sbin/nologin");
    let mut world = World::with(SshdOptions::new(user));
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    assert_roles(&mut world, &environment(&tunnel));
    stop(tunnel, &mut world);
    world.assert_clean();
}

#[test]
fn a_shut_in_account_keeps_its_files_in_its_home_and_is_told_by_which_path() {
    if sandbox::isolated!() {
        return;
    }
    let user = user();
    let mut world = chroot(&user, "1m");
    let arguments = ["-p", "dev", "-p", "audit", "-N", "--print-env", "sh"];
    let mut process = world.laptop.spawn(world.connect(&arguments));
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    let said = process.text(Stream::Stderr);
    assert!(said.contains("the credentials lie in `/files/.cache/broker-"), "{said}");
    let config =
        said.split("AWS_CONFIG_FILE=\"$HOME/").nth(1).and_then(|rest| rest.split('"').next()).expect(&said);
    let config = user.home.join(config);
    let directory = config.parent().unwrap().to_owned();
    assert_private(&world, &directory);
    let environment = [
        ("AWS_CONFIG_FILE", config.display().to_string()),
        ("AWS_SHARED_CREDENTIALS_FILE", directory.join("credentials").display().to_string()),
    ];
    assert_roles(&mut world, &environment);
    process.signal(nix::sys::signal::Signal::SIGINT);
    let output = process.wait(ENDS);
    world.heard("broker connect -N", &output);
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    assert_eq!(fs::read_dir(&user.home).unwrap().count(), 0, "not even the directories that we made");
    world.assert_clean();
}

#[test]
fn a_disk_that_fills_up_keeps_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let user = user();
    let mut world = chroot(&user, "16k");
    let output = world.run(world.connect(&["-p", "dev", "-p", "audit", "-N"]));
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr().contains("could not put our files on bastion"), "{output}");
    assert!(output.stderr().contains("quota"), "{output}");
    assert_eq!(output.stdout(), "");
    assert_eq!(fs::read_dir(&user.home).unwrap().count(), 0);
    world.assert_clean();
}

#[test]
fn a_shell_a_command_or_a_certain_port_are_refused_with_the_reason() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    let refused = |output: &Output, code, reason: &str| {
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr().contains(reason) && output.stderr().contains("hint"), "{output}");
        assert_eq!(output.stdout(), "");
    };
    let no_command = "no command runs on bastion";
    refused(&world.run(world.connect(&["-p", "dev", "--", "true"])), 255, no_command);
    refused(&world.run(world.connect(&["-p", "dev"])), 255, no_command);
    refused(&world.run(world.connect(&["-p", "dev", "-N", "-R", "4144"])), 6, "did not run our helper");
    refused(
        &world.run(world.connect(&["-p", "dev", "-N", "--transport", "unix"])),
        6,
        "did not run our helper",
    );
    world.assert_clean();
}

#[test]
fn without_sftp_there_is_one_clear_error() {
    if sandbox::isolated!() {
        return;
    }
    let user = User::ensure("broker-nologin", "/usr/sbin/nologin");
    for (subsystem, reason) in [
        // sshd knows no subsystem of that name.
        ("other internal-sftp", "SFTP is no way there either"),
        // It is a program, which the login shell does not start.
        ("sftp /usr/lib/openssh/sftp-server", "This account is currently not available"),
    ] {
        let options = SshdOptions::new(user.clone()).config(format!("Subsystem {subsystem}"));
        let mut world = World::with(options);
        let output = world.run(world.connect(&["-p", "dev", "-N"]));
        assert_eq!(output.code, Some(6), "{output}");
        assert!(output.stderr().contains(reason) && output.stderr().contains("Subsystem sftp"), "{output}");
        assert_eq!(output.stdout(), "");
        world.assert_clean();
    }
}

#[test]
fn files_are_renewed_ahead_of_their_end() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    world.aws.set_role_life(Duration::from_secs(20));
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let files = ["role-dev.json", "role-audit.json"].map(|name| tunnel.directory().join(name));
    let key_ids = || {
        files.each_ref().map(|file| {
            let text = fs::read_to_string(file).unwrap();
            // Whole at any time.
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            value["AccessKeyId"].as_str().unwrap().to_owned()
        })
    };
    let first = key_ids();
    let until = Instant::now() + PATIENCE;
    while key_ids().iter().zip(&first).any(|(now, first)| now == first) {
        assert!(Instant::now() < until, "nothing was renewed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_private(&world, &tunnel.directory());
    assert_roles(&mut world, &environment(&tunnel));
    stop(tunnel, &mut world);
    world.assert_clean();
}

#[test]
fn what_a_broken_connection_leaves_is_told_and_goes_with_the_next_one() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--reconnect-for", "0"]);
    let directory = tunnel.directory();
    assert_eq!(world.sshd.kill_connections(), 1);
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("could not be removed: they end at "), "{output}");
    assert_private(&world, &directory);
    // What a call that was cut in the middle left.
    fs::write(directory.join(".new"), "half").unwrap();

    // Another tunnel from here takes the same place, and empties it.
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(tunnel.directory(), directory);
    let names =
        |directory: &PathBuf| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names(&directory).all(|name| name != "role-audit.json" && name != ".new"));
    // One beside it does not.
    let beside = world.tunnel(&["-p", "audit"]);
    assert_ne!(beside.directory(), directory);
    stop(beside, &mut world);
    assert!(directory.join("role-dev.json").exists());
    stop(tunnel, &mut world);
    world.assert_clean();
}

#[test]
fn another_user_who_took_our_place_gets_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let user = user();
    let mut world = sftp_only(user.clone());
    let taken = PathBuf::from(format!("/dev/shm/broker-{}", user.uid));
    let other = User::other();
    fs::create_dir(&taken).unwrap();
    fs::set_permissions(&taken, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(&taken, Some(other.uid), Some(other.gid)).unwrap();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    assert!(!tunnel.directory().starts_with("/dev/shm"), "{}", tunnel.directory().display());
    assert_private(&world, &tunnel.directory());
    stop(tunnel, &mut world);
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 0);
    fs::remove_dir(&taken).unwrap();
    world.assert_clean();
}

#[test]
fn a_slow_login_shell_is_not_taken_for_none() {
    if sandbox::isolated!() {
        return;
    }
    let user = user();
    mount(&user.home, &format!("size=1m,mode=755,uid={},gid={}", user.uid, user.gid));
    // bash reads this for the commands of sshd too. The first command is the helper, which is slower than the others.
    fs::write(user.home.join(".bashrc"), "if mkdir ~/first 2>/dev/null; then sleep 4; fi\n").unwrap();
    for sessions in ["10", "1"] {
        let options = SshdOptions::new(user.clone()).config(format!("MaxSessions {sessions}"));
        let mut world = World::with(options);
        let tunnel = world.tunnel(&["-p", "dev"]);
        assert!(tunnel.environment.contains_key("AWS_CONTAINER_CREDENTIALS_FULL_URI"), "{}", tunnel.exports);
        fs::remove_dir(user.home.join("first")).unwrap();
        stop(tunnel, &mut world);
        world.assert_clean();
    }
}

#[test]
fn a_broker_that_is_killed_leaves_only_what_the_next_one_removes() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let directory = tunnel.directory();
    tunnel.process.signal(nix::sys::signal::Signal::SIGKILL);
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_private(&world, &directory);
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(tunnel.directory(), directory);
    assert!(!directory.join("role-audit.json").exists());
    stop(tunnel, &mut world);
    world.assert_clean();
}

#[test]
fn what_replaced_our_directory_is_not_followed() {
    if sandbox::isolated!() {
        return;
    }
    let user = user();
    let mut world = sftp_only(user.clone());
    let elsewhere = PathBuf::from("/dev/shm/elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    // As another user's link to a directory of ours.
    std::os::unix::fs::chown(&elsewhere, Some(user.uid), Some(user.gid)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, format!("/dev/shm/broker-{}", user.uid)).unwrap();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    assert!(!tunnel.directory().starts_with("/dev/shm"), "{}", tunnel.directory().display());
    stop(tunnel, &mut world);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    fs::remove_file(format!("/dev/shm/broker-{}", user.uid)).unwrap();
    world.assert_clean();
}

#[test]
fn a_lost_connection_is_replaced_and_the_files_are_where_they_were() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    let directory = tunnel.directory();
    for _ in 0..2 {
        assert_eq!(world.sshd.kill_connections(), 1);
        let said = tunnel.process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
        assert!(said.contains("in files as before"), "{said}");
        assert_private(&world, &directory);
        assert_roles(&mut world, &environment(&tunnel));
    }
    // Lost for good and stopped meanwhile, it is told what stays.
    world.sshd.configure(&["PubkeyAuthentication no".to_owned()]);
    world.sshd.kill_connections();
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("could not be removed: they end at "), "{output}");
}

#[test]
fn a_host_that_froze_does_not_hold_a_stop_for_more_than_two_seconds() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = sftp_only(user());
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    world.sshd.stop_connections();
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("could not be removed: they end at "), "{output}");
    world.sshd.cont_connections();
    world.sshd.kill_connections();
    stop(world.tunnel(&["-p", "dev"]), &mut world);
    world.assert_clean();
}

#[test]
fn an_sftp_server_that_dies_alone_ends_the_tunnel_in_words() {
    if sandbox::isolated!() {
        return;
    }
    // A process of its own, unlike internal-sftp.
    let options = SshdOptions::new(user())
        .config("Subsystem sftp /usr/lib/openssh/sftp-server")
        .config("ForceCommand /usr/lib/openssh/sftp-server");
    let mut world = World::with(options);
    let mut tunnel = world.tunnel(&["-p", "dev", "--reconnect-for", "0"]);
    let servers =
        Command::new("pgrep").args(["-u", &world.sshd.user().name, "-x", "sftp-server"]).output().unwrap();
    for pid in String::from_utf8(servers.stdout).unwrap().lines() {
        let pid: i32 = pid.parse().unwrap();
        // Processes of other tests of this user are in other networks.
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        if network(&pid.to_string()) == network("self") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
    }
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("the SFTP session on bastion ended"), "{output}");
    assert!(output.stderr().contains("could not be removed: they end at "), "{output}");
    stop(world.tunnel(&["-p", "dev"]), &mut world);
    world.assert_clean();
}

#[test]
fn a_slow_line_is_enough_to_clean_up_in_time() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::new(user()).config("ForceCommand internal-sftp").relay());
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit"]);
    // What a program that still reads a file leaves on a network file system.
    fs::write(tunnel.directory().join(".nfs0001"), "").unwrap();
    std::os::unix::fs::chown(tunnel.directory().join(".nfs0001"), Some(world.sshd.user().uid), None).unwrap();
    world.sshd.delay_network(Duration::from_millis(70));
    stop(tunnel, &mut world);
    world.assert_clean();
}
