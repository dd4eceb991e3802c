//! `--identity-env`: takes a private key out of the environment, so that no child gets it and nobody reads it there.
//!
//! A process cannot take anything back out of the environment that it was started with: `/proc/PID/environ` shows it to
//! its end. So we start anew as the same process without the variable, and the key goes through a pipe.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::failure::{Failure, Kind};
use crate::config::Environment;

/// `PID:DESCRIPTOR` of the pipe. It names the process, so that one that we start does not take it for its own.
const HANDED_OVER: &str = "BROKER_IDENTITY_PIPE";

/// A pipe holds 64 KiB; the largest key is a tenth of it.
const LARGEST: usize = 32 * 1024;

/// Returns the key of the variable `name`; in the process that still has it in its environment, it does not return.
pub(super) fn take(name: &str, environment: &Environment) -> Result<Option<SecretString>, Failure> {
    match environment.get(name) {
        Some(text) => Err(start_anew(name, text)),
        None => Ok(handed_over(environment)),
    }
}

fn start_anew(name: &str, text: &str) -> Failure {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(Kind::Failed, format!("could not take `{name}` out of the environment: {what}: {error}"))
    };
    if text.len() > LARGEST {
        return Failure::new(
            Kind::Usage,
            format!("`--identity-env {name}`: that is too long for a private key"),
        );
    }
    // Not closed on exec: it is for whoever we become.
    let (read, write): (OwnedFd, OwnedFd) = match rustix::pipe::pipe() {
        Ok(pipe) => pipe,
        Err(errno) => return failed("no pipe", errno.into()),
    };
    let mut write = File::from(write);
    if let Err(error) = write.write_all(text.as_bytes()) {
        return failed("the pipe", error);
    }
    drop(write);
    let program =
        if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    let program = match program {
        Ok(program) => program,
        Err(error) => return failed("this program was not found", error),
    };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    again.arg0(arguments.next().unwrap_or_else(|| "broker".into())).args(arguments);
    again.env_remove(name).env(HANDED_OVER, format!("{}:{}", std::process::id(), read.as_raw_fd()));
    failed("this program could not be started anew", again.exec())
}

fn handed_over(environment: &Environment) -> Option<SecretString> {
    let (process, descriptor) = environment.get(HANDED_OVER)?.split_once(':')?;
    if process.parse() != Ok(std::process::id()) {
        return None;
    }
    let descriptor: u32 = descriptor.parse().ok()?;
    let mut text = Zeroizing::new(String::with_capacity(LARGEST));
    let pipe = File::open(format!("/dev/fd/{descriptor}")).ok()?;
    let read = pipe.take(u64::try_from(LARGEST).ok()?).read_to_string(&mut text).ok()?;
    (read > 0).then(|| SecretString::from(text.as_str()))
}
