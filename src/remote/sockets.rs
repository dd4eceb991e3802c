//! Who listens on a port of the host and who calls it, as `/proc/net/tcp` and `/proc/net/tcp6` tell it.
//!
//! Parsing and judging only; `helper` fetches the rows. The kernel prints an IPv4 address as one native
//! integer, so 127.0.0.1 reads `0100007F` on every little-endian machine. On a big-endian one no row is
//! found, which proves nothing and therefore refuses everything: the safe side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use crate::caller::{Uid, Unproven};

/// The sockets that listen on one port, on the addresses that matter: loopback and the wildcards.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Listening {
    pub(crate) port: u16,
    pub(crate) listeners: Vec<Listener>,
}

/// One listening address. Several sockets of one user on one address count once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Listener {
    pub(crate) address: IpAddr,
    pub(crate) uid: Uid,
}

/// Why a listener that sshd says it opened for us must not be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ListenerProblem {
    #[error("nobody listens on 127.0.0.1:{port} of the host although sshd says so")]
    Nobody { port: u16 },
    #[error("another user (uid {uid}) listens on 127.0.0.1:{port} of the host")]
    Foreign { port: u16, uid: Uid },
    #[error("sshd opened port {port} to the network, on {address} (GatewayPorts)")]
    Exposed { port: u16, address: IpAddr },
}

impl ListenerProblem {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Nobody { .. } => Some("look at the log of sshd there, or choose another port with `-R`".into()),
            Self::Foreign { .. } => Some("choose another port with `--remote-port auto`".into()),
            Self::Exposed { .. } => Some(
                "ask for `GatewayPorts no` or `clientspecified` in sshd_config; as it is, the whole network reaches the port"
                    .into(),
            ),
        }
    }
}

/// Decides whether the listener on `127.0.0.1` is ours alone, and returns what others hold beside it.
///
/// Root's sshd may own the socket in our place. Others on `[::1]` or `[::]` of the same port are harmless to
/// us, because only the literal 127.0.0.1 is ever published, but a person using `localhost` would meet them.
pub(crate) fn verify(listening: &Listening, our_uid: Uid) -> Result<Vec<Listener>, ListenerProblem> {
    let port = listening.port;
    let ours = |uid| uid == our_uid || uid == Uid(0);
    let mut found = false;
    let mut neighbours = Vec::new();
    for &Listener { address, uid } in &listening.listeners {
        let published = match address {
            IpAddr::V4(address) => address == Ipv4Addr::LOCALHOST || address.is_unspecified(),
            // Mapped addresses accept what is sent to the IPv4 address.
            IpAddr::V6(address) => address.to_ipv4_mapped().is_some(),
        };
        if published && !ours(uid) {
            return Err(ListenerProblem::Foreign { port, uid });
        }
        let wildcard = address.to_canonical().is_unspecified();
        // sshd opens the IPv6 wildcard under our uid; a service of root's on it is none of our business
        // as long as 127.0.0.1 is ours.
        if wildcard && (published || uid == our_uid) {
            return Err(ListenerProblem::Exposed { port, address });
        }
        if published {
            found = true;
        } else {
            neighbours.push(Listener { address, uid });
        }
    }
    if found { Ok(neighbours) } else { Err(ListenerProblem::Nobody { port }) }
}

/// Who connects from where to our port.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Call {
    pub(super) originator: SocketAddrV4,
    pub(super) listen_port: u16,
}

/// One row of a caller's own end of its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Row {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    state: u8,
    uid: Uid,
    inode: u64,
}

/// Decides whose call it is.
///
/// Only the row with exactly the originator's address and port and with `127.0.0.1:listen_port` as its peer
/// counts, so a socket of somebody else that has the same port on another address (127.0.0.2) or to another
/// peer proves and disturbs nothing. The kernel tells the owner of a socket only while a process holds it: an
/// orphan shows inode 0 and, on most kernels, uid 0. So a row without inode is none, and what counts beside
/// ESTABLISHED (01) and CLOSE_WAIT (08) is FIN_WAIT1 (04) and FIN_WAIT2 (05): a client that half-closed after
/// its request still holds its socket there. TIME_WAIT, LAST_ACK and CLOSING have no reader who could use an answer.
pub(super) fn owner(rows: &[Row], call: Call) -> Result<Uid, Unproven> {
    let listener = SocketAddrV4::new(Ipv4Addr::LOCALHOST, call.listen_port);
    let mut owner = None;
    for row in rows {
        let theirs = row.local == call.originator && row.remote == listener;
        if !theirs || row.inode == 0 || !matches!(row.state, 0x01 | 0x04 | 0x05 | 0x08) {
            continue;
        }
        if owner.is_some_and(|uid| uid != row.uid) {
            return Err(Unproven::Ambiguous);
        }
        owner = Some(row.uid);
    }
    owner.ok_or(Unproven::Gone)
}

impl Row {
    /// Reads `LOCAL REMOTE STATE UID INODE`; `None` for anything else.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let row = Self {
            local: v4(endpoint(fields.next()?)?)?,
            remote: v4(endpoint(fields.next()?)?)?,
            state: fields
                .next()
                .filter(|state| state.len() == 2)
                .and_then(|state| u8::try_from(hex(state)?).ok())?,
            uid: Uid(decimal(fields.next()?)?),
            inode: decimal(fields.next()?)?,
        };
        fields.next().is_none().then_some(row)
    }
}

impl Listener {
    /// Reads `LOCAL UID` of a socket that listens on `port`; `None` for anything else.
    pub(super) fn parse(text: &str, port: u16) -> Option<Self> {
        let (local, uid) = text.split_once(' ')?;
        let (address, local_port) = endpoint(local)?;
        (local_port == port).then_some(Self { address, uid: Uid(decimal(uid)?) })
    }
}

/// Writes an address as `/proc/net/tcp` does.
pub(super) fn as_in_proc(endpoint: SocketAddrV4) -> String {
    format!("{:08X}:{:04X}", u32::from_le_bytes(endpoint.ip().octets()), endpoint.port())
}

fn v4((address, port): (IpAddr, u16)) -> Option<SocketAddrV4> {
    match address.to_canonical() {
        IpAddr::V4(address) => Some(SocketAddrV4::new(address, port)),
        IpAddr::V6(_) => None,
    }
}

fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::try_from(hex(port).filter(|_| port.len() == 4)?).ok()?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(hex(address)?.to_le_bytes())),
        32 => {
            let mut octets = [0; 16];
            for (index, word) in octets.chunks_exact_mut(4).enumerate() {
                word.copy_from_slice(&hex(address.get(index * 8..index * 8 + 8)?)?.to_le_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((address, port))
}

// `from_str_radix` alone would take a sign.
fn hex(text: &str) -> Option<u32> {
    let valid = text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    u32::from_str_radix(text, 16).ok().filter(|_| valid)
}

fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALICE: Uid = Uid(1000);
    const MALLORY: Uid = Uid(1001);

    fn listening(rows: &[&str]) -> Listening {
        let listeners = rows.iter().map(|row| Listener::parse(row, 4144).expect(row)).collect();
        Listening { port: 4144, listeners }
    }

    fn rows(rows: &[&str]) -> Vec<Row> {
        rows.iter().map(|row| Row::parse(row).expect(row)).collect()
    }

    fn call() -> Call {
        Call { originator: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0xABCD), listen_port: 4144 }
    }

    #[test]
    fn a_listener_of_ours_or_of_roots_sshd_is_ours() {
        assert_eq!(verify(&listening(&["0100007F:1030 1000"]), ALICE), Ok(vec![]));
        assert_eq!(verify(&listening(&["0100007F:1030 0"]), ALICE), Ok(vec![]));
    }

    #[test]
    fn a_squatter_is_named() {
        for rows in [
            &["0100007F:1030 1001"][..],
            &["0100007F:1030 1000", "0100007F:1030 1001"],
            &["00000000:1030 1001"],
            &["0000000000000000FFFF00000100007F:1030 1001"],
        ] {
            let foreign = ListenerProblem::Foreign { port: 4144, uid: MALLORY };
            assert_eq!(verify(&listening(rows), ALICE), Err(foreign), "{rows:?}");
        }
    }

    #[test]
    fn a_port_that_sshd_opened_to_the_network_is_refused() {
        let v6 = "00000000000000000000000000000000:1030 1000";
        for rows in
            [&["00000000:1030 1000"][..], &["00000000:1030 0", v6], &[v6], &["0100007F:1030 1000", v6]]
        {
            let verdict = verify(&listening(rows), ALICE);
            assert!(matches!(verdict, Err(ListenerProblem::Exposed { .. })), "{rows:?} {verdict:?}");
        }
    }

    #[test]
    fn others_on_the_ipv6_loopback_are_reported_but_prove_nothing() {
        let squatter = "00000000000000000000000001000000:1030 1001";
        let neighbour = Listener { address: IpAddr::V6(Ipv6Addr::LOCALHOST), uid: MALLORY };
        assert_eq!(verify(&listening(&["0100007F:1030 1000", squatter]), ALICE), Ok(vec![neighbour]));
        assert_eq!(verify(&listening(&[squatter]), ALICE), Err(ListenerProblem::Nobody { port: 4144 }));
        assert_eq!(verify(&listening(&[]), ALICE), Err(ListenerProblem::Nobody { port: 4144 }));
    }

    #[test]
    fn the_caller_is_the_owner_of_exactly_that_socket() {
        let ours = "0100007F:ABCD 0100007F:1030 01 1000 77";
        for others in [
            "0200007F:ABCD 0100007F:1030 01 1001 78",
            "0100007F:ABCD 0200007F:1030 01 1001 78",
            "0100007F:ABCE 0100007F:1030 01 1001 78",
            "0100007F:ABCD 0100007F:1031 01 1001 78",
        ] {
            assert_eq!(owner(&rows(&[others, ours]), call()), Ok(ALICE), "{others}");
            assert_eq!(owner(&rows(&[others]), call()), Err(Unproven::Gone), "{others}");
        }
        let mapped = "0000000000000000FFFF00000100007F:ABCD 0000000000000000FFFF00000100007F:1030 08 1000 77";
        assert_eq!(owner(&rows(&[mapped]), call()), Ok(ALICE));
        let twice = [ours, "0100007F:ABCD 0100007F:1030 01 1001 78"];
        assert_eq!(owner(&rows(&twice), call()), Err(Unproven::Ambiguous));
    }

    #[test]
    fn a_socket_that_no_process_holds_proves_nothing() {
        for (state, inode, proven) in [
            ("01", 7, true),
            ("08", 7, true),
            ("04", 7, true),
            ("05", 7, true),
            ("01", 0, false),
            ("04", 0, false),
            ("05", 0, false),
            ("02", 7, false),
            ("06", 0, false),
            ("09", 0, false),
            ("0B", 7, false),
        ] {
            let row = format!("0100007F:ABCD 0100007F:1030 {state} 1000 {inode}");
            assert_eq!(owner(&rows(&[&row]), call()).is_ok(), proven, "{row}");
        }
    }

    #[test]
    fn a_row_in_any_other_grammar_is_none() {
        for bad in [
            "",
            "0100007F:ABCD 0100007F:1030 01 1000",
            "0100007F:ABCD 0100007F:1030 01 1000 7 7",
            "0100007F:ABCD 0100007F:1030 1 1000 7",
            "0100007F:ABCD 0100007F:1030 01 +1000 7",
            "0100007F:ABCD 0100007F:1030 01 -1 7",
            "0100007F:ABCD  0100007F:1030 01 1000 7",
            "0100007f:ABCD 0100007F:1030 01 1000 7",
            "0100007F:+BCD 0100007F:1030 01 1000 7",
            "00000000000000000000000001000000:ABCD 0100007F:1030 01 1000 7",
            "0100007F:ABCD 0100007F:1030 01 99999999999 7",
        ] {
            assert_eq!(Row::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Listener::parse("0100007F:1031 1000", 4144), None);
    }

    proptest! {
        #[test]
        fn addresses_survive_the_way_to_proc_and_back(address in any::<[u8; 4]>(), port: u16) {
            let address = SocketAddrV4::new(address.into(), port);
            prop_assert_eq!(endpoint(&as_in_proc(address)).and_then(v4), Some(address));
        }

        #[test]
        fn no_row_panics(text in "\\PC*", fields in "[0-9A-F:é +]{0,99}") {
            for text in [text, fields] {
                Row::parse(&text);
                Listener::parse(&text, 1);
            }
        }
    }
}
