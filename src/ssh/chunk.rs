//! What a channel received, in pieces that are as large as what comes in.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Which stream of a channel bytes came on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Data,
    /// Extended data: standard error, and whatever else a server may call so.
    Extended,
}

/// What came on one stream without anything from another in between, and was not taken meanwhile.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chunk {
    pub(super) kind: Kind,
    pub(super) bytes: Bytes,
}

/// How large a chunk grows, in bytes: as much as a pipe takes at once (pipe(7)).
const CHUNK: usize = 64 << 10;

/// Where so much comes at once, in bytes, there is more to come: most of a packet.
const BULK: usize = 16 << 10;

/// A [`Chunk`] while it grows.
#[derive(Debug)]
pub(super) struct Growing {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

impl Growing {
    pub(super) fn new(kind: Kind, bytes: &[u8], spare: &Spare) -> Self {
        let mut room = if bytes.len() >= BULK { spare.take() } else { Vec::new() };
        room.extend_from_slice(bytes);
        Self { kind, bytes: room }
    }

    /// Takes `bytes` as well, and returns whether it did.
    pub(super) fn add(&mut self, kind: Kind, bytes: &[u8]) -> bool {
        if kind != self.kind || self.bytes.len() + bytes.len() > CHUNK {
            return false;
        }
        if bytes.len() >= BULK {
            self.bytes.reserve_exact(CHUNK - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        true
    }

    pub(super) fn into_chunk(self, spare: &Spare) -> Chunk {
        let Self { kind, bytes } = self;
        let is_large = bytes.capacity() == CHUNK;
        let bytes =
            if is_large { Bytes::from_owner(Lent { bytes, to: spare.clone() }) } else { bytes.into() };
        Chunk { kind, bytes }
    }
}

/// The memory of a large chunk that was read: taken anew, it would have to be cleared by the kernel each time.
#[derive(Clone, Debug, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A large chunk, until it is read.
struct Lent {
    bytes: Vec<u8>,
    to: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self.to.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_grows_to_the_size_of_a_chunk_and_another_begins_a_new_one() {
        let spare = Spare::default();
        let mut growing = Growing::new(Kind::Data, b"ab", &spare);
        assert!(growing.add(Kind::Data, b"cd") && !growing.add(Kind::Extended, b"x"));
        assert!(growing.add(Kind::Data, &vec![b'e'; CHUNK - 4]) && !growing.add(Kind::Data, b"y"));
        let chunk = growing.into_chunk(&spare);
        assert_eq!((chunk.kind, chunk.bytes.len()), (Kind::Data, CHUNK));
        assert!(chunk.bytes.starts_with(b"abcde") && chunk.bytes.ends_with(b"e"));
    }

    #[test]
    fn the_memory_of_a_large_chunk_serves_the_next_one() {
        let spare = Spare::default();
        let large = vec![b'a'; BULK];
        let mut growing = Growing::new(Kind::Data, &large, &spare);
        assert!(growing.add(Kind::Data, &large));
        let first = growing.into_chunk(&spare);
        let place = first.bytes.as_ptr();
        // One that is read by somebody else meanwhile is theirs.
        let second = Growing::new(Kind::Data, &large, &spare);
        assert_ne!(second.bytes.as_ptr(), place);
        drop(first);
        let third = Growing::new(Kind::Data, b"small", &spare);
        assert_ne!(third.bytes.as_ptr(), place);
        let fourth = Growing::new(Kind::Data, &large, &spare);
        assert_eq!((fourth.bytes.as_ptr(), fourth.bytes.len()), (place, BULK));
    }
}
