//! The local side of a remote shell or command: stdin, stdout, stderr, the window, the exit code.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use rustix::{process::Signal, termios};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    failure::{Failure, Kind},
    keyboard::Keyboard,
    stdout::Stdout,
    terminal::Terminal,
};
use crate::ssh::{
    inbox::Exit,
    process::{Process, Size},
    pump::Pump,
    terminal::{Local, Outcome, Pty, bridge, modes},
};

/// Whether a person types at us.
pub(super) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Returns the terminal that the remote side gets: ours, or a plain one where we have none.
pub(super) fn pty(term: Option<&str>) -> Pty {
    let stdin = io::stdin();
    let size =
        termios::tcgetwinsize(&stdin).ok().map_or(Size { columns: 80, rows: 24, ..Size::default() }, size);
    let modes = termios::tcgetattr(&stdin).map(|termios| modes(&termios)).unwrap_or_default();
    // TERM ends in a request to the server; without one, the host's programs must not expect much.
    Pty { term: term.unwrap_or("dumb").to_owned(), size, modes }
}

/// Connects this process's streams with `process` until it ends or the person leaves. `escape` starts what they say to us.
pub(super) async fn run(
    terminal: &Terminal,
    process: Process,
    pump: Pump,
    escape: Option<u8>,
) -> io::Result<Outcome> {
    let interactive = process.has_pty && stdin_is_terminal();
    if interactive {
        terminal.raw()?;
    }
    let (resized, sizes) = mpsc::channel(1);
    let mut window_changes = signal(SignalKind::window_change())?;
    let mut suspend = || {
        terminal.restore();
        // The default action stops us here; `fg` goes on behind it.
        if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), Signal::TSTP) {
            tracing::warn!(%error, "could not be suspended");
        }
        if let Err(error) = terminal.raw() {
            tracing::warn!(%error, "the terminal is not raw any more");
        }
    };
    let local = Local {
        stdin: Keyboard::open(),
        stdout: Stdout::open(),
        stderr: tokio::io::stderr(),
        sizes,
        escape: escape.filter(|_| interactive),
        suspend: &mut suspend,
    };
    let watching = async {
        while window_changes.recv().await.is_some() {
            if let Ok(now) = termios::tcgetwinsize(io::stdin()) {
                // A size that is not taken yet is out of date by the next one.
                resized.try_send(size(now)).unwrap_or_default();
            }
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = bridge(process, pump, local) => outcome,
        () = watching => Outcome::Exited(Exit::Unknown),
    };
    if interactive {
        terminal.restore();
    }
    Ok(outcome)
}

/// Returns the exit code of what ran on the host: its status, 128 + n for a signal, 255 where it had none.
pub(super) fn exit_code(outcome: Outcome, host: &str) -> Result<ExitCode, Failure> {
    status(outcome, host).map(ExitCode::from)
}

/// Returns the same as a number.
pub(super) fn status(outcome: Outcome, host: &str) -> Result<u8, Failure> {
    let failed = |what: String| Err(Failure::new(Kind::Failed, what));
    match outcome {
        // An exit status has 8 bits (wait(2)); what a server sends beyond them means nothing.
        Outcome::Exited(Exit::Status(status)) => Ok(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
        Outcome::Exited(Exit::Signal { name, .. }) => Ok(signal_code(&name)),
        Outcome::Exited(Exit::Lost) => failed(format!("the connection to {host} was lost")),
        Outcome::Exited(Exit::Unknown) => failed(format!("{host} did not say how the command ended")),
        Outcome::Exited(Exit::TooMuchOutput(why)) => failed(match why {
            Some(why) => format!("the output could not be kept until it was read: {why}"),
            None => "the output could not be kept until it was read".to_owned(),
        }),
        Outcome::Left => Ok(255),
        // As a process that wrote into a closed pipe ends: 128 + SIGPIPE.
        Outcome::OutputClosed => Ok(141),
        Outcome::OutputLost(why) => failed(format!("the output could not be written: {why}")),
    }
}

/// Returns 128 + the number that a signal has on Linux.
fn signal_code(name: &str) -> u8 {
    let number = match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "ABRT" => 6,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        _ => return 255,
    };
    128 + number
}

fn size(window: termios::Winsize) -> Size {
    Size {
        columns: window.ws_col.into(),
        rows: window.ws_row.into(),
        width: window.ws_xpixel.into(),
        height: window.ws_ypixel.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(outcome: Outcome) -> String {
        format!("{:?}", exit_code(outcome, "host").unwrap())
    }

    #[test]
    fn the_exit_code_is_the_remote_one() {
        for status in [0, 1, 3, 255] {
            let expected = format!("{:?}", ExitCode::from(u8::try_from(status).unwrap()));
            assert_eq!(code(Outcome::Exited(Exit::Status(status))), expected);
        }
        let killed = Exit::Signal { name: "KILL".into(), core_dumped: false, message: String::new() };
        assert_eq!(code(Outcome::Exited(killed)), format!("{:?}", ExitCode::from(137)));
        assert!(exit_code(Outcome::Exited(Exit::Unknown), "host").is_err());
    }
}
