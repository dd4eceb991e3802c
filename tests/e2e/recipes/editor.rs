//! Editors that keep a server on the host, such as VS Code Remote: started over ssh without a login shell, detached,
//! there before us and after us. A server of Node.js that is started the same way stands for it.

use sandbox::home::Stream;

use crate::support::{PATIENCE, World, sdk};

/// Answers each request with who it is: in its own process, as extensions are, or in a terminal, which is its child.
const SERVER: &str = r#"
const {createRequire} = require('module'), {execFile} = require('child_process');
const {STSClient, GetCallerIdentityCommand} = createRequire(process.argv[2])(process.argv[2]);
require('http').createServer((request, response) => {
  const end = text => response.end(text + '\n');
  if (request.url === '/terminal')
    return execFile(process.argv[3], ['-c', "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])"],
      (error, out, err) => end(error ? 'failed: ' + err.trim().split('\n').pop() : out.trim()));
  new STSClient().send(new GetCallerIdentityCommand()).then(who => end(who.Arn), error => end('failed: ' + error.message));
}).listen(4567, '127.0.0.1', () => console.log('listening'));
setTimeout(() => process.exit(), 120000);
"#;

#[test]
fn a_server_of_an_editor_has_the_role_while_there_is_a_tunnel() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant("server.js", SERVER, 0o644);
    // Which profile an editor uses is in its settings, or where its server reads its environment from.
    let start = format!(
        "export AWS_PROFILE=dev AWS_REGION=eu-west-1 AWS_EC2_METADATA_DISABLED=true; \
         nohup setsid node server.js {} {} > server.log 2>&1 < /dev/null & \
         until grep -q listening server.log; do sleep 0.1; done; echo started",
        sdk("node_modules/@aws-sdk/client-sts").display(),
        sdk("python/bin/python").display(),
    );
    let mut ssh = world.laptop.ssh();
    ssh.args([crate::support::BASTION, &start]);
    let mut ssh = world.laptop.spawn(ssh);
    ssh.wait_for_line(Stream::Stdout, "started", PATIENCE);
    assert_eq!(ssh.wait(PATIENCE).code, Some(0), "the connection that started it ends before us");

    let ask = |world: &mut World, path: &str| {
        let curl =
            world.on_host("curl", &["-sS", "--noproxy", "*", &format!("http://127.0.0.1:4567/{path}")]);
        world.run(curl).success().stdout().trim().to_owned()
    };
    // The SDK for JavaScript reads `~/.aws/config` once in the life of a process, so an extension that looks before us
    // has to be reloaded once; one that does not is served by every tunnel that follows.
    let before = ask(&mut world, "terminal");
    assert!(before.starts_with("failed: ") && before.contains("profile (dev)"), "{before}");
    for _ in 0..2 {
        let tunnel = world.tunnel(&["-p", "dev", "--install-profiles"]);
        for path in ["extension", "terminal"] {
            assert_eq!(ask(&mut world, path), World::arn("Developer"), "{path}");
        }
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        world.assert_clean();
        let after = ask(&mut world, "terminal");
        assert!(after.starts_with("failed: ") && after.contains("profile (dev)"), "{after}");
    }
    let stop = world.on_host("sh", &["-c", "kill $(pgrep -u $(id -u) -f 'node server[.]js')"]);
    drop(world.run(stop).success());
    world.wait_for_clean_host();
    world.assert_clean();
}
