//! The host's own `~/.aws/config` and `~/.aws/credentials`: read, and changed in one place at a time.
//!
//! A change is applied on the host to the bytes that are there, if they are those that we saw, into a copy that takes
//! the file's place in one step: nothing of the rest passes through a shell. Of the credentials only the names of
//! sections and settings leave the host.

use zeroize::Zeroizing;

use super::{
    helper::{Error as HelperError, Helper},
    profiles::{Empty, Splice, apply},
};

/// Rows in one answer, each of 2000 bytes.
const ROWS: usize = 12;
const ROW: usize = 2000;

/// More than a person or a tool writes; what is longer is left alone.
const LONGEST: usize = 1 << 20;

/// How often a change is tried anew on a file that others are changing too.
const ATTEMPTS: usize = 3;

/// Why a file of the user on the host is left as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`~/.aws/{name}` of the host cannot be read")]
    Unreadable { name: &'static str },
    #[error("`~/.aws/{name}` of the host is too long, or is no text that AWS SDKs read")]
    NoConfig { name: &'static str },
    #[error("`~/.aws/{name}` of the host cannot be written (read-only, or its disk is full)")]
    Unwritable { name: &'static str },
    #[error("`~/.aws/{name}` of the host is being changed by somebody else")]
    Busy { name: &'static str },
    #[error(transparent)]
    Helper(#[from] HelperError),
}

/// What the host said about a file.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Version {
    /// Its checksum and length.
    There { crc: u32, length: usize },
    /// There is none; whether there is `~/.aws`.
    Missing { directory: bool },
}

/// A file as we last saw it.
#[derive(Debug)]
pub(crate) struct HomeFile {
    helper: Helper,
    name: &'static str,
    version: Version,
    content: Zeroizing<Vec<u8>>,
}

impl HomeFile {
    /// Reads `~/.aws/config`.
    pub(crate) async fn config(helper: &Helper) -> Result<Self, Error> {
        Self::read(helper, "config").await
    }

    /// Reads the names of sections and settings in `~/.aws/credentials`.
    pub(crate) async fn credentials(helper: &Helper) -> Result<Self, Error> {
        Self::read(helper, "credentials").await
    }

    /// Returns what is in it; `None` if it is not there.
    pub(crate) fn content(&self) -> Option<&[u8]> {
        matches!(self.version, Version::There { .. }).then_some(&self.content)
    }

    /// Whether it, or its directory if there is no file, is there.
    pub(crate) fn directory_exists(&self) -> bool {
        self.version != Version::Missing { directory: false }
    }

    async fn read(helper: &Helper, name: &'static str) -> Result<Self, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(file) = Self::read_once(helper, name).await? {
                return Ok(file);
            }
        }
        Err(Error::Busy { name })
    }

    /// Reads it in several answers; `None` if it changed between them.
    async fn read_once(helper: &Helper, name: &'static str) -> Result<Option<Self>, Error> {
        let mut content = Zeroizing::new(Vec::new());
        let mut first: Option<Version> = None;
        for chunk in 0.. {
            let from = chunk * ROWS + 1;
            let answer = helper.run(format!("peek {name} {from} {}", from + ROWS - 1), None).await?;
            let rows: Vec<_> = answer.rows.into_iter().map(Zeroizing::new).collect();
            let verdict = answer.verdict.map_err(|_| Error::Unreadable { name })?;
            let version = Version::parse(&verdict).ok_or(Error::Unreadable { name })?;
            if first.get_or_insert_with(|| version.clone()) != &version {
                return Ok(None);
            }
            let mut full = rows.len() == ROWS;
            for row in &rows {
                let length = content.len();
                decode(row, &mut content).ok_or(HelperError::Garbled { what: "an odd file" })?;
                full &= content.len() == length + ROW;
            }
            if content.len() > LONGEST {
                return Err(Error::NoConfig { name });
            }
            if full {
                continue;
            }
            if let Version::There { crc, length } = version
                && name == "config"
                && (content.len() != length || cksum(&content) != crc)
            {
                // Changed between looking and measuring, or the host has no `od`, `fold` or `tr`.
                return Ok(None);
            }
            if content.contains(&0) {
                return Err(Error::NoConfig { name });
            }
            let file = Self { helper: helper.clone(), name, version, content };
            return Ok(Some(file));
        }
        Err(Error::NoConfig { name })
    }

    /// Applies what `change` makes of the content, which is read anew if somebody else changed it in the meantime.
    pub(crate) async fn edit(
        &mut self,
        change: impl Fn(Option<&[u8]>, bool) -> Option<Splice>,
    ) -> Result<(), Error> {
        let name = self.name;
        for _ in 0..ATTEMPTS {
            let Some(splice) = change(self.content(), self.directory_exists()) else { return Ok(()) };
            let after = Zeroizing::new(apply(&self.content, &splice));
            let (crc, length) = match self.version {
                Version::There { crc, length } => (crc.to_string(), length),
                Version::Missing { .. } => ("-".to_owned(), 0),
            };
            let goes = after.is_empty() && splice.empty != Empty::Stays;
            let answer = if goes {
                let directory = if splice.empty == Empty::GoesWithDirectory { "directory" } else { "file" };
                self.helper.run(format!("discard {name} {crc} {length} {directory}"), None).await?
            } else {
                let Splice { range, text, .. } = splice;
                let command =
                    format!("splice {name} {crc} {length} {} {} {}", range.start, range.end, text.len());
                self.helper.run(command, Some(text)).await?
            };
            match answer.verdict {
                Ok(verdict) => {
                    let version = Version::parse(&verdict);
                    let fits = match &version {
                        Some(Version::Missing { .. }) => goes,
                        written => {
                            *written == Some(Version::There { crc: cksum(&after), length: after.len() })
                        }
                    };
                    let Some(version) = version.filter(|_| fits) else {
                        return Err(HelperError::Garbled { what: "another file than we wrote" }.into());
                    };
                    self.version = version;
                    self.content = after;
                    return Ok(());
                }
                Err(why) if why == "changed" => *self = Self::read(&self.helper, name).await?,
                Err(_) => return Err(Error::Unwritable { name }),
            }
        }
        Err(Error::Busy { name })
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (crc, length) = text.trim().split_once(' ')?;
        match (crc, length) {
            ("-", "file") => Some(Self::Missing { directory: true }),
            ("-", "directory") => Some(Self::Missing { directory: false }),
            _ => Some(Self::There { crc: crc.parse().ok()?, length: length.parse().ok()? }),
        }
    }
}

/// Adds the bytes that a row of hexadecimal digits stands for.
fn decode(row: &str, content: &mut Vec<u8>) -> Option<()> {
    for pair in row.as_bytes().chunks(2) {
        let &[high, low] = pair else { return None };
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        content.push(digit(high)? << 4 | digit(low)?);
    }
    Some(())
}

/// Returns what `cksum` prints (POSIX): CRC-32 of the bytes and their number.
fn cksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: u8| {
        (0..8).fold(crc ^ u32::from(byte) << 24, |crc, _| {
            crc << 1 ^ if crc & 0x8000_0000 == 0 { 0 } else { 0x04c1_1db7 }
        })
    };
    let mut crc = bytes.iter().fold(0, |crc, byte| step(crc, *byte));
    let mut length = bytes.len();
    while length > 0 {
        crc = step(crc, u8::try_from(length & 0xff).unwrap_or_default());
        length >>= 8;
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_that_of_cksum() {
        // Printed by `cksum` of coreutils.
        assert_eq!(cksum(b""), 4_294_967_295);
        assert_eq!(cksum(b"123456789"), 930_766_865);
        assert_eq!(cksum(&[b'x'; 70_000]), 4_215_398_528);
    }

    proptest! {
        #[test]
        fn no_row_panics(row in "[0-9a-fé]{0,8}", verdict in "[-0-9a-z ]{0,20}") {
            let digits = decode(&row, &mut Vec::new()).is_some();
            prop_assert_eq!(digits, row.len() % 2 == 0 && row.is_ascii() && !row.contains(|c: char| !c.is_ascii_hexdigit()));
            Version::parse(&verdict);
        }
    }
}
