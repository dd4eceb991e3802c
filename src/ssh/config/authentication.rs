//! Which methods may be tried, and in which order.

use super::{Error, Resolver, Warning, evaluate::Setting, keyword, not_a_value};
use crate::ssh::target::{Authentication, Method, Tickets};

/// A method as `PreferredAuthentications` calls it, ours, the keyword that decides on it, and whether it is allowed where
/// that says nothing; in OpenSSH's order.
const METHODS: [(&str, Method, &str, bool); 4] = [
    ("gssapi-with-mic", Method::Gssapi, "gssapiauthentication", false),
    ("publickey", Method::PublicKey, "pubkeyauthentication", true),
    ("keyboard-interactive", Method::KeyboardInteractive, "kbdinteractiveauthentication", true),
    ("password", Method::Password, "passwordauthentication", true),
];

impl Resolver<'_> {
    /// Returns how we may log in.
    pub(super) fn authentication(&mut self) -> Result<Authentication, Error> {
        let preferred = self.setting("preferredauthentications").map(Setting::value);
        let mut methods = Vec::new();
        // Names of methods that we do not have are those of OpenSSH, too: they are passed over.
        let names: Vec<&str> = match preferred {
            Some(list) => list.split(',').collect(),
            None => METHODS.iter().map(|(name, ..)| *name).collect(),
        };
        for name in names {
            let Some((_, method, keyword, default)) = METHODS.iter().find(|(known, ..)| *known == name)
            else {
                continue;
            };
            let allowed = match self.setting(keyword) {
                Some(setting) => keyword::pubkey(setting.value()).ok_or_else(|| not_a_value(setting))?,
                None => *default,
            };
            if allowed && !methods.contains(method) {
                methods.push(*method);
            }
        }
        let prompts = match self.setting("numberofpasswordprompts") {
            Some(setting) => {
                let count = keyword::count(setting.value()).ok_or_else(|| not_a_value(setting))?;
                usize::try_from(count).unwrap_or(usize::MAX)
            }
            None => Authentication::default().prompts,
        };
        let tickets = self.tickets()?;
        if !cfg!(feature = "gssapi") && tickets.by_user && methods.contains(&Method::Gssapi) {
            self.warn_of_no_gssapi();
        }
        Ok(Authentication { methods, prompts, tickets })
    }

    fn tickets(&self) -> Result<Tickets, Error> {
        let wanted = self.flag("gssapiauthentication")?;
        let by_user = wanted && self.setting("gssapiauthentication").is_some_and(|setting| setting.by_user);
        Ok(Tickets { delegate: self.flag("gssapidelegatecredentials")?, by_user })
    }

    /// Distributions ask for it in the system's file for everybody; who does so for himself misses it.
    fn warn_of_no_gssapi(&mut self) {
        let Some(place) = self.setting("gssapiauthentication").map(|setting| setting.place.clone()) else {
            return;
        };
        let text =
            "`GSSAPIAuthentication` is ignored: this broker was built without it (`--features gssapi`)";
        self.evaluated.warnings.push(Warning { place, text: text.to_owned() });
    }
}
