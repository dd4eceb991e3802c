//! The one who talks to the helper: a command at a time, callers batched, heartbeats between.

use std::{borrow::Cow, collections::VecDeque, fmt::Write as _, time::Duration};

use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use zeroize::Zeroizing;

use super::{
    ANSWER_TIMEOUT, BYE_TIMEOUT, Call, Error, Listening, Nonce, Place, Request, Uid, Unproven,
    wire::{Answer, LONGEST_ANSWER, Lines, answer, ended},
};
use crate::remote::{
    install::{Content, File, Stay},
    sockets::{Listener, Row, as_in_proc, owner},
};

/// What the helper may send in a minute, beside what we ask for about callers.
pub(super) const ALLOWANCE: usize = 1 << 20;

/// What the rows about one caller may take: there are at most two, of 120 bytes.
const ALLOWANCE_PER_CALLER: usize = 512;

/// Callers in one command, so that it stays a line of a few kilobytes.
const BATCH: usize = 128;

/// Owns the streams of one helper.
pub(super) struct Actor<I, O> {
    pub(super) stdin: I,
    pub(super) lines: Lines<O>,
    pub(super) nonce: Nonce,
    pub(super) number: u64,
    pub(super) beat: Duration,
    pub(super) requests: mpsc::Receiver<Request>,
    /// Taken from the queue while callers were gathered.
    pub(super) backlog: VecDeque<Request>,
    pub(super) refilled: Instant,
}

type Reply = oneshot::Sender<Result<Uid, Unproven>>;

impl<I: AsyncWrite + Unpin, O: AsyncRead + Unpin> Actor<I, O> {
    /// Works until goodbye, the last handle's end, or trouble.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut beat = interval(self.beat);
        // A suspended laptop must not send a burst when it wakes.
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.tick().await;
        loop {
            let request = match self.backlog.pop_front() {
                Some(request) => Some(request),
                None => tokio::select! {
                    request = self.requests.recv() => request,
                    _ = beat.tick() => {
                        self.exchange(b"beat").await?;
                        continue;
                    }
                    line = self.lines.next() => {
                        line?;
                        return Err(Error::Garbled { what: "a line that nobody asked for" });
                    }
                },
            };
            match request {
                Some(Request::Bye(reply)) => {
                    let result = self.bye().await;
                    // Whoever said goodbye may not wait for it.
                    reply.send(()).ok();
                    return result;
                }
                Some(request) => Box::pin(self.serve(request)).await?,
                None => return self.bye().await,
            }
        }
    }

    /// Errors that end the helper are returned; the others go to whoever asked, who may have gone.
    async fn serve(&mut self, request: Request) -> Result<(), Error> {
        match request {
            Request::Caller(call, reply) => self.callers(call, reply).await?,
            Request::Listeners(port, reply) => drop(reply.send(self.listeners(port).await?)),
            Request::Directory(key, stay, reply) => {
                let stay = if stay == Stay::Outlives { " stays" } else { "" };
                let answer = self.exchange(format!("dir {}{stay}", key.as_str()).as_bytes()).await?;
                drop(reply.send(match answer.verdict {
                    Ok(text) => Ok(Place::parse(&text).ok_or(Error::Garbled { what: "an odd directory" })?),
                    Err(_) => Err(Error::NoPlace),
                }));
            }
            Request::Install(files, reply) => {
                let result = match files.iter().find(|file| !file.content.is_fit(self.nonce.as_str())) {
                    Some(file) => Err(Error::Unfit { name: file.name.to_string() }),
                    None => {
                        let nonce = self.nonce.clone();
                        let answer = self.exchange_pieces(&files_command(&files, &nonce)).await?;
                        answer.verdict.map(drop).map_err(|sizes| Error::Write { name: torn(&files, &sizes) })
                    }
                };
                drop(reply.send(result));
            }
            Request::Write(file, reply) => {
                if !file.content.is_fit(self.nonce.as_str()) {
                    drop(reply.send(Err(Error::Unfit { name: file.name.to_string() })));
                    return Ok(());
                }
                let command = command(&file, &self.nonce);
                let answer = self.exchange(&command).await?;
                let result =
                    answer.verdict.map(drop).map_err(|_| Error::Write { name: file.name.to_string() });
                drop(reply.send(result));
            }
            Request::Remove(reply) => {
                let answer = self.exchange(b"remove").await?;
                drop(reply.send(answer.verdict.map(drop).map_err(|_| Error::Remove)));
            }
            Request::Run(command, text, reply) => {
                let mut command = command.into_bytes();
                if let Some(text) = text {
                    let content = Content::text(text);
                    if !content.is_fit(self.nonce.as_str()) {
                        drop(reply.send(Err(Error::Unfit { name: "a text".to_owned() })));
                        return Ok(());
                    }
                    command.push(b'\n');
                    if let Content::Text(text) = &content {
                        command.extend_from_slice(text.as_bytes());
                    }
                    command.extend_from_slice(self.nonce.as_str().as_bytes());
                }
                // We asked for it, so it does not count among what the helper says by itself.
                self.lines.allowance += LONGEST_ANSWER;
                let answer = self.exchange(&command).await?;
                drop(reply.send(Ok(answer)));
            }
            Request::Bye(reply) => self.backlog.push_back(Request::Bye(reply)),
        }
        Ok(())
    }

    async fn listeners(&mut self, port: u16) -> Result<Result<Listening, Error>, Error> {
        let answer = self.exchange(format!("listen {port:04X}").as_bytes()).await?;
        if answer.verdict.is_err() {
            return Ok(Err(Error::Hidden));
        }
        let listeners: Option<Vec<_>> = answer.rows.iter().map(|row| Listener::parse(row, port)).collect();
        let listeners = listeners.ok_or(Error::Garbled { what: "an odd listener" })?;
        Ok(Ok(Listening { port, listeners }))
    }

    /// Asks for this caller and every other one that waits for the same port.
    async fn callers(&mut self, first: Call, reply: Reply) -> Result<(), Error> {
        let mut waiting = vec![(first, reply)];
        let mut others = VecDeque::new();
        while waiting.len() < BATCH {
            let Some(request) = self.backlog.pop_front().or_else(|| self.requests.try_recv().ok()) else {
                break;
            };
            match request {
                Request::Caller(call, reply) if call.listen_port == first.listen_port => {
                    waiting.push((call, reply));
                }
                request => others.push_back(request),
            }
        }
        others.append(&mut self.backlog);
        self.backlog = others;
        // Those who gave up in the meantime are not asked about.
        waiting.retain(|(_, reply)| !reply.is_closed());
        if waiting.is_empty() {
            return Ok(());
        }
        // The kernel walks its whole table for each of the two files, so the one for clients that go through IPv6 is
        // read only for those who are not in the other.
        for file in ["tcp", "tcp6"] {
            let answer = self.who(file, first.listen_port, &waiting).await?;
            let mut missing = Vec::new();
            for (call, reply) in waiting {
                match &answer {
                    Some(rows) => match owner(rows, call) {
                        Err(Unproven::Gone) if file == "tcp" => missing.push((call, reply)),
                        verdict => drop(reply.send(verdict)),
                    },
                    None => drop(reply.send(Err(Unproven::Hidden))),
                }
            }
            if missing.is_empty() {
                break;
            }
            waiting = missing;
        }
        Ok(())
    }

    /// Reads the rows of these callers; `None` when the host does not show them.
    async fn who(
        &mut self,
        file: &str,
        port: u16,
        waiting: &[(Call, Reply)],
    ) -> Result<Option<Vec<Row>>, Error> {
        let mut command = format!("who {file} {port:04X}");
        for (call, _) in waiting {
            #[expect(clippy::expect_used, reason = "a String takes everything")]
            write!(command, " {}", as_in_proc(call.originator)).expect("infallible");
        }
        // A stranger who connects often must not be able to use up what the helper may say.
        self.lines.allowance += waiting.len() * ALLOWANCE_PER_CALLER;
        let answer = self.exchange(command.as_bytes()).await?;
        if answer.verdict.is_err() {
            return Ok(None);
        }
        let rows: Option<Vec<_>> = answer.rows.iter().map(|row| Row::parse(row)).collect();
        rows.map(Some).ok_or(Error::Garbled { what: "an odd socket" })
    }

    async fn bye(&mut self) -> Result<(), Error> {
        match timeout(BYE_TIMEOUT, self.exchange(b"bye")).await {
            Ok(answered) => answered.map(drop),
            Err(_) => Err(Error::Silent),
        }
    }

    async fn exchange(&mut self, command: &[u8]) -> Result<Answer, Error> {
        self.exchange_pieces(&[Cow::Borrowed(command)]).await
    }

    /// Sends a command that is not in one piece: nothing large is put together for it.
    async fn exchange_pieces(&mut self, command: &[Cow<'_, [u8]>]) -> Result<Answer, Error> {
        const MINUTE: Duration = Duration::from_secs(60);
        if self.refilled.elapsed() >= MINUTE {
            self.refilled = Instant::now();
            self.lines.allowance = self.lines.allowance.max(ALLOWANCE);
        }
        self.number += 1;
        let talk = async {
            let number = format!("{} ", self.number);
            self.stdin.write_all(number.as_bytes()).await.map_err(ended)?;
            for piece in command {
                self.stdin.write_all(piece).await.map_err(ended)?;
            }
            self.stdin.write_all(b"\n").await.map_err(ended)?;
            self.stdin.flush().await.map_err(ended)?;
            answer(&mut self.lines, &self.nonce, self.number).await
        };
        timeout(ANSWER_TIMEOUT, talk).await.map_err(|_| Error::Silent)?
    }
}

/// Returns the first file that has not the size that it should have, in a list of `SIZE NAME` pairs.
fn torn(files: &[File], sizes: &str) -> String {
    let words: Vec<&str> = sizes.split(' ').collect();
    let whole = |file: &File| {
        let size = file.content.len().to_string();
        words.windows(2).any(|pair| pair == [size.as_str(), file.name.as_str()])
    };
    files.iter().find(|file| !whole(file)).map(|file| file.name.to_string()).unwrap_or_default()
}

/// Returns the lines that write all of `files`, whose content is fit.
fn files_command<'a>(files: &'a [File], nonce: &'a Nonce) -> Vec<Cow<'a, [u8]>> {
    let mut command = vec![format!("files {}", files.len()).into_bytes().into()];
    for file in files {
        let (kind, bytes, end) = match &file.content {
            Content::Secret(secret) => ("secret", secret.expose_secret().as_bytes(), ""),
            Content::Text(text) => ("text", text.as_bytes(), nonce.as_str()),
        };
        command.push(format!("\n{kind} {} {}\n", file.name, bytes.len()).into_bytes().into());
        command.push(bytes.into());
        command.push(end.as_bytes().into());
    }
    command
}

/// Returns the lines that write `file`, whose content is fit.
fn command(file: &File, nonce: &Nonce) -> Zeroizing<Vec<u8>> {
    let name = file.name.as_str();
    let mut command = Zeroizing::new(Vec::new());
    match &file.content {
        Content::Secret(secret) => {
            let secret = secret.expose_secret();
            command.reserve_exact(secret.len() + name.len() + 32);
            command.extend_from_slice(format!("token {name} {}\n", secret.len()).as_bytes());
            command.extend_from_slice(secret.as_bytes());
        }
        Content::Text(text) => {
            command.reserve_exact(text.len() + name.len() + 96);
            command.extend_from_slice(format!("put {name} 600 {}\n", text.len()).as_bytes());
            command.extend_from_slice(text.as_bytes());
            command.extend_from_slice(nonce.as_str().as_bytes());
        }
    }
    command
}
