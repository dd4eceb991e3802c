//! Our directory on a host where no command runs: put there, kept and removed over SFTP alone.
//!
//! There is no dead-man switch without a process of ours, so what is left behind when the connection breaks stays
//! until the next run of the same laptop, which finds it under the same [`Key`] and begins by emptying it. What
//! needs protection is therefore only ever role credentials, which carry their own expiry.

use std::{collections::BTreeSet, sync::Arc};

use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tracing::debug;

use super::install::{Content, File, Key, Place};
use crate::ssh::sftp::{Attributes, Client, Error as SftpError, Status};

/// What goes wrong over SFTP.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Sftp(#[from] SftpError),
    /// There is no place on the host that would keep a secret.
    #[error("the SFTP server shows no directory that is safe for credentials")]
    NoPlace {
        /// Why the last place, which is the home directory, will not do.
        #[source]
        home: Unsafe,
    },
    /// The directory is still there.
    #[error("could not remove our directory on the host")]
    Remove(#[source] SftpError),
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Sftp(error @ SftpError::Refused { .. }) if error.status() != Some(&Status::NoSuchFile) => {
                Some("is the disk or quota there full, or the account read-only?".into())
            }
            Self::Sftp(error) => error.hint(),
            Self::NoPlace { .. } => Some(
                "the account needs a home directory that it can write and nobody else can (`chmod go-w`)"
                    .into(),
            ),
            Self::Remove(_) => Some("the next connection from here removes it".into()),
        }
    }
}

/// Why a place will not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsafe {
    #[error("`{path}` can be changed by other users of the host")]
    Open { path: String },
    #[error("`{path}` needs quoting, which not every SDK's configuration can hold")]
    Name { path: String },
    #[error("`{path}` is not ours")]
    Foreign { path: String },
    #[error(transparent)]
    Refused(SftpError),
}

/// An SFTP session that can keep one directory of ours. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Sftp(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    client: Client,
    taken: Option<Taken>,
}

/// Our directory.
#[derive(Clone, Debug)]
struct Taken {
    path: String,
    /// Directories above it that we share or made, innermost first: removed when they are empty.
    above: Vec<String>,
    /// What we wrote there.
    files: BTreeSet<String>,
}

/// Where our directory is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Spot {
    pub(super) place: Place,
    pub(super) path: String,
    /// The path below the home directory, where the server shows only a part of the machine, so that programs there
    /// know the same directory by another path.
    pub(super) below_home: Option<String>,
}

impl Sftp {
    /// Uses a session that nobody else uses.
    pub(crate) fn new(client: Client) -> Self {
        Self(Arc::new(Mutex::new(State { client, taken: None })))
    }

    /// Makes our directory, empty; what an earlier run left under this key goes first.
    pub(super) async fn directory(&self, key: &Key) -> Result<Spot, Error> {
        let state = &mut *self.0.lock().await;
        let client = &mut state.client;
        let home = client.real_path(".").await?;
        let home = home.trim_end_matches('/').to_owned();
        let uid = client.lstat(&format!("{home}/.")).await?.uid.unwrap_or_default();
        let whole = client.stat("/bin/sh").await.is_ok();
        let (shared, cache) = (format!("broker-{uid}"), format!("{home}/.cache"));
        let places = [
            (Place::Runtime, format!("/run/user/{uid}")),
            (Place::SharedMemory, "/dev/shm".to_owned()),
            (Place::Temporary, "/tmp".to_owned()),
            (Place::Home, cache.clone()),
        ];
        let mut reason = None;
        for (place, base) in places {
            let shared = format!("{base}/{shared}");
            let mut above = vec![shared.clone()];
            if place == Place::Home {
                // It may be there already; what matters is what it is.
                if client.make_directory(&base, 0o700).await.is_ok() {
                    above.push(cache.clone());
                }
            } else if !whole {
                // A chroot's own `/tmp` is nowhere that a program would look.
                continue;
            }
            match take(client, &base, &shared, key).await {
                Ok(path) => {
                    let below_home =
                        (!whole).then(|| path.get(home.len() + 1..).unwrap_or_default().to_owned());
                    // Another user could make one of that name, and whoever still has our environment would read it.
                    if matches!(place, Place::SharedMemory | Place::Temporary) {
                        above.clear();
                    }
                    state.taken = Some(Taken { path: path.clone(), above, files: BTreeSet::new() });
                    return Ok(Spot { place, path, below_home });
                }
                Err(Unsafe::Refused(error)) if error.status().is_none() => return Err(error.into()),
                Err(error) => {
                    for directory in above {
                        drop(client.remove_directory(&directory).await);
                    }
                    debug!(%base, %error, "a place will not do");
                    reason = Some(error);
                }
            }
        }
        let reason = reason.unwrap_or(Unsafe::Foreign { path: home });
        Err(Error::NoPlace { home: reason })
    }

    /// Adds or replaces a file, mode 0600, whole or not at all.
    pub(super) async fn write(&self, file: File) -> Result<(), Error> {
        let State { client, taken } = &mut *self.0.lock().await;
        let Some(taken) = taken else { return Err(SftpError::Ended { source: None }.into()) };
        let (temporary, path) =
            (format!("{}/{TEMPORARY}", taken.path), format!("{}/{}", taken.path, file.name));
        let bytes = match &file.content {
            Content::Text(text) => text.as_bytes(),
            Content::Secret(secret) => secret.expose_secret().as_bytes(),
        };
        // Before it is there, so that it is removed even if we never hear that it is.
        taken.files.insert(file.name.as_str().to_owned());
        // What a call left that was dropped half-way.
        client.remove(std::slice::from_ref(&temporary)).await?;
        let written = async {
            client.create(&temporary, 0o600, bytes).await?;
            client.replace(&temporary, &path).await
        };
        let written = written.await;
        if written.is_err() {
            drop(client.remove(&[temporary]).await);
        }
        Ok(written?)
    }

    /// Removes our directory and everything in it; that there is none is fine.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let State { client, taken } = &mut *self.0.lock().await;
        let Some(Taken { path, above, files }) = taken.clone() else { return Ok(()) };
        // What holds secrets sorts behind what does not, so the other way round.
        let names = files.iter().rev().map(String::as_str).chain([TEMPORARY]);
        let paths: Vec<_> = names.map(|name| format!("{path}/{name}")).collect();
        match client.remove_all(&paths, &path, &above).await {
            Err(error) if error.status().is_some() => {
                // Something that we do not know of, such as the `.nfs…` of a file that a program is reading.
                let paths = entries(client, &path).await.map_err(Error::Remove)?;
                client.remove_all(&paths, &path, &above).await.map_err(Error::Remove)?;
            }
            removed => removed.map_err(Error::Remove)?,
        }
        *taken = None;
        Ok(())
    }
}

/// Makes `key` in our `shared` directory in `base`, empty and ours alone.
async fn take(client: &mut Client, base: &str, shared: &str, key: &Key) -> Result<String, Unsafe> {
    // Through a link that the administrator made, as `/tmp` may be one.
    let found = client.stat(base).await.map_err(Unsafe::Refused)?;
    if !is_safe(&found) {
        return Err(Unsafe::Open { path: base.to_owned() });
    }
    let path = format!("{shared}/{}", key.as_str());
    if !Place::is_plain(&path) {
        return Err(Unsafe::Name { path });
    }
    // That it is there already is no failure, and what else went wrong shows in the next step.
    let made = client.make_directory(shared, 0o700).await;
    if !client.lstat(shared).await.map_err(|e| Unsafe::Refused(made.err().unwrap_or(e)))?.is_directory() {
        return Err(Unsafe::Foreign { path: shared.to_owned() });
    }
    let made = client.make_directory(&path, 0o700).await;
    let ours = own(client, &path).await.map_err(|e| match (made, e) {
        (Err(refused), Unsafe::Refused(_)) => Unsafe::Refused(refused),
        (_, e) => e,
    })?;
    // Whoever made the directory above could rename ours, so both must be of one owner; and nobody but us can have
    // made ours, or it would not have been possible to make it private.
    let foreign = Unsafe::Foreign { path: shared.to_owned() };
    let above = own(client, shared).await;
    match above {
        Ok(above)
            if above.uid.is_some()
                && above.uid == ours.uid
                && (found.uid == Some(0) || found.uid == ours.uid) => {}
        _ => {
            drop(client.remove_directory(&path).await);
            return Err(foreign);
        }
    }
    empty(client, &path).await.map_err(Unsafe::Refused)?;
    Ok(path)
}

/// Whether nobody but root and its owner can rename what we make in it.
fn is_safe(base: &Attributes) -> bool {
    let Some(permissions) = base.permissions() else { return false };
    base.is_directory() && (permissions & 0o022 == 0 || permissions & 0o1000 != 0)
}

/// Makes a directory private, which only its owner can, and returns what is known of it then.
async fn own(client: &mut Client, path: &str) -> Result<Attributes, Unsafe> {
    let foreign = || Unsafe::Foreign { path: path.to_owned() };
    let mut found = client.lstat(path).await.map_err(Unsafe::Refused)?;
    if !found.is_directory() {
        return Err(foreign());
    }
    if found.permissions() != Some(0o700) {
        client.set_mode(path, 0o700).await.map_err(|_| foreign())?;
        found = client.lstat(path).await.map_err(Unsafe::Refused)?;
    }
    if found.is_directory() && found.permissions().is_some_and(|mode| mode & 0o777 == 0o700) {
        Ok(found)
    } else {
        Err(foreign())
    }
}

/// Removes every file in a directory.
async fn empty(client: &mut Client, path: &str) -> Result<(), SftpError> {
    let paths = entries(client, path).await?;
    client.remove(&paths).await
}

/// Returns the paths of everything in a directory.
async fn entries(client: &mut Client, path: &str) -> Result<Vec<String>, SftpError> {
    Ok(client.list(path).await?.into_iter().map(|name| format!("{path}/{name}")).collect())
}

/// What a file is called while it is written.
const TEMPORARY: &str = ".new";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_place_where_nobody_can_rename_ours_is_safe() {
        let with = |mode| Attributes { mode: Some(mode), ..Attributes::default() };
        for safe in [0o040_700, 0o040_755, 0o041_777] {
            assert!(is_safe(&with(safe)), "{safe:o}");
        }
        for open in [0o040_775, 0o040_757, 0o040_777, 0o100_700, 0o120_777] {
            assert!(!is_safe(&with(open)), "{open:o}");
        }
        assert!(!is_safe(&Attributes::default()));
    }
}
