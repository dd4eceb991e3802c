//! What the processes of a configuration (`ProxyCommand`, `KnownHostsCommand`) say, and how they ended.

use std::{process::ExitStatus, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::ChildStderr,
};

use crate::{
    human::Human,
    printable::{LONGEST, one_line},
};

/// What is shown of its standard error, in bytes.
const MOST_SAID: usize = 64 * 1024;

/// Shows what the user's `what` says on standard error, line by line, safe to print and not endless.
pub(super) async fn pass_on(stderr: ChildStderr, what: &str, human: Arc<dyn Human>) {
    let mut left = MOST_SAID;
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut stderr).take(LONGEST as u64);
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = one_line(&String::from_utf8_lossy(&line));
        if text.is_empty() || left == 0 {
            continue;
        }
        if let Some(rest) = left.checked_sub(text.len()) {
            left = rest;
            human.tell(&text);
        } else {
            left = 0;
            human.tell(&format!("broker: warning: the {what} says more than is shown"));
        }
    }
}

/// Says how it ended.
pub(super) fn told(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(127), _) => "was not found (exit status 127)".to_owned(),
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
