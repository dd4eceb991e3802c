//! VS Code's own server on the host, as VS Code Remote has it: started over ssh without a login shell, detached, there
//! before us and after us. A browser on the laptop is the editor's window.

use std::time::Duration;

use sandbox::home::Stream;

use crate::support::{BASTION, PATIENCE, World, eventually, sdk};

/// What a browser and an editor may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

const WHO: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

#[test]
fn extensions_and_terminals_of_vs_code_have_the_role_while_there_is_a_tunnel() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant("who.py", WHO, 0o644);
    let extension = ".vscode-server/extensions/broker.identity-1.0.0";
    world.plant(&format!("{extension}/package.json"), include_str!("extension/package.json"), 0o644);
    world.plant(&format!("{extension}/main.js"), include_str!("extension/main.js"), 0o644);
    // Which profile an editor uses is in its settings, or where its server reads its environment from.
    let start = format!(
        "export AWS_PROFILE=dev AWS_REGION=eu-west-1 AWS_EC2_METADATA_DISABLED=true TEST_SDK={} TEST_PYTHON={}; \
         nohup setsid {}/bin/code-server-oss --start-server --host=127.0.0.1 --port=4567 --without-connection-token \
         --enable-remote-auto-shutdown --accept-server-license-terms --telemetry-level=off \
         --server-data-dir=$HOME/.vscode-server > server.log 2>&1 < /dev/null & \
         until grep -q 'Extension host agent started' server.log; do sleep 0.1; done; echo started",
        sdk("node_modules/@aws-sdk/client-sts").display(),
        sdk("python/bin/python").display(),
        sdk("vscode").display(),
    );
    let mut ssh = world.laptop.ssh();
    ssh.args([BASTION, &start]);
    let mut ssh = world.laptop.spawn(ssh);
    ssh.wait_for_line(Stream::Stdout, "started", START);
    assert_eq!(ssh.wait(PATIENCE).code, Some(0), "the connection that started it ends before us");
    let mut window = world.laptop.command("chromium");
    window.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server"]);
    window.arg(format!("--user-data-dir={}", world.laptop.join("browser").display()));
    let window = world.laptop.spawn({
        window.arg("http://127.0.0.1:4567/?ew=true");
        window
    });

    let ask = |world: &World, path: &str| {
        let curl =
            world.on_host("curl", &["-sS", "--noproxy", "*", &format!("http://127.0.0.1:4568/{path}")]);
        let output = world.laptop.run(curl);
        if output.code == Some(0) { Ok(output.stdout().trim().to_owned()) } else { Err(output.stderr()) }
    };
    let version = eventually("the extension runs", START, || {
        ask(&world, "version").map_err(|error| {
            let log = std::fs::read_to_string(world.home_file("server.log")).unwrap_or_default();
            format!("{error}, {log}, {}", window.text(Stream::Stderr))
        })
    });
    assert!(version.starts_with("1."), "{version}");
    // The SDK for JavaScript reads `~/.aws/config` once in the life of a process, so an extension that looks before us
    // has to be reloaded once; one that does not is served by every tunnel that follows.
    let before = ask(&world, "terminal").unwrap();
    assert!(before.contains("profile (dev)"), "{before}");
    for _ in 0..2 {
        let tunnel = world.tunnel(&["-p", "dev", "--install-profiles"]);
        for path in ["extension", "terminal"] {
            assert_eq!(ask(&world, path), Ok(World::arn("Developer")), "{path}");
        }
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        world.assert_clean();
        let after = ask(&world, "terminal").unwrap();
        assert!(after.contains("profile (dev)"), "{after}");
    }
    drop(window);
    let node = sdk("vscode/node").display().to_string();
    world.kill_on_host(&format!("{node} {}", sdk("vscode/out/server-main.js").display()));
    world.wait_for_clean_host();
    world.assert_clean();
}
