//! `KnownHostsCommand`: a program of the user's that knows the keys of hosts.
//!
//! It is run as OpenSSH runs it: without a shell, with our environment, once before the key exchange (`ORDER`, so that
//! the host is asked for a key that is known) and once with the key that the host shows (`HOSTNAME`). What it says on
//! standard error is shown; that it fails ends the connection, as it may have been about to name a revoked key.

use std::{ffi::OsString, io, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use russh::keys::{Certificate, HashAlg, PublicKey};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt as _,
    process::Command,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{child, known_hosts::HostName, revoked, target::KnownHostsCommand, target::Part};
use crate::{human::Human, printable::one_line};

/// It may have to ask a directory over the network; OpenSSH would wait for ever, with no word to whoever waits.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long its last words may take to come when it has ended.
const WORDS_TIMEOUT: Duration = Duration::from_millis(500);

/// The most that is read of it, in bytes: keys of one host, or a whole file that somebody prints.
const LARGEST: u64 = 32 << 20;

/// Why it is run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Invocation<'a> {
    /// To learn which types of keys to ask the host for.
    Order,
    /// To judge the key that the host shows.
    HostName(&'a PublicKey, Option<&'a Certificate>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// OpenSSH goes on without it, and so without the keys that it revokes.
    #[error("the KnownHostsCommand (`{program}`) is not run, as it is no absolute path")]
    NotAbsolute { program: String },
    #[error("could not run the KnownHostsCommand (`{program}`)")]
    Run { program: String, source: io::Error },
    #[error("the KnownHostsCommand (`{program}`) {how}")]
    Failed { program: String, how: String },
    #[error("the key that the host shows could not be encoded")]
    Key,
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotAbsolute { .. } | Self::Run { .. } => Some(
                "it is run without a shell and without a search: give the whole path of a program, or `none` and no more"
                    .to_owned(),
            ),
            Self::Failed { .. } => Some(
                "run it by itself: it should print lines as in known_hosts and end with exit status 0; \
                 `-o KnownHostsCommand=none` does without it"
                    .to_owned(),
            ),
            Self::Key => None,
        }
    }
}

/// Returns what stands for the path of a file in what is said of its lines.
pub(super) fn place(invocation: Invocation<'_>) -> PathBuf {
    PathBuf::from(format!("{PLACE}{}", invocation.name()))
}

/// Returns whether a path is one that [`place`] made up.
pub(super) fn is_place(path: &std::path::Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(PLACE))
}

const PLACE: &str = "KnownHostsCommand-";

impl Invocation<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Order => "ORDER",
            Self::HostName(..) => "HOSTNAME",
        }
    }
}

/// Ends what it started, whatever that is.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // That nobody of it is left is what is wanted.
            kill_process_group(group, Signal::KILL).unwrap_or_default();
        }
    }
}

/// Runs it, and returns what it printed.
pub(super) async fn run(
    command: &KnownHostsCommand,
    name: &HostName,
    invocation: Invocation<'_>,
    human: &Arc<dyn Human>,
) -> Result<String, Error> {
    let program = one_line(&command.program.display().to_string());
    let failed = |source| Error::Run { program: program.clone(), source };
    if !command.program.is_absolute() {
        return Err(Error::NotAbsolute { program });
    }
    let arguments: Vec<OsString> = command
        .arguments
        .iter()
        .map(|parts| argument(parts, name, invocation))
        .collect::<Option<_>>()
        .ok_or(Error::Key)?;
    let mut child = Command::new(&command.program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C at the terminal ends us, and we end it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let missing = || failed(io::ErrorKind::BrokenPipe.into());
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let mut said = JoinSet::new();
    said.spawn(child::pass_on(stderr, "KnownHostsCommand", Arc::clone(human)));
    let how = |how: String| Error::Failed { program: program.clone(), how };
    let mut printed = Vec::new();
    let deadline = Instant::now() + TIMEOUT;
    let finishing = async {
        stdout.take(LARGEST + 1).read_to_end(&mut printed).await?;
        if printed.len() as u64 > LARGEST {
            return Ok(None);
        }
        child.wait().await.map(Some)
    };
    let status = timeout_at(deadline, finishing)
        .await
        .map_err(|_| how(format!("did not end within {} s", TIMEOUT.as_secs())))?
        .map_err(failed)?
        .ok_or_else(|| how(format!("printed more than {} MiB", LARGEST >> 20)))?;
    // Its number may soon be another's. Whatever it left behind is its own business.
    let mut group = group;
    group.0 = None;
    drop(tokio::time::timeout(WORDS_TIMEOUT, said.join_next()).await);
    if !status.success() {
        return Err(how(child::told(status)));
    }
    // Comments may be Latin-1; a name that is not ASCII is a name that nothing is asked for.
    Ok(String::from_utf8_lossy(&printed).into_owned())
}

fn argument(parts: &[Part], name: &HostName, invocation: Invocation<'_>) -> Option<OsString> {
    let mut argument = OsString::new();
    for part in parts {
        match (part, invocation) {
            (Part::Text(text), _) => argument.push(text),
            (Part::Name, _) => argument.push(name.to_string()),
            (Part::Invocation, _) => argument.push(invocation.name()),
            (Part::KeyType | Part::Fingerprint | Part::Key, Invocation::Order) => argument.push("NONE"),
            (Part::KeyType, Invocation::HostName(_, Some(certificate))) => {
                argument.push(certificate.algorithm().to_certificate_type());
            }
            (Part::KeyType, Invocation::HostName(key, None)) => argument.push(key.algorithm().as_str()),
            (Part::Fingerprint, Invocation::HostName(key, _)) => {
                argument.push(key.fingerprint(HashAlg::Sha256).to_string());
            }
            (Part::Key, Invocation::HostName(key, certificate)) => {
                let blob = match certificate {
                    Some(certificate) => certificate.to_bytes().ok()?,
                    None => revoked::blob(key.key_data())?,
                };
                argument.push(BASE64.encode(blob));
            }
        }
    }
    Some(argument)
}
