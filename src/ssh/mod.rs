//! A client connection to one host; knows nothing of AWS or HTTP.

mod agent;
pub(crate) mod algorithms;
pub(crate) mod auth;
mod child;
mod chunk;
pub(crate) mod config;
pub(crate) mod dial;
pub(crate) mod error;
pub(crate) mod forward;
pub(crate) mod handler;
mod host_certificate;
pub(crate) mod host_keys;
mod identity;
pub(crate) mod inbox;
pub(crate) mod known_hosts;
mod known_hosts_command;
mod krl;
#[cfg(test)]
mod peer;
pub(crate) mod pipe;
pub(crate) mod process;
pub(crate) mod pump;
mod read_ahead;
mod revoked;
mod room;
pub(crate) mod session;
pub(crate) mod sftp;
pub(crate) mod target;
pub(crate) mod terminal;
pub(crate) mod transport;
