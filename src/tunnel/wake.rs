//! Notices that this machine slept, was set to another time, or is on another network: what was connected before may
//! be dead, and what was not may be back.
//!
//! The wall clock is the one that the rest of the program goes by. Looking is a few system calls every [`LOOK`]; nothing is sent.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep};

use crate::clock::Clock;

/// What has happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// The machine slept, this process was stopped, or the clock was set.
    Time,
    /// The host is reached from another address of ours than before.
    Network,
}

/// Looks for changes.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Clock,
    clocks: Clocks,
    peer: Option<SocketAddr>,
    source: Option<IpAddr>,
}

impl Watch {
    /// Watches from now on; `peer` is where the host is, if that is known.
    pub(super) fn new(peer: Option<SocketAddr>) -> Self {
        let clock = Clock::system();
        Self { clocks: Clocks::now(&clock), clock, peer, source: peer.and_then(source) }
    }

    /// Waits until something has changed. Nothing is lost when this is dropped and called again.
    pub(super) async fn changed(&mut self) -> Change {
        loop {
            if let Some(change) = self.look().await {
                return change;
            }
        }
    }

    /// Waits until it is time to look, and returns what has changed since the last time.
    pub(super) async fn look(&mut self) -> Option<Change> {
        let before = Instant::now();
        sleep(LOOK).await;
        let late = before.elapsed().saturating_sub(LOOK);
        let clocks = Clocks::now(&self.clock);
        let jumped = late >= LATE || clocks.differ(&self.clocks);
        self.clocks = clocks;
        let here = self.peer.and_then(source);
        // No way there at all may be over in a moment, and the way of before be good again.
        let moved = here.is_some() && here != self.source;
        if moved {
            self.source = here;
        }
        match (jumped, moved) {
            (true, _) => Some(Change::Time),
            (_, true) => Some(Change::Network),
            _ => None,
        }
    }
}

/// How far other clocks are ahead of the monotonic one, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    real: i128,
    boot: i128,
}

impl Clocks {
    fn now(clock: &Clock) -> Self {
        let real = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let real = i128::try_from(real.as_millis()).unwrap_or_default();
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        #[cfg(target_os = "linux")]
        let boot = read(ClockId::CLOCK_BOOTTIME);
        // Elsewhere a sleep shows in the wall clock alone.
        #[cfg(not(target_os = "linux"))]
        let boot = monotonic;
        Self { real: real - monotonic, boot: boot - monotonic }
    }

    fn differ(&self, before: &Self) -> bool {
        let far = |a: i128, b: i128, limit: Duration| (a - b).unsigned_abs() >= limit.as_millis();
        far(self.boot, before.boot, SLEPT) || far(self.real, before.real, LATE)
    }
}

fn read(clock: ClockId) -> i128 {
    // Every kernel that we run on has these clocks.
    clock_gettime(clock)
        .map_or(0, |now| i128::from(now.tv_sec()) * 1000 + i128::from(now.tv_nsec()) / 1_000_000)
}

/// Returns the address of ours that packets to `peer` would come from. Connecting a datagram socket sends nothing.
fn source(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// With [`PROBE_TIMEOUT`] behind it, a dead link is noticed within five seconds of waking up. Every timer costs two or
/// three wake-ups, so what else has to be looked at now and then is looked at on this occasion.
const LOOK: Duration = Duration::from_millis(2900);

/// How long the server may take to show that it is there, when there is reason for doubt.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_millis(1900);

/// The two clocks count the same ticks but for sleep.
const SLEPT: Duration = Duration::from_secs(1);

/// A busy machine is late by less, and time servers correct by less than this at once.
const LATE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_and_a_set_clock_are_told_from_drift() {
        let clocks = |real, boot| Clocks { real, boot };
        let before = clocks(1_000_000, 0);
        assert!(!clocks(1_000_000, 0).differ(&before));
        assert!(!clocks(1_000_400, 3).differ(&before), "corrected by a time server");
        assert!(clocks(1_300_000, 300_000).differ(&before), "slept");
        assert!(clocks(4_600_000, 0).differ(&before), "an hour ahead");
        assert!(clocks(-2_600_000, 0).differ(&before), "an hour back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_notices() {
        let mut watch = Watch::new(None);
        let stopped = async {
            tokio::time::advance(Duration::from_millis(1)).await;
            // As SIGSTOP does: the clock goes on and nobody runs.
            tokio::time::advance(Duration::from_secs(60)).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            change = watch.changed() => assert_eq!(change, Change::Time),
            () = stopped => {}
        }
        assert!(
            tokio::time::timeout(Duration::from_secs(60), watch.changed()).await.is_err(),
            "and only once"
        );
    }

    #[test]
    fn the_own_address_is_that_of_the_way_there() {
        assert_eq!(source("127.0.0.1:22".parse().unwrap()), Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
