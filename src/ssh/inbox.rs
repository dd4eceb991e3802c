//! What one channel received and nobody has taken yet.
//!
//! russh delivers a channel's messages inside its one session loop, through a queue of 100 messages: a channel
//! that nobody drains stops every other channel, for ever. So we close that queue and take the same messages from
//! the callbacks of the handler, which put them here: counted in bytes, never blocking, cut beyond the limit.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::{
    chunk::{Chunk, Growing, Kind, Spare},
    transport::Kill,
};

/// How much may arrive on a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Limit {
    /// At most so many bytes in the life of the channel.
    Total(usize),
    /// At most so many bytes that wait in memory; the pump moves them to a file long before.
    Waiting(usize),
    /// When so many bytes wait in memory, the connection is not read until half of them are gone: for a channel that is
    /// the only one of its connection. Whoever reads may be slow, and nothing is lost.
    Held(usize),
}

/// How a channel ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// The server closed it.
    Closed,
    /// More arrived than its [`Limit`] allows; we closed it.
    TooMuch,
    /// What arrived could not be kept; we closed it.
    Unkept(String),
    /// Another one needed its place; we closed it.
    Crowded,
    /// The connection is gone.
    Lost,
}

/// How a process ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    Status(u32),
    Signal {
        /// Without `SIG`.
        name: String,
        core_dumped: bool,
        /// Safe to print.
        message: String,
    },
    /// The server closed the channel and said nothing of the process.
    Unknown,
    /// The connection ended first.
    Lost,
    /// More output came than is kept, and the channel was cut. What went wrong, if anything did.
    TooMuchOutput(Option<String>),
}

/// Who waits for an inbox: each has a place of its own.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    Reader,
    Pump,
    Opener,
}

/// The files that output overflows into, oldest first; all that waits there is older than anything in memory.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    pub(super) files: VecDeque<Kept>,
    /// A batch is on its way into a file.
    pub(super) busy: bool,
}

/// A file of which `read..written` is waiting.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) file: Arc<File>,
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Overflow {
    /// Returns how much waits, in bytes.
    pub(super) fn waiting(&self) -> u64 {
        self.files.iter().map(|kept| kept.written - kept.read).sum()
    }

    /// Returns the file to read next; what was read of those before it is given back.
    pub(super) fn oldest(&mut self) -> Option<&Kept> {
        while self.files.len() > 1 && self.files.front().is_some_and(|kept| kept.read == kept.written) {
            self.files.pop_front();
        }
        self.files.front().filter(|kept| kept.read < kept.written)
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) chunks: VecDeque<Growing>,
    pub(super) spare: Spare,
    /// Bytes in `chunks`.
    pub(super) waiting: usize,
    /// Bytes that the reader has taken, and how many of them the pump waits for.
    pub(super) taken: u64,
    pub(super) wanted: Option<u64>,
    received: usize,
    limit: Limit,
    /// Nobody will read any more: count and forget.
    deaf: bool,
    eof: bool,
    pub(super) end: Option<End>,
    replies: VecDeque<bool>,
    exit: Option<Exit>,
    pub(super) overflow: Overflow,
    wakers: [Option<Waker>; 3],
    /// What [`Limit::Held`] holds.
    transport: Option<Kill>,
}

/// Whether the channel may live on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub(super) enum Verdict {
    Keep,
    /// The caller closes the channel.
    Cut,
}

/// What one channel received. See the module.
#[derive(Debug)]
pub(super) struct Inbox(Mutex<State>);

impl Inbox {
    pub(super) fn new(limit: Limit) -> Self {
        Self(Mutex::new(State {
            chunks: VecDeque::new(),
            spare: Spare::default(),
            waiting: 0,
            taken: 0,
            wanted: None,
            received: 0,
            limit,
            deaf: false,
            eof: false,
            end: None,
            replies: VecDeque::new(),
            exit: None,
            overflow: Overflow::default(),
            wakers: [None, None, None],
            transport: None,
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_limit(&self, limit: Limit) {
        self.state().limit = limit;
    }

    /// Names the connection that [`Limit::Held`] holds.
    pub(super) fn set_transport(&self, transport: Kill) {
        let mut state = self.state();
        state.transport = Some(transport);
        state.hold();
    }

    /// Takes what arrived.
    pub(super) fn push(&self, kind: Kind, bytes: &[u8]) -> Verdict {
        let mut state = self.state();
        if state.end.is_some() {
            return Verdict::Keep;
        }
        state.received = state.received.saturating_add(bytes.len());
        let full = match state.limit {
            Limit::Total(most) => state.received > most,
            Limit::Waiting(most) => state.waiting.saturating_add(bytes.len()) > most,
            Limit::Held(_) => false,
        };
        if full {
            state.finish(End::TooMuch);
            return Verdict::Cut;
        }
        if !state.deaf {
            state.add(kind, bytes);
            state.hold();
            state.wake(Waiter::Reader);
            if matches!(state.limit, Limit::Waiting(_)) {
                state.wake(Waiter::Pump);
            }
        }
        Verdict::Keep
    }

    pub(super) fn eof(&self) {
        let mut state = self.state();
        state.eof = true;
        state.wake(Waiter::Reader);
    }

    pub(super) fn reply(&self, success: bool) {
        let mut state = self.state();
        // A server that answers what nobody asked gets no memory for it.
        if state.replies.len() < 8 {
            state.replies.push_back(success);
        }
        state.wake(Waiter::Opener);
    }

    /// Keeps how the process ended; the first word counts.
    pub(super) fn exit(&self, exit: Exit) {
        self.state().exit.get_or_insert(exit);
    }

    /// Ends it; the first reason stays.
    pub(super) fn end(&self, end: End) {
        self.state().finish(end);
    }

    /// Nobody reads any more: what waits is dropped, what comes is counted and dropped.
    pub(super) fn deafen(&self) {
        let mut state = self.state();
        state.deaf = true;
        state.chunks = VecDeque::new();
        state.waiting = 0;
        state.hold();
        state.wake(Waiter::Pump);
    }

    /// Returns how the process ended, once the channel did.
    pub(super) fn exited(&self) -> Exit {
        let mut state = self.state();
        match (state.exit.take(), &state.end) {
            (Some(exit), _) => exit,
            (None, Some(End::TooMuch | End::Crowded)) => Exit::TooMuchOutput(None),
            (None, Some(End::Unkept(why))) => Exit::TooMuchOutput(Some(why.clone())),
            (None, Some(End::Lost)) => Exit::Lost,
            (None, Some(End::Closed) | None) => Exit::Unknown,
        }
    }

    /// Returns whether nothing has arrived yet.
    pub(super) fn is_silent(&self) -> bool {
        self.state().received == 0
    }

    /// Waits for the server's answer to a channel request; `None` when the channel ended instead.
    pub(super) async fn replied(&self) -> Option<bool> {
        poll_fn(|cx| {
            let mut state = self.state();
            match state.replies.pop_front() {
                Some(reply) => Poll::Ready(Some(reply)),
                None if state.end.is_some() => Poll::Ready(None),
                None => state.wait(Waiter::Opener, cx),
            }
        })
        .await
    }

    /// Waits until the channel has ended.
    pub(super) async fn ended(&self) -> End {
        self.pump_waits(|state| state.end.clone()).await
    }

    /// Waits, as the pump, until `ready` returns something.
    pub(super) async fn pump_waits<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|cx| {
            let mut state = self.state();
            match ready(&mut state) {
                Some(value) => Poll::Ready(value),
                None => state.wait(Waiter::Pump, cx),
            }
        })
        .await
    }

    /// Waits, as the reader, until `ready` returns something.
    pub(super) fn poll_reader<T>(
        &self,
        cx: &mut Context<'_>,
        ready: impl FnOnce(&mut State) -> Option<T>,
    ) -> Poll<T> {
        let mut state = self.state();
        match ready(&mut state) {
            Some(value) => Poll::Ready(value),
            None => state.wait(Waiter::Reader, cx),
        }
    }
}

impl State {
    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            if end == End::TooMuch {
                // What was cut is not worth its memory, and half a message must not look like a whole one.
                self.chunks = VecDeque::new();
                self.waiting = 0;
            }
            self.end = Some(end);
        }
        for waiter in [Waiter::Reader, Waiter::Pump, Waiter::Opener] {
            self.wake(waiter);
        }
    }

    fn add(&mut self, kind: Kind, bytes: &[u8]) {
        self.waiting += bytes.len();
        if !self.chunks.back_mut().is_some_and(|last| last.add(kind, bytes)) {
            self.chunks.push_back(Growing::new(kind, bytes, &self.spare));
        }
    }

    /// Takes the oldest chunk in memory.
    pub(super) fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?.into_chunk(&self.spare);
        self.waiting = self.waiting.saturating_sub(chunk.bytes.len());
        self.hold();
        self.took(chunk.bytes.len());
        Some(chunk)
    }

    /// The reader has taken so much.
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u64);
        if self.wanted.is_some_and(|wanted| self.taken >= wanted) {
            self.wanted = None;
            self.wake(Waiter::Pump);
        }
    }

    /// Stops reading the connection when too much waits, and goes on when half of it is gone.
    fn hold(&self) {
        if let (Limit::Held(most), Some(transport)) = (self.limit, &self.transport) {
            if self.waiting >= most {
                transport.hold(true);
            } else if self.waiting <= most / 2 {
                transport.hold(false);
            }
        }
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Returns what a byte stream makes of an empty queue: the end of it, its failure, or `None` for waiting.
    pub(super) fn stream_end(&self) -> Option<io::Result<()>> {
        match &self.end {
            None if self.eof => Some(Ok(())),
            None => None,
            Some(End::Closed) => Some(Ok(())),
            Some(End::TooMuch | End::Unkept(_) | End::Crowded) => {
                Some(Err(io::ErrorKind::ConnectionReset.into()))
            }
            Some(End::Lost) => Some(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    pub(super) fn wake_reader(&mut self) {
        self.wake(Waiter::Reader);
    }

    fn wake(&mut self, waiter: Waiter) {
        if let Some(waker) = self.wakers.get_mut(waiter as usize).and_then(Option::take) {
            waker.wake();
        }
    }

    fn wait<T>(&mut self, waiter: Waiter, cx: &Context<'_>) -> Poll<T> {
        if let Some(place) = self.wakers.get_mut(waiter as usize) {
            *place = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Every channel of one connection that is open.
#[derive(Debug, Default)]
pub(super) struct Channels {
    open: Mutex<HashMap<u32, Entry>>,
    /// Channels that we closed before the server did: each costs russh about 3.5 KB until the connection ends.
    closed_by_us: AtomicUsize,
}

#[derive(Debug)]
struct Entry {
    inbox: Arc<Inbox>,
    claimed: bool,
}

/// What may arrive between the confirmation of a channel that we opened and the moment we look after it.
const UNCLAIMED: Limit = Limit::Total(256 * 1024);

impl Channels {
    fn open(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a channel that the server opened and we accepted.
    pub(super) fn add(&self, id: u32, inbox: Arc<Inbox>) {
        self.open().insert(id, Entry { inbox, claimed: true });
    }

    /// Adds a channel that we opened, at its confirmation: the server may send at once.
    pub(super) fn confirmed(&self, id: u32) {
        self.open().insert(id, Entry { inbox: Arc::new(Inbox::new(UNCLAIMED)), claimed: false });
    }

    /// Takes over a channel that [`Self::confirmed`] added, with everything that arrived since.
    pub(super) fn claim(&self, id: u32, limit: Limit) -> Arc<Inbox> {
        let mut open = self.open();
        let entry =
            open.entry(id).or_insert_with(|| Entry { inbox: Arc::new(Inbox::new(limit)), claimed: true });
        entry.claimed = true;
        entry.inbox.set_limit(limit);
        let inbox = Arc::clone(&entry.inbox);
        if inbox.state().end.is_some() {
            open.remove(&id);
        }
        inbox
    }

    pub(super) fn find(&self, id: u32) -> Option<Arc<Inbox>> {
        self.open().get(&id).map(|entry| Arc::clone(&entry.inbox))
    }

    /// The server closed a channel.
    pub(super) fn closed(&self, id: u32) {
        let mut open = self.open();
        let Some(entry) = open.get(&id) else { return };
        entry.inbox.end(End::Closed);
        if entry.claimed {
            open.remove(&id);
        }
    }

    /// We close a channel first; nothing will be heard of it any more.
    pub(super) fn cut(&self, id: u32) {
        if self.open().remove(&id).is_some() {
            self.closed_by_us.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The connection ended.
    pub(super) fn lost(&self) {
        for entry in std::mem::take(&mut *self.open()).into_values() {
            entry.inbox.end(End::Lost);
        }
    }

    /// Returns how many channels are open.
    pub(super) fn len(&self) -> usize {
        self.open().len()
    }

    /// Returns how many channels we closed before the server did.
    pub(super) fn closed_by_us(&self) -> usize {
        self.closed_by_us.load(Ordering::Relaxed)
    }
}
