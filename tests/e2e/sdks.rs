//! Real SDKs on the host get the role, with no step there besides starting the program.

use crate::support::{World, sdk};

/// Prints the ARN, as users' programs would get it.
const BOTO3: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

#[test]
fn boto3_in_a_command_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let python = sdk("python/bin/python");
    let command = format!("{} -c \"{BOTO3}\"", python.display());
    let output = world.run(world.connect(&["-p", "dev", "--", &command]));
    assert_eq!(output.stdout().trim(), World::arn("Developer"), "{output}");
    assert_eq!(output.code, Some(0));
    world.assert_clean();
}

#[test]
fn a_second_login_has_the_role_through_the_exports() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let mut boto3 = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", BOTO3]);
    boto3.envs(&tunnel.environment);
    let output = world.run(boto3);
    assert_eq!(output.stdout().trim(), World::arn("Developer"), "{output}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}
