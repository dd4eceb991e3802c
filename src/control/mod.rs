//! How another terminal of the same user looks at a running `broker` and steers it: one private socket per process.
//!
//! There is no daemon. Every process that holds a tunnel listens on a unix socket of its own in one 0700 directory
//! ([`place`]); a command looks there, asks each of them for its state ([`client`]), and sends its one request to the
//! one that is meant. The kernel says who connects, and nobody but the user whose process it is gets a single byte
//! ([`server`]), root included. A request and its answer are one bounded line of JSON each ([`wire`]); what they can
//! say is in [`message`].
//!
//! No secret passes through here, not even for `broker env`: exports name the token's file on the host.

pub(crate) mod board;
pub(crate) mod client;
pub(crate) mod message;
pub(crate) mod place;
pub(crate) mod server;
#[cfg(test)]
mod tests;
mod wire;
