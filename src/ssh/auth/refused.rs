//! Nobody was let in: what was tried, what the server would still have taken, and what can be done about it.

use std::fmt;

use crate::ssh::handler::Ended;

/// Nobody was let in.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) host: String,
    pub(crate) user: String,
    /// What was tried, or why it could not be, in order; safe to print.
    pub(crate) tried: Vec<String>,
    /// What the server would still have taken.
    pub(crate) offered: Vec<&'static str>,
    /// What the server said at the end, if it closed the connection.
    pub(crate) ended: Option<Ended>,
    /// Whether nobody could be asked.
    pub(crate) batch: bool,
    /// Whether a person could have answered, but not to a host whose key nobody has looked at.
    pub(crate) unheard: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not log in to `{}` as `{}`", self.host, self.user)?;
        match self.tried.as_slice() {
            [] => f.write_str(": there was nothing to try")?,
            tried => write!(f, ": tried {}", tried.join(", "))?,
        }
        if !self.offered.is_empty() {
            write!(f, "; the server takes {}", self.offered.join(", "))?;
        }
        if self.unheard {
            f.write_str("; nothing secret is typed for a host whose key was accepted unseen just now")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.ended.as_ref().map(|ended| ended as _)
    }
}

impl Refused {
    /// Returns what the person can do about it.
    pub(in crate::ssh) fn hint(&self) -> Option<String> {
        if let Some(hint) = self.ended.as_ref().and_then(Ended::hint) {
            return Some(hint);
        }
        if self.unheard {
            return Some(
                "compare the host key's fingerprint (`ssh-keygen -lF HOST`) with what its administrator says, then \
                 connect again"
                    .into(),
            );
        }
        let takes = |method| self.offered.contains(&method);
        if let Some(principal) = self.tried.iter().find_map(|tried| tried.strip_prefix("gssapi-with-mic as "))
        {
            return Some(format!("may {principal} log in as `{}` there (`~/.k5login`)?", self.user));
        }
        if self.tried.is_empty() && self.offered == ["gssapi-with-mic"] {
            let build =
                if cfg!(feature = "gssapi") { "" } else { " and a broker built with `--features gssapi`" };
            return Some(format!(
                "it takes Kerberos tickets alone: `kinit`, and `-o GSSAPIAuthentication=yes`{build}"
            ));
        }
        if takes("publickey") && !self.tried.iter().any(|tried| tried.starts_with("key")) {
            return Some("name a key with `-i FILE`, or add one to the agent with `ssh-add FILE`".into());
        }
        if self.batch && (takes("password") || takes("keyboard-interactive")) {
            return Some("a person could still log in: run it once without `--batch`".into());
        }
        if takes("publickey") {
            return Some(format!("is the key in `~/.ssh/authorized_keys` of `{}` there?", self.user));
        }
        None
    }
}
