//! `connect -f`: return once the tunnel is ready, and leave it running without a terminal.
//!
//! The process that the person started stays in the foreground and waits; a second one, started by it, asks what has
//! to be asked, opens the tunnel and prints the exports. Then it says so through its stdin, which is a socket to the
//! first, and leaves the terminal. Until then an error or Ctrl-C ends both, with the exit code as ever.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        net::UnixStream,
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use super::{
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::config::Environment;

/// What tells the second process what it is; first of its arguments, and in no help.
pub(super) const FLAG: &str = "--detach-when-ready";

/// What the second process says when it is ready.
const READY: u8 = b'r';

/// A log that is longer, in bytes, is begun anew.
const LONGEST_LOG: u64 = 1 << 20;

/// Starts the second process and waits until it is ready or has ended.
pub(super) fn start(arguments: &[std::ffi::OsString]) -> Result<ExitCode, Failure> {
    let failed = |e: io::Error| Failure::new(Kind::Failed, NotStarted(e));
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .arg(FLAG)
        .args(arguments.get(1..).unwrap_or_default())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .map_err(failed)?;
    let mut said = [0];
    if ours.read_exact(&mut said).is_ok() && said == [READY] {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why, on the stderr that is also ours.
    let status = child.wait().map_err(failed)?;
    if let Some(signal) = status.signal() {
        return Err(Failure::new(
            Kind::Failed,
            format!("the background process was ended by signal {signal}"),
        ));
    }
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Leaves the terminal to the person: from here on this process has no terminal, and what it says goes to its log.
pub(super) fn detach(terminal: &Terminal, environment: &Environment, host: &str) -> Result<(), Failure> {
    let log = log_path(environment, host);
    let not_opened = |e| Failure::new(Kind::Failed, NoLog { path: log.clone(), source: e });
    let file = open_log(&log).map_err(not_opened)?;
    let nowhere = File::open("/dev/null").map_err(not_opened)?;
    terminal.notice(&format!(
        "the tunnel to {host} goes on in the background as process {}; its messages go to `{}`",
        std::process::id(),
        log.display()
    ));
    terminal.detach();
    // A new session has no controlling terminal. Refused only to the leader of a process group, which we are not.
    rustix::process::setsid().map_err(|e| Failure::new(Kind::Failed, NotDetached(e.into())))?;
    match rustix::io::write(rustix::stdio::stdin(), &[READY]) {
        Ok(1) => {}
        // Whoever waited was killed, so nobody knows of this tunnel.
        _ => return Err(Failure::new(Kind::Interrupted, "the process that started this one is gone")),
    }
    rustix::stdio::dup2_stdin(&nowhere)
        .and_then(|()| rustix::stdio::dup2_stdout(&file))
        .and_then(|()| rustix::stdio::dup2_stderr(&file))
        .map_err(|e| Failure::new(Kind::Failed, NotDetached(e.into())))
}

/// Returns where a background tunnel to `host` writes.
fn log_path(environment: &Environment, host: &str) -> PathBuf {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@');
    let name: String = host.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    environment.state_directory().join(format!("{}.log", name.trim_start_matches('.')))
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(nofollow).open(path)?;
    if file.metadata()?.len() > LONGEST_LOG {
        file.set_len(0)?;
    }
    Ok(file)
}

#[derive(Debug, thiserror::Error)]
#[error("could not start the background process")]
struct NotStarted(#[source] io::Error);

#[derive(Debug, thiserror::Error)]
#[error("could not leave the terminal")]
struct NotDetached(#[source] io::Error);

#[derive(Debug, thiserror::Error)]
#[error("could not open the log `{}`", path.display())]
struct NoLog {
    path: PathBuf,
    #[source]
    source: io::Error,
}
