//! The files of ssh_config as lines, each read once where many hosts are resolved at a time.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Error,
    line::{self, Line},
};
use crate::private_fs;

/// What was read before.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilesRead(Arc<Mutex<Known>>);

/// By path and whether its owner and permissions mattered; `None` for a file that is not there.
type Known = HashMap<(PathBuf, bool), Option<Arc<[Line]>>>;

/// Returns the lines of a file, from what was read before if somebody remembers it.
pub(super) fn lines(
    path: &Path,
    checked: bool,
    before: Option<&FilesRead>,
) -> Result<Option<Arc<[Line]>>, Error> {
    let Some(FilesRead(before)) = before else { return fresh(path, checked) };
    let key = (path.to_owned(), checked);
    let known = before.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(lines) = known {
        return Ok(lines);
    }
    // A mistake ends everything, so it is not remembered.
    let lines = fresh(path, checked)?;
    before.lock().unwrap_or_else(PoisonError::into_inner).insert(key, lines.clone());
    Ok(lines)
}

fn fresh(path: &Path, checked: bool) -> Result<Option<Arc<[Line]>>, Error> {
    let Some(text) = read(path, checked)? else { return Ok(None) };
    Ok(Some(line::parse(&text, path)?.into()))
}

fn read(path: &Path, checked: bool) -> Result<Option<String>, Error> {
    let bytes = if checked {
        match private_fs::read_config(path) {
            Ok(Some(bytes)) => bytes.to_vec(),
            Ok(None) => return Ok(None),
            Err(source @ (private_fs::Error::Foreign { .. } | private_fs::Error::Exposed { .. })) => {
                return Err(Error::Permissions { path: path.to_owned(), source });
            }
            Err(private_fs::Error::Io { source, .. }) => {
                return Err(Error::Read { path: path.to_owned(), source });
            }
            Err(other) => {
                return Err(Error::Read { path: path.to_owned(), source: io::Error::other(other) });
            }
        }
    } else {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?.take(private_fs::LARGEST).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == private_fs::LARGEST {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        }
    };
    // What was no UTF-8 is refused by the tokeniser, unless it stands in a comment.
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_for_all_hosts_and_never_past_its_permissions() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config");
        let read = FilesRead::default();
        let words = |checked, before| {
            let lines = lines(&path, checked, before).unwrap();
            lines.map(|lines| lines.iter().map(|line| line.args.concat()).collect::<Vec<_>>())
        };
        private_fs::write(&path, b"Host a\nHost b\n").unwrap();
        assert_eq!(words(true, Some(&read)).unwrap(), ["a", "b"]);
        private_fs::write(&path, b"Host c\n").unwrap();
        assert_eq!(words(true, Some(&read)).unwrap(), ["a", "b"]);
        assert_eq!(words(true, None).unwrap(), ["c"]);
        // What was read without a look at who may change it is not what was read with one.
        let others = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&path, others).unwrap();
        let read = FilesRead::default();
        assert_eq!(words(false, Some(&read)).unwrap(), ["c"]);
        assert!(matches!(lines(&path, true, Some(&read)), Err(Error::Permissions { .. })));
    }
}
