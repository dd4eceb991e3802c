//! `Match`: whether a block applies, criterion by criterion, as OpenSSH 10 knows them.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::net::if_::InterfaceFlags;

use super::{
    Error, Session,
    evaluate::{Evaluator, Setting},
    expand,
    line::Line,
    pattern::{self, ListMatch},
};

/// The OpenSSH whose configuration we read: what `Match version` compares.
const VERSION: &str = "OpenSSH_10.5p1";

/// What a `Match exec` may take: such commands look whether a network is there, and those that never end are a mistake.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks whether the command of a `Match exec` has ended; most take a few milliseconds.
const EXEC_LOOK: Duration = Duration::from_millis(2);

/// What one criterion says.
enum Finding {
    Is(bool),
    /// We do not know it, nor whether it takes an argument.
    Unknown,
}

impl Evaluator<'_> {
    /// Says whether the block of a `Match` line applies. Nothing is run in a file that does not (`never`).
    pub(super) fn match_applies(&mut self, line: &Line, never: bool) -> Result<bool, Error> {
        let bad = |why: String| Error::bad(&line.place, why);
        let mut result = true;
        let mut criteria = 0;
        let mut args = line.args.iter();
        while let Some(arg) = args.next() {
            let (negated, criterion) = match arg.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, arg.as_str()),
            };
            let (name, inline) = match criterion.split_once('=') {
                Some((name, value)) => (name.to_ascii_lowercase(), Some(value)),
                None => (criterion.to_ascii_lowercase(), None),
            };
            if name == "all" {
                if criteria > 1 || args.next().is_some() {
                    return Err(bad("`all` stands alone or behind `final`".to_owned()));
                }
                return Ok(result && !negated);
            }
            criteria += 1;
            if name == "final" || name == "canonical" {
                self.want_final |= name == "final" && !negated;
                result &= self.final_host.is_some() != negated;
                continue;
            }
            let value = inline.or_else(|| args.as_slice().first().map(String::as_str));
            let is_known = KNOWN.contains(&name.as_str());
            let Some(value) =
                value.filter(|value| !value.is_empty() || matches!(name.as_str(), "tagged" | "command"))
            else {
                return Err(bad(format!("`{name}` has no argument")));
            };
            if inline.is_none() && is_known {
                args.next();
            }
            let finding = if name == "exec" && (!result || never) {
                // Whatever it would say, the block does not apply.
                Finding::Is(negated)
            } else {
                self.criterion(&name, value).map_err(bad)?
            };
            match finding {
                Finding::Is(matched) => result &= matched != negated,
                Finding::Unknown => {
                    // Nothing behind it can be read either.
                    if result && !never {
                        let name = crate::printable::one_line(&name);
                        self.warn(&line.place, format!("`Match {name}` is unknown: the block is left out"));
                    }
                    return Ok(false);
                }
            }
        }
        if criteria == 0 { Err(bad("`Match` has no criterion".to_owned())) } else { Ok(result) }
    }

    fn criterion(&self, name: &str, value: &str) -> Result<Finding, String> {
        let yes = |found: ListMatch| Finding::Is(found == ListMatch::Yes);
        // Nothing matches nothing, and only that.
        let or_empty = |text: &str| {
            if text.is_empty() { Finding::Is(value.is_empty()) } else { yes(pattern::list(text, value)) }
        };
        let host = || self.current_host().map_err(|error| error.to_string());
        Ok(match name {
            "host" => yes(pattern::host_list(&host()?, value)),
            "originalhost" => yes(pattern::host_list(&self.request.host, value)),
            "user" => yes(pattern::list(self.current_user(), value)),
            "localuser" => yes(pattern::list(&self.surroundings.local_user, value)),
            "tagged" => or_empty(self.first.get("tag").map_or("", Setting::value)),
            "version" => yes(pattern::list(VERSION, value)),
            "command" => or_empty(match &self.request.session {
                Session::Command(command) => command,
                Session::Shell | Session::None => "",
            }),
            "sessiontype" => yes(pattern::list(self.session_type(), value)),
            "localnetwork" => {
                let networks = Networks::parse(value)?;
                Finding::Is(local_addresses()?.into_iter().any(|address| networks.hold(address)))
            }
            "exec" => {
                let host = host()?;
                let alias = self.first.get("hostkeyalias").map_or(host.as_str(), Setting::value);
                let command = expand::tokens(value, &self.tokens(&host, alias))?;
                Finding::Is(self.run(&command)?)
            }
            _ => Finding::Unknown,
        })
    }

    fn session_type(&self) -> &'static str {
        let configured = self.first.get("sessiontype").map_or("default", Setting::value);
        match (&self.request.session, configured.to_ascii_lowercase().as_str()) {
            (Session::None, _) | (_, "none") => "none",
            (_, "subsystem") => "subsystem",
            (Session::Command(command), _) if !command.is_empty() => "exec",
            (Session::Command(_) | Session::Shell, _) => "shell",
        }
    }

    /// Runs a command by the user's shell and says whether it succeeded. What it says goes to our standard error.
    fn run(&self, command: &str) -> Result<bool, String> {
        let shell = self.surroundings.shell();
        let failed = |error: std::io::Error| format!("`{}` cannot be run: {error}", shell.display());
        let mut child = Command::new(&shell)
            .arg("-c")
            .arg(command)
            .envs(&self.surroundings.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let until = Instant::now() + EXEC_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                // Ended by a signal, it has said nothing, and to go on would be to guess.
                return status
                    .code()
                    .map(|code| code == 0)
                    .ok_or_else(|| format!("`{command}` was ended: {status}"));
            }
            if Instant::now() >= until {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                return Err(format!("`{command}` takes more than {} s", EXEC_TIMEOUT.as_secs()));
            }
            std::thread::sleep(EXEC_LOOK);
        }
    }
}

/// Criteria with an argument.
const KNOWN: [&str; 10] = [
    "host",
    "originalhost",
    "user",
    "localuser",
    "tagged",
    "version",
    "command",
    "sessiontype",
    "localnetwork",
    "exec",
];

/// Returns the addresses of this machine's interfaces that are up.
fn local_addresses() -> Result<Vec<IpAddr>, String> {
    let all =
        nix::ifaddrs::getifaddrs().map_err(|error| format!("the interfaces cannot be listed: {error}"))?;
    let up = all.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP));
    let addresses = up.filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

/// A list such as `10.0.0.0/8,!10.1.0.0/16`.
struct Networks(Vec<(bool, IpAddr, u8)>);

impl Networks {
    fn parse(list: &str) -> Result<Self, String> {
        let one = |text: &str| {
            let (negated, text) = match text.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, text),
            };
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = match bits {
                Some(bits) => bits.parse::<u8>().ok().filter(|bits| *bits <= most)?,
                None => most,
            };
            // A network with bits of a host in it is a mistake.
            (masked(address, bits) == number(address)).then_some((negated, address, bits))
        };
        let networks =
            list.split(',').map(|text| one(text).ok_or_else(|| format!("`{text}` is not a network")));
        networks.collect::<Result<_, _>>().map(Self)
    }

    fn hold(&self, address: IpAddr) -> bool {
        let mut found = false;
        for (negated, network, bits) in &self.0 {
            if network.is_ipv4() == address.is_ipv4() && masked(address, *bits) == number(*network) {
                if *negated {
                    return false;
                }
                found = true;
            }
        }
        found
    }
}

/// The address as a number whose first bit is the highest of 128.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn masked(address: IpAddr, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    number(address) & mask
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Home, request};
    use super::*;
    use crate::ssh::config::{Request, resolve};

    fn applies(criteria: &str, request: &Request) -> bool {
        applies_after("", criteria, request)
    }

    fn applies_after(before: &str, criteria: &str, request: &Request) -> bool {
        let home = Home::new(&format!("{before}\nMatch {criteria}\n Port 9\n"));
        resolve(request, &home.surroundings()).unwrap().0.port == 9
    }

    #[test]
    fn what_will_run_there_is_a_criterion() {
        let shell = request("h");
        let command = Request { session: Session::Command("rsync --server".into()), ..request("h") };
        let none = Request { session: Session::None, ..request("h") };
        for (criteria, expected) in [
            ("sessiontype shell", [true, false, false]),
            ("sessiontype=exec,none", [false, true, true]),
            ("!sessiontype shell", [false, true, true]),
            ("command \"\"", [true, false, true]),
            ("command \"rsync *\"", [false, true, false]),
            ("command *", [false, true, false]),
            ("command=ssh", [false, false, false]),
        ] {
            let found = [&shell, &command, &none].map(|request| applies(criteria, request));
            assert_eq!(found, expected, "{criteria}");
        }
        assert!(applies_after("SessionType none", "sessiontype none", &shell));
        assert!(applies_after("SessionType subsystem", "sessiontype subsystem", &command));
    }

    #[test]
    fn tags_versions_and_networks_are_criteria() {
        let h = request("h");
        assert!(applies_after("Tag work", "tagged w*", &h));
        assert!(applies("tagged \"\"", &h) && !applies("tagged *", &h));
        assert!(!applies_after("Tag work", "tagged \"\"", &h));
        assert!(applies("version OpenSSH_10.*", &h) && !applies("version OpenSSH_9.*", &h));
        assert!(
            applies("localnetwork 127.0.0.0/8", &h) && applies("localnetwork 192.0.2.0/24,127.0.0.1", &h)
        );
        assert!(!applies("localnetwork 2001:db8:dead::/48", &h));
        let networks = Networks::parse("10.0.0.0/8,!10.1.0.0/16,2001:db8::/32,0.0.0.0/32").unwrap();
        for (address, held) in [
            ("10.2.3.4", true),
            ("10.1.3.4", false),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
            ("0.0.0.0", true),
        ] {
            assert_eq!(networks.hold(address.parse().unwrap()), held, "{address}");
        }
        assert!(Networks::parse("0.0.0.0/0").unwrap().hold("192.0.2.1".parse().unwrap()));
        for bad in [
            "localnetwork 127.0.0.1/8",
            "localnetwork 1.2.3.4/33",
            "localnetwork lan",
            "localnetwork \"\"",
            "tagged",
            "sessiontype \"\"",
            "exec",
        ] {
            assert!(Home::new(&format!("Match {bad}\n")).error("h").starts_with("/.ssh/config:1: "), "{bad}");
        }
    }

    #[test]
    fn a_command_decides_when_nothing_before_it_did() {
        let h = request("h");
        assert!(applies("exec true", &h) && !applies("exec false", &h));
        assert!(!applies("!exec true", &h) && applies("!exec false host h", &h));
        assert!(applies("exec \"test %h-%n-%p-%r-%% = h-h-22-me-%% && test $HOME\"", &h));
        let home = Home::new("");
        let ran = home.path().join("ran");
        for not_run in [
            format!("Match host other exec \"touch {0}\"\n", ran.display()),
            format!(
                "Match !exec \"touch {0}\" host other\n Port 1\nHost other\n Include more\n",
                ran.display()
            )
            .replace("!exec", "host other !exec"),
        ] {
            home.file(".ssh/more", &format!("Match exec \"touch {}\"\n", ran.display()));
            home.file(".ssh/config", &not_run);
            home.target("h");
            assert!(!ran.exists(), "{not_run}");
        }
        // A command that was killed has decided nothing.
        assert!(Home::new("Match exec \"kill -9 $$\"\n").error("h").starts_with("/.ssh/config:1: "));
        assert!(Home::new("Match exec %z\n").error("h").starts_with("/.ssh/config:1: "));
    }

    #[test]
    fn a_criterion_that_nobody_knows_leaves_its_block_out() {
        for criterion in ["wether sunny", "host h wether=sunny", "!wether sunny host other"] {
            let home = Home::new(&format!("Match {criterion}\n Port 1\nHost *\n HostKeyAlias a\n"));
            let (target, warnings) = home.resolve("h").unwrap();
            assert_eq!((target.port, target.host_key_alias.as_deref()), (22, Some("a")), "{criterion}");
            assert!(warnings.len() == 1 && warnings[0].text.contains("wether"), "{warnings:?}");
        }
    }
}
