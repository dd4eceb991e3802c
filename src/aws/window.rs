//! One browser window per incident: which of the brokers on this machine that share a token opens it, and whether it
//! has been opened already. An incident begins when a sign-in ends and lasts until somebody writes a new token.
//!
//! Owns two files beside the token: a lock, held while a person signs in, and a note of the last window.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{profile::SsoSession, token};
use crate::private_fs;

/// A sign-in that AWS ends right away again must not open a window each time.
const LEAST_BETWEEN: Duration = Duration::from_secs(10 * 60);

/// The files of one session.
#[derive(Clone, Debug)]
pub(super) struct Window {
    lock: PathBuf,
    note: PathBuf,
}

impl Window {
    /// Names the files under `home`; touches nothing.
    pub(super) fn new(home: &Path, session: &SsoSession) -> Self {
        let stem = token::file_stem(session.cache_key());
        let directory = token::directory(home);
        // Not `*.json`, or other tools would read them as tokens.
        Self {
            lock: directory.join(format!("{stem}.login.lock")),
            note: directory.join(format!("{stem}.window")),
        }
    }

    /// Takes the right to have a person sign in; `None` while another process has it. Blocks for a moment.
    pub(super) fn take(&self) -> Option<Right> {
        match private_fs::lock(&self.lock, Duration::ZERO) {
            Err(private_fs::Error::Busy { .. }) => None,
            // Where no file can be made, as in a read-only HOME, there is no agreement, and a person comes first.
            lock => Some(Right { _lock: lock.ok() }),
        }
    }

    /// Whether the incident of this token file had its window, or another had one just now.
    pub(super) fn was_open(&self, stamp: token::Stamp, now: SystemTime) -> bool {
        let Ok(Some(note)) = private_fs::read(&self.note) else { return false };
        let Ok(note) = std::str::from_utf8(&note) else { return false };
        let Some((at, about)) = note.trim_end().split_once(' ') else { return false };
        if about == stamp.to_string() {
            return true;
        }
        let at = at.parse().ok().and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
        // One of the future is of a clock that was wrong.
        at.and_then(|at| now.duration_since(at).ok()).is_some_and(|ago| ago < LEAST_BETWEEN)
    }

    /// Notes that the incident of this token file has its window now; `false` when that cannot be noted.
    pub(super) fn note(&self, stamp: token::Stamp, now: SystemTime) -> bool {
        private_fs::write(
            &self.note,
            format!("{} {stamp}\n", now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
                .as_bytes(),
        )
        .is_ok()
    }
}

/// The right to have a person sign in, until dropped.
#[derive(Debug, Default)]
pub(super) struct Right {
    _lock: Option<private_fs::Lock>,
}
