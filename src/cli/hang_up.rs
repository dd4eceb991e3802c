//! The signals that end a tunnel, and SIGHUP, which ends one only where somebody sat at its terminal.
//!
//! Under a service manager, and in the background, there is no terminal to hang up: there SIGHUP is the word to connect
//! anew, now. Whoever has it ignored (`nohup`) has it ignored.

use std::{fs::File, io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{
    config::{Job, Plan},
    tunnel::Steering,
};

/// The signals that end us, watched from the beginning.
pub(super) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Read at the start: a terminal that was closed is none any more when its signal comes.
    terminal: bool,
    ignored: bool,
}

/// What SIGHUP does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum HangUp {
    Ends,
    Reconnects,
    Nothing,
}

impl Ends {
    /// Watches from this call on.
    pub(super) fn watch() -> io::Result<Self> {
        // Before there is a handler of ours.
        let ignored = std::fs::read_to_string("/proc/self/status").is_ok_and(|status| is_ignored(&status));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            terminal: File::open("/dev/tty").is_ok(),
            ignored,
        })
    }

    /// Returns when a start has to be given up.
    pub(super) async fn start(&mut self) {
        let hang_up = match self.hang_up(false) {
            // It is connecting already.
            HangUp::Reconnects => HangUp::Nothing,
            other => other,
        };
        self.next(hang_up, &[]).await;
    }

    /// Returns when the tunnel has to end; meanwhile has it connect anew whenever that is asked for.
    pub(super) async fn tunnel(&mut self, plan: &Plan, steering: &Steering) {
        self.tunnels(plan, std::slice::from_ref(steering)).await;
    }

    /// The same for all tunnels of a process.
    pub(super) async fn tunnels(&mut self, plan: &Plan, steering: &[Steering]) {
        let hang_up = match plan.job {
            Job::Exports { background, .. } => self.hang_up(background),
            Job::Command { .. } | Job::Shell { .. } if self.ignored => HangUp::Nothing,
            Job::Command { .. } | Job::Shell { .. } => HangUp::Ends,
        };
        self.next(hang_up, steering).await;
    }

    /// Whether our terminal was closed: what is written to it fails a moment before the signal comes.
    pub(super) async fn hung_up(&mut self) -> bool {
        self.terminal && !self.ignored && timeout(MOMENT, self.hang_up.recv()).await.is_ok()
    }

    fn hang_up(&self, background: bool) -> HangUp {
        match (background || !self.terminal, self.ignored) {
            (true, _) => HangUp::Reconnects,
            (false, true) => HangUp::Nothing,
            (false, false) => HangUp::Ends,
        }
    }

    async fn next(&mut self, hang_up: HangUp, steering: &[Steering]) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hang_up.recv() => match hang_up {
                    HangUp::Ends => return,
                    HangUp::Reconnects => steering.iter().for_each(Steering::reconnect),
                    HangUp::Nothing => {}
                },
            }
        }
    }
}

/// The kernel does both in one go.
const MOMENT: Duration = Duration::from_millis(100);

/// Returns whether a process with this `/proc/PID/status` was started with SIGHUP ignored.
fn is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_the_first_bit() {
        assert!(is_ignored("Name:\tx\nSigIgn:\t0000000000001001\n"));
        assert!(!is_ignored("Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n"));
        assert!(!is_ignored(""));
    }
}
