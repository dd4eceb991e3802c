//! File name patterns of `Include`: `*`, `?`, `[…]`, in any component of an absolute path.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Returns the existing paths that match `pattern`, in the order of their bytes.
///
/// A directory that does not exist or may not be listed holds no match; another failure is reported.
pub(super) fn paths(pattern: &str) -> io::Result<Vec<PathBuf>> {
    let absolute = pattern.starts_with('/');
    let mut found = vec![if absolute { PathBuf::from("/") } else { PathBuf::new() }];
    for component in pattern.split('/').filter(|component| !component.is_empty()) {
        let mut next = Vec::new();
        for directory in &found {
            if component.contains(['*', '?', '[', '\\']) {
                entries(directory, component, &mut next)?;
            } else {
                next.push(directory.join(component));
            }
        }
        found = next;
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found.sort();
    Ok(found)
}

fn entries(directory: &Path, pattern: &str, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let listed = match std::fs::read_dir(here) {
        Ok(listed) => listed,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in listed {
        let name = entry?.file_name();
        // A name that is not UTF-8 cannot have been meant by a pattern that is.
        if name.to_str().is_some_and(|name| matches(name, pattern)) {
            found.push(directory.join(name));
        }
    }
    Ok(())
}

/// Returns whether one file name matches; a leading dot is matched by a dot only.
fn matches(name: &str, pattern: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') && !pattern.starts_with("\\.") {
        return false;
    }
    let name: Vec<char> = name.chars().collect();
    let atoms = atoms(pattern);
    let (mut name, mut atoms) = (name.as_slice(), atoms.as_slice());
    let mut retry: Option<(&[char], &[Atom])> = None;
    loop {
        match (atoms.split_first(), name.split_first()) {
            (Some((Atom::Run, rest)), _) => {
                retry = Some((name, rest));
                atoms = rest;
            }
            (Some((atom, rest)), Some((c, left))) if atom.takes(*c) => (atoms, name) = (rest, left),
            (None, None) => return true,
            _ => {
                let Some((from, behind)) = retry else { return false };
                let Some((_, left)) = from.split_first() else { return false };
                retry = Some((left, behind));
                (name, atoms) = (left, behind);
            }
        }
    }
}

enum Atom {
    Run,
    Any,
    One(char),
    Set { negated: bool, ranges: Vec<(char, char)> },
}

impl Atom {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Run => false,
            Self::Any => true,
            Self::One(one) => *one == c,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
        }
    }
}

fn atoms(pattern: &str) -> Vec<Atom> {
    let mut atoms = Vec::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        atoms.push(match c {
            '*' => Atom::Run,
            '?' => Atom::Any,
            '\\' => Atom::One(rest.next().unwrap_or('\\')),
            '[' => match set(rest.as_str()) {
                Some((set, after)) => {
                    rest = after.chars();
                    set
                }
                // Not closed: then it is a bracket like any other character.
                None => Atom::One('['),
            },
            c => Atom::One(c),
        });
    }
    atoms
}

/// Reads what follows a `[`; `None` when there is no `]` for it.
fn set(text: &str) -> Option<(Atom, &str)> {
    let (text, negated) = match text.strip_prefix(['!', '^']) {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut ranges = Vec::new();
    let mut rest = text.chars();
    loop {
        let from = match rest.next()? {
            // As the first character it is a member.
            ']' if !ranges.is_empty() => return Some((Atom::Set { negated, ranges }, rest.as_str())),
            '\\' => rest.next()?,
            c => c,
        };
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(to)) if to != ']' => {
                ranges.push((from, to));
                rest = ahead;
            }
            _ => ranges.push((from, from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        for (name, pattern, expected) in [
            ("a.conf", "*.conf", true),
            (".conf", "*.conf", false),
            (".conf", ".c*", true),
            ("10-a", "[0-9]?-*", true),
            ("x0-a", "[!0-9]?-*", true),
            ("x", "[^x]", false),
            ("]", "[]]", true),
            ("-", "[a-]", true),
            ("[", "[", true),
            ("a*", "a\\*", true),
            ("ab", "a\\*", false),
        ] {
            assert_eq!(matches(name, pattern), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn every_component_may_hold_a_pattern() {
        let home = tempfile::tempdir().unwrap();
        for path in ["b/1.conf", "a/2.conf", "a/1.conf", "a/.hidden.conf", "a/1.txt", "c.conf"] {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::File::create(path).unwrap();
        }
        let root = home.path().to_str().unwrap();
        let found = |pattern: &str| -> Vec<String> {
            let strip = |path: PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            paths(&format!("{root}/{pattern}")).unwrap().into_iter().map(strip).collect()
        };
        assert_eq!(found("*/*.conf"), ["a/1.conf", "a/2.conf", "b/1.conf"]);
        assert_eq!(found("a/1.conf"), ["a/1.conf"]);
        assert_eq!(found("?/1.*"), ["a/1.conf", "a/1.txt", "b/1.conf"]);
        assert!(found("none/*").is_empty());
        assert!(found("none").is_empty());
        assert!(found("c.conf/*").is_empty());
    }

    proptest! {
        #[test]
        fn any_pattern_is_matched_without_a_panic(name in "\\PC{0,20}", pattern in "[a-c\\[\\]!^*?\\\\-]{0,20}") {
            matches(&name, &pattern);
        }

        #[test]
        fn an_escaped_name_matches_itself(name in "[a-z*?\\[\\]\\\\]{1,12}") {
            let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert!(matches(&name, &escaped));
        }
    }
}
