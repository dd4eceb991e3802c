//! Which methods may be tried, and in which order.

use super::{Error, Resolver, evaluate::Setting, keyword, not_a_value};
use crate::ssh::target::{Authentication, Method};

/// A method as `PreferredAuthentications` calls it, ours, and the keyword that can forbid it.
const METHODS: [(&str, Method, &str); 3] = [
    ("publickey", Method::PublicKey, "pubkeyauthentication"),
    ("keyboard-interactive", Method::KeyboardInteractive, "kbdinteractiveauthentication"),
    ("password", Method::Password, "passwordauthentication"),
];

impl Resolver<'_> {
    /// Returns how we may log in.
    pub(super) fn authentication(&self) -> Result<Authentication, Error> {
        let preferred = self.setting("preferredauthentications").map(Setting::value);
        let mut methods = Vec::new();
        // Names of methods that we do not have are those of OpenSSH, too: they are passed over.
        let names: Vec<&str> = match preferred {
            Some(list) => list.split(',').collect(),
            None => METHODS.iter().map(|(name, ..)| *name).collect(),
        };
        for name in names {
            let Some((_, method, keyword)) = METHODS.iter().find(|(known, ..)| *known == name) else {
                continue;
            };
            let allowed = match self.setting(keyword) {
                Some(setting) => keyword::pubkey(setting.value()).ok_or_else(|| not_a_value(setting))?,
                None => true,
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
        Ok(Authentication { methods, prompts })
    }
}
