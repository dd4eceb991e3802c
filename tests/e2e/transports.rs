//! Every way in which processes on the host can reach us, for the default role and for named profiles.

use sandbox::sshd::SshdOptions;

use crate::support::{World, offers, sdk};

const ARN: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                   print(boto3.Session(profile_name=p).client('sts').get_caller_identity()['Arn'])";

/// The role that boto3 gets on the host, by default and under the names of both profiles.
fn roles(world: &mut World, arguments: &[&str]) -> Vec<String> {
    let tunnel = world.tunnel(arguments);
    let roles = [None, Some("dev"), Some("audit")].map(|profile| {
        let mut python = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
        python.args(profile).envs(&tunnel.environment);
        let output = world.run(python);
        assert_eq!(output.code, Some(0), "{output}");
        output.stdout().trim().to_owned()
    });
    let output = tunnel.stop(world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
    roles.to_vec()
}

#[test]
fn each_transport_serves_every_profile_by_name() {
    if sandbox::isolated!() {
        return;
    }
    let (dev, audit) = (World::arn("Developer"), World::arn("Auditor"));
    for transport in ["auto", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
        let mut world = World::new();
        let roles = roles(&mut world, &["-p", "dev", "-p", "audit", "--transport", transport]);
        assert_eq!(roles, [&dev, &dev, &audit].map(String::as_str), "{transport}");
    }
}

#[test]
fn a_server_that_forwards_nothing_gets_files() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().config("DisableForwarding yes"));
    let roles = roles(&mut world, &["-p", "dev", "-p", "audit"]);
    assert_eq!(roles, [World::arn("Developer"), World::arn("Developer"), World::arn("Auditor")]);
}
