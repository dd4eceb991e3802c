//! A command or shell on the host: its streams, its signals, its end.
//!
//! Its output may be read by a person in a pager, or by nobody for an hour, and russh has no back-pressure per
//! channel. So when more than [`IN_MEMORY`] waits, the whole connection is not read until a quick reader, a pipe or a
//! disk, has taken it; it is no use to write to a file what is wanted in a moment. Where the reader is slow, the others
//! on the connection do not wait for it: what it has left goes into a file that has no name, and comes back in order.

use std::{
    collections::VecDeque, fs::File, future::poll_fn, io, os::unix::fs::FileExt as _, pin::pin, sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use russh::{ChannelWriteHalf, client::Msg};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use tokio::time::timeout;

use super::{
    inbox::{Chunk, End, Exit, Inbox, Kind, Limit, Overflow, State},
    pipe::{Writer, pipe},
    pump::{Finished, Outward, Pump, Step},
    transport::Kill,
};

/// What of a process's output waits in memory before it goes to a file, in bytes.
const IN_MEMORY: usize = 1 << 20;

/// A reader that takes [`QUICK`] bytes in this time is waited for: 20 MB/s. Requests for credentials wait as long.
const GRACE: Duration = Duration::from_millis(25);
const QUICK: u64 = 512 << 10;

/// How long the connection waits for the file, before memory has to hold what comes.
const FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is written in one piece, in bytes: the way to standard output is a thread of its own, and has its price.
const PIECE: usize = 256 << 10;

/// What may wait in memory while the file is slow, in bytes. Beyond it the disk is broken, and the channel is cut.
const MOST_IN_MEMORY: usize = 64 << 20;

/// What may wait in the file, in bytes: hours of a terminal, a large tarball, but not the whole disk.
const MOST_IN_FILE: u64 = 4 << 30;

/// One read from the file. At least one record fits: a packet is at most 256 KiB, whatever a server claims.
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
    pub(super) fn new(channel: Outward, transport: Kill, keep: Keep, has_pty: bool) -> (Self, Pump) {
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
                loop {
                    tokio::select! {
                        biased;
                        end = inbox.ended() => break Finished::from(&end),
                        () = unwanted(&inbox) => {
                            // A process that nobody listens to any more gets the end of its input and some time.
                            drop(Box::pin(channel.write.eof()).await);
                            break channel.linger().await;
                        }
                        () = too_much(&inbox), if keep == Keep::All => relieve(&inbox, &transport).await,
                        () = &mut sending => {}
                    }
                }
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
                            state.overflow.read = upto;
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
    let Overflow { file, read, written, busy } = &state.overflow;
    if let Some(file) = file
        && read < written
    {
        return Some(Next::InFile { file: Arc::clone(file), from: *read, to: *written });
    }
    if *busy {
        return None;
    }
    match state.pop() {
        Some(chunk) => Some(Next::Chunk(with_more(chunk, state))),
        None => state.end.is_some().then_some(Next::Over),
    }
}

/// Adds what has come behind a chunk on the same stream, as it is written in one piece.
fn with_more(first: Chunk, state: &mut State) -> Chunk {
    let fits = |bytes: usize, state: &State| {
        state.chunks.front().is_some_and(|next| next.kind == first.kind && bytes + next.bytes.len() <= PIECE)
    };
    if !fits(first.bytes.len(), state) {
        return first;
    }
    let mut piece = BytesMut::with_capacity(PIECE);
    piece.extend_from_slice(&first.bytes);
    while fits(piece.len(), state) {
        let Some(next) = state.pop() else { break };
        piece.extend_from_slice(&next.bytes);
    }
    Chunk { kind: first.kind, bytes: piece.freeze() }
}

/// What leaves memory in one piece.
struct Batch {
    chunks: VecDeque<Chunk>,
    file: Option<Arc<File>>,
    at: u64,
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
    inbox.pump_waits(|state| (state.waiting > IN_MEMORY).then_some(())).await;
}

/// Waits for a quick reader, and puts into the file what a slow one has left.
async fn relieve(inbox: &Inbox, transport: &Kill) {
    let held = Held::new(transport);
    while !is_relieved(&inbox.state()) {
        if timeout(GRACE, taken(inbox)).await.is_ok() {
            continue;
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

/// Whether nothing more has to be done about what waits, here and in the file.
fn is_relieved(state: &State) -> bool {
    let Overflow { read, written, .. } = state.overflow;
    let over = state.end.is_some() || state.is_deaf();
    over || state.waiting as u64 + (written - read) <= (IN_MEMORY / 2) as u64
}

/// Waits until the reader has taken so much more that it is a quick one.
async fn taken(inbox: &Inbox) {
    let wanted = {
        let mut state = inbox.state();
        // Less than there is: else it is relieved.
        let wanted = state.taken + QUICK;
        state.wanted = Some(wanted);
        wanted
    };
    inbox.pump_waits(|state| (state.taken >= wanted || is_relieved(state)).then_some(())).await;
}

/// Takes all that is in memory.
fn overflowing(state: &mut State) -> Batch {
    let overflow = &mut state.overflow;
    if overflow.read == overflow.written {
        // All of it was read: begin anew, and give the space back.
        (overflow.read, overflow.written) = (0, 0);
    }
    overflow.busy = true;
    let (file, at) = (overflow.file.clone(), overflow.written);
    state.waiting = 0;
    Batch { chunks: std::mem::take(&mut state.chunks), file, at }
}

/// Puts `batch` behind what is in the file. Not to be cancelled: what was taken would be lost.
async fn keep_in_file(inbox: &Inbox, batch: Batch) {
    let written = tokio::task::spawn_blocking(move || write_behind(batch)).await;
    let mut state = inbox.state();
    state.overflow.busy = false;
    let failed = match written.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
        Ok((file, written)) => {
            state.overflow.file = Some(file);
            state.overflow.written = written;
            (written - state.overflow.read > MOST_IN_FILE).then_some(End::TooMuch)
        }
        Err(error) => Some(End::Unkept(error.to_string())),
    };
    state.wake_reader();
    drop(state);
    if let Some(end) = failed {
        inbox.end(end);
    }
}

fn write_behind(batch: Batch) -> io::Result<(Arc<File>, u64)> {
    let file = match batch.file {
        Some(file) => file,
        None => Arc::new(nameless_file()?),
    };
    if batch.at == 0 {
        file.set_len(0)?;
    }
    let mut bytes = Vec::new();
    for chunk in batch.chunks {
        let length = u32::try_from(chunk.bytes.len()).map_err(io::Error::other)?;
        bytes.put_u8(u8::from(chunk.kind == Kind::Extended));
        bytes.put_u32(length);
        bytes.put(chunk.bytes);
    }
    file.write_all_at(&bytes, batch.at)?;
    Ok((file, batch.at + bytes.len() as u64))
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
mod tests {
    use super::*;
    use crate::ssh::{inbox::Verdict, transport::Transport};

    fn output(inbox: &Arc<Inbox>) -> Events {
        Events { inbox: Arc::clone(inbox), returned: VecDeque::new(), over: false }
    }

    fn numbered(n: usize) -> Vec<u8> {
        let mut chunk = vec![u8::try_from(n % 251).unwrap(); 32 * 1024];
        chunk[..8].copy_from_slice(&(n as u64).to_be_bytes());
        chunk
    }

    #[tokio::test]
    async fn output_beyond_memory_waits_in_a_file_and_comes_back_in_order() {
        let inbox = Arc::new(Inbox::new(Keep::All.limit()));
        let mut events = output(&inbox);
        let mut next = 0;
        // Three rounds of unlike size, so that the file is read while it grows, emptied, and begun anew.
        let mut read = 0;
        for (write, take) in [(200, 150), (90, 100), (70, 110)] {
            for _ in 0..write {
                let kind = if next % 3 == 0 { Kind::Extended } else { Kind::Data };
                assert_eq!(inbox.push(kind, &numbered(next)), Verdict::Keep);
                next += 1;
                if inbox.state().waiting > IN_MEMORY {
                    let batch = overflowing(&mut inbox.state());
                    keep_in_file(&inbox, batch).await;
                }
                assert!(inbox.state().waiting <= IN_MEMORY);
            }
            let upto = read + take;
            while read < upto.min(next) {
                // Those that wait in memory on one stream come as one.
                let (kind, mut bytes) = match events.next().await.unwrap() {
                    Event::Stderr(bytes) => (0, bytes),
                    Event::Stdout(bytes) => (1, bytes),
                    Event::Exit(exit) => panic!("{exit:?}"),
                };
                while !bytes.is_empty() {
                    assert_eq!((read % 3).min(1), kind, "chunk {read} is on the other stream");
                    assert!(bytes.split_to(32 * 1024) == numbered(read), "chunk {read} is out of order");
                    read += 1;
                }
            }
        }
        assert_eq!(read, next);
        inbox.exit(Exit::Status(3));
        inbox.end(End::Closed);
        assert_eq!(events.next().await, Some(Event::Exit(Exit::Status(3))));
        assert_eq!(events.next().await, None);
    }

    /// A connection of which a channel has a little more than may wait, and its transport.
    fn flooded() -> (Arc<Inbox>, Events, Kill, Transport<tokio::io::DuplexStream>) {
        let (transport, kill) = Transport::new(tokio::io::duplex(1).0);
        let inbox = Arc::new(Inbox::new(Keep::All.limit()));
        let events = output(&inbox);
        let mut next = 0;
        while inbox.state().waiting <= IN_MEMORY {
            assert_eq!(inbox.push(Kind::Data, &numbered(next)), Verdict::Keep);
            next += 1;
        }
        (inbox, events, kill, transport)
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_reader_is_waited_for_and_nothing_goes_to_a_file() {
        let (inbox, mut events, kill, _transport) = flooded();
        let reading = async {
            let mut read = 0;
            while read <= IN_MEMORY {
                assert!(kill.is_held() || read > IN_MEMORY / 2, "others wait after {read} bytes");
                let Some(Event::Stdout(bytes)) = events.next().await else { panic!() };
                read += bytes.len();
                tokio::time::sleep(GRACE / 4).await;
            }
        };
        tokio::join!(relieve(&inbox, &kill), reading);
        assert!(inbox.state().overflow.file.is_none() && !kill.is_held());
    }

    #[tokio::test]
    async fn a_slow_reader_has_a_file_and_holds_up_nobody() {
        let (inbox, mut events, kill, _transport) = flooded();
        let waiting = inbox.state().waiting;
        relieve(&inbox, &kill).await;
        assert!(inbox.state().overflow.file.is_some() && inbox.state().waiting == 0 && !kill.is_held());
        let mut read = 0;
        while read < waiting {
            let Some(Event::Stdout(bytes)) = events.next().await else { panic!() };
            read += bytes.len();
        }
        assert_eq!(read, waiting);
        // Nobody reads at all any more: neither is there a file, nor does anybody wait.
        let (inbox, events, kill, _transport) = flooded();
        let leaving = async {
            tokio::task::yield_now().await;
            drop(events);
        };
        tokio::join!(relieve(&inbox, &kill), leaving);
        assert!(inbox.state().overflow.file.is_none() && !kill.is_held());
    }

    #[tokio::test]
    async fn what_waits_on_one_stream_is_one_piece() {
        let inbox = Arc::new(Inbox::new(Keep::All.limit()));
        let mut events = output(&inbox);
        for (kind, bytes) in [(Kind::Data, "a"), (Kind::Data, "b"), (Kind::Extended, "c"), (Kind::Data, "d")]
        {
            assert_eq!(inbox.push(kind, bytes.as_bytes()), Verdict::Keep);
        }
        for n in 0..9 {
            assert_eq!(inbox.push(Kind::Data, &numbered(n)), Verdict::Keep);
        }
        assert_eq!(events.next().await, Some(Event::Stdout("ab".into())));
        assert_eq!(events.next().await, Some(Event::Stderr("c".into())));
        let Some(Event::Stdout(piece)) = events.next().await else { panic!() };
        assert_eq!(piece.len(), 1 + 7 * 32 * 1024, "no more than a piece");
        let Some(Event::Stdout(rest)) = events.next().await else { panic!() };
        assert_eq!(rest.len(), 2 * 32 * 1024);
        assert_eq!(inbox.state().waiting, 0);
    }

    #[tokio::test]
    async fn a_helper_that_says_too_much_is_cut() {
        let inbox = Arc::new(Inbox::new(Keep::AtMost(100).limit()));
        assert_eq!(inbox.push(Kind::Data, &[0; 100]), Verdict::Keep);
        assert_eq!(inbox.push(Kind::Data, &[0; 1]), Verdict::Cut);
        let mut events = output(&inbox);
        assert_eq!(events.next().await, Some(Event::Exit(Exit::TooMuchOutput(None))));
    }

    #[test]
    fn the_file_has_no_name() {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = nameless_file().unwrap().metadata().unwrap();
        assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (0, 0o600));
    }
}
