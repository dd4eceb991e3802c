//! The helper: a few lines of POSIX `sh` that run on one exec channel for as long as the link lives.
//!
//! Order of events: the tunnel runs [`Nonce::bootstrap`] as the command of an exec channel without a terminal
//! → nothing is sent until the whole line `broker-NONCE ready` has come, so that neither a menu nor a
//! ForceCommand ever receives a secret → `helper.sh` follows as one line → facts → commands, one at a time,
//! each answered in order → heartbeats in between. When its stdin ends the helper removes what it wrote at
//! once; when it hears nothing for [`Pace::silence`], it does so too and ends.
//!
//! [`start`] gives a handle and the future that must be driven; no task is spawned here.

use std::{collections::VecDeque, fmt, future::Future, net::SocketAddrV4, sync::LazyLock, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use self::{
    actor::Actor,
    wire::{Lines, answer, ended},
};
use super::{
    install::{Directory, FileName, Key, Place, Stay},
    sockets::{Call, Listening},
};
use crate::{
    caller::{Uid, Unproven},
    printable::{one_line, printable},
    random,
};

mod actor;
mod wire;

pub(super) use self::wire::Answer;

#[cfg(test)]
pub(in crate::remote) mod tests;

/// How long the host may take from the command to the READY line: slow rc files and PAM, but no person.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How many characters of it a person gets to see.
const LONGEST_SAID: usize = 400;

/// How much the rc files may print before READY.
const LONGEST_NOISE: usize = 64 << 10;

/// How long one command may take. By then the dead-man switch has removed everything, so that nothing is lost
/// by giving up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a caller's identity may take: SDKs give up after one second, and we answer within 900 ms.
const CALLER_TIMEOUT: Duration = Duration::from_millis(800);

/// How long the farewell may take: the whole of our end has two seconds.
const BYE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Requests that wait for the helper; as many as channels that may be open, and some.
const QUEUE: usize = 320;

/// What went wrong with the helper.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No READY line came. Nothing was sent to whatever answered instead.
    #[error("the host did not run our helper: {why}")]
    NoHelper {
        why: &'static str,
        #[source]
        said: Option<Said>,
    },
    /// The helper runs, but cannot keep its promises there.
    #[error("the helper cannot work there: the host has no usable `{missing}`")]
    Unsuitable { missing: String },
    /// The helper or the connection to it has ended; a new link is needed.
    #[error("the helper on the host has ended")]
    Ended {
        #[source]
        source: Option<std::io::Error>,
    },
    /// No answer came in time; a new link is needed.
    #[error("the helper on the host does not answer")]
    Silent,
    /// What answers is not our helper, or not any more.
    #[error("the helper on the host sent {what}")]
    Garbled { what: &'static str },
    /// There is no place on the host that would keep a secret.
    #[error("the host has no directory that is safe for a token")]
    NoPlace,
    /// The disk is full, or a quota is.
    #[error("could not write `{name}` on the host")]
    Write { name: String },
    /// The directory is still there.
    #[error("could not remove our directory on the host")]
    Remove,
    /// A name or content that the helper's line protocol or a shell could not carry.
    #[error("`{name}` cannot be put on the host")]
    Unfit { name: String },
    /// The host does not show who owns a socket (no `/proc/net/tcp`).
    #[error("the host does not show who owns a socket")]
    Hidden,
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NoHelper { .. } => {
                Some("the account must be able to run commands (`ssh HOST true` must work); a ForceCommand, a menu or nologin prevents it".into())
            }
            Self::Unsuitable { missing } => Some(format!("make `{missing}` available on the host")),
            Self::NoPlace => {
                Some("one of $XDG_RUNTIME_DIR, /dev/shm, /tmp or ~/.cache must be writable and have room".into())
            }
            Self::Write { .. } => Some("is the disk or quota there full? look with `df /dev/shm /tmp`".into()),
            Self::Remove => Some("it goes by itself within 45 s of the end of the connection".into()),
            Self::Ended { .. } | Self::Silent | Self::Garbled { .. } | Self::Unfit { .. } | Self::Hidden => None,
        }
    }
}

impl Error {
    /// Adds what came on stderr where no helper came: a login shell complains there.
    pub(crate) fn with_complaints(self, complaints: &[u8]) -> Self {
        let complaints = printable(String::from_utf8_lossy(complaints).trim());
        match self {
            Self::NoHelper { why, said } if !complaints.is_empty() => {
                let said = said.map_or(complaints.clone(), |Said(said)| format!("{said}\n{complaints}"));
                Self::NoHelper { why, said: Some(Said(said)) }
            }
            other => other,
        }
    }
}

/// What the host said instead of READY, safe to show.
#[derive(Debug)]
pub(crate) struct Said(String);

impl Said {
    /// Returns what there is to show of `output`.
    pub(crate) fn of(output: &[u8]) -> Option<Self> {
        let said = printable(String::from_utf8_lossy(output).trim());
        (!said.is_empty()).then_some(Self(said))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line for each would read as lines of ours, and a flood would bury the error.
        let said = one_line(&self.0);
        match said.char_indices().nth(LONGEST_SAID) {
            Some((end, _)) => write!(f, "the host said: {}…", said.get(..end).unwrap_or_default()),
            None => write!(f, "the host said: {said}"),
        }
    }
}

impl std::error::Error for Said {}

/// What makes the lines of one helper its own. Not a secret, but never used twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Nonce(String);

impl Nonce {
    /// Makes a nonce of 128 random bits.
    pub(crate) fn generate() -> Result<Self, random::NoRandomness> {
        let mut bytes = [0u8; 16];
        random::fill(&mut bytes)?;
        Ok(Self(format!("{:032x}", u128::from_ne_bytes(bytes))))
    }

    /// Returns the command for the exec channel.
    ///
    /// It holds no secret and passes through any login shell: inside its single quotes there is no `!` (csh), no
    /// backslash (fish), no newline and no quote. The READY line is put together on the host, so that a
    /// ForceCommand that prints the command does not print the line. The empty line before it ends what an rc
    /// file printed without a newline.
    pub(crate) fn bootstrap(&self) -> String {
        self.bootstrap_by("/bin/sh")
    }

    fn bootstrap_by(&self, sh: &str) -> String {
        let (a, b) = self.0.split_at(self.0.len() / 2);
        format!(
            "exec {sh} -c 'a={a}; b={b}; echo; echo \"broker-$a$b ready\"; IFS= read -r s && eval \"$s\"'"
        )
    }

    /// Returns the nonce as text: 32 hexadecimal digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// How often we are heard, and how long silence is borne.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    beat: Duration,
    /// Whole seconds, because POSIX `sleep` knows no others.
    silence: u32,
}

/// Three beats may be lost; with the time that the last one took, the files are gone within 45 s of silence.
pub(crate) const PACE: Pace = Pace { beat: Duration::from_secs(10), silence: 30 };

/// What the host said about itself; every text is safe to print.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Facts {
    /// Who we are there.
    pub(crate) uid: Uid,
    /// `uname -s`.
    pub(crate) system: String,
    /// `uname -n`.
    pub(crate) host: String,
    /// `$SHELL`, if there is one.
    pub(crate) shell: Option<String>,
    /// `$HOME`, if there is one.
    pub(crate) home: Option<String>,
    /// Changes at every start of the host; Linux only.
    pub(crate) boot_id: Option<String>,
    /// The sshd process of this connection: it owns our listeners.
    pub(crate) parent: Parent,
    /// Whether listeners and callers can be identified.
    pub(crate) shows_sockets: bool,
    /// Whether there is a program that `credential_process` can ask us with.
    pub(crate) fetches: bool,
    /// The command that hands jobs, and our environment with them, to other machines, if there is one.
    pub(crate) scheduler: Option<String>,
    /// Files in `~/.aws/sso/cache` that hold a token of IAM Identity Center.
    pub(crate) token_caches: Vec<String>,
}

/// A process, told from a later one with the same id by when it started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Parent {
    pub(crate) pid: u32,
    /// In clock ticks since boot (field 22 of `/proc/PID/stat`); Linux only.
    pub(crate) started: Option<u64>,
}

/// The handle to one running helper. Clones are cheap; when the last is gone, the helper says goodbye.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    requests: mpsc::Sender<Request>,
}

/// What the actor is asked for.
#[derive(Debug)]
enum Request {
    Caller(Call, oneshot::Sender<Result<Uid, Unproven>>),
    Listeners(u16, oneshot::Sender<Result<Listening, Error>>),
    Directory(Key, Stay, oneshot::Sender<Result<(Place, String), Error>>),
    Install(Vec<super::install::File>, oneshot::Sender<Result<(), Error>>),
    Write(super::install::File, oneshot::Sender<Result<(), Error>>),
    Remove(oneshot::Sender<Result<(), Error>>),
    /// A command whose answer whoever asks understands, and the text that follows it.
    Run(String, Option<String>, oneshot::Sender<Result<Answer, Error>>),
    Bye(oneshot::Sender<()>),
}

/// Performs the handshake over the streams of an exec channel that runs [`Nonce::bootstrap`].
///
/// Returns the handle, the future that does all the work and has to be driven by the caller's `JoinSet`, and
/// what the host said about itself. That future ends with `Ok` after [`Helper::bye`] or when the last handle
/// is dropped, and otherwise with the reason; the link cannot go on without a helper.
pub(crate) async fn start<I, O>(
    stdin: I,
    stdout: O,
    nonce: Nonce,
) -> Result<(Helper, impl Future<Output = Result<(), Error>> + use<I, O>, Facts), Error>
where
    I: AsyncWrite + Unpin,
    O: AsyncRead + Unpin,
{
    start_at(PACE, stdin, stdout, nonce).await
}

async fn start_at<I, O>(
    pace: Pace,
    mut stdin: I,
    stdout: O,
    nonce: Nonce,
) -> Result<(Helper, impl Future<Output = Result<(), Error>> + use<I, O>, Facts), Error>
where
    I: AsyncWrite + Unpin,
    O: AsyncRead + Unpin,
{
    let mut lines = Lines::new(stdout, LONGEST_NOISE);
    // A progress bar or a prompt may print all of its noise on one line.
    lines.longest = LONGEST_NOISE;
    ready(&mut lines, &nonce).await?;
    lines.allowance = actor::ALLOWANCE;
    lines.longest = wire::LONGEST_LINE;
    let facts = timeout(READY_TIMEOUT, async {
        stdin.write_all(format!("w={}; ", pace.silence).as_bytes()).await.map_err(ended)?;
        stdin.write_all(script().as_bytes()).await.map_err(ended)?;
        stdin.write_all(b"\n").await.map_err(ended)?;
        stdin.flush().await.map_err(ended)?;
        answer(&mut lines, &nonce, 0).await
    })
    .await
    .map_err(|_| Error::Silent)??;
    let facts = Facts::read(&facts.rows)?;
    let (requests, receiver) = mpsc::channel(QUEUE);
    let actor = Actor {
        stdin,
        lines,
        nonce,
        number: 0,
        beat: pace.beat,
        requests: receiver,
        backlog: VecDeque::new(),
        refilled: Instant::now(),
    };
    Ok((Helper { requests }, actor.run(), facts))
}

/// Waits for the READY line; noise before it is kept for the error.
async fn ready<O: AsyncRead + Unpin>(lines: &mut Lines<O>, nonce: &Nonce) -> Result<(), Error> {
    let expected = format!("broker-{} ready", nonce.as_str());
    let mut noise = Vec::new();
    let waited = timeout(READY_TIMEOUT, async {
        loop {
            let line = lines.next().await?;
            if line == expected.as_bytes() {
                return Ok(());
            }
            noise.extend(line);
            noise.push(b'\n');
        }
    })
    .await;
    let why = match waited {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(Error::Garbled { .. })) => "it printed too much",
        Ok(Err(_)) => "it ended the command",
        Err(_) => "it did not answer in time",
    };
    noise.extend(lines.rest());
    Err(Error::NoHelper { why, said: Said::of(&noise) })
}

/// Returns `linger.sh` and `helper.sh` as one line. It is made once, however many hosts get it.
fn script() -> &'static str {
    static SCRIPT: LazyLock<String> = LazyLock::new(|| {
        let lines = concat!(include_str!("linger.sh"), include_str!("helper.sh")).lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>().join(" ")
    });
    &SCRIPT
}

impl Facts {
    fn read(rows: &[String]) -> Result<Self, Error> {
        const INCOMPLETE: Error = Error::Garbled { what: "incomplete facts" };
        let fact = |name: &str| {
            let mut values = rows.iter().filter_map(|row| match row.split_once(' ') {
                Some((key, value)) if key == name => Some(value),
                _ => None,
            });
            values.next().filter(|value| !value.is_empty())
        };
        let text = |name| fact(name).map(one_line);
        if let Some(missing) = text("missing") {
            return Err(Error::Unsuitable { missing });
        }
        let parent = fact("parent").ok_or(INCOMPLETE)?;
        let (pid, started) = parent.split_once(' ').unwrap_or((parent, ""));
        Ok(Self {
            uid: Uid(fact("uid").and_then(|uid| uid.parse().ok()).ok_or(INCOMPLETE)?),
            system: text("system").ok_or(INCOMPLETE)?,
            host: text("host").unwrap_or_default(),
            shell: text("shell"),
            home: text("home"),
            boot_id: text("boot"),
            parent: Parent { pid: pid.parse().map_err(|_| INCOMPLETE)?, started: started.parse().ok() },
            shows_sockets: fact("sockets") == Some("yes"),
            fetches: fact("fetcher").is_some(),
            scheduler: text("scheduler"),
            token_caches: rows.iter().filter_map(|row| row.strip_prefix("cache ")).map(one_line).collect(),
        })
    }
}

impl Helper {
    /// Returns whose process holds the originator's end of a connection to `127.0.0.1:listen_port`; within
    /// 800 ms or not at all.
    pub(crate) async fn caller(&self, originator: SocketAddrV4, listen_port: u16) -> Result<Uid, Unproven> {
        let answer = async {
            let (reply, answer) = oneshot::channel();
            let request = Request::Caller(Call { originator, listen_port }, reply);
            self.requests.send(request).await.map_err(|_| Unproven::NoHelper)?;
            answer.await.map_err(|_| Unproven::NoHelper)?
        };
        timeout(CALLER_TIMEOUT, answer).await.unwrap_or(Err(Unproven::Late))
    }

    /// Returns who listens on `port` of the host, on loopback or every address.
    pub(crate) async fn listeners(&self, port: u16) -> Result<Listening, Error> {
        self.ask(|reply| Request::Listeners(port, reply)).await
    }

    /// Makes our directory on the host, empty, or returns it again. There is one: another key removes the first.
    pub(crate) async fn directory(&self, key: Key, stay: Stay) -> Result<Directory, Error> {
        let (place, path) = self.ask(|reply| Request::Directory(key, stay, reply)).await?;
        Ok(Directory::new(self.clone(), place, path))
    }

    /// Writes all files of a new directory in one exchange: a round trip and a fork for each would be felt.
    pub(super) async fn install(&self, files: Vec<super::install::File>) -> Result<(), Error> {
        self.ask(|reply| Request::Install(files, reply)).await
    }

    pub(super) async fn write(&self, file: super::install::File) -> Result<(), Error> {
        self.ask(|reply| Request::Write(file, reply)).await
    }

    /// Removes our directory and everything in it; that there is none is fine.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        self.ask(Request::Remove).await
    }

    /// Has the files of these names stay when we end, each for as long as it is good for and none longer than `most`.
    /// Replaces what was said before.
    pub(super) async fn linger(&self, most: Duration, files: &[(FileName, Duration)]) -> Result<(), Error> {
        let mut command = format!("linger {}", most.as_secs());
        for (name, left) in files {
            command.push_str(&format!(" {name} {}", left.as_secs()));
        }
        let answer = self.run(command, None).await?;
        answer.verdict.map(drop).map_err(|missing| Error::Unsuitable { missing })
    }

    /// Removes our directory, but for what [`Self::linger`] has stay there; returns for how long that does.
    pub(super) async fn part(&self) -> Result<Option<Duration>, Error> {
        let stays = self.run("part".to_owned(), None).await?.verdict.map_err(|_| Error::Remove)?;
        match stays.parse() {
            Ok(0) => Ok(None),
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
            Err(_) => Err(Error::Garbled { what: "an odd time" }),
        }
    }

    /// Sends a command, with lines of text behind it if it takes any, and returns the answer as it came.
    pub(super) async fn run(&self, command: String, text: Option<String>) -> Result<Answer, Error> {
        self.ask(|reply| Request::Run(command, text, reply)).await
    }

    /// Removes what is there and may not stay, and ends the helper. Returns when it is done or cannot be done any more.
    pub(crate) async fn bye(self) {
        let (reply, done) = oneshot::channel();
        let farewell = async {
            if self.requests.send(Request::Bye(reply)).await.is_ok() {
                drop(done.await);
            }
        };
        drop(timeout(BYE_TIMEOUT, farewell).await);
    }

    // The deadline is the actor's: it gives up on the helper, and then every reply is dropped.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Ended { source: None })?;
        answer.await.map_err(|_| Error::Ended { source: None })?
    }
}
