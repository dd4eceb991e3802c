//! Our own configuration file: what counts, what a host may ever get, and what is refused.

use sandbox::home::Stream;
use serde_json::Value;

use crate::support::{ACCOUNT, BASTION, ENDS, PATIENCE, Tunnel, World, sdk};

const FILE: &str = ".config/broker/config.toml";

fn write(world: &World, text: &str) {
    world.laptop.write(FILE, text, 0o600);
}

fn status(world: &mut World) -> Value {
    let output = world.run(world.broker(&["status", "--json"])).success();
    let status: Value = serde_json::from_str(&output.stdout()).unwrap();
    status["tunnels"][0].clone()
}

fn profiles(world: &mut World) -> Vec<String> {
    let tunnel = status(world);
    let profiles = tunnel["profiles"].as_array().unwrap().iter();
    profiles.map(|profile| profile["profile"].as_str().unwrap().to_owned()).collect()
}

fn stop(world: &mut World, tunnel: Tunnel) {
    assert_eq!(tunnel.stop(world).code, Some(130));
    world.wait_for_clean_host();
}

#[test]
fn what_stands_in_the_file_is_done_and_what_is_typed_wins() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    write(
        &world,
        "[defaults]\nprofile = \"audit\"\nmax-lifetime = \"8h\"\nremote-port = 4400\n\
         [hosts.bastion]\nprofile = [\"dev\", \"audit\"]\nremote-port = 4401\n",
    );
    let tunnel = world.tunnel(&[]);
    assert!(tunnel.exports.contains("http://127.0.0.1:4401/"), "{}", tunnel.exports);
    assert_eq!(profiles(&mut world), ["dev", "audit"]);
    assert!(status(&mut world)["ends_at"].is_string());
    let python = sdk("python/bin/python");
    let arguments = ["-c", "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])"];
    let mut boto3 = world.on_host(python.to_str().unwrap(), &arguments);
    boto3.envs(&tunnel.environment);
    assert_eq!(world.run(boto3).success().stdout().trim(), World::arn("Developer"));
    stop(&mut world, tunnel);

    let tunnel = world.tunnel(&["-p", "audit", "-R", "4402"]);
    assert!(tunnel.exports.contains("http://127.0.0.1:4402/"), "{}", tunnel.exports);
    assert_eq!(profiles(&mut world), ["audit"]);
    stop(&mut world, tunnel);

    // Flags > environment > file.
    let mut command = world.connect(&["-N", "--print-env", "sh"]);
    command.env("AWS_PROFILE", "audit");
    let mut process = world.laptop.spawn(command);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let tunnel = world.attach(process);
    assert_eq!(profiles(&mut world), ["audit"]);
    stop(&mut world, tunnel);

    let output = world.run(world.connect(&["-N", "--no-defaults"]));
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr().contains("no profile was named"), "{output}");

    // What the file says of the job is done as well, and gives way to a command.
    write(
        &world,
        "[hosts.bastion]\nprofile = \"dev\"\nbackground = true\nprint-env = \"fish\"\nremote-port = 4401\n",
    );
    let output = world.run(world.connect(&[])).success();
    assert!(output.stdout().contains("set -g") || output.stdout().contains("set -gx"), "{output}");
    assert_eq!(profiles(&mut world), ["dev"]);
    world.run(world.broker(&["stop", BASTION])).success();
    world.wait_for_clean_host();

    // In another place, where XDG says so.
    std::fs::rename(world.laptop.join(".config"), world.laptop.join("elsewhere")).unwrap();
    let mut command = world.connect(&["--", "printenv", "AWS_CONTAINER_CREDENTIALS_FULL_URI"]);
    command.env("XDG_CONFIG_HOME", world.laptop.join("elsewhere"));
    let output = world.run(command).success();
    assert_eq!(output.stdout(), "http://127.0.0.1:4401/\n", "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn messages_and_ways_to_the_host_come_from_the_file_for_every_command() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (user, port) = (world.sshd.user().name.clone(), world.sshd.port());
    world.laptop.write(
        ".ssh/config",
        format!("IdentityFile {}\n", world.laptop.join(".ssh/key-bastion").display()),
        0o600,
    );
    write(
        &world,
        &format!(
            "[defaults]\nlog-format = \"json\"\nbatch = true\n[hosts.\"127.0.0.1\"]\nport = {port}\nlogin-name = \"{user}\"\n\
             profile = \"dev\"\n"
        ),
    );
    let output = world.run(world.broker(&["doctor", "127.0.0.1", "--json"]));
    assert!(output.stdout().contains("logged in to 127.0.0.1"), "{output}");
    assert!(output.stdout().contains("config.toml` is understood"), "{output}");
    let output = world.run(world.broker(&["clean", "127.0.0.1"]));
    assert_eq!(output.code, Some(0), "{output}");
    let output = world.run(world.broker(&["ssh-config", "127.0.0.1"])).success();
    assert!(output.stdout().contains(&format!("port {port}\n")), "{output}");
    let output = world.run(world.broker(&["connect", "127.0.0.1", "--", "echo", "ran"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "ran\n"), "{output}");
    assert!(output.stderr().lines().all(|line| line.starts_with("{\"")), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_host_gets_no_profile_but_those_that_the_file_permits() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let alias = world.laptop.read(".ssh/config").replace("Host bastion\n", "Host bastion alias\n");
    world.laptop.write(".ssh/config", alias, 0o600);
    let path = world.laptop.join(FILE).display().to_string();
    let limit = "[defaults]\nprofile = \"audit\"\n[hosts.HOST]\n\nonly-profiles = [\"dev\", \"d*-ro\"]\n";
    write(&world, &limit.replace("HOST", "bastion"));
    const KEYS: &[(&str, &str)] =
        &[("AWS_ACCESS_KEY_ID", "ASIAX"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_SESSION_TOKEN", "x")];
    let named = "profile `audit`";
    type Words = &'static [&'static str];
    type Variables = &'static [(&'static str, &'static str)];
    let cases: [(Words, Variables, &str); 8] = [
        (&["-p", "audit"], &[], named),
        (&[], &[], named),
        (&["-p", "dev", "-p", "audit"], &[], named),
        (&["--no-defaults"], &[("AWS_PROFILE", "audit")], named),
        (&["-p", "audit", "--role-arn", "arn:aws:iam::123456789012:role/less"], &[], named),
        (&["-p", "dev", "--allow", "aud*"], &[], named),
        (&["--account", ACCOUNT, "--role", "Developer"], &[], "a role that no profile names"),
        (&["--no-defaults"], KEYS, "is not for bastion"),
    ];
    for (arguments, variables, what) in cases {
        let mut command = world.connect(&[arguments, &["-N"]].concat());
        command.envs(variables.iter().copied());
        let output = world.run(command);
        assert_eq!(output.code, Some(7), "{arguments:?} {output}");
        let said = output.stderr();
        assert!(
            said.contains(what)
                && said.contains("is not for bastion: `only-profiles` of [hosts.\"bastion\"]"),
            "{said}"
        );
        assert!(said.contains(&format!("`{path}` line 5 permits dev, d*-ro")), "{said}");
        assert!(said.contains("broker: hint: "), "{said}");
    }
    let output = world.run(world.connect(&["-p", "audit", "--log-format", "json", "--", "true"]));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(output.stderr().contains("\"kind\":\"role-denied\""), "{output}");
    // A new name for the host is no way around what is said of where it leads.
    write(&world, &limit.replace("HOST", "\"127.0.0.1\""));
    for host in ["alias", BASTION] {
        let output = world.run(world.broker(&["connect", host, "--batch", "-p", "audit", "-N"]));
        assert_eq!(output.code, Some(7), "{output}");
    }
    assert_eq!(world.aws.calls(), Vec::<String>::new(), "nobody was asked for anything");
    assert_eq!(world.sshd.knocks(), 0, "nobody was reached");

    // What is permitted works, a pattern stands for what is permitted of it, and a running tunnel holds the limit as well.
    let tunnel = world.tunnel(&["-p", "dev", "--allow", "*"]);
    assert_eq!(profiles(&mut world), ["dev"]);
    let output = world.run(world.broker(&["grant", BASTION, "-p", "audit"]));
    assert_eq!(output.code, Some(7), "{output}");
    assert!(output.stderr().contains("profile `audit` is not for bastion"), "{output}");
    assert_eq!(profiles(&mut world), ["dev"]);
    let output = world.run(world.broker(&["grant", BASTION, "-p", "dev"]));
    assert_eq!(output.code, Some(0), "{output}");
    stop(&mut world, tunnel);
    world.assert_clean();
}

#[test]
fn a_file_that_is_wrong_ends_nothing_that_must_work() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    write(&world, "[defaults]\nprofil = 'x'\n");
    let mistake =
        format!("`{}` line 2: `profil` in [defaults] is no option", world.laptop.join(FILE).display());
    for arguments in [&["status"][..], &["env", BASTION], &["refresh"], &["man"], &["audit", "verify"]] {
        let output = world.run(world.broker(arguments));
        assert_eq!(output.code, Some(0), "{arguments:?} {output}");
        assert!(output.stderr().contains(&format!("broker: warning: {mistake}")), "{output}");
    }
    for arguments in
        [&["login"][..], &["credentials", "-p", "dev"], &["clean", BASTION], &["ssh-config", BASTION]]
    {
        let output = world.run(world.broker(arguments));
        assert_eq!(output.code, Some(2), "{arguments:?} {output}");
        assert!(output.stderr().contains(&format!("broker: error: {mistake}")), "{output}");
        assert!(output.stderr().contains("broker: hint: did you mean `profile`?"), "{output}");
    }
    let output = world.run(world.broker(&["doctor"]));
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stdout().contains("problem") && output.stdout().contains(&mistake), "{output}");
    let output = world.run(world.broker(&["stop", BASTION]));
    assert_eq!(output.code, Some(0), "{output}");
    let mut process = tunnel.process;
    let output = process.wait(ENDS);
    world.heard("broker connect", &output);
    assert_eq!(output.code, Some(0), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}
