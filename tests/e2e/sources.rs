//! Every source of credentials, one by one: what it takes, what leaves this machine, what AWS gets to see of it.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use sandbox::aws::{FakeAws, Fault, Operation, TokenSeed};
use serde_json::Value;

use crate::support::{ACCOUNT, PATIENCE, REGION, World, sdk};

const KEY: &str = "AKIASANDBOXUSER00000";
const SECRET: &str = "sandbox-user-secret/canary";
const DEVICE: &str = "arn:aws:iam::123456789012:mfa/ada";
const DEPLOY: &str = "arn:aws:iam::123456789012:role/team/Deploy";

/// A world in which the laptop's user has long-lived keys as well, as profile `user`.
fn world(more: &str) -> World {
    let world = World::new();
    world.aws.add_keys(KEY, SECRET, None, ACCOUNT);
    let config = world.laptop.read(".aws/config");
    let user = format!(
        "[profile user]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\nregion = {REGION}\n"
    );
    world.laptop.write(".aws/config", format!("{config}\n{user}{more}"), 0o600);
    world
}

fn role(name: &str, more: &str) -> String {
    format!("[profile {name}]\nrole_arn = {DEPLOY}\nregion = {REGION}\n{more}\n")
}

/// The public half of what `broker credentials` prints.
fn key(world: &World, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let answer = json(world, arguments, environment);
    answer["AccessKeyId"].as_str().unwrap().to_owned()
}

fn json(world: &World, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let mut command = world.broker(&[&["credentials", "--batch"], arguments].concat());
    command.envs(environment.iter().copied());
    let output = world.laptop.run(command).success();
    serde_json::from_str(&output.stdout()).unwrap()
}

/// Exit code and words of a `broker credentials` that has none.
fn refused(world: &mut World, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let mut command = world.broker(&[&["credentials", "--batch"], arguments].concat());
    command.envs(environment.iter().copied());
    let output = world.run(command);
    assert_eq!(output.stdout(), "", "{output}");
    (output.code.unwrap(), output.stderr())
}

#[test]
fn long_lived_keys_stay_on_the_laptop() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = world("");
    let tunnel = world.tunnel(&["-p", "user"]);
    let url = tunnel.url().to_owned();
    let token = tunnel.token().to_owned();
    let user = world.sshd.user().clone();
    let served = world.fetch(&user, &url, Some(&token));
    let id = served.key_id();
    assert!(id.starts_with("ASIA"), "{id}");
    assert_eq!(world.aws.way_to(&id).as_deref(), Some(KEY), "a session of the same keys");
    assert!(!String::from_utf8_lossy(&served.0).contains(SECRET));
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("long-lived keys"), "nobody was told: {output}");
    assert_eq!(world.aws.sts_calls()[0]["DurationSeconds"], "3600");
    world.assert_clean();
}

#[test]
fn a_code_is_asked_for_once_and_used_for_every_role() {
    if sandbox::isolated!() {
        return;
    }
    let mfa = format!("source_profile = user\nmfa_serial = {DEVICE}");
    let other = role("other", &mfa).replace("team/Deploy", "team/Other");
    let mut world = world(&(role("deploy", &mfa) + &other));
    world.aws.set_mfa(DEVICE, &["111111", "222222"]);
    world.aws.require_mfa(DEPLOY);

    let (code, said) = refused(&mut world, &["-p", "deploy"], &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(DEVICE) && world.aws.sts_calls().is_empty(), "{said}");

    let mut command =
        world.broker(&["connect", "bastion", "-p", "deploy", "-p", "other", "-N", "--print-env", "json"]);
    command.env("BROWSER", "false");
    let mut terminal = world.laptop.terminal(command, 40, 200);
    terminal.wait_for_text("Code of arn:aws:iam::123456789012:mfa/ada for profile deploy: ", PATIENCE);
    terminal.send("12345\n");
    terminal.wait_for_text("A code has six digits.", PATIENCE);
    terminal.wait_for_text("Code of", PATIENCE);
    terminal.send("999999\n");
    terminal.wait_for_text("AWS does not accept this code", PATIENCE);
    terminal.wait_for_text("Code of", PATIENCE);
    terminal.send("111111\n");
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    terminal.signal(nix::sys::signal::Signal::SIGTERM);
    let output = terminal.wait(PATIENCE);
    world.heard("broker on a terminal", &output);
    assert_eq!(output.stdout().matches("Code of").count(), 3, "{output}");
    let calls = world.aws.sts_calls();
    let names: Vec<&str> = calls.iter().map(|call| call["Action"].as_str()).collect();
    assert_eq!(names[..2], ["GetSessionToken", "GetSessionToken"], "{calls:?}");
    let mut roles: Vec<&str> = calls[2..].iter().map(|call| call["RoleArn"].as_str()).collect();
    roles.sort_unstable();
    assert_eq!(roles, [DEPLOY, "arn:aws:iam::123456789012:role/team/Other"], "{calls:?}");
    assert!(calls[2..].iter().all(|call| !call.contains_key("SerialNumber")), "{calls:?}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_tunnel_can_hand_out_less_and_is_seen_in_cloudtrail() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = world("");
    let policy = world.laptop.write(
        "policy.json",
        r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:Get*","Resource":"*"}]}"#,
        0o600,
    );
    let policy = policy.to_str().unwrap().to_owned();
    let less = ["-p", "dev", "--role-arn", DEPLOY, "--session-policy", &policy, "--source-ip", "192.0.2.7"];
    let python = format!(
        "{} -c \"import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])\"",
        sdk("python/bin/python").display()
    );
    let output =
        world.run(world.connect(&[&less[..], &["--duration", "20m", "--", &python]].concat())).success();
    assert_eq!(
        output.stdout().trim(),
        format!("arn:aws:sts::{ACCOUNT}:assumed-role/Deploy/broker-bastion"),
        "{output}"
    );
    let call = world.aws.sts_calls()[0].clone();
    assert_eq!(
        (call["DurationSeconds"].as_str(), call["RoleSessionName"].as_str()),
        ("1200", "broker-bastion")
    );
    assert_eq!(call["SourceIdentity"], world.laptop.user().name);
    let inline: Value = serde_json::from_str(&call["Policy"]).unwrap();
    assert_eq!(inline["Statement"][0]["Action"], "s3:Get*");
    assert_eq!(inline["Statement"][1]["Condition"]["NotIpAddress"]["aws:SourceIp"], "192.0.2.7");

    // A trust policy that knows nothing of source identities, and more than the hour that AWS gives.
    world.aws.refuse_source_identity();
    let before = world.aws.sts_calls().len();
    let managed = "arn:aws:iam::aws:policy/ReadOnlyAccess";
    let arguments = [
        "credentials",
        "--batch",
        "-p",
        "dev",
        "--role-arn",
        DEPLOY,
        "--duration",
        "12h",
        "--session-policy",
        managed,
    ];
    let output = world.laptop.run(world.broker(&arguments)).success();
    assert!(output.stderr().contains("one hour at most"), "{output}");
    let calls = &world.aws.sts_calls()[before..];
    let asked = |name: &str| calls.iter().map(|call| call.get(name).cloned()).collect::<Vec<_>>();
    assert_eq!(asked("SourceIdentity"), [Some(world.laptop.user().name.clone()), None]);
    assert_eq!(asked("DurationSeconds"), [Some("3600".to_owned()), Some("3600".to_owned())]);
    assert_eq!(asked("PolicyArns.member.1.arn")[0].as_deref(), Some(managed));

    // What AWS says no to is told in its words.
    let says = Fault::error(403, "AccessDenied", "not authorized to perform: sts:AssumeRole");
    world.aws.fault(Operation::AssumeRole, says);
    let (code, said) = refused(&mut world, &["-p", "dev", "--role-arn", DEPLOY], &[]);
    assert_eq!(code, 7, "{said}");
    assert!(said.contains(DEPLOY) && said.contains("not authorized to perform"), "{said}");
    world.assert_clean();
}

#[test]
fn a_program_without_an_end_in_sight_is_believed_only_while_aws_does() {
    if sandbox::isolated!() {
        return;
    }
    let (id, secret, token) = ("ASIASANDBOXELSEWHERE", "elsewhere-secret/canary", "elsewhere-token/canary");
    let object = format!(
        "{{\"Version\":1,\"AccessKeyId\":\"{id}\",\"SecretAccessKey\":\"{secret}\",\"SessionToken\":\"{token}\"}}"
    );
    let mut world =
        world(&format!("[profile vault]\ncredential_process = /bin/echo '{object}'\nregion = {REGION}\n"));
    world.aws.add_keys(id, secret, Some(token), ACCOUNT);
    let answer = json(&world, &["-p", "vault"], &[]);
    assert_eq!((answer["AccessKeyId"].as_str(), answer["AccountId"].as_str()), (Some(id), Some(ACCOUNT)));
    assert_eq!(world.aws.calls().last().unwrap(), "GetCallerIdentity");
    let (code, said) = refused(&mut world, &["-p", "vault", "--min-life", "30m"], &[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("less than 1800 s"), "{said}");
    world.aws.expire_role_credentials();
    let (code, said) = refused(&mut world, &["-p", "vault"], &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("have ended"), "{said}");
    world.assert_no_secret();
}

#[test]
fn a_session_of_aws_login_is_used_and_refreshed() {
    if sandbox::isolated!() {
        return;
    }
    const SESSION: &str = "arn:aws:iam::123456789012:user/ada";
    let mut world = world(&format!("[profile console]\nlogin_session = {SESSION}\nregion = {REGION}\n"));
    let minutes = |n: u64| SystemTime::now() + Duration::from_secs(n * 60);
    let seed = |world: &World, at| {
        world.aws.seed_login(world.laptop.path(), SESSION, at);
        world.own_aws_files();
    };
    let refreshes = |world: &World| world.aws.calls().iter().filter(|call| *call == "SignInToken").count();
    seed(&world, minutes(14));
    let first = key(&world, &["-p", "console"], &[]);
    assert_eq!(
        (refreshes(&world), key(&world, &["-p", "console"], &[])),
        (0, first.clone()),
        "it is still good"
    );

    seed(&world, minutes(4));
    let second = key(&world, &["-p", "console"], &[]);
    assert_ne!(second, first);
    assert_eq!(
        (refreshes(&world), key(&world, &["-p", "console"], &[])),
        (1, second),
        "the new one was saved"
    );
    let file =
        std::fs::read_dir(world.laptop.join(".aws/login/cache")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "json")).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let saved: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        (saved["idToken"].as_str(), saved["signInRegion"].as_str()),
        (Some("eyJ"), Some("eu-north-1"))
    );
    assert_eq!(saved["accessToken"]["accountId"], ACCOUNT);

    // Two at once use the refresh token, which is good once, once.
    seed(&world, minutes(1));
    let keys: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| key(&world, &["-p", "console"], &[]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    assert_eq!(refreshes(&world), 2);

    // While the service is down, what is good is used to its end, and then it is said.
    seed(&world, minutes(2));
    world.aws.fault(Operation::SignInToken, Fault::Status(503));
    key(&world, &["-p", "console"], &[]);
    seed(&world, SystemTime::now() - Duration::from_secs(60));
    let (code, said) = refused(&mut world, &["-p", "console"], &[]);
    assert!(code == 1 && said.contains("HTTP 503"), "{code} {said}");
    for (error, expected, words) in [
        ("TOKEN_EXPIRED", 3, "run `aws login --profile console`"),
        ("USER_CREDENTIALS_CHANGED", 3, "your password was changed"),
        ("INSUFFICIENT_PERMISSIONS", 7, "SignInLocalDevelopmentAccess"),
    ] {
        world.aws.fault(Operation::SignInToken, Fault::error(401, error, "no"));
        let (code, said) = refused(&mut world, &["-p", "console"], &[]);
        assert!(code == expected && said.contains(words), "{error}: {code} {said}");
    }
    world.assert_no_secret();
}

#[test]
fn a_ci_job_needs_no_configuration() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.laptop.write(".aws/config", "", 0o600);
    let role = [("AWS_ROLE_ARN", DEPLOY), ("AWS_REGION", REGION)];
    let url = format!("{}/github?api-version=2.0", world.aws.endpoint());
    let github = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", url.as_str()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "sandbox-github-request-token"),
    ];
    let of_github = [&role[..], &github].concat();
    let way = |world: &World, environment: &[(&str, &str)]| {
        world.aws.way_to(&key(world, &[], environment)).unwrap()
    };
    assert_eq!(way(&world, &of_github), format!("web:github-sts.amazonaws.com>{DEPLOY}|"));
    let of_gitlab = [&role[..], &[("GITLAB_OIDC_TOKEN", "gitlab-token")]].concat();
    assert_eq!(way(&world, &of_gitlab), format!("web:gitlab-token>{DEPLOY}|"));

    // Buildkite's agent is a program of that name.
    let agent =
        "#!/bin/sh\n[ \"$*\" = 'oidc request-token --audience sts.amazonaws.com' ] && echo buildkite-token\n";
    let agent = world.laptop.write("bin/buildkite-agent", agent, 0o755);
    let path = format!("{}:/usr/bin:/bin", agent.parent().unwrap().display());
    let of_buildkite =
        [&role[..], &[("BUILDKITE_AGENT_ACCESS_TOKEN", "x"), ("PATH", path.as_str())]].concat();
    assert_eq!(way(&world, &of_buildkite), format!("web:buildkite-token>{DEPLOY}|"));

    // A whole tunnel, and what goes wrong.
    let mut command = world.connect(&["--", "echo", "deployed"]);
    command.envs(of_github.iter().copied());
    assert_eq!(world.run(command).success().stdout(), "deployed\n");
    let wrong = [&role[..], &[github[0], ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "another")]].concat();
    let (code, said) = refused(&mut world, &[], &wrong);
    assert!(code == 1 && said.contains("id-token: write"), "{code} {said}");
    let expired = [&role[..], &[("GITLAB_OIDC_TOKEN", "expired")]].concat();
    let (code, said) = refused(&mut world, &[], &expired);
    assert!(code == 3 && said.contains("has expired"), "{code} {said}");
    world.assert_clean();
}

#[test]
fn a_role_needs_no_profile() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let role = ["--account", ACCOUNT, "--role", "Auditor"];
    let by_session = key(&world, &[&role[..], &["--sso-session", "corp"]].concat(), &[]);
    assert_eq!(world.aws.last_issued(ACCOUNT, "Auditor"), Some(by_session));
    // The only session there is.
    key(&world, &role, &[]);
    // Without any file of AWS.
    world.laptop.write(".aws/config", "", 0o600);
    let start_url = world.aws.start_url();
    world.aws.seed_token(world.laptop.path(), &start_url);
    world.own_aws_files();
    let portal = ["--start-url", &start_url, "--sso-region", REGION];
    key(&world, &[&role[..], &portal].concat(), &[]);
    let output = world.run(world.connect(&[&role[..], &portal, &["--", "echo works"]].concat())).success();
    assert_eq!(output.stdout(), "works\n");
    let (code, said) = refused(&mut world, &["--account", ACCOUNT], &[]);
    assert!(code == 2 && said.contains("--role"), "{code} {said}");
    world.assert_clean();
}

#[test]
fn credentials_are_for_programs_and_for_shells() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    let python = sdk("python/bin/python");
    let program = crate::support::program();
    // Every SDK here can use what broker can.
    let config = world.laptop.read(".aws/config");
    let line = format!(
        "[profile by-broker]\ncredential_process = {} credentials --batch -p dev\nregion = {REGION}\n",
        program.display()
    );
    world.laptop.write(".aws/config", format!("{config}{line}"), 0o600);
    let who = "import boto3; print(boto3.Session(profile_name='by-broker').client('sts').get_caller_identity()['Arn'])";
    let mut boto3 = world.laptop.command(&python);
    boto3.args(["-c", who]).envs(world.aws.environment());
    assert_eq!(world.laptop.run(boto3).success().stdout().trim(), World::arn("Developer"));
    // And a shell, whatever it had before.
    let who = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    for (shell, script) in [
        ("sh", "eval \"$(\"$BROKER\" credentials --batch -p dev --format sh)\"; \"$0\" -c \"$1\""),
        ("bash", "eval \"$(\"$BROKER\" credentials --batch -p dev --format bash)\"; \"$0\" -c \"$1\""),
        ("fish", "$BROKER credentials --batch -p dev --format fish | source; $argv[1] -c $argv[2]"),
    ] {
        let mut command = world.laptop.command(shell);
        command.args(["-c", script]).arg(&python).arg(who).env("BROKER", &program);
        command.env("AWS_PROFILE", "nobody").env("AWS_SECURITY_TOKEN", "old").envs(world.aws.environment());
        // broker itself is told its profile, so that the variable does not matter.
        let output = world.laptop.run(command).success();
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{shell}: {output}");
    }
    world.assert_no_secret();
}

#[test]
fn a_program_that_is_broker_itself_comes_to_an_end() {
    if sandbox::isolated!() {
        return;
    }
    let program = crate::support::program();
    let line = format!(
        "[profile itself]\ncredential_process = {} credentials --batch -p itself\n",
        program.display()
    );
    let mut world = world(&line);
    let (code, said) = refused(&mut world, &["-p", "itself"], &[]);
    assert!(code == 1 && said.contains("it runs `broker`, which runs it again"), "{code} {said}");
    world.assert_no_secret();
}

#[test]
fn sixteen_brokers_refresh_one_token_once() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    for period in 1..=2 {
        let seed = TokenSeed { expired: true, ..TokenSeed::default() };
        world.aws.seed_token_with(world.laptop.path(), "corp", seed);
        world.own_aws_files();
        let mut brokers: Vec<_> = (0..16)
            .map(|_| world.laptop.spawn(world.broker(&["credentials", "--batch", "-p", "dev"])))
            .collect();
        for broker in &mut brokers {
            let output = broker.wait(PATIENCE);
            assert_eq!(output.code, Some(0), "{output}");
        }
        let refreshes = world.aws.calls().iter().filter(|call| *call == "CreateToken(refresh_token)").count();
        assert_eq!(refreshes, period, "{:?}", world.aws.calls());
    }
    world.assert_no_secret();
}

/// Gives `broker` a directory in memory, as a session of the laptop's user has.
fn in_memory(world: &World) -> tempfile::TempDir {
    let user = world.laptop.user();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    std::os::unix::fs::chown(directory.path(), Some(user.uid), Some(user.gid)).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

#[test]
fn a_program_that_is_started_again_and_again_asks_aws_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = world("");
    let memory = in_memory(&world);
    let runtime = memory.path().display().to_string();
    let here = [("XDG_RUNTIME_DIR", runtime.as_str())];
    let asked = |world: &World| world.aws.calls().iter().filter(|call| call.starts_with("GetRole")).count();
    let first = key(&world, &["-p", "dev"], &here);
    for arguments in [&["-p", "dev"][..], &["-p", "dev", "--min-life", "50m"]] {
        assert_eq!(key(&world, arguments, &here), first);
    }
    assert_eq!(asked(&world), 1);

    // Another role, another place and a longer life are other credentials.
    let audit = key(&world, &["-p", "audit"], &here);
    assert_ne!(audit, first);
    assert_ne!(key(&world, &["-p", "dev"], &[]), first);
    assert_eq!(asked(&world), 3);
    let (code, said) = refused(&mut world, &["-p", "dev", "--min-life", "2h"], &here);
    assert!(code == 1 && said.contains("less than 7200 s"), "{code} {said}");
    let second = key(&world, &["-p", "dev"], &here);
    assert!(second != first && asked(&world) == 4, "what was fetched for it is kept as well");

    // Several at once read and write the same file.
    let mut brokers: Vec<_> = (0..8)
        .map(|n| {
            let life = if n % 2 == 0 { "1m" } else { "61m" };
            let mut command = world.broker(&["credentials", "--batch", "-p", "dev", "--min-life", life]);
            command.envs(here);
            world.laptop.spawn(command)
        })
        .collect();
    let codes: Vec<_> = brokers.iter_mut().map(|broker| broker.wait(PATIENCE).code.unwrap()).collect();
    assert_eq!(codes, [0, 1, 0, 1, 0, 1, 0, 1]);

    // Soon to end: renewed, and where that fails used to their end, which is said.
    world.aws.set_role_life(Duration::from_secs(19 * 60));
    let (code, _) = refused(&mut world, &["-p", "dev", "--min-life", "1h"], &here);
    assert_eq!(code, 1);
    let short = key(&world, &["-p", "dev"], &here);
    assert_ne!(short, key(&world, &["-p", "dev"], &here));
    world.aws.fault(Operation::GetRoleCredentials, Fault::Status(500));
    let mut command = world.broker(&["credentials", "--batch", "-p", "dev"]);
    command.envs(here);
    let output = world.laptop.run(command).success();
    assert!(output.stderr().contains("these, which were fetched before, live 11"), "{output}");
    let (code, said) = refused(&mut world, &["-p", "dev", "--min-life", "19m30s"], &here);
    assert!(code == 1 && said.contains("AWS gave no credentials"), "{code} {said}");
    world.aws.clear_faults();

    // Whoever signs out gets nothing of it any more, here and with the AWS CLI's file removed by hand.
    world.aws.set_role_life(Duration::from_secs(3600));
    let third = key(&world, &["-p", "dev"], &here);
    let token = world.laptop.read(FakeAws::token_path(world.laptop.path(), "corp"));
    std::fs::remove_file(FakeAws::token_path(world.laptop.path(), "corp")).unwrap();
    let (code, _) = refused(&mut world, &["-p", "dev"], &here);
    assert_eq!(code, 3);
    world.laptop.write(FakeAws::token_path(world.laptop.path(), "corp"), &token, 0o600);
    assert_eq!(key(&world, &["-p", "dev"], &here), third);
    let mut logout = world.broker(&["logout", "--sso-session", "corp"]);
    logout.envs(here);
    world.run(logout).success();
    world.laptop.write(FakeAws::token_path(world.laptop.path(), "corp"), &token, 0o600);
    let (code, _) = refused(&mut world, &["-p", "dev"], &here);
    assert_eq!(code, 3, "the token is dead, and what was kept is gone");
    world.assert_no_secret();
}

#[test]
fn what_the_aws_cli_fetched_serves_broker_until_it_signs_out() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = world("");
    let aws = |arguments: &[&str]| {
        let mut command = world.laptop.command(sdk("awscli-v2/aws"));
        command.args(arguments).envs(world.aws.environment());
        world.laptop.run(command).success().stdout()
    };
    let export = ["configure", "export-credentials", "--profile", "dev"];
    let theirs: Value = serde_json::from_str(&aws(&export)).unwrap();
    let calls = world.aws.calls();
    assert_eq!(json(&world, &["-p", "dev"], &[])["SecretAccessKey"], theirs["SecretAccessKey"]);
    assert_eq!(world.aws.calls(), calls, "nobody was asked");
    // Nothing of ours is on a disk.
    let cache = world.laptop.join(".aws/cli/cache");
    let files = || {
        std::fs::read_dir(&cache)
            .unwrap()
            .filter(|file| {
                file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "json")
            })
            .count()
    };
    assert_ne!(key(&world, &["-p", "audit"], &[]), theirs["AccessKeyId"].as_str().unwrap());
    assert_eq!(files(), 1);
    let logout = world.broker(&["logout", "--sso-session", "corp"]);
    world.run(logout).success();
    assert_eq!(files(), 0);
    world.assert_no_secret();
}
