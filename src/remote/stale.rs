//! Ends a connection of ours that is dead here and that the host still believes in, so that its port is free again.

use super::helper::{Error, Facts, Helper, Parent};

/// The process of sshd that had a connection of ours: an id, when it started, and on which start of which machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Grave {
    pid: u32,
    started: u64,
    host: String,
    boot_id: Option<String>,
}

/// How the process is asked to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum How {
    /// So that it tidies up.
    Ask,
    /// For one that does not hear, because it is stopped.
    Kill,
}

impl Grave {
    /// Returns the process that has the connection of the helper that told `facts`, if it can be told from others.
    pub(crate) fn of(facts: &Facts) -> Option<Self> {
        let Parent { pid, started } = facts.parent;
        Some(Self { pid, started: started?, host: facts.host.clone(), boot_id: Some(facts.boot_id.clone()?) })
    }

    /// Returns it as text without line breaks, for [`Self::parse`].
    pub(crate) fn text(&self) -> String {
        let boot_id = self.boot_id.as_deref().unwrap_or_default();
        format!("{} {} {boot_id} {}", self.pid, self.started, self.host)
    }

    /// Reads what [`Self::text`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let boot_id = words.next().filter(|id| !id.is_empty())?.to_owned();
        Some(Self { pid, started, boot_id: Some(boot_id), host: words.next()?.to_owned() })
    }

    /// Ends the process if it is still the same one; says whether it was told to.
    pub(crate) async fn free(&self, helper: &Helper, facts: &Facts, how: How) -> Result<bool, Error> {
        let here = self.host == facts.host && self.boot_id == facts.boot_id;
        let ours = facts.parent == Parent { pid: self.pid, started: Some(self.started) };
        if !here || ours {
            return Ok(false);
        }
        let signal = match how {
            How::Ask => "TERM",
            How::Kill => "KILL",
        };
        let answer = helper.run(format!("free {} {} {signal}", self.pid, self.started), None).await?;
        Ok(answer.verdict.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::remote::helper::tests::{Host, Link};

    const SHELLS: [&str; 5] = ["dash", "bash", "ksh", "zsh", "busybox"];

    /// A process that could be sshd's.
    struct Old(Child);

    impl Old {
        fn new() -> Self {
            Self(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap())
        }

        /// When it started, in ticks: field 22 of its `stat`, which `sleep` has no spaces before.
        fn started(&self) -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            stat.split(' ').nth(21).unwrap().parse().unwrap()
        }

        fn grave(&self, facts: &Facts) -> Grave {
            Grave {
                pid: self.0.id(),
                started: self.started(),
                host: facts.host.clone(),
                boot_id: facts.boot_id.clone(),
            }
        }

        fn lives(&mut self) -> bool {
            self.0.try_wait().unwrap().is_none()
        }
    }

    impl Drop for Old {
        fn drop(&mut self) {
            let _killed = self.0.kill();
            let _waited = self.0.wait();
        }
    }

    #[tokio::test]
    async fn only_the_very_process_that_had_our_connection_is_ended() {
        for shell in SHELLS {
            let host = Host::new(shell);
            let Link { helper, facts, .. } = &host.link().await;
            let mut old = Old::new();
            let grave = old.grave(facts);
            // The same id belongs to another process by now, or to one of another machine or another start of it.
            let later = Grave { started: grave.started + 1, ..grave.clone() };
            let earlier = Grave { started: grave.started - 1, ..grave.clone() };
            let elsewhere = Grave { host: "another".to_owned(), ..grave.clone() };
            let before = Grave { boot_id: Some("another".to_owned()), ..grave.clone() };
            for other in [later, earlier, elsewhere, before] {
                assert!(!other.free(helper, facts, How::Kill).await.unwrap(), "{shell}: {other:?}");
            }
            assert!(old.lives(), "{shell}");
            // Nor the connection that this very helper uses.
            let own =
                Facts { parent: Parent { pid: grave.pid, started: Some(grave.started) }, ..facts.clone() };
            assert!(!grave.free(helper, &own, How::Kill).await.unwrap(), "{shell}");
            assert!(old.lives(), "{shell}");
            assert!(grave.free(helper, facts, How::Ask).await.unwrap(), "{shell}");
            old.0.wait().unwrap();
            // Nobody is there any more.
            assert!(!grave.free(helper, facts, How::Kill).await.unwrap(), "{shell}");
        }
    }
}
