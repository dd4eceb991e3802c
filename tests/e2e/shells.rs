//! Users of the host have the role whatever their login shell is: in a shell, in a command, and through the exports,
//! which are in its language without being asked for it.

use std::path::Path;

use sandbox::{home::Stream, sshd::SshdOptions, users::User};

use crate::support::{PATIENCE, World, sdk};

const BOTO3: &str = "import boto3; print(boto3.client(\"sts\").get_caller_identity()[\"Arn\"])";

/// Login shells, and what is in the last line about each of the two proxy variables in their language.
const SHELLS: [(&str, [&str; 2]); 7] = [
    ("dash", POSIX),
    ("ksh", POSIX),
    ("bash", POSIX),
    ("zsh", POSIX),
    ("fish", ["end;", "end;"]),
    ("tcsh", ["!~", "!~"]),
    ("bsd-csh", ["!~", "!~"]),
];
const POSIX: [&str; 2] = ["export NO_PROXY", "export no_proxy"];

#[test]
fn every_login_shell_has_the_role() {
    if sandbox::isolated!() {
        return;
    }
    let python = format!("{} -c '{BOTO3}'", sdk("python/bin/python").display());
    for (name, last_lines) in SHELLS {
        let shell = [format!("/bin/{name}"), format!("/usr/bin/{name}")];
        let shell = shell.iter().find(|path| Path::new(path).exists()).expect(name);
        let options = SshdOptions::new(User::ensure(&format!("broker-{name}"), shell));
        let mut world = World::with(options);

        let output = world.run(world.connect(&["-p", "dev", "--", &python]));
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{name}: {output}");

        // What is typed into a shell without a terminal.
        let mut process = world.laptop.spawn(world.connect(&["-p", "dev", "-T"]));
        process.send(format!("{python}\nexit 9\n"));
        // fish reads all of it before it begins.
        process.close_stdin();
        let output = process.wait(PATIENCE);
        assert!(output.stdout().contains(&World::arn("Developer")), "{name}: {output}");
        assert_eq!(output.code, Some(9), "{name}: {output}");
        world.heard("a shell", &output);

        let mut process = world.laptop.spawn(world.connect(&["-p", "dev", "-N"]));
        for line in last_lines {
            process.wait_for_line(Stream::Stdout, line, PATIENCE);
        }
        let exports = process.text(Stream::Stdout);
        let output = world.run(world.on_host(shell, &["-c", &format!("{exports}\n{python}")]));
        assert_eq!(output.stdout().trim(), World::arn("Developer"), "{name}: {output}");
        process.signal(nix::sys::signal::Signal::SIGINT);
        let output = process.wait(PATIENCE);
        world.heard("broker connect -N", &output);
        world.assert_clean();
    }
}
