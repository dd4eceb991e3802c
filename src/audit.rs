//! The log of every decision: one JSON line each, for the auditor.
//!
//! Each line carries the SHA-256 of the line before it (`prev`, without its newline; zeros on the first), also
//! across restarts and across several processes that append to one file, so that a line that was changed or
//! taken out is noticed. [`Log`] is the cheap handle that rooms write to and never waits; [`Audit`] is the one
//! task that touches the disk. When the disk cannot take a line, serving goes on, the loss is counted, and a
//! `gap` line says how many are missing as soon as there is room again.
//!
//! Nothing here can hold a secret by accident: texts enter through [`Text`], which takes only types that are
//! marked [`Public`], and an access key id only in the alphabet of one.

use std::{
    fmt,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    clock::{self, Clock},
    printable, private_fs,
    tasks::reraise,
};

/// Decisions that wait for the disk: several seconds of the fastest caller we have measured.
const QUEUE: usize = 1024;

/// Lines written under one lock.
const BATCH: usize = 256;

/// Another process holds the lock for one write; a stuck one must not hold up our own end (2 s in all).
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The longest line we look back for; our own stay below it because every text in them is cut.
const LONGEST_LINE: u64 = 16 * 1024;

/// The longest text in a line, in bytes.
const LONGEST_TEXT: usize = 256;

/// What stands before the first line of a file.
const NO_LINE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Marks a type whose text is never a secret, so that it may be logged.
pub(crate) trait Public: fmt::Display {}

/// A text that is safe to log: printable, one line, cut.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Text(String);

impl Text {
    /// Returns the text of something that is marked as public.
    pub(crate) fn of(value: &impl Public) -> Self {
        Self::cut(&value.to_string())
    }

    /// Returns what a client says that it is.
    pub(crate) fn of_user_agent(bytes: &[u8]) -> Self {
        Self::cut(&String::from_utf8_lossy(bytes))
    }

    /// Returns the text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn cut(text: &str) -> Self {
        let mut text = printable::one_line(text);
        while text.len() > LONGEST_TEXT {
            text.pop();
        }
        Self(text)
    }
}

/// The public half of credentials, as CloudTrail shows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct AccessKeyId(String);

impl AccessKeyId {
    /// Returns the id if it has the alphabet of one; a secret key or a session token has not.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let valid = (16..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        valid.then(|| Self(text.to_owned()))
    }
}

/// Whether something was handed out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    Allowed,
    Refused,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// One request and its answer; [`Entry::count`] when it stands for several.
    #[default]
    Request,
    /// A token of ours was presented by another user of the host.
    TokenTheftSuspected,
    GrantAdded,
    GrantRevoked,
    /// A person said yes to a user of the host and a profile (`--confirm`).
    Approved,
    /// A person said no.
    Denied,
    TunnelUp,
    TunnelDown,
    /// [`Entry::count`] lines could not be written.
    Gap,
}

/// One line, before it gets its time and its place in the chain.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Entry {
    pub(crate) event: Event,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decision: Option<Decision>,
    /// A word of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) originator_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access_key_id: Option<AccessKeyId>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_utc")]
    pub(crate) expires_at: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_agent: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
}

fn as_utc<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.and_then(clock::utc).serialize(serializer)
}

/// A line as it lies in the file.
#[derive(Serialize)]
struct Line<'a> {
    /// First, so that also a line that was torn says what it follows.
    prev: &'a str,
    time: Option<String>,
    /// Monotonic, so that a clock that was set is noticed.
    uptime_ms: u64,
    session: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_key: Option<&'a Text>,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// An entry on its way to the disk.
#[derive(Debug)]
struct Queued {
    time: SystemTime,
    uptime: Duration,
    host: Option<Text>,
    host_key: Option<Text>,
    entry: Entry,
}

/// Where a room writes its decisions; one per host, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    queue: mpsc::Sender<Queued>,
    lost: Arc<AtomicU64>,
    clock: Clock,
    started: Instant,
    host: Option<Text>,
    host_key: Arc<Mutex<Option<Text>>>,
}

impl Log {
    /// Returns a log whose lines name `host`.
    pub(crate) fn for_host(&self, host: &str) -> Self {
        Self { host: Some(Text::cut(host)), host_key: Arc::default(), ..self.clone() }
    }

    /// Notes the fingerprint of the key that the host proved to have, for the lines from now on.
    pub(crate) fn note_host_key(&self, fingerprint: &str) {
        *self.host_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(Text::cut(fingerprint));
    }

    /// Writes one decision. Never waits: what the queue cannot take is counted.
    pub(crate) fn record(&self, entry: Entry) {
        let queued = Queued {
            time: self.clock.now(),
            uptime: self.started.elapsed(),
            host: self.host.clone(),
            host_key: self.host_key.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            entry,
        };
        if self.queue.try_send(queued).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns a log that nobody reads, and the other end that keeps its lines.
    #[cfg(test)]
    pub(crate) fn to_memory() -> (Self, Memory) {
        let (log, audit) = channel(Clock::from_fn(|| SystemTime::UNIX_EPOCH), PathBuf::new(), String::new());
        (log, Memory(audit.queue))
    }
}

/// What a test sees of a log.
#[cfg(test)]
pub(crate) struct Memory(mpsc::Receiver<Queued>);

#[cfg(test)]
impl Memory {
    pub(crate) fn entries(&mut self) -> Vec<Entry> {
        std::iter::from_fn(|| self.0.try_recv().ok()).map(|queued| queued.entry).collect()
    }
}

/// Why lines are missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the audit log could not be opened")]
    Open(#[from] private_fs::Error),
    #[error("could not write the audit log `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Open(cause) => cause.hint(),
            Self::Write { .. } => {
                Some("serving continues; make room on the disk to have decisions logged".into())
            }
        }
    }
}

/// The one task that writes the log.
#[derive(Debug)]
pub(crate) struct Audit {
    queue: mpsc::Receiver<Queued>,
    writer: Writer,
}

/// Opens the log at `path` for one run of `broker`, and checks that it can be written.
pub(crate) fn open(path: &Path, clock: Clock) -> Result<(Log, Audit), Error> {
    drop(Locked::open(path)?);
    let mut session = [0u8; 8];
    crate::random::fill(&mut session).map_err(|_| Error::Write {
        path: path.to_owned(),
        source: io::Error::other("the operating system gave no random bytes"),
    })?;
    Ok(channel(clock, path.to_owned(), format!("{:016x}", u64::from_ne_bytes(session))))
}

/// Returns a log whose lines go nowhere, for a run whose log could not be opened.
pub(crate) fn discard(clock: Clock) -> Log {
    channel(clock, PathBuf::new(), String::new()).0
}

fn channel(clock: Clock, path: PathBuf, session: String) -> (Log, Audit) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    let log = Log {
        queue: sender,
        lost: Arc::clone(&lost),
        clock: clock.clone(),
        started: Instant::now(),
        host: None,
        host_key: Arc::default(),
    };
    (log, Audit { queue, writer: Writer { path, session, lost, clock, head: None } })
}

impl Audit {
    /// Writes until `shutdown` completes, then what is still queued. `warn` hears of the first failure of a row.
    ///
    /// Returns the hash of the last line written, to be compared with the file later.
    pub(crate) async fn run(
        self,
        shutdown: impl Future<Output = ()>,
        mut warn: impl FnMut(&Error),
    ) -> Option<String> {
        let Self { mut queue, mut writer } = self;
        let mut batch = Vec::new();
        let mut failing = false;
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown, if !queue.is_closed() => queue.close(),
                taken = queue.recv_many(&mut batch, BATCH) => {
                    let nothing_left = taken == 0;
                    if nothing_left && writer.lost.load(Ordering::Relaxed) == 0 {
                        return writer.head;
                    }
                    let lines = std::mem::take(&mut batch);
                    let (back, written) = off_the_runtime(writer, lines).await;
                    writer = back;
                    match written {
                        Ok(()) => failing = false,
                        Err(error) => {
                            if !failing {
                                warn(&error);
                            }
                            failing = true;
                        }
                    }
                    if nothing_left {
                        return writer.head;
                    }
                }
            }
        }
    }
}

async fn off_the_runtime(mut writer: Writer, lines: Vec<Queued>) -> (Writer, Result<(), Error>) {
    let task = tokio::task::spawn_blocking(move || {
        let written = writer.write(&lines);
        if written.is_err() {
            writer.lost.fetch_add(lines.len() as u64, Ordering::Relaxed);
        }
        (writer, written)
    });
    // A blocking task that has begun cannot be cancelled.
    reraise(task.await)
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    session: String,
    lost: Arc<AtomicU64>,
    clock: Clock,
    head: Option<String>,
}

impl Writer {
    /// Appends `lines`, all or none of them.
    fn write(&mut self, lines: &[Queued]) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        // Opened anew each time, so that a log that was rotated away is left alone.
        let Locked { mut file, prev, torn, length } = Locked::open(&self.path)?;
        let mut prev = prev;
        let mut text = Vec::new();
        if torn {
            text.push(b'\n');
        }
        let lost = self.lost.load(Ordering::Relaxed);
        let gap = (lost > 0).then(|| Queued {
            time: self.clock.now(),
            uptime: Duration::ZERO,
            host: None,
            host_key: None,
            entry: Entry { event: Event::Gap, count: Some(lost), ..Entry::default() },
        });
        for queued in gap.iter().chain(lines) {
            let line = Line {
                prev: &prev,
                time: clock::utc_millis(queued.time),
                uptime_ms: u64::try_from(queued.uptime.as_millis()).unwrap_or(u64::MAX),
                session: &self.session,
                host: queued.host.as_ref(),
                host_key: queued.host_key.as_ref(),
                entry: &queued.entry,
            };
            let line = serde_json::to_vec(&line).map_err(|e| failed(e.into()))?;
            prev = hash(&line);
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        if let Err(source) = file.write_all(&text) {
            // A part of a line would break the chain for those who come after us; we still hold the lock.
            drop(file.set_len(length));
            return Err(failed(source));
        }
        self.lost.fetch_sub(lost, Ordering::Relaxed);
        self.head = Some(prev);
        Ok(())
    }
}

/// The log, locked until dropped, and the end of its chain.
struct Locked {
    file: File,
    prev: String,
    /// A line without its newline: someone was killed while writing.
    torn: bool,
    length: u64,
}

impl Locked {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            let file = private_fs::append(path)?;
            lock(&file, until).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if !metadata.is_file() {
                return Err(private_fs::Error::NotAFile { path: path.to_owned(), found: "a device" }.into());
            }
            if metadata.uid() != rustix::process::geteuid().as_raw() {
                return Err(private_fs::Error::Foreign { path: path.to_owned(), uid: metadata.uid() }.into());
            }
            if metadata.mode() & 0o077 != 0 {
                let mode = metadata.mode() & 0o7777;
                let sharing = private_fs::Sharing::Nobody;
                return Err(private_fs::Error::Exposed { path: path.to_owned(), mode, sharing }.into());
            }
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
            let reader = File::from(
                rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?,
            );
            let read = reader.metadata().map_err(failed)?;
            if (read.dev(), read.ino()) != (metadata.dev(), metadata.ino()) {
                // Rotated away between the two; the next round opens the new one.
                if Instant::now() < until {
                    continue;
                }
                return Err(failed(io::ErrorKind::ResourceBusy.into()));
            }
            let length = metadata.len();
            let start = length.saturating_sub(LONGEST_LINE);
            let mut tail = vec![0; usize::try_from(length - start).unwrap_or_default()];
            reader.read_exact_at(&mut tail, start).map_err(failed)?;
            let torn = tail.last().is_some_and(|&last| last != b'\n');
            return Ok(Self { prev: prev_of(&tail), torn, file, length });
        }
    }
}

fn lock(file: &File, until: Instant) -> io::Result<()> {
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Returns what the next line after `text` has as its `prev`.
fn prev_of(text: &[u8]) -> String {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    match text.rsplit(|&b| b == b'\n').next() {
        Some(last) if !text.is_empty() => hash(last),
        _ => NO_LINE.to_owned(),
    }
}

fn hash(line: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, line);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a log is worth.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Verified {
    pub(crate) lines: usize,
    /// Lines that a killed process left unfinished; what follows them is still chained.
    pub(crate) torn: usize,
    /// The hash of the last line.
    pub(crate) head: String,
}

/// The first line, counted from one, that does not follow from the one before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line} does not follow from the line before it")]
pub(crate) struct Broken {
    pub(crate) line: usize,
}

/// Checks the chain of a whole log.
pub(crate) fn verify(text: &[u8]) -> Result<Verified, Broken> {
    let mut verified = Verified { lines: 0, torn: 0, head: NO_LINE.to_owned() };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    for line in text.split(|&b| b == b'\n').filter(|_| !text.is_empty()) {
        verified.lines += 1;
        let expected = format!("{{\"prev\":\"{}\"", verified.head);
        let torn = !line.ends_with(b"}");
        let follows =
            line.starts_with(expected.as_bytes()) || (torn && expected.as_bytes().starts_with(line));
        if !follows {
            return Err(Broken { line: verified.lines });
        }
        verified.torn += usize::from(torn);
        verified.head = hash(line);
    }
    Ok(verified)
}

#[cfg(test)]
mod tests;
