//! When credentials are served, refreshed or refused: pure functions of the time.

use std::time::{Duration, SystemTime};

/// SDKs refresh 15 minutes before expiry or later, so stay ahead of them; short-lived credentials at a third of
/// their life.
pub(crate) const REFRESH: Duration = Duration::from_secs(20 * 60);

/// What to do with credentials now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Freshness {
    /// They have expired: nobody may get them any more.
    Fetch,
    /// They are good for a while.
    Serve,
    /// They are valid, and newer ones are due.
    ServeAndRefresh,
}

/// Decides what to do at `now` with credentials that were obtained at `issued_at` and end at `expires_at`.
pub(crate) fn freshness(now: SystemTime, issued_at: SystemTime, expires_at: SystemTime) -> Freshness {
    match expires_at.duration_since(now) {
        Ok(left) if left > margin(issued_at, expires_at, Duration::ZERO) => Freshness::Serve,
        Ok(left) if !left.is_zero() => Freshness::ServeAndRefresh,
        _ => Freshness::Fetch,
    }
}

/// Returns how long after `now` a refresh becomes due; zero when it is due already.
///
/// `ahead`: what should be left at any time, because somebody has to get by with it when we are gone.
pub(crate) fn next_check(
    now: SystemTime,
    issued_at: SystemTime,
    expires_at: SystemTime,
    ahead: Duration,
) -> Duration {
    let left = expires_at.duration_since(now).unwrap_or_default();
    left.saturating_sub(margin(issued_at, expires_at, ahead))
}

fn margin(issued_at: SystemTime, expires_at: SystemTime, ahead: Duration) -> Duration {
    let life = expires_at.duration_since(issued_at).unwrap_or_default();
    // To have more than half of a life left at any time would mean to fetch all the time.
    REFRESH.min(life / 3).max(ahead.min(life / 2))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn at(minutes: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000 + minutes * 60)
    }

    #[test]
    fn credentials_are_refreshed_twenty_minutes_or_a_third_of_their_life_ahead() {
        use Freshness::{Fetch, Serve, ServeAndRefresh};
        for (now, issued, expires, expected) in [
            (0, 0, 60, Serve),
            (39, 0, 60, Serve),
            (40, 0, 60, ServeAndRefresh),
            (59, 0, 60, ServeAndRefresh),
            (60, 0, 60, Fetch),
            (600, 0, 60, Fetch),
            (0, 0, 15, Serve),
            (9, 0, 15, Serve),
            (10, 0, 15, ServeAndRefresh),
            (14, 0, 15, ServeAndRefresh),
            (15, 0, 15, Fetch),
            (699, 0, 720, Serve),
            (700, 0, 720, ServeAndRefresh),
            // Obtained after they ended, by a clock that was wrong then or is wrong now.
            (70, 90, 60, Fetch),
            (50, 90, 60, Serve),
        ] {
            assert_eq!(freshness(at(now), at(issued), at(expires)), expected, "{now} {issued} {expires}");
        }
    }

    #[test]
    fn what_has_to_last_without_us_is_refreshed_sooner_but_not_before_half_of_its_life() {
        for (ahead, due) in [(0, 700), (5, 700), (90, 630), (360, 360), (100_000, 360)] {
            let due_in = next_check(at(0), at(0), at(720), Duration::from_secs(ahead * 60));
            assert_eq!(due_in, Duration::from_secs(due * 60), "{ahead}");
        }
    }

    proptest! {
        #[test]
        fn what_has_expired_is_never_served(now in 0u64..5000, issued in 0u64..5000, expires in 0u64..5000) {
            let decision = freshness(at(now), at(issued), at(expires));
            prop_assert_eq!(decision == Freshness::Fetch, expires <= now);
            let wait = next_check(at(now), at(issued), at(expires), Duration::ZERO);
            prop_assert_eq!(wait.is_zero(), decision != Freshness::Serve);
            prop_assert_ne!(freshness(at(now) + wait, at(issued), at(expires)), Freshness::Serve);
        }
    }
}
