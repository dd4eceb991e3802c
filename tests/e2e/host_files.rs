//! What lies on the host beside our own directory, what is left there, and how it goes away again.

use std::{
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
};

use sandbox::{home::Output, sshd::SshdOptions};

use crate::support::{BASTION, PATIENCE, Tunnel, World, sdk};

const ARN: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                   print(boto3.Session(profile_name=p).client('sts').get_caller_identity()['Arn'])";

/// What the user of the host has in `~/.aws/config` beforehand: odd bytes, and no newline at the end.
const THEIRS: &[u8] = b"# \xc3\xa4 comment\r\n[profile mine]\r\nregion = us-east-1";

impl World {
    /// A process of the host's user that no shell of ours started: a kernel, a cron job.
    fn kernel(&self, profile: Option<&str>) -> Command {
        let mut python = self.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
        python.args(profile).env("AWS_DEFAULT_REGION", "eu-west-1").env("AWS_EC2_METADATA_DISABLED", "true");
        python
    }

    #[track_caller]
    fn role(&mut self, profile: Option<&str>) -> String {
        let kernel = self.kernel(profile);
        let output = self.run(kernel);
        assert_eq!(output.code, Some(0), "{profile:?}: {output}");
        output.stdout().trim().to_owned()
    }

    /// Ends broker in a way that it cannot see, and waits until what lay in its directory is gone.
    fn kill(&mut self, mut tunnel: Tunnel) {
        tunnel.process.signal(nix::sys::signal::Signal::SIGKILL);
        let output = tunnel.process.wait(PATIENCE);
        self.heard("a killed broker", &output);
        self.until_gone();
    }

    fn until_gone(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.left_on_host().is_empty() {
            assert!(std::time::Instant::now() < deadline, "left on the host: {:?}", self.left_on_host());
            std::thread::yield_now();
        }
    }

    fn clean(&mut self, arguments: &[&str]) -> Output {
        let mut all = vec!["clean", BASTION, "--batch"];
        all.extend_from_slice(arguments);
        let command = self.broker(&all);
        self.run(command)
    }
}

#[test]
fn processes_that_no_shell_of_ours_starts_find_every_profile_in_every_transport() {
    if sandbox::isolated!() {
        return;
    }
    for (transport, forwards) in [("auto", ""), ("tcp", ""), ("file", "DisableForwarding yes")] {
        let mut options = SshdOptions::default();
        if !forwards.is_empty() {
            options = options.config(forwards);
        }
        let mut world = World::with_fresh_home(options);
        let config = world.plant(".aws/config", THEIRS, 0o640);
        let flags = ["-p", "dev", "-p", "audit", "--transport", transport, "--install-profiles"];
        for run in ["first", "second"] {
            let tunnel = world.tunnel(&flags);
            let (dev, audit) = (World::arn("Developer"), World::arn("Auditor"));
            assert_eq!(world.role(None), dev, "{transport}, {run} run");
            assert_eq!(world.role(Some("dev")), dev, "{transport}, {run} run");
            assert_eq!(world.role(Some("audit")), audit, "{transport}, {run} run");
            assert!(std::fs::read(&config).unwrap().starts_with(THEIRS), "{transport}");
            let output = tunnel.stop(&mut world);
            assert!(!output.stderr().contains("warning"), "{output}");
            assert_eq!(std::fs::read(&config).unwrap(), THEIRS, "{transport}: byte for byte");
            let metadata = config.metadata().unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        }
        world.assert_clean();
    }
}

#[test]
fn after_a_crash_the_profiles_fail_with_a_sentence_and_the_next_run_replaces_them() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let config = world.home_file(".aws/config");
    let flags = ["-p", "dev", "--transport", "unix", "--install-profiles"];
    let tunnel = world.tunnel(&flags);
    assert_eq!(world.role(Some("dev")), World::arn("Developer"));
    world.kill(tunnel);
    let left = std::fs::read_to_string(&config).unwrap();
    assert!(left.contains("[profile dev]") && left.contains("[default]"), "{left}");
    for profile in [None, Some("dev")] {
        let kernel = world.kernel(profile);
        let output = world.run(kernel);
        assert_ne!(output.code, Some(0), "{output}");
        assert!(output.stderr().contains("run broker connect"), "{output}");
    }
    // The directory's name is another one each time, so this is another block.
    let tunnel = world.tunnel(&flags);
    assert_eq!(world.role(Some("dev")), World::arn("Developer"));
    assert_eq!(std::fs::read_to_string(&config).unwrap().matches("# >>> broker").count(), 1);
    world.kill(tunnel);

    let output = world.clean(&[]).success();
    assert!(output.stdout().contains("removed the block"), "{output}");
    assert!(!config.exists(), "neither it nor its directory was there before");
    assert!(!world.home_file(".aws").exists());
    world.assert_clean();
}

#[test]
fn profiles_that_the_user_has_are_left_to_them_and_named() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let theirs = b"[default]\nregion = us-east-1\n[profile dev]\nregion = us-west-2\n";
    let config = world.plant(".aws/config", theirs, 0o600);
    let keys = "[audit]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = x\n";
    let credentials = world.plant(".aws/credentials", keys, 0o600);
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--install-profiles"]);
    assert_eq!(std::fs::read(&config).unwrap(), theirs);
    let output = tunnel.stop(&mut world);
    for part in ["has a `[default]` of its own", "has a `[profile dev]` of its own", "has a `[audit]`"] {
        assert!(output.stderr().contains(part), "{output}");
    }
    assert_eq!(std::fs::read(&config).unwrap(), theirs);
    assert_eq!(std::fs::read_to_string(&credentials).unwrap(), keys);
    world.assert_clean();
}

#[test]
fn clean_removes_what_is_dead_and_leaves_a_running_broker_alone() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let config = world.plant(".aws/config", THEIRS, 0o600);
    let uid = world.sshd.user().uid;
    let old = world.plant(&format!(".cache/broker-{uid}-elsewhere-0badf00d/1/token-dev"), "x", 0o600);
    let tunnel = world.tunnel(&["-p", "dev", "--install-profiles"]);
    let dead = tunnel.directory().parent().unwrap().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let directory = tunnel.directory().display().to_string();

    let output = world.clean(&[]).success();
    assert_eq!(output.stdout(), format!("removed {}\n", dead.display()), "{output}");
    assert!(output.stderr().contains(&format!("`{directory}` is in use by a running broker")), "{output}");
    assert!(output.stderr().contains("belongs to a running broker"), "{output}");
    assert!(output.stderr().contains("elsewhere") && old.exists(), "{output}");
    assert_eq!(world.role(Some("dev")), World::arn("Developer"), "the running one goes on");

    let output = world.clean(&["--force"]).success();
    assert!(output.stdout().contains(&format!("removed {directory}\n")), "{output}");
    assert!(!old.exists() && !tunnel.directory().exists());
    assert_eq!(std::fs::read(&config).unwrap(), THEIRS);
    let output = world.clean(&[]).success();
    assert_eq!(output.stdout(), "");
    assert!(output.stderr().contains("nothing of any broker"), "{output}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    assert_eq!(std::fs::read(&config).unwrap(), THEIRS);
    world.assert_clean();
}

/// A JWT-like token as the copy procedure leaves it on a host.
const COPIED_CACHE: &str =
    r#"{"startUrl": "x", "accessToken": "copied-canary", "refreshToken": "copied-canary-2"}"#;

#[test]
fn what_the_old_procedures_left_does_no_harm_in_our_shells_and_is_named() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant(".aws/sso/cache/0badf00d.json", COPIED_CACHE, 0o600);
    let keys = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = x\n";
    world.plant(".aws/credentials", keys, 0o600);
    world.plant(".bash_profile", "echo Welcome; export AWS_PROFILE=corp-sso\n", 0o644);
    let show =
        format!("echo profile=$AWS_PROFILE; {} -c \"{ARN}\"; exit\n", sdk("python/bin/python").display());

    let arguments = ["-p", "dev", "-p", "audit", "-T"];
    let mut shell = world.laptop.spawn(world.connect(&arguments));
    shell.send(&show);
    let output = shell.wait(PATIENCE);
    world.heard("a shell", &output);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout().contains("profile=corp-sso"), "{output}");
    assert!(output.stdout().contains(&World::arn("Developer")), "{output}");
    let warning = format!("`ssh {BASTION} 'rm ~/.aws/sso/cache/0badf00d.json'`");
    assert!(output.stderr().contains(&warning), "{output}");
    assert!(!output.stderr().contains("AWS_PROFILE"), "it does no harm: {output}");

    // With the host's own configuration in force, the same things are in the way, and named.
    let arguments = ["-p", "dev", "-T", "--remote-config", "keep"];
    let mut shell = world.laptop.spawn(world.connect(&arguments));
    shell.send("echo config=$AWS_CONFIG_FILE.; exit\n");
    let output = shell.wait(PATIENCE);
    world.heard("a shell", &output);
    assert!(output.stdout().contains("config=."), "{output}");
    for part in ["exports `AWS_PROFILE=corp-sso`", "`~/.aws/credentials` of bastion has `aws_access_key_id`"]
    {
        assert!(output.stderr().contains(part), "{output}");
    }
    assert_eq!(std::fs::read_to_string(world.home_file(".aws/credentials")).unwrap(), keys);
    world.assert_clean();
}

impl World {
    /// What `broker doctor` finds wrong, as `name: message; fix`, and its exit code.
    fn doctor(&mut self, arguments: &[&str]) -> (Vec<String>, Option<i32>) {
        let mut all = vec!["doctor", "--json", "--batch"];
        all.extend_from_slice(arguments);
        let command = self.broker(&all);
        let output = self.run(command);
        let checks: Vec<serde_json::Value> =
            output.stdout().lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert!(checks.len() > 1 || output.code == Some(1), "{output}");
        let wrong = checks.iter().filter(|check| check["level"] != "ok").map(|check| {
            let fix = check["fix"].as_str().unwrap_or_else(|| panic!("no fix: {check}"));
            format!("{}: {}; {fix}", check["name"].as_str().unwrap(), check["message"].as_str().unwrap())
        });
        (wrong.collect(), output.code)
    }

    /// Everything below the places where we leave something, with its times.
    fn snapshot(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let mut found = Vec::new();
        let mut directories = vec![self.sshd.user().home.clone(), "/dev/shm".into(), "/run/user".into()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    directories.push(entry.path());
                } else {
                    found.push((entry.path(), metadata.modified().unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn doctor_finds_nothing_wrong_with_a_good_host_and_changes_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant(".aws/config", "[default]\nregion = x\n[profile a]\nsso_session = s\n", 0o600);
    // It needs no login to AWS.
    std::fs::remove_dir_all(world.laptop.join(".aws")).unwrap();
    let before = world.snapshot();
    assert_eq!(world.doctor(&[BASTION]), (vec![], Some(0)));
    assert_eq!(world.snapshot(), before);
    let command = world.broker(&["doctor", BASTION, "--batch"]);
    let output = world.run(command).success();
    assert!(output.stdout().lines().all(|line| line.starts_with("ok ")), "{output}");
    world.assert_clean();
}

#[test]
fn doctor_finds_everything_that_was_planted_and_each_has_its_fix() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant(".aws/sso/cache/copied.json", COPIED_CACHE, 0o600);
    world.plant(".aws/credentials", "[default]\naws_access_key_id = x\n", 0o600);
    world.plant(
        ".bash_profile",
        "export AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/x AWS_PROFILE=corp\n",
        0o644,
    );
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "unix", "--install-profiles"]);
    world.kill(tunnel);
    let uid = world.sshd.user().uid;
    let dead = PathBuf::from(format!("/dev/shm/broker-{uid}/4999"));
    std::fs::create_dir_all(&dead).unwrap();
    chown(dead.parent().unwrap(), Some(uid), None).unwrap();
    chown(&dead, Some(uid), None).unwrap();
    let (wrong, code) = world.doctor(&[BASTION]);
    assert_eq!(code, Some(1));
    let expected = [
        "token-cache: a token of IAM Identity Center lies on bastion",
        "; remove it with `ssh bastion 'rm ~/.aws/sso/cache/copied.json'`",
        "exports `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/x`",
        "exports `AWS_PROFILE=corp`",
        "`[default]` in `~/.aws/credentials` of bastion has `aws_access_key_id`",
        &format!("leftovers: `/dev/shm/broker-{uid}/4999` is left"),
        "leftovers: the block ",
        "; broker clean bastion",
    ];
    for part in expected {
        assert!(wrong.iter().any(|wrong| wrong.contains(part)), "{part} is not in {wrong:#?}");
    }
    assert!(wrong[0].starts_with("token-cache"), "first of all: {wrong:#?}");

    // What it says to do helps.
    assert_eq!(world.clean(&[]).code, Some(0));
    for path in [".aws/sso/cache/copied.json", ".aws/credentials", ".bash_profile"] {
        std::fs::remove_file(world.home_file(path)).unwrap();
    }
    assert_eq!(world.doctor(&[BASTION]), (vec![], Some(0)));
    world.assert_clean();
}

#[test]
fn doctor_names_what_sshd_does_not_allow() {
    if sandbox::isolated!() {
        return;
    }
    for (setting, expected) in [
        // Somebody else has the port.
        ("", vec!["forward-tcp: port 4144 of the host is in use by root"]),
        ("GatewayPorts yes", vec!["exposure: sshd opened port 4144 to the network"]),
        ("AllowStreamLocalForwarding no", vec!["forward-unix: sshd does not forward a unix socket"]),
        ("PermitListen 127.0.0.1:5000", vec!["forward-tcp: sshd limits which ports may be opened"]),
        (
            "DisableForwarding yes",
            vec!["forward-tcp: sshd does not allow remote forwarding", "forward-unix: sshd does not"],
        ),
        ("ForceCommand /bin/false", vec!["helper: the helper on bastion failed"]),
        ("DenyUsers *", vec!["connection: "]),
    ] {
        let mut world = World::with_fresh_home(SshdOptions::default().config(setting));
        let squatter = setting.is_empty().then(|| std::net::TcpListener::bind("127.0.0.1:4144").unwrap());
        let (wrong, code) = world.doctor(&[BASTION]);
        drop(squatter);
        assert_eq!(code, Some(1), "{setting}: {wrong:#?}");
        assert_eq!(wrong.len(), expected.len(), "{setting}: {wrong:#?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.starts_with(expected), "{setting}: {wrong}");
        }
        world.assert_clean();
    }
}

#[test]
fn doctor_looks_at_this_machine_when_no_host_is_named() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    assert_eq!(world.doctor(&[]), (vec![], Some(0)));

    std::fs::remove_dir_all(world.laptop.join(".aws/sso")).unwrap();
    let blocked = world.laptop.mkdir(".local/state", 0o500);
    let mut command = world.broker(&["doctor", "--json"]);
    command.env("SSH_AUTH_SOCK", "/nowhere/agent");
    let output = world.run(command);
    assert_eq!(output.code, Some(1), "{output}");
    for part in
        ["nobody is signed in to", "\"fix\":\"broker login\"", "/nowhere/agent", "decisions cannot be logged"]
    {
        assert!(output.stdout().contains(part), "{part}: {output}");
    }
    std::fs::remove_dir(blocked).unwrap();
    world.laptop.write(".aws/config", "[default]\nregion = x\n", 0o600);
    let (wrong, code) = world.doctor(&[]);
    assert!(code == Some(1) && wrong[0].contains("can be served; aws configure sso"), "{wrong:#?}");
    world.assert_clean();
}
