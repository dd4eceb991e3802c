//! Logging in: one window for a dead sign-in however many tunnels run, a page worth looking at in a real browser, and
//! one cache with the AWS CLI in both directions.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sandbox::{
    aws::{Consent, FakeAws, Fault, Operation, TokenSeed},
    home::{Process, Stream, run_within},
};

use crate::support::{BASTION, ENDS, PATIENCE, World, eventually, sdk};

/// A browser that only notes what it was to open.
const NOTES: &str = "#!/bin/sh\nprintf '%s\\n' \"$1\" >> \"$HOME/windows\"\n";

/// A look at the token file every second, and a call of AWS, on a busy machine.
const RECOVERY: Duration = Duration::from_secs(8);

fn browser(world: &World, script: &str) -> String {
    world.laptop.write("browser", script, 0o755).display().to_string()
}

/// The URLs that were opened so far.
fn windows(world: &World) -> Vec<String> {
    let path = world.laptop.join("windows");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Goes where a person would go who allows what the page asks for.
fn visit(world: &World, url: &str) {
    let mut curl = world.laptop.command("curl");
    curl.args(["-sSL", "--noproxy", "*", "-o", "/dev/null", url]);
    let _page = world.laptop.run(curl).success();
}

fn tunnel(world: &World, browser: &str) -> Process {
    let mut connect = world.broker(&["connect", BASTION, "-N", "-R", "auto", "-p", "dev"]);
    connect.env("BROWSER", browser);
    let mut process = world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    process
}

fn end(world: &mut World, tunnels: Vec<Process>) {
    for mut process in tunnels {
        process.signal(Signal::SIGINT);
        let output = process.wait(ENDS);
        assert_eq!(output.code, Some(130), "{output}");
        world.heard("a tunnel", &output);
    }
}

/// What ends a sign-in for good.
fn kill_session(world: &World) {
    world.aws.expire_access_tokens();
    world.aws.revoke_refresh_tokens();
}

#[test]
fn a_dead_sign_in_opens_one_window_and_one_login_anywhere_brings_all_tunnels_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let browser = browser(&world, NOTES);
    world.aws.set_role_life(Duration::from_secs(6));
    let mut tunnels: Vec<Process> = (0..3).map(|_| tunnel(&world, &browser)).collect();
    assert_eq!(windows(&world), Vec::<String>::new());

    kill_session(&world);
    for tunnel in &mut tunnels {
        tunnel.wait_for_line(Stream::Stderr, "broker login --sso-session corp", PATIENCE);
    }
    eventually("a window", PATIENCE, || {
        if windows(&world).is_empty() { Err("no window yet".into()) } else { Ok(()) }
    });
    let mut status = world.broker(&["status"]);
    status.env("BROWSER", &browser);
    let status = world.run(status).success();
    assert_eq!(status.stdout().matches("broker login --sso-session corp").count(), 3, "{status}");

    // A person who does not want to now is not asked again, by none of them.
    world.aws.set_consent(Consent::Denied);
    visit(&world, &windows(&world)[0]);
    eventually("the end of that login", PATIENCE, || {
        let said: String = tunnels.iter().map(|tunnel| tunnel.text(Stream::Stderr)).collect();
        if said.contains("could not log in to `corp`") { Ok(()) } else { Err(said) }
    });
    let refresh = world.broker(&["refresh"]);
    let _in_vain = world.run(refresh);
    world.aws.set_consent(Consent::Granted);

    // Somebody logs in elsewhere.
    world.aws.set_role_life(Duration::from_secs(3600));
    world.aws.seed_token(world.laptop.path(), "corp");
    world.own_aws_files();
    let since = Instant::now();
    for tunnel in &mut tunnels {
        let left = RECOVERY.saturating_sub(since.elapsed());
        tunnel.wait_for_line(Stream::Stderr, "get credentials again", left);
    }
    assert_eq!(windows(&world).len(), 1, "one window for one incident");
    end(&mut world, tunnels);
    assert_eq!(windows(&world).len(), 1);
    world.assert_clean();
}

#[test]
fn the_window_of_one_broker_brings_the_tunnels_of_all_back() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let browser = browser(&world, NOTES);
    world.aws.set_role_life(Duration::from_secs(6));
    let mut tunnels: Vec<Process> = (0..2).map(|_| tunnel(&world, &browser)).collect();
    kill_session(&world);
    for tunnel in &mut tunnels {
        tunnel.wait_for_line(Stream::Stderr, "broker login --sso-session corp", PATIENCE);
    }
    let url = eventually("a window", PATIENCE, || windows(&world).pop().ok_or("no window yet".into()));
    // Who comes now waits for the window that is open, and does not open another.
    let mut waiting = world.broker(&["credentials", "-p", "audit"]);
    waiting.env("BROWSER", &browser);
    let mut waiting = world.laptop.spawn(waiting);
    waiting.wait_for_line(Stream::Stderr, "waits for a login to `corp`", PATIENCE);

    world.aws.set_role_life(Duration::from_secs(3600));
    visit(&world, &url);
    for tunnel in &mut tunnels {
        tunnel.wait_for_line(Stream::Stderr, "get credentials again", RECOVERY);
    }
    assert_eq!(waiting.wait(RECOVERY).code, Some(0));
    assert_eq!(windows(&world).len(), 1);
    end(&mut world, tunnels);
    world.assert_clean();
}

#[test]
fn who_logged_out_and_who_may_not_have_a_role_are_sent_to_no_window() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let browser = browser(&world, NOTES);
    world.aws.fault(Operation::GetRoleCredentials, Fault::error(403, "ForbiddenException", "No access"));
    for arguments in [&["credentials", "-p", "dev"][..], &["connect", BASTION, "-p", "dev", "--", "true"]] {
        let mut command = world.broker(arguments);
        command.env("BROWSER", &browser);
        let output = world.run(command);
        assert!(output.stderr().contains("No access"), "{output}");
    }
    world.aws.clear_faults();
    world.aws.set_role_life(Duration::from_secs(6));
    let mut tunnel = tunnel(&world, &browser);
    world.aws.fault(Operation::GetRoleCredentials, Fault::error(403, "ForbiddenException", "No access"));
    tunnel.wait_for_line(Stream::Stderr, "No access", PATIENCE);
    world.aws.clear_faults();
    end(&mut world, vec![tunnel]);

    let tunnel_of = self::tunnel;
    let mut tunnel = tunnel_of(&world, &browser);
    let logout = world.broker(&["logout", "-p", "dev"]);
    let _out = world.run(logout).success();
    tunnel.wait_for_line(Stream::Stderr, "nobody is logged in", PATIENCE);
    end(&mut world, vec![tunnel]);
    assert_eq!(windows(&world), Vec::<String>::new());
    world.assert_clean();
}

#[test]
fn what_a_refresh_brings_is_kept_though_nobody_waits_for_it_any_more() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let expired = TokenSeed { expired: true, ..TokenSeed::default() };
    for arguments in [
        &["credentials", "--batch", "-p", "dev"][..],
        &["connect", BASTION, "--batch", "-N", "-p", "dev"],
        &["grant", BASTION, "--batch", "-p", "audit"],
    ] {
        let tunnel = (arguments[0] == "grant").then(|| world.tunnel(&["-p", "dev"]));
        world.aws.seed_token_with(world.laptop.path(), "corp", expired);
        world.own_aws_files();
        let path = FakeAws::token_path(world.laptop.path(), "corp");
        let before = std::fs::read(&path).unwrap();
        let calls = world.aws.calls().len();
        world.aws.fault(Operation::CreateToken, Fault::Delay(Duration::from_millis(1000)));
        let mut process = world.laptop.spawn(world.broker(arguments));
        eventually("a refresh", PATIENCE, || {
            if world.aws.calls().len() > calls { Ok(()) } else { Err("AWS was not called".into()) }
        });
        process.signal(Signal::SIGINT);
        let output = process.wait(ENDS);
        assert_eq!(output.code.map(|code| code == 130 || code == 255), Some(true), "{output}");
        world.heard("interrupted", &output);
        assert_ne!(std::fs::read(&path).unwrap(), before, "the new token is in the file");
        world.aws.clear_faults();
        // Also its refresh token is good.
        world.aws.expire_access_tokens();
        let output = world.laptop.run(world.broker(&["credentials", "--batch", "-p", "dev"]));
        assert_eq!(output.code, Some(0), "{output}");
        if let Some(tunnel) = tunnel {
            let _stopped = tunnel.stop(&mut world);
        }
    }
    world.assert_clean();
}

/// Goes on in the background, as browsers do.
const CURL: &str = "#!/bin/sh\ncurl -sSL --noproxy '*' -o \"$HOME/page.html\" \"$1\" &\n";

/// A real one, which leaves what the page became, or a picture of it.
const CHROMIUM: &str = r#"#!/bin/sh
exec >"$HOME/page.$$" 2>"$HOME/chromium.log"
chromium --headless --no-sandbox --no-first-run --disable-gpu --disable-background-networking --no-proxy-server \
  --user-data-dir="$HOME/chromium" --window-size=900,640 $CHROMIUM "$1"
mv "$HOME/page.$$" "$HOME/page.html"
"#;

/// The first start of a browser on a busy machine.
const BROWSER: Duration = Duration::from_secs(90);

/// Signs in with a browser, and returns what broker said and what the browser made of the page.
fn sign_in(world: &mut World, browser: &str, mode: &str, code: i32) -> String {
    let page = world.laptop.join("page.html");
    let _none = std::fs::remove_file(&page);
    let mut login = world.broker(&["login", "-p", "dev"]);
    login.env("BROWSER", browser).env("CHROMIUM", mode);
    let mut process = world.laptop.spawn(login);
    let output = process.wait(BROWSER);
    world.heard("broker login", &output);
    assert_eq!(output.code, Some(code), "{output}");
    eventually("the page", BROWSER, || match std::fs::read_to_string(&page) {
        Ok(text) => Ok(text),
        Err(error) => Err(format!("{error}; {}", world.laptop.read("chromium.log"))),
    })
}

/// The colour of the upper left pixel of a PNG.
const PIXEL: &str = r"
import struct, sys, zlib
data, at, pixels = open(sys.argv[1], 'rb').read(), 8, b''
while at < len(data):
    length, kind = struct.unpack('>I4s', data[at:at + 8])
    if kind == b'IDAT': pixels += data[at + 8:at + 8 + length]
    at += 12 + length
# Whatever the filter, the first pixel is as it is.
print(zlib.decompress(pixels)[1:4].hex())
";

#[test]
fn a_real_browser_shows_how_the_login_went_in_light_and_in_dark() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let browser = browser(&world, CHROMIUM);
    let page = sign_in(&mut world, &browser, "--dump-dom", 0);
    for words in
        ["<title>Signed in · broker</title>", "<h1>You are signed in</h1>", "go back to the terminal"]
    {
        assert!(page.contains(words), "{page}");
    }
    assert!(!page.contains("<script") && !page.contains("code=") && !page.contains("state="), "{page}");
    // The style is allowed by its digest; without it, both would be white.
    for (scheme, colour) in [("1", "f3f4f7"), ("0", "12161d")] {
        let picture = world.laptop.join(format!("page-{scheme}.png"));
        let mode =
            format!("--blink-settings=preferredColorScheme={scheme} --screenshot={}", picture.display());
        sign_in(&mut world, &browser, &mode, 0);
        let mut python = world.laptop.command("python3");
        python.arg("-c").arg(PIXEL).arg(&picture);
        assert_eq!(world.laptop.run(python).success().stdout().trim(), colour, "{}", picture.display());
    }
    world.aws.set_consent(Consent::Denied);
    let page = sign_in(&mut world, &browser, "--dump-dom", 3);
    assert!(page.contains("<h1>The sign-in did not work</h1>"), "{page}");
    assert!(!page.contains("the person denied"), "nothing that was sent is shown: {page}");
    world.assert_clean();
}

#[test]
fn without_a_browser_the_address_is_printed_and_two_logins_at_once_both_end_well() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.set_consent(Consent::Pending);
    let mut login = world.broker(&["login", "-p", "dev", "--no-browser"]);
    login.env("BROWSER", browser(&world, NOTES));
    let mut process = world.laptop.spawn(login);
    let line = process.wait_for_line(Stream::Stderr, "/device?user_code=", PATIENCE);
    visit(&world, line.split_whitespace().find(|word| word.starts_with("http://")).unwrap());
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker login --no-browser", &output);
    assert_eq!(windows(&world), Vec::<String>::new());

    world.aws.set_consent(Consent::Granted);
    let browser = browser(&world, CURL);
    let mut both: Vec<Process> = (0..2)
        .map(|_| {
            let mut login = world.broker(&["login", "-p", "dev"]);
            login.env("BROWSER", &browser);
            world.laptop.spawn(login)
        })
        .collect();
    for process in &mut both {
        let output = process.wait(PATIENCE);
        assert_eq!(output.code, Some(0), "{output}");
        world.heard("broker login", &output);
    }
    let output = world.laptop.run(world.broker(&["credentials", "--batch", "-p", "dev"]));
    assert_eq!(output.code, Some(0), "{output}");
    world.assert_clean();
}

/// AWS CLI v2 on the laptop.
fn aws(world: &World, arguments: &[&str]) -> std::process::Command {
    let mut command = world.laptop.command(sdk("awscli-v2/aws"));
    command.args(arguments).envs(world.aws.environment()).env("BROWSER", browser(world, CURL) + " %s");
    command
}

/// Has whoever reads the token find it expired, so that it has to be refreshed.
fn age(world: &World) {
    let path = FakeAws::token_path(world.laptop.path(), "corp");
    let mut token: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    token["expiresAt"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(&path, token.to_string()).unwrap();
}

#[test]
fn a_login_of_the_aws_cli_serves_broker_and_one_of_broker_serves_the_aws_cli() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let cache = world.laptop.join(".aws/sso/cache");
    let credentials = ["credentials", "--batch", "-p", "dev"];
    let arn = World::arn("Developer");
    let whoami = ["sts", "get-caller-identity", "--profile", "dev", "--query", "Arn", "--output", "text"];
    let registrations =
        |world: &World| world.aws.calls().iter().filter(|call| call.starts_with("RegisterClient")).count();

    // Theirs for us: token, refresh, and the registration for a login of ours.
    std::fs::remove_dir_all(&cache).unwrap();
    let _login = run_within(aws(&world, &["sso", "login", "--profile", "dev"]), &[], BROWSER).success();
    let _ours = world.laptop.run(world.broker(&credentials)).success();
    age(&world);
    let _ours = world.laptop.run(world.broker(&credentials)).success();
    assert_eq!(registrations(&world), 1, "{:?}", world.aws.calls());
    let mut login = world.broker(&["login", "-p", "dev"]);
    login.env("BROWSER", browser(&world, CURL));
    let _login = world.run(login).success();
    assert_eq!(registrations(&world), 1, "theirs is used: {:?}", world.aws.calls());

    // Ours for them.
    std::fs::remove_dir_all(&cache).unwrap();
    let mut login = world.broker(&["login", "-p", "dev"]);
    login.env("BROWSER", browser(&world, CURL));
    let _login = world.run(login).success();
    assert_eq!(registrations(&world), 2);
    let output = run_within(aws(&world, &whoami), &[], BROWSER).success();
    assert_eq!(output.stdout().trim(), arn);
    age(&world);
    let _forgotten = std::fs::remove_dir_all(world.laptop.join(".aws/cli/cache"));
    let calls = world.aws.calls().len();
    let output = run_within(aws(&world, &whoami), &[], BROWSER).success();
    assert_eq!(output.stdout().trim(), arn);
    let since = world.aws.calls().split_off(calls);
    assert!(since.contains(&"CreateToken(refresh_token)".to_owned()), "{since:?}");
    let _login = run_within(aws(&world, &["sso", "login", "--profile", "dev"]), &[], BROWSER).success();
    assert_eq!(registrations(&world), 2, "ours is used: {:?}", world.aws.calls());
    // What they refreshed and wrote anew is ours again, and the other way round; what they have of the role is not asked for.
    let _forgotten = std::fs::remove_dir_all(world.laptop.join(".aws/cli/cache"));
    let _ours = world.laptop.run(world.broker(&credentials)).success();
    let _out = run_within(aws(&world, &["sso", "logout"]), &[], BROWSER).success();
    let output = world.run(world.broker(&credentials));
    assert_eq!(output.code, Some(3), "{output}");
    let _cli = std::fs::remove_dir_all(world.laptop.join(".aws/cli"));
    world.assert_clean();
}
