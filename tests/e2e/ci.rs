//! Continuous integration: a plain container, nobody to ask, an exit code that says what to do.

use std::process::Command;

use nix::sys::signal::Signal;
use sandbox::{
    aws::{Fault, Operation},
    home::Stream,
    sshd::SshdOptions,
};
use serde_json::Value;

use crate::{
    refusals::fingerprint_of,
    support::{ACCOUNT, ENDS, PATIENCE, REGION, World, checkout, sdk},
};

/// One row of the table in the README.
struct Row {
    kind: &'static str,
    code: i32,
    sshd: SshdOptions,
    spoil: fn(&mut World),
    arguments: &'static [&'static str],
}

fn nothing(_: &mut World) {}

fn row(kind: &'static str, code: i32) -> Row {
    Row { kind, code, sshd: SshdOptions::default(), spoil: nothing, arguments: &[] }
}

/// `broker connect` as in a container: no ssh_config, no known_hosts, a pinned key, nobody to ask, events.
fn connect(world: &World, further: &[&str]) -> Command {
    let (ssh, key) = (world.laptop.join(".ssh"), world.laptop.join("key"));
    if ssh.exists() {
        std::fs::rename(ssh.join("key-bastion"), &key).unwrap();
        std::fs::remove_dir_all(ssh).unwrap();
    }
    let host = format!("{}@127.0.0.1:{}", world.sshd.user().name, world.sshd.port());
    let pin = fingerprint_of(world, &world.sshd.known_hosts_line("127.0.0.1"));
    let mut command = world.broker(&["connect", "--batch", "--log-format", "json", "--color", "always"]);
    command.arg("-i").arg(key);
    // One that the row brings wins.
    if !further.contains(&"--host-key") {
        command.args(["--host-key", &pin]);
    }
    if !further.contains(&"-p") {
        command.args(["-p", "dev"]);
    }
    command.arg(host).args(further).env_remove("TERM");
    command
}

#[track_caller]
fn last_event(said: &str) -> Value {
    assert!(!said.contains(['\u{1b}', '\r']), "{said}");
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn is_told(row: Row) {
    let Row { kind, code, sshd, spoil, arguments } = row;
    let mut world = World::with(sshd);
    let all = |further: &[&'static str]| [arguments, further].concat();
    let (tunnel, command) = (connect(&world, &all(&["-N"])), connect(&world, &all(&["--", "true"])));
    spoil(&mut world);
    let output = world.run(tunnel);
    let error = last_event(&output.stderr());
    assert_eq!(output.code, Some(code), "{output}");
    assert_eq!(
        (&error["event"], &error["kind"], &error["code"]),
        (&"error".into(), &kind.into(), &code.into())
    );
    assert_eq!(output.stdout(), "", "{output}");
    let output = world.run(command);
    let error = last_event(&output.stderr());
    assert_eq!(
        (output.code, &error["kind"], &error["code"]),
        (Some(255), &kind.into(), &code.into()),
        "{output}"
    );
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn code_0_is_a_command_that_succeeded_and_a_tunnel_that_was_stopped() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let script = "test -n \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"; echo out; echo err >&2; exit $((40 + 2))";
    let deploy = connect(&world, &["--", script]);
    let output = world.run(deploy);
    assert_eq!((output.code, output.stdout().as_str()), (Some(42), "out\n"), "{output}");
    let own = output.stderr().replace("err\n", "");
    assert!(own.len() + 4 == output.stderr().len() && !own.contains(['\u{1b}', '\r']), "{output}");
    assert!(own.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{output}");
    assert!(!world.laptop.join(".ssh").exists(), "no file of ssh was made");

    let mut process = world.laptop.spawn(connect(&world, &["-N"]));
    process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
    let host = format!("{}@127.0.0.1:{}", world.sshd.user().name, world.sshd.port());
    let stopped = world.run(world.broker(&["stop", &host]));
    assert_eq!(stopped.code, Some(0), "{stopped}");
    let output = process.wait(ENDS);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(0), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn code_1_is_trouble_that_may_pass() {
    if sandbox::isolated!() {
        return;
    }
    let spoil = |world: &mut World| world.aws.fault(Operation::GetRoleCredentials, Fault::Garbage);
    is_told(Row { spoil, ..row("failed", 1) });
}

#[test]
fn code_2_is_a_mistake_in_what_was_asked_for() {
    if sandbox::isolated!() {
        return;
    }
    is_told(Row { arguments: &["-p", "nosuch"], ..row("usage", 2) });
}

#[test]
fn code_3_is_a_login_that_nobody_can_do_here() {
    if sandbox::isolated!() {
        return;
    }
    let spoil = |world: &mut World| std::fs::remove_dir_all(world.laptop.join(".aws/sso")).unwrap();
    is_told(Row { spoil, ..row("login-needed", 3) });
}

#[test]
fn code_4_is_another_host_key_than_the_pinned_one() {
    if sandbox::isolated!() {
        return;
    }
    let arguments = &["--host-key", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"];
    is_told(Row { arguments, ..row("host-key-refused", 4) });
}

#[test]
fn code_5_is_a_host_that_does_not_let_us_in() {
    if sandbox::isolated!() {
        return;
    }
    is_told(Row { arguments: &["-l", "nobody"], ..row("unreachable", 5) });
    is_told(Row {
        arguments: &["-o", "HostName=127.0.0.2", "-o", "ConnectTimeout=3"],
        ..row("unreachable", 5)
    });
}

#[test]
fn code_6_is_a_host_that_refuses_the_tunnel() {
    if sandbox::isolated!() {
        return;
    }
    let sshd = SshdOptions::default().config("AllowTcpForwarding no");
    is_told(Row { sshd, arguments: &["--transport", "tcp"], ..row("forward-refused", 6) });
}

#[test]
fn code_7_is_a_role_that_aws_does_not_give() {
    if sandbox::isolated!() {
        return;
    }
    let spoil = |world: &mut World| world.aws.remove_role(ACCOUNT, "Developer");
    is_told(Row { spoil, ..row("role-denied", 7) });
}

#[test]
fn code_130_is_an_interruption() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for further in [&["-N"][..], &["--", "cat"]] {
        let mut process = world.laptop.spawn(connect(&world, further));
        process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
        process.signal(Signal::SIGTERM);
        let output = process.wait(ENDS);
        world.heard("broker connect", &output);
        let error = last_event(&output.stderr());
        assert_eq!((output.code, &error["kind"]), (Some(130), &"interrupted".into()), "{output}");
    }
    world.wait_for_clean_host();
    world.assert_clean();
}

/// Runs the steps of an example in `docs/ci`, twice: with a deployment that succeeds, and one that fails.
#[track_caller]
fn example_works(service: &str, file: &str, environment: &[(&str, &str)]) {
    let mut world = World::fresh_home();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/deploy");
    let whoami =
        [sdk("python/bin/python"), sdk("whoami.py")].map(|path| path.display().to_string()).join(" ");
    let program = crate::support::program();
    let mut sum = world.laptop.command("sha256sum");
    sum.arg(&program);
    let sum = world.run(sum).success().stdout();
    let key = std::fs::read_to_string(world.laptop.join(".ssh/key-bastion")).unwrap();
    let pin = fingerprint_of(&world, &world.sshd.known_hosts_line("127.0.0.1"));
    std::fs::remove_dir_all(world.laptop.join(".ssh")).unwrap();
    std::fs::remove_dir_all(world.laptop.join(".aws")).unwrap();
    let github = format!("{}/github?api-version=2.0", world.aws.endpoint());
    let mut set: serde_json::Map<String, Value> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    if service == "github" {
        set.insert("ACTIONS_ID_TOKEN_REQUEST_URL".into(), github.into());
    }
    let settings = serde_json::json!({
        "environment": set,
        "vars": {
            "AWS_ROLE_ARN": role,
            "AWS_REGION": REGION,
            "BROKER_URL": format!("file://{}", program.display()),
            "BROKER_SHA256": sum.split(' ').next(),
            "DEPLOY_HOST": format!("{}@127.0.0.1:{}", world.sshd.user().name, world.sshd.port()),
            "DEPLOY_HOST_KEY": pin,
        },
        "secrets": {"DEPLOY_SSH_KEY": key, "AWS_WEB_IDENTITY_TOKEN_FILE": "jenkins-token"},
    });
    for (end, code) in [("", 0), ("; exit 42", 42)] {
        let _script = world.plant("deploy.sh", format!("#!/bin/sh\n{whoami}{end}\n"), 0o755);
        let mut runner = world.laptop.command(sdk("checks/bin/python"));
        runner.args(["-c", include_str!("ci/runner.py"), service]).arg(checkout(&format!("docs/ci/{file}")));
        runner.envs(world.aws.environment());
        let output = world.laptop.run_with(runner, settings.to_string().as_bytes());
        world.heard(service, &output);
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stdout().contains("assumed-role/deploy/"), "{output}");
        assert!(output.stderr().contains("\"event\":\"ready\""), "{output}");
        assert!(!output.stderr().contains('\u{1b}'), "{output}");
    }
    std::fs::remove_file(world.home_file("deploy.sh")).unwrap();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn the_example_for_github_actions_deploys() {
    if sandbox::isolated!() {
        return;
    }
    let request = ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "sandbox-github-request-token");
    example_works("github", "github-actions.yml", &[request]);
}

#[test]
fn the_example_for_gitlab_deploys() {
    if sandbox::isolated!() {
        return;
    }
    example_works("gitlab", "gitlab-ci.yml", &[("GITLAB_OIDC_TOKEN", "gitlab-token")]);
}

#[test]
fn the_example_for_jenkins_deploys() {
    if sandbox::isolated!() {
        return;
    }
    example_works("jenkins", "Jenkinsfile", &[]);
}
