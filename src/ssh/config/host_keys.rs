//! What decides on the key of a host: the files and the command that know it, those that revoke it, and how new ones
//! are met.

use std::path::PathBuf;

use super::{
    Error, Resolver, Setting, Warning, expand,
    keyword::{self, Strict},
    line, not_a_value,
};
use crate::ssh::target::{KnownHostsCommand, KnownHostsFiles, Part, StrictHostKeyChecking};

/// `RequiredRSASize` where the configuration says nothing, and the least that OpenSSH takes in any case.
const LEAST_RSA_SIZE: u32 = 1024;

impl Resolver<'_> {
    pub(super) fn known_hosts(&self, tokens: &expand::Tokens<'_>) -> Result<KnownHostsFiles, Error> {
        let is_none = |setting: &Setting| setting.value().eq_ignore_ascii_case("none");
        let user = match self.setting("userknownhostsfile") {
            Some(setting) if is_none(setting) => Vec::new(),
            Some(setting) => {
                setting.args.iter().map(|arg| self.path(arg, tokens, setting)).collect::<Result<_, _>>()?
            }
            None => {
                let directory = self.surroundings.home.join(".ssh");
                vec![directory.join("known_hosts"), directory.join("known_hosts2")]
            }
        };
        let global = match self.setting("globalknownhostsfile") {
            Some(setting) if is_none(setting) => Vec::new(),
            // Tokens and variables are not for this one; OpenSSH expands the tilde only.
            Some(setting) => setting
                .args
                .iter()
                .map(|arg| {
                    expand::tilde(arg, self.home)
                        .map(PathBuf::from)
                        .map_err(|why| Error::bad(&setting.place, why))
                })
                .collect::<Result<_, _>>()?,
            None => {
                let beside = |name| self.surroundings.system_config.with_file_name(name);
                vec![beside("ssh_known_hosts"), beside("ssh_known_hosts2")]
            }
        };
        let command = self.known_hosts_command(tokens)?;
        Ok(KnownHostsFiles { user, global, hash: self.flag("hashknownhosts")?, command })
    }

    pub(super) fn strict_host_key_checking(&mut self) -> Result<StrictHostKeyChecking, Error> {
        let Some(setting) = self.setting("stricthostkeychecking").cloned() else {
            return Ok(StrictHostKeyChecking::Ask);
        };
        Ok(match keyword::strict(setting.value()).ok_or_else(|| not_a_value(&setting))? {
            Strict::Yes => StrictHostKeyChecking::Yes,
            Strict::Ask => StrictHostKeyChecking::Ask,
            Strict::AcceptNew => StrictHostKeyChecking::AcceptNew,
            Strict::Off => {
                let text = format!(
                    "`StrictHostKeyChecking {}` is taken as `accept-new`: we never go on with a host key that changed",
                    setting.value()
                );
                self.evaluated.warnings.push(Warning { place: setting.place, text });
                StrictHostKeyChecking::AcceptNew
            }
        })
    }

    fn known_hosts_command(&self, tokens: &expand::Tokens<'_>) -> Result<Option<KnownHostsCommand>, Error> {
        let Some(setting) = self.setting("knownhostscommand") else { return Ok(None) };
        if setting.value().eq_ignore_ascii_case("none") {
            return Ok(None);
        }
        let bad = |why: &str| Error::bad(&setting.place, format!("`KnownHostsCommand`: {why}"));
        let words = line::split(setting.value(), false).ok_or_else(|| bad("a quote is not closed"))?;
        let Some((program, arguments)) = words.split_first() else { return Err(bad("it names no program")) };
        let arguments = arguments
            .iter()
            .map(|argument| expand::known_hosts_argument(argument, tokens, &self.surroundings.env))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| bad(&why))?;
        let md5 =
            self.setting("fingerprinthash").is_some_and(|hash| hash.value().eq_ignore_ascii_case("md5"));
        if md5 && arguments.iter().flatten().any(|part| *part == Part::Fingerprint) {
            return Err(bad("`%f` is there with SHA-256 only, and `FingerprintHash` is `md5`"));
        }
        Ok(Some(KnownHostsCommand { program: PathBuf::from(program), arguments }))
    }

    pub(super) fn revoked_host_keys(&self, tokens: &expand::Tokens<'_>) -> Result<Vec<PathBuf>, Error> {
        let Some(setting) = self.setting("revokedhostkeys") else { return Ok(Vec::new()) };
        if setting.value().eq_ignore_ascii_case("none") {
            return Ok(Vec::new());
        }
        setting.args.iter().map(|arg| self.path(arg, tokens, setting)).collect()
    }

    pub(super) fn required_rsa_size(&self) -> Result<u32, Error> {
        let Some(setting) = self.setting("requiredrsasize") else { return Ok(LEAST_RSA_SIZE) };
        let size = keyword::count(setting.value()).ok_or_else(|| not_a_value(setting))?;
        Ok(size.max(LEAST_RSA_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::config::tests::Home;

    #[test]
    fn a_command_is_split_and_expanded_but_for_what_a_connection_tells() {
        let home = Home::new(
            "Host h\n HostName real\n KnownHostsCommand = /bin/keys \"%h %%\" -n%H/%I # '%t' %f%K\nHost *\n KnownHostsCommand none\n",
        );
        let command = home.target("h").known_hosts.command.unwrap();
        assert_eq!(command.program, PathBuf::from("/bin/keys"));
        let text = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            command.arguments,
            [
                vec![text("real %")],
                vec![text("-n"), Part::Name, text("/"), Part::Invocation],
                // A command has no comments.
                vec![text("#")],
                vec![Part::KeyType],
                vec![Part::Fingerprint, Part::Key],
            ]
        );
        assert_eq!(home.target("other").known_hosts.command, None);
        for (bad, why) in [
            ("/bin/keys '", "a quote is not closed"),
            ("/bin/keys %z", "`%z` means nothing here"),
            ("/bin/keys %f\nFingerprintHash md5", "is `md5`"),
        ] {
            let told = Home::new(&format!("KnownHostsCommand {bad}\n")).error("h");
            assert!(told.starts_with("/.ssh/config:1: ") && told.contains(why), "{bad}: {told}");
        }
        Home::new("KnownHostsCommand /bin/keys %H\nFingerprintHash md5\n").resolve("h").unwrap();
    }

    #[test]
    fn revoked_keys_and_the_size_of_rsa_reach_the_target() {
        let home = Home::new("RevokedHostKeys ~/revoked /etc/%h \nRequiredRSASize 3072\n");
        let target = home.target("h");
        assert_eq!(target.revoked_host_keys, [home.path().join("revoked"), PathBuf::from("/etc/h")]);
        assert_eq!(target.required_rsa_size, 3072);
        let home = Home::new("RevokedHostKeys none\nRequiredRSASize 1\n");
        let target = home.target("h");
        assert_eq!((target.revoked_host_keys.len(), target.required_rsa_size), (0, 1024));
        assert!(home.warnings("h").is_empty());
        for bad in ["RevokedHostKeys none x", "RevokedHostKeys %z", "RequiredRSASize many"] {
            assert!(Home::new(&format!("{bad}\n")).error("h").starts_with("/.ssh/config:1: "), "{bad}");
        }
    }
}
