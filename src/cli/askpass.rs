//! `SSH_ASKPASS`: a program that asks the person where there is no terminal, as ssh(1) describes it.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use secrecy::SecretString;
use zeroize::Zeroizing;

/// What an answer may have, in bytes; ssh takes 1023.
const LONGEST_ANSWER: u64 = 1023;

/// The program, and when it is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Askpass {
    program: Option<String>,
    when: When,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum When {
    /// Where there is a display and no terminal.
    #[default]
    NoTerminal,
    /// Instead of the terminal.
    Always,
    Never,
}

impl Askpass {
    /// Reads what `SSH_ASKPASS`, `SSH_ASKPASS_REQUIRE` and the display say.
    pub(super) fn from_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let display = get("DISPLAY").is_some() || get("WAYLAND_DISPLAY").is_some();
        let when = match get("SSH_ASKPASS_REQUIRE").as_deref() {
            Some("never") => When::Never,
            Some("force") => When::Always,
            // `prefer` means the program rather than the terminal, where there is a display.
            Some("prefer") if display => When::Always,
            _ if display => When::NoTerminal,
            _ => When::Never,
        };
        Self { program: get("SSH_ASKPASS"), when }
    }

    /// Whether the program is asked rather than the terminal.
    pub(super) fn goes_first(&self) -> bool {
        self.program.is_some() && self.when == When::Always
    }

    /// Whether the program is asked where there is no terminal.
    pub(super) fn stands_in(&self) -> bool {
        self.program.is_some() && self.when != When::Never
    }

    /// Asks, and waits for the person. `None` where the program failed or the person said no. Blocks.
    pub(super) fn ask(&self, question: &str, echo: bool) -> Option<SecretString> {
        let mut command = Command::new(self.program.as_ref()?);
        command.arg(question).stdin(Stdio::null()).stdout(Stdio::piped());
        if echo && question.contains("(yes/no") {
            command.env("SSH_ASKPASS_PROMPT", "confirm");
        }
        let mut child = command.spawn().ok()?;
        let mut answer = Zeroizing::new(String::with_capacity(usize::try_from(LONGEST_ANSWER).ok()?));
        let read = child.stdout.take().map(|stdout| stdout.take(LONGEST_ANSWER).read_to_string(&mut answer));
        // The pipe is closed by now: a program that goes on writing ends.
        let succeeded = child.wait().is_ok_and(|status| status.success());
        let read = read.is_some_and(|read| read.is_ok());
        let line = answer.split(['\r', '\n']).next().unwrap_or_default();
        (succeeded && read).then(|| SecretString::from(line))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn askpass(variables: &[(&str, &str)]) -> Askpass {
        let variables = variables.to_vec();
        Askpass::from_environment(move |name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn when_the_program_is_asked_is_as_ssh_says() {
        let program = ("SSH_ASKPASS", "/bin/true");
        for (variables, first, stands_in) in [
            (&[][..], false, false),
            (&[program], false, false),
            (&[program, ("DISPLAY", ":0")], false, true),
            (&[program, ("WAYLAND_DISPLAY", "w")], false, true),
            (&[program, ("SSH_ASKPASS_REQUIRE", "force")], true, true),
            (&[program, ("SSH_ASKPASS_REQUIRE", "prefer")], false, false),
            (&[program, ("DISPLAY", ":0"), ("SSH_ASKPASS_REQUIRE", "prefer")], true, true),
            (&[program, ("DISPLAY", ":0"), ("SSH_ASKPASS_REQUIRE", "never")], false, false),
            (&[("SSH_ASKPASS_REQUIRE", "force")], false, false),
        ] {
            let askpass = askpass(variables);
            assert_eq!((askpass.goes_first(), askpass.stands_in()), (first, stands_in), "{variables:?}");
        }
    }

    #[test]
    fn the_first_line_of_a_program_that_succeeds_is_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("askpass");
        let answer = |script: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            crate::private_fs::write(&path, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
            let askpass =
                askpass(&[("SSH_ASKPASS", path.to_str().unwrap()), ("SSH_ASKPASS_REQUIRE", "force")]);
            askpass.ask("Password: ", false).map(|answer| answer.expose_secret().to_owned())
        };
        assert_eq!(answer("echo \"$1\"secret; echo more").as_deref(), Some("Password: secret"));
        assert_eq!(answer("printf secret").as_deref(), Some("secret"));
        assert_eq!(answer("echo").as_deref(), Some(""));
        assert_eq!(answer("echo secret; exit 1"), None);
        // A flood ends at the length of an answer, and with it the program.
        assert_eq!(answer("yes | tr -d '\\n'").map(|answer| answer.len()), None);
        assert!(askpass(&[("SSH_ASKPASS", "/nonexistent")]).ask("?", false).is_none());
    }
}
