//! What can be asked of a running `broker`, and what it answers.
//!
//! [`Report`] is also what `broker status --json` prints, so its fields are kept: later versions may add some, and
//! never change what one means. Whoever reads it ignores what it does not know.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The version of the protocol and of the report.
pub(crate) const VERSION: u32 = 1;

/// A request and the tunnel of the process that it is about.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Envelope {
    /// [`VERSION`] of whoever asks.
    pub(crate) v: u32,
    /// [`Report::id`]; nothing for a request about the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<u32>,
    #[serde(flatten)]
    pub(crate) request: Request,
}

/// What is asked.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// What there is to know.
    Status,
    /// The exports for another terminal on the host.
    Env {
        /// As `--print-env` takes it; the host's login shell where nothing is said.
        #[serde(default)]
        shell: Option<String>,
    },
    /// A clean end. Answered when the host is clean.
    Stop,
    /// New credentials of every role, now.
    Refresh,
    /// Takes one grant back, or all of them.
    Revoke {
        #[serde(default)]
        profile: Option<String>,
    },
    /// Adds a profile, or has it lead to what the configuration says now.
    Grant { profile: String },
    /// Answers what waits for `--confirm`.
    Confirm {
        allow: bool,
        #[serde(default)]
        profile: Option<String>,
        #[serde(default)]
        uid: Option<u32>,
    },
}

/// What comes back: one of the two.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Ok(Answer),
    Error(Refusal),
}

/// What was asked for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Status {
        tunnels: Vec<Report>,
    },
    Env {
        exports: String,
        /// What the person should know about them.
        #[serde(default)]
        notices: Vec<String>,
    },
    Stopped(Ended),
    Refreshed {
        roles: Vec<Refreshed>,
    },
    Revoked {
        profiles: Vec<Revoked>,
        #[serde(default)]
        notices: Vec<String>,
    },
    Granted {
        profile: String,
        role: Option<String>,
        replaced: bool,
        default: bool,
        #[serde(default)]
        notices: Vec<String>,
    },
    Confirmed {
        answered: Vec<Answered>,
    },
}

/// How a tunnel ended.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Ended {
    /// `None` when there was nothing on the host yet.
    pub(crate) host_clean: Option<bool>,
    /// Until when credentials stay there at most, where that is known, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stays_until: Option<String>,
}

/// Why there is no answer, for the person.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) kind: RefusalKind,
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// What kind of failure it is, for the exit code.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RefusalKind {
    /// A request that makes no sense.
    Usage,
    LoginNeeded,
    RoleDenied,
    #[serde(other)]
    Failed,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// What became of new credentials of one role.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Refreshed {
    pub(crate) profile: String,
    #[serde(with = "when::maybe", default)]
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) trouble: Option<String>,
}

/// A grant that was taken back.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Revoked {
    pub(crate) profile: String,
    pub(crate) role: Option<String>,
}

/// A question that was answered.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Answered {
    pub(crate) profile: String,
    pub(crate) uid: Option<u32>,
}

/// How a tunnel is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Not up yet.
    Starting,
    /// Processes on the host are served.
    Up,
    /// The link is lost, and another is being made.
    Reconnecting,
    /// On its way out.
    Stopping,
    /// A word that a later version has.
    #[serde(other)]
    Unknown,
}

/// One tunnel, as `broker status` shows it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    /// Which tunnel of its process it is.
    pub(crate) id: u32,
    pub(crate) pid: u32,
    /// The version of `broker` that holds it.
    pub(crate) broker: String,
    /// The host as the user typed it.
    pub(crate) host: String,
    /// `user@name:port` behind that.
    pub(crate) destination: String,
    pub(crate) state: State,
    /// Since when it is in this state.
    #[serde(with = "when")]
    pub(crate) since: SystemTime,
    #[serde(with = "when")]
    pub(crate) started_at: SystemTime,
    /// When it ends by itself (`--max-lifetime`).
    #[serde(with = "when::maybe", default)]
    pub(crate) ends_at: Option<SystemTime>,
    /// What happened to it last that a person can do something about.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    /// How processes on the host reach us: any of a port, a socket, files.
    pub(crate) port: Option<u16>,
    pub(crate) socket: Option<String>,
    pub(crate) files: bool,
    /// Our directory on the host.
    pub(crate) directory: Option<String>,
    pub(crate) profiles: Vec<Profile>,
    /// Requests of the host that opened nothing.
    #[serde(default)]
    pub(crate) refused: Vec<Requests>,
    /// What waits for `broker approve` or `deny`.
    #[serde(default)]
    pub(crate) waiting: Vec<Waiting>,
}

/// One grant.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Profile {
    pub(crate) profile: String,
    /// `ACCOUNT/ROLE`, where the configuration says it.
    pub(crate) role: Option<String>,
    /// Whether it is what a process gets that names none.
    pub(crate) default: bool,
    /// The end of the credentials in memory; `null` where there are none.
    #[serde(with = "when::maybe", default)]
    pub(crate) expires_at: Option<SystemTime>,
    /// Nothing is fetched before a process asks (`--allow`), and none has.
    #[serde(default)]
    pub(crate) on_request: bool,
    /// Why the last fetch failed, until one succeeds.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    pub(crate) requests: Vec<Requests>,
}

/// How often one user of the host asked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Requests {
    /// `null` where callers are not told apart.
    pub(crate) uid: Option<u32>,
    pub(crate) allowed: u64,
    pub(crate) refused: u64,
    #[serde(with = "when")]
    pub(crate) last_at: SystemTime,
}

/// Somebody who waits for a person's word.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Waiting {
    pub(crate) profile: String,
    pub(crate) uid: Option<u32>,
    /// What it says that it is, which anybody can say.
    pub(crate) user_agent: Option<String>,
    #[serde(with = "when")]
    pub(crate) since: SystemTime,
}

/// Times as `2026-11-22T00:00:00Z`.
mod when {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        crate::clock::utc(*time).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map(SystemTime::from).map_err(D::Error::custom)
    }

    /// The same, or `null`.
    pub(super) mod maybe {
        use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

        use super::{OffsetDateTime, Rfc3339, SystemTime};

        pub(in super::super) fn serialize<S: Serializer>(
            time: &Option<SystemTime>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            time.and_then(crate::clock::utc).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
            OffsetDateTime::parse(&text, &Rfc3339)
                .map(|time| Some(SystemTime::from(time)))
                .map_err(D::Error::custom)
        }
    }
}
