//! `%h`, `${VAR}` and `~` in the values of ssh_config.

use std::collections::BTreeMap;

use aws_lc_rs::digest;

use crate::ssh::target::Part;

/// Everything that a `%` token can stand for.
#[derive(Clone, Debug)]
pub(super) struct Tokens<'a> {
    /// `%h`: the name that is dialled.
    pub(super) host: &'a str,
    /// `%n`: the name as typed.
    pub(super) original: &'a str,
    /// `%p`
    pub(super) port: u16,
    /// `%r`: the user there; `None` while it is being expanded itself, which takes `%C` away too.
    pub(super) user: Option<&'a str>,
    /// `%k`
    pub(super) host_key_alias: &'a str,
    /// `%d`
    pub(super) home: &'a str,
    /// `%u`
    pub(super) local_user: &'a str,
    /// `%l`, and up to its first dot `%L`
    pub(super) local_hostname: &'a str,
    /// `%j`: the jump host, or nothing.
    pub(super) jump: &'a str,
}

impl Tokens<'_> {
    fn token(&self, token: char) -> Option<String> {
        Some(match token {
            'h' => self.host.to_owned(),
            'n' => self.original.to_owned(),
            'p' => self.port.to_string(),
            'r' => self.user?.to_owned(),
            'k' => self.host_key_alias.to_owned(),
            'd' => self.home.to_owned(),
            'u' => self.local_user.to_owned(),
            'l' => self.local_hostname.to_owned(),
            'L' => self.local_hostname.split('.').next().unwrap_or_default().to_owned(),
            'i' => rustix::process::getuid().as_raw().to_string(),
            'j' => self.jump.to_owned(),
            'C' => self.connection_hash()?,
            _ => return None,
        })
    }

    /// `%C`: SHA-1 over `%l%h%p%r%j`, in hexadecimal.
    fn connection_hash(&self) -> Option<String> {
        let text = format!("{}{}{}{}{}", self.local_hostname, self.host, self.port, self.user?, self.jump);
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Some(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Expands `%h` and `%%`, the only tokens that `HostName` may hold.
pub(super) fn hostname(text: &str, typed: &str) -> Result<String, String> {
    expand(text, |token| (token == 'h').then(|| typed.to_owned()), None)
}

/// Expands the tokens that `ProxyCommand` and `ProxyJump` may hold; a `$` is the shell's.
pub(super) fn proxy(text: &str, tokens: &Tokens<'_>) -> Result<String, String> {
    expand(text, |token| if "hnpr".contains(token) { tokens.token(token) } else { None }, None)
}

/// Expands tokens; a `$` is the shell's.
pub(super) fn tokens(text: &str, tokens: &Tokens<'_>) -> Result<String, String> {
    expand(text, |token| tokens.token(token), None)
}

/// Expands tokens and `${VAR}`.
pub(super) fn all(text: &str, tokens: &Tokens<'_>, env: &BTreeMap<String, String>) -> Result<String, String> {
    expand(text, |token| tokens.token(token), Some(env))
}

/// Expands tokens and `${VAR}` in an argument of `KnownHostsCommand`, and leaves what only a connection tells.
pub(super) fn known_hosts_argument(
    text: &str,
    tokens: &Tokens<'_>,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Part>, String> {
    let (mut parts, mut text, mut at) = (Vec::new(), text, 0);
    while let Some(from) = text.get(at..).filter(|from| !from.is_empty()) {
        let late = match from.strip_prefix('%').and_then(|token| token.chars().next()) {
            Some('H') => Part::Name,
            Some('I') => Part::Invocation,
            Some('t') => Part::KeyType,
            Some('f') => Part::Fingerprint,
            Some('K') => Part::Key,
            token => {
                // Another token is two characters, so that what follows `%%` is none.
                let step = from.chars().next().map_or(1, char::len_utf8);
                at += step + token.map_or(0, char::len_utf8);
                continue;
            }
        };
        let (before, behind) = text.split_at(at);
        parts.push(Part::Text(all(before, tokens, env)?));
        parts.push(late);
        (text, at) = (behind.get(2..).unwrap_or_default(), 0);
    }
    parts.push(Part::Text(all(text, tokens, env)?));
    parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
    Ok(parts)
}

/// Expands in one pass, so that what a variable or a token holds is never expanded itself.
fn expand(
    text: &str,
    token: impl Fn(char) -> Option<String>,
    env: Option<&BTreeMap<String, String>>,
) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['%', '$']) {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        if let (Some(env), Some(variable)) = (env, from.strip_prefix("${")) {
            let Some((name, after)) = variable.split_once('}') else {
                return Err(format!("`{from}` has no closing brace"));
            };
            let Some(value) = env.get(name) else {
                return Err(format!("the environment has no `{name}`"));
            };
            expanded.push_str(value);
            rest = after;
        } else if let Some(after) = from.strip_prefix('%') {
            let mut chars = after.chars();
            match chars.next() {
                Some('%') => expanded.push('%'),
                Some(c) => {
                    expanded.push_str(&token(c).ok_or_else(|| format!("`%{c}` means nothing here"))?);
                }
                None => return Err("a `%` stands at the end".to_owned()),
            }
            rest = chars.as_str();
        } else {
            expanded.push('$');
            rest = from.strip_prefix('$').unwrap_or_default();
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Expands a leading `~` or `~user`.
pub(super) fn tilde(text: &str, home: &str) -> Result<String, String> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(text.to_owned());
    };
    let (user, path) = rest.split_once('/').unwrap_or((rest, ""));
    let directory = if user.is_empty() {
        home.to_owned()
    } else {
        match nix::unistd::User::from_name(user) {
            Ok(Some(found)) => match found.dir.into_os_string().into_string() {
                Ok(directory) => directory,
                Err(_) => return Err(format!("the home directory of `{user}` is not text in UTF-8")),
            },
            _ => return Err(format!("there is no user `{user}`")),
        }
    };
    let slash = if directory.ends_with('/') { "" } else { "/" };
    Ok(format!("{directory}{slash}{}", path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKENS: Tokens<'static> = Tokens {
        host: "h.example",
        original: "alias",
        port: 2222,
        user: Some("them"),
        host_key_alias: "kalias",
        home: "/home/me",
        local_user: "me",
        local_hostname: "laptop.corp",
        jump: "",
    };

    #[test]
    fn tokens_and_variables_are_expanded_once() {
        let env = BTreeMap::from([("KEYS".to_owned(), "%h${KEYS}".to_owned())]);
        assert_eq!(
            all("%d/%h_%n_%p_%r_%k_%u_%l_%L_%%h_%j", &TOKENS, &env).unwrap(),
            "/home/me/h.example_alias_2222_them_kalias_me_laptop.corp_laptop_%h_"
        );
        assert_eq!(all("${KEYS}/$KEYS/$", &TOKENS, &env).unwrap(), "%h${KEYS}/$KEYS/$");
        // printf 'laptop.corph.example2222them' | sha1sum
        assert_eq!(all("%C", &TOKENS, &env).unwrap(), "33f5146f780fdbef6a45a795de7a4b82662500c6");
        for bad in ["%", "%x", "a%", "${NONE}", "${KEYS", "${}"] {
            assert!(all(bad, &TOKENS, &env).is_err(), "{bad}");
        }
        assert!(all("%r", &Tokens { user: None, ..TOKENS }, &env).is_err());
        assert!(all("%C", &Tokens { user: None, ..TOKENS }, &env).is_err());
        assert_eq!(hostname("%h.corp%%$", "web").unwrap(), "web.corp%$");
        assert!(hostname("%n", "web").is_err());
        let jumping = Tokens { jump: "j", ..TOKENS };
        assert_eq!(all("%j", &jumping, &env).unwrap(), "j");
        // printf 'laptop.corph.example2222themj' | sha1sum
        assert_eq!(all("%C", &jumping, &env).unwrap(), "7881854817680460f84959a90ce9a5db4306e251");
        assert_eq!(
            proxy("nc %h %p # %r@%n %% $X ${X}", &TOKENS).unwrap(),
            "nc h.example 2222 # them@alias % $X ${X}"
        );
        assert!(proxy("%d", &TOKENS).is_err());
    }

    #[test]
    fn what_only_a_connection_tells_is_left_for_later() {
        let env = BTreeMap::from([("X".to_owned(), "%H".to_owned())]);
        let text = |text: &str| Part::Text(text.to_owned());
        for (argument, expected) in [
            ("%H", vec![Part::Name]),
            ("", vec![]),
            ("%%H", vec![text("%H")]),
            ("%%%H%%%%I", vec![text("%"), Part::Name, text("%%I")]),
            ("${X}/%h%I", vec![text("%H/h.example"), Part::Invocation]),
            (
                "-t%t,%f=%Kü",
                vec![
                    text("-t"),
                    Part::KeyType,
                    text(","),
                    Part::Fingerprint,
                    text("="),
                    Part::Key,
                    text("ü"),
                ],
            ),
        ] {
            assert_eq!(known_hosts_argument(argument, &TOKENS, &env).unwrap(), expected, "{argument}");
        }
        for bad in ["%", "%H%", "%z%H", "${NONE}%H", "ü%ü"] {
            assert!(known_hosts_argument(bad, &TOKENS, &env).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tilde_is_a_home_directory() {
        assert_eq!(tilde("~", "/home/me").unwrap(), "/home/me/");
        assert_eq!(tilde("~//a/b", "/home/me").unwrap(), "/home/me/a/b");
        assert_eq!(tilde("~/a", "/").unwrap(), "/a");
        assert_eq!(tilde("a~", "/home/me").unwrap(), "a~");
        let root = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(0)).unwrap().unwrap();
        let below = format!("{}/x", root.dir.display());
        assert_eq!(tilde(&format!("~{}/x", root.name), "/home/me").unwrap(), below);
        assert!(tilde("~nobody-of-this-name/x", "/home/me").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(text in "[%${}a-z~/]*") {
            drop(all(&text, &TOKENS, &BTreeMap::new()));
            drop(known_hosts_argument(&text, &TOKENS, &BTreeMap::new()));
            drop(tilde(&text.replace('~', ""), "/h"));
        }

        #[test]
        fn escaped_text_comes_back(text in "[^$]*") {
            prop_assert_eq!(all(&text.replace('%', "%%"), &TOKENS, &BTreeMap::new()).unwrap(), text);
        }
    }
}
