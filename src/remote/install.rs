//! Our one directory on the host: what is written there, and that it goes away.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{
    helper::{self, Helper},
    sftp::{self, Sftp},
};

/// The longest name of a file; file systems take 255 bytes, and a temporary suffix must fit too.
const LONGEST_NAME: usize = 200;

/// What is kept of a path; a unix socket beside our files takes 108 bytes at most, config readers far more.
const LONGEST_PATH: usize = 1024;

/// The name of our directory below `broker-UID`: the port, or whatever else tells two tunnels apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Key(String);

/// The name of a file in our directory, which needs no quoting in any shell or config file.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FileName(String);

/// One file to be put on the host, mode 0600, whole or not at all.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) name: FileName,
    pub(crate) content: Content,
}

/// What a file holds.
pub(crate) enum Content {
    /// Whole lines. Wiped here when dropped, because with `--token env` a script holds the token.
    Text(Zeroizing<String>),
    /// One line that is written without its newline, as SDKs send every byte of a token file.
    Secret(SecretString),
}

/// Which kind of place the host had for us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// `$XDG_RUNTIME_DIR` or `/run/user/UID`.
    Runtime,
    /// `/dev/shm`.
    SharedMemory,
    /// `/tmp`, which may lie on a disk.
    Temporary,
    /// A directory with a random name, because another user holds our usual one.
    Random,
    /// `~/.cache`, because nothing else could be written; it may be shared between hosts.
    Home,
}

/// Whether our directory is to be there when we are not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stay {
    /// It goes when we do.
    Goes,
    /// It may stay for a while, also when the user's last session on the host has ended.
    Outlives,
}

/// What does our work on the host.
#[derive(Clone, Debug)]
pub(crate) enum Hands {
    /// A helper that runs there.
    Helper(Helper),
    /// An SFTP server, where no command runs.
    Sftp(Sftp),
}

/// Why nothing could be put on the host, or removed from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Helper(#[from] helper::Error),
    #[error(transparent)]
    Sftp(#[from] sftp::Error),
}

/// Our directory on the host, mode 0700 and empty at first.
#[derive(Debug)]
pub(crate) struct Directory {
    hands: Hands,
    place: Place,
    path: String,
    below_home: Option<String>,
}

/// What lies on the host. Dropped without [`Self::remove`] it goes with the connection, if a [`Helper`] put it there.
#[derive(Debug)]
pub(crate) struct Installed {
    directory: Directory,
    /// When the last of the credentials that lie there ends.
    ends: Mutex<Option<SystemTime>>,
}

impl Key {
    /// Returns the key of the tunnel that holds `port`.
    pub(crate) fn port(port: u16) -> Self {
        Self(port.to_string())
    }

    /// Returns a key of letters, digits, `_` and `-`; `None` for anything else.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        valid.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FileName {
    /// Returns a name of letters, digits and `._=-` that does not begin with a dot; `None` for anything else.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let valid = (1..=LONGEST_NAME).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=-".contains(&b));
        valid.then(|| Self(text.to_owned()))
    }

    /// Returns the name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Content {
    /// Returns text as whole lines, adding the last newline.
    pub(crate) fn text(text: String) -> Self {
        let mut text = Zeroizing::new(text);
        if !text.is_empty() && !text.ends_with('\n') {
            // The copy that growing may leave behind holds a secret only with `--token env`.
            text.push('\n');
        }
        Self::Text(text)
    }

    /// Returns its length in bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Secret(secret) => secret.expose_secret().len(),
        }
    }

    /// Whether the helper can read it unchanged; a line that is `terminator` would end the text.
    pub(super) fn is_fit(&self, terminator: &str) -> bool {
        match self {
            Self::Text(text) => {
                !text.contains('\0')
                    && (text.is_empty() || text.ends_with('\n'))
                    && !text.split('\n').any(|line| line == terminator)
            }
            Self::Secret(secret) => !secret.expose_secret().contains(['\0', '\n']),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "Text(<redacted>)",
            Self::Secret(_) => "Secret(<redacted>)",
        })
    }
}

impl Place {
    /// Reads `KIND PATH`; `None` for a path that the helper would not have chosen.
    pub(super) fn parse(text: &str) -> Option<(Self, String)> {
        let (kind, path) = text.split_once(' ')?;
        let place = match kind {
            "runtime" | "run" => Self::Runtime,
            "shm" => Self::SharedMemory,
            "tmp" => Self::Temporary,
            "made" => Self::Random,
            "home" => Self::Home,
            _ => return None,
        };
        Self::is_plain(path).then(|| (place, path.to_owned()))
    }

    /// Whether a path is absolute, of bearable length, and needs no quoting anywhere.
    pub(super) fn is_plain(path: &str) -> bool {
        path.starts_with('/')
            && path.len() <= LONGEST_PATH
            && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._=-".contains(&b))
            && !path.split('/').any(|part| part == "..")
    }
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Helper(error) => error.hint(),
            Self::Sftp(error) => error.hint(),
        }
    }
}

impl Hands {
    /// Makes our directory on the host, empty, or returns it again. There is one: another key removes the first.
    pub(crate) async fn directory(&self, key: Key, stay: Stay) -> Result<Directory, Error> {
        match self {
            Self::Helper(helper) => Ok(helper.directory(key, stay).await?),
            Self::Sftp(sftp) => {
                let sftp::Spot { place, path, below_home } = sftp.directory(&key).await?;
                Ok(Directory { hands: self.clone(), place, path, below_home })
            }
        }
    }

    async fn install(&self, files: Vec<File>) -> Result<(), Error> {
        match self {
            Self::Helper(helper) => helper.install(files).await?,
            Self::Sftp(sftp) => {
                for file in files {
                    sftp.write(file).await?;
                }
            }
        }
        Ok(())
    }

    async fn write(&self, file: File) -> Result<(), Error> {
        match self {
            Self::Helper(helper) => Ok(helper.write(file).await?),
            Self::Sftp(sftp) => Ok(sftp.write(file).await?),
        }
    }

    /// Removes our directory and everything in it; that there is none is fine.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        match self {
            Self::Helper(helper) => Ok(helper.remove().await?),
            Self::Sftp(sftp) => Ok(sftp.remove().await?),
        }
    }

    /// Removes our directory, but for what [`Installed::linger`] has stay there; returns for how long that does.
    pub(crate) async fn part(&self) -> Result<Option<Duration>, Error> {
        match self {
            Self::Helper(helper) => Ok(helper.part().await?),
            // Nothing there could remove it later.
            Self::Sftp(sftp) => Ok(sftp.remove().await.map(|()| None)?),
        }
    }

    /// Ends what runs on the host for us. Returns when it is done or cannot be done any more.
    pub(crate) async fn bye(self) {
        match self {
            Self::Helper(helper) => helper.bye().await,
            // Nothing of ours runs there; its session ends with its channel.
            Self::Sftp(_) => {}
        }
    }
}

impl Directory {
    pub(super) fn new(helper: Helper, place: Place, path: String) -> Self {
        Self { hands: Hands::Helper(helper), place, path, below_home: None }
    }

    /// Returns the path below the home directory where [`Self::path`] is only what an SFTP server calls it, because
    /// it shows a part of the machine.
    pub(crate) fn below_home(&self) -> Option<&str> {
        self.below_home.as_deref()
    }

    /// Returns the absolute path, which needs no quoting anywhere.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns which kind of place it is in.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Writes the files, whose directory nobody knows yet. If one fails, all are removed again.
    pub(crate) async fn install(self, files: Vec<File>) -> Result<Installed, Error> {
        let installed = Installed { directory: self, ends: Mutex::default() };
        if let Err(error) = installed.directory.hands.install(files).await {
            // The first error is the one to tell; the dead-man switch is behind us.
            drop(installed.remove().await);
            return Err(error);
        }
        Ok(installed)
    }
}

impl Installed {
    /// Returns the directory's absolute path.
    pub(crate) fn path(&self) -> &str {
        self.directory.path()
    }

    /// Adds or replaces a file.
    pub(crate) async fn write(&self, file: File) -> Result<(), Error> {
        self.directory.hands.write(file).await
    }

    /// Has these files stay when we end, each for as long as it is good for and none longer than `most`; what else leads
    /// to credentials goes then. Replaces what was said before.
    pub(crate) async fn linger(&self, most: Duration, files: &[(FileName, Duration)]) -> Result<(), Error> {
        match &self.directory.hands {
            Hands::Helper(helper) => Ok(helper.linger(most, files).await?),
            // Nothing there could remove them later.
            Hands::Sftp(_) => Ok(()),
        }
    }

    /// Notes that credentials with this end may lie there from now on.
    pub(crate) fn holds_until(&self, end: SystemTime) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        *ends = (*ends).max(Some(end));
    }

    /// Returns when everything that lies there is worth nothing any more; `None` when nothing ever was.
    pub(crate) fn ends(&self) -> Option<SystemTime> {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the directory and everything in it.
    pub(crate) async fn remove(self) -> Result<(), Error> {
        self.directory.hands.remove().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory_or_need_quoting() {
        for bad in ["", ".", "..", "a/b", "a b", ".owner", "a'b", "-x", "é", "a\n", &"x".repeat(201)] {
            assert_eq!(FileName::new(bad), None, "{bad:?}");
        }
        for bad in ["", "..", "a/b", "a b", "a.b"] {
            assert_eq!(Key::new(bad), None, "{bad:?}");
        }
        assert!(FileName::new("token-a=20b").is_some() && Key::new("unix-1").is_some());
    }

    #[test]
    fn a_path_that_the_helper_would_not_choose_is_refused() {
        for bad in ["tmp", "tmp ", "tmp x", "tmp /a/../b", "tmp /a b", "tmp /a'b", "etc /a", "tmp /a\u{1b}"] {
            assert_eq!(Place::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Place::parse("run /run/user/1/x"), Some((Place::Runtime, "/run/user/1/x".into())));
    }

    #[test]
    fn content_that_could_end_its_own_transfer_is_unfit() {
        let nonce = "0123456789abcdef0123456789abcdef";
        assert!(!Content::text(format!("a\n{nonce}\nremove\n")).is_fit(nonce));
        assert!(!Content::Secret("a\nb".to_owned().into()).is_fit(nonce));
        assert!(!Content::text("a\0b".to_owned()).is_fit(nonce));
        assert!(Content::text(format!("a\n {nonce}\nb")).is_fit(nonce));
        assert!(Content::text(String::new()).is_fit(nonce));
    }

    #[test]
    fn debug_shows_no_secret() {
        let name = FileName::new("token-x").unwrap();
        for content in [Content::Secret("canary".to_owned().into()), Content::text("canary".into())] {
            let file = File { name: name.clone(), content };
            assert!(!format!("{file:?}").contains("canary"));
        }
    }
}
