//! The name of our directory on hosts where nothing removes it but us.
//!
//! What a broken connection leaves there is found by the next run of the same laptop, because the name is the same.
//! A lock tells whether another run is still using it; then there is a second name, and so on.

use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};

use crate::{
    private_fs::{self, Lock},
    random::{self, NoRandomness},
    remote::install::Key,
};

/// Where the names of one account on one host come from.
#[derive(Clone, Debug)]
pub(crate) struct Lasting {
    directory: PathBuf,
    account: String,
}

/// A name, which is ours alone as long as this exists.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) key: Key,
    _lock: Option<Lock>,
}

impl Lasting {
    /// Returns the names for `account`, such as `ada@host:22`, that are kept track of in `directory`.
    pub(crate) fn new(directory: PathBuf, account: String) -> Self {
        Self { directory, account }
    }

    /// Takes the first name that no live process has.
    pub(super) fn claim(&self) -> Result<Claim, NoRandomness> {
        match self.claim_lasting() {
            Some(claim) => Ok(claim),
            // What this run may leave will be found by its expiry only.
            None => Ok(Claim { key: super::key()?, _lock: None }),
        }
    }

    fn claim_lasting(&self) -> Option<Claim> {
        let laptop = self.laptop()?;
        for number in 0..MOST {
            let text = format!("{laptop}\n{}\n{number}", self.account);
            let name = hex(digest(&SHA256, text.as_bytes()).as_ref().get(..6)?);
            let path = self.directory.join("sftp").join(format!("{name}.lock"));
            match private_fs::lock(&path, std::time::Duration::ZERO) {
                Ok(lock) => return Some(Claim { key: Key::new(&name)?, _lock: Some(lock) }),
                Err(private_fs::Error::Busy { .. }) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Returns what tells this laptop's names from those of others that share the account. No secret.
    fn laptop(&self) -> Option<String> {
        let path = self.directory.join("sftp").join("laptop");
        if private_fs::read(&path).ok()?.is_none() {
            let mut bytes = [0; 16];
            random::fill(&mut bytes).ok()?;
            private_fs::write(&path, hex(&bytes).as_bytes()).ok()?;
        }
        // Read back, because another process may have been faster.
        String::from_utf8(private_fs::read(&path).ok()??.to_vec()).ok()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whoever has more tunnels than this to one account on one host gets names that do not last.
const MOST: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_in_the_next_run_and_nobodys_else_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let names = |account: &str| Lasting::new(directory.path().to_owned(), account.to_owned());
        let first = names("a@h:22").claim().unwrap();
        let second = names("a@h:22").claim().unwrap();
        let other = names("b@h:22").claim().unwrap();
        assert!(first.key != second.key && first.key != other.key);
        let key = first.key.clone();
        drop(first);
        assert_eq!(names("a@h:22").claim().unwrap().key, key);

        let elsewhere = tempfile::tempdir().unwrap();
        let elsewhere = Lasting::new(elsewhere.path().to_owned(), "a@h:22".to_owned());
        assert_ne!(elsewhere.claim().unwrap().key, key, "two laptops share no name");
    }

    #[test]
    fn without_a_place_to_remember_there_is_still_a_name() {
        let lasting = Lasting::new("/dev/null/nowhere".into(), "a@h:22".to_owned());
        assert_ne!(lasting.claim().unwrap().key, lasting.claim().unwrap().key);
    }
}
