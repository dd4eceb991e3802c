//! The keyring of the desktop (the Secret Service of freedesktop.org: GNOME Keyring, KWallet, KeePassXC), as a place for
//! SSO tokens. In a binary that was built without the feature `keyring`, there is none.
//!
//! Every call blocks, and ends by itself: the service answers within seconds, and a person who is to unlock the keyring
//! has a minute. Only a login asks for that; everybody else finds a locked keyring locked.

use std::path::Path;

#[cfg(not(feature = "keyring"))]
use zeroize::Zeroizing;

/// Why there is nothing to be had from the keyring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[cfg(feature = "keyring")]
    #[error("the keyring is locked")]
    Locked,
    #[cfg(feature = "keyring")]
    #[error("there is no keyring here (no D-Bus session, or nothing on it that keeps secrets)")]
    Missing,
    #[cfg(feature = "keyring")]
    #[error("the keyring did not do it: {0}")]
    Failed(String),
    #[cfg(not(feature = "keyring"))]
    #[error("this broker was built without keyrings")]
    NotBuilt,
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let way = match self {
            #[cfg(feature = "keyring")]
            Self::Locked => "unlock it, or log in again",
            #[cfg(feature = "keyring")]
            Self::Missing | Self::Failed(_) => "start this in your desktop session, or log in again",
            #[cfg(not(feature = "keyring"))]
            Self::NotBuilt => "use one that was built with `--features keyring`, or log in again",
        };
        Some(way.to_owned())
    }
}

/// One secret in the keyring.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "keyring"), expect(dead_code, reason = "nobody is told what is wanted"))]
pub(super) struct Entry {
    /// The directory of the token files that it stands for, so that two homes do not share it.
    directory: String,
    session: String,
}

impl Entry {
    /// Names the entry of a session; touches nothing.
    pub(super) fn new(directory: &Path, session: &str) -> Self {
        Self { directory: directory.display().to_string(), session: session.to_owned() }
    }
}

#[cfg(not(feature = "keyring"))]
impl Entry {
    pub(super) fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn write(&self, _secret: &[u8], _may_ask: bool) -> Result<(), Error> {
        Err(Error::NotBuilt)
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        Err(Error::NotBuilt)
    }
}

#[cfg(feature = "keyring")]
mod secret_service {
    use std::{collections::HashMap, sync::mpsc, thread, time::Duration};

    use dbus_secret_service::{EncryptionType, Error as Fault, SecretService};
    use zeroize::Zeroizing;

    use super::{Entry, Error};
    use crate::printable::one_line;

    /// A person looks up a password and types it.
    const UNLOCKING: Duration = Duration::from_secs(60);

    /// A service that has to be started first takes a second or two.
    const ANSWER: Duration = Duration::from_secs(10);

    /// It is JSON; KWallet shows what is text.
    const TYPE: &str = "text/plain";

    impl From<Fault> for Error {
        fn from(fault: Fault) -> Self {
            match fault {
                Fault::Locked | Fault::Prompt => Self::Locked,
                Fault::Unavailable | Fault::NoResult => Self::Missing,
                Fault::Dbus(error) => {
                    let no_bus = [
                        "org.freedesktop.DBus.Error.ServiceUnknown",
                        "org.freedesktop.DBus.Error.NameHasNoOwner",
                        "org.freedesktop.DBus.Error.NoServer",
                        "org.freedesktop.DBus.Error.FileNotFound",
                        "org.freedesktop.DBus.Error.NotSupported",
                    ];
                    match error.name() {
                        Some(name) if no_bus.contains(&name) => Self::Missing,
                        Some("org.freedesktop.Secret.Error.IsLocked") => Self::Locked,
                        _ => Self::Failed(one_line(error.message().unwrap_or("no answer"))),
                    }
                }
                fault => Self::Failed(one_line(&fault.to_string())),
            }
        }
    }

    impl Entry {
        fn attributes(&self) -> HashMap<&str, &str> {
            HashMap::from([
                ("application", "broker"),
                ("directory", self.directory.as_str()),
                ("session", self.session.as_str()),
            ])
        }

        /// Returns the secret, and never asks a person for anything.
        pub(in crate::aws) fn read(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
            let entry = self.clone();
            within(Duration::ZERO, move |service| {
                let found = service.search_items(entry.attributes())?;
                match (found.unlocked.first(), found.locked.first()) {
                    (Some(item), _) => Ok(Some(Zeroizing::new(item.get_secret()?))),
                    (None, Some(_)) => Err(Error::Locked),
                    (None, None) => Ok(None),
                }
            })
        }

        /// Replaces the secret; `may_ask` has a locked keyring ask for its password.
        pub(in crate::aws) fn write(&self, secret: &[u8], may_ask: bool) -> Result<(), Error> {
            let (entry, secret) = (self.clone(), Zeroizing::new(secret.to_vec()));
            within(if may_ask { UNLOCKING } else { Duration::ZERO }, move |service| {
                let collection = service.get_default_collection()?;
                if collection.is_locked()? {
                    collection.unlock()?;
                }
                let label = format!("SSO token of {} (broker)", one_line(&entry.session));
                collection.create_item(&label, entry.attributes(), &secret, true, TYPE)?;
                Ok(())
            })
        }

        /// Removes the secret; that there is none is fine.
        pub(in crate::aws) fn remove(&self) -> Result<(), Error> {
            let entry = self.clone();
            within(Duration::ZERO, move |service| {
                let found = service.search_items(entry.attributes())?;
                for item in &found.unlocked {
                    item.delete()?;
                }
                if found.locked.is_empty() { Ok(()) } else { Err(Error::Locked) }
            })
        }
    }

    /// Calls the service on a thread that is left behind when it is not done in time: the library waits for ever for a bus
    /// that takes connections and says nothing. A person may take `asking` besides.
    fn within<T: Send + 'static>(
        asking: Duration,
        work: impl FnOnce(&SecretService) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, done) = mpsc::channel();
        let call = move || {
            // What goes over the session bus is seen by processes of this user alone, who may ask for it themselves.
            let plain = EncryptionType::Plain;
            let service = SecretService::connect_with_max_prompt_timeout(plain, asking.as_secs());
            let service = service.map_err(Error::from);
            // Nobody may be waiting any more.
            drop(sender.send(None));
            drop(sender.send(Some(service.and_then(|service| work(&service)))));
        };
        let started = thread::Builder::new().name("keyring".to_owned()).spawn(call);
        started.map_err(|error| Error::Failed(error.to_string()))?;
        let late = |_| Error::Failed("no answer in time".to_owned());
        // First the bus, which nobody has to unlock.
        drop(done.recv_timeout(ANSWER).map_err(late)?);
        done.recv_timeout(ANSWER + asking).map_err(late)?.unwrap_or(Err(Error::Missing))
    }
}
