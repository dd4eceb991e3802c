//! An SFTP client for a few small files: version 3, over any byte stream.
//!
//! Order of events: INIT → VERSION → requests, several at a time where they do not depend on each other, each set
//! answered before the next is sent. Every wait has a deadline. A call that is dropped half-way leaves the client
//! usable: what was begun is sent to its end, and the answers to it are passed over.

use std::{collections::HashSet, fmt, io, time::Duration};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use zeroize::Zeroizing;

pub(crate) use self::wire::Attributes;
use self::wire::{Data, Handle, LARGEST_PACKET, Malformed, Reply, Request};
use crate::printable::one_line;

mod wire;

#[cfg(test)]
mod tests;

/// How long the server may take to start: the login scripts run before an `sftp-server` that is a program.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// How long one set of requests may take: a network file system that thinks, but not one that hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Every server takes this much in one write (the draft's section 3).
const WRITE_STEP: usize = 32 * 1024;

/// More than this in a directory of ours is not ours.
const MOST_ENTRIES: usize = 1024;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server refused one request; the session goes on.
    #[error("the SFTP server could not {verb} `{path}`: {status}")]
    Refused { verb: &'static str, path: String, status: Status },
    /// What answers does not speak SFTP; most often a login script that prints.
    #[error("what answers to SFTP is no SFTP server")]
    NotSftp {
        #[source]
        said: Option<Said>,
    },
    /// The server speaks another version only.
    #[error("the SFTP server speaks version {version}, which is not 3")]
    Version { version: u32 },
    /// The session is over.
    #[error("the SFTP session has ended")]
    Ended {
        #[source]
        source: Option<io::Error>,
    },
    /// No answer came in time.
    #[error("the SFTP server does not answer")]
    Silent,
    /// What came is no answer to what was asked.
    #[error("the SFTP server sent {what}")]
    Garbled { what: &'static str },
}

impl Error {
    /// Returns why the server refused, if that is what it did.
    pub(crate) fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotSftp { said: Some(_) } => Some(
                "either the login scripts of the account print something, or it may run nothing at all; with \
                 `Subsystem sftp internal-sftp` in sshd_config neither matters"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Why a server refuses (the draft's section 7).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    EndOfFile,
    NoSuchFile,
    PermissionDenied,
    Unsupported,
    /// Everything else: it is there already, it is not empty, the disk is full. Servers hardly ever say which.
    Failure(String),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfFile => f.write_str("there is no more"),
            Self::NoSuchFile => f.write_str("no such file"),
            Self::PermissionDenied => f.write_str("permission denied"),
            Self::Unsupported => f.write_str("not supported"),
            Self::Failure(message) if message.is_empty() => f.write_str("failure"),
            Self::Failure(message) => f.write_str(message),
        }
    }
}

/// What came instead of SFTP, safe to show.
#[derive(Debug)]
pub(crate) struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host said: {}", self.0)
    }
}

impl std::error::Error for Said {}

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// A session with an SFTP server.
pub(crate) struct Client {
    stream: Box<dyn Bytes>,
    incoming: BytesMut,
    /// What is on its way to the server, and how much of it has gone.
    outgoing: Zeroizing<Vec<u8>>,
    sent: usize,
    next_id: u32,
    replaces: bool,
    syncs: bool,
    /// Nothing that comes now can be trusted to be an answer.
    broken: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Client {
    /// Begins a session over the streams of an SFTP server.
    pub(crate) async fn start(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, Error> {
        let mut client = Self {
            stream: Box::new(stream),
            incoming: BytesMut::new(),
            outgoing: Zeroizing::new(wire::init()),
            sent: 0,
            next_id: 0,
            replaces: false,
            syncs: false,
            broken: false,
        };
        let greeted = timeout(START_TIMEOUT, client.greet()).await;
        let (version, extensions) = match greeted {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(Error::Garbled { .. })) => return Err(client.not_sftp()),
            Ok(Err(Error::Ended { .. })) if !client.incoming.is_empty() => return Err(client.not_sftp()),
            Ok(Err(error)) => return Err(error),
            Err(_) if !client.incoming.is_empty() => return Err(client.not_sftp()),
            Err(_) => return Err(Error::Silent),
        };
        if version != wire::VERSION {
            return Err(Error::Version { version });
        }
        let offers = |name: &str| extensions.iter().any(|(offered, v)| offered == name && v == "1");
        client.replaces = offers(wire::POSIX_RENAME);
        client.syncs = offers(wire::FSYNC);
        Ok(client)
    }

    async fn greet(&mut self) -> Result<(u32, Vec<(String, String)>), Error> {
        self.flush().await?;
        loop {
            // Only looked at, so that what is no packet can be told.
            if let Some(length) = self.length()?
                && let Some(packet) = self.incoming.get(4..4 + length)
            {
                let greeting = wire::version(packet).map_err(garbled)?;
                self.incoming.advance(4 + length);
                return Ok(greeting);
            }
            self.receive().await?;
        }
    }

    fn not_sftp(&self) -> Error {
        let said = one_line(&String::from_utf8_lossy(self.incoming.get(..200).unwrap_or(&self.incoming)));
        Error::NotSftp { said: (!said.is_empty()).then_some(Said(said)) }
    }

    /// Returns where a relative path would lead, absolute and without links: `.` is where the session begins.
    pub(crate) async fn real_path(&mut self, path: &str) -> Result<String, Error> {
        match self.one(Request::RealPath(path)).await? {
            Reply::Names(names) => match <[Vec<u8>; 1]>::try_from(names) {
                Ok([name]) => {
                    String::from_utf8(name).map_err(|_| Error::Garbled { what: "a path that is no text" })
                }
                Err(_) => Err(UNEXPECTED),
            },
            other => Err(refused("find", path, other)),
        }
    }

    /// Returns what is known of what a path leads to, through links.
    pub(crate) async fn stat(&mut self, path: &str) -> Result<Attributes, Error> {
        attributes("look at", path, self.one(Request::Stat(path)).await?)
    }

    /// Returns what is known of the path itself, which may be a link.
    pub(crate) async fn lstat(&mut self, path: &str) -> Result<Attributes, Error> {
        attributes("look at", path, self.one(Request::LStat(path)).await?)
    }

    /// Sets the permissions of a path.
    pub(crate) async fn set_mode(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        done("change the permissions of", path, self.one(Request::SetMode(path, mode)).await?)
    }

    /// Makes a directory; fails when there is anything under this name.
    pub(crate) async fn make_directory(&mut self, path: &str, mode: u32) -> Result<(), Error> {
        done("make the directory", path, self.one(Request::MakeDirectory(path, mode)).await?)
    }

    /// Removes an empty directory.
    pub(crate) async fn remove_directory(&mut self, path: &str) -> Result<(), Error> {
        done("remove the directory", path, self.one(Request::RemoveDirectory(path)).await?)
    }

    /// Removes files in one round trip; those that are not there are fine.
    pub(crate) async fn remove(&mut self, paths: &[String]) -> Result<(), Error> {
        let requests: Vec<_> = paths.iter().map(|path| Request::Remove(path)).collect();
        let mut failed = None;
        for (path, reply) in paths.iter().zip(self.ask(&requests).await?) {
            match done("remove", path, reply) {
                Err(error) if error.status() == Some(&Status::NoSuchFile) => {}
                Err(error) => failed = failed.or(Some(error)),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Removes these files, the directory that they are in, and then those of `above` that are empty: one round trip,
    /// which is what a stop has time for. Fails when the directory is still there.
    pub(crate) async fn remove_all(
        &mut self,
        files: &[String],
        directory: &str,
        above: &[String],
    ) -> Result<(), Error> {
        let mut requests: Vec<_> = files.iter().map(|path| Request::Remove(path)).collect();
        requests.push(Request::RemoveDirectory(directory));
        requests.extend(above.iter().map(|path| Request::RemoveDirectory(path)));
        let reply = self.ask(&requests).await?.into_iter().nth(files.len()).ok_or(UNEXPECTED)?;
        match done("remove the directory", directory, reply) {
            Err(error) if error.status() == Some(&Status::NoSuchFile) => Ok(()),
            removed => removed,
        }
    }

    /// Renames a file over whatever is there; without OpenSSH's extension there is a moment without either.
    pub(crate) async fn replace(&mut self, from: &str, to: &str) -> Result<(), Error> {
        if self.replaces {
            return done("write", to, self.one(Request::Replace(from, to)).await?);
        }
        // In one set, because servers answer in order and the moment should be short.
        let replies = self.ask(&[Request::Remove(to), Request::Rename(from, to)]).await?;
        done("write", to, replies.into_iter().next_back().ok_or(UNEXPECTED)?)
    }

    /// Creates a file with these permissions and no others, before a byte is in it, and writes it. It must not be
    /// there. After an error it may be there in part.
    pub(crate) async fn create(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        const VERB: &str = "write";
        let handle = match self.one(Request::Create(path, mode)).await? {
            Reply::Handle(handle) => handle,
            other => return Err(refused("create", path, other)),
        };
        let written = self.fill(&handle, path, mode, content).await;
        let closed = self.one(Request::Close(&handle)).await?;
        written?;
        done(VERB, path, closed)
    }

    async fn fill(&mut self, handle: &Handle, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        let shown = attributes("look at", path, self.one(Request::FStat(handle)).await?)?;
        if shown.permissions() != Some(mode) {
            // `internal-sftp -m` gives every file the permissions that it likes.
            let replies = self.ask(&[Request::FSetMode(handle, mode), Request::FStat(handle)]).await?;
            let shown = attributes("look at", path, replies.into_iter().next_back().ok_or(UNEXPECTED)?)?;
            if shown.permissions() != Some(mode) {
                let status = Status::Failure("it does not keep files private".to_owned());
                return Err(Error::Refused { verb: "protect", path: one_line(path), status });
            }
        }
        let chunks: Vec<_> = content.chunks(WRITE_STEP).map(Data).collect();
        let mut requests = Vec::with_capacity(chunks.len() + 1);
        let mut offset = 0;
        for data in &chunks {
            requests.push(Request::Write { handle, offset, data });
            offset += data.0.len() as u64;
        }
        if self.syncs {
            requests.push(Request::Sync(handle));
        }
        for reply in self.ask(&requests).await? {
            done("write", path, reply)?;
        }
        Ok(())
    }

    /// Returns the names in a directory, without `.` and `..`; names that are no text are left out.
    pub(crate) async fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let handle = match self.one(Request::OpenDirectory(path)).await? {
            Reply::Handle(handle) => handle,
            other => return Err(refused("open", path, other)),
        };
        let mut entries = Vec::new();
        let read = loop {
            match self.one(Request::ReadDirectory(&handle)).await? {
                Reply::Names(names) if names.is_empty() => break Err(UNEXPECTED),
                Reply::Names(names) => entries.extend(names.into_iter().filter_map(|name| {
                    let text = String::from_utf8(name).ok()?;
                    let own = !matches!(text.as_str(), "." | "..") && !text.contains(['/', '\0']);
                    own.then_some(text)
                })),
                other => match done("read", path, other) {
                    Err(error) if error.status() == Some(&Status::EndOfFile) => break Ok(()),
                    Err(error) => break Err(error),
                    Ok(()) => break Err(UNEXPECTED),
                },
            }
            if entries.len() > MOST_ENTRIES {
                break Err(Error::Garbled { what: "a directory without end" });
            }
        };
        self.one(Request::Close(&handle)).await?;
        read.map(|()| entries)
    }

    async fn one(&mut self, request: Request<'_>) -> Result<Reply, Error> {
        self.ask(&[request]).await?.into_iter().next().ok_or(UNEXPECTED)
    }

    /// Sends requests at once and returns the answers in their order.
    async fn ask(&mut self, requests: &[Request<'_>]) -> Result<Vec<Reply>, Error> {
        if self.broken {
            return Err(Error::Ended { source: None });
        }
        let first = self.next_id;
        let packets: Vec<_> = requests
            .iter()
            .map(|request| {
                let id = self.next_id;
                self.next_id = self.next_id.wrapping_add(1);
                request.packet(id)
            })
            .collect();
        let answered = timeout(ANSWER_TIMEOUT, async {
            // What a dropped call left.
            self.flush().await?;
            for packet in packets {
                self.outgoing = packet;
                self.sent = 0;
                self.flush().await?;
            }
            self.replies(first, requests.len()).await
        })
        .await
        .unwrap_or(Err(Error::Silent));
        self.broken = answered.is_err();
        answered
    }

    async fn replies(&mut self, first: u32, count: usize) -> Result<Vec<Reply>, Error> {
        let mut replies = vec![None; count];
        let mut missing = count;
        let mut seen = HashSet::new();
        while missing > 0 {
            let Some(packet) = self.packet()? else {
                self.receive().await?;
                continue;
            };
            let (id, reply) = wire::reply(&packet).map_err(garbled)?;
            let place = id.wrapping_sub(first);
            match replies.get_mut(place as usize) {
                Some(empty @ None) => {
                    *empty = Some(reply);
                    missing -= 1;
                }
                // The answer to a call that was dropped; the last few ids only, and each once.
                None if first.wrapping_sub(id) <= STALE && seen.insert(id) => {}
                _ => return Err(Error::Garbled { what: "an answer that nobody asked for" }),
            }
        }
        Ok(replies.into_iter().flatten().collect())
    }

    /// Takes the next packet out of what arrived.
    fn packet(&mut self) -> Result<Option<BytesMut>, Error> {
        let Some(length) = self.length()? else { return Ok(None) };
        if self.incoming.len() < 4 + length {
            return Ok(None);
        }
        self.incoming.advance(4);
        Ok(Some(self.incoming.split_to(length)))
    }

    fn length(&self) -> Result<Option<usize>, Error> {
        let Some(length) = self.incoming.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        // A kind and an id at least.
        if !(5..=LARGEST_PACKET - 4).contains(&length) {
            return Err(Error::Garbled { what: "a packet of an impossible size" });
        }
        Ok(Some(length))
    }

    async fn receive(&mut self) -> Result<(), Error> {
        self.incoming.reserve(4096);
        match self.stream.read_buf(&mut self.incoming).await {
            Ok(0) => Err(Error::Ended { source: None }),
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Ended { source: Some(source) }),
        }
    }

    /// Sends what is on its way. Goes on where a dropped call stopped.
    async fn flush(&mut self) -> Result<(), Error> {
        let ended = |source| Error::Ended { source: Some(source) };
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest).await.map_err(ended)? {
                0 => return Err(Error::Ended { source: None }),
                sent => self.sent += sent,
            }
        }
        self.outgoing = Zeroizing::default();
        self.sent = 0;
        self.stream.flush().await.map_err(ended)
    }
}

/// How far back an answer may belong to a call that was dropped.
const STALE: u32 = 4096;

const UNEXPECTED: Error = Error::Garbled { what: "an answer to another question" };

fn garbled(_: Malformed) -> Error {
    Error::Garbled { what: "a packet that is none" }
}

fn done(verb: &'static str, path: &str, reply: Reply) -> Result<(), Error> {
    match reply {
        Reply::Status { code: 0, .. } => Ok(()),
        other => Err(refused(verb, path, other)),
    }
}

fn attributes(verb: &'static str, path: &str, reply: Reply) -> Result<Attributes, Error> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        other => Err(refused(verb, path, other)),
    }
}

fn refused(verb: &'static str, path: &str, reply: Reply) -> Error {
    let status = match reply {
        Reply::Status { code: 1, .. } => Status::EndOfFile,
        Reply::Status { code: 2, .. } => Status::NoSuchFile,
        Reply::Status { code: 3, .. } => Status::PermissionDenied,
        Reply::Status { code: 8, .. } => Status::Unsupported,
        Reply::Status { code: 0, .. } => return UNEXPECTED,
        Reply::Status { message, .. } => Status::Failure(one_line(&message)),
        _ => return UNEXPECTED,
    };
    Error::Refused { verb, path: one_line(path), status }
}
