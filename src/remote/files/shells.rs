//! The scripts on the host, read by the real shells of this machine as login shells.

use std::{
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::{
    tests::{text_of, with_layout},
    *,
};

/// Login shells, each with the rc file that it reads as one, and what that says about it.
const LOGIN_SHELLS: [(&str, &str, &str); 10] = [
    ("sh", ".profile", RC_SH),
    ("dash", ".profile", RC_SH),
    ("ash", ".profile", RC_SH),
    ("ksh", ".profile", RC_SH),
    ("bash", ".bash_profile", RC_SH),
    ("zsh", ".zprofile", RC_SH),
    ("fish", ".config/fish/config.fish", "status is-login; and echo rc of login\nset -gx PATH /rc $PATH\n"),
    ("tcsh", ".login", "echo rc of login\nsetenv PATH /rc:$PATH\n"),
    ("bsd-csh", ".login", "echo rc of login\nsetenv PATH /rc:$PATH\n"),
    ("csh", ".login", "echo rc of login\nsetenv PATH /rc:$PATH\n"),
];
const RC_SH: &str = "echo rc of login\nPATH=/rc:$PATH\n";

/// A home directory that has our files too.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new(command: Option<&str>) -> Self {
        let host = Self { directory: tempfile::tempdir().unwrap() };
        // busybox is the shell that its name says.
        symlink("/bin/busybox", host.path().join("ash")).unwrap();
        with_layout("corp", command, |layout| {
            let files = layout.files(host.text());
            for file in &files {
                host.write(file.name.as_str(), text_of(&files, file.name.as_str()));
            }
        });
        host
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
        std::fs::write(path, text).unwrap();
    }

    fn shell(&self, name: &str) -> PathBuf {
        let directories = [self.path(), Path::new("/bin"), Path::new("/usr/bin")];
        directories.iter().map(|directory| directory.join(name)).find(|path| path.exists()).expect(name)
    }

    /// Runs a program as sshd would for a user with this login shell.
    fn run(&self, shell: &Path, mut command: Command, stdin: &str) -> Output {
        let path = format!("{}/bin:/usr/bin:/bin", self.text());
        command.env_clear().envs([("HOME", self.text()), ("PATH", &*path), ("LC_ALL", "C.UTF-8")]);
        command.envs([("SHELL", shell.to_str().unwrap()), ("AWS_PROFILE", "stale")]).current_dir(self.path());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        // A shell that ends without reading is told by its output.
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).ok();
        child.wait_with_output().unwrap()
    }

    /// Runs one of our own command lines, which the login shell reads first, as with sshd.
    fn run_line(&self, shell: &Path, line: &str, stdin: &str) -> Output {
        let mut command = Command::new(shell);
        command.args(["-c", line]);
        self.run(shell, command, stdin)
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn assert_ours(output: &str, directory: &str, subject: &str) {
    for variable in [
        "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:4144/".to_owned(),
        format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={directory}/token-corp"),
        "AWS_REGION=eu-west-1".to_owned(),
        format!("AWS_CONFIG_FILE={directory}/config"),
        "NO_PROXY=127.0.0.1,localhost,::1".to_owned(),
    ] {
        assert!(output.lines().any(|line| line == variable), "{subject}: {variable}\n{output}");
    }
    assert!(!output.contains("AWS_PROFILE="), "{subject}: {output}");
}

#[test]
fn every_login_shell_starts_as_one_and_keeps_our_variables() {
    for (name, rc, text) in LOGIN_SHELLS {
        let host = Host::new(None);
        host.write(rc, text);
        let shell = host.shell(name);
        let output = host.run_line(&shell, &shell_command(host.text()), "env\nexit 7\n");
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(7), "{name}: {output:?}");
        assert!(text.contains("rc of login\n") && text.contains("PATH=/rc:"), "{name}: {text}");
        assert_ours(&text, host.text(), name);
        let motd = std::fs::read_to_string("/etc/motd").unwrap_or_default();
        // Some read their rc file for our command line too, before there is a message.
        let (before, _) = text.rsplit_once("rc of login\n").unwrap();
        assert!(before.contains(&motd), "{name}: {text}");
    }
}

#[test]
fn a_login_shell_of_bsd_is_not_asked_for_what_it_cannot_do() {
    let host = Host::new(None);
    host.write(".profile", RC_SH);
    host.write("bin/uname", "#!/bin/sh\necho FreeBSD\n");
    let uname = host.path().join("bin/uname");
    std::fs::set_permissions(uname, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = "env\ntr '\\0' , < /proc/$$/cmdline\n";
    let output = host.run_line(Path::new("/bin/sh"), &shell_command(host.text()), script);
    let text = stdout(&output);
    assert!(text.ends_with("\n/bin/sh,"), "{text}");
    assert!(text.contains("rc of login\n") && text.contains("PATH=/rc:"), "{text}");
    assert_ours(&text, host.text(), "BSD");
}

// As `ssh HOST COMMAND` does: whatever the shell makes of the text, ours makes the same of it.
#[test]
fn every_login_shell_gets_the_command_as_from_ssh() {
    let commands = [
        "printenv AWS_PROFILE HOME; echo 'a  b' \"it's\" $HOME \\$HOME * ~ !! `echo x`",
        "echo a\nexit 3",
        "echo 'unmatched",
        "echo back\\",
        "-n",
        "",
        " echo 'é\\' \"\\\" # c\" ; (exit 4)",
        "echo %d %PATH% ^a^b {a,b} [x] (true) && false || echo or",
        "cat; echo done",
    ];
    for (name, ..) in LOGIN_SHELLS {
        for command in commands {
            let host = Host::new(Some(command));
            let shell = host.shell(name);
            let ours = host.run_line(&shell, &command_command(host.text()), "stdin\n");
            let mut direct = Command::new("/usr/bin/env");
            direct.args(["-u", "AWS_PROFILE", shell.to_str().unwrap(), "-c", command]);
            let theirs = host.run(&shell, direct, "stdin\n");
            assert_eq!(ours, theirs, "{name}: {command:?}");
        }
        let host = Host::new(Some("env"));
        let shell = host.shell(name);
        let output = host.run_line(&shell, &command_command(host.text()), "");
        assert_ours(&stdout(&output), host.text(), name);
    }
}

#[test]
fn a_shell_that_we_did_not_start_reads_its_own_file() {
    let host = Host::new(None);
    for (name, ..) in LOGIN_SHELLS {
        let path = host.shell(name);
        let shell = Shell::of(name).unwrap();
        let line = source_line(shell, host.text()).unwrap();
        let output = host.run(&path, Command::new(&path), &format!("{line}\nenv\n"));
        assert_ours(&stdout(&output), host.text(), name);
    }
    assert_eq!(source_line(Shell::PowerShell, "/d").as_deref(), Some(". /d/env.ps1"));
    for shell in [Shell::Cmd, Shell::Json, Shell::Dotenv] {
        assert_eq!(source_line(shell, "/d"), None);
    }
}
