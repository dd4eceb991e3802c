//! A client connection to one host; knows nothing of AWS or HTTP.

pub(crate) mod config;
pub(crate) mod known_hosts;
pub(crate) mod target;
