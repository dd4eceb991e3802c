//! Servers that are not OpenSSH, in the place of every sshd of the tests: `BROKER_TEST_SERVER=dropbear|asyncssh|embedded`.
//!
//! [`sandbox::sshd`] starts them, so that tests about what a user does run on each of them as they are; `tests/servers`
//! runs those that can, and says why the others cannot.

use sandbox::{
    home::Stream,
    sshd::{Program, SshdOptions},
    users::User,
};

use crate::support::{World, sdk};

/// Prints the ARN, as users' programs would get it.
const BOTO3: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

/// The whole job: the role in a command, its streams and its status. asyncssh leaves connections open that both sides
/// have ended, and the self-test's is one.
#[test]
fn dropbear_asyncssh_and_the_server_of_the_sandbox_are_served_like_openssh() {
    if sandbox::isolated!() {
        return;
    }
    for program in [Program::Dropbear, Program::Asyncssh, Program::Embedded] {
        let mut world = World::with(SshdOptions { program, ..SshdOptions::default() });
        let python = sdk("python/bin/python");
        let command = format!("{} -c \"{BOTO3}\"; echo err >&2; exit 9", python.display());
        let output = world.run(world.connect(&["-p", "dev", "--", &command]));
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{program:?}: {output}");
        assert_eq!(output.code, Some(9), "{program:?}: {output}");
        assert!(output.stderr().contains("err\n"), "{program:?}: {output}");
        let connect = world.connect(&["-p", "dev", "--", "cat | wc -c"]);
        let output = world.laptop.run_with(connect, &vec![b'x'; 3_000_000]);
        assert_eq!((output.stdout().trim(), output.code), ("3000000", Some(0)), "{program:?}: {output}");
        assert_eq!(world.sshd.logins(), 2, "{}", world.sshd.log());
        world.wait_for_clean_host();
        world.assert_clean();
    }
}

/// It listens on [::1] and is content, where somebody else has 127.0.0.1.
#[test]
fn a_port_of_which_dropbear_got_only_half_is_replaced() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions { program: Program::Dropbear, ..SshdOptions::default() });
    let squatter = crate::users::squat(&world, &User::other(), "127.0.0.1", 4144);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let told = format!("port 4144 of the host is in use by another user (uid {}); using", User::other().uid);
    assert!(tunnel.process.text(Stream::Stderr).contains(&told), "{}", tunnel.process.text(Stream::Stderr));
    let user = world.sshd.user().clone();
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status(), 200);
    crate::users::assert_nobody_came(&squatter);
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.wait_for_clean_host();
    world.assert_clean();
}

/// No test: the embedded server, as the host's user, in a process of its own for each connection.
#[test]
#[ignore = "it is a server, which the tests start"]
fn embedded() {
    sandbox::sshd::serve_embedded();
}
