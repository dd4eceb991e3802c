//! What brokers left on the host, found and removed: the directories of helpers that are dead.
//!
//! Does not own our block in the host's `~/.aws/config`.

use std::collections::HashSet;

use super::helper::{Error, Helper};
use crate::printable::one_line;

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sweep {
    /// Removes nothing.
    Look,
    /// Removes what no live broker uses.
    Dead,
    /// Removes what live brokers use too.
    Force,
}

/// One directory of ours on the host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Leftover {
    pub(crate) path: String,
    pub(crate) state: State,
}

/// What is, or was done, with a directory of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    /// A broker uses it.
    Live,
    /// Its broker has ended and left role credentials there for a while.
    Lingers,
    /// Nobody uses it, and it is still there because we only looked.
    Dead,
    /// It was removed.
    Removed,
    /// It could not be removed.
    Stuck,
    /// It was made on another host that shares this home, where a broker may be using it.
    Elsewhere,
}

/// Finds every directory that any broker made for this user on the host, and treats it as `sweep` says.
pub(crate) async fn sweep(helper: &Helper, sweep: Sweep) -> Result<Vec<Leftover>, Error> {
    let how = match sweep {
        Sweep::Look => "look",
        Sweep::Dead => "dead",
        Sweep::Force => "force",
    };
    let mut found: Vec<Leftover> = Vec::new();
    let mut known = HashSet::new();
    // How many of those that were told of are still there, before the next ones.
    let mut stayed = 0;
    for _ in 0..MOST_PAGES {
        let answer = helper.run(format!("clean {how} {stayed} {PAGE}"), None).await?;
        for row in &answer.rows {
            let leftover = parse(row).ok_or(Error::Garbled { what: "an odd leftover" })?;
            stayed += usize::from(leftover.state != State::Removed);
            // $XDG_RUNTIME_DIR and /run/user/UID are usually one place.
            if known.insert(row.clone()) {
                found.push(leftover);
            }
        }
        if answer.verdict.as_deref() != Ok("more") || answer.rows.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// How many the helper looks at for one answer, which holds 64 KB and takes less than 30 s: paths of some 200 bytes.
const PAGE: usize = 256;

/// More than a host that makes them up gets us to remember. What is left is the next sweep's.
const MOST_PAGES: usize = 64;

fn parse(row: &str) -> Option<Leftover> {
    let (state, path) = row.split_once(' ')?;
    let state = match state {
        "live" => State::Live,
        "lingers" => State::Lingers,
        "dead" => State::Dead,
        "gone" => State::Removed,
        "stuck" => State::Stuck,
        "elsewhere" => State::Elsewhere,
        _ => return None,
    };
    Some(Leftover { path: one_line(path), state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_the_grammar_are_taken() {
        let live = Leftover { path: "/a b".into(), state: State::Live };
        assert_eq!(parse("live /a b"), Some(live));
        assert_eq!(parse("alive /a"), None);
        assert_eq!(parse("live"), None);
        assert!(!parse("dead /a\u{1b}[2J").unwrap().path.contains('\u{1b}'));
    }
}
