//! Users of the host have the role whatever their login shell is: in a shell, in a command, and through the exports,
//! which are in its language without being asked for it.

use std::path::Path;

use sandbox::{home::Stream, sshd::SshdOptions, users::User};

use crate::support::{PATIENCE, World, sdk};

const BOTO3: &str = "import boto3; print(boto3.client(\"sts\").get_caller_identity()[\"Arn\"])";

/// Login shells with the rc file that they read as interactive ones. Each talks on both streams, says nonsense to the
/// terminal, and names a profile as the procedure of copying the SSO cache does.
const INTERACTIVE: [(&str, &str, &str); 8] = [
    ("dash", ".profile", RC),
    ("ash", ".profile", RC),
    ("ksh", ".profile", RC),
    ("bash", ".bash_profile", RC),
    ("zsh", ".zshrc", RC),
    (
        "fish",
        ".config/fish/config.fish",
        "echo Welcome to the cluster; echo quota exceeded >&2; printf '\\e]0;title\\a'; set -gx AWS_PROFILE corp\n",
    ),
    ("tcsh", ".login", RC_CSH),
    ("bsd-csh", ".login", RC_CSH),
];
const RC: &str = "echo Welcome to the cluster; echo quota exceeded >&2; printf '\\033]0;title\\007'\n\
                  export AWS_PROFILE=corp\n";
const RC_CSH: &str = "echo Welcome to the cluster\nprintf '\\033]0;title\\007'\nsetenv AWS_PROFILE corp\n";

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

#[test]
fn every_login_shell_on_a_terminal_has_the_role_behind_noisy_rc_files() {
    if sandbox::isolated!() {
        return;
    }
    // Debian's busybox is the shell that its name says.
    std::os::unix::fs::symlink("/bin/busybox", "/run/ash").unwrap();
    let python = sdk("python/bin/python");
    for (name, rc, text) in INTERACTIVE {
        let shell = ["/bin", "/usr/bin", "/run"].map(|directory| format!("{directory}/{name}"));
        let shell = shell.iter().find(|path| Path::new(path).exists()).expect(name);
        let options = SshdOptions::new(User::ensure(&format!("broker-{name}"), shell));
        let mut world = World::with_fresh_home(options);
        world.plant(rc, text, 0o644);
        world.plant("who.py", BOTO3, 0o644);

        let mut terminal = world.laptop.terminal(world.connect(&["-p", "dev"]), 24, 200);
        terminal.wait_for_text("Welcome to the cluster", PATIENCE);
        terminal.send(format!("{} who.py\r", python.display()));
        terminal.wait_for_text(&World::arn("Developer"), PATIENCE);
        // What runs there knows the terminal and the shell that it is in.
        terminal.send("echo $SHELL; stty size; echo at $HOME\r");
        terminal.wait_for_text(&format!("{shell}\r\n"), PATIENCE);
        terminal.wait_for_text("24 200", PATIENCE);
        terminal.wait_for_text(&format!("at {}", world.sshd.user().home.display()), PATIENCE);
        terminal.send("exit 5\r");
        let output = terminal.wait(PATIENCE);
        world.heard("broker on a terminal", &output);
        assert_eq!(output.code, Some(5), "{name}: {output}");
        world.assert_clean();
    }
}
