//! Wall-clock time as a value that is passed in.
//!
//! Expiry is wall clock and comes from here; waiting is Tokio's business. Tests move this clock by hand.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Tells the wall-clock time.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// Returns the clock of this machine.
    pub(crate) fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
        Self(Arc::new(SystemTime::now))
    }

    /// Returns a clock that shows whatever `now` returns.
    #[cfg(test)]
    pub(crate) fn from_fn(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the wall-clock time.
    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Returns `time` as `YYYY-MM-DDTHH:MM:SSZ`, the only form that every AWS SDK reads; parts of a second are cut
/// off, so that it is never later than the truth. `None` outside the years 1970 to 9999.
pub(crate) fn utc(time: SystemTime) -> Option<String> {
    Some(format!("{}Z", to_the_second(time)?))
}

/// Returns `time` as [`utc`] does, with milliseconds.
pub(crate) fn utc_millis(time: SystemTime) -> Option<String> {
    let millis = time.duration_since(UNIX_EPOCH).ok()?.subsec_millis();
    Some(format!("{}.{millis:03}Z", to_the_second(time)?))
}

fn to_the_second(time: SystemTime) -> Option<String> {
    let seconds = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    Some(format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_every_sdk_reads_them() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(utc(at(0)).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(utc(at(1_767_225_599_999)).unwrap(), "2025-12-31T23:59:59Z");
        assert_eq!(utc(at(951_782_400_000)).unwrap(), "2000-02-29T00:00:00Z");
        assert_eq!(utc_millis(at(1_767_225_599_007)).unwrap(), "2025-12-31T23:59:59.007Z");
        assert_eq!(utc(UNIX_EPOCH - Duration::from_secs(1)), None);
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(1 << 40)), None);
    }
}
