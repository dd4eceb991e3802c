//! What the configuration says about the session itself: environment, terminal, command.

use super::{Error, Resolver, keyword, pattern};
use crate::ssh::target::{Tty, Wishes};

impl Resolver<'_> {
    pub(super) fn wishes(&self, port: u16, user: &str) -> Result<Wishes, Error> {
        let command = match self.setting("remotecommand") {
            Some(setting) if !setting.value().eq_ignore_ascii_case("none") => {
                let tokens = self.tokens(port, Some(user));
                let command = super::expand::tokens(setting.value(), &tokens);
                Some(command.map_err(|why| Error::bad(&setting.place, why))?)
            }
            _ => None,
        };
        let tty = self.setting("requesttty").and_then(|setting| tty(setting.value())).unwrap_or(Tty::Auto);
        let escape =
            self.setting("escapechar").map_or(Some(b'~'), |setting| escape(setting.value()).flatten());
        Ok(Wishes { environment: self.environment(), tty, command, escape })
    }

    /// Returns the variables of `SendEnv` that we have, and behind them those of `SetEnv`, which win.
    fn environment(&self) -> Vec<(String, String)> {
        let sent = self.send_env();
        let mut variables: Vec<(String, String)> = self
            .surroundings
            .env
            .iter()
            .filter(|(name, _)| sent.iter().any(|pattern| pattern::matches(name, pattern)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        variables.extend(self.set_env());
        variables
    }

    /// `SendEnv`: every pattern that was named and not taken back with a `-` later.
    pub(super) fn send_env(&self) -> Vec<String> {
        let mut patterns = Vec::new();
        let settings = self.evaluated.lists.get("sendenv").map_or(&[][..], Vec::as_slice);
        for arg in settings.iter().flat_map(|setting| &setting.args) {
            match arg.strip_prefix('-') {
                Some(unwanted) => patterns.retain(|name: &String| !pattern::matches(name, unwanted)),
                // The second pass meets the same lines again.
                None if patterns.contains(arg) => {}
                None => patterns.push(arg.clone()),
            }
        }
        patterns
    }

    /// `SetEnv`: the first line counts as a whole, and in it the first value of a name.
    pub(super) fn set_env(&self) -> Vec<(String, String)> {
        let mut variables: Vec<(String, String)> = Vec::new();
        for arg in self.setting("setenv").map_or(&[][..], |setting| &setting.args) {
            if let Some((name, value)) = arg.split_once('=')
                && !variables.iter().any(|(known, _)| known == name)
            {
                variables.push((name.to_owned(), value.to_owned()));
            }
        }
        variables
    }
}

/// Reads a value of `RequestTTY`.
pub(super) fn tty(text: &str) -> Option<Tty> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Some(Tty::Auto),
        "force" => Some(Tty::Force),
        text => keyword::flag(text).map(|wanted| if wanted { Tty::Yes } else { Tty::No }),
    }
}

/// Reads a value of `EscapeChar`; the inner `None` is `none`.
pub(super) fn escape(text: &str) -> Option<Option<u8>> {
    match text.as_bytes() {
        b"none" => Some(None),
        [b'^', letter @ 64..128] => Some(Some(letter & 31)),
        [one] => Some(Some(*one)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Home, request};
    use super::*;
    use crate::ssh::config::resolve;

    #[test]
    fn the_session_is_as_configured() {
        let wishes = |config: &str| Home::new(config).target("h").session;
        let plain = wishes("");
        assert_eq!((plain.tty, plain.command, plain.escape), (Tty::Auto, None, Some(b'~')));
        assert_eq!(wishes("RequestTTY force\nEscapeChar none\n").escape, None);
        assert_eq!(wishes("RequestTTY YES\n").tty, Tty::Yes);
        assert_eq!(wishes("EscapeChar ^]\n").escape, Some(0x1d));
        assert_eq!(wishes("EscapeChar %\n").escape, Some(b'%'));
        assert_eq!(
            wishes("RemoteCommand tmux new -A -s \"%h $X\" # not a comment\n").command.as_deref(),
            Some("tmux new -A -s \"h $X\" # not a comment")
        );
        assert_eq!(wishes("RemoteCommand none\nRemoteCommand x\n").command, None);
        for bad in ["RequestTTY maybe", "EscapeChar ab", "SetEnv A", "SendEnv A=b", "RemoteCommand %z"] {
            assert!(Home::new(&format!("{bad}\n")).error("h").starts_with("/.ssh/config:1: "), "{bad}");
        }
    }

    #[test]
    fn variables_are_sent_and_set_and_taken_back() {
        let home = Home::new(
            "SendEnv LC_* LANG\nSendEnv FOO BAR\nSendEnv -LC_*\nSendEnv -F?O\nSetEnv A=b A=c \"X=y z\"\nSetEnv B=no\n",
        );
        let mut surroundings = home.surroundings();
        let env = [("LANG", "C"), ("LC_ALL", "de"), ("FOO", "f"), ("BAR", "b"), ("OTHER", "o")];
        surroundings.env.extend(env.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let (target, warnings) = resolve(&request("h"), &surroundings).unwrap();
        assert_eq!(warnings, []);
        let sent: Vec<_> = target.session.environment.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(sent, ["BAR=b", "LANG=C", "A=b", "X=y z"]);
        assert!(!format!("{target:?}").contains("y z"), "values are nobody's business in a log");
    }
}
