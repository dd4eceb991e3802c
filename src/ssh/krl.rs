//! OpenSSH's key revocation lists, as PROTOCOL.krl describes them and `ssh-keygen -k` writes them.
//!
//! What is in a list and cannot be read makes the whole list unreadable: a revocation that we do not understand must
//! not let its key in. Signatures inside of a list are skipped, as OpenSSH skips them: the file is trusted, or it is not
//! named in a configuration.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use bytes::Buf as _;
use russh::keys::{Certificate, PublicKey};

const MAGIC: &[u8] = b"SSHKRL\n\0";
const FORMAT_VERSION: u32 = 1;

/// The longest bitmap that OpenSSH reads, in bytes.
const LARGEST_BITMAP: usize = 2048;

const DAMAGED: &str = "it ends too early or holds too much";

/// What a list revokes.
#[derive(Clone, Debug, Default)]
pub(super) struct Krl {
    certificates: Vec<Certificates>,
    /// Keys, as they go over the wire.
    keys: BTreeSet<Vec<u8>>,
    sha1: BTreeSet<Vec<u8>>,
    sha256: BTreeSet<Vec<u8>>,
}

/// Certificates of one authority, or of any.
#[derive(Clone, Debug, Default)]
struct Certificates {
    authority: Option<Vec<u8>>,
    /// First and last.
    serials: Vec<(u64, u64)>,
    /// The serial number of the lowest bit, and the bits, the highest first.
    bitmaps: Vec<(u64, Vec<u8>)>,
    key_ids: BTreeSet<Vec<u8>>,
}

/// Returns whether `bytes` are a list of this kind, readable or not.
pub(super) fn is_krl(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl Krl {
    /// Reads a whole list.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or("it is no revocation list")?;
        if number32(&mut rest)? != FORMAT_VERSION {
            return Err("its format is newer than what is known here");
        }
        let (_version, _date, _flags) = (number64(&mut rest)?, number64(&mut rest)?, number64(&mut rest)?);
        let (_reserved, _comment) = (string(&mut rest)?, string(&mut rest)?);
        let mut krl = Self::default();
        while !rest.is_empty() {
            let kind = byte(&mut rest)?;
            let section = string(&mut rest)?;
            match kind {
                1 => krl.certificates.push(Certificates::parse(section)?),
                2 => blobs(section, None, &mut krl.keys)?,
                3 => blobs(section, Some(20), &mut krl.sha1)?,
                // The section was the key that signed; this is its signature.
                4 => drop(string(&mut rest)?),
                5 => blobs(section, Some(32), &mut krl.sha256)?,
                255 => extension(section)?,
                _ => return Err("it has a section of a kind that is not known here"),
            }
        }
        Ok(krl)
    }

    /// Returns whether a host with this key, and this certificate for it, is revoked: by the key, by the certificate, or
    /// by whoever signed that.
    pub(super) fn revokes(&self, key: &PublicKey, certificate: Option<&Certificate>) -> bool {
        // What cannot be written down cannot be looked up, so it is not let in.
        let Some(blob) = super::revoked::blob(key.key_data()) else { return true };
        if self.revokes_key(&blob) {
            return true;
        }
        let Some(certificate) = certificate else { return false };
        let Some(authority) = super::revoked::blob(certificate.signature_key()) else { return true };
        self.revokes_key(&authority)
            || self
                .certificates
                .iter()
                .filter(|revoked| revoked.authority.as_ref().is_none_or(|named| *named == authority))
                .any(|revoked| revoked.contains(certificate))
    }

    fn revokes_key(&self, blob: &[u8]) -> bool {
        let hash = |algorithm| digest::digest(algorithm, blob);
        self.keys.contains(blob)
            || self.sha1.contains(hash(&digest::SHA1_FOR_LEGACY_USE_ONLY).as_ref())
            || self.sha256.contains(hash(&digest::SHA256).as_ref())
    }
}

impl Certificates {
    fn parse(mut section: &[u8]) -> Result<Self, &'static str> {
        let authority = string(&mut section)?;
        let _reserved = string(&mut section)?;
        let mut revoked = Self::default();
        if !authority.is_empty() {
            PublicKey::from_bytes(authority)
                .map_err(|_| "the key of an authority in it is damaged or unknown")?;
            revoked.authority = Some(authority.to_owned());
        }
        while !section.is_empty() {
            let kind = byte(&mut section)?;
            let mut part = string(&mut section)?;
            match kind {
                0x20 => {
                    while !part.is_empty() {
                        let serial = number64(&mut part)?;
                        revoked.range(serial, serial)?;
                    }
                }
                0x21 => {
                    let (first, last) = (number64(&mut part)?, number64(&mut part)?);
                    revoked.range(first, last)?;
                }
                0x22 => {
                    let offset = number64(&mut part)?;
                    revoked.bitmap(offset, string(&mut part)?)?;
                }
                0x23 => {
                    while !part.is_empty() {
                        revoked.key_ids.insert(string(&mut part)?.to_owned());
                    }
                }
                0x39 => {
                    extension(part)?;
                    part = &[];
                }
                _ => return Err("it revokes certificates in a way that is not known here"),
            }
            if !part.is_empty() {
                return Err(DAMAGED);
            }
        }
        Ok(revoked)
    }

    fn range(&mut self, first: u64, last: u64) -> Result<(), &'static str> {
        // 0 is the number of every certificate that got none.
        if first == 0 || first > last {
            return Err("it has a range of serial numbers that is none");
        }
        self.serials.push((first, last));
        Ok(())
    }

    fn bitmap(&mut self, offset: u64, bits: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "it has a bitmap of serial numbers that is none";
        let bits = match bits {
            // A number that is not negative may begin with one zero byte.
            [0, bits @ ..] => bits,
            [first, ..] if first & 0x80 != 0 => return Err(BAD),
            bits => bits,
        };
        let highest = u64::try_from(bits.len()).unwrap_or(u64::MAX).saturating_mul(8);
        if bits.len() > LARGEST_BITMAP || offset.checked_add(highest).is_none() {
            return Err(BAD);
        }
        if offset == 0 && bits.last().is_some_and(|lowest| lowest & 1 != 0) {
            return Err(BAD);
        }
        self.bitmaps.push((offset, bits.to_owned()));
        Ok(())
    }

    fn contains(&self, certificate: &Certificate) -> bool {
        if self.key_ids.contains(certificate.key_id().as_bytes()) {
            return true;
        }
        let serial = certificate.serial();
        if serial == 0 {
            return false;
        }
        let in_range = self.serials.iter().any(|(first, last)| (*first..=*last).contains(&serial));
        in_range || self.bitmaps.iter().any(|(offset, bits)| has_bit(bits, serial.checked_sub(*offset)))
    }
}

fn has_bit(bits: &[u8], number: Option<u64>) -> bool {
    let Some(number) = number else { return false };
    let byte = usize::try_from(number / 8).ok().and_then(|byte| bits.iter().rev().nth(byte));
    byte.is_some_and(|byte| byte >> (number % 8) & 1 == 1)
}

fn blobs(
    mut section: &[u8],
    length: Option<usize>,
    into: &mut BTreeSet<Vec<u8>>,
) -> Result<(), &'static str> {
    while !section.is_empty() {
        let blob = string(&mut section)?;
        if length.is_some_and(|length| length != blob.len()) {
            return Err("it has a hash of the wrong length");
        }
        into.insert(blob.to_owned());
    }
    Ok(())
}

/// There are none that are known.
fn extension(mut section: &[u8]) -> Result<(), &'static str> {
    let _name = string(&mut section)?;
    let critical = byte(&mut section)? != 0;
    let _contents = string(&mut section)?;
    match (critical, section.is_empty()) {
        (true, _) => Err("it wants an extension that is not known here"),
        (false, true) => Ok(()),
        (false, false) => Err(DAMAGED),
    }
}

fn byte(from: &mut &[u8]) -> Result<u8, &'static str> {
    from.try_get_u8().map_err(|_| DAMAGED)
}

fn number32(from: &mut &[u8]) -> Result<u32, &'static str> {
    from.try_get_u32().map_err(|_| DAMAGED)
}

fn number64(from: &mut &[u8]) -> Result<u64, &'static str> {
    from.try_get_u64().map_err(|_| DAMAGED)
}

fn string<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let length = usize::try_from(number32(from)?).map_err(|_| DAMAGED)?;
    let (string, rest) = from.split_at_checked(length).ok_or(DAMAGED)?;
    *from = rest;
    Ok(string)
}
