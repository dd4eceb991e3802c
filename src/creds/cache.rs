//! The credentials of one source, in memory: one flight at a time, refreshed ahead of expiry, never served expired.
//!
//! Nobody here starts tasks. [`super::grant::Grants::run`] drives the flights; requests only look, and wait a
//! little for a flight when there is nothing valid to look at. What went wrong last is remembered, so that a dead
//! session is answered from memory and not asked about again with every request.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    FetchError, RoleSource,
    freshness::{Freshness, freshness, next_check},
    secret::RoleCredentials,
};
use crate::{backoff, clock::Clock};

/// Sources have their own, shorter deadlines; this one holds even if one of them is wrong about that.
const FLIGHT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where nobody can tell whether somebody has logged in ([`RoleSource::revived`]), a try is all there is.
const LOGIN_RETRY: Duration = Duration::from_secs(30);

/// An administrator may give the role back; nobody waits for that at the keyboard.
const DENIED_RETRY: Duration = Duration::from_secs(60);

/// At most one call a second for each role, also when AWS throttles us.
const BACKOFF_LEAST: Duration = Duration::from_secs(1);

/// Once the trouble at AWS is over, all is well again within this time.
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// A source that hands out its own cached, short-lived credentials is not asked again at once.
const SETTLE: Duration = Duration::from_secs(10);

/// Why a request gets no credentials now.
#[derive(Clone, Debug)]
pub(crate) enum Unavailable {
    /// The last attempt failed like this.
    Failed(Arc<FetchError>),
    /// An attempt is under way and has not ended yet.
    Waiting,
}

/// What is known about one source.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// The end of the credentials that are being served; `None` when there are none.
    pub(crate) expires_at: Option<SystemTime>,
    /// The last failure, until a fetch succeeds.
    pub(crate) trouble: Option<Arc<FetchError>>,
}

/// The cache in front of one source. Grants that lead to the same role may share it.
pub(crate) struct Cache {
    source: Arc<dyn RoleSource>,
    clock: Clock,
    state: Mutex<State>,
    /// Counts landings, so that waiting requests look again.
    landings: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    in_flight: bool,
    trouble: Option<Trouble>,
    /// No new flight before this.
    not_before: Option<Instant>,
    /// Nobody has asked yet, and nothing is fetched before somebody does.
    unasked: bool,
    /// New ones are wanted, however fresh those in memory are.
    renew: bool,
    /// What should be left of them at any time.
    ahead: Duration,
    runners: Vec<Weak<Notify>>,
}

struct Held {
    credentials: Arc<RoleCredentials>,
    landed: Instant,
}

struct Trouble {
    error: Arc<FetchError>,
    in_a_row: u32,
}

impl Held {
    /// Returns the time by which these credentials are judged.
    ///
    /// A clock that is set back must not lengthen their life, so they age by the monotonic clock as well; that
    /// one stands still while the machine sleeps, and then the wall clock is the later of the two.
    fn now(&self, wall: SystemTime) -> SystemTime {
        wall.max(self.credentials.issued_at + self.landed.elapsed())
    }

    fn is_over(&self, wall: SystemTime) -> bool {
        let Self { credentials, .. } = self;
        freshness(self.now(wall), credentials.issued_at, credentials.expires_at) == Freshness::Fetch
    }
}

/// When the next flight of a cache has to start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    Now,
    In(Duration),
    /// One is under way.
    Flying,
}

impl Cache {
    /// Returns an empty cache.
    pub(crate) fn new(source: Arc<dyn RoleSource>, clock: Clock) -> Arc<Self> {
        let (landings, _) = watch::channel(0);
        Arc::new(Self { source, clock, state: Mutex::default(), landings })
    }

    /// Returns an empty cache that stays empty until somebody asks.
    pub(crate) fn on_request(source: Arc<dyn RoleSource>, clock: Clock) -> Arc<Self> {
        let cache = Self::new(source, clock);
        cache.state().unasked = true;
        cache
    }

    /// Has them renewed so early that at least so much of their life is left at any time, if AWS gives twice as much.
    pub(crate) fn keep_ahead(&self, ahead: Duration) {
        let mut state = self.state();
        state.ahead = state.ahead.max(ahead);
        wake(&state);
    }

    /// Returns valid credentials: at once if there are any, else when the flight lands or fails, at `deadline`
    /// at the latest.
    pub(crate) async fn get(&self, deadline: Instant) -> Result<Arc<RoleCredentials>, Unavailable> {
        let mut landings = self.landings.subscribe();
        loop {
            let trouble = {
                let mut state = self.state();
                state.unasked = false;
                let due = self.due_in(&state);
                match self.valid(&state) {
                    Some(credentials) => {
                        if due == Due::Now {
                            wake(&state);
                        }
                        return Ok(credentials);
                    }
                    None if due == Due::Now => wake(&state),
                    None => {}
                }
                let trouble = state.trouble.as_ref().map(|trouble| Arc::clone(&trouble.error));
                match (trouble, due) {
                    (Some(error), Due::In(_)) => return Err(Unavailable::Failed(error)),
                    (trouble, _) => trouble,
                }
            };
            if !matches!(timeout_at(deadline, landings.changed()).await, Ok(Ok(()))) {
                return Err(trouble.map_or(Unavailable::Waiting, Unavailable::Failed));
            }
        }
    }

    /// Returns valid credentials, flying itself when there are none and nobody else does.
    ///
    /// For the start, when a person waits for the answer and no request does; it takes as long as the source.
    pub(crate) async fn first(&self) -> Result<Arc<RoleCredentials>, Arc<FetchError>> {
        let mut landings = self.landings.subscribe();
        let mut looked = false;
        self.state().unasked = false;
        loop {
            {
                let state = self.state();
                if let Some(credentials) = self.valid(&state) {
                    return Ok(credentials);
                }
                if let (true, false, Some(trouble)) = (looked, state.in_flight, &state.trouble) {
                    return Err(Arc::clone(&trouble.error));
                }
            }
            looked = true;
            match Flight::take_off(self, |_| true) {
                Some(flight) => self.fly(flight).await,
                // Someone else flies. The sender lives as long as we do, so this cannot fail.
                None => drop(landings.changed().await),
            }
        }
    }

    /// Has what failed tried again now: after a login, after waking up, on request of a person.
    pub(crate) fn poke(&self) {
        let mut state = self.state();
        state.not_before = None;
        if let Some(trouble) = &mut state.trouble {
            trouble.in_a_row = 0;
        }
        wake(&state);
    }

    /// Whether nothing more comes before somebody logs in.
    pub(super) fn needs_login(&self) -> bool {
        let state = self.state();
        let dead = |trouble: &Trouble| matches!(*trouble.error, FetchError::LoginNeeded { .. });
        // Without a pause, another try is on its way already.
        state.trouble.as_ref().is_some_and(dead) && !state.in_flight && state.not_before.is_some()
    }

    /// Ends when somebody may have logged in.
    pub(super) async fn revived(&self) {
        self.source.revived().await;
    }

    /// Fetches new credentials now, and returns their end. What is in memory is served meanwhile, and stays if it fails.
    pub(crate) async fn renew(&self) -> Result<SystemTime, Arc<FetchError>> {
        let mut landings = self.landings.subscribe();
        {
            let mut state = self.state();
            state.renew = true;
            state.unasked = false;
        }
        self.poke();
        loop {
            // The sender lives as long as we do, so this cannot fail.
            drop(landings.changed().await);
            let state = self.state();
            if state.renew || state.in_flight {
                // One that was under way already.
                continue;
            }
            if let Some(trouble) = &state.trouble {
                return Err(Arc::clone(&trouble.error));
            }
            if let Some(held) = &state.held {
                return Ok(held.credentials.expires_at);
            }
        }
    }

    /// Whether something waits for the first request.
    pub(super) fn is_unasked(&self) -> bool {
        self.state().unasked
    }

    /// Returns what is known now.
    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        Status {
            expires_at: self.valid(&state).map(|credentials| credentials.expires_at),
            trouble: state.trouble.as_ref().map(|trouble| Arc::clone(&trouble.error)),
        }
    }

    /// Has `runner` notified when this cache needs a flight.
    pub(super) fn attach(&self, runner: &Arc<Notify>) {
        let mut state = self.state();
        state.runners.retain(|known| known.strong_count() > 0);
        state.runners.push(Arc::downgrade(runner));
        wake(&state);
    }

    /// Returns when the next flight has to start.
    pub(super) fn due(&self) -> Due {
        self.due_in(&self.state())
    }

    /// Fetches if it is time for that and nobody else does.
    pub(super) async fn fly_if_due(&self) {
        let flight = Flight::take_off(self, |state| self.due_in(state) == Due::Now);
        if let Some(flight) = flight {
            self.fly(flight).await;
        }
    }

    async fn fly(&self, flight: Flight<'_>) {
        let fetched = timeout(FLIGHT_TIMEOUT, self.source.fetch()).await.unwrap_or_else(|_| {
            Err(FetchError::Transient {
                sentence: format!("AWS gave no answer within {} seconds", FLIGHT_TIMEOUT.as_secs()),
                source: None,
            })
        });
        flight.land(fetched);
    }

    fn due_in(&self, state: &State) -> Due {
        if state.in_flight {
            return Due::Flying;
        }
        if state.unasked {
            return Due::In(LOGIN_RETRY);
        }
        if state.renew {
            return Due::Now;
        }
        let now = Instant::now();
        let pause = state.not_before.map(|at| at.saturating_duration_since(now)).unwrap_or_default();
        let wall = self.clock.now();
        let fresh_for = match &state.held {
            Some(held) => {
                let Held { credentials, .. } = held;
                next_check(held.now(wall), credentials.issued_at, credentials.expires_at, state.ahead)
            }
            None => Duration::ZERO,
        };
        // The settling time after a success is no reason to be without credentials.
        let expired = state.held.as_ref().is_some_and(|held| held.is_over(wall));
        let pause = if expired && state.trouble.is_none() { Duration::ZERO } else { pause };
        match pause.max(fresh_for) {
            Duration::ZERO => Due::Now,
            wait => Due::In(wait),
        }
    }

    fn valid(&self, state: &State) -> Option<Arc<RoleCredentials>> {
        let held = state.held.as_ref()?;
        (!held.is_over(self.clock.now())).then(|| Arc::clone(&held.credentials))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn wake(state: &State) {
    for runner in state.runners.iter().filter_map(Weak::upgrade) {
        runner.notify_one();
    }
}

/// The right to fetch; given back when dropped, also by a caller that was cancelled.
struct Flight<'a> {
    cache: &'a Cache,
}

impl<'a> Flight<'a> {
    fn take_off(cache: &'a Cache, wanted: impl FnOnce(&State) -> bool) -> Option<Self> {
        let mut state = cache.state();
        if state.in_flight || !wanted(&state) {
            return None;
        }
        state.in_flight = true;
        state.renew = false;
        Some(Self { cache })
    }

    fn land(self, fetched: Result<RoleCredentials, FetchError>) {
        let fetched = match fetched {
            Ok(credentials) if credentials.expires_at <= self.cache.clock.now() => {
                Err(FetchError::Transient {
                    sentence:
                        "AWS sent credentials that have ended already by the clock of the machine `broker` \
                           runs on; set that clock right"
                            .into(),
                    source: None,
                })
            }
            fetched => fetched,
        };
        let now = Instant::now();
        let mut state = self.cache.state();
        match fetched {
            Ok(credentials) => {
                state.held = Some(Held { credentials: Arc::new(credentials), landed: now });
                state.trouble = None;
                state.not_before = Some(now + SETTLE);
            }
            Err(error) => {
                let in_a_row = state.trouble.as_ref().map_or(0, |trouble| trouble.in_a_row).saturating_add(1);
                state.not_before = Some(now + retry_after(&error, in_a_row));
                tracing::warn!(%error, in_a_row, "could not get new credentials");
                state.trouble = Some(Trouble { error: Arc::new(error), in_a_row });
            }
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        state.in_flight = false;
        // The runner computes its next turn from what has landed.
        wake(&state);
        drop(state);
        self.cache.landings.send_modify(|landings| *landings = landings.wrapping_add(1));
    }
}

fn retry_after(error: &FetchError, in_a_row: u32) -> Duration {
    match error {
        FetchError::LoginNeeded { .. } => LOGIN_RETRY,
        FetchError::Denied { .. } => DENIED_RETRY,
        FetchError::Transient { .. } => {
            let spread = backoff::full_jitter(BACKOFF_LEAST, BACKOFF_MOST, in_a_row, backoff::random());
            spread.clamp(BACKOFF_LEAST, BACKOFF_MOST)
        }
    }
}

#[cfg(test)]
mod tests;
