//! How long to wait between tries: full jitter, so that many who failed together do not come back together.
//!
//! Only numbers; the waiting and the giving up are the caller's.

use std::time::Duration;

/// Returns `random` × min(`cap`, `base` × 2^`failures`).
pub(crate) fn full_jitter(base: Duration, cap: Duration, failures: u32, random: f64) -> Duration {
    let ceiling = 2u32.checked_pow(failures).map_or(cap, |factor| base.saturating_mul(factor)).min(cap);
    let random = if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 };
    ceiling.mul_f64(random)
}

/// Returns a uniform number in 0.0..1.0; 0.5 where the system has no randomness to give.
pub(crate) fn random() -> f64 {
    let mut bytes = [0u8; 4];
    match crate::random::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(30);

    #[test]
    fn the_longest_waits_double_up_to_the_cap() {
        let waits: Vec<_> =
            (0..9).map(|failures| full_jitter(BASE, CAP, failures, 1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    }

    #[test]
    fn randomness_spreads_the_whole_range() {
        assert_eq!(full_jitter(BASE, CAP, 3, 0.0), Duration::ZERO);
        assert_eq!(full_jitter(BASE, CAP, 3, 0.5), Duration::from_secs(2));
        assert!((0..100).all(|_| (0.0..1.0).contains(&random())));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_cap(failures: u32, random: f64) {
            prop_assert!(full_jitter(BASE, CAP, failures, random) <= CAP);
        }
    }
}
