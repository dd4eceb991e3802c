//! How often each grant was asked for, and by whom: for the person who looks, not for the auditor.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// Users of a host that are counted one by one; a hostile host can name four billion.
const MOST_KEYS: usize = 256;

/// How often one user asked for one thing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Count {
    /// The grant that was opened; `None` where none was, or where there were too many to tell apart.
    pub(crate) profile: Option<String>,
    /// Who asked, where that is known.
    pub(crate) uid: Option<u32>,
    pub(crate) allowed: u64,
    pub(crate) refused: u64,
    pub(crate) last: Instant,
}

/// The counts since the start.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<(Option<String>, Option<u32>), Count>,
    /// When something was handed out last.
    served: Option<Instant>,
}

impl Tally {
    pub(super) fn note(&mut self, profile: Option<&str>, uid: Option<u32>, allowed: bool, times: u64) {
        let last = Instant::now();
        let mut key = (profile.map(str::to_owned), uid);
        if !self.counts.contains_key(&key) && self.counts.len() >= MOST_KEYS {
            key = (None, None);
        }
        let (profile, uid) = key.clone();
        let count = self.counts.entry(key).or_insert(Count { profile, uid, allowed: 0, refused: 0, last });
        count.last = last;
        let counted = if allowed { &mut count.allowed } else { &mut count.refused };
        *counted = counted.saturating_add(times);
        if allowed {
            self.served = Some(last);
        }
    }

    pub(super) fn counts(&self) -> Vec<Count> {
        self.counts.values().cloned().collect()
    }

    pub(super) fn served(&self) -> Option<Instant> {
        self.served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_are_kept_apart_and_bounded() {
        let mut tally = Tally::default();
        tally.note(Some("dev"), Some(1000), true, 1);
        tally.note(Some("dev"), Some(1000), false, 1);
        tally.note(Some("audit"), Some(1000), true, 1);
        assert!(tally.served().is_some());
        for uid in 0..100_000 {
            tally.note(None, Some(uid), false, 2);
        }
        let counts = tally.counts();
        assert!(counts.len() <= MOST_KEYS + 1, "{}", counts.len());
        let dev = counts.iter().find(|count| count.profile.as_deref() == Some("dev")).unwrap();
        assert_eq!((dev.uid, dev.allowed, dev.refused), (Some(1000), 1, 1));
        assert_eq!(counts.iter().map(|count| count.refused).sum::<u64>(), 200_001, "none is lost");
    }
}
