//! How fast many calls of one kind go out: slowly enough for a throttle of which AWS says no number.
//!
//! It starts at a rate that AWS is known to bear, is slower for all when one is refused, and comes back little by little.
//! Waiting for the throttle to refuse, and trying again, would cost calls that others of the same account need.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Between two calls at the fastest: 25 a second, so that 300 accounts take twelve seconds.
const LEAST: Duration = Duration::from_millis(40);

/// Between two calls at the slowest.
const MOST: Duration = Duration::from_secs(1);

/// What nobody asks in after a refusal; and refusals within it are of calls that were under way together, and are one
/// reason to be slower.
const PAUSE: Duration = Duration::from_millis(500);

/// Shared by all calls of one kind.
#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    next: Instant,
    interval: Duration,
    slowed: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State::new(Instant::now())))
    }

    /// Waits for one's turn.
    pub(super) async fn turn(&self) {
        let turn = self.with(|state| state.turn(Instant::now()));
        sleep_until(turn).await;
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        self.with(State::answered);
    }

    /// A call was refused because there were too many.
    pub(super) fn throttled(&self) {
        self.with(|state| state.throttled(Instant::now()));
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self { next: now, interval: LEAST, slowed: None }
    }

    fn turn(&mut self, now: Instant) -> Instant {
        let turn = self.next.max(now);
        self.next = turn + self.interval;
        turn
    }

    fn answered(&mut self) {
        self.interval = self.interval.mul_f64(0.99).max(LEAST);
    }

    fn throttled(&mut self, now: Instant) {
        if self.slowed.is_none_or(|before| now >= before + PAUSE) {
            self.interval = (self.interval * 3 / 2).min(MOST);
            self.slowed = Some(now);
        }
        self.next = self.next.max(now + PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A throttle as services have it: so many calls at once, and so many a second.
    struct Bucket {
        rate: f64,
        full: f64,
        left: f64,
        at: Instant,
    }

    impl Bucket {
        fn takes(&mut self, now: Instant) -> bool {
            self.left = (self.left + (now - self.at).as_secs_f64() * self.rate).min(self.full);
            self.at = now;
            let taken = self.left >= 1.0;
            self.left -= f64::from(u8::from(taken));
            taken
        }
    }

    /// Returns how many of `calls` are refused, and how long all take until each was answered.
    fn list(rate: f64, calls: u32) -> (u32, Duration) {
        let start = Instant::now();
        let mut bucket = Bucket { rate, full: rate, left: rate, at: start };
        let (mut pace, mut now, mut answered, mut refused) = (State::new(start), start, 0, 0);
        while answered < calls {
            now = pace.turn(now);
            if bucket.takes(now) {
                answered += 1;
                pace.answered();
            } else {
                refused += 1;
                pace.throttled(now);
            }
        }
        (refused, now - start)
    }

    #[test]
    fn a_throttle_that_bears_the_usual_rate_refuses_nothing() {
        let (refused, took) = list(25.0, 305);
        assert_eq!(refused, 0);
        assert!(took < Duration::from_secs(13), "{took:?}");
    }

    #[test]
    fn a_slower_throttle_is_met_seldom_and_used_well() {
        for rate in [2.0, 5.0, 10.0, 20.0] {
            let (refused, took) = list(rate, 1000);
            assert!(refused <= 40, "{refused} of 1000 at {rate}");
            let best = Duration::from_secs_f64(1000.0 / rate);
            assert!(took < best.mul_f64(1.6), "{took:?} at {rate}, at best {best:?}");
        }
    }

    #[test]
    fn calls_that_were_refused_together_slow_us_down_once() {
        let now = Instant::now();
        let mut pace = State::new(now);
        for _ in 0..6 {
            pace.throttled(now);
        }
        assert_eq!(pace.interval, LEAST * 3 / 2);
        assert_eq!(pace.turn(now), now + PAUSE);
        // However often it is refused, it goes on.
        for second in 1..100 {
            pace.throttled(now + Duration::from_secs(second));
        }
        assert_eq!(pace.interval, MOST);
    }
}
