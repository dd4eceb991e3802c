//! `CanonicalizeHostname`: a short name becomes the first of its long ones that the resolver knows.

use std::{
    collections::BTreeMap,
    net::{IpAddr, ToSocketAddrs as _},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{Error, evaluate::Setting, keyword};

/// What one look-up may take; the resolver's own patience is up to half a minute for each name server.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// How many dots a name may have that is still short (`CanonicalizeMaxDots`).
const MOST_DOTS: u32 = 1;

/// What holds from the second pass on where the first has said nothing else.
pub(super) const DEFAULTS: [(&str, &str); 3] =
    [("canonicalizehostname", "no"), ("canonicalizemaxdots", "1"), ("canonicalizefallbacklocal", "yes")];

/// `CanonicalizeHostname`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Canonicalize {
    No,
    /// Names that we look up ourselves.
    Yes,
    /// Also names that a proxy or jump host will look up.
    Always,
}

impl Canonicalize {
    pub(super) fn of(first: &BTreeMap<&'static str, Setting>) -> Self {
        match first.get("canonicalizehostname").map(Setting::value) {
            Some(value) if value.eq_ignore_ascii_case("always") => Self::Always,
            Some(value) if keyword::flag(value) == Some(true) => Self::Yes,
            _ => Self::No,
        }
    }
}

/// Returns the canonical name of `host`, or `host` itself where it needs or has none.
pub(super) fn name(
    host: String,
    wanted: Canonicalize,
    first: &BTreeMap<&'static str, Setting>,
    find: fn(&str) -> bool,
) -> Result<String, Error> {
    let direct = first.get("proxy").is_none_or(|proxy| proxy.value().eq_ignore_ascii_case("none"));
    if wanted == Canonicalize::No || (wanted == Canonicalize::Yes && !direct) {
        return Ok(host);
    }
    let looks_like_an_address =
        host.contains([':', '%']) || host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if host.parse::<IpAddr>().is_ok() || looks_like_an_address {
        return Ok(host);
    }
    if let Some(bare) = host.strip_suffix('.') {
        return if find(&host) { Ok(bare.to_owned()) } else { fall_back(host, first) };
    }
    let most = first.get("canonicalizemaxdots").and_then(|setting| keyword::count(setting.value()));
    let dots = host.bytes().filter(|byte| *byte == b'.').count();
    if u32::try_from(dots).is_ok_and(|dots| dots > most.unwrap_or(MOST_DOTS)) {
        return Ok(host);
    }
    let domains = first.get("canonicaldomains").map_or(&[][..], |setting| &setting.args);
    for domain in domains.iter().filter(|domain| !domain.eq_ignore_ascii_case("none")) {
        // With a dot at its end, so that the resolver appends nothing of its own.
        let full = format!("{host}.{}.", domain.trim_matches('.')).to_ascii_lowercase();
        if find(&full) {
            return Ok(full.trim_end_matches('.').to_owned());
        }
    }
    fall_back(host, first)
}

/// Leaves the name to the usual search (`CanonicalizeFallbackLocal`), or gives up.
fn fall_back(host: String, first: &BTreeMap<&'static str, Setting>) -> Result<String, Error> {
    match first.get("canonicalizefallbacklocal") {
        Some(setting) if keyword::flag(setting.value()) == Some(false) => {
            Err(Error::bad(&setting.place, format!("`{host}` is found in none of the `CanonicalDomains`")))
        }
        _ => Ok(host),
    }
}

/// Returns whether the resolver finds `name` in time.
pub(crate) fn find_host(name: &str) -> bool {
    let (found, answer) = mpsc::channel();
    let name = name.to_owned();
    // The system's resolver cannot be interrupted: a thread that is late ends by itself, and nobody hears it.
    thread::spawn(move || {
        let addresses = (name.as_str(), 0).to_socket_addrs();
        found.send(addresses.is_ok_and(|mut addresses| addresses.next().is_some())).unwrap_or_default();
    });
    answer.recv_timeout(LOOK_UP_TIMEOUT).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Home;

    #[test]
    fn a_short_name_becomes_the_first_long_one_that_there_is() {
        let config = "CanonicalizeHostname yes\nCanonicalDomains nowhere.example corp.example\n\
                      Host web.corp.example\n Port 7\nMatch canonical\n User found\n";
        let home = Home::new(config);
        let web = home.target("Web");
        assert_eq!((web.hostname.as_str(), web.port, web.user.as_str()), ("web.corp.example", 7, "found"));
        assert_eq!(home.target("rooted.example.").hostname, "rooted.example");
        // Not found, long enough, an address: as it was typed, and read again all the same.
        for host in ["other", "a.b.c", "10.0.0.1", "::1"] {
            let target = home.target(host);
            assert_eq!((target.hostname.as_str(), target.user.as_str()), (host, "found"));
        }
        let deep = "CanonicalizeHostname yes\nCanonicalDomains corp.example\nCanonicalizeMaxDots 0\n";
        assert_eq!(Home::new(deep).target("web").hostname, "web.corp.example");
        let error = Home::new(
            "CanonicalizeHostname yes\nCanonicalDomains corp.example\nCanonicalizeFallbackLocal no\n",
        );
        assert!(error.error("other").starts_with("/.ssh/config:3: `other` is found in none"));
        assert_eq!(Home::new("CanonicalDomains corp.example\n").target("web").hostname, "web");
    }

    #[test]
    fn a_name_that_somebody_else_looks_up_is_left_alone_unless_always() {
        let config = |wanted| {
            format!(
                "CanonicalizeHostname {wanted}\nCanonicalDomains corp.example\nHost web\n ProxyCommand nc %h %p\n"
            )
        };
        assert_eq!(Home::new(&config("yes")).target("web").hostname, "web");
        assert_eq!(Home::new(&config("always")).target("web").hostname, "web.corp.example");
    }

    #[test]
    fn the_resolver_is_asked() {
        assert!(super::find_host("localhost"));
        assert!(!super::find_host("a name that is none"));
    }
}
