//! One line of JSON each way, bounded in length and time.

use std::{io, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// The longest request, in bytes: a profile's name is 128.
pub(super) const LONGEST_REQUEST: usize = 4 * 1024;

/// The longest answer that is read: 500 tunnels with a few roles and users each.
pub(super) const LONGEST_ANSWER: usize = 4 << 20;

/// What is wrong with what the other end says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("nothing was heard within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the connection ended in the middle of a line")]
    Torn,
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    #[error("a line is not what was expected")]
    Garbled(#[source] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads one line and what it says.
pub(super) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    longest: usize,
    patience: Duration,
) -> Result<T, Error> {
    let line = timeout(patience, line(stream, longest)).await.map_err(|_| Error::Late(patience))??;
    serde_json::from_slice(&line).map_err(Error::Garbled)
}

async fn line(stream: &mut (impl AsyncRead + Unpin), longest: usize) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).await?;
        let new = piece.get(..read).unwrap_or_default();
        let end = new.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(new.get(..end.unwrap_or(read)).unwrap_or_default());
        // What comes behind the line was not asked for.
        match end {
            _ if line.len() > longest => return Err(Error::TooLong(longest)),
            Some(_) => return Ok(line),
            None if read == 0 => return Err(Error::Torn),
            None => {}
        }
    }
}

/// Writes one line.
pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    said: &impl Serialize,
    patience: Duration,
) -> Result<(), Error> {
    let mut line = serde_json::to_vec(said).map_err(Error::Garbled)?;
    line.push(b'\n');
    let written = async {
        stream.write_all(&line).await?;
        stream.flush().await
    };
    Ok(timeout(patience, written).await.map_err(|_| Error::Late(patience))??)
}
