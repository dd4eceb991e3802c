//! broker

#![forbid(unsafe_code)]

mod clock;
mod creds;
mod human;
mod printable;
mod private_fs;
mod remote;
mod ssh;
