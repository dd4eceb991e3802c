//! What a service manager is told: ready, and stopping (`sd_notify(3)`).

use std::{
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
};

use crate::config::Environment;

/// Tells the service manager that waits for it, if one does, that the tunnel to `host` is ready.
pub(super) fn ready(environment: &Environment, host: &str) -> io::Result<()> {
    tell(environment, &format!("READY=1\nSTATUS=serving AWS credentials to {host}"))
}

/// Tells the service manager that we end.
pub(super) fn stopping(environment: &Environment) -> io::Result<()> {
    tell(environment, "STOPPING=1")
}

fn tell(environment: &Environment, state: &str) -> io::Result<()> {
    let Some(address) = environment.get("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match address.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold us.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
