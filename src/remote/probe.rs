//! Why sshd refused a forward, and which port to ask for instead. Pure.
//!
//! sshd only says no; the reason is in a debug message that our SSH library drops. So what else it allows is
//! tried, and the host's listeners are read.

use super::sockets::Listening;
use crate::caller::Uid;

/// What was tried after sshd refused the port that we want.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Probes {
    /// Whether it opened a port of its own choice (0).
    pub(crate) any_port: Attempt,
    /// Whether it opened a unix socket in our directory.
    pub(crate) unix_socket: Attempt,
}

/// One forward that was asked for as a test.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Attempt {
    Allowed,
    Refused,
    /// Could not be tried.
    Untried,
}

/// Why the port was refused, by what can be done about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "sshd does not allow remote forwarding for this account (AllowTcpForwarding, DisableForwarding, or `restrict` or `no-port-forwarding` on your key or certificate)"
    )]
    ForwardingDisabled { port: u16 },
    #[error(
        "sshd limits which ports may be opened (PermitListen, or `permitlisten=` on your key); {port} is not among them"
    )]
    PermitListen { port: u16, unix_socket: Attempt },
    #[error("port {port} of the host is in use by {} (uid {uid})", whose(*uid))]
    PortBusy { port: u16, uid: Uid },
    #[error("port {port} of the host is in use by a process of yours, perhaps an earlier connection")]
    PortBusyByUs { port: u16 },
    #[error("port {port} of the host is in use, or sshd does not allow it (PermitListen)")]
    PortBusyOrNotPermitted { port: u16 },
    #[error("port {port} of the host is below 1024, which only root may open")]
    Privileged { port: u16 },
}

fn whose(uid: Uid) -> &'static str {
    if uid == Uid(0) { "root" } else { "another user" }
}

impl Refusal {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ForwardingDisabled { port } => format!(
                "ask for `AllowTcpForwarding remote` and `PermitListen 127.0.0.1:{port}` in sshd_config, or for a key without `restrict`"
            ),
            Self::PermitListen { port, unix_socket: Attempt::Allowed } => {
                format!(
                    "ask for `PermitListen 127.0.0.1:{port}` in sshd_config (unix sockets are allowed already)"
                )
            }
            Self::PermitListen { port, .. } => {
                format!("ask for `PermitListen 127.0.0.1:{port}` in sshd_config")
            }
            Self::PortBusy { .. } | Self::Privileged { .. } => "use `--remote-port auto`".into(),
            Self::PortBusyByUs { .. } => {
                "if no other broker of yours is connected, sshd frees it soon; or use `--remote-port auto`"
                    .into()
            }
            Self::PortBusyOrNotPermitted { port } => {
                format!("use `--remote-port auto`, or ask for `PermitListen 127.0.0.1:{port}` in sshd_config")
            }
        })
    }

    /// Whether another port may be had.
    pub(crate) fn is_about_this_port(&self) -> bool {
        match self {
            Self::PortBusy { .. }
            | Self::PortBusyByUs { .. }
            | Self::PortBusyOrNotPermitted { .. }
            | Self::Privileged { .. } => true,
            Self::ForwardingDisabled { .. } | Self::PermitListen { .. } => false,
        }
    }
}

/// Decides why `port` was refused; `listening` is `None` when the host does not show its sockets.
pub(crate) fn classify(port: u16, probes: Probes, listening: Option<&Listening>, our_uid: Uid) -> Refusal {
    let holder = listening.and_then(|listening| holder(listening, our_uid));
    match probes {
        // Says more than who holds the port: nothing could be had by waiting for it.
        Probes { any_port: Attempt::Refused, unix_socket: Attempt::Refused } => {
            Refusal::ForwardingDisabled { port }
        }
        // PermitListen rules out port 0 even where it names ours; then a holder is the reason after all.
        Probes { any_port: Attempt::Refused, unix_socket } if holder.is_none() => {
            Refusal::PermitListen { port, unix_socket }
        }
        _ => match holder {
            Some(uid) if uid == our_uid => Refusal::PortBusyByUs { port },
            Some(uid) => Refusal::PortBusy { port, uid },
            None if port < 1024 && our_uid != Uid(0) => Refusal::Privileged { port },
            None if listening.is_some() && probes.any_port == Attempt::Allowed => {
                Refusal::PermitListen { port, unix_socket: probes.unix_socket }
            }
            None => Refusal::PortBusyOrNotPermitted { port },
        },
    }
}

/// Returns who keeps sshd from binding `127.0.0.1`; others rather than us, because they are the obstacle that stays.
fn holder(listening: &Listening, our_uid: Uid) -> Option<Uid> {
    let holders = || {
        let on_ipv4 =
            |address: std::net::IpAddr| address.to_canonical().is_ipv4() || address.is_unspecified();
        listening
            .listeners
            .iter()
            .filter(move |listener| on_ipv4(listener.address))
            .map(|listener| listener.uid)
    };
    holders().find(|&uid| uid != our_uid).or_else(|| holders().next())
}

/// Returns the port to ask for when the usual one cannot be had: the same for one user each time, different for
/// neighbouring users, below the ephemeral range of Linux.
pub(crate) fn fallback_port(uid: Uid, attempt: u16) -> u16 {
    const FIRST: u64 = 20_000;
    const PORTS: u64 = 32_768 - FIRST;
    // Shares no factor with PORTS, so that attempts come to every port before they repeat.
    const STEP: u64 = 7_919;
    // The finaliser of SplitMix64: scatters neighbours, and will be the same in every release.
    let mut mixed = u64::from(uid.0).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let port = FIRST + (mixed % PORTS + u64::from(attempt) * STEP) % PORTS;
    #[expect(clippy::expect_used, reason = "less than 32768")]
    u16::try_from(port).expect("a port")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Attempt::*, *};
    use crate::remote::sockets::Listener;

    const US: Uid = Uid(1000);

    fn held_by(holders: &[(&str, u32)]) -> Listening {
        let listener =
            |&(address, uid): &(&str, u32)| Listener { address: address.parse().unwrap(), uid: Uid(uid) };
        Listening { port: 4144, listeners: holders.iter().map(listener).collect() }
    }

    fn classified(any_port: Attempt, unix_socket: Attempt, holders: &[(&str, u32)]) -> Refusal {
        classify(4144, Probes { any_port, unix_socket }, Some(&held_by(holders)), US)
    }

    // The rows are those measured with OpenSSH.
    #[test]
    fn each_setting_of_sshd_is_told_from_the_others() {
        let port = 4144;
        assert_eq!(classified(Refused, Refused, &[]), Refusal::ForwardingDisabled { port });
        assert_eq!(classified(Refused, Refused, &[("127.0.0.1", 1)]), Refusal::ForwardingDisabled { port });
        let limited = Refusal::PermitListen { port, unix_socket: Allowed };
        assert_eq!(classified(Refused, Allowed, &[]), limited);
        assert_eq!(classified(Allowed, Allowed, &[]), limited);
        for unix_socket in [Allowed, Refused, Untried] {
            let busy = Refusal::PortBusy { port, uid: Uid(1001) };
            assert_eq!(classified(Allowed, unix_socket, &[("127.0.0.1", 1001)]), busy);
            assert_eq!(classified(Allowed, unix_socket, &[("0.0.0.0", 1000), ("::", 1001)]), busy);
            let ours = Refusal::PortBusyByUs { port };
            assert_eq!(classified(Allowed, unix_socket, &[("127.0.0.1", 1000)]), ours);
        }
        assert_eq!(
            classified(Refused, Allowed, &[("127.0.0.1", 1001)]),
            Refusal::PortBusy { port, uid: Uid(1001) }
        );
        let harmless = classified(Allowed, Allowed, &[("::1", 1001)]);
        assert_eq!(harmless, limited, "a listener on ::1 does not keep anybody from 127.0.0.1");
    }

    #[test]
    fn what_cannot_be_known_is_not_claimed() {
        let probes = Probes { any_port: Allowed, unix_socket: Untried };
        assert_eq!(classify(4144, probes, None, US), Refusal::PortBusyOrNotPermitted { port: 4144 });
        assert_eq!(classify(80, probes, Some(&held_by(&[])), US), Refusal::Privileged { port: 80 });
    }

    #[test]
    fn every_refusal_names_its_port_or_setting_and_a_way_out() {
        let root = Refusal::PortBusy { port: 4144, uid: Uid(0) };
        assert_eq!(root.to_string(), "port 4144 of the host is in use by root (uid 0)");
        let limited = Refusal::PermitListen { port: 4144, unix_socket: Allowed };
        assert!(limited.to_string().contains("PermitListen"));
        assert!(limited.hint().unwrap().contains("PermitListen 127.0.0.1:4144"));
        assert!(limited.hint().unwrap().contains("unix sockets are allowed"));
        let disabled = Refusal::ForwardingDisabled { port: 4144 };
        assert!(disabled.to_string().contains("AllowTcpForwarding") && !disabled.is_about_this_port());
    }

    #[test]
    fn the_fallback_port_is_stable_and_everybodys_own() {
        assert_eq!(fallback_port(Uid(1000), 0), 21_288);
        let ports: HashSet<_> = (1000..1050).map(|uid| fallback_port(Uid(uid), 0)).collect();
        assert!(ports.len() >= 49, "{ports:?}");
        let attempts: HashSet<_> = (0..12_768).map(|attempt| fallback_port(US, attempt)).collect();
        assert_eq!(attempts.len(), 12_768);
        assert!(attempts.iter().all(|port| (20_000..=32_767).contains(port)));
    }
}
