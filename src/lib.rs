//! broker

#![forbid(unsafe_code)]

mod audit;
mod aws;
mod backoff;
mod caller;
mod cli;
mod clock;
mod config;
mod creds;
mod human;
mod names;
mod printable;
mod private_fs;
mod random;
mod remote;
mod serve;
mod ssh;
mod tunnel;

/// Runs `broker` with these arguments, the first of which is the program's name, and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    cli::main(arguments)
}
