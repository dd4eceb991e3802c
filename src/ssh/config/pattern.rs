//! OpenSSH's host patterns: `*` and `?`, comma lists, `!` negation. Used by ssh_config and known_hosts alike.

/// What a pattern list says of one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ListMatch {
    /// A pattern matches and no negated one does.
    Yes,
    /// No pattern matches.
    No,
    /// A negated pattern matches, so that the whole list does not, wherever in the list it stands.
    Negated,
}

/// Returns whether `pattern` (`*` any run, `?` any one byte) matches the whole of `name`, case-sensitively.
pub(crate) fn matches(name: &str, pattern: &str) -> bool {
    let (mut name, mut pattern) = (name.as_bytes(), pattern.as_bytes());
    // Where to go on when a literal fails: behind the last star, one byte further in the name.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), name.split_first()) {
            (Some((b'*', rest)), _) => {
                retry = Some((name, rest));
                pattern = rest;
            }
            (Some((p, after)), Some((n, left))) if *p == b'?' || p == n => {
                (pattern, name) = (after, left);
            }
            (None, None) => return true,
            _ => {
                let Some((from, behind)) = retry else { return false };
                let Some((_, left)) = from.split_first() else { return false };
                retry = Some((left, behind));
                (name, pattern) = (left, behind);
            }
        }
    }
}

/// Returns what the comma-separated `list` says of `name`, case-sensitively.
pub(crate) fn list(name: &str, list: &str) -> ListMatch {
    let mut found = ListMatch::No;
    for pattern in list.split(',') {
        let (pattern, negated) = match pattern.strip_prefix('!') {
            Some(rest) => (rest, true),
            None => (pattern, false),
        };
        // `a,` is one pattern, not two: the empty rest matches nothing that has a name.
        if matches(name, pattern) {
            if negated {
                return ListMatch::Negated;
            }
            found = ListMatch::Yes;
        }
    }
    found
}

/// Returns what `list` says of the host `name`: upper and lower case are the same.
pub(crate) fn host_list(name: &str, patterns: &str) -> ListMatch {
    list(&name.to_ascii_lowercase(), &patterns.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards_match_whole_names() {
        for (name, pattern, expected) in [
            ("", "", true),
            ("a", "", false),
            ("", "*", true),
            ("", "?", false),
            ("abc", "a*c", true),
            ("abc", "a?c", true),
            ("abbc", "a?c", false),
            ("abcabd", "*ab?", true),
            ("abc", "ab", false),
            ("ab", "abc", false),
            ("aXbXc", "a*X*c", true),
            ("[host]:2222", "[host]:2222", true),
            ("[host]:2222", "[*]:2222", true),
            ("ABC", "abc", false),
            ("a", "**", true),
        ] {
            assert_eq!(matches(name, pattern), expected, "{name:?} {pattern:?}");
        }
    }

    #[test]
    fn a_negated_pattern_wins_wherever_it_stands() {
        assert_eq!(list("web1", "web*,!web1"), ListMatch::Negated);
        assert_eq!(list("web1", "!web1,web*"), ListMatch::Negated);
        assert_eq!(list("web2", "!web1,web*"), ListMatch::Yes);
        assert_eq!(list("db", "!web1"), ListMatch::No);
        assert_eq!(host_list("WEB2", "Web*"), ListMatch::Yes);
    }

    /// The definition, slow and obvious.
    fn by_definition(name: &[u8], pattern: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((b'*', rest)), _) => (0..=name.len()).any(|n| by_definition(&name[n..], rest)),
            (Some((p, rest)), Some((n, left))) => (*p == b'?' || p == n) && by_definition(left, rest),
            (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn the_matcher_is_its_definition(name in "[ab.]{0,8}", pattern in "[ab.*?]{0,8}") {
            prop_assert_eq!(matches(&name, &pattern), by_definition(name.as_bytes(), pattern.as_bytes()));
        }

        #[test]
        fn any_text_is_matched_without_a_panic(name in "\\PC*", patterns in "\\PC*") {
            list(&name, &patterns);
            host_list(&name, &patterns);
        }

        #[test]
        fn stars_do_not_take_exponential_time(n in 0usize..2000) {
            let pattern = "*a".repeat(50) + "b";
            prop_assert!(!matches(&"a".repeat(n), &pattern));
        }
    }
}
