//! Limits for callers who are not proven to be our user, so that a neighbour on the host can neither keep us
//! busy nor fill the log. Callers who are ours never pass here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::audit::{Decision, Entry, Event, Log};
use crate::caller::Uid;

/// Strangers who get an answer at the same time; the rest find their connection closed.
const ANSWERED_AT_ONCE: usize = 8;

/// Strangers who get an answer in a second.
const ANSWERED_A_SECOND: u32 = 20;

/// One line at the start of a burst and one with the count of the rest for each such span.
pub(super) const BURST: Duration = Duration::from_secs(10);

/// Different kinds of strangers that are told apart in the log at one time.
const KINDS: usize = 16;

/// Counts strangers.
#[derive(Debug)]
pub(super) struct Strangers {
    state: Mutex<State>,
    log: Log,
}

#[derive(Debug)]
struct State {
    answered: usize,
    /// Answers that may still be given, in units of one answer.
    left: f64,
    since: Instant,
    bursts: HashMap<(&'static str, Option<Uid>), Burst>,
}

#[derive(Debug)]
struct Burst {
    since: Instant,
    /// How many came after the one that was logged.
    more: u64,
    event: Event,
}

/// Leave to answer one stranger.
#[derive(Debug)]
pub(crate) struct Admitted<'a>(&'a Strangers);

impl Strangers {
    pub(super) fn new(log: Log) -> Self {
        let state = State {
            answered: 0,
            left: f64::from(ANSWERED_A_SECOND),
            since: Instant::now(),
            bursts: HashMap::new(),
        };
        Self { state: Mutex::new(state), log }
    }

    /// Returns leave to answer one more, or `None` when there are too many.
    pub(super) fn admit(&self) -> Option<Admitted<'_>> {
        let mut state = self.state();
        let now = Instant::now();
        let rate = f64::from(ANSWERED_A_SECOND);
        let earned = now.saturating_duration_since(state.since).as_secs_f64() * rate;
        state.left = (state.left + earned).min(rate);
        state.since = now;
        if state.answered >= ANSWERED_AT_ONCE || state.left < 1.0 {
            return None;
        }
        state.left -= 1.0;
        state.answered += 1;
        Some(Admitted(self))
    }

    /// Logs one refusal, or counts it when the same has just been logged. Returns whether it was logged.
    pub(super) fn note(&self, uid: Option<Uid>, entry: Entry) -> bool {
        let key = (entry.reason.unwrap_or_default(), uid);
        self.flush(BURST);
        let mut state = self.state();
        if let Some(burst) = state.bursts.get_mut(&key) {
            burst.more += 1;
            return false;
        }
        if state.bursts.len() >= KINDS {
            drop(state);
            self.flush(Duration::ZERO);
            state = self.state();
        }
        state.bursts.insert(key, Burst { since: Instant::now(), more: 0, event: entry.event });
        drop(state);
        self.log.record(entry);
        true
    }

    /// Logs the counts of all bursts that began at least `age` ago.
    pub(super) fn flush(&self, age: Duration) {
        let mut ended = Vec::new();
        self.state().bursts.retain(|&(reason, uid), burst| {
            let over = burst.since.elapsed() >= age;
            if over && burst.more > 0 {
                ended.push(Entry {
                    event: burst.event,
                    decision: Some(Decision::Refused),
                    reason: Some(reason),
                    uid: uid.map(|uid| uid.0),
                    count: Some(burst.more),
                    ..Entry::default()
                });
            }
            !over
        });
        for entry in ended {
            self.log.record(entry);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.state().answered -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Entry {
        Entry { reason: Some("foreign_uid"), uid: Some(7), ..Entry::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn eight_strangers_at_once_and_twenty_a_second_are_answered() {
        let (log, _memory) = Log::to_memory();
        let strangers = Strangers::new(log);
        let at_once: Vec<_> = std::iter::from_fn(|| strangers.admit()).collect();
        assert_eq!(at_once.len(), 8);
        drop(at_once);
        let in_a_row = std::iter::repeat_with(|| strangers.admit()).take_while(Option::is_some).count();
        assert_eq!(in_a_row, 12);
        tokio::time::advance(Duration::from_millis(500)).await;
        let in_a_row = std::iter::repeat_with(|| strangers.admit()).take_while(Option::is_some).count();
        assert_eq!(in_a_row, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_two_lines() {
        let (log, mut memory) = Log::to_memory();
        let strangers = Strangers::new(log);
        for _ in 0..1000 {
            strangers.note(Some(Uid(7)), refused());
        }
        assert_eq!(memory.entries().len(), 1);
        strangers.flush(BURST);
        assert_eq!(memory.entries().len(), 0);
        tokio::time::advance(BURST).await;
        strangers.note(Some(Uid(7)), refused());
        let counts: Vec<_> = memory.entries().into_iter().map(|entry| entry.count).collect();
        assert_eq!(counts, [Some(999), None]);
        for uid in 0..100 {
            strangers.note(Some(Uid(uid)), refused());
        }
        assert!(strangers.state().bursts.len() <= KINDS);
    }
}
