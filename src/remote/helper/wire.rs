//! The helper's answers: lines of bounded length and number, in a strict grammar.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{Error, Nonce};

/// The longest line we take; the longest honest one tells a home directory (PATH_MAX is 4096).
pub(super) const LONGEST_LINE: usize = 8 << 10;

/// The most that one answer may hold.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// One read: an answer is some dozens of bytes nearly always, and this much is kept for the next one.
const PIECE: usize = 256;

/// Cuts a stream into lines. The allowance is what it may still send; whoever owns it refills it.
pub(super) struct Lines<R> {
    stdout: R,
    buffer: Vec<u8>,
    pub(super) allowance: usize,
    /// The longest line that may come.
    pub(super) longest: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(stdout: R, allowance: usize) -> Self {
        Self { stdout, buffer: Vec::new(), allowance, longest: LONGEST_LINE }
    }

    /// Returns the next line without its newline. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Vec<u8>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(line);
            }
            if self.buffer.len() > self.longest {
                return Err(Error::Garbled { what: "a line without end" });
            }
            self.buffer.reserve(PIECE);
            let read = match self.stdout.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Error::Ended { source: None }),
                Ok(read) => read,
                Err(source) => return Err(Error::Ended { source: Some(source) }),
            };
            self.allowance =
                self.allowance.checked_sub(read).ok_or(Error::Garbled { what: "too much output" })?;
        }
    }

    /// Returns what came after the last line.
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer
    }
}

/// One whole answer.
#[derive(Debug)]
pub(in crate::remote) struct Answer {
    pub(in crate::remote) rows: Vec<String>,
    /// What followed `ok` or `no`.
    pub(in crate::remote) verdict: Result<String, String>,
}

/// Reads the answer to command `number`; a line of anything else is an error.
pub(super) async fn answer<R: AsyncRead + Unpin>(
    lines: &mut Lines<R>,
    nonce: &Nonce,
    number: u64,
) -> Result<Answer, Error> {
    const NOT_AN_ANSWER: Error = Error::Garbled { what: "a line that is no answer" };
    let prefix = format!("{} {number} ", nonce.as_str());
    let mut rows = Vec::new();
    let mut length = 0;
    loop {
        let line = lines.next().await?;
        length += line.len();
        if length > LONGEST_ANSWER {
            return Err(Error::Garbled { what: "too long an answer" });
        }
        let line = String::from_utf8(line).map_err(|_| NOT_AN_ANSWER)?;
        let text = line.strip_prefix(&prefix).ok_or(NOT_AN_ANSWER)?;
        match text.split_once(' ').unwrap_or((text, "")) {
            ("row", row) => rows.push(row.to_owned()),
            ("ok", rest) => return Ok(Answer { rows, verdict: Ok(rest.to_owned()) }),
            ("no", reason) => return Ok(Answer { rows, verdict: Err(reason.to_owned()) }),
            _ => return Err(NOT_AN_ANSWER),
        }
    }
}

/// Turns a failed write into the error of a connection that is gone.
pub(super) fn ended(source: io::Error) -> Error {
    Error::Ended { source: Some(source) }
}
