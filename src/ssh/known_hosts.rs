//! known_hosts: text and a host key → a [`Verdict`], and the one line that a new host adds.
//!
//! Owns the format and its matching, as sshd(8) describes them, and the file that is appended to. Whether a new
//! key is taken is not decided here: `ssh::session` does, with `StrictHostKeyChecking` and the person. A revoked
//! or changed key leaves nothing to decide.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::{hmac, rand};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, ssh_key::public::KeyData};

use super::{
    config::pattern::{self, ListMatch},
    target::{KnownHostsFiles, Target},
};
use crate::{printable::one_line, private_fs};

/// The largest known_hosts file that we read, in bytes: a site-wide file of 30 000 hosts with three keys each.
const LARGEST: u64 = 32 << 20;

/// How long another process may hold the lock while it appends one line.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The length of a hashed name's salt and of its hash: SHA-1's.
const HASH_LENGTH: usize = 20;

/// The port that known_hosts does not write.
const DEFAULT_PORT: u16 = 22;

/// What known_hosts says of the key that a host shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is this host's key.
    Known,
    /// No key of this type is on file for this host.
    New {
        /// Keys of other types that are: algorithm, file and line. Where there are any, a host that has been seen
        /// shows another key than it did: OpenSSH calls that changed (measured with 9.2), so never take it unasked.
        other_types: Vec<(String, PathBuf, usize)>,
        /// Where this very key is on file under other names, for the person who is asked: `FILE:LINE: NAMES`.
        same_key_as: Vec<String>,
    },
    /// Another key of this type is on file for this host.
    Changed { path: PathBuf, line: usize },
    /// The key is marked `@revoked`, whatever else is on file.
    Revoked { path: PathBuf, line: usize },
}

/// What known_hosts says of whoever signed a host's certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Authority {
    /// It may speak for this host.
    Known { path: PathBuf, line: usize },
    /// It is not on file for this host.
    Unknown,
    /// It, or the host's own key, is marked `@revoked`.
    Revoked { path: PathBuf, line: usize },
}

/// A host's name as known_hosts has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HostName {
    /// Lower case; `[name]:port` for a port other than 22.
    name: String,
    /// The name without its port, which is asked for where nothing is on file with it.
    bare: Option<String>,
    /// Whether it may be written into a file.
    recordable: bool,
}

impl HostName {
    /// Returns the name of a host on a port.
    pub(crate) fn new(host: &str, port: u16) -> Self {
        let host = host.to_ascii_lowercase();
        let recordable = is_recordable(&host) && !host.contains(['[', ']']);
        if port == DEFAULT_PORT {
            Self { name: host, bare: None, recordable }
        } else {
            Self { name: format!("[{host}]:{port}"), bare: Some(host), recordable }
        }
    }

    /// Returns the name of a `HostKeyAlias`, which stands for the host on every port.
    pub(crate) fn alias(alias: &str) -> Self {
        let name = alias.to_ascii_lowercase();
        Self { recordable: is_recordable(&name), name, bare: None }
    }

    /// Returns the host without its port: the name that a certificate is for.
    pub(crate) fn without_port(&self) -> &str {
        self.bare.as_deref().unwrap_or(&self.name)
    }

    /// Returns the name under which a target's key is on file.
    pub(crate) fn of(target: &Target) -> Self {
        match &target.host_key_alias {
            Some(alias) => Self::alias(alias),
            None => Self::new(&target.hostname, target.port),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Whether a name, written down, would mean that name and nothing else.
fn is_recordable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('!')
        && !name.contains(['@', '?', '*', '#', '|', '\'', '"', '\\', ','])
        && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Why known_hosts could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not use the known_hosts file `{}`", path.display())]
    File { path: PathBuf, source: private_fs::Error },
    #[error("could not write the known_hosts file `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the name `{}` cannot stand in a known_hosts file", name.escape_debug())]
    NotRecordable { name: String },
    #[error("the host key could not be encoded")]
    Key(#[source] russh::keys::ssh_key::Error),
    #[error("there were no random bytes for the hash of the host's name")]
    Random,
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source: private_fs::Error::Exposed { .. } } => Some(format!(
                "others could plant a host key there; look through it, then run `chmod go-w '{}'`",
                path.display()
            )),
            Self::File { source: private_fs::Error::Foreign { .. }, .. } => {
                Some("name a file of your own with `-o UserKnownHostsFile=FILE`".to_owned())
            }
            Self::File { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// A line that was left out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct BadLine {
    pub(crate) path: PathBuf,
    pub(crate) line: usize,
    pub(crate) why: &'static str,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.why)
    }
}

/// Everything that the known_hosts files say.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownHosts {
    entries: Vec<Entry>,
    bad_lines: Vec<BadLine>,
}

#[derive(Clone, Debug)]
struct Entry {
    marker: Marker,
    names: Names,
    key: PublicKey,
    path: Arc<Path>,
    line: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Marker {
    /// A host's key.
    None,
    /// `@cert-authority`: a key that signs hosts' certificates, and no host's own.
    CertAuthority,
    /// `@revoked`
    Revoked,
}

#[derive(Clone, Debug)]
enum Names {
    Patterns(String),
    Hashed { salt: [u8; HASH_LENGTH], hash: [u8; HASH_LENGTH] },
}

impl Names {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(hashed) = text.strip_prefix('|') else {
            return Ok(Self::Patterns(text.to_owned()));
        };
        let parts = hashed.strip_prefix("1|").and_then(|rest| rest.split_once('|'));
        let decoded = parts.and_then(|(salt, hash)| {
            let decode = |text: &str| <[u8; HASH_LENGTH]>::try_from(BASE64.decode(text).ok()?).ok();
            Some(Self::Hashed { salt: decode(salt)?, hash: decode(hash)? })
        });
        decoded.ok_or("the hashed name is damaged")
    }

    /// Returns whether they mean `name`, which is in lower case.
    fn mean(&self, name: &str) -> bool {
        match self {
            Self::Patterns(patterns) => pattern::host_list(name, patterns) == ListMatch::Yes,
            Self::Hashed { salt, hash } => {
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
                hmac::verify(&key, name.as_bytes(), hash).is_ok()
            }
        }
    }
}

impl KnownHosts {
    /// Reads the user's files, then the system's. A file that does not exist is empty; one that cannot be read, or
    /// that others can write, is an error: taken for empty, it would make every changed key look like a new one.
    pub(crate) fn load(files: &KnownHostsFiles) -> Result<Self, Error> {
        let mut all = Self::default();
        for path in files.user.iter().chain(&files.global).filter(|path| !is_null_device(path)) {
            let bytes = private_fs::read_config_up_to(path, LARGEST)
                .map_err(|source| Error::File { path: path.clone(), source })?;
            let Some(bytes) = bytes else { continue };
            // Comments may be Latin-1; a name that is not ASCII is a name that nothing is asked for.
            let read = Self::parse(&String::from_utf8_lossy(&bytes), path);
            all.entries.extend(read.entries);
            all.bad_lines.extend(read.bad_lines);
        }
        Ok(all)
    }

    /// Reads the text of one file. A line that makes no sense is left out, as OpenSSH leaves it out.
    pub(crate) fn parse(text: &str, path: &Path) -> Self {
        let mut read = Self::default();
        let shared: Arc<Path> = Arc::from(path);
        for (index, text) in text.split('\n').enumerate() {
            let line = index + 1;
            let text = text.trim_matches([' ', '\t', '\r']);
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            match parse_line(text) {
                Ok((marker, names, key)) => {
                    read.entries.push(Entry { marker, names, key, path: Arc::clone(&shared), line });
                }
                Err(why) => read.bad_lines.push(BadLine { path: path.to_owned(), line, why }),
            }
        }
        read
    }

    /// Returns the same and what `KnownHostsCommand` printed for a host, which is not asked for its name without the
    /// port, and not for others.
    pub(super) fn with_printed(&self, text: &str, place: &Path, name: &HostName) -> Self {
        let mut all = self.clone();
        let printed = Self::parse(text, place);
        all.entries.extend(printed.entries.into_iter().filter(|entry| entry.names.mean(&name.name)));
        all.bad_lines.extend(printed.bad_lines);
        all
    }

    /// Returns the lines that were left out.
    pub(crate) fn bad_lines(&self) -> &[BadLine] {
        &self.bad_lines
    }

    /// Returns what is known of `key` as the key of `name`.
    pub(crate) fn verdict(&self, name: &HostName, key: &PublicKey) -> Verdict {
        let key = key.key_data();
        let is_key = |entry: &&Entry| entry.key.key_data() == key;
        if let Some(revoked) = self.under_either_name(name, Marker::Revoked, key) {
            return Verdict::Revoked { path: revoked.path.to_path_buf(), line: revoked.line };
        }
        let on_file: Vec<_> = self.entries_of(&name.name, Marker::None).collect();
        if on_file.iter().any(is_key) {
            return Verdict::Known;
        }
        if let Some(other) = on_file.iter().find(|entry| entry.key.algorithm() == key.algorithm()) {
            return Verdict::Changed { path: other.path.to_path_buf(), line: other.line };
        }
        // Written down before the port was, or by something that does not know of ports: good enough to trust a
        // key that matches, and no reason to refuse one that does not, as it may be another server's.
        if on_file.is_empty()
            && let Some(bare) = &name.bare
            && self.entries_of(bare, Marker::None).any(|entry| is_key(&entry))
        {
            return Verdict::Known;
        }
        Verdict::New {
            other_types: on_file
                .iter()
                .map(|entry| (entry.key.algorithm().to_string(), entry.path.to_path_buf(), entry.line))
                .collect(),
            same_key_as: self
                .entries
                .iter()
                .filter(|entry| entry.marker == Marker::None && is_key(entry))
                .map(Entry::describe)
                .collect(),
        }
    }

    /// Returns the algorithms of the keys that are on file for `name`, to be asked for first: else the server
    /// would show a key of a type that we do not have, and a known host would look like a new one.
    pub(crate) fn known_algorithms(&self, name: &HostName) -> Vec<Algorithm> {
        let of = |name: &str| {
            let mut algorithms = Vec::new();
            for entry in self.entries_of(name, Marker::None) {
                let signing = match entry.key.algorithm() {
                    // One key, three ways to sign with it; the last is SHA-1 and the caller's to refuse.
                    Algorithm::Rsa { .. } => [Some(HashAlg::Sha512), Some(HashAlg::Sha256), None]
                        .map(|hash| Algorithm::Rsa { hash })
                        .to_vec(),
                    other => vec![other],
                };
                algorithms.extend(signing);
            }
            algorithms
        };
        let mut algorithms = of(&name.name);
        if algorithms.is_empty()
            && let Some(bare) = &name.bare
        {
            algorithms = of(bare);
        }
        let mut seen = Vec::with_capacity(algorithms.len());
        algorithms.retain(|algorithm| {
            let new = !seen.contains(algorithm);
            seen.push(algorithm.clone());
            new
        });
        algorithms
    }

    /// Returns what is known of the authority of `certificate` for the host `name`, and nothing of what it certifies.
    pub(crate) fn authority(&self, name: &HostName, certificate: &Certificate) -> Authority {
        let at = |entry: &Entry| (entry.path.to_path_buf(), entry.line);
        for key in [certificate.public_key(), certificate.signature_key()] {
            if let Some((path, line)) = self.under_either_name(name, Marker::Revoked, key).map(at) {
                return Authority::Revoked { path, line };
            }
        }
        match self.under_either_name(name, Marker::CertAuthority, certificate.signature_key()).map(at) {
            Some((path, line)) => Authority::Known { path, line },
            None => Authority::Unknown,
        }
    }

    /// Returns where a certificate authority is on file for `name`, whose host is then asked for a certificate.
    pub(crate) fn cert_authority(&self, name: &HostName) -> Option<(PathBuf, usize)> {
        let mut names = [Some(name.name.as_str()), name.bare.as_deref()].into_iter().flatten();
        let entry = names.find_map(|name| self.entries_of(name, Marker::CertAuthority).next())?;
        Some((entry.path.to_path_buf(), entry.line))
    }

    /// Returns whether anything is on file as revoked for `name`: a key, or an authority.
    pub(crate) fn revokes_any(&self, name: &HostName) -> bool {
        let mut names = [Some(name.name.as_str()), name.bare.as_deref()].into_iter().flatten();
        names.any(|name| self.entries_of(name, Marker::Revoked).next().is_some())
    }

    /// Returns the line with `marker` and `key`, with or without the port: a revocation must not be missed because of
    /// a port, and authorities are written down for names.
    fn under_either_name(&self, name: &HostName, marker: Marker, key: &KeyData) -> Option<&Entry> {
        let names = [Some(name.name.as_str()), name.bare.as_deref()];
        let is_key = |entry: &&Entry| entry.key.key_data() == key;
        names.into_iter().flatten().find_map(|name| self.entries_of(name, marker).find(is_key))
    }

    fn entries_of<'a, 'n>(
        &'a self,
        name: &'n str,
        marker: Marker,
    ) -> impl Iterator<Item = &'a Entry> + use<'a, 'n> {
        self.entries.iter().filter(move |entry| entry.marker == marker && entry.names.mean(name))
    }
}

impl Entry {
    fn describe(&self) -> String {
        let names = match &self.names {
            Names::Patterns(patterns) => one_line(patterns),
            Names::Hashed { .. } => "[hashed name]".to_owned(),
        };
        format!("{}:{}: {names}", self.path.display(), self.line)
    }
}

fn parse_line(text: &str) -> Result<(Marker, Names, PublicKey), &'static str> {
    let (mut first, mut rest) = field(text);
    let mut marker = Marker::None;
    if first.starts_with('@') {
        marker = match first {
            "@cert-authority" => Marker::CertAuthority,
            "@revoked" => Marker::Revoked,
            _ => return Err("the marker is unknown"),
        };
        (first, rest) = field(rest);
        if first.starts_with('@') {
            return Err("there are two markers");
        }
    }
    let names = Names::parse(first)?;
    let (algorithm, rest) = field(rest);
    let (blob, _comment) = field(rest);
    if blob.is_empty() {
        return Err("the key is missing");
    }
    let key = PublicKey::from_openssh(&format!("{algorithm} {blob}"))
        .map_err(|_| "the key is damaged or unknown")?;
    Ok((marker, names, key))
}

/// Splits the first word off.
fn field(text: &str) -> (&str, &str) {
    let end = text.find([' ', '\t']).unwrap_or(text.len());
    let (field, rest) = text.split_at(end);
    (field, rest.trim_start_matches([' ', '\t']))
}

/// `/dev/null` is how people say that they want no file; it is read as empty and written in vain.
fn is_null_device(path: &Path) -> bool {
    path == Path::new("/dev/null")
}

/// Appends the line that makes `key` known as the key of `name`. Blocks: call it off the runtime's thread.
///
/// The file and its directory are created where they are missing, for their owner only. The line is written in
/// one piece under a lock, and on a line of its own even if the file does not end with a newline.
pub(crate) fn append(file: &Path, name: &HostName, key: &PublicKey, hash: bool) -> Result<(), Error> {
    if is_null_device(file) {
        return Ok(());
    }
    let line = line(name, key, hash)?;
    // Where the file is a link into somebody's dotfiles, the line belongs there.
    let path = match std::fs::canonicalize(file) {
        Ok(path) => path,
        Err(e) if e.kind() == io::ErrorKind::NotFound => file.to_owned(),
        Err(source) => return Err(Error::Write { path: file.to_owned(), source }),
    };
    let used = |source| Error::File { path: path.clone(), source };
    let _lock = private_fs::lock(&path, LOCK_TIMEOUT).map_err(used)?;
    let mut appended = private_fs::append(&path).map_err(used)?;
    let mut write = || {
        if !appended.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let newline = if ends_with_newline(&path)? { "" } else { "\n" };
        appended.write_all(format!("{newline}{line}\n").as_bytes())?;
        appended.sync_data()
    };
    write().map_err(|source| Error::Write { path: path.clone(), source })
}

/// Returns the line without its newline.
fn line(name: &HostName, key: &PublicKey, hash: bool) -> Result<String, Error> {
    if !name.recordable {
        return Err(Error::NotRecordable { name: name.name.clone() });
    }
    // A comment is the host's text and has no business in our file.
    let key = PublicKey::new(key.key_data().clone(), "").to_openssh().map_err(Error::Key)?;
    let key = key.trim_end();
    if !hash {
        return Ok(format!("{name} {key}"));
    }
    let mut salt = [0; HASH_LENGTH];
    rand::fill(&mut salt).map_err(|_| Error::Random)?;
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt), name.name.as_bytes());
    Ok(format!("|1|{}|{} {key}", BASE64.encode(salt), BASE64.encode(tag)))
}

/// Returns whether something appended begins a line: the file ends with a newline, or is empty.
fn ends_with_newline(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests;
