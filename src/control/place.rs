//! Where the sockets lie: one 0700 directory of this user, in the first of several places that works.
//!
//! A socket is made under a hidden name and then renamed, so that one with its real name always has a listener as long
//! as its process lives. That tells a socket of a dead process, to which nobody can connect, from every other one: only
//! such a socket is ever removed by somebody else. Names hold random digits, so nobody makes the same one twice.

use std::{
    ffi::OsString,
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use crate::random;

/// The longest path of a socket in bytes, without its final NUL (unix(7); on macOS and the BSDs it is 104 with it).
pub(super) const LONGEST_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// A hidden socket is renamed within a moment of its making; one that is older was left by a process that died there.
const HALF_MADE: Duration = Duration::from_secs(60);

/// More files than this are not ours to look at.
pub(super) const MOST_ENTRIES: usize = 4096;

const EXTENSION: &str = "sock";

/// Why a directory is no place for a socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("could not {verb} `{}`", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` is not a directory of yours alone (mode 0700)", .0.display())]
    Shared(PathBuf),
    #[error("the path `{}` is too long for a socket", .0.display())]
    TooLong(PathBuf),
    #[error(transparent)]
    NoRandomness(#[from] random::NoRandomness),
}

/// Makes the directory if it is not there, and makes sure that nobody else can look into it.
pub(super) fn prepare(directory: &Path) -> Result<(), Unfit> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| Unfit::Io { verb: "create", path: directory.to_owned(), source })?;
    if is_private(directory)? { Ok(()) } else { Err(Unfit::Shared(directory.to_owned())) }
}

/// Whether it is a directory, no link to one, that belongs to this user and that nobody else can look into.
fn is_private(directory: &Path) -> Result<bool, Unfit> {
    let metadata = match std::fs::symlink_metadata(directory) {
        Ok(metadata) => metadata,
        Err(source) => return Err(Unfit::Io { verb: "look at", path: directory.to_owned(), source }),
    };
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    Ok(metadata.is_dir() && ours && metadata.mode() & 0o077 == 0)
}

/// Returns a new name in the directory: the one to bind, and the one to rename it to.
pub(super) fn new_name(directory: &Path, pid: u32) -> Result<(PathBuf, PathBuf), Unfit> {
    let mut digits = [0; 4];
    random::fill(&mut digits)?;
    let name = format!("{pid}-{:08x}.{EXTENSION}", u32::from_ne_bytes(digits));
    let hidden = directory.join(format!(".{name}"));
    if hidden.as_os_str().as_bytes().len() > LONGEST_PATH {
        return Err(Unfit::TooLong(hidden));
    }
    Ok((hidden, directory.join(name)))
}

/// A socket that somebody may listen on.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    /// The process that made it, as the name says.
    pub(super) pid: u32,
}

/// Returns the sockets in these directories, of which none has to exist, and clears away what was never finished.
pub(super) fn candidates(directories: &[PathBuf]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for directory in directories {
        // Nobody else can have put anything into one that passes.
        if !matches!(is_private(directory), Ok(true)) {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten().take(MOST_ENTRIES) {
            let name = entry.file_name();
            let Some(pid) = pid_of(&name) else { continue };
            if !entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                continue;
            }
            if name.as_bytes().starts_with(b".") {
                clear_half_made(&entry);
                continue;
            }
            found.push(Candidate { path: entry.path(), pid });
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Returns the process that a socket's name tells of; `None` for a name that is none of ours.
fn pid_of(name: &OsString) -> Option<u32> {
    let name = name.to_str()?;
    let name = name.strip_prefix('.').unwrap_or(name);
    let (pid, digits) = name.strip_suffix(&format!(".{EXTENSION}"))?.split_once('-')?;
    let random = digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    pid.parse().ok().filter(|pid: &u32| random && *pid > 0)
}

fn clear_half_made(entry: &std::fs::DirEntry) {
    let age = entry.metadata().ok().and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
    if age.is_some_and(|age| age > HALF_MADE) {
        // Whoever is faster is welcome to it.
        drop(std::fs::remove_file(entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixListener};

    use super::*;

    #[test]
    fn only_a_directory_of_ours_alone_will_do() {
        let home = tempfile::tempdir().unwrap();
        let fine = home.path().join("a/b");
        prepare(&fine).unwrap();
        assert_eq!(std::fs::metadata(&fine).unwrap().mode() & 0o7777, 0o700);
        prepare(&fine).unwrap();
        for mode in [0o750, 0o701, 0o777] {
            std::fs::set_permissions(&fine, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(prepare(&fine), Err(Unfit::Shared(_))), "{mode:o}");
        }
        std::fs::set_permissions(&fine, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&fine, &link).unwrap();
        assert!(matches!(prepare(&link), Err(Unfit::Shared(_))), "a link may be turned elsewhere");
        let file = home.path().join("file");
        std::fs::File::create(&file).unwrap();
        assert!(prepare(&file).is_err());
        assert!(matches!(prepare(Path::new("/proc/nobody/broker")), Err(Unfit::Io { .. })));
    }

    #[test]
    fn only_sockets_with_our_names_are_candidates() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("run");
        prepare(&directory).unwrap();
        let (_, good) = new_name(&directory, 77).unwrap();
        let _listener = UnixListener::bind(&good).unwrap();
        let _other = UnixListener::bind(directory.join("77-x.sock")).unwrap();
        let _half = UnixListener::bind(directory.join(".77-00000000.sock")).unwrap();
        std::fs::File::create(directory.join("78-00000000.sock")).unwrap();
        let found = candidates(&[directory.clone(), home.path().join("missing"), directory.clone()]);
        assert_eq!(found, [Candidate { path: good, pid: 77 }]);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 4, "nothing of others was touched");
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(candidates(&[directory]), [], "others may have put it there");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_told() {
        let home = tempfile::tempdir().unwrap();
        let long = home.path().join("x".repeat(LONGEST_PATH));
        assert!(matches!(new_name(&long, 1), Err(Unfit::TooLong(_))));
        let room =
            LONGEST_PATH - home.path().as_os_str().len() - "/".len() - "/.4294967295-00000000.sock".len();
        let fits = home.path().join("x".repeat(room));
        prepare(&fits).unwrap();
        let (hidden, _) = new_name(&fits, u32::MAX).unwrap();
        UnixListener::bind(hidden).unwrap();
    }
}
