//! `RevokedHostKeys`: the keys that no host may have, whatever known_hosts or a person says.
//!
//! A file that cannot be read or understood revokes everything, as with `ssh`: with it we would have refused, perhaps.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use russh::keys::{Certificate, PublicKey, ssh_key::public::KeyData};

use super::krl::{self, Krl};
use crate::private_fs;

/// The largest file that we read, in bytes: some 600 000 keys by their hashes.
const LARGEST: u64 = 32 << 20;

/// Why the revoked keys are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there are no `RevokedHostKeys` at `{}`", path.display())]
    Missing { path: PathBuf },
    #[error("could not use the `RevokedHostKeys` at `{}`", path.display())]
    File { path: PathBuf, source: private_fs::Error },
    #[error("`{}` line {line} is no public key, so that nothing in it can be trusted to be all", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("could not read the revocation list `{}`: {why}", path.display())]
    List { path: PathBuf, why: &'static str },
    #[error("the `RevokedHostKeys` were not read to the end")]
    Unread,
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "get the file from whoever keeps it; an empty one revokes nothing, and so does `-o RevokedHostKeys=none`"
                    .to_owned(),
            ),
            Self::File { source, .. } => source.hint(),
            Self::Unread => None,
            Self::Line { .. } | Self::List { .. } => Some(
                "it holds public keys, one on a line, or is what `ssh-keygen -k` writes: get it anew".to_owned(),
            ),
        }
    }
}

/// What all files together revoke.
#[derive(Clone, Debug, Default)]
pub(super) struct Revoked {
    files: Vec<(PathBuf, List)>,
}

#[derive(Clone, Debug)]
enum List {
    Keys(BTreeSet<Vec<u8>>),
    Krl(Krl),
}

impl Revoked {
    /// Reads every file. Blocks: call it off the runtime's thread.
    pub(super) fn load(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut revoked = Self::default();
        for path in paths.iter().filter(|path| path.as_path() != Path::new("/dev/null")) {
            let bytes = private_fs::read_config_up_to(path, LARGEST)
                .map_err(|source| Error::File { path: path.clone(), source })?
                .ok_or_else(|| Error::Missing { path: path.clone() })?;
            let list = if krl::is_krl(&bytes) {
                let list = Krl::parse(&bytes).map_err(|why| Error::List { path: path.clone(), why })?;
                List::Krl(list)
            } else {
                List::Keys(keys(&bytes).map_err(|line| Error::Line { path: path.clone(), line })?)
            };
            revoked.files.push((path.clone(), list));
        }
        Ok(revoked)
    }

    /// Returns the file that revokes this key, its certificate, or whoever signed that.
    pub(super) fn by(&self, key: &PublicKey, certificate: Option<&Certificate>) -> Option<&Path> {
        let revokes = |list: &List| match list {
            List::Krl(krl) => krl.revokes(key, certificate),
            List::Keys(keys) => {
                let shown = [Some(key.key_data()), certificate.map(Certificate::signature_key)];
                // What cannot be written down cannot be looked up, so it is not let in.
                shown.into_iter().flatten().any(|key| blob(key).is_none_or(|blob| keys.contains(&blob)))
            }
        };
        self.files.iter().find(|(_, list)| revokes(list)).map(|(path, _)| path.as_path())
    }
}

/// Reads public keys, one on a line; `Err` has the number of the line that is none.
fn keys(text: &[u8]) -> Result<BTreeSet<Vec<u8>>, usize> {
    let mut keys = BTreeSet::new();
    // Comments may be Latin-1.
    for (index, line) in String::from_utf8_lossy(text).split('\n').enumerate() {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // A certificate in the list means the key in it.
        let certified = || Certificate::from_openssh(line).ok().and_then(|found| blob(found.public_key()));
        let plain = PublicKey::from_openssh(line).ok().and_then(|key| blob(key.key_data()));
        keys.insert(plain.or_else(certified).ok_or(index + 1)?);
    }
    Ok(keys)
}

/// Returns a key as it goes over the wire, without any certificate.
pub(super) fn blob(key: &KeyData) -> Option<Vec<u8>> {
    PublicKey::new(key.clone(), "").to_bytes().ok()
}

#[cfg(test)]
#[path = "revoked_tests.rs"]
mod tests;
