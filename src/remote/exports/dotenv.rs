//! `NAME=VALUE` lines for `docker --env-file`, Compose, systemd, python-dotenv, dotenv for Node and others.
//!
//! They agree on little: to Docker a quote is a part of the value, others expand `$` even in quotes. So a value is
//! written bare where all of them read it alike, and that is every value of ours; in single quotes where only Docker
//! would not; and one that they read differently is not written at all. They cannot unset: the names are in a comment.

use super::{Environment, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    line(&mut text, format_args!("# Must not be set: {}", environment.unset.join(" ")));
    for (name, value) in &environment.set {
        let value = match value {
            Value::Text(value) | Value::Offered(value) => value.expose(),
            Value::Added { items, .. } => &items.0,
        };
        match Form::of(value) {
            Form::Bare => line(&mut text, format_args!("{name}={value}")),
            Form::Quoted => line(&mut text, format_args!("{name}='{value}'")),
            Form::None => line(&mut text, format_args!("# {name} has a value that this format cannot hold.")),
        }
    }
    text
}

enum Form {
    Bare,
    Quoted,
    None,
}

impl Form {
    fn of(value: &str) -> Self {
        let is_trimmed = value.trim() == value && !value.is_empty();
        if is_trimmed && !value.contains(['\'', '"', '`', '\\', '$', '#']) {
            Self::Bare
        } else if value.contains(['\'', '\\', '$']) {
            Self::None
        } else {
            Self::Quoted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::exports::tests::environment;

    #[test]
    fn every_dialect_reads_the_same_or_nothing() {
        for (value, line) in [
            (
                "/run/user/1000/broker-1000/4144/token-x=20y",
                "VALUE=/run/user/1000/broker-1000/4144/token-x=20y",
            ),
            ("Bearer a+b/c=", "VALUE=Bearer a+b/c="),
            ("/home/é", "VALUE=/home/é"),
            ("", "VALUE=''"),
            (" a ", "VALUE=' a '"),
            ("a #b", "VALUE='a #b'"),
            ("a\nAWS_PROFILE=x", "VALUE=aAWS_PROFILE=x"),
            ("it's", "# VALUE has a value that this format cannot hold."),
            ("a${HOME}", "# VALUE has a value that this format cannot hold."),
            ("a\\b", "# VALUE has a value that this format cannot hold."),
        ] {
            let text = render(&environment(value));
            assert!(text.lines().any(|l| l == line), "{value:?}\n{}", *text);
        }
        let text = render(&environment("x"));
        assert!(
            text.starts_with("# Must not be set: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_ACCESS_KEY_ID ")
        );
        assert!(text.contains("\nNO_PROXY=127.0.0.1,localhost,::1\nno_proxy=127.0.0.1,localhost,::1\n"));
    }
}
