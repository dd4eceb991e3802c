//! A command or shell on the host: its streams, its signals, its end.
//!
//! Its output may be read by a person in a pager, or by nobody for an hour, and russh has no back-pressure per
//! channel: it opens the window again when data arrives, whoever has read it. So when more than [`IN_MEMORY`] waits, the
//! whole connection is not read until a quick reader, a pipe or a disk, has taken it; it is no use to write to a file
//! what is wanted in a moment. Where the reader is slow, the others on the connection do not wait for it: what it has left
//! goes into files that have no name, and comes back in order. They do not grow for ever: when [`MUCH_IN_FILES`] waits
//! there, the connection goes at the reader's pace, as a channel of `ssh` does, and whatever else it carries with it.

use std::{
    collections::VecDeque, fs::File, future::poll_fn, io, os::unix::fs::FileExt as _, pin::pin, sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use russh::{ChannelWriteHalf, client::Msg};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tokio::time::{Instant, timeout};

use super::{
    chunk::{Chunk, Growing, Kind},
    inbox::{End, Exit, Inbox, Kept, Limit, Overflow, State},
    pipe::{Writer, pipe},
    pump::{Finished, Outward, Pump, Step},
    transport::Kill,
};

/// What of a process's output waits in memory before it goes to a file, in bytes.
const IN_MEMORY: usize = 1 << 20;

/// A reader that takes [`QUICK`] bytes in this time is waited for: 20 MB/s. Requests for credentials wait as long.
const GRACE: Duration = Duration::from_millis(25);
const QUICK: u64 = 512 << 10;

/// How long a quick reader is waited for at once, which may have much to read in files.
const QUICK_FOR: Duration = Duration::from_millis(250);

/// How long the connection waits for the file, before memory has to hold what comes.
const FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// What may wait in memory while the file is slow, in bytes. Beyond it the disk is broken, and the channel is cut.
const MOST_IN_MEMORY: usize = 64 << 20;

/// What may wait in files before the connection waits for the reader, in bytes: hours of a terminal, a large tarball,
/// but not the whole disk.
const MUCH_IN_FILES: u64 = if cfg!(test) { 8 << 20 } else { 4 << 30 };

/// What is taken in one go while the connection waits for the reader, in bytes, and how often at least: the answers to
/// keepalives come behind it, and even the least interval that they can have is as long.
const SIP: usize = 64 << 10;
const SIP_EVERY: Duration = Duration::from_secs(1);

/// What may wait in files after all, in bytes: nobody has read anything for 18 hours.
const MOST_IN_FILES: u64 = 2 * MUCH_IN_FILES;

/// How long a file gets, in bytes. What was read of it is given back when all of it was read.
const FILE: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// One read from the file. At least one record fits: a chunk or a packet is at most 256 KiB, whatever a server claims.
const READ_BACK: usize = 512 * 1024;

/// Where the nameless file may live: on disk rather than in memory, where there is a choice.
const DIRECTORIES: [&str; 2] = ["/var/tmp", "/tmp"];

/// What becomes of a process's output that nobody has read yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keep {
    /// All of it: for people and their commands.
    All,
    /// At most so many bytes that wait, then the channel is cut: for a helper of ours, which is always listened to.
    AtMost(usize),
}

impl Keep {
    pub(super) fn limit(self) -> Limit {
        match self {
            Self::All => Limit::Waiting(MOST_IN_MEMORY),
            Self::AtMost(most) => Limit::Waiting(most),
        }
    }
}

/// What a process said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one.
    Exit(Exit),
}

/// A process on the host. Its [`Pump`] must be driven beside it.
pub(crate) struct Process {
    /// Shutting it down, or dropping it, is the end of the process's standard input.
    pub(crate) stdin: Writer,
    pub(crate) events: Events,
    pub(crate) control: Control,
    /// Whether the server gave the terminal that was asked for.
    pub(crate) has_pty: bool,
}

impl Process {
    pub(super) fn new(
        channel: Outward,
        transport: Kill,
        keep: Keep,
        has_pty: bool,
        behind: impl FnOnce() + Send + 'static,
    ) -> (Self, Pump) {
        let step = if keep == Keep::All { Step::Large } else { Step::Small };
        let (stdin, outgoing) = pipe(step.write_ahead());
        let process = Self {
            stdin,
            events: Events { inbox: Arc::clone(&channel.inbox), returned: VecDeque::new(), over: false },
            control: Control(Arc::clone(&channel.write)),
            has_pty,
        };
        let pump = Pump::new(async move {
            let inbox = Arc::clone(&channel.inbox);
            let finished = {
                let sending = async {
                    channel.send(outgoing, step).await;
                    std::future::pending::<()>().await;
                };
                let mut sending = pin!(sending);
                let mut behind = Some(behind);
                let relieving = async {
                    loop {
                        too_much(&inbox).await;
                        relieve(&inbox, &transport, &mut behind).await;
                    }
                };
                let mut relieving = pin!(relieving);
                let finished = tokio::select! {
                    biased;
                    end = inbox.ended() => Finished::from(&end),
                    () = unwanted(&inbox) => {
                        // A process that nobody listens to any more gets the end of its input and some time.
                        drop(Box::pin(channel.write.eof()).await);
                        channel.linger().await
                    }
                    // Beside each other: whoever writes here may read only when it has written.
                    () = &mut relieving, if keep == Keep::All => Finished::Cut,
                    () = &mut sending => Finished::Cut,
                };
                // What is on its way into a file gets there.
                tokio::select! {
                    biased;
                    () = &mut relieving, if keep == Keep::All => {}
                    () = kept(&inbox) => {}
                }
                finished
            };
            channel.finish(finished).await;
            finished
        });
        (process, pump)
    }
}

async fn unwanted(inbox: &Inbox) {
    inbox.pump_waits(|state| state.is_deaf().then_some(())).await;
}

/// What can be done to a process besides talking to it.
#[derive(Clone)]
pub(crate) struct Control(Arc<ChannelWriteHalf<Msg>>);

impl Control {
    /// Tells the terminal's new size: columns, rows, and pixels where they are known.
    pub(crate) async fn resize(&self, size: Size) {
        // An error means that the session is gone, which the events tell.
        drop(Box::pin(self.0.window_change(size.columns, size.rows, size.width, size.height)).await);
    }
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    /// In pixels, 0 when unknown.
    pub(crate) width: u32,
    /// In pixels, 0 when unknown.
    pub(crate) height: u32,
}

/// What a process says, in order. Dropping it closes the channel.
pub(crate) struct Events {
    inbox: Arc<Inbox>,
    /// What came back from the file: older than everything else.
    returned: VecDeque<Chunk>,
    over: bool,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.inbox.deafen();
    }
}

enum Next {
    Chunk(Chunk),
    InFile { file: Arc<File>, from: u64, to: u64 },
    Over,
}

impl Events {
    /// Returns the next event; `None` after [`Event::Exit`]. Nothing is lost when this is cancelled.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        while !self.over {
            if let Some(chunk) = self.returned.pop_front() {
                return Some(chunk.into());
            }
            match poll_fn(|cx| self.inbox.poll_reader(cx, next)).await {
                Next::Chunk(chunk) => return Some(chunk.into()),
                Next::InFile { file, from, to } => {
                    let read = tokio::task::spawn_blocking(move || read_back(&file, from, to)).await;
                    match read.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
                        Ok((chunks, upto)) => {
                            let mut state = self.inbox.state();
                            if let Some(oldest) = state.overflow.files.front_mut() {
                                oldest.read = upto;
                            }
                            state.took(chunks.iter().map(|chunk: &Chunk| chunk.bytes.len()).sum());
                            drop(state);
                            self.returned = chunks;
                        }
                        Err(error) => {
                            self.inbox.state().overflow = Overflow::default();
                            self.inbox.end(End::Unkept(error.to_string()));
                        }
                    }
                }
                Next::Over => {
                    self.over = true;
                    return Some(Event::Exit(self.inbox.exited()));
                }
            }
        }
        None
    }
}

impl From<Chunk> for Event {
    fn from(chunk: Chunk) -> Self {
        match chunk.kind {
            Kind::Data => Self::Stdout(chunk.bytes),
            Kind::Extended => Self::Stderr(chunk.bytes),
        }
    }
}

/// Takes the oldest there is: what lies in the file, then what is on its way there, then what is in memory.
fn next(state: &mut State) -> Option<Next> {
    if let Some(Kept { file, read, written }) = state.overflow.oldest() {
        return Some(Next::InFile { file: Arc::clone(file), from: *read, to: *written });
    }
    if state.overflow.busy {
        return None;
    }
    match state.pop() {
        Some(chunk) => Some(Next::Chunk(chunk)),
        None => state.end.is_some().then_some(Next::Over),
    }
}

/// What leaves memory in one piece.
struct Batch {
    chunks: VecDeque<Growing>,
    /// The file behind whose bytes it goes, and how many they are; a new one otherwise.
    behind: Option<(Arc<File>, u64)>,
}

/// While it lives, nothing of the connection is read.
struct Held<'a>(&'a Kill);

impl<'a> Held<'a> {
    fn new(transport: &'a Kill) -> Self {
        transport.hold(true);
        Self(transport)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.hold(false);
    }
}

/// Waits until too much is in memory.
async fn too_much(inbox: &Inbox) {
    let too_much = |state: &mut State| {
        let most = if state.overflow.waiting() >= MUCH_IN_FILES { SIP } else { IN_MEMORY };
        (state.waiting > most && !is_over(state)).then_some(())
    };
    inbox.pump_waits(too_much).await;
}

/// Waits for a quick reader, and puts into a file what a slow one has left. Calls `behind` when the slow one is so far
/// behind that it is waited for all the same.
async fn relieve(inbox: &Inbox, transport: &Kill, behind: &mut Option<impl FnOnce()>) {
    let held = Held::new(transport);
    let since = Instant::now();
    while !is_relieved(&inbox.state()) {
        if since.elapsed() < QUICK_FOR && timeout(GRACE, taken(inbox, QUICK)).await.is_ok() {
            continue;
        }
        let too_much = inbox.state().overflow.waiting().saturating_sub(MUCH_IN_FILES - 1);
        if too_much > 0 {
            if let Some(behind) = behind.take() {
                behind();
            }
            // In vain where nobody reads.
            timeout(SIP_EVERY, taken(inbox, too_much)).await.unwrap_or_default();
        }
        let batch = overflowing(&mut inbox.state());
        let mut keeping = pin!(keep_in_file(inbox, batch));
        if timeout(FILE_TIMEOUT, &mut keeping).await.is_err() {
            drop(held);
            keeping.await;
        }
        break;
    }
    inbox.state().wanted = None;
}

fn is_over(state: &State) -> bool {
    state.end.is_some() || state.is_deaf()
}

/// Whether nothing more has to be done about what waits, here and in files.
fn is_relieved(state: &State) -> bool {
    is_over(state) || state.waiting as u64 + state.overflow.waiting() <= (IN_MEMORY / 2) as u64
}

/// Waits until the reader has taken `more` bytes.
async fn taken(inbox: &Inbox, more: u64) {
    let wanted = {
        let mut state = inbox.state();
        // Less than there is: else it is relieved.
        let wanted = state.taken + more;
        state.wanted = Some(wanted);
        wanted
    };
    inbox.pump_waits(|state| (state.taken >= wanted || is_relieved(state)).then_some(())).await;
}

/// Takes all that is in memory.
fn overflowing(state: &mut State) -> Batch {
    let overflow = &mut state.overflow;
    if overflow.waiting() == 0 {
        // All of it was read: begin anew, and give the space back.
        overflow.files.clear();
    }
    overflow.busy = true;
    let behind = overflow.files.back().filter(|last| last.written < FILE);
    let behind = behind.map(|last| (Arc::clone(&last.file), last.written));
    state.waiting = 0;
    Batch { chunks: std::mem::take(&mut state.chunks), behind }
}

/// Puts `batch` behind what is in files. Not to be cancelled: what was taken would be lost.
async fn keep_in_file(inbox: &Inbox, batch: Batch) {
    let in_new_file = batch.behind.is_none();
    let written = tokio::task::spawn_blocking(move || write_behind(batch)).await;
    let mut state = inbox.state();
    state.overflow.busy = false;
    let failed = match written.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
        Ok((file, written)) => {
            match state.overflow.files.back_mut() {
                Some(last) if !in_new_file => last.written = written,
                _ => state.overflow.files.push_back(Kept { file, read: 0, written }),
            }
            (state.overflow.waiting() > MOST_IN_FILES).then_some(End::TooMuch)
        }
        Err(error) => Some(End::Unkept(error.to_string())),
    };
    state.wake_reader();
    drop(state);
    if let Some(end) = failed {
        inbox.end(end);
    }
}

/// Waits until nothing is on its way into a file.
async fn kept(inbox: &Inbox) {
    inbox.pump_waits(|state| (!state.overflow.busy).then_some(())).await;
}

fn write_behind(batch: Batch) -> io::Result<(Arc<File>, u64)> {
    let (file, at) = match batch.behind {
        Some(behind) => behind,
        None => (Arc::new(nameless_file()?), 0),
    };
    let mut bytes = Vec::new();
    for chunk in batch.chunks {
        let length = u32::try_from(chunk.bytes.len()).map_err(io::Error::other)?;
        bytes.put_u8(u8::from(chunk.kind == Kind::Extended));
        bytes.put_u32(length);
        bytes.extend_from_slice(&chunk.bytes);
    }
    file.write_all_at(&bytes, at)?;
    Ok((file, at + bytes.len() as u64))
}

/// Reads whole records from `from`, and returns them with where the next one begins.
fn read_back(file: &File, from: u64, to: u64) -> io::Result<(VecDeque<Chunk>, u64)> {
    let length = usize::try_from(to - from).unwrap_or(usize::MAX).min(READ_BACK);
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from)?;
    let mut left = Bytes::from(bytes);
    let (mut chunks, mut upto) = (VecDeque::new(), from);
    while left.len() >= RECORD_HEAD {
        let mut record = left.clone();
        let kind = if record.get_u8() == 0 { Kind::Data } else { Kind::Extended };
        let length = record.get_u32() as usize;
        if record.len() < length {
            break;
        }
        chunks.push_back(Chunk { kind, bytes: record.split_to(length) });
        upto += (RECORD_HEAD + length) as u64;
        left = record;
    }
    if chunks.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((chunks, upto))
}

/// A kind in one byte and a length in four.
const RECORD_HEAD: usize = 5;

/// Makes a file that only this process can reach, and that is gone with it.
fn nameless_file() -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for directory in DIRECTORIES {
        #[cfg(target_os = "linux")]
        if let Ok(fd) = rustix::fs::open(directory, OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, mode) {
            return Ok(fd.into());
        }
        let mut random = [0; 16];
        crate::random::fill(&mut random).map_err(io::Error::other)?;
        let path = format!("{directory}/.broker-{:032x}", u128::from_ne_bytes(random));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = rustix::fs::open(&path, flags, mode).and_then(|fd| {
            rustix::fs::unlinkat(CWD, &path, AtFlags::empty())?;
            Ok(fd)
        });
        match opened {
            Ok(fd) => return Ok(fd.into()),
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
