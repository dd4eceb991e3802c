//! The packets of SFTP version 3 (draft-ietf-secsh-filexfer-02), as far as we send and read them. Pure.
//!
//! What we read is bounded and never trusted: a packet that does not parse to its last byte is no packet.

use bytes::BufMut as _;
use zeroize::Zeroizing;

/// The largest packet that we take, its length included; OpenSSH's limit too.
pub(super) const LARGEST_PACKET: usize = 256 * 1024;

/// The version we speak. OpenSSH never spoke another one.
pub(super) const VERSION: u32 = 3;

/// More names than this in one answer are none that we asked for.
const MOST_NAMES: usize = 4096;

const INIT: u8 = 1;
const VERSION_REPLY: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED: u8 = 200;

const OPEN_WRITE: u32 = 0x02;
const OPEN_CREATE: u32 = 0x08;
const OPEN_EXCLUSIVE: u32 = 0x20;

const ATTR_SIZE: u32 = 0x1;
const ATTR_OWNER: u32 = 0x2;
const ATTR_PERMISSIONS: u32 = 0x4;
const ATTR_TIMES: u32 = 0x8;
const ATTR_EXTENDED: u32 = 0x8000_0000;

/// One thing that a server is asked to do. Paths are the server's own bytes, or ours.
#[derive(Debug)]
pub(super) enum Request<'a> {
    RealPath(&'a str),
    Stat(&'a str),
    LStat(&'a str),
    FStat(&'a Handle),
    /// Sets the permissions, and nothing else.
    SetMode(&'a str, u32),
    FSetMode(&'a Handle, u32),
    MakeDirectory(&'a str, u32),
    RemoveDirectory(&'a str),
    /// Creates a file for writing; it must not be there.
    Create(&'a str, u32),
    Write {
        handle: &'a Handle,
        offset: u64,
        data: &'a Data<'a>,
    },
    Close(&'a Handle),
    Remove(&'a str),
    /// Fails where the target is there.
    Rename(&'a str, &'a str),
    /// `posix-rename@openssh.com`: replaces the target.
    Replace(&'a str, &'a str),
    /// `fsync@openssh.com`.
    Sync(&'a Handle),
    OpenDirectory(&'a str),
    ReadDirectory(&'a Handle),
}

/// Bytes to write, which may be a secret.
pub(super) struct Data<'a>(pub(super) &'a [u8]);

impl std::fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What the server calls an open file or directory; at most 256 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Handle(Vec<u8>);

/// What a server answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    Status {
        code: u32,
        message: String,
    },
    Handle(Handle),
    /// Of the entries of a directory, or one path.
    Names(Vec<Vec<u8>>),
    Attributes(Attributes),
}

/// What is known of a file; servers leave out what they do not know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) uid: Option<u32>,
    /// With the type of the file, as in `st_mode`.
    pub(crate) mode: Option<u32>,
}

/// The packet is not one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

impl Attributes {
    /// Returns whether it is a directory itself, and no link to one.
    pub(crate) fn is_directory(&self) -> bool {
        self.mode.is_some_and(|mode| mode & 0o170_000 == 0o040_000)
    }

    /// Returns the permission bits, sticky and set-id bits included.
    pub(crate) fn permissions(&self) -> Option<u32> {
        self.mode.map(|mode| mode & 0o7777)
    }
}

/// Returns the first packet of every session.
pub(super) fn init() -> Vec<u8> {
    let mut packet = Vec::with_capacity(9);
    packet.put_u32(5);
    packet.put_u8(INIT);
    packet.put_u32(VERSION);
    packet
}

impl Request<'_> {
    /// Returns the whole packet, length first. In one piece, so that no copy of a secret stays behind.
    pub(super) fn packet(&self, id: u32) -> Zeroizing<Vec<u8>> {
        let mut packet = Zeroizing::new(Vec::with_capacity(64 + self.size()));
        packet.put_u32(0);
        packet.put_u8(self.kind());
        packet.put_u32(id);
        match self {
            Self::RealPath(path)
            | Self::Stat(path)
            | Self::LStat(path)
            | Self::RemoveDirectory(path)
            | Self::Remove(path)
            | Self::OpenDirectory(path) => string(&mut packet, path.as_bytes()),
            Self::FStat(handle) | Self::Close(handle) | Self::ReadDirectory(handle) => {
                string(&mut packet, &handle.0);
            }
            Self::SetMode(path, mode) | Self::MakeDirectory(path, mode) => {
                string(&mut packet, path.as_bytes());
                permissions(&mut packet, *mode);
            }
            Self::FSetMode(handle, mode) => {
                string(&mut packet, &handle.0);
                permissions(&mut packet, *mode);
            }
            Self::Create(path, mode) => {
                string(&mut packet, path.as_bytes());
                packet.put_u32(OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE);
                permissions(&mut packet, *mode);
            }
            Self::Write { handle, offset, data } => {
                string(&mut packet, &handle.0);
                packet.put_u64(*offset);
                string(&mut packet, data.0);
            }
            Self::Rename(from, to) => {
                string(&mut packet, from.as_bytes());
                string(&mut packet, to.as_bytes());
            }
            Self::Replace(from, to) => {
                string(&mut packet, POSIX_RENAME.as_bytes());
                string(&mut packet, from.as_bytes());
                string(&mut packet, to.as_bytes());
            }
            Self::Sync(handle) => {
                string(&mut packet, FSYNC.as_bytes());
                string(&mut packet, &handle.0);
            }
        }
        let length = u32::try_from(packet.len().saturating_sub(4)).unwrap_or(u32::MAX);
        for (place, byte) in packet.iter_mut().zip(length.to_be_bytes()) {
            *place = byte;
        }
        packet
    }

    fn kind(&self) -> u8 {
        match self {
            Self::RealPath(_) => REALPATH,
            Self::Stat(_) => STAT,
            Self::LStat(_) => LSTAT,
            Self::FStat(_) => FSTAT,
            Self::SetMode(..) => SETSTAT,
            Self::FSetMode(..) => FSETSTAT,
            Self::MakeDirectory(..) => MKDIR,
            Self::RemoveDirectory(_) => RMDIR,
            Self::Create(..) => OPEN,
            Self::Write { .. } => WRITE,
            Self::Close(_) => CLOSE,
            Self::Remove(_) => REMOVE,
            Self::Rename(..) => RENAME,
            Self::Replace(..) | Self::Sync(_) => EXTENDED,
            Self::OpenDirectory(_) => OPENDIR,
            Self::ReadDirectory(_) => READDIR,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::RealPath(path)
            | Self::Stat(path)
            | Self::LStat(path)
            | Self::RemoveDirectory(path)
            | Self::Remove(path)
            | Self::OpenDirectory(path)
            | Self::SetMode(path, _)
            | Self::MakeDirectory(path, _)
            | Self::Create(path, _) => path.len(),
            Self::FStat(handle)
            | Self::Close(handle)
            | Self::ReadDirectory(handle)
            | Self::FSetMode(handle, _)
            | Self::Sync(handle) => handle.0.len(),
            Self::Write { handle, data, .. } => handle.0.len() + data.0.len(),
            Self::Rename(from, to) | Self::Replace(from, to) => from.len() + to.len(),
        }
    }
}

/// Renames over what is there.
pub(super) const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// Flushes a file to the disk, where a quota may be found to be used up.
pub(super) const FSYNC: &str = "fsync@openssh.com";

fn string(packet: &mut Vec<u8>, bytes: &[u8]) {
    // What we send is far smaller than 4 GB.
    packet.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    packet.put_slice(bytes);
}

fn permissions(packet: &mut Vec<u8>, mode: u32) {
    packet.put_u32(ATTR_PERMISSIONS);
    packet.put_u32(mode);
}

/// Reads the answer to [`init`], without its length: the version, and the extensions with their versions.
pub(super) fn version(packet: &[u8]) -> Result<(u32, Vec<(String, String)>), Malformed> {
    let mut left = packet;
    if u8(&mut left)? != VERSION_REPLY {
        return Err(Malformed);
    }
    let version = u32(&mut left)?;
    let mut extensions = Vec::new();
    while !left.is_empty() && extensions.len() < MOST_NAMES {
        let name = text(bytes(&mut left)?);
        extensions.push((name, text(bytes(&mut left)?)));
    }
    Ok((version, extensions))
}

/// Reads any other answer, without its length: which request it is for, and what it says.
pub(super) fn reply(packet: &[u8]) -> Result<(u32, Reply), Malformed> {
    let mut left = packet;
    let kind = u8(&mut left)?;
    let id = u32(&mut left)?;
    let reply = match kind {
        STATUS => {
            let code = u32(&mut left)?;
            // Some servers leave out the message, some the language.
            let message = if left.is_empty() { String::new() } else { text(bytes(&mut left)?) };
            if !left.is_empty() {
                bytes(&mut left)?;
            }
            Reply::Status { code, message }
        }
        HANDLE => {
            let handle = bytes(&mut left)?;
            if handle.len() > 256 {
                return Err(Malformed);
            }
            Reply::Handle(Handle(handle.to_vec()))
        }
        NAME => {
            let count = u32(&mut left)? as usize;
            if count > MOST_NAMES {
                return Err(Malformed);
            }
            let mut names = Vec::new();
            for _ in 0..count {
                let name = bytes(&mut left)?.to_vec();
                // The line as `ls -l` would print it, which says nothing more.
                bytes(&mut left)?;
                attributes(&mut left)?;
                names.push(name);
            }
            Reply::Names(names)
        }
        ATTRS => Reply::Attributes(attributes(&mut left)?),
        _ => return Err(Malformed),
    };
    if left.is_empty() { Ok((id, reply)) } else { Err(Malformed) }
}

fn attributes(left: &mut &[u8]) -> Result<Attributes, Malformed> {
    let flags = u32(left)?;
    if flags & !(ATTR_SIZE | ATTR_OWNER | ATTR_PERMISSIONS | ATTR_TIMES | ATTR_EXTENDED) != 0 {
        return Err(Malformed);
    }
    let mut attributes = Attributes::default();
    if flags & ATTR_SIZE != 0 {
        u64(left)?;
    }
    if flags & ATTR_OWNER != 0 {
        attributes.uid = Some(u32(left)?);
        u32(left)?;
    }
    if flags & ATTR_PERMISSIONS != 0 {
        attributes.mode = Some(u32(left)?);
    }
    if flags & ATTR_TIMES != 0 {
        u64(left)?;
    }
    if flags & ATTR_EXTENDED != 0 {
        for _ in 0..u32(left)? {
            bytes(left)?;
            bytes(left)?;
        }
    }
    Ok(attributes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bytes<'a>(left: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = u32(left)? as usize;
    take(left, length)
}

fn take<'a>(left: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = left.split_at_checked(length).ok_or(Malformed)?;
    *left = rest;
    Ok(taken)
}

fn array<const N: usize>(left: &mut &[u8]) -> Result<[u8; N], Malformed> {
    take(left, N)?.try_into().map_err(|_| Malformed)
}

fn u8(left: &mut &[u8]) -> Result<u8, Malformed> {
    Ok(u8::from_be_bytes(array(left)?))
}

fn u32(left: &mut &[u8]) -> Result<u32, Malformed> {
    Ok(u32::from_be_bytes(array(left)?))
}

fn u64(left: &mut &[u8]) -> Result<u64, Malformed> {
    Ok(u64::from_be_bytes(array(left)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        [&[kind][..], &7u32.to_be_bytes()]
            .into_iter()
            .chain(parts.iter().copied())
            .flatten()
            .copied()
            .collect()
    }

    #[test]
    fn a_request_is_written_as_the_draft_says() {
        let create = Request::Create("/a", 0o600).packet(9);
        let expected = b"\0\0\0\x17\x03\0\0\0\x09\0\0\0\x02/a\0\0\0\x2a\0\0\0\x04\0\0\x01\x80";
        assert_eq!(create.as_slice(), &expected[..]);
        assert_eq!(init(), b"\0\0\0\x05\x01\0\0\0\x03");
    }

    #[test]
    fn answers_are_read_to_their_last_byte() {
        let status = packet(STATUS, &[b"\0\0\0\x03\0\0\0\x02no\0\0\0\x02en"]);
        let expected = Reply::Status { code: 3, message: "no".into() };
        assert_eq!(reply(&status), Ok((7, expected)));
        // As a server without messages sends it.
        assert!(reply(&packet(STATUS, &[b"\0\0\0\x03"])).is_ok());
        let attributes = packet(ATTRS, &[b"\0\0\0\x06\0\0\0\x05\0\0\0\x06\0\0\x41\xc0"]);
        let (_, Reply::Attributes(read)) = reply(&attributes).unwrap() else { panic!("attributes") };
        assert!(read.is_directory() && read.permissions() == Some(0o700) && read.uid == Some(5));
        for end in 0..attributes.len() {
            assert_eq!(reply(&attributes[..end]), Err(Malformed), "cut at {end}");
        }
        let mut longer = attributes;
        longer.push(0);
        assert_eq!(reply(&longer), Err(Malformed));
    }

    #[test]
    fn a_length_that_lies_takes_no_memory() {
        assert_eq!(reply(&packet(NAME, &[b"\xff\xff\xff\xff"])), Err(Malformed));
        assert_eq!(reply(&packet(HANDLE, &[b"\xff\xff\xff\xff"])), Err(Malformed));
        assert_eq!(reply(&packet(ATTRS, &[b"\x80\0\0\0\xff\xff\xff\xff"])), Err(Malformed));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 98u8..110) {
            drop((version(&bytes), reply(&bytes)));
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            drop(reply(&bytes));
        }
    }
}
