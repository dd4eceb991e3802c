//! A TCP connection to a [`Target`]: every address of the name, the fastest wins.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::debug;

use crate::ssh::{
    error::Error,
    target::{AddressFamily, Bind, Target},
    transport::STALL_TIMEOUT,
};

/// How long one address gets before the next is tried beside it (RFC 8305, section 8).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Between two attempts on all addresses (`ConnectionAttempts`), as OpenSSH waits.
const NEXT_ATTEMPT: Duration = Duration::from_secs(1);

/// More addresses than any bastion has; a name with more is not worth waiting for.
const MOST_ADDRESSES: usize = 16;

/// Why no address answered.
#[derive(Debug)]
pub(crate) enum Cause {
    NameNotFound(io::Error),
    /// The name has addresses, but none of the family that was asked for.
    NoAddress(AddressFamily),
    /// `BindAddress` or `BindInterface` names nothing that we could connect from.
    Bind {
        name: String,
        source: io::Error,
    },
    /// What each address that failed said.
    Failed(Vec<(SocketAddr, io::Error)>),
    TimedOut(Duration),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameNotFound(_) => f.write_str("the name could not be resolved"),
            Self::Bind { name, .. } => write!(f, "`{name}` has no address to connect from"),
            Self::NoAddress(AddressFamily::Inet) => f.write_str("the name has no IPv4 address"),
            Self::NoAddress(AddressFamily::Inet6) => f.write_str("the name has no IPv6 address"),
            Self::NoAddress(AddressFamily::Any) => f.write_str("the name has no address"),
            Self::Failed(tried) => {
                for (i, (address, error)) in tried.iter().enumerate() {
                    let what = match error.kind() {
                        io::ErrorKind::ConnectionRefused => "connection refused".into(),
                        io::ErrorKind::TimedOut => "timed out".into(),
                        io::ErrorKind::NetworkUnreachable => "network unreachable".into(),
                        io::ErrorKind::HostUnreachable => "no route to host".into(),
                        _ => error.to_string(),
                    };
                    write!(f, "{}{what} ({})", if i == 0 { "" } else { ", " }, address.ip())?;
                }
                Ok(())
            }
            Self::TimedOut(after) => write!(f, "no answer within {} s", after.as_secs()),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NameNotFound(error) | Self::Bind { source: error, .. } => Some(error),
            Self::NoAddress(_) | Self::Failed(_) | Self::TimedOut(_) => None,
        }
    }
}

impl Cause {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self, host: &str) -> Option<String> {
        match self {
            Self::NameNotFound(_) => {
                Some(format!("check the spelling of `{host}`, or `HostName` in ssh_config"))
            }
            Self::Bind { .. } => {
                Some("look at `BindAddress` and `BindInterface`; `ip address` lists what there is".into())
            }
            Self::NoAddress(_) => Some("leave the address family out (`-4`, `-6`, `AddressFamily`)".into()),
            Self::TimedOut(_) => Some("is a VPN or a jump host needed to get there?".into()),
            Self::Failed(tried) => {
                let refused =
                    |(_, error): &(SocketAddr, io::Error)| error.kind() == io::ErrorKind::ConnectionRefused;
                Some(if tried.iter().any(refused) {
                    "does sshd run there, and on this port? another one is named with `-P PORT`".into()
                } else {
                    "is the network up, and is a VPN or a jump host needed to get there?".into()
                })
            }
        }
    }
}

/// A connected socket that acknowledges at once.
///
/// sshd up to 10.0 leaves Nagle's algorithm on for forwards; with our delayed acknowledgements every request
/// would take 44 ms.
#[derive(Debug)]
pub(super) struct Tcp {
    stream: TcpStream,
    peer: SocketAddr,
}

impl Tcp {
    /// Returns the address that answered.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }
}

/// The address that answered before, of a name that may have several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Before {
    pub(crate) address: SocketAddr,
    /// Whether another address of the name will not do: what was left there is on that machine.
    pub(crate) alone: bool,
}

impl Before {
    /// Puts the address first, or leaves it alone among what the name resolves to now. Where the name has it no more
    /// the machine has moved, or we have.
    fn prefer(self, mut resolved: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if resolved.contains(&self.address) {
            resolved.retain(|address| *address != self.address && !self.alone);
            resolved.insert(0, self.address);
        }
        resolved
    }
}

/// Connects to `target`, from where it wants; `before` says where it was reached before.
pub(super) async fn connect(target: &Target, before: Option<Before>) -> Result<Tcp, Error> {
    let unreachable =
        |cause| Error::Unreachable { host: target.hostname.clone(), port: target.port, source: cause };
    let deadline = Instant::now() + target.connect_timeout;
    let resolving = tokio::net::lookup_host((target.hostname.as_str(), target.port));
    let addresses: Vec<_> = match timeout_at(deadline, resolving).await {
        Err(_) => return Err(unreachable(Cause::TimedOut(target.connect_timeout))),
        Ok(Err(error)) => match before {
            // Names are often not back yet when the network is.
            Some(before) => vec![before.address],
            None => return Err(unreachable(Cause::NameNotFound(error))),
        },
        Ok(Ok(addresses)) => addresses.collect(),
    };
    let addresses = in_order(addresses, target.address_family);
    let addresses = match before {
        Some(before) => before.prefer(addresses),
        None => addresses,
    };
    if addresses.is_empty() {
        return Err(unreachable(Cause::NoAddress(target.address_family)));
    }
    let from = match timeout_at(deadline, local_addresses(&target.bind)).await {
        Ok(from) => from.map_err(unreachable)?,
        Err(_) => return Err(unreachable(Cause::TimedOut(target.connect_timeout))),
    };
    let mut attempt = 1;
    let (stream, peer) = loop {
        match race(addresses.clone(), &from, deadline, target.connect_timeout).await {
            Ok(connected) => break connected,
            Err(Cause::Failed(_)) if attempt < target.connection_attempts => {
                debug!(attempt, "no address answered; another attempt follows");
                attempt += 1;
                sleep_until(deadline.min(Instant::now() + NEXT_ATTEMPT)).await;
            }
            Err(cause) => return Err(unreachable(cause)),
        }
    };
    if let Err(error) = tune(&stream, target.tcp_keep_alive) {
        debug!(%error, "the socket keeps some of its defaults");
    }
    Ok(Tcp { stream, peer })
}

/// Keeps the wanted family, and lets families alternate so that a broken IPv6 costs one step (RFC 8305, section 4).
fn in_order(addresses: Vec<SocketAddr>, family: AddressFamily) -> Vec<SocketAddr> {
    let wanted = |address: &SocketAddr| match family {
        AddressFamily::Any => true,
        AddressFamily::Inet => address.is_ipv4(),
        AddressFamily::Inet6 => address.is_ipv6(),
    };
    let addresses: Vec<_> = addresses.into_iter().filter(wanted).collect();
    let Some(preferred) = addresses.first().map(SocketAddr::is_ipv6) else { return Vec::new() };
    let (mut ours, mut others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    ours.reverse();
    others.reverse();
    let mut ordered: Vec<SocketAddr> = Vec::new();
    while let Some(address) = ours.pop().or_else(|| others.pop()) {
        ordered.extend([Some(address), others.pop()].into_iter().flatten());
    }
    ordered.truncate(MOST_ADDRESSES);
    ordered
}

/// Returns the addresses that we may connect from; none for any.
async fn local_addresses(bind: &Bind) -> Result<Vec<IpAddr>, Cause> {
    let (name, found) = match bind {
        Bind { address: Some(name), .. } => {
            let looked_up = tokio::net::lookup_host((name.as_str(), 0)).await;
            (name, looked_up.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>()))
        }
        Bind { interface: Some(name), .. } => (name, addresses_of(name)),
        Bind { address: None, interface: None } => return Ok(Vec::new()),
    };
    let failed = |source| Cause::Bind { name: name.clone(), source };
    let found = found.map_err(failed)?;
    if found.is_empty() { Err(failed(io::ErrorKind::AddrNotAvailable.into())) } else { Ok(found) }
}

/// Returns the addresses of a network interface that reach beyond its own link.
fn addresses_of(interface: &str) -> io::Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?.filter(|one| one.interface_name == interface);
    let addresses = all.filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let reaches = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    Ok(addresses.filter(reaches).collect())
}

async fn connect_from(from: Vec<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    if from.is_empty() {
        return TcpStream::connect(to).await;
    }
    let Some(local) = from.into_iter().find(|local| local.is_ipv4() == to.is_ipv4()) else {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "BindAddress is of the other family"));
    };
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(local, 0))?;
    socket.connect(to).await
}

async fn race(
    addresses: Vec<SocketAddr>,
    from: &[IpAddr],
    deadline: Instant,
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), Cause> {
    let mut left = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        let more = match left.next() {
            Some(address) => {
                let from = from.to_vec();
                attempts.spawn(async move { (address, connect_from(from, address).await) });
                left.len() > 0
            }
            None if attempts.is_empty() => return Err(Cause::Failed(failed)),
            None => false,
        };
        // Without a further address there is nothing to wait for but an answer or the deadline.
        let next = if more { (Instant::now() + NEXT_ADDRESS).min(deadline) } else { deadline };
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok((address, Ok(stream)))) => return Ok((stream, address)),
                Some(Ok((address, Err(error)))) => failed.push((address, error)),
                // An attempt neither panics nor is cancelled while this set lives.
                Some(Err(_)) | None => {}
            },
            () = sleep_until(next) => {
                if Instant::now() >= deadline {
                    return Err(if failed.is_empty() { Cause::TimedOut(limit) } else { Cause::Failed(failed) });
                }
            }
        }
    }
}

fn tune(stream: &TcpStream, keep_alive: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, keep_alive)?;
    #[cfg(target_os = "linux")]
    {
        let milliseconds = u32::try_from(STALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(stream, milliseconds)?;
        rustix::net::sockopt::set_tcp_quickack(stream, true)?;
    }
    Ok(())
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        #[cfg(target_os = "linux")]
        // Where more was there than there was room for, nobody waits to hear that it came.
        if polled.is_ready() && buffer.remaining() > 0 {
            // The kernel falls back to delayed acknowledgements by itself; failing costs time only.
            rustix::net::sockopt::set_tcp_quickack(&self.stream, true).unwrap_or_default();
        }
        polled
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether `address` is this machine as a peer on it sees it: 127.0.0.0/8, `::1`, or an IPv4 one of these written as IPv6.
pub(crate) fn is_loopback(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::peer::target;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_and_start_with_what_the_resolver_prefers() {
        let list = addresses(&["[2001:db8::1]:22", "[2001:db8::2]:22", "192.0.2.1:22", "192.0.2.2:22"]);
        assert_eq!(
            in_order(list.clone(), AddressFamily::Any),
            addresses(&["[2001:db8::1]:22", "192.0.2.1:22", "[2001:db8::2]:22", "192.0.2.2:22"])
        );
        assert_eq!(in_order(list.clone(), AddressFamily::Inet), list[2..]);
        assert!(in_order(list[..2].to_vec(), AddressFamily::Inet).is_empty());
    }

    #[test]
    fn a_name_with_several_addresses_stays_on_the_machine_that_it_was_on() {
        let list = addresses(&["192.0.2.1:22", "192.0.2.2:22", "192.0.2.3:22"]);
        let before = |alone| Before { address: list[1], alone };
        assert_eq!(before(true).prefer(list.clone()), list[1..2]);
        assert_eq!(before(false).prefer(list.clone()), [list[1], list[0], list[2]]);
        let moved = addresses(&["198.51.100.1:22"]);
        assert_eq!(before(true).prefer(moved.clone()), moved);
    }

    #[test]
    fn loopback_is_recognised_however_it_is_written() {
        for yes in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["10.0.0.1", "::ffff:10.0.0.1", "0.0.0.0", "localhost", "", "127.0.0.1.example.org"] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[tokio::test]
    async fn a_refusing_port_is_named_with_its_cause() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let target = Target { hostname: "127.0.0.1".into(), port, ..target() };
        let error = connect(&target, None).await.unwrap_err();
        assert_eq!(error.to_string(), format!("could not reach `127.0.0.1:{port}`"));
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "connection refused (127.0.0.1)");
    }

    #[tokio::test]
    async fn our_end_is_where_it_is_wanted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let with = |address: Option<&str>, interface: Option<&str>| Target {
            hostname: "127.0.0.1".into(),
            port,
            bind: Bind { address: address.map(Into::into), interface: interface.map(Into::into) },
            ..target()
        };
        for (address, interface, expected) in [
            (Some("127.0.0.7"), None, "127.0.0.7"),
            (Some("127.0.0.7"), Some("none"), "127.0.0.7"),
            (None, Some("lo"), "127.0.0.1"),
        ] {
            let connected = connect(&with(address, interface), None).await.unwrap();
            assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), expected);
            drop(connected);
        }
        for (address, interface) in [(Some("192.0.2.7"), None), (None, Some("none")), (Some("::1"), None)] {
            let error = connect(&with(address, interface), None).await.unwrap_err();
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                ["no address to connect from", "assign requested", "other family"]
                    .iter()
                    .any(|w| cause.contains(w)),
                "{cause}"
            );
        }
    }

    #[tokio::test]
    async fn every_address_is_tried_as_often_as_is_wanted() {
        // Refuses while it only is a port, and answers from the moment that it listens.
        let listener = TcpSocket::new_v4().unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        let once = Target { hostname: "127.0.0.1".into(), port, ..target() };
        connect(&once, None).await.unwrap_err();
        let often = Target { connection_attempts: 20, ..once };
        let connecting = async { connect(&often, None).await.map(drop) };
        let listening = async {
            tokio::task::yield_now().await;
            listener.listen(1).unwrap()
        };
        let (connected, _listener) = tokio::join!(connecting, listening);
        connected.unwrap();
    }

    #[tokio::test]
    async fn a_dead_first_address_does_not_keep_a_living_second_one_waiting() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let living = listener.local_addr().unwrap();
        // Nothing listens there, so it refuses at once and the second address is next.
        let dead = SocketAddr::new("127.0.0.2".parse().unwrap(), living.port());
        let deadline = Instant::now() + Duration::from_secs(5);
        let (stream, peer) = race(vec![dead, living], &[], deadline, Duration::from_secs(5)).await.unwrap();
        assert_eq!(peer, living);
        tune(&stream, true).unwrap();
    }
}
