//! The promises to users, each proven from outside: the real `broker`, the real sshd, real SDKs, three real users.
//!
//! Every test runs in a network and mount namespace of its own, so that port 4144 and every file on tmpfs is its own.
//! Needs root; `tests/run` installs what else is needed.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "what goes wrong here is a failed test, and a panic is its report"
)]

mod algorithms;
mod aws_faults;
mod background;
mod bad_hosts;
mod cases;
mod ci;
mod commands;
mod configuration;
mod control;
mod events;
mod faults;
mod fetchers;
#[cfg(feature = "gssapi")]
mod gssapi;
mod host_certificates;
mod host_files;
mod hostile;
mod identity;
mod image;
mod jumps;
#[cfg(feature = "keyring")]
mod keyring;
mod limits;
mod linger;
mod load;
mod logins;
mod man;
mod many;
mod matrix;
mod names;
mod neighbours;
mod no_proc;
mod nodes;
mod other_servers;
mod outputs;
mod picker;
mod profiles;
mod recipes;
mod refusals;
mod returns;
mod rudeness;
mod screens;
mod sdks;
mod security_keys;
mod services;
mod sftp;
mod shells;
mod sign_ins;
mod sources;
mod ssh_options;
mod start_urls;
mod stops;
mod support;
mod tls;
mod transports;
mod users;
