//! Which profiles a host may ask for beside those that it is given: patterns of their names.

use super::{Environment, Error, pin::Pin, profiles};
use crate::aws::profile::Profile;

/// Resolves the profiles that match any of the patterns and may go there, other than those that are served anyway.
pub(super) fn allowed(
    patterns: &[String],
    served: &[Profile],
    pin: &Pin,
    host: &str,
    environment: &Environment,
) -> Result<Vec<Profile>, Error> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let all = environment.aws_profiles()?;
    let mut resolved: Vec<Profile> = Vec::new();
    for pattern in patterns {
        let (mut matched, mut refused) = (false, None);
        for name in all.names().into_iter().filter(|name| matches(pattern, name.as_str())) {
            if served.iter().chain(&resolved).any(|known| known.name == name) {
                matched = true;
                continue;
            }
            if let Err(error) = pin.permits(&name, host) {
                refused.get_or_insert(error);
                continue;
            }
            // One that cannot be served was not meant by a pattern.
            if let Ok(mut profiles) = profiles(&[name.to_string()], environment) {
                matched |= !profiles.is_empty();
                resolved.append(&mut profiles);
            }
        }
        if !matched {
            if let Some(refused) = refused {
                return Err(refused.into());
            }
            let known = all.names().iter().map(ToString::to_string).collect();
            return Err(Error::NothingAllowed { pattern: crate::printable::one_line(pattern), known });
        }
    }
    Ok(resolved)
}

/// Whether `name` is what `pattern` says: `*` stands for any characters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut pattern, mut name) = (pattern.as_slice(), name.as_slice());
    let mut retry = None;
    loop {
        match (pattern.split_first(), name.split_first()) {
            (Some(('*', rest)), _) => {
                retry = Some((rest, name));
                pattern = rest;
            }
            (Some((wanted, rest)), Some((found, more))) if *wanted == '?' || wanted == found => {
                (pattern, name) = (rest, more);
            }
            (None, None) => return true,
            // The last run takes one character more.
            _ => match retry {
                Some((rest, [_, more @ ..])) => {
                    retry = Some((rest, more));
                    (pattern, name) = (rest, more);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names() {
        for (pattern, name) in
            [("dev-*", "dev-a"), ("*", ""), ("*-ro", "a-b-ro"), ("a?c", "abc"), ("**a*", "bab")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("dev", "dev-a"), ("dev-*", "xdev-a"), ("a?c", "ac"), ("*-ro", "a-rox"), ("", "a")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
