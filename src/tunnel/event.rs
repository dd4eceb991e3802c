//! What happens to a tunnel, for the person or the log; `cli::terminal` words it.

use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::clock;

/// One thing that happened. Holds nothing secret: every field may be printed and logged.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A step of the start began.
    Started { step: Step, subject: String },
    /// The step that began last is done.
    Done { step: Step, subject: String },
    /// Something that the person should know, in one sentence.
    Notice { message: String },
    /// Something that needs the person's attention.
    Warning { message: String },
    /// Processes on the host get credentials from now on.
    Ready {
        host: String,
        /// The port on the host's 127.0.0.1, where one leads to us.
        port: Option<u16>,
        /// The path of the unix socket, where one leads to us.
        socket: Option<String>,
        /// Whether credentials lie in files, because nothing leads to us.
        files: bool,
        url: Option<String>,
        profiles: Vec<String>,
        directory: String,
    },
    /// The link is gone: nobody on the host is served until [`Self::Back`].
    Lost { host: String, reason: String },
    /// An attempt to get back failed like this for the first time; the next one is made after this wait.
    Retrying { host: String, reason: String, wait_ms: u64 },
    /// Processes on the host get credentials again.
    Back {
        host: String,
        after_ms: u64,
        attempts: u32,
        port: Option<u16>,
        socket: Option<String>,
        files: bool,
        directory: String,
    },
    /// The tunnel is closed and the host is clean, or is not and this says why.
    Stopped {
        host: String,
        reason: String,
        host_clean: bool,
        /// When what was left there is worth nothing any more, or removed by the host (`lingers`).
        #[serde(serialize_with = "utc", skip_serializing_if = "Option::is_none")]
        stays_until: Option<SystemTime>,
        /// Whether it was left on purpose (`--linger`), and the host removes it.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        lingers: bool,
    },
}

/// The steps of `connect` (`product.md` 2).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    SignIn,
    Credentials,
    Connect,
    Forward,
    Install,
}

fn utc<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(clock::utc).serialize(serializer)
}
