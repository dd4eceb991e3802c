//! `broker profiles`: what is configured, what could be, and a file that keeps every byte of its own.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    time::{Duration, Instant},
};

use sandbox::{
    aws::{Fault, Operation},
    home::run_within,
};
use serde_json::Value;

use crate::support::{ACCOUNT, PATIENCE, REGION, World};

/// Behind a throttle, on a busy machine.
const THROTTLED: Duration = Duration::from_secs(180);

#[test]
fn everything_is_found_in_as_many_calls_as_there_are_pages() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for account in 0..100 {
        for role in 0..5 {
            world.aws.add_role(
                &format!("{:012}", 500_000_000_000u64 + account),
                &format!("Team {account:03}"),
                &format!("Role{role}"),
            );
        }
    }
    world.aws.set_page_size(3);
    let discover = ["profiles", "--discover", "--json", "--batch", "--sso-session", "corp"];
    let output = world.run(world.broker(&discover)).success();
    let found: Vec<Value> = serde_json::from_str(&output.stdout()).unwrap();
    assert_eq!(found.len(), 502);
    let calls = world.aws.calls();
    let count = |start: &str| calls.iter().filter(|call| call.starts_with(start)).count();
    // 101 accounts on pages of 3, five roles of each on two pages and the two of ours on one.
    assert_eq!((count("ListAccounts"), count("ListAccountRoles"), calls.len()), (34, 201, 235));
    assert!(output.stderr().contains("101 of 101 accounts"), "{output}");
    let ours =
        found.iter().find(|one| one["accountId"] == ACCOUNT && one["roleName"] == "Developer").unwrap();
    assert_eq!(ours["profiles"], serde_json::json!(["dev"]));

    // Behind a throttle nothing is lost.
    let throttled = || Fault::error(429, "TooManyRequestsException", "slow down").for_next(12);
    world.aws.fault(Operation::ListAccountRoles, throttled());
    let filtered = world.run(world.broker(&[&discover[..], &["--filter", "team 09"]].concat())).success();
    let found: Vec<Value> = serde_json::from_str(&filtered.stdout()).unwrap();
    assert_eq!(found.len(), 50, "{filtered}");

    // A server that says no to all of it.
    world.aws.fault(Operation::ListAccounts, Fault::Status(500));
    let failed = world.run(world.broker(&discover));
    assert!(failed.code == Some(1) && failed.stdout().is_empty(), "{failed}");
    world.aws.clear_faults();
    world.aws.expire_access_tokens();
    world.aws.revoke_refresh_tokens();
    let ended = world.run(world.broker(&discover));
    assert!(ended.code == Some(3) && ended.stderr().contains("broker login"), "{ended}");
    world.assert_no_secret();
}

#[test]
fn a_throttle_costs_time_and_nothing_else() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for account in 0..300 {
        for role in 0..5 {
            let id = format!("{:012}", 500_000_000_000u64 + account);
            world.aws.add_role(&id, &format!("Team {account:03}"), &format!("Role{role}"));
        }
    }
    // More than it asks for; nobody but AWS knows what AWS takes.
    world.aws.set_rate(40);
    let started = Instant::now();
    let discover = ["profiles", "--discover", "--json", "--batch", "--sso-session", "corp"];
    let output = run_within(world.broker(&discover), &[], THROTTLED).success();
    world.heard("broker profiles", &output);
    let found: Vec<Value> = serde_json::from_str(&output.stdout()).unwrap();
    let (took, calls, refused) = (started.elapsed(), world.aws.calls().len(), world.aws.throttled());
    println!("{calls} calls in {took:.1?}, {refused} of them throttled");
    assert_eq!((found.len(), calls, refused), (1502, 305, 0));
    // Less than it asks for: some calls have to find out.
    world.aws.set_rate(10);
    let output = run_within(world.broker(&discover), &[], THROTTLED).success();
    world.heard("broker profiles", &output);
    let found: Vec<Value> = serde_json::from_str(&output.stdout()).unwrap();
    let (calls, refused) = (world.aws.calls().len() - calls, world.aws.throttled());
    println!("{calls} calls, {refused} of them throttled");
    assert_eq!((found.len(), calls - refused), (1502, 305));
    assert!((1..=calls / 10).contains(&refused), "{refused} of {calls} calls were throttled");
    world.assert_no_secret();
}

#[test]
fn profiles_are_added_without_touching_the_rest() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    world.aws.add_role("222233334444", "Data Lake (prod)", "Reader");
    world.aws.add_role("222233334444", "Data Lake (prod)", "Writer");
    // As a person keeps it: through a symlink, readable for others, with odd spacing and no newline at the end.
    let before =
        format!("# mine\n\n{}\n[profile  odd ]\nregion=x # y\nfoo   =bar", world.laptop.read(".aws/config"));
    world.laptop.write("dotfiles/aws", &before, 0o644);
    std::fs::remove_file(world.laptop.join(".aws/config")).unwrap();
    symlink(world.laptop.join("dotfiles/aws"), world.laptop.join(".aws/config")).unwrap();
    world.own_aws_files();
    let arguments = ["profiles", "--discover", "--write", "--sso-session", "corp", "--region", REGION];

    // A person is shown what would come, and may say no.
    let mut terminal = world.laptop.terminal(world.broker(&arguments), 40, 200);
    terminal.wait_for_text("+[profile data-lake--prod-Reader]", PATIENCE);
    terminal.wait_for_text("Add these 2 profiles? [y/N] ", PATIENCE);
    terminal.send("\n");
    terminal.wait_for_text("nothing was added", PATIENCE);
    assert_eq!(terminal.wait(PATIENCE).code, Some(0));
    assert_eq!(world.laptop.read("dotfiles/aws"), before);

    let batch = [&arguments[..], &["--batch"]].concat();
    let output = world.run(world.broker(&batch)).success();
    assert!(output.stderr().contains("added 2 profiles"), "{output}");
    let after = world.laptop.read("dotfiles/aws");
    let added = after.strip_prefix(&before).expect("every byte of the rest is there");
    assert!(added.starts_with("\n\n[profile data-lake--prod-Reader]\nsso_session = corp\n"), "{added}");
    let meta = std::fs::metadata(world.laptop.join("dotfiles/aws")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o777, 0o644);
    assert!(world.laptop.join(".aws/config").is_symlink());
    drop(
        world.laptop.run(world.broker(&["credentials", "--batch", "-p", "data-lake--prod-Writer"])).success(),
    );

    let again = world.run(world.broker(&batch)).success();
    assert!(again.stderr().contains("every role has a profile already"), "{again}");
    assert_eq!(world.laptop.read("dotfiles/aws"), after);

    let listed = world.run(world.broker(&["profiles"])).success();
    assert!(
        listed.stdout().contains("data-lake--prod-Reader\tsso\t222233334444/Reader\teu-west-1\n"),
        "{listed}"
    );
    world.assert_no_secret();
}

#[test]
fn a_full_disk_leaves_the_file_as_it_was() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for role in 0..40 {
        world.aws.add_role("222233334444", "Data", &format!("A-role-with-a-long-name-{role:02}"));
    }
    let before = world.laptop.read(".aws/config");
    // A file may not grow beyond these bytes, as on a disk with little room.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", before.len() / 512 + 2);
    let command = world.broker(&["profiles", "--discover", "--write", "--sso-session", "corp", "--batch"]);
    let output = world.run(world.in_shell("dash", &limit, &command));
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr().contains("could not write"), "{output}");
    assert_eq!(world.laptop.read(".aws/config"), before);
    world.assert_no_secret();
}
