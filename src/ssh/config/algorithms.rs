//! Lists of algorithms: `A,B`, `+A` (as well), `-A` (without), `^A` (first), with wildcards.

use super::{Error, Resolver, Warning, evaluate::Setting, pattern};
use crate::{
    printable::one_line,
    ssh::algorithms::{
        Algorithms, CERTIFICATE_SIGNATURES, CIPHERS, HOST_KEYS, KEX, MACS, PUBLIC_KEYS, Standing, Table,
        usual,
    },
};

/// What a list comes to.
#[derive(Debug, Default, Eq, PartialEq)]
struct Chosen {
    names: Vec<&'static str>,
    /// Named, and left out because they are broken.
    broken: Vec<&'static str>,
    /// Named, and not among what we have.
    unknown: Vec<String>,
}

impl Resolver<'_> {
    /// Returns what is offered to this host.
    pub(super) fn algorithms(&mut self) -> Result<Algorithms, Error> {
        let known_first =
            self.setting("hostkeyalgorithms").is_none_or(|setting| setting.value().starts_with(['+', '-']));
        Ok(Algorithms {
            kex: self.list("KexAlgorithms", KEX)?,
            ciphers: self.list("Ciphers", CIPHERS)?,
            macs: self.list("MACs", MACS)?,
            host_keys: self.list("HostKeyAlgorithms", HOST_KEYS)?,
            known_first,
            public_keys: self.list("PubkeyAcceptedAlgorithms", PUBLIC_KEYS)?,
            certificate_signatures: self.list("CASignatureAlgorithms", CERTIFICATE_SIGNATURES)?,
        })
    }

    fn list(&mut self, keyword: &'static str, table: Table) -> Result<Vec<&'static str>, Error> {
        let Some(Setting { args, place, by_user }) = self.setting(&keyword.to_ascii_lowercase()).cloned()
        else {
            return Ok(usual(table));
        };
        let dangerous = self.request.dangerous_legacy.contains(&self.request.host);
        let chosen = choose(&args.join(","), table, dangerous);
        // The lists that distributions ship name what this or that build of OpenSSH has: not worth a word.
        let mut warn = |text: String| {
            if by_user {
                self.evaluated.warnings.push(Warning { place: place.clone(), text });
            }
        };
        if !chosen.unknown.is_empty() {
            let names = one_line(&chosen.unknown.join("`, `"));
            warn(format!("`{keyword}` names what broker does not have: `{names}`"));
        }
        if !chosen.broken.is_empty() {
            warn(format!(
                "`{keyword}` names what is broken and therefore not offered: `{}` \
                 (`--dangerous-legacy-algorithms {}` offers it)",
                chosen.broken.join("`, `"),
                self.request.host
            ));
        }
        if chosen.names.is_empty() {
            let why = format!("`{keyword}` leaves nothing that broker has, or nothing that is not broken");
            return Err(Error::bad(&place, why));
        }
        Ok(chosen.names)
    }
}

fn choose(spec: &str, table: Table, dangerous: bool) -> Chosen {
    let (how, names) = match spec.split_at_checked(1) {
        Some((how @ ("+" | "-" | "^"), names)) => (how, names),
        _ => ("", spec),
    };
    let mut chosen = Chosen::default();
    let add = |to: &mut Vec<&'static str>, name: &'static str| {
        if !to.contains(&name) {
            to.push(name);
        }
    };
    if how == "-" {
        let taken_out = |name: &str| names.split(',').any(|pattern| pattern::matches(name, pattern));
        chosen.names = usual(table).into_iter().filter(|name| !taken_out(name)).collect();
        return chosen;
    }
    if how == "+" {
        chosen.names = usual(table);
    }
    for named in names.split(',').filter(|name| !name.is_empty()) {
        let exact = !named.contains(['*', '?']);
        let mut found = false;
        for (name, standing) in table.iter().filter(|(name, _)| pattern::matches(name, named)) {
            found = true;
            if *standing != Standing::Broken || dangerous {
                add(&mut chosen.names, name);
            } else if exact {
                // A wildcard means what can be had.
                add(&mut chosen.broken, name);
            }
        }
        if !found {
            chosen.unknown.push(named.to_owned());
        }
    }
    if how == "^" {
        for name in usual(table) {
            add(&mut chosen.names, name);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_put_together_as_openssh_does() {
        const TABLE: Table = &[
            ("best", Standing::Default),
            ("good", Standing::Default),
            ("other", Standing::Named),
            ("old-a", Standing::Broken),
            ("old-b", Standing::Broken),
        ];
        for (spec, dangerous, names, broken, unknown) in [
            ("good", false, &["good"][..], &[][..], &[][..]),
            ("good,best", false, &["good", "best"], &[], &[]),
            ("good,good", false, &["good"], &[], &[]),
            ("other,nonsense", false, &["other"], &[], &["nonsense"]),
            ("+other", false, &["best", "good", "other"], &[], &[]),
            ("+best", false, &["best", "good"], &[], &[]),
            ("-good", false, &["best"], &[], &[]),
            ("-g*,nonsense", false, &["best"], &[], &[]),
            ("-*", false, &[], &[], &[]),
            ("^good", false, &["good", "best"], &[], &[]),
            ("^other,nonsense", false, &["other", "best", "good"], &[], &["nonsense"]),
            ("*o*", false, &["good", "other"], &[], &[]),
            ("+old-a", false, &["best", "good"], &["old-a"], &[]),
            ("+old-a", true, &["best", "good", "old-a"], &[], &[]),
            ("old-?", true, &["old-a", "old-b"], &[], &[]),
            ("old-a", false, &[], &["old-a"], &[]),
        ] {
            let found = choose(spec, TABLE, dangerous);
            assert_eq!(found.names, names, "{spec}");
            assert_eq!(found.broken, broken, "{spec}");
            assert_eq!(found.unknown, unknown, "{spec}");
        }
    }
}
