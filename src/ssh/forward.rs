//! What the server may open towards us: the forwards of this connection, and nothing else.
//!
//! A forward is asked for, confirmed, and then gives [`Arrival`]s. Whatever the server opens besides is a
//! violation: sshd never does that, so a few of them end the connection.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use super::{
    dial::is_loopback,
    pump::{Pump, Stream},
    room::Room,
};

/// Connections that are served at a time.
pub(super) const MOST_CHANNELS: usize = 256;

/// Channels that the server may have open towards us at a time: those that are served, and those that were answered
/// and whose client on the host has not closed its end yet. A neighbour who never does so must not keep the places
/// of others; sshd has as many descriptors for them as this, at most.
pub(super) const MOST_OPEN: usize = 1024;

/// Arrivals that may wait for the link's loop. One read of the connection can bring the opens of a whole burst before
/// that loop has its turn, so all who find room must fit: who does not is refused, and an SDK there sees a reset.
const MOST_WAITING: usize = MOST_CHANNELS;

/// Violations that end the connection: one more than could be a misunderstanding.
const MOST_VIOLATIONS: usize = 3;

/// The address that forwards are asked for on. Never `localhost`: sshd would say yes although somebody else holds
/// that port on `[::1]`, and SDKs would give that somebody the token.
pub(super) const BIND_ADDRESS: &str = "127.0.0.1";

/// Where the server listens for us.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Listener {
    /// A port on 127.0.0.1 of the host.
    Tcp(u16),
    /// A unix socket on the host.
    Local(String),
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(0) => f.write_str("a port of its choice"),
            Self::Tcp(port) => write!(f, "port {port}"),
            Self::Local(path) => write!(f, "socket `{path}`"),
        }
    }
}

/// A forward that the server confirmed. Dropping it refuses what still arrives; `Session::cancel` also frees the
/// port or socket.
#[derive(Debug)]
pub(crate) struct Forward {
    /// Connections to the listener. Whoever takes one drives its pump.
    pub(crate) arrivals: mpsc::Receiver<Box<Arrival>>,
    pub(crate) listener: Listener,
}

/// One connection that somebody on the host made to a forward.
pub(crate) struct Arrival {
    pub(crate) stream: Stream,
    /// To be driven in the same task: `join!(pump, serve)`. It holds this connection's place among the open ones.
    pub(crate) pump: Pump,
    /// Where the connection came from; `None` on a unix socket, or where the server did not say.
    pub(crate) originator: Option<SocketAddr>,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("originator", &self.originator).finish_non_exhaustive()
    }
}

/// Every forward of one connection, and the room there is.
#[derive(Debug)]
pub(super) struct Forwards {
    table: Mutex<Table>,
    pub(super) room: Arc<Room>,
}

#[derive(Debug, Default)]
struct Table {
    /// Asked for or confirmed. Arrivals of one that is refused later are dropped with it.
    live: Vec<(Listener, mpsc::Sender<Box<Arrival>>)>,
    /// Given up: what was on its way when we did is no violation.
    gone: VecDeque<Listener>,
    violations: usize,
}

/// What to do with a channel that the server wants to open.
#[derive(Debug)]
pub(super) enum Judgement {
    /// Take it, and send the arrival here.
    Take(mpsc::OwnedPermit<Box<Arrival>>),
    /// There is no room at the moment.
    Full,
    /// It is none of ours, but nobody broke a rule.
    Refuse,
    /// sshd would never do that. The text says what; too many of them, and the connection must end.
    Violation { what: String, fatal: bool },
}

impl Forwards {
    pub(super) fn new() -> Self {
        Self { table: Mutex::default(), room: Room::new(MOST_CHANNELS, MOST_OPEN) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `listener` before it is asked for: a connection may come with the confirmation.
    pub(super) fn add(&self, listener: Listener) -> Forward {
        let (sender, arrivals) = mpsc::channel(MOST_WAITING);
        self.table().live.push((listener.clone(), sender));
        Forward { arrivals, listener }
    }

    /// The server chose `port` for a forward that was added with port 0.
    pub(super) fn chosen(&self, forward: &mut Forward, port: u16) {
        let listener = Listener::Tcp(port);
        for (live, _) in self.table().live.iter_mut().filter(|(live, _)| *live == Listener::Tcp(0)) {
            *live = listener.clone();
        }
        forward.listener = listener;
    }

    /// Takes `listener` out.
    pub(super) fn remove(&self, listener: &Listener) {
        let mut table = self.table();
        table.live.retain(|(live, _)| live != listener);
        table.gone.push_back(listener.clone());
        if table.gone.len() > 16 {
            table.gone.pop_front();
        }
    }

    /// Judges a `forwarded-tcpip` channel.
    pub(super) fn tcp(&self, address: &str, port: u32, originator: &str) -> Judgement {
        let listener = u16::try_from(port).ok().filter(|port| *port != 0).map(Listener::Tcp);
        match listener {
            Some(listener) if address == BIND_ADDRESS => {
                let judgement = self.listener(&listener, "a connection to a port");
                // With `GatewayPorts yes` sshd listens to the whole network; a stranger is no fault of the server.
                if matches!(judgement, Judgement::Take(_)) && !is_loopback(originator) {
                    return Judgement::Refuse;
                }
                judgement
            }
            _ => self.violation("a connection to an address"),
        }
    }

    /// Judges a `forwarded-streamlocal@openssh.com` channel.
    pub(super) fn local(&self, path: &str) -> Judgement {
        self.listener(&Listener::Local(path.to_owned()), "a connection to a socket")
    }

    fn listener(&self, listener: &Listener, what: &str) -> Judgement {
        let table = self.table();
        if let Some((_, sender)) = table.live.iter().find(|(live, _)| live == listener) {
            return match sender.clone().try_reserve_owned() {
                Ok(place) => Judgement::Take(place),
                Err(mpsc::error::TrySendError::Full(_)) => Judgement::Full,
                Err(mpsc::error::TrySendError::Closed(_)) => Judgement::Refuse,
            };
        }
        // Between the server's choice of a port and our reading of it, a connection to that port has no name yet.
        let unnamed = matches!(listener, Listener::Tcp(_))
            && table.live.iter().any(|(live, _)| *live == Listener::Tcp(0));
        if unnamed || table.gone.contains(listener) {
            return Judgement::Refuse;
        }
        drop(table);
        self.violation(what)
    }

    /// Counts something that the server must not do.
    pub(super) fn violation(&self, what: &str) -> Judgement {
        let mut table = self.table();
        table.violations += 1;
        Judgement::Violation {
            what: format!("it opened {what} that was not asked for"),
            fatal: table.violations > MOST_VIOLATIONS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_on_this_connection_is_taken() {
        let forwards = Forwards::new();
        let _port = forwards.add(Listener::Tcp(4144));
        let _socket = forwards.add(Listener::Local("/run/user/1/b/s".into()));
        assert!(matches!(forwards.tcp("127.0.0.1", 4144, "127.0.0.1"), Judgement::Take(_)));
        assert!(matches!(forwards.tcp("127.0.0.1", 4144, "::1"), Judgement::Take(_)));
        assert!(matches!(forwards.local("/run/user/1/b/s"), Judgement::Take(_)));
        assert!(matches!(forwards.tcp("127.0.0.1", 4144, "192.0.2.9"), Judgement::Refuse));
        for (address, port) in [("127.0.0.1", 22), ("10.0.0.5", 4144), ("localhost", 4144)] {
            assert!(matches!(
                forwards.tcp(address, port, "127.0.0.1"),
                Judgement::Violation { fatal: false, .. }
            ));
        }
        assert!(matches!(forwards.local("/tmp/other"), Judgement::Violation { fatal: true, .. }));
    }

    #[test]
    fn a_forward_that_was_given_up_is_refused_without_blame() {
        let forwards = Forwards::new();
        let forward = forwards.add(Listener::Tcp(4144));
        forwards.remove(&forward.listener);
        assert!(matches!(forwards.tcp("127.0.0.1", 4144, "127.0.0.1"), Judgement::Refuse));
        drop(forwards.add(Listener::Tcp(4145)));
        assert!(matches!(forwards.tcp("127.0.0.1", 4145, "127.0.0.1"), Judgement::Refuse));
    }

    #[test]
    fn arrivals_that_nobody_takes_do_not_pile_up() {
        let forwards = Forwards::new();
        let _forward = forwards.add(Listener::Tcp(4144));
        let mut places = Vec::new();
        loop {
            match forwards.tcp("127.0.0.1", 4144, "127.0.0.1") {
                Judgement::Take(place) => places.push(place),
                Judgement::Full => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(places.len(), MOST_WAITING);
    }

    #[test]
    fn the_port_that_the_server_chose_replaces_the_question() {
        let forwards = Forwards::new();
        let mut forward = forwards.add(Listener::Tcp(0));
        assert!(matches!(forwards.tcp("127.0.0.1", 40001, "127.0.0.1"), Judgement::Refuse));
        forwards.chosen(&mut forward, 40001);
        assert!(matches!(forwards.tcp("127.0.0.1", 40001, "127.0.0.1"), Judgement::Take(_)));
        assert!(matches!(forwards.tcp("127.0.0.1", 40002, "127.0.0.1"), Judgement::Violation { .. }));
    }
}
