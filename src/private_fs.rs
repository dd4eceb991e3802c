//! Files that nobody but their owner may read: 0600 from the first byte, replaced whole or not at all.
//!
//! Reads refuse what an attacker or an accident could put in the way: symlinks, fifos, devices, files of
//! another user, files that others may read or change, files that are larger than their kind can be.

use std::{
    ffi::{OsStr, OsString},
    fs::{DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, FlockOperation, Mode, OFlags},
    io::Errno,
};
use zeroize::Zeroizing;

/// The largest cache file we read, in bytes. An SSO token file is about 4 KB.
pub(crate) const LARGEST: u64 = 1 << 20;

/// What went wrong with one file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not {verb} `{}`", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` is {found}, not a regular file", path.display())]
    NotAFile { path: PathBuf, found: &'static str },
    #[error("`{}` belongs to uid {uid}, not to you", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    #[error("`{}` can be {} by others (mode {mode:04o})", path.display(), sharing.danger())]
    Exposed { path: PathBuf, mode: u32, sharing: Sharing },
    #[error("`{}` is larger than {} KiB", path.display(), largest / 1024)]
    TooLarge { path: PathBuf, largest: u64 },
    #[error("`{}` is locked by another process", path.display())]
    Busy { path: PathBuf },
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, sharing, .. } => {
                let bits = if *sharing == Sharing::Nobody { "go=" } else { "go-w" };
                Some(format!("run `chmod {bits} '{}'`", path.display()))
            }
            Self::NotAFile { .. } => Some("move it away, and put a regular file there".to_owned()),
            Self::TooLarge { .. } => Some("look what else was written into it".to_owned()),
            Self::Foreign { path, .. } => {
                Some(format!("run `sudo chown \"$(id -un)\" '{}'`", path.display()))
            }
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(format!("it must be yours: look with `ls -ld '{}'`", path.display()))
            }
            Self::Io { .. } => None,
            Self::Busy { .. } => Some("try again when the other process is done".to_owned()),
        }
    }
}

/// Who may see a file besides its owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sharing {
    /// Nobody: tokens and keys.
    Nobody,
    /// Others may read it but not change it: configuration, known hosts.
    ReadOnly,
}

impl Sharing {
    /// Returns what others must not do.
    fn danger(self) -> &'static str {
        match self {
            Self::Nobody => "read or changed",
            Self::ReadOnly => "changed",
        }
    }
}

/// Reads a file that holds secrets; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    read_up_to(path, LARGEST)
}

/// Reads a file as [`read`] does, of a kind that grows larger than [`LARGEST`].
pub(crate) fn read_up_to(path: &Path, largest: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    read_as(path, Sharing::Nobody, OFlags::NOFOLLOW, largest)
}

/// Reads a private key of the user, following symlinks as its owner meant; `None` when there is no such file.
pub(crate) fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    read_as(path, Sharing::Nobody, OFlags::empty(), LARGEST)
}

/// Reads a configuration file, following symlinks as its owner meant; `None` when there is no such file.
pub(crate) fn read_config(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    read_config_up_to(path, LARGEST)
}

/// Reads a configuration file of a kind that grows larger than [`LARGEST`].
pub(crate) fn read_config_up_to(path: &Path, largest: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    read_as(path, Sharing::ReadOnly, OFlags::empty(), largest)
}

fn read_as(
    path: &Path,
    sharing: Sharing,
    follow: OFlags,
    largest: u64,
) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let io = |source: io::Error| Error::Io { verb: "read", path: path.to_owned(), source };
    // Non-blocking, or opening a fifo would wait for a writer that may never come.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | follow;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::LOOP) => return Err(Error::NotAFile { path: path.to_owned(), found: "a symbolic link" }),
        Err(errno) => return Err(io(errno.into())),
    };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a directory" } else { "a device, socket or pipe" };
        return Err(Error::NotAFile { path: path.to_owned(), found });
    }
    let owner = metadata.uid();
    if owner != rustix::process::geteuid().as_raw() && !(sharing == Sharing::ReadOnly && owner == 0) {
        return Err(Error::Foreign { path: path.to_owned(), uid: owner });
    }
    let forbidden = match sharing {
        Sharing::Nobody => 0o077,
        Sharing::ReadOnly => 0o022,
    };
    if metadata.mode() & forbidden != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode: metadata.mode() & 0o7777, sharing });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(largest + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > largest {
        return Err(Error::TooLarge { path: path.to_owned(), largest });
    }
    Ok(Some(bytes))
}

/// Replaces `path` by `bytes`, mode 0600: the old content or the new one, never a part of either.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let io = |source: io::Error| Error::Io { verb: "write", path: path.to_owned(), source };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io(io::ErrorKind::InvalidInput.into()));
    };
    create_directory(directory)?;
    remove_abandoned(directory, name);
    let (temporary, mut file) = create_temporary(directory, name).map_err(io)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        // The rename itself must survive a power cut, or an old refresh token comes back from the dead.
        .and_then(|()| File::open(directory)?.sync_all());
    if let Err(source) = written {
        // Best effort: the first error is the one to tell.
        drop(std::fs::remove_file(&temporary));
        return Err(io(source));
    }
    Ok(())
}

/// Creates the file that is to replace `name`, locked as long as it is written: what is there without a lock was left by
/// a process that was killed.
fn create_temporary(directory: &Path, name: &OsStr) -> io::Result<(PathBuf, File)> {
    for _ in 0..TEMPORARY_TRIES {
        let mut suffix = [0u8; 8];
        crate::random::fill(&mut suffix).map_err(io::Error::other)?;
        let mut temporary = beginning(name);
        temporary.push(format!("{:016x}{END}", u64::from_ne_bytes(suffix)));
        let temporary = directory.join(temporary);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR)?);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Somebody who tidies up was quicker than we.
            Err(Errno::WOULDBLOCK) => {}
            Ok(()) if file.metadata()?.nlink() == 0 => {}
            // A file system without locks is one on which nobody tidies up.
            _ => return Ok((temporary, file)),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Removes what processes that were killed in the middle of a write left for `name`: it may hold a token.
fn remove_abandoned(directory: &Path, name: &OsStr) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let beginning = beginning(name);
    for entry in entries.flatten() {
        let found = entry.file_name();
        let (found, beginning) = (found.as_encoded_bytes(), beginning.as_encoded_bytes());
        let middle = found.strip_prefix(beginning).and_then(|rest| rest.strip_suffix(END.as_bytes()));
        if !middle.is_some_and(|middle| middle.len() == 16 && middle.iter().all(u8::is_ascii_hexdigit)) {
            continue;
        }
        let path = entry.path();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let Ok(file) = rustix::fs::open(&path, flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Best effort: it is in nobody's way.
            drop(std::fs::remove_file(path));
        }
    }
}

fn beginning(name: &OsStr) -> OsString {
    let mut beginning = OsString::from(".");
    beginning.push(name);
    beginning.push(".");
    beginning
}

/// How the name of a file ends that is being written.
const END: &str = ".tmp";

/// Each of them is lost only to another process that looks at the very moment.
const TEMPORARY_TRIES: usize = 8;

/// Creates `path` and its missing parents, 0700.
pub(crate) fn create_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| Error::Io {
        verb: "create",
        path: path.to_owned(),
        source,
    })
}

/// Opens a 0600 file for appending whole lines, creating it and its directory.
pub(crate) fn append(path: &Path) -> Result<File, Error> {
    if let Some(directory) = path.parent() {
        create_directory(directory)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|e| Error::Io { verb: "open", path: path.to_owned(), source: e.into() })
}

/// Adds `text` at the end of a file that a person keeps, which stays what it is otherwise: its bytes, mode, owner, and
/// whether it is reached through a symlink. `before` is what was read of it; where that has changed, nothing is done.
pub(crate) fn extend(path: &Path, before: &[u8], text: &str) -> Result<(), Error> {
    let io = |source: io::Error| Error::Io { verb: "write", path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        create_directory(directory)?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| io(e.into()))?;
    let mut file = File::from(fd);
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| Error::Busy { path: path.to_owned() })?;
    let now = read_config(path)?.unwrap_or_default();
    if now.as_slice() != before {
        return Err(Error::Busy { path: path.to_owned() });
    }
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Half a section would be worse than none. Best effort: the first error is the one to tell.
        drop(file.set_len(before.len() as u64));
        return Err(io(source));
    }
    Ok(())
}

/// Removes `path`; that there is none is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::Io { verb: "remove", path: path.to_owned(), source: e.into() }),
    }
}

/// An advisory lock on a file, held until dropped. The kernel releases it when its holder dies.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Writes `bytes` at `offset` of the file. Only of use with [`create_locked`], as the file is appended to otherwise.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was just forked has the same open file until it runs its program.
        // Whoever cannot let go of it here lets go by closing it.
        rustix::fs::flock(&self.file, FlockOperation::Unlock).unwrap_or_default();
    }
}

/// Takes the lock file `path`, waiting for at most `patience`. Blocks: call it off the runtime's thread.
pub(crate) fn lock(path: &Path, patience: Duration) -> Result<Lock, Error> {
    let file = append(path)?;
    let until = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock { file }),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.to_owned() }),
            Err(e) => return Err(Error::Io { verb: "lock", path: path.to_owned(), source: e.into() }),
        }
    }
}

/// Creates the 0600 file `path`, which must not exist yet, and locks it.
pub(crate) fn create_locked(path: &Path) -> Result<Lock, Error> {
    let io = |e: Errno| Error::Io { verb: "create", path: path.to_owned(), source: e.into() };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(io)?);
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io)?;
    Ok(Lock { file })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/token.json");
        assert!(read(&path).unwrap().is_none());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_slice(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn what_a_killed_writer_left_goes_with_the_next_write_and_nothing_else_does() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token.json");
        let abandoned = home.path().join(".token.json.0123456789abcdef.tmp");
        let others =
            [".token.json.0123456789abcdef.tmp2", ".token.json.mine.tmp", ".other.json.0123456789abcdef.tmp"];
        for name in others {
            File::create(home.path().join(name)).unwrap();
        }
        let busy = File::create(&abandoned).unwrap();
        rustix::fs::flock(&busy, FlockOperation::LockExclusive).unwrap();
        write(&path, b"one").unwrap();
        assert!(abandoned.exists(), "somebody writes it");
        drop(busy);
        write(&path, b"two").unwrap();
        assert!(!abandoned.exists());
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), others.len() + 1);
    }

    #[test]
    fn writers_do_not_tidy_each_other_up() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token.json");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..100).for_each(|_| write(&path, &[b'x'; 4096]).unwrap()));
            }
        });
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_others_could_have_put_there_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        write(&path, b"x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path), Err(Error::Exposed { mode: 0o640, .. })));
        assert!(read_config(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(matches!(read_config(&path), Err(Error::Exposed { .. })));

        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(Error::NotAFile { .. })));
        assert!(matches!(read(home.path()), Err(Error::NotAFile { found: "a directory", .. })));

        let fifo = home.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(read(&fifo), Err(Error::NotAFile { .. })));

        let huge = home.path().join("huge");
        write(&huge, &vec![0; LARGEST as usize + 1]).unwrap();
        assert!(matches!(read(&huge), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lock");
        let held = lock(&path, Duration::ZERO).unwrap();
        assert!(matches!(lock(&path, Duration::from_millis(30)), Err(Error::Busy { .. })));
        drop(held);
        lock(&path, Duration::ZERO).unwrap();
    }
}
