//! The strict door: the head of a request, bounded while it is read, checked byte by byte, and turned into an
//! [`Ask`] or a [`Refusal`]. [`check`] is a pure function, and there is no other way to an [`Ask`].
//!
//! What is let in is what AWS SDKs send and no more: a plain `GET` of HTTP/1.1 without a body, to this endpoint by
//! a name of loopback, that was sent neither by a browser nor by a proxy. A query is part of the path here: the
//! URLs that we hand out have none, so whatever has one is an unknown path.

use std::{fmt, ops::Range, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::{audit::Text, creds::grant::Route, names::ProfileName};

/// The longest head, in bytes. A real one has about 250.
pub(crate) const LONGEST_HEAD: usize = 8 * 1024;

/// The longest request target, in bytes.
const LONGEST_TARGET: usize = 1024;

/// The most header fields. A real request has six.
const MOST_FIELDS: usize = 32;

/// A client that has opened the connection has its request ready, after a handshake where there is TLS; whoever is
/// slower wants to hold it open.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request is not looked at any further. Each is one answer and a closed connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("only GET is answered here")]
    Method,
    #[error("this is not a plain HTTP/1.1 request")]
    Malformed,
    #[error(
        "a request here has exactly one Host header (an SDK from before June 2023 may send none: update it)"
    )]
    NoHost,
    #[error("this endpoint answers only as 127.0.0.1 with the port that the environment of your shell names")]
    WrongHost,
    #[error("a request here has no body and asks for no other protocol")]
    Body,
    #[error("requests of browsers are not answered here")]
    Browser,
    #[error("requests that were passed on by a proxy are not answered here; add 127.0.0.1 to NO_PROXY")]
    Proxy,
    #[error("the request target is longer than {LONGEST_TARGET} bytes")]
    LongTarget,
    #[error("the header is longer than {LONGEST_HEAD} bytes or has more than {MOST_FIELDS} fields")]
    LongHead,
    #[error("the header did not arrive within {} seconds", HEAD_TIMEOUT.as_secs())]
    Slow,
}

impl Refusal {
    /// Returns the HTTP status.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Malformed | Self::NoHost | Self::Body => 400,
            Self::Browser | Self::Proxy => 403,
            Self::Method => 405,
            Self::Slow => 408,
            Self::LongTarget => 414,
            Self::WrongHost => 421,
            Self::LongHead => 431,
        }
    }

    /// Returns the word for it in the audit log.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Malformed => "malformed",
            Self::NoHost => "no_host",
            Self::WrongHost => "wrong_host",
            Self::Body => "body",
            Self::Browser => "browser",
            Self::Proxy => "proxy",
            Self::LongTarget => "long_target",
            Self::LongHead => "long_head",
            Self::Slow => "slow",
        }
    }
}

/// A request that passed every check.
pub(crate) struct Ask {
    route: Route,
    authorization: Option<Zeroizing<Vec<u8>>>,
    authorization_at: Option<Range<usize>>,
    user_agent: Option<Text>,
}

impl Ask {
    /// Returns what it asks for.
    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Returns the value of its `Authorization` header. An empty one counts as none.
    pub(crate) fn authorization(&self) -> Option<&[u8]> {
        self.authorization.as_deref().map(Vec::as_slice)
    }

    /// Returns what the client calls itself, safe to log.
    pub(crate) fn user_agent(&self) -> Option<&Text> {
        self.user_agent.as_ref()
    }

    /// Overwrites the token in `head`, the bytes that this was made from, so that they may be passed on.
    pub(crate) fn blank(&self, head: &mut [u8]) {
        if let Some(value) = self.authorization_at.clone().and_then(|at| head.get_mut(at)) {
            value.fill(b'x');
        }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("route", &self.route).finish_non_exhaustive()
    }
}

/// What was read from a connection.
pub(crate) struct Head {
    /// Up to and with the empty line.
    pub(crate) head: Zeroizing<Vec<u8>>,
    /// What was sent after it; there should be nothing.
    pub(crate) rest: Zeroizing<Vec<u8>>,
}

/// Reads the head of a request. `None`: the client went away without a word.
///
/// Ends as soon as the bytes can no longer become an acceptable head.
pub(crate) async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Result<Head, Refusal>> {
    // Allocated whole: a buffer that grows leaves copies of the token behind.
    let mut bytes = Zeroizing::new(vec![0; LONGEST_HEAD]);
    let mut filled = 0;
    let read = async {
        loop {
            let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) else {
                return Some(Err(Refusal::LongHead));
            };
            match stream.read(room).await {
                Ok(0) | Err(_) if filled == 0 => return None,
                Ok(0) | Err(_) => return Some(Err(Refusal::Malformed)),
                Ok(more) => {
                    let seen = bytes.get(..filled + more).unwrap_or_default();
                    match end_of_head(seen, filled) {
                        Ok(Some(end)) => {
                            let (head, rest) = seen.split_at_checked(end)?;
                            let (head, rest) = (head.to_vec().into(), rest.to_vec().into());
                            return Some(Ok(Head { head, rest }));
                        }
                        Ok(None) => filled += more,
                        Err(refusal) => return Some(Err(refusal)),
                    }
                }
            }
        }
    };
    timeout(HEAD_TIMEOUT, read).await.unwrap_or(Some(Err(Refusal::Slow)))
}

/// Returns where the head in `seen` ends, of which the first `known` bytes have been looked at before.
fn end_of_head(seen: &[u8], known: usize) -> Result<Option<usize>, Refusal> {
    for (at, &byte) in seen.iter().enumerate().skip(known) {
        let before = seen.get(..at).unwrap_or_default();
        if before.ends_with(b"\r") != (byte == b'\n') {
            return Err(Refusal::Malformed);
        }
        match byte {
            b'\n' if before.ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
            b'\t' | b'\r' | b'\n' => {}
            // In no head; a TLS hello ends here and need not time out.
            _ if byte.is_ascii_control() => return Err(Refusal::Malformed),
            _ => {}
        }
    }
    Ok(None)
}

/// Decides about the head of a request. `port` is the one we are reached at, `None` on a unix socket; `name` is one that
/// leads to it besides those of loopback.
pub(crate) fn check(head: &[u8], port: Option<u16>, name: Option<&str>) -> Result<Ask, Refusal> {
    if head.len() > LONGEST_HEAD {
        return Err(Refusal::LongHead);
    }
    if end_of_head(head, 0)? != Some(head.len()) {
        return Err(Refusal::Malformed);
    }
    // Every CR and LF that is left stands in a pair, and the only empty line is the last.
    let mut lines = head.strip_suffix(b"\r\n\r\n").unwrap_or_default().split(|&b| b == b'\n');
    let target = request_line(lines.next().unwrap_or_default())?;
    let mut fields = Fields::default();
    for (number, line) in lines.enumerate() {
        if number >= MOST_FIELDS {
            return Err(Refusal::LongHead);
        }
        fields.take(line.strip_suffix(b"\r").unwrap_or(line))?;
    }
    if !is_our_host(fields.host.ok_or(Refusal::NoHost)?, port, name) {
        return Err(Refusal::WrongHost);
    }
    let authorization = fields.authorization.filter(|value| !value.is_empty());
    Ok(Ask {
        route: route(target),
        authorization: authorization.map(|value| value.to_vec().into()),
        authorization_at: authorization.and_then(|value| range_in(head, value)),
        user_agent: fields.user_agent.map(Text::of_user_agent),
    })
}

/// Returns where `part`, a slice of `whole`, lies in it.
fn range_in(whole: &[u8], part: &[u8]) -> Option<Range<usize>> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    Some(start..start + part.len())
}

/// Returns the target of `GET <target> HTTP/1.1`.
fn request_line(line: &[u8]) -> Result<&[u8], Refusal> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|&b| b == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Malformed);
    };
    if version != b"HTTP/1.1" || method.is_empty() || !method.iter().all(|&b| is_token(b)) {
        return Err(Refusal::Malformed);
    }
    if method != b"GET" {
        return Err(Refusal::Method);
    }
    if target.len() > LONGEST_TARGET {
        return Err(Refusal::LongTarget);
    }
    // Neither a whole URI, nor an authority, nor `*`, nor a fragment.
    if !target.starts_with(b"/") || !target.iter().all(|b| b.is_ascii_graphic() && *b != b'#') {
        return Err(Refusal::Malformed);
    }
    Ok(target)
}

/// The few fields that mean something here.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    content_length: bool,
    user_agent: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, line: &'a [u8]) -> Result<(), Refusal> {
        let at = line.iter().position(|&b| b == b':').ok_or(Refusal::Malformed)?;
        let (name, value) = line.split_at_checked(at).ok_or(Refusal::Malformed)?;
        // Also refuses a folded line and a space before the colon, which are read differently by everyone.
        if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
            return Err(Refusal::Malformed);
        }
        let value = trim(value.strip_prefix(b":").unwrap_or(value));
        let name = name.to_ascii_lowercase();
        match name.as_slice() {
            b"host" if self.host.replace(value).is_some() => return Err(Refusal::NoHost),
            b"authorization" if self.authorization.replace(value).is_some() => {
                return Err(Refusal::Malformed);
            }
            b"content-length" if value != b"0" || std::mem::replace(&mut self.content_length, true) => {
                return Err(Refusal::Body);
            }
            b"transfer-encoding" | b"te" | b"trailer" | b"upgrade" | b"expect" | b"http2-settings" => {
                return Err(Refusal::Body);
            }
            b"connection" if !is_plain_connection(value) => return Err(Refusal::Body),
            b"origin" | b"referer" | b"cookie" | b"cookie2" => return Err(Refusal::Browser),
            b"forwarded" | b"via" | b"x-real-ip" | b"x-original-url" | b"x-rewrite-url" => {
                return Err(Refusal::Proxy);
            }
            _ if name.starts_with(b"sec-") || name.starts_with(b"access-control-") => {
                return Err(Refusal::Browser);
            }
            _ if name.starts_with(b"x-forwarded") || name.starts_with(b"proxy-") => {
                return Err(Refusal::Proxy);
            }
            b"user-agent" => self.user_agent = self.user_agent.or(Some(value)),
            _ => {}
        }
        Ok(())
    }
}

/// Any other option would name header fields that a proxy was meant to take out.
fn is_plain_connection(value: &[u8]) -> bool {
    value
        .split(|&b| b == b',')
        .map(trim)
        .all(|option| option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive"))
}

/// A page of another name that resolves to loopback (DNS rebinding) sends that name.
fn is_our_host(host: &[u8], port: Option<u16>, ours: Option<&str>) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match port.and_then(|port| host.strip_suffix(&format!(":{port}"))) {
        Some(name) => name,
        None => host,
    };
    // The unix socket has no address of its own, so that its clients have to invent a name.
    matches!(name, "127.0.0.1" | "[::1]")
        || name.eq_ignore_ascii_case("localhost")
        || ours.is_some_and(|ours| name.eq_ignore_ascii_case(ours))
        || (port.is_none() && name == "broker")
}

fn route(target: &[u8]) -> Route {
    let slot = |path: &[u8]| decoded(path).and_then(|name| name.parse::<ProfileName>().ok());
    if target == b"/" {
        Route::Default
    } else if target == b"/healthcheck" {
        Route::Health(None)
    } else if let Some(path) = target.strip_prefix(b"/healthcheck/slot/") {
        slot(path).map_or(Route::Unknown, |profile| Route::Health(Some(profile)))
    } else if let Some(path) = target.strip_prefix(b"/slot/") {
        slot(path).map_or(Route::Unknown, Route::Slot)
    } else {
        Route::Unknown
    }
}

/// Returns one path segment with its percent signs resolved, once, or `None` if that is not possible.
fn decoded(path: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
                u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?
            }
            b'/' | b'?' => return None,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(value: &[u8]) -> &[u8] {
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let start = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !blank(b)).map_or(start, |last| last + 1);
    value.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
