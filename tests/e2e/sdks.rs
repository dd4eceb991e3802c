//! Real SDKs on the host get the role, with no step there besides starting the program.

use std::{
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, SystemTime},
};

use sandbox::{
    aws::{Consent, Fault, Operation, TokenSeed},
    home::{Process, Stream},
    secrets::{Place, assert_no_secret},
    sshd::SshdOptions,
    users::User,
};

use crate::support::{ACCOUNT, ENDS, PATIENCE, REGION, World, eventually, sdk};

/// Prints the ARN, as users' programs would get it.
const BOTO3: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

/// What a person without any SDK does, by the two variables of the container protocol alone.
const CURL: &str = r#"
set -eu
field() { sed -n 's/.*"'"$1"'":"\([^"]*\)".*/\1/p' "$2"; }
umask 077
body=$(mktemp)
trap 'rm -f "$body"' EXIT
{ printf 'Authorization: '; cat "$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"; } |
  curl -sSf -H @- -o "$body" "$AWS_CONTAINER_CREDENTIALS_FULL_URI"
printf 'user = "%s:%s"\nheader = "x-amz-security-token: %s"\n' \
  "$(field AccessKeyId "$body")" "$(field SecretAccessKey "$body")" "$(field Token "$body")" |
  curl -sSf -K - --aws-sigv4 "aws:amz:$AWS_REGION:sts" \
    -d 'Action=GetCallerIdentity&Version=2011-06-15' "$AWS_ENDPOINT_URL_STS/" |
  sed -n 's:.*<Arn>\(.*\)</Arn>.*:\1:p'
"#;

/// A program that prints the ARN of who it is, as a line for a shell of the host.
fn boto3() -> String {
    format!("{} -c \"{BOTO3}\"", sdk("python/bin/python").display())
}

fn aws_cli() -> String {
    let python = sdk("python/bin/python");
    format!("{} -m awscli sts get-caller-identity --query Arn --output text", python.display())
}

fn javascript() -> String {
    let module = sdk("node_modules/@aws-sdk/client-sts");
    format!(
        "/usr/bin/node -e \"const {{STSClient, GetCallerIdentityCommand}} = require('{}'); \
         new STSClient().send(new GetCallerIdentityCommand()).then(who => console.log(who.Arn))\"",
        module.display()
    )
}

fn curl(world: &World) -> String {
    let path = world.sshd.user().home.join(".broker-e2e-curl");
    // Other tests of the same user may be reading it.
    let temporary = path.with_extension(std::process::id().to_string());
    std::fs::write(&temporary, CURL).unwrap();
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::rename(temporary, &path).unwrap();
    format!("sh {}", path.display())
}

/// Runs `program` in a command, in an interactive shell, and in a second login.
fn has_the_role(program: impl FnOnce(&World) -> String) {
    let mut world = World::new();
    let program = program(&world);
    let arn = World::arn("Developer");

    let output = world.run(world.connect(&["-p", "dev", "--", &program]));
    assert_eq!((output.stdout().trim(), output.code), (&*arn, Some(0)), "in a command: {output}");

    let mut shell = world.laptop.terminal(world.connect(&["-p", "dev"]), 40, 200);
    shell.wait_for_text("AWS SDKs on", PATIENCE);
    shell.send(format!("{program}\n"));
    shell.wait_for_text(&arn, PATIENCE);
    shell.send("exit 0\n");
    let output = shell.wait(PATIENCE);
    world.heard("broker on a terminal", &output);
    assert_eq!(output.code, Some(0), "in a shell: {output}");

    let tunnel = world.tunnel(&["-p", "dev"]);
    let mut second = world.on_host("sh", &["-c", &program]);
    second.envs(&tunnel.environment);
    let output = world.run(second);
    assert_eq!((output.stdout().trim(), output.code), (&*arn, Some(0)), "in a second login: {output}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

#[test]
fn boto3_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    has_the_role(|_| boto3());
}

#[test]
fn the_aws_cli_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    has_the_role(|_| aws_cli());
}

#[test]
fn the_javascript_sdk_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    has_the_role(|_| javascript());
}

#[test]
fn curl_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    has_the_role(curl);
}

#[test]
fn an_answer_is_what_every_sdk_reads_and_nothing_else() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let user = world.sshd.user().clone();
    let answer = world.fetch(&user, tunnel.url(), Some(&tunnel.token()));
    let headers = answer.headers();
    let length = answer.json().to_string().len();
    let mut expected = vec![
        "Content-Type: application/json".to_owned(),
        "Cache-Control: no-store".to_owned(),
        "X-Content-Type-Options: nosniff".to_owned(),
        "Connection: close".to_owned(),
        format!("Content-Length: {length}"),
    ];
    let mut sorted = headers.clone();
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    let body = answer.json();
    let mut names: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let all = [
        "AccessKeyId",
        "AccountId",
        "Code",
        "Expiration",
        "LastUpdated",
        "SecretAccessKey",
        "SessionToken",
        "Token",
        "Type",
        "Version",
    ];
    // AWS does not say the ARN with the credentials; it may be there.
    names.retain(|name| *name != "RoleArn");
    assert_eq!(names, all);
    assert_eq!(answer.key_id(), world.aws.last_issued(ACCOUNT, "Developer").unwrap());
    assert_eq!(
        (&body["Version"], &body["Code"], &body["Type"]),
        (&1.into(), &"Success".into(), &"AWS-HMAC".into())
    );
    assert_eq!(body["Token"], body["SessionToken"]);
    assert_eq!(body["AccountId"], ACCOUNT);
    for name in ["Expiration", "LastUpdated"] {
        let shape: String =
            body[name].as_str().unwrap().chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00Z", "{name}");
    }
    for secret in ["SecretAccessKey", "Token"] {
        let secret = body[secret].as_str().unwrap().to_owned();
        assert!(world.aws.secrets().contains(&secret));
    }
    let health = world.fetch(&user, &format!("{}healthcheck", tunnel.url()), Some(&tunnel.token()));
    assert_eq!(health.status(), 200);
    assert_eq!(health.json().as_object().unwrap().len(), 2, "no more than that all is well, and until when");
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn each_profile_has_its_own_token_and_path() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", "tcp"]);
    let user = world.sshd.user().clone();
    let (dev, audit_file) = (tunnel.token(), tunnel.token_file().with_file_name("token-audit"));
    let audit = std::fs::read_to_string(&audit_file).unwrap();
    world.keep_token(&audit);
    assert_ne!(dev, audit);
    for file in [&tunnel.token_file(), &audit_file] {
        let mode = std::fs::metadata(file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    let at = |path: &str| format!("{}{path}", tunnel.url());
    let issued = |role| world.aws.last_issued(ACCOUNT, role).unwrap();
    let (developer, auditor) = (issued("Developer"), issued("Auditor"));
    assert_eq!(world.fetch(&user, &at(""), Some(&dev)).key_id(), developer);
    assert_eq!(world.fetch(&user, &at("slot/dev"), Some(&dev)).key_id(), developer);
    assert_eq!(world.fetch(&user, &at("slot/audit"), Some(&audit)).key_id(), auditor);

    let refused = world.fetch(&user, &at(""), Some("Bearer wrong"));
    assert_eq!(refused.status(), 401);
    for (path, token) in [
        ("", &audit),
        ("slot/dev", &audit),
        ("healthcheck", &audit),
        ("slot/audit", &dev),
        ("healthcheck/slot/audit", &dev),
        ("slot/nobody", &dev),
        ("slot", &dev),
        ("", &dev.replace("Bearer ", "")),
        ("", &dev[..dev.len() - 1].to_owned()),
    ] {
        let answer = world.fetch(&user, &at(path), Some(token));
        assert_eq!(answer, refused, "/{path} is not refused in the same bytes");
    }
    let helpful = world.fetch(&user, &at(""), None);
    assert_eq!(helpful.status(), 401);
    let sentence = helpful.json()["message"].as_str().unwrap().to_owned();
    assert!(sentence.contains("--token env"), "{sentence}");

    let mut second = world.on_host("sh", &["-c", &boto3()]);
    second.envs(&tunnel.environment);
    second.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", at("slot/audit"));
    second.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &audit_file);
    let output = world.run(second);
    assert_eq!(output.stdout().trim(), World::arn("Auditor"), "{output}");
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn the_environment_leads_to_us_alone() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut connect = vec!["-p", "dev", "--"];
    connect.push(
        "env -0 | tr '\\0' '\\n' | grep -E '^(AWS|NO_PROXY|no_proxy)' | sort; cat \"$AWS_CONFIG_FILE\" >&2",
    );
    let output = world.run(world.connect(&connect)).success();
    let text = output.stdout();
    let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
    assert_eq!(of("AWS_CONTAINER_CREDENTIALS_FULL_URI"), Some("http://127.0.0.1:4144/"));
    assert_eq!((of("AWS_REGION"), of("AWS_DEFAULT_REGION")), (Some(REGION), Some(REGION)));
    assert_eq!(of("AWS_EC2_METADATA_DISABLED"), Some("true"));
    assert_eq!(of("AWS_CONTAINER_AUTHORIZATION_TOKEN"), None, "the token is in a file");
    let directory = of("AWS_CONFIG_FILE").unwrap().strip_suffix("/config").unwrap();
    assert_eq!(of("AWS_SHARED_CREDENTIALS_FILE").unwrap(), format!("{directory}/credentials"));
    assert_eq!(of("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap(), format!("{directory}/token-dev"));
    assert!(of("NO_PROXY").unwrap().contains("127.0.0.1") && of("no_proxy").unwrap().contains("127.0.0.1"));
    assert!(output.stderr().contains(&format!("region = {REGION}")), "{output}");
    world.assert_clean();
}

#[test]
fn the_exports_are_read_by_every_shell() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let program = curl(&world);
    for shell in ["sh", "bash", "zsh"] {
        let (process, exports) = prints_exports(&world, &["--print-env", shell]);
        reads_the_exports(&mut world, shell, &exports, &program);
        stop(&mut world, process);
    }
    world.assert_clean();
}

#[test]
fn without_a_wish_the_exports_are_for_the_login_shell() {
    if sandbox::isolated!() {
        return;
    }
    for shell in ["zsh", "ksh", "bash"] {
        let user = User::ensure(&format!("broker-host-{shell}"), format!("/usr/bin/{shell}"));
        let mut world = World::with(SshdOptions::new(user));
        let program = curl(&world);
        let (process, exports) = prints_exports(&world, &[]);
        reads_the_exports(&mut world, shell, &exports, &program);
        stop(&mut world, process);
        world.assert_clean();
    }
}

fn prints_exports(world: &World, arguments: &[&str]) -> (Process, String) {
    let mut all = vec!["-p", "dev", "-N"];
    all.extend_from_slice(arguments);
    let mut process = world.laptop.spawn(world.connect(&all));
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let exports = process.text(Stream::Stdout);
    (process, exports)
}

fn stop(world: &mut World, mut process: Process) {
    process.signal(nix::sys::signal::Signal::SIGINT);
    let output = process.wait(ENDS);
    world.heard("broker", &output);
    assert_eq!(output.code, Some(130), "{output}");
}

/// A login that has stale settings of its own reads the exports and has the role.
fn reads_the_exports(world: &mut World, shell: &str, exports: &str, program: &str) {
    let mut login = world.on_host(shell, &["-c", &format!("eval \"$EXPORTS\"; {program}")]);
    login
        .env("EXPORTS", exports)
        .env("AWS_PROFILE", "stale")
        .env("AWS_ACCESS_KEY_ID", "AKIASTALESTALESTALE1");
    login.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "");
    let output = world.run(login);
    assert_eq!(output.stdout().trim(), World::arn("Developer"), "{shell}: {output}");
}

#[test]
fn with_token_env_the_token_is_in_the_environment() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let script = format!(
        "[ -z \"${{AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE+set}}\" ] || exit 5; \
         case $AWS_CONTAINER_AUTHORIZATION_TOKEN in ('Bearer '*) ;; (*) exit 6;; esac; \
         {}; {}",
        boto3(),
        javascript()
    );
    let output = world.run(world.connect(&["-p", "dev", "--token", "env", "--", &script]));
    let arn = World::arn("Developer");
    assert_eq!((output.stdout(), output.code), (format!("{arn}\n{arn}\n"), Some(0)), "{output}");
    world.assert_clean();
}

/// Writes the profiles in the form that came before `sso-session`, and takes the token away.
fn legacy(world: &World) {
    let profiles = [("dev", ACCOUNT, "Developer")];
    world.aws.seed_legacy_home(world.laptop.path(), &profiles, REGION);
    sign_out(world);
}

fn sign_out(world: &World) {
    std::fs::remove_dir_all(world.laptop.join(".aws/sso")).unwrap();
    world.own_aws_files();
}

#[test]
fn a_legacy_profile_works_with_the_token_of_its_start_url() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    legacy(&world);
    let seed = TokenSeed { without_refresh_token: true, ..TokenSeed::default() };
    world.aws.seed_token_with(world.laptop.path(), &world.aws.start_url(), seed);
    world.own_aws_files();
    let output = world.run(world.connect(&["-p", "dev", "--", &boto3()]));
    assert_eq!((output.stdout().trim(), output.code), (&*World::arn("Developer"), Some(0)), "{output}");
    assert_eq!(
        world.aws.calls(),
        [&*format!("GetRoleCredentials({ACCOUNT}/Developer)"), "GetCallerIdentity"]
    );
    world.assert_clean();
}

#[test]
fn an_expired_token_is_refreshed_without_a_word() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let seed = TokenSeed { expired: true, ..TokenSeed::default() };
    world.aws.seed_token_with(world.laptop.path(), "corp", seed);
    world.own_aws_files();
    let connect = world.connect(&["-p", "dev", "--", "true"]);
    let output = world.run(connect);
    assert_eq!(output.code, Some(0), "{output}");
    let calls = ["CreateToken(refresh_token)", &format!("GetRoleCredentials({ACCOUNT}/Developer)")];
    assert_eq!(world.aws.calls(), calls);
    // The new token went to the cache, where the next one finds it.
    let connect = world.connect(&["-p", "dev", "--", "true"]);
    let output = world.run(connect);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(world.aws.calls()[2..], calls[1..]);
    world.assert_clean();
}

/// `broker connect` that may ask a person, who has no terminal.
fn connect_with_person(world: &World, arguments: &[&str]) -> Command {
    let mut all = vec!["connect", "bastion"];
    all.extend_from_slice(arguments);
    world.broker(&all)
}

/// The person opens the page that broker prints, in a browser somewhere.
fn approve(world: &mut World, process: &mut Process) {
    process.wait_for_line(Stream::Stderr, "enter the code", PATIENCE);
    let code = process.wait_for_line(Stream::Stderr, "-", PATIENCE).trim().to_owned();
    process.wait_for_line(Stream::Stderr, "or open", PATIENCE);
    let page = process.wait_for_line(Stream::Stderr, "http", PATIENCE).trim().to_owned();
    assert!(page.contains(&code), "{page} does not show the code {code}");
    let mut browser = world.laptop.command("curl");
    browser.args(["-sSfL", "--noproxy", "*", &page]);
    let _page = world.run(browser).success();
}

#[test]
fn a_person_signs_in_with_a_code_on_another_device() {
    if sandbox::isolated!() {
        return;
    }
    for old in [false, true] {
        let mut world = World::new();
        if old {
            legacy(&world)
        } else {
            sign_out(&world)
        }
        world.aws.set_consent(Consent::Pending);
        let mut process = world.laptop.spawn(connect_with_person(&world, &["-p", "dev", "--", &boto3()]));
        approve(&mut world, &mut process);
        let output = process.wait(PATIENCE);
        world.heard("broker", &output);
        assert_eq!((output.stdout().trim(), output.code), (&*World::arn("Developer"), Some(0)), "{output}");
        assert!(
            world.aws.calls().iter().any(|call| call.starts_with("CreateToken(device_code")),
            "{:?}",
            world.aws.calls()
        );
        reads_our_token(&mut world);
        world.assert_clean();
    }
}

#[test]
fn a_person_signs_in_in_the_browser_here() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    sign_out(&world);
    let mut connect = connect_with_person(&world, &["-p", "dev", "--", &boto3()]);
    connect.env("BROWSER", "curl -sL --noproxy * -o /dev/null %s");
    let output = world.run(connect);
    assert_eq!((output.stdout().trim(), output.code), (&*World::arn("Developer"), Some(0)), "{output}");
    let calls = world.aws.calls();
    assert!(calls.iter().any(|call| call == "CreateToken(authorization_code)"), "{calls:?}");
    assert!(!calls.iter().any(|call| call == "StartDeviceAuthorization"), "{calls:?}");
    reads_our_token(&mut world);
    world.assert_clean();
}

/// boto3 and the AWS CLI on the laptop work with the token that broker put into the cache, and sign in to nothing.
fn reads_our_token(world: &mut World) {
    for program in [boto3(), aws_cli()] {
        let before = world.aws.calls().len();
        let mut local = world.laptop.command("sh");
        local.args(["-c", &program]).envs(world.aws.environment()).env("AWS_PROFILE", "dev");
        let output = world.run(local);
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{output}");
        let calls = world.aws.calls()[before..].to_vec();
        assert_eq!(calls, [&*format!("GetRoleCredentials({ACCOUNT}/Developer)"), "GetCallerIdentity"]);
    }
}

#[test]
fn a_token_goes_back_and_forth_between_us_and_botocore() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    sign_out(&world);
    // So short that everybody who reads it refreshes it first, and every refresh kills the token before it.
    world.aws.set_access_token_life(Duration::from_secs(600));
    let mut connect = connect_with_person(&world, &["-p", "dev", "--", "true"]);
    connect.env("BROWSER", "curl -sL --noproxy * -o /dev/null %s");
    let output = world.run(connect);
    assert_eq!(output.code, Some(0), "{output}");
    for turn in 0..2 {
        let before = world.aws.calls().len();
        let mut local = world.laptop.command("sh");
        local.args(["-c", &boto3()]).envs(world.aws.environment()).env("AWS_PROFILE", "dev");
        let output = world.run(local);
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{output}");
        assert_eq!(world.aws.calls()[before], "CreateToken(refresh_token)", "botocore, turn {turn}");

        let before = world.aws.calls().len();
        let connect = world.connect(&["-p", "dev", "--", "true"]);
        let output = world.run(connect);
        assert_eq!(output.code, Some(0), "{output}");
        let calls = world.aws.calls()[before..].to_vec();
        assert!(
            calls.iter().any(|call| call == "CreateToken(refresh_token)"),
            "broker, turn {turn}: {calls:?}"
        );
    }
    world.assert_clean();
}

#[test]
fn credentials_are_renewed_ahead_and_served_to_their_end_but_not_beyond() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(Duration::from_secs(15));
    let tunnel = world.tunnel(&["-p", "dev"]);
    let user = world.sshd.user().clone();
    let fetched = |world: &World| {
        world.aws.calls().iter().filter(|call| call.starts_with("GetRoleCredentials")).count()
    };
    let first = world.aws.last_issued(ACCOUNT, "Developer").unwrap();
    // Nobody asks, and yet there are new ones, before the first have ended.
    let expires = expiration(&world.fetch(&user, tunnel.url(), Some(&tunnel.token())).json());
    eventually("new credentials are fetched ahead", PATIENCE, || match fetched(&world) {
        1 => Err("still the first".to_owned()),
        _ => Ok(()),
    });
    assert!(SystemTime::now() < expires, "the first had ended already");
    let second = eventually("the new ones are served", PATIENCE, || {
        let served = world.fetch(&user, tunnel.url(), Some(&tunnel.token())).key_id();
        if served == first { Err("still the first".to_owned()) } else { Ok(served) }
    });

    // AWS is in trouble: what is valid is served to its end.
    world.aws.fault(Operation::GetRoleCredentials, Fault::Status(500));
    let before = fetched(&world);
    let (mut served, end) = (0, expiration(&world.fetch(&user, tunnel.url(), Some(&tunnel.token())).json()));
    let refused = eventually("nothing is served any more", PATIENCE, || {
        let asked = SystemTime::now();
        let answer = world.fetch(&user, tunnel.url(), Some(&tunnel.token()));
        if answer.status() == 200 {
            assert_eq!(answer.key_id(), second);
            assert!(expiration(&answer.json()) > asked, "expired credentials were served");
            served += usize::from(fetched(&world) > before);
            Err("still served".to_owned())
        } else {
            Ok(answer)
        }
    });
    assert!(SystemTime::now() >= end, "refused although there were valid ones");
    assert!(served > 0, "nothing was served while AWS was in trouble");
    assert_eq!(refused.status(), 503);

    // It recovers by itself.
    world.aws.clear_faults();
    eventually("credentials are there again", PATIENCE, || {
        match world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn a_tunnel_whose_sign_in_has_ended_says_so_and_recovers_by_itself_after_one_login() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_role_life(Duration::from_secs(8));
    let tunnel = world.tunnel(&["-p", "dev"]);
    let user = world.sshd.user().clone();
    world.aws.expire_access_tokens();
    world.aws.revoke_refresh_tokens();
    let refused = eventually("the sign-in has ended for the host too", PATIENCE, || {
        let answer = world.fetch(&user, tunnel.url(), Some(&tunnel.token()));
        if answer.status() == 200 { Err("still served".to_owned()) } else { Ok(answer) }
    });
    assert_eq!((refused.status(), &refused.json()["code"]), (403, &"LoginRequired".into()));
    let sentence = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(sentence.contains("broker login"), "{sentence}");
    // botocore shows the sentence to the person.
    let mut second = world.on_host("sh", &["-c", &boto3()]);
    second.envs(&tunnel.environment).env("AWS_MAX_ATTEMPTS", "1");
    let output = world.run(second);
    assert!(output.stderr().contains("broker login"), "{output}");

    world.aws.set_role_life(Duration::from_secs(3600));
    let mut login = world.broker(&["login", "-p", "dev"]);
    login.env("BROWSER", "curl -sL --noproxy * -o /dev/null %s");
    let _signed_in = world.run(login).success();
    eventually("credentials are there again", 2 * PATIENCE, || {
        match world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status() {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn while_a_shell_runs_the_token_is_in_its_file_alone() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut shell = world.laptop.terminal(world.connect(&["-p", "dev"]), 40, 200);
    shell.wait_for_text("AWS SDKs on", PATIENCE);
    shell.send("echo to''ken=$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=\n");
    shell.wait_for_text("token=", PATIENCE);
    let file = shell.wait_for_text("=", PATIENCE);
    let token = std::fs::read_to_string(file.trim_end_matches('=')).unwrap();
    world.keep_token(&token);
    let mut secrets = world.aws.secrets();
    secrets.push(token.trim_start_matches("Bearer ").to_owned());
    let directory = world.sshd.user().home.clone();
    let places = [
        Place::Arguments,
        Place::Environments,
        Place::below(directory),
        Place::output("sshd's log", world.sshd.log()),
    ];
    assert_no_secret(&secrets, &places);
    shell.send("exit\n");
    let output = shell.wait(PATIENCE);
    world.heard("broker on a terminal", &output);
    world.assert_clean();
}

/// When credentials end, by the clock of this machine.
fn expiration(body: &serde_json::Value) -> SystemTime {
    let text = body["Expiration"].as_str().unwrap();
    let mut date = Command::new("date");
    date.args(["-u", "+%s", "-d", text]);
    let output = sandbox::home::run_within(date, &[], PATIENCE).success();
    SystemTime::UNIX_EPOCH + Duration::from_secs(output.stdout().trim().parse().unwrap())
}
