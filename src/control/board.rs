//! What this process tells about one tunnel.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::time::Instant;

use super::message::{Ended, Profile, Report, Requests, State, Waiting};
use crate::{
    clock::{self, Clock},
    creds::grant::Grants,
    printable,
};

/// What is known about a tunnel besides its grants.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) host: String,
    destination: String,
    clock: Clock,
    started_at: SystemTime,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    state: State,
    since: SystemTime,
    ends_at: Option<SystemTime>,
    trouble: Option<String>,
    ways: Ways,
    ended: Ended,
}

/// How processes on the host reach us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways {
    pub(crate) port: Option<u16>,
    pub(crate) socket: Option<String>,
    pub(crate) files: bool,
    pub(crate) directory: Option<String>,
}

impl Board {
    /// Returns what is known of a tunnel that is only being made.
    pub(crate) fn new(host: String, destination: String, clock: Clock) -> Self {
        let now = clock.now();
        let live = Live {
            state: State::Starting,
            since: now,
            ends_at: None,
            trouble: None,
            ways: Ways::default(),
            ended: Ended::default(),
        };
        Self { host, destination, clock, started_at: now, live: Mutex::new(live) }
    }

    /// Notes that it is up, and how it is reached.
    pub(crate) fn up(&self, ways: Ways) {
        self.turn(State::Up, None);
        self.live().ways = ways;
    }

    /// Notes that it is in another state, and why.
    pub(crate) fn turn(&self, state: State, trouble: Option<String>) {
        let now = self.clock.now();
        let mut live = self.live();
        if live.state != state {
            live.since = now;
        }
        live.state = state;
        live.trouble = trouble;
    }

    /// Returns how it is now.
    pub(crate) fn state(&self) -> State {
        self.live().state
    }

    /// Notes when it will end by itself.
    pub(crate) fn ends(&self, at: SystemTime) {
        self.live().ends_at = Some(at);
    }

    /// Notes that it has ended, whether the host is clean, and until when it is not.
    pub(crate) fn ended(&self, host_clean: bool, stays_until: Option<SystemTime>) {
        let stays_until = stays_until.and_then(clock::utc);
        self.live().ended = Ended { host_clean: Some(host_clean), stays_until };
    }

    /// Returns how the tunnel ended, once it has.
    pub(crate) fn end(&self) -> Ended {
        self.live().ended.clone()
    }

    /// Returns all that a person may see.
    pub(crate) fn report(&self, id: u32, grants: &Grants) -> Report {
        let now = (self.clock.now(), Instant::now());
        let at = |then: Instant| now.0.checked_sub(now.1.saturating_duration_since(then)).unwrap_or(now.0);
        let counts = grants.counts();
        let requests = |wanted: Option<&str>| -> Vec<Requests> {
            let of_this = counts.iter().filter(|count| count.profile.as_deref() == wanted);
            of_this
                .map(|count| Requests {
                    uid: count.uid,
                    allowed: count.allowed,
                    refused: count.refused,
                    last_at: at(count.last),
                })
                .collect()
        };
        let default = grants.served().into_iter().next();
        let profiles = grants.list().into_iter().map(|grant| {
            let status = grant.status();
            Profile {
                profile: grant.profile.to_string(),
                role: grant.role.as_ref().map(ToString::to_string),
                default: default.as_ref().is_some_and(|default| std::sync::Arc::ptr_eq(default, &grant)),
                expires_at: status.expires_at,
                on_request: grant.is_unasked(),
                trouble: status.trouble.map(|trouble| printable::one_line(&trouble.to_string())),
                requests: requests(Some(grant.profile.as_str())),
            }
        });
        let waiting = grants.waiting().into_iter().map(|asked| Waiting {
            profile: asked.profile.to_string(),
            uid: asked.uid,
            user_agent: asked.user_agent,
            since: at(asked.since),
        });
        let live = self.live();
        Report {
            id,
            pid: std::process::id(),
            broker: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.clone(),
            destination: self.destination.clone(),
            state: live.state,
            since: live.since,
            started_at: self.started_at,
            ends_at: live.ends_at,
            trouble: live.trouble.clone(),
            port: live.ways.port,
            socket: live.ways.socket.clone(),
            files: live.ways.files,
            directory: live.ways.directory.clone(),
            profiles: profiles.collect(),
            refused: requests(None),
            waiting: waiting.collect(),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
