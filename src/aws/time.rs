//! Points in time as AWS's files and answers write them.

use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// The last second that `YYYY` can write, 9999-12-31T23:59:59Z; what lies beyond is cut to it.
const LAST: u64 = 253_402_300_799;

/// Reads `2026-01-01T08:00:00Z`, with any offset, or with `UTC` for `Z` as early AWS CLIs wrote.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let text = match text.strip_suffix("UTC") {
        Some(start) => format!("{start}Z"),
        None => text.to_owned(),
    };
    let seconds = OffsetDateTime::parse(&text, &Rfc3339).ok()?.unix_timestamp();
    Some(from_epoch(u64::try_from(seconds).unwrap_or(0)))
}

/// Writes `2026-01-01T08:00:00Z`.
pub(crate) fn format(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().min(LAST);
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| {
            time.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z")).ok()
        })
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// Returns the time `seconds` after the epoch.
pub(crate) fn from_epoch(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_that_a_cache_holds_is_read() {
        let expected = from_epoch(1_767_254_400);
        for text in [
            "2026-01-01T08:00:00Z",
            "2026-01-01T08:00:00UTC",
            "2026-01-01T09:00:00+01:00",
            "2026-01-01T08:00:00.25Z",
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        assert_eq!(format(expected), "2026-01-01T08:00:00Z");
        for text in ["", "tomorrow", "2026-13-01T08:00:00Z", "1767254400"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(format(from_epoch(u64::MAX)), "9999-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0..=LAST) {
            prop_assert_eq!(parse(&format(from_epoch(seconds))), Some(from_epoch(seconds)));
        }

        #[test]
        fn no_text_panics(text: String) {
            prop_assert!(parse(&text).is_none_or(|time| time <= from_epoch(LAST)));
        }
    }
}
