//! The token of one SSO session, and the file in `~/.aws/sso/cache` that we share with the AWS CLI and SDKs.
//!
//! Owns the file: its name, content, lock and every way in which it can be unusable. What to do about a token that
//! is running out is decided in `session`.

use std::{
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    keyring::{self, Entry},
    profile::SsoSession,
    time,
};
use crate::{names::Region, private_fs};

/// Refresh this long before expiry, as botocore does: an `aws` that reads our file then finds nothing left to do.
const REFRESH: Duration = Duration::from_secs(15 * 60);

/// Longer than one refresh takes ([`super::client::CALL_TIMEOUT`]), so that we outwait another process's.
const LOCK_TIMEOUT: Duration = Duration::from_secs(12);

/// The sign-in of a person, as good as every role that they have.
pub(crate) struct SsoToken {
    pub(super) access_token: SecretString,
    pub(super) expires_at: SystemTime,
    pub(super) refresh_token: Option<SecretString>,
    pub(super) registration: Option<Registration>,
    /// What else the file holds, ours to keep: `startUrl`, `region` and what other tools write.
    pub(super) rest: Map<String, Value>,
}

/// The client that a token was issued to; refreshing needs it.
pub(crate) struct Registration {
    pub(super) client_id: String,
    pub(super) client_secret: SecretString,
    pub(super) expires_at: SystemTime,
}

/// What a token is good for at some moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TokenState {
    Valid,
    /// Still good, and there is a way to a new one.
    RefreshSoon,
    Expired {
        refreshable: bool,
    },
}

impl SsoToken {
    /// Returns what this token is good for at `now`.
    pub(crate) fn state(&self, now: SystemTime) -> TokenState {
        let refreshable = self.refresh_token.is_some()
            && self.registration.as_ref().is_some_and(|registration| registration.expires_at > now);
        match self.expires_at.duration_since(now) {
            Ok(left) if left.is_zero() => TokenState::Expired { refreshable },
            Ok(left) if left < REFRESH && refreshable => TokenState::RefreshSoon,
            Ok(_) => TokenState::Valid,
            Err(_) => TokenState::Expired { refreshable },
        }
    }

    /// Returns when AWS stops to accept it.
    pub(crate) fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Returns the region of the Identity Center that issued it, as far as the file tells.
    pub(super) fn region(&self) -> Option<Region> {
        self.rest.get("region")?.as_str()?.parse().ok()
    }

    /// Makes the token that a login or refresh gave, with the fields that the AWS CLI writes.
    pub(super) fn issued(
        session: &SsoSession,
        access_token: SecretString,
        expires_at: SystemTime,
        refresh_token: Option<SecretString>,
        registration: Registration,
    ) -> Self {
        let mut token = Self {
            access_token,
            expires_at,
            refresh_token,
            registration: Some(registration),
            rest: Map::new(),
        };
        token.belongs_to(session.start_url.as_str(), &session.region);
        token
    }

    fn belongs_to(&mut self, start_url: &str, region: &Region) {
        self.rest.insert("startUrl".to_owned(), start_url.into());
        self.rest.insert("region".to_owned(), region.as_str().into());
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut map: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
        let access_token = take(&mut map, "accessToken")?;
        let expires_at = time::parse(map.remove("expiresAt")?.as_str()?)?;
        let refresh_token = take(&mut map, "refreshToken").map(SecretString::from);
        let registration = registration_in(&mut map, "registrationExpiresAt");
        Some(Self { access_token: access_token.into(), expires_at, refresh_token, registration, rest: map })
    }

    fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let mut map = self.rest.clone();
        map.insert("accessToken".to_owned(), self.access_token.expose_secret().into());
        map.insert("expiresAt".to_owned(), time::format(self.expires_at).into());
        if let Some(refresh_token) = &self.refresh_token {
            map.insert("refreshToken".to_owned(), refresh_token.expose_secret().into());
        }
        if let Some(registration) = &self.registration {
            map.insert("clientId".to_owned(), registration.client_id.as_str().into());
            map.insert("clientSecret".to_owned(), registration.client_secret.expose_secret().into());
            map.insert("registrationExpiresAt".to_owned(), time::format(registration.expires_at).into());
        }
        to_bytes(map)
    }
}

impl fmt::Debug for SsoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SsoToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Takes a text that could travel in a header; anything else is as good as absent.
fn take(map: &mut Map<String, Value>, key: &str) -> Option<String> {
    match map.remove(key)? {
        Value::String(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => Some(text),
        _ => None,
    }
}

/// Takes a registration whose expiry is under `expiry`; the token file and the registration file name it differently.
pub(super) fn registration_in(map: &mut Map<String, Value>, expiry: &str) -> Option<Registration> {
    let client_id = take(map, "clientId");
    let client_secret = take(map, "clientSecret").map(SecretString::from);
    let expires_at = map.remove(expiry).as_ref().and_then(Value::as_str).and_then(time::parse);
    Some(Registration { client_id: client_id?, client_secret: client_secret?, expires_at: expires_at? })
}

/// Writes JSON and wipes the strings that it was made of.
pub(super) fn to_bytes(map: Map<String, Value>) -> Zeroizing<Vec<u8>> {
    // Large enough to not grow, because growing leaves unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
    drop(serde_json::to_writer(&mut *bytes, &map));
    for (_, value) in map {
        if let Value::String(text) = value {
            drop(Zeroizing::new(text));
        }
    }
    bytes
}

/// Returns a JSON string as Python's `json.dumps` writes it: everything but ASCII as `\uXXXX`.
pub(super) fn python_json(text: &str) -> String {
    use std::fmt::Write as _;

    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            ' '..='~' => json.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(json, "\\u{unit:04x}");
                }
            }
        }
    }
    json.push('"');
    json
}

/// Returns the name of a cache file: the SHA-1 of its key, in hex.
pub(super) fn file_stem(key: &str) -> String {
    use fmt::Write as _;

    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(40), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Returns `~/.aws/sso/cache` under `home`.
pub(super) fn directory(home: &Path) -> PathBuf {
    home.join(".aws/sso/cache")
}

/// The token file of one session, or its entry in the keyring.
///
/// Which of the two it is stands in the cache beside the lock: an empty file that is written whenever the entry is. A
/// token file that is newer, because somebody logged in with the AWS CLI, counts before the entry.
#[derive(Clone, Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    lock: PathBuf,
    marker: PathBuf,
    entry: Entry,
}

/// Where the token of a login went.
pub(super) enum Stored {
    File,
    Keyring,
    /// The keyring was wanted.
    FileInstead(keyring::Error),
}

/// Tells one content of the token file from the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inode, self.seconds, self.nanoseconds)
    }
}

/// What the token file holds.
#[derive(Debug)]
pub(crate) enum Loaded {
    Found(SsoToken),
    Missing,
    /// There is a file, but it must not or cannot be used. It is as good as missing, and worth a word.
    Unusable(Error),
}

/// Why a token file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] private_fs::Error),
    #[error("`{}` does not hold a whole SSO token", path.display())]
    Garbled { path: PathBuf },
    #[error(transparent)]
    Keyring(#[from] keyring::Error),
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Keyring(error) => error.hint(),
            Self::Garbled { .. } => Some("log in again; the file is then replaced".to_owned()),
        }
    }
}

impl TokenFile {
    /// Names the file of `session` under `home`; touches nothing.
    pub(crate) fn new(home: &Path, session: &SsoSession) -> Self {
        let stem = file_stem(session.cache_key());
        let directory = directory(home);
        // `aws sso logout` goes through `*.json` only, so that our lock is never taken for a token.
        Self {
            path: directory.join(format!("{stem}.json")),
            lock: directory.join(format!("{stem}.lock")),
            marker: directory.join(format!("{stem}.keyring")),
            entry: Entry::new(&directory, session.cache_key()),
        }
    }

    /// Reads the token. Blocks for one small read, or for a call of the keyring.
    pub(crate) fn load(&self) -> Loaded {
        let (path, read) = if self.is_in_keyring() {
            (&self.marker, self.entry.read().map_err(Error::from))
        } else {
            (&self.path, private_fs::read(&self.path).map_err(Error::from))
        };
        match read {
            Ok(None) => Loaded::Missing,
            Ok(Some(bytes)) => match SsoToken::parse(&bytes) {
                Some(token) => Loaded::Found(token),
                None => Loaded::Unusable(Error::Garbled { path: path.clone() }),
            },
            Err(error) => Loaded::Unusable(error),
        }
    }

    fn is_in_keyring(&self) -> bool {
        match (written(&self.marker), written(&self.path)) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(marker), Some(file)) => marker >= file,
        }
    }

    /// Returns what changes when somebody writes the token; `None` when there is none. Cheaper than [`Self::load`].
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let metadata =
            std::fs::symlink_metadata(if self.is_in_keyring() { &self.marker } else { &self.path });
        let metadata = metadata.ok()?;
        Some(Stamp { inode: metadata.ino(), seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() })
    }

    /// Replaces the token where it is, whole or not at all. Blocks until it is on disk, or in the keyring.
    pub(crate) fn store(&self, token: &SsoToken) -> Result<(), Error> {
        if self.is_in_keyring() {
            return self.store_in_keyring(token, false);
        }
        Ok(private_fs::write(&self.path, &token.to_json())?)
    }

    /// Writes the token of a login: into the keyring if that is wanted, now or since the last logout, else into the file.
    pub(super) fn store_login(&self, token: &SsoToken, keyring: bool) -> Result<Stored, private_fs::Error> {
        let stored = if keyring || written(&self.marker).is_some() {
            match self.store_in_keyring(token, true) {
                Ok(()) => return Ok(Stored::Keyring),
                Err(Error::Keyring(error)) => Stored::FileInstead(error),
                Err(Error::File(error)) => return Err(error),
                Err(Error::Garbled { .. }) => Stored::File,
            }
        } else {
            Stored::File
        };
        private_fs::write(&self.path, &token.to_json())?;
        Ok(stored)
    }

    fn store_in_keyring(&self, token: &SsoToken, may_ask: bool) -> Result<(), Error> {
        self.entry.write(&token.to_json(), may_ask)?;
        private_fs::write(&self.marker, b"")?;
        // Nobody takes the wrong one: the marker is newer.
        Ok(private_fs::remove(&self.path)?)
    }

    /// Removes the token, wherever it is.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        private_fs::remove(&self.path)?;
        if written(&self.marker).is_some() {
            self.entry.remove()?;
        }
        Ok(private_fs::remove(&self.marker)?)
    }

    /// Takes the lock under which brokers refresh, log in and log out. Blocks while another holds it.
    pub(crate) fn lock(&self) -> Result<private_fs::Lock, private_fs::Error> {
        private_fs::lock(&self.lock, LOCK_TIMEOUT)
    }

    /// Returns where the file is, if it is in a file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns when a file was written last.
fn written(path: &Path) -> Option<(i64, i64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::aws::profile::SessionKey;

    /// A session named `corp`.
    pub(in crate::aws) fn session() -> SsoSession {
        SsoSession {
            name: SessionKey::Session("corp".into()),
            start_url: "https://corp.awsapps.com/start".parse().unwrap(),
            region: "eu-west-1".parse().unwrap(),
            scopes: Vec::new(),
        }
    }

    const NOW: u64 = 1_800_000_000;

    fn token(life: i64, refresh: bool, registration_life: i64) -> SsoToken {
        let at = |life: i64| time::from_epoch(NOW.saturating_add_signed(life));
        SsoToken::issued(
            &session(),
            "canary-access".to_owned().into(),
            at(life),
            refresh.then(|| "canary-refresh".to_owned().into()),
            Registration {
                client_id: "id".into(),
                client_secret: "canary-client".to_owned().into(),
                expires_at: at(registration_life),
            },
        )
    }

    #[test]
    fn the_state_follows_the_clock() {
        use TokenState::{Expired, RefreshSoon, Valid};
        let now = time::from_epoch(NOW);
        for (life, refresh, registration, expected) in [
            (3600, true, 9999, Valid),
            (900, true, 9999, Valid),
            (899, true, 9999, RefreshSoon),
            (1, true, 9999, RefreshSoon),
            (1, false, 9999, Valid),
            (1, true, 0, Valid),
            (0, true, 9999, Expired { refreshable: true }),
            (-5, true, 9999, Expired { refreshable: true }),
            (-5, false, 9999, Expired { refreshable: false }),
            (-5, true, -1, Expired { refreshable: false }),
        ] {
            assert_eq!(
                token(life, refresh, registration).state(now),
                expected,
                "{life} {refresh} {registration}"
            );
        }
    }

    #[test]
    fn strings_are_written_as_python_writes_them() {
        // python3 -c 'import json; print(json.dumps("é\"\\\n\x7f😀"))'
        assert_eq!(python_json("é\"\\\n\u{7f}😀"), r#""\u00e9\"\\\n\u007f\ud83d\ude00""#);
    }

    #[test]
    fn files_are_named_as_every_sdk_names_them() {
        assert_eq!(file_stem("dev"), "34c6fceca75e456f25e7e99531e2425c6c1de443");
        assert_eq!(
            file_stem("https://d-abc123.awsapps.com/start"),
            "40a89917e3175433e361b710a9d43528d7f1890a"
        );
    }

    #[test]
    fn what_is_written_is_what_the_aws_cli_writes_and_unknown_fields_stay() {
        let home = tempfile::tempdir().unwrap();
        let file = TokenFile::new(home.path(), &session());
        assert!(matches!(file.load(), Loaded::Missing));
        let mut written = token(3600, true, 9999);
        written.rest.insert("futureField".into(), serde_json::json!({"a": [1]}));
        file.store(&written).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "startUrl": "https://corp.awsapps.com/start", "region": "eu-west-1",
                "accessToken": "canary-access", "expiresAt": "2027-01-15T09:00:00Z",
                "clientId": "id", "clientSecret": "canary-client", "registrationExpiresAt": "2027-01-15T10:46:39Z",
                "refreshToken": "canary-refresh", "futureField": {"a": [1]},
            })
        );
        let Loaded::Found(read) = file.load() else { panic!("the token was not found") };
        assert_eq!(read.expires_at, written.expires_at);
        assert_eq!(read.to_json(), written.to_json());
        assert!(!format!("{read:?}").contains("canary"));
        assert!(!format!("{:?}", read.registration).contains("canary"));
        file.remove().unwrap();
        assert!(matches!(file.load(), Loaded::Missing));
    }

    #[cfg(not(feature = "keyring"))]
    #[test]
    fn a_token_in_the_keyring_is_out_of_reach_for_who_knows_no_keyring_and_a_newer_file_counts() {
        let home = tempfile::tempdir().unwrap();
        let file = TokenFile::new(home.path(), &session());
        private_fs::write(&file.marker, b"").unwrap();
        let stamp = file.stamp().unwrap();
        assert!(matches!(file.load(), Loaded::Unusable(Error::Keyring(keyring::Error::NotBuilt))));
        assert!(
            matches!(file.store(&token(3600, true, 9999)), Err(Error::Keyring(_))),
            "a refresh stays there"
        );
        assert!(!file.path().exists());
        // A login says that it goes elsewhere.
        let stored = file.store_login(&token(3600, true, 9999), false).unwrap();
        assert!(matches!(stored, Stored::FileInstead(_)));
        assert!(matches!(file.load(), Loaded::Found(_)));
        assert_ne!(file.stamp().unwrap(), stamp);
        file.store(&token(1800, true, 9999)).unwrap();
        // And an entry that is written later counts again.
        private_fs::write(&file.marker, b"").unwrap();
        assert!(matches!(file.load(), Loaded::Unusable(_)));
        assert!(matches!(file.remove(), Err(Error::Keyring(_))));
    }

    #[test]
    fn a_token_without_a_way_to_refresh_is_still_a_token() {
        let read =
            SsoToken::parse(br#"{"accessToken":"a","expiresAt":"2027-01-15T09:00:00UTC","region":"x"}"#)
                .unwrap();
        assert!(read.refresh_token.is_none() && read.registration.is_none());
        assert_eq!(read.state(time::from_epoch(NOW)), TokenState::Valid);
    }

    #[test]
    fn a_file_that_must_not_be_used_is_unusable_and_never_blocks() {
        let home = tempfile::tempdir().unwrap();
        let file = TokenFile::new(home.path(), &session());
        let good = token(3600, true, 9999).to_json();
        for garbage in [
            &b""[..],
            b"{",
            &good[..good.len() / 2],
            b"[]",
            b"null",
            b"{}",
            b"<html>captive portal</html>",
            br#"{"accessToken":1,"expiresAt":"2027-01-15T09:00:00Z"}"#,
            br#"{"accessToken":"a\nb","expiresAt":"2027-01-15T09:00:00Z"}"#,
            br#"{"accessToken":"a","expiresAt":1767254400}"#,
            br#"{"accessToken":"a","expiresAt":"soon"}"#,
            br#"{"accessToken":"a"}"#,
            b"\xff\xfe\x00",
        ] {
            private_fs::write(file.path(), garbage).unwrap();
            assert!(matches!(file.load(), Loaded::Unusable(Error::Garbled { .. })), "{garbage:?}");
        }
        file.store(&token(3600, true, 9999)).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            file.load(),
            Loaded::Unusable(Error::File(private_fs::Error::Exposed { mode: 0o644, .. }))
        ));
        file.remove().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", file.path()).unwrap();
        assert!(matches!(file.load(), Loaded::Unusable(Error::File(private_fs::Error::NotAFile { .. }))));
    }

    proptest! {
        #[test]
        fn no_content_makes_the_parser_panic(bytes: Vec<u8>, text in "\\{\"accessToken\":\"[a-z]*\",\"expiresAt\":.{0,30}\\}") {
            drop(SsoToken::parse(&bytes));
            drop(SsoToken::parse(text.as_bytes()));
        }
    }
}
