//! HTTP over any byte stream: one request, one answer, closed. Knows `creds`, and neither SSH nor AWS.
//!
//! In order: the host says whose connection it is while the head is being read ([`front`]); when both are there,
//! the grant that the token opens is looked up and its credentials are taken from memory; [`reply`] makes the
//! answer. What the front lets in goes on to hyper, with the token overwritten; what it does not let in is
//! answered by fixed bytes. Nothing is answered before the caller is proven.

pub(crate) mod front;
mod replay;
pub(crate) mod reply;

use std::{convert::Infallible, pin::pin, sync::Mutex, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};

use self::{
    front::{Ask, Head, Refusal},
    replay::Replay,
    reply::Reply,
};
use crate::{
    audit::{AccessKeyId, Decision, Entry, Event, Text},
    caller::{Caller, Unproven},
    creds::{
        FetchError,
        cache::Unavailable,
        confirm::Unconfirmed,
        grant::{Admitted, Grant, Grants, Refused, Route},
    },
};

/// The most impatient SDKs give up after one second, in which the way there and back has to fit.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

/// From the first byte to the last; who cannot take 3 KB in this time does not want them.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// For taking in what a refused client is still sending, so that it gets to read the answer.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of that is taken in.
const FAREWELL_BYTES: u64 = 64 * 1024;

/// Where a connection came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Endpoint<'a> {
    /// The port on the host that callers see; `None` for the unix socket.
    pub(crate) port: Option<u16>,
    /// The name in our URL, where that is not one of loopback.
    pub(crate) name: Option<&'a str>,
    /// The caller's own port, for the log.
    pub(crate) originator_port: Option<u16>,
}

/// Answers the one request of a connection and closes it. `caller` tells whose it is, and is driven here.
pub(crate) async fn connection<S, C>(stream: S, endpoint: &Endpoint<'_>, caller: C, grants: &Grants)
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Future<Output = Result<Caller, Unproven>>,
{
    if timeout(EXCHANGE_TIMEOUT, exchange(stream, endpoint, caller, grants)).await.is_err() {
        tracing::debug!(?endpoint, "closed a connection that took too long");
    }
}

async fn exchange<S, C>(mut stream: S, endpoint: &Endpoint<'_>, caller: C, grants: &Grants)
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Future<Output = Result<Caller, Unproven>>,
{
    let mut caller = pin!(caller);
    let mut proof = None;
    let mut leave = None;
    let head = {
        let mut head = pin!(front::read_head(&mut stream));
        loop {
            tokio::select! {
                proven = &mut caller, if proof.is_none() => {
                    // Known as early as possible, so that neighbours cannot hold connections by being slow.
                    match admit(proven, endpoint, grants) {
                        Some(admitted) => leave = admitted,
                        None => return,
                    }
                    proof = Some(proven);
                }
                head = &mut head => break head,
            }
        }
    };
    let Some(head) = head else { return };
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let proof = match proof {
        Some(proof) => proof,
        None => {
            let proven = timeout_at(deadline, caller).await.unwrap_or(Err(Unproven::Late));
            match admit(proven, endpoint, grants) {
                Some(admitted) => leave = admitted,
                None => return,
            }
            proven
        }
    };
    let checked = head.and_then(|Head { head, rest }| {
        let ask = front::check(&head, endpoint.port, endpoint.name)?;
        // One request for a connection: what comes after it is a second one, or a body.
        if rest.is_empty() { Ok((ask, head)) } else { Err(Refusal::Body) }
    });
    let request = Request { endpoint, proof, grants };
    match checked {
        Err(refusal) => {
            request.note(Entry { reason: Some(refusal.reason()), ..Entry::default() });
            farewell(stream, &Reply::not_let_in(refusal).into_raw()).await;
        }
        Ok((ask, mut head)) => {
            ask.blank(&mut head);
            let answer = Mutex::new(Some(async { request.answer(&ask, deadline).await }));
            let service = service_fn(|_| {
                let answer = answer.lock().ok().and_then(|mut answer| answer.take());
                async {
                    let reply = match answer {
                        Some(answer) => answer.await,
                        // Only for a second request, of which hyper was told that there is none.
                        None => Reply::not_let_in(Refusal::Body),
                    };
                    Ok::<_, Infallible>(reply.into_response())
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(EXCHANGE_TIMEOUT)
                .keep_alive(false)
                .half_close(true)
                .auto_date_header(false)
                .title_case_headers(true)
                // The body is sent from where it lies, which is wiped; else it would be copied to where it is not.
                .writev(true)
                .serve_connection(TokioIo::new(Replay::new(head, stream)), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, ?endpoint, "a caller went away before it had its answer");
            }
        }
    }
    drop(leave);
}

/// Lets in who is ours; gives the others leave to get an answer, or `None` when there are too many of them.
fn admit<'a>(
    proof: Result<Caller, Unproven>,
    endpoint: &Endpoint<'_>,
    grants: &'a Grants,
) -> Option<Option<Admitted<'a>>> {
    if proof.is_ok_and(|caller| grants.is_ours(caller)) {
        return Some(None);
    }
    let admitted = grants.admit_stranger();
    if admitted.is_none() {
        let entry = Entry { reason: Some("too_many_strangers"), ..Entry::default() };
        Request { endpoint, proof, grants }.note(entry);
    }
    admitted.map(Some)
}

/// What is known about a request besides what it asks for.
struct Request<'a> {
    endpoint: &'a Endpoint<'a>,
    proof: Result<Caller, Unproven>,
    grants: &'a Grants,
}

impl Request<'_> {
    async fn answer(&self, ask: &Ask, deadline: Instant) -> Reply {
        let entry = Entry { user_agent: ask.user_agent().cloned(), ..Entry::default() };
        let caller = match self.proof {
            Ok(caller) => caller,
            Err(unproven) => {
                self.note(Entry { reason: Some("unproven_caller"), ..entry });
                return Reply::unproven(unproven);
            }
        };
        let grant = match self.grants.open(ask.route(), ask.authorization(), caller) {
            Ok(grant) => grant,
            Err(refused) => {
                let theft = refused == Refused::Theft;
                let event = if theft { Event::TokenTheftSuspected } else { Event::Request };
                self.note(Entry { event, reason: Some(refused.reason()), ..entry });
                return Reply::refused(refused);
            }
        };
        let entry = Entry {
            profile: Some(Text::of(&grant.profile)),
            role: grant.role.as_ref().map(Text::of),
            ..entry
        };
        let wants_credentials = !matches!(ask.route(), Route::Health(_));
        if wants_credentials {
            let says = || entry.user_agent.as_ref().map(|agent| agent.as_str().to_owned());
            if let Err(unconfirmed) = self.grants.confirmed(&grant, caller.uid(), says) {
                let reason = match unconfirmed {
                    Unconfirmed::Waiting => "unconfirmed",
                    Unconfirmed::Denied => "denied",
                };
                self.note(Entry { reason: Some(reason), ..entry });
                return Reply::unconfirmed(unconfirmed, grant.profile.as_str());
            }
        }
        self.serve(ask.route(), &grant, entry, deadline).await
    }

    async fn serve(&self, route: &Route, grant: &Grant, entry: Entry, deadline: Instant) -> Reply {
        let credentials = grant.credentials(deadline).await;
        if grant.is_revoked() {
            self.note(Entry { reason: Some("revoked"), ..entry });
            return Reply::refused(Refused::WrongToken);
        }
        let credentials = match credentials {
            Ok(credentials) => credentials,
            Err(unavailable) => {
                self.note(Entry { reason: Some(reason(&unavailable)), ..entry });
                return Reply::unavailable(&unavailable);
            }
        };
        let (reason, reply) = match route {
            Route::Health(_) => ("health", Reply::health(&credentials)),
            Route::Default | Route::Slot(_) | Route::Unknown => {
                ("credentials", Reply::credentials(&credentials))
            }
        };
        self.note(Entry {
            decision: Some(Decision::Allowed),
            reason: Some(reason),
            access_key_id: AccessKeyId::parse(&credentials.access_key_id),
            expires_at: Some(credentials.expires_at),
            ..entry
        });
        reply
    }

    /// Logs the decision; it is a refusal unless it says otherwise.
    fn note(&self, entry: Entry) {
        let caller = self.proof.ok();
        let uid = caller.and_then(Caller::uid);
        let entry = Entry {
            decision: entry.decision.or(Some(Decision::Refused)),
            originator_port: self.endpoint.originator_port,
            uid: uid.map(|uid| uid.0),
            ..entry
        };
        match caller {
            Some(caller) if self.grants.is_ours(caller) => self.grants.note(entry),
            _ => self.grants.note_stranger(uid, entry),
        }
    }
}

fn reason(unavailable: &Unavailable) -> &'static str {
    match unavailable {
        Unavailable::Waiting => "waiting",
        Unavailable::Failed(error) => match **error {
            FetchError::LoginNeeded { .. } => "login_needed",
            FetchError::Denied { .. } => "role_denied",
            FetchError::Transient { .. } => "transient",
        },
    }
}

/// Sends fixed bytes and closes, taking in meanwhile what the client is still sending: closing a TCP socket with
/// unread bytes in it makes the kernel throw away what we said.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(stream: S, raw: &[u8]) {
    let (reader, mut writer) = tokio::io::split(stream);
    let say = async {
        writer.write_all(raw).await?;
        writer.shutdown().await
    };
    let listen = async {
        let mut ignored = [0; 1024];
        let mut reader = reader.take(FAREWELL_BYTES);
        while matches!(reader.read(&mut ignored).await, Ok(more) if more > 0) {}
    };
    let both = async { tokio::join!(say, listen) };
    // Whether the client took it is its own business.
    drop(timeout(FAREWELL_TIMEOUT, both).await);
}

#[cfg(test)]
mod tests;
