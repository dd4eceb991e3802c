//! What a person types after `connect`: `host`, `user@host:port`, `ssh://…`; and which names are names at all.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Error;

/// A destination as typed, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Destination {
    pub(crate) host: String,
    pub(crate) user: Option<String>,
    pub(crate) port: Option<u16>,
}

impl Destination {
    /// Reads `[user@]host[:port]`, `[user@][address]:port`, a bare IPv6 address, or `ssh://[user@]host[:port]`.
    pub(crate) fn parse(typed: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::Destination { typed: typed.to_owned(), why: why.to_owned() };
        let (user, host) = match typed.get(..6) {
            Some(scheme) if scheme.eq_ignore_ascii_case("ssh://") => {
                let rest = typed.get(6..).unwrap_or_default();
                let rest = rest.strip_suffix('/').unwrap_or(rest);
                if rest.contains('/') {
                    return Err(bad("an ssh URL has no path"));
                }
                match rest.split_once('@') {
                    // RFC 3986 and the sftp draft allow `;fingerprint=…` there; OpenSSH drops it, we must not.
                    Some((user, _)) if user.contains(';') => {
                        return Err(bad("connection parameters are not supported"));
                    }
                    Some((user, _)) if user.contains(':') => {
                        return Err(bad("a password does not belong into a URL"));
                    }
                    Some((_, host)) if host.contains('@') => return Err(bad("there are two `@` in the URL")),
                    Some((user, host)) => {
                        let user =
                            percent_decode(user).ok_or_else(|| bad("the user name is not URL-encoded"))?;
                        (Some(user), host)
                    }
                    None => (None, rest),
                }
            }
            // The last `@`: user names of some gateways hold one themselves (`me@corp@host`).
            _ => match typed.rsplit_once('@') {
                Some((user, host)) => (Some(user.to_owned()), host),
                None => (None, typed),
            },
        };
        let (host, port) = host_and_port(host).map_err(|why| bad(&why))?;
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        check_host(&host)?;
        if let Some(user) = &user {
            check_user(user)?;
        }
        Ok(Self { host, user, port })
    }
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let port = |text: &str| port(text).map(Some).ok_or_else(|| format!("`{text}` is not a port"));
    if let Some(bracketed) = text.strip_prefix('[') {
        let Some((host, rest)) = bracketed.split_once(']') else {
            return Err("the bracket is not closed".to_owned());
        };
        return match rest.strip_prefix(':') {
            Some(number) => Ok((host.to_owned(), port(number)?)),
            None if rest.is_empty() => Ok((host.to_owned(), None)),
            None => Err("there is something behind the bracket".to_owned()),
        };
    }
    match text.split_once(':') {
        None => Ok((text.to_owned(), None)),
        Some((host, number)) if !number.contains(':') => Ok((host.to_owned(), port(number)?)),
        Some(_) if address(text).is_some() => Ok((text.to_owned(), None)),
        Some(_) => Err("several colons, but not an IPv6 address".to_owned()),
    }
}

/// Reads a port number, 1 to 65535.
pub(super) fn port(text: &str) -> Option<u16> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Returns `host` in the one spelling that addresses have, `None` when it is a name.
pub(super) fn address(host: &str) -> Option<String> {
    if let Ok(address) = host.parse::<std::net::IpAddr>() {
        return Some(address.to_string());
    }
    // The zone is the name of an interface, where upper and lower case differ.
    let (address, zone) = host.split_once('%')?;
    let address: Ipv6Addr = address.parse().ok()?;
    (!zone.is_empty()).then(|| format!("{address}%{zone}"))
}

/// Reads an IPv4 address as the C library does, and so every dialler: one to four numbers, the last of which fills what
/// is left (`127.1`), with leading zeros in octal and with `0x` in hexadecimal.
pub(super) fn short_ipv4(host: &str) -> Option<Ipv4Addr> {
    let numbers = host.split('.').map(|part| match part.get(..2) {
        Some("0x" | "0X") => u32::from_str_radix(part.get(2..)?, 16).ok(),
        _ if !part.bytes().all(|byte| byte.is_ascii_digit()) => None,
        _ if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        _ => part.parse().ok(),
    });
    let numbers: Vec<u32> = numbers.collect::<Option<_>>()?;
    let (last, first) = numbers.split_last().filter(|(_, first)| first.len() < 4)?;
    let left = 32 - 8 * u32::try_from(first.len()).ok()?;
    if first.iter().any(|number| *number > 255) || (left < 32 && *last >> left != 0) {
        return None;
    }
    let first = first.iter().zip([24, 16, 8]).fold(0, |address, (number, bits)| address | number << bits);
    Some(Ipv4Addr::from_bits(first | last))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Refuses what is no host name but could become an option or shell code wherever a name is passed on.
pub(super) fn check_host(host: &str) -> Result<(), Error> {
    let bad = |why| Error::Host { host: host.to_owned(), why };
    if host.is_empty() {
        return Err(bad("it is empty"));
    }
    if host.starts_with('-') {
        return Err(bad("it starts with `-`"));
    }
    if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad("it holds a space or a control character"));
    }
    if host.contains(['\'', '`', '"', '$', '\\', ';', '&', '<', '>', '|', '(', ')', '{', '}', ',']) {
        return Err(bad("it holds a character that means something to a shell"));
    }
    Ok(())
}

/// Refuses what is no user name but could become an option or shell code.
pub(super) fn check_user(user: &str) -> Result<(), Error> {
    let bad = |why| Error::User { user: user.to_owned(), why };
    if user.is_empty() {
        return Err(bad("it is empty"));
    }
    if user.starts_with('-') {
        return Err(bad("it starts with `-`"));
    }
    if user.chars().any(char::is_control) {
        return Err(bad("it holds a control character"));
    }
    // A backslash stays: `DOMAIN\user` is a name. At the end it would quote what follows.
    if user.ends_with('\\')
        || user.contains(['\'', '`', '"', '$', ';', '&', '<', '>', '|', '(', ')', '{', '}'])
    {
        return Err(bad("it holds a character that means something to a shell"));
    }
    let mut chars = user.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() && chars.peek() == Some(&'-') {
            return Err(bad("a word of it starts with `-`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn destinations_are_taken_apart() {
        for (typed, host, user, port) in [
            ("host", "host", None, None),
            ("me@host", "host", Some("me"), None),
            ("me@corp@host", "host", Some("me@corp"), None),
            ("CORP\\me@Host:2222", "Host", Some("CORP\\me"), Some(2222)),
            ("::1", "::1", None, None),
            ("me@fe80::1%eth0", "fe80::1%eth0", Some("me"), None),
            ("[::1]", "::1", None, None),
            ("me@[::1]:22", "::1", Some("me"), Some(22)),
            ("[host]:22", "host", None, Some(22)),
            ("ssh://host", "host", None, None),
            ("ssh://host/", "host", None, None),
            ("SSH://me%40corp@host:2222/", "host", Some("me@corp"), Some(2222)),
            ("ssh://[2001:db8::1]:22", "2001:db8::1", None, Some(22)),
            ("ssh://me@[2001:db8::1]", "2001:db8::1", Some("me"), None),
        ] {
            let expected = Destination { host: host.into(), user: user.map(Into::into), port };
            assert_eq!(Destination::parse(typed).unwrap(), expected, "{typed}");
        }
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for typed in [
            "",
            "@host",
            "me@",
            ":22",
            "host:",
            "host:0",
            "host:65536",
            "host:+22",
            "host:ssh",
            "a:b:c",
            "[::1",
            "[::1]22",
            "[]:22",
            "-oProxyCommand=x",
            "-l@host",
            "me@-h",
            "ho st",
            "host\n",
            "h;id",
            "$(id)",
            "`id`@h",
            "a|b",
            "a&b",
            "{a,b}",
            "u\u{1b}@h",
            "u\\@h",
            "u -x@h",
            "ssh://",
            "ssh://h/path",
            "ssh://u:pw@h",
            "ssh://u;x=y@h",
            "ssh://%4@h",
            "ssh://%0a@h",
            "ssh://a@b@c",
            "http://h",
            "ssh://@h",
            "h'",
            "h\"",
            "h\\",
        ] {
            assert!(Destination::parse(typed).is_err(), "{typed:?}");
        }
    }

    #[test]
    fn a_refusal_shows_no_control_characters() {
        let error = Destination::parse("\u{1b}]0;x\u{7}").unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(typed in "\\PC*") {
            if let Ok(destination) = Destination::parse(&typed) {
                prop_assert!(!destination.host.is_empty() && !destination.host.starts_with('-'));
            }
        }

        #[test]
        fn parts_come_back(user in "[a-z][a-z0-9.@]{0,8}", host in "[a-z0-9][a-z0-9.-]{0,12}", port in 1u16..) {
            let parts = Destination { host: host.clone(), user: Some(user.clone()), port: Some(port) };
            prop_assert_eq!(Destination::parse(&format!("{user}@{host}:{port}")).unwrap(), parts.clone());
            let encoded = user.replace('@', "%40");
            prop_assert_eq!(Destination::parse(&format!("ssh://{encoded}@{host}:{port}")).unwrap(), parts);
        }
    }
}
