//! `ProxyJump` and `ProxyCommand` → [`Way`]: every jump host is resolved as a host of its own.

use std::path::{Path, PathBuf};

use super::{Destination, Error, Request, Resolver, Session, evaluate::Setting, expand, resolve_behind};
#[cfg(test)]
use crate::ssh::target::Target;
use crate::ssh::target::{Bind, ProxyCommand, Way};

/// More hops than any network has; a configuration that makes up names could go on for ever.
const MOST_HOPS: usize = 16;

/// A host that is on the way already.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Visited {
    pub(super) hostname: String,
    pub(super) port: u16,
    pub(super) user: String,
}

impl Resolver<'_> {
    /// Returns what carries the connection to the host `here`.
    pub(super) fn way(&mut self, here: Visited) -> Result<Way, Error> {
        let Some(setting) = self.setting("proxy").cloned() else { return Ok(Way::Direct) };
        if setting.value().eq_ignore_ascii_case("none") {
            return Ok(Way::Direct);
        }
        if setting.args.get(1).is_some_and(|keyword| keyword == "ProxyJump") {
            return self.jump(&setting, here);
        }
        // Both hand us a socket instead of a stream.
        if self.flag("proxyusefdpass")? || setting.value() == "-" {
            let place = setting.place.clone();
            return Err(Error::NotSupported { place, keyword: "ProxyUseFdpass" });
        }
        let tokens = self.tokens(here.port, Some(&here.user));
        let line = expand::proxy(setting.value(), &tokens).map_err(|why| Error::bad(&setting.place, why))?;
        let shell = self.surroundings.shell();
        Ok(Way::Command(ProxyCommand { shell, line }))
    }

    fn jump(&mut self, setting: &Setting, here: Visited) -> Result<Way, Error> {
        let tokens = self.tokens(here.port, Some(&here.user));
        let hops = expand::proxy(setting.value(), &tokens).map_err(|why| Error::bad(&setting.place, why))?;
        // The last one is where the channel to us comes from; the others are the way to that one.
        let (before, last) = match hops.rsplit_once(',') {
            Some((before, last)) => (Some(before.to_owned()), last),
            None => (None, hops.as_str()),
        };
        let hop = destination(setting, last)?;
        let itself = hop.host == here.hostname
            && hop.port.unwrap_or(22) == here.port
            && hop.user.as_ref().is_none_or(|user| *user == here.user);
        if itself {
            return Err(Error::JumpLoop { host: hop.host });
        }
        if !self.follow {
            return Ok(Way::Direct);
        }
        let mut behind = self.behind.clone();
        behind.push(here);
        let request = Request {
            host: hop.host,
            user: hop.user,
            port: hop.port,
            jump: before,
            batch: self.request.batch,
            dangerous_legacy: self.request.dangerous_legacy.clone(),
            key: self.request.key.clone(),
            session: Session::None,
            ..Request::default()
        };
        if behind.len() > MOST_HOPS {
            return Err(Error::bad(&setting.place, format!("there are more than {MOST_HOPS} jump hosts")));
        }
        let (target, warnings) = resolve_behind(&request, self.surroundings, behind)?;
        self.evaluated.warnings.extend(warnings);
        Ok(Way::Jump(Box::new(target)))
    }

    /// Refuses a way that comes back to a host that it has passed.
    pub(super) fn refuse_loop(&self, here: &Visited) -> Result<(), Error> {
        if self.behind.contains(here) {
            return Err(Error::JumpLoop { host: self.request.host.clone() });
        }
        Ok(())
    }

    pub(super) fn bind(&self) -> Bind {
        let name = |keyword| self.setting(keyword).map(|setting| setting.value().to_owned());
        Bind { address: name("bindaddress"), interface: name("bindinterface") }
    }
}

impl super::Surroundings {
    /// Returns the user's shell, as ssh takes it for whatever it runs.
    pub(super) fn shell(&self) -> PathBuf {
        let named = self.env.get("SHELL").filter(|shell| !shell.is_empty());
        named.map_or_else(|| Path::new("/bin/sh").to_owned(), PathBuf::from)
    }
}

fn destination(setting: &Setting, text: &str) -> Result<Destination, Error> {
    Destination::parse(text).map_err(|error| Error::bad(&setting.place, format!("`ProxyJump`: {error}")))
}

/// Says what is wrong with the value of a `ProxyJump` line, also of one that does not apply, as OpenSSH does.
pub(super) fn check_jump(value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err("an argument is missing".to_owned());
    }
    if value.eq_ignore_ascii_case("none") {
        return Ok(());
    }
    for hop in value.split(',') {
        // Tokens stand for names that are checked when they are known.
        Destination::parse(&hop.replace("%%", "").replace('%', "x")).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Every jump host on the way to `target`, the first that we connect to first.
#[cfg(test)]
pub(super) fn hops(target: &Target) -> Vec<&Target> {
    let mut hops = Vec::new();
    let mut at = target;
    while let Way::Jump(hop) = &at.way {
        hops.insert(0, hop.as_ref());
        at = hop;
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Home, request};
    use super::*;

    /// `user@hostname:port` of every hop and of the target, in the order of the connection.
    fn route(target: &Target) -> String {
        let mut all = hops(target);
        all.push(target);
        let named = |target: &&Target| format!("{}@{}:{}", target.user, target.hostname, target.port);
        all.iter().map(named).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_hop_has_its_own_configuration() {
        let home = Home::new(
            "Host web\n ProxyJump ops@gate:2200,inner\nHost gate\n HostName gate.example.com\n User gatekeeper\n \
             IdentityFile /gate\n ConnectTimeout 3\n UserKnownHostsFile /kh_gate\nHost inner\n Port 44\n User in\n \
             ProxyJump wrong\nHost gate\n ProxyJump first\nHost *\n User me2\n",
        );
        let web = home.target("web");
        // The first hop of a list has its own way; the others are reached through the one before.
        assert_eq!(route(&web), "me2@first:22 ops@gate.example.com:2200 in@inner:44 me2@web:22");
        let gate = hops(&web)[1].clone();
        assert_eq!(gate.identities.files, [PathBuf::from("/gate")]);
        assert_eq!(gate.connect_timeout.as_secs(), 3);
        assert_eq!(gate.known_hosts.user, [PathBuf::from("/kh_gate")]);
        assert_eq!(gate.original, "gate");
    }

    #[test]
    fn the_command_line_is_about_the_target_and_not_about_its_hops() {
        let home = Home::new("Host b\n User hop\n Port 44\nHost *\n ProxyJump none\n");
        let request = Request {
            jump: Some("a,u@b,ssh://c@[::1]:9".into()),
            user: Some("typed".into()),
            port: Some(1),
            options: vec![("ConnectTimeout".into(), "7".into())],
            pinned_host_key: Some("SHA256:x".into()),
            batch: true,
            ..request("t")
        };
        let (target, _) = super::super::resolve(&request, &home.surroundings()).unwrap();
        assert_eq!(route(&target), "me@a:22 u@b:44 c@::1:9 typed@t:1");
        for hop in hops(&target) {
            assert!(hop.batch && hop.pinned_host_key.is_none());
            assert_eq!(hop.connect_timeout, super::super::CONNECT_TIMEOUT);
        }
        assert_eq!(home.target("t").way, Way::Direct);
    }

    #[test]
    fn whichever_of_jump_and_command_comes_first_counts() {
        let way = |config: &str| Home::new(&format!("Host h\n{config}")).target("h").way;
        let command = |line: &str| Way::Command(ProxyCommand { shell: "/bin/sh".into(), line: line.into() });
        assert_eq!(
            way("ProxyCommand nc -x '%%' %h %p # %r \"$HOME\"\nProxyJump x\nHostName H2\n"),
            command("nc -x '%' h2 22 # me \"$HOME\"")
        );
        assert!(
            matches!(way("ProxyJump x # really\nProxyCommand nc\n"), Way::Jump(hop) if hop.original == "x")
        );
        for none in
            ["ProxyJump none\nProxyCommand nc\n", "ProxyCommand none\nProxyJump x\n", "ProxyJump NONE\n"]
        {
            assert_eq!(way(none), Way::Direct, "{none}");
        }
        // A hop's own way is its own business, also when it is a command.
        let home = Home::new("Host h\n ProxyJump %h-gate\nHost *-gate\n ProxyCommand=corkscrew %h\n");
        let target = home.target("h");
        assert_eq!(hops(&target)[0].way, command("corkscrew h-gate"));
    }

    #[test]
    fn circles_and_endless_ways_are_refused() {
        for config in [
            "ProxyJump h\n",
            "ProxyJump bastion\n",
            "Host h\n ProxyJump a\nHost a\n ProxyJump b\nHost b\n ProxyJump a\n",
            "Host *\n HostName same\n ProxyJump other\n",
            "ProxyJump x%h\n",
            "Host h\n ProxyJump h:22\n",
            "ProxyJump a,b,a,b\nHost a b\n ProxyJump none\n",
        ] {
            let home = Home::new(config);
            let error = home.resolve("h").unwrap_err();
            let told = error.to_string();
            assert!(told.contains("circle") || told.contains("more than 16"), "{config}: {told}");
        }
        // Another user or port is another hop, as with `ssh`.
        Home::new("Match user u\n ProxyJump none\nHost h\n ProxyJump u@h\n").target("h");
    }

    #[test]
    fn what_is_no_hop_is_an_error_with_its_line() {
        for bad in ["a,,b", "a,", "-oProxyCommand=x", "u@", "a;id", "http://x", "a:b:c", "a b"] {
            let home = Home::new(&format!("Host other\n ProxyJump {bad}\n"));
            assert!(
                home.error("h").starts_with("/.ssh/config:2: `proxyjump`: "),
                "{bad}: {}",
                home.error("h")
            );
        }
        for bad in [
            "ProxyCommand nc %d\n",
            "ProxyCommand nc %\n",
            "ProxyJump %z\n",
            "ProxyCommand nc\nProxyUseFdpass yes\n",
            "ProxyCommand -\n",
        ] {
            assert!(Home::new(bad).error("h").starts_with("/.ssh/config:"), "{bad}");
        }
        // A name that a token brings in is checked like a typed one.
        assert!(Home::new("ProxyJump %n\nHost a$b\n").resolve("a$b").is_err());
    }

    #[test]
    fn the_jump_host_is_a_token_of_its_own() {
        let target = Home::new("ProxyJump a,u@[::1]:9\nIdentityFile /%j\nHost a ::1\n ProxyJump none\n");
        let target = target.resolve("h");
        // `Host *` comes first here, so that the hops jump too.
        assert!(target.is_err());
        let home = Home::new("Host h\n ProxyJump a,u@[::1]:9\n IdentityFile /%j\n");
        assert_eq!(home.target("h").identities.files, [PathBuf::from("/::1")]);
    }
}
