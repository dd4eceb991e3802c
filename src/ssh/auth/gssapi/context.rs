//! A security context of the system's GSSAPI library, on a thread of its own.
//!
//! The library blocks: it reads ticket caches, of which some are services, and asks KDCs that may be away. The thread
//! is left behind when it is not done in time, and ends when the library does; what is left behind is counted. The
//! texts of the library's errors belong to the thread that made them, so they are read there.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use libgssapi::{
    context::{ClientCtx, CtxFlags, SecurityContext as _},
    error::{Error, MajorFlags},
    name::Name,
    oid::{GSS_MECH_KRB5, GSS_NT_HOSTBASED_SERVICE},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::printable::one_line;

/// The mechanism that sshd has, as it goes over the wire: 1.2.840.113554.1.2.2 in DER (RFC 4121).
pub(super) const KERBEROS: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02";

/// A KDC answers in milliseconds. One that is away is followed by the next within seconds (krb5's `kdc_timeout`), and
/// the keys must have their turn within the time of a login.
pub(super) const KDC_TIMEOUT: Duration = Duration::from_secs(10);

/// What is left is computed here.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads that the library keeps, or that log in at the same moment: a cache that never answers must not take one for
/// every connection that is made again.
const MOST_THREADS: usize = 64;

/// What is shown of the library's text, part of which comes from a KDC.
const LONGEST: usize = 300;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Why there is no context.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("there is no Kerberos ticket, `kinit` gets one: {0}")]
    NoTicket(String),
    #[error("the Kerberos ticket has expired, `kinit` gets a new one")]
    Expired,
    #[error("{service}: {text}")]
    Library { service: String, text: String },
    #[error("Kerberos did not answer within {} s: is the KDC to be reached from here?", KDC_TIMEOUT.as_secs())]
    Late,
    #[error("earlier logins still wait for Kerberos")]
    Busy,
    #[error("this machine starts no more threads")]
    NoThread,
    /// The other side would not be known to be who it is, or could pass on what we say.
    #[error("the server did not prove who it is")]
    Weak,
    #[error("the server {0}")]
    Rules(&'static str),
}

/// What goes to the server next.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) token: Option<Vec<u8>>,
    /// Whether our side needs nothing more.
    pub(super) complete: bool,
}

/// Both sides know each other.
#[derive(Debug)]
pub(super) struct Done {
    /// Over the data that binds the context to this connection.
    pub(super) mic: Vec<u8>,
    /// Who we are to the server; safe to print.
    pub(super) principal: String,
    pub(super) delegated: bool,
}

/// The context, on its thread, which ends with it.
#[derive(Debug)]
pub(super) struct Context {
    asks: mpsc::Sender<Ask>,
}

type Answer<T> = oneshot::Sender<Result<T, Failure>>;

#[derive(Debug)]
enum Ask {
    Step(Option<Vec<u8>>, Answer<Token>),
    Finish(Vec<u8>, Answer<Done>),
}

impl Context {
    /// Gets a ticket for the host and makes the first token of it.
    pub(super) async fn begin(
        hostname: &str,
        delegate: bool,
        deadline: Instant,
    ) -> Result<(Self, Token), Failure> {
        let place = Place::take().ok_or(Failure::Busy)?;
        let (asks, asked) = mpsc::channel();
        let service = format!("host@{hostname}");
        let work = move || {
            let _place = place;
            serve(&service, delegate, &asked);
        };
        thread::Builder::new().name("gssapi".to_owned()).spawn(work).map_err(|_| Failure::NoThread)?;
        let context = Self { asks };
        let token = context.ask(|answer| Ask::Step(None, answer), deadline).await?;
        Ok((context, token))
    }

    /// Takes the server's token.
    pub(super) async fn step(&self, token: Vec<u8>) -> Result<Token, Failure> {
        self.ask(|answer| Ask::Step(Some(token), answer), Instant::now() + STEP_TIMEOUT).await
    }

    /// Signs `data`, once the context is complete and if it is worth something.
    pub(super) async fn finish(&self, data: Vec<u8>) -> Result<Done, Failure> {
        self.ask(|answer| Ask::Finish(data, answer), Instant::now() + STEP_TIMEOUT).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(Answer<T>) -> Ask, deadline: Instant) -> Result<T, Failure> {
        let (sender, answer) = oneshot::channel();
        // A thread that is gone has dropped the answer as well.
        drop(self.asks.send(ask(sender)));
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::NoThread),
            Err(_) => Err(Failure::Late),
        }
    }
}

/// One of the threads that there may be.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let more = |threads| (threads < MOST_THREADS).then_some(threads + 1);
        THREADS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok().then_some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Does what is asked until nobody asks any more.
fn serve(service: &str, delegate: bool, asked: &mpsc::Receiver<Ask>) {
    let mut flags = CtxFlags::GSS_C_MUTUAL_FLAG | CtxFlags::GSS_C_INTEG_FLAG;
    flags.set(CtxFlags::GSS_C_DELEG_FLAG, delegate);
    let mut context = None;
    while let Ok(ask) = asked.recv() {
        // Nobody may be waiting any more.
        match ask {
            Ask::Step(token, answer) => {
                drop(answer.send(step(&mut context, service, flags, token.as_deref())));
            }
            Ask::Finish(data, answer) => drop(answer.send(finish(context.as_mut(), service, &data))),
        }
    }
}

fn step(
    context: &mut Option<ClientCtx>,
    service: &str,
    flags: CtxFlags,
    token: Option<&[u8]>,
) -> Result<Token, Failure> {
    let failed = |error| failure(service, &error);
    let context = match context {
        Some(context) => context,
        None => {
            let name = Name::new(service.as_bytes(), Some(GSS_NT_HOSTBASED_SERVICE)).map_err(failed)?;
            context.insert(ClientCtx::new(None, name, flags, Some(GSS_MECH_KRB5)))
        }
    };
    let token = context.step(token, None).map_err(failed)?;
    let token = token.map(|token| token.to_vec()).filter(|token| !token.is_empty());
    Ok(Token { token, complete: context.is_complete() })
}

fn finish(context: Option<&mut ClientCtx>, service: &str, data: &[u8]) -> Result<Done, Failure> {
    let context = context.ok_or(Failure::Weak)?;
    let failed = |error| failure(service, &error);
    // What the library says that it is, and not what was asked for.
    let flags = context.flags().map_err(failed)?;
    if !flags.contains(CtxFlags::GSS_C_MUTUAL_FLAG | CtxFlags::GSS_C_INTEG_FLAG) {
        return Err(Failure::Weak);
    }
    let principal = context.source_name().and_then(|name| name.display_name()).map_err(failed)?;
    let principal = shown(&String::from_utf8_lossy(&principal));
    let mic = context.get_mic(data).map_err(failed)?.to_vec();
    Ok(Done { mic, principal, delegated: flags.contains(CtxFlags::GSS_C_DELEG_FLAG) })
}

/// The routine error of a status (RFC 2744, 3.9.1): a number, although the library's binding calls it flags.
const ROUTINE_ERROR: u32 = 0xff << 16;

fn failure(service: &str, error: &Error) -> Failure {
    let text = said(&error.to_string());
    let routine = error.major.bits() & ROUTINE_ERROR;
    // For some minutes after its end a ticket still makes a context (krb5's `clockskew`), which is then one that has ended.
    let expired = [MajorFlags::GSS_S_CREDENTIALS_EXPIRED, MajorFlags::GSS_S_CONTEXT_EXPIRED];
    if routine == MajorFlags::GSS_S_NO_CRED.bits() {
        Failure::NoTicket(text)
    } else if expired.iter().any(|code| routine == code.bits()) || text.contains("Ticket expired") {
        Failure::Expired
    } else {
        Failure::Library { service: shown(service), text }
    }
}

/// The library's general words, and in parentheses those of the mechanism, which say more unless there is nothing to say.
fn said(text: &str) -> String {
    let Some((general, special)) = text.split_once(" (") else { return shown(text) };
    match special.strip_suffix(')').unwrap_or(special).trim() {
        "" | "Success" | "Unknown error" => shown(general),
        special => shown(special),
    }
}

fn shown(text: &str) -> String {
    one_line(text).chars().take(LONGEST).collect()
}
