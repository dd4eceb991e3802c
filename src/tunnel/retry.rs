//! When a lost link is tried again, and when not. Decisions only: the waiting is [`super::reconnect`]'s.

use std::time::Duration;

use tokio::time::Instant;

use super::{Error, Lost};
use crate::{
    backoff,
    remote::{helper, install, sockets::ListenerProblem},
    ssh::{
        error::{ChannelRefused, Error as Ssh, ForwardRefused},
        handler::Ended,
        transport::Killed,
    },
};

/// What a failed attempt means for the next one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The network or the host is not there yet.
    Again,
    /// The server turned us away before it heard us: several times in a row is what penalties are for.
    Politely,
    /// Somebody holds our port, or something else does not work that may pass. Not for ever.
    Patiently,
    /// We are not let in: a person has to see to it.
    LoggedOut,
    /// It would be the same the next time, or must not be tried.
    GiveUp,
}

/// Decides what `error` means.
pub(super) fn judge(error: &Error) -> Verdict {
    match error {
        Error::Ssh(error) => judge_ssh(error),
        // It was opened before. A reason that was found may be wrong, too: who held the port when it was refused may have
        // let go of it before we looked why.
        Error::Forward { .. } => Verdict::Patiently,
        Error::Listener { problem: ListenerProblem::Nobody { .. }, .. } | Error::SelfTest { .. } => {
            Verdict::Patiently
        }
        Error::Helper { source: helper::Error::Unsuitable { .. }, .. } => Verdict::GiveUp,
        Error::Install { source: install::Error::Helper(error), .. } if is_silence(error) => Verdict::Again,
        Error::Helper { source, .. } if is_silence(source) => Verdict::Again,
        Error::Helper { .. }
        | Error::Install { .. }
        | Error::NothingRuns { .. }
        | Error::CannotLinger { .. }
        | Error::NoSftp { .. } => Verdict::Patiently,
        Error::Lost(Lost::Connection { source: Ended::Killed(Killed::Violation(_)), .. }) => Verdict::GiveUp,
        Error::Lost(_) => Verdict::Again,
        Error::CannotCheckCallers { .. }
        | Error::Listener { .. }
        | Error::NoSocket { .. }
        | Error::NameElsewhere { .. }
        | Error::SocketPath { .. }
        | Error::TokenTravels { .. }
        | Error::PortLost { .. }
        | Error::NeedsPerson { .. }
        | Error::LoggedOut { .. }
        | Error::NotBack { .. }
        | Error::NoRandomness(_) => Verdict::GiveUp,
    }
}

fn judge_ssh(error: &Ssh) -> Verdict {
    match error {
        Ssh::Unreachable { .. }
        | Ssh::NoProxy { .. }
        | Ssh::Broken { .. }
        | Ssh::Closed { .. }
        | Ssh::Stalled { .. } => Verdict::Again,
        Ssh::NoHandshake { .. } | Ssh::Protocol { .. } => Verdict::Politely,
        // The server went away while it was asked, which says nothing about the keys.
        Ssh::Authentication(refused) => match &refused.ended {
            Some(Ended::Closed | Ended::Lost(_) | Ended::KeepaliveTimeout | Ended::Killed(_)) => {
                Verdict::Politely
            }
            _ => Verdict::LoggedOut,
        },
        Ssh::Jump { source, .. } => judge_ssh(source),
        // The jump host does not reach the host, or may not.
        Ssh::JumpRefused { prohibited: false, .. } => Verdict::Again,
        Ssh::JumpRefused { prohibited: true, .. } => Verdict::Patiently,
        Ssh::HostKey(_) | Ssh::Weak { .. } | Ssh::NoJumpKeys { .. } => Verdict::GiveUp,
        Ssh::ForwardRefused(ForwardRefused::Denied { .. })
        | Ssh::ChannelRefused(ChannelRefused::Open { .. } | ChannelRefused::Request { .. }) => {
            Verdict::Patiently
        }
        Ssh::ForwardRefused(_) | Ssh::ChannelRefused(_) => Verdict::Again,
    }
}

/// Whether the helper was not heard any more, which the connection explains best.
fn is_silence(error: &helper::Error) -> bool {
    matches!(error, helper::Error::Ended { .. } | helper::Error::Silent)
}

/// How often it went wrong in a row, and so how long to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures {
    all: u32,
    turned_away: u32,
}

impl Failures {
    /// Counts one more, and returns how long to wait before the next attempt. `outage`: how long it has lasted.
    pub(super) fn wait(&mut self, verdict: Verdict, outage: Duration, random: f64) -> Duration {
        let wait = backoff::full_jitter(BASE, cap(outage), self.all, random);
        self.all = self.all.saturating_add(1);
        if verdict != Verdict::Politely {
            self.turned_away = 0;
            return wait;
        }
        self.turned_away = self.turned_away.saturating_add(1);
        match self.turned_away {
            1 => wait,
            _ => PENALTY + wait,
        }
    }

    /// Returns how long to wait before the first attempt: many who are cut off together do not come back together.
    pub(super) fn first(&mut self, random: f64) -> Duration {
        let wait = backoff::full_jitter(BASE, cap(Duration::ZERO), self.all, random);
        self.all = self.all.saturating_add(1);
        wait
    }
}

/// The attempts to reach a host for the first time, where somebody said for how long to try.
pub(crate) struct FirstTries {
    began: Instant,
    limit: Duration,
    failures: Failures,
}

impl FirstTries {
    /// Begins now; without a limit there is one attempt.
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { began: Instant::now(), limit: limit.unwrap_or_default(), failures: Failures::default() }
    }

    /// Returns how long to wait before the next one; nothing when it would go wrong like this one, or time is over.
    pub(crate) fn next(&mut self, error: &Error) -> Option<Duration> {
        let left = self.limit.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero())?;
        match judge(error) {
            verdict @ (Verdict::Again | Verdict::Politely) => {
                Some(self.failures.wait(verdict, self.began.elapsed(), backoff::random()).min(left))
            }
            Verdict::Patiently | Verdict::LoggedOut | Verdict::GiveUp => None,
        }
    }
}

/// A network that is back is used within five seconds; only who was away for long is looked for less often.
fn cap(outage: Duration) -> Duration {
    match outage.as_secs() {
        0..60 => Duration::from_secs(4),
        60..600 => Duration::from_secs(8),
        600..3600 => Duration::from_secs(30),
        _ => Duration::from_secs(60),
    }
}

/// The first wait is at most this.
const BASE: Duration = Duration::from_millis(500);

/// sshd from 9.8 on enforces its penalties from 15 s (PerSourcePenalties in sshd_config(5)), and so long a wait is no
/// flood in the eyes of fail2ban.
const PENALTY: Duration = Duration::from_secs(15);

/// A link that lived so long makes up for what went wrong before it.
pub(super) const HEALTHY: Duration = Duration::from_secs(30);

/// A port that another user took may have been taken for a moment; then it is gone.
pub(super) const PORT_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection of ours that the host still believes in, and that we may not end, ends by the host's own keepalives.
pub(super) const OWN_PORT_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a login was refused: seldom enough for MaxAuthTries, fail2ban and PerSourcePenalties (5 s each).
pub(super) const LOGIN_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(verdict: Verdict, outage: u64, count: usize) -> Vec<u64> {
        let mut failures = Failures::default();
        let outage = Duration::from_secs(outage);
        (0..count).map(|_| u64::try_from(failures.wait(verdict, outage, 1.0).as_millis()).unwrap()).collect()
    }

    #[test]
    fn a_short_outage_is_over_soon_and_a_long_one_costs_little() {
        assert_eq!(waits(Verdict::Again, 0, 6), [500, 1000, 2000, 4000, 4000, 4000]);
        assert_eq!(waits(Verdict::Again, 120, 6)[5], 8000);
        assert_eq!(waits(Verdict::Again, 1200, 9)[8], 30_000);
        assert_eq!(waits(Verdict::Again, 7200, 9)[8], 60_000);
    }

    #[test]
    fn who_is_turned_away_twice_stays_away_for_a_penalty() {
        assert_eq!(waits(Verdict::Politely, 0, 3), [500, 16_000, 17_000]);
        let mut failures = Failures::default();
        failures.wait(Verdict::Politely, Duration::ZERO, 0.0);
        failures.wait(Verdict::Again, Duration::ZERO, 0.0);
        assert!(failures.wait(Verdict::Politely, Duration::ZERO, 0.0) < PENALTY, "not in a row");
    }

    #[test]
    fn links_that_die_young_do_not_follow_each_other_at_once() {
        let mut failures = Failures::default();
        let waits: Vec<_> = (0..5).map(|_| failures.first(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 4000]);
    }
}
