//! broker

#![forbid(unsafe_code)]

mod audit;
mod aws;
mod backoff;
mod clock;
mod creds;
mod human;
mod printable;
mod private_fs;
mod serve;
mod remote;
mod ssh;
