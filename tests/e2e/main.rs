//! The promises to users, each proven from outside: the real `broker`, the real sshd, real SDKs, three real users.
//!
//! Every test runs in a network and mount namespace of its own, so that port 4144 and every file on tmpfs is its own.
//! Needs root; `tests/run` installs what else is needed.

mod host_files;
mod sdks;
mod support;
mod transports;
