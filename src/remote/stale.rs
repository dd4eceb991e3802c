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
