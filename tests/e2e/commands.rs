//! The small commands: what they do, and what they leave alone.

use sandbox::aws::FakeAws;

use crate::support::{World, sdk};

#[test]
fn logout_ends_one_session_and_leaves_the_others() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.seed_token(world.laptop.path(), "other");
    world.own_aws_files();
    let [corp, other] = ["corp", "other"].map(|session| FakeAws::token_path(world.laptop.path(), session));
    let output = world.run(world.broker(&["logout", "--sso-session", "corp"])).success();
    assert!(output.stderr().contains("signed out of corp"), "{output}");
    assert!(!corp.exists() && other.exists());
    assert!(world.aws.calls().iter().any(|call| call.contains("Logout")), "{:?}", world.aws.calls());

    let again = world.run(world.broker(&["logout", "-p", "dev"])).success();
    assert!(again.stderr().contains("nobody was signed in to corp"), "{again}");
    let after = world.run(world.connect(&["-p", "dev", "-N"]));
    assert_eq!(after.code, Some(3), "{after}");
    world.assert_clean();
}

#[test]
fn every_decision_is_in_a_log_that_shows_when_it_was_changed() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert!(!tunnel.exports.contains(tunnel.token().trim_start_matches("Bearer ")), "{}", tunnel.exports);
    let python = sdk("python/bin/python");
    let mut boto3 = world.on_host(
        python.to_str().unwrap(),
        &["-c", "import boto3; boto3.client('sts').get_caller_identity()"],
    );
    boto3.envs(&tunnel.environment);
    drop(world.run(boto3).success());
    assert!(tunnel.url().starts_with("http://127.0.0.1:"));
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    let events: Vec<_> =
        world.audit().iter().map(|line| line["event"].as_str().unwrap().to_owned()).collect();
    assert_eq!(events, ["grant_added", "tunnel_up", "request", "grant_revoked", "tunnel_down"]);

    let shown = world.run(world.broker(&["audit"])).success();
    assert_eq!(shown.stdout(), world.laptop.read(".local/state/broker/audit.log"));
    let verified = world.run(world.broker(&["audit", "verify"])).success();
    assert_eq!(verified.stdout().trim().len(), 64, "{verified}");
    assert!(verified.stderr().contains("5 lines follow from each other"), "{verified}");

    let text = world.laptop.read(".local/state/broker/audit.log");
    let path = world.laptop.join(".local/state/broker/audit.log");
    // Written over, so that owner and mode stay.
    std::fs::write(&path, text.replacen("\"allowed\"", "\"refused\"", 1)).unwrap();
    let changed = world.run(world.broker(&["audit", "verify"]));
    assert_eq!(changed.code, Some(1), "{changed}");
    assert!(changed.stderr().contains("line 4 does not follow"), "{changed}");
    world.assert_clean();
}
