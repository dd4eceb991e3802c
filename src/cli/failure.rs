//! What went wrong, as a person and a script see it: kind → text, hint, exit code.

use std::{error::Error, fmt, process::ExitCode};

/// What a script can do about a failure; each has its exit code (`product.md` 8, README).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Failed,
    Usage,
    LoginNeeded,
    HostKeyRefused,
    Unreachable,
    ForwardRefused,
    RoleDenied,
    Interrupted,
}

impl Kind {
    /// Returns the exit code where no remote command has one to give.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::LoginNeeded => 3,
            Self::HostKeyRefused => 4,
            Self::Unreachable => 5,
            Self::ForwardRefused => 6,
            Self::RoleDenied => 7,
            Self::Interrupted => 130,
        }
    }

    /// Returns the word that JSON events and the last line under a remote command use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::LoginNeeded => "login-needed",
            Self::HostKeyRefused => "host-key-refused",
            Self::Unreachable => "unreachable",
            Self::ForwardRefused => "forward-refused",
            Self::RoleDenied => "role-denied",
            Self::Interrupted => "interrupted",
        }
    }
}

/// One failure on its way to the person: what, why (the source chain) and the way out.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) error: Box<dyn Error + Send + Sync>,
    pub(crate) hint: Option<String>,
    /// Which of several hosts it is about.
    pub(crate) host: Option<String>,
}

impl Failure {
    /// Wraps `error`.
    pub(crate) fn new(kind: Kind, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, error: error.into(), hint: None, host: None }
    }

    /// Adds the way out.
    pub(crate) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Says which of several hosts it is about.
    pub(crate) fn of(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// Returns the texts of the error's causes, outermost first, each once.
    pub(crate) fn causes(&self) -> Vec<String> {
        let mut last = self.error.to_string();
        let mut causes = Vec::new();
        let mut source = self.error.source();
        while let Some(cause) = source {
            let text = without_number(&cause.to_string());
            // Transparent wrappers repeat what they wrap.
            if text != last {
                causes.push(text.clone());
                last = text;
            }
            source = cause.source();
        }
        causes
    }

    /// Returns the exit code; under a remote shell or command every failure of ours is 255, as with `ssh`.
    pub(crate) fn exit_code(&self, remote: bool) -> ExitCode {
        match self.kind {
            Kind::Interrupted => ExitCode::from(130),
            _ if remote => ExitCode::from(255),
            kind => ExitCode::from(kind.code()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_number(&self.error.to_string()))
    }
}

/// Takes out the number that the standard library puts behind the words of an error of the operating system.
fn without_number(text: &str) -> String {
    let Some((before, rest)) = text.split_once(" (os error ") else { return text.to_owned() };
    match rest.split_once(')') {
        Some((number, after)) if number.bytes().all(|b| b.is_ascii_digit()) => format!("{before}{after}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_cause_is_told_once() {
        let failure = Failure::new(Kind::Failed, Outer(std::io::Error::other("inner")));
        assert_eq!(failure.causes(), ["inner"]);
    }

    #[test]
    fn an_error_of_the_operating_system_has_no_number() {
        let refused = std::io::Error::from_raw_os_error(13);
        assert_eq!(Failure::new(Kind::Failed, refused).to_string(), "Permission denied");
        assert_eq!(without_number("a (os error x) b"), "a (os error x) b");
    }

    #[test]
    fn under_a_remote_command_our_failures_are_255() {
        let failure = Failure::new(Kind::HostKeyRefused, "x");
        assert_eq!(format!("{:?}", failure.exit_code(true)), format!("{:?}", ExitCode::from(255)));
        assert_eq!(format!("{:?}", failure.exit_code(false)), format!("{:?}", ExitCode::from(4)));
    }
}
