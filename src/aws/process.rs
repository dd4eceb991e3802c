//! A child process that prints a secret: `credential_process`, and agents of CI systems.
//!
//! No shell, a deadline, bounded output. It inherits the environment and, for questions, the terminal; what it says on
//! stderr is told when it fails.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::timeout,
};
use zeroize::Zeroizing;

use super::{
    credentials::Credentials,
    profile::{DEPTH, Process},
};
use crate::printable::one_line;

/// What Go's SDK gives it, less what remains of a flight (`creds::cache`).
const DEADLINE: Duration = Duration::from_secs(55);

/// As much as the SDK for Java reads.
const LONGEST_OUTPUT: u64 = 64_000;

/// The end of what it says about its trouble.
const LONGEST_COMPLAINT: u64 = 4096;

/// Why a child gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("could not start `{program}`")]
    Start { program: String, source: io::Error },
    #[error("`{program}` did not end within {} s", DEADLINE.as_secs())]
    Late { program: String },
    #[error("`{program}` printed more than {LONGEST_OUTPUT} bytes")]
    TooMuch { program: String },
    #[error("`{program}` failed ({status}){}", said(complaint))]
    Failed { program: String, status: ExitStatus, complaint: String },
    #[error("`{program}` printed no credentials: {fault}")]
    Garbled { program: String, fault: String },
}

fn said(complaint: &str) -> String {
    if complaint.is_empty() { String::new() } else { format!(": {complaint}") }
}

/// Runs `credential_process`.
pub(super) async fn credentials(
    process: &Process,
    now: impl FnOnce() -> SystemTime,
) -> Result<Credentials, Error> {
    let program = program(&process.words);
    let output = run(&process.words, process.depth + 1).await?;
    let garbled = |fault: String| Error::Garbled { program: program.clone(), fault };
    let mut object: Map<String, Value> =
        serde_json::from_slice(&output).map_err(|_| garbled("it is no JSON object".to_owned()))?;
    // The number, not the text: as every SDK has it.
    match object.get("Version") {
        Some(version) if version.as_u64() == Some(1) => {}
        Some(_) => return Err(garbled("`Version` is not 1".to_owned())),
        None => return Err(garbled("`Version` is missing".to_owned())),
    }
    let mut credentials = Credentials::from_json(&mut object, "SessionToken", now()).map_err(garbled)?;
    credentials.account = credentials.account.or_else(|| process.account.clone());
    Ok(credentials)
}

fn program(words: &[String]) -> String {
    one_line(words.first().map_or("", String::as_str))
}

/// Runs a program to its end and returns what it printed. `depth` is how many of us are above it.
pub(super) async fn run(words: &[String], depth: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let program = program(words);
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.env(DEPTH, depth.to_string());
    command.args(words.iter().skip(1)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Also when our caller gives up.
    command.kill_on_drop(true);
    let start = |source| Error::Start { program: program.clone(), source };
    let mut child = command.spawn().map_err(start)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let ((output, whole), (complaint, _)) =
            tokio::join!(read(stdout, LONGEST_OUTPUT), read(stderr, LONGEST_COMPLAINT));
        if !whole {
            return Err(Error::TooMuch { program: program.clone() });
        }
        let status = child.wait().await.map_err(start)?;
        if !status.success() {
            let complaint = one_line(String::from_utf8_lossy(&complaint).trim());
            return Err(Error::Failed { program: program.clone(), status, complaint });
        }
        Ok(output)
    };
    timeout(DEADLINE, work).await.unwrap_or(Err(Error::Late { program: program.clone() }))
}

/// Reads to the end, and returns at most `limit` bytes and whether that was all. The rest is read and forgotten, so
/// that a child with much to complain about is not stuck; a child with too much to print is not waited for.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: u64) -> (Zeroizing<Vec<u8>>, bool) {
    let mut kept = Zeroizing::new(Vec::with_capacity(8 * 1024));
    let Some(mut pipe) = pipe else { return (kept, true) };
    drop((&mut pipe).take(limit).read_to_end(&mut kept).await);
    let mut more = [0u8; 4096];
    if limit == LONGEST_OUTPUT {
        let whole = !matches!(pipe.read(&mut more).await, Ok(1..));
        return (kept, whole);
    }
    while matches!(pipe.read(&mut more).await, Ok(1..)) {}
    (kept, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::time::from_epoch;

    async fn sh(script: &str) -> Result<Credentials, Error> {
        let words = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let process =
            Process { profile: "p".into(), words, account: Some("111122223333".parse().unwrap()), depth: 0 };
        credentials(&process, || from_epoch(1000)).await
    }

    #[tokio::test]
    async fn what_a_program_prints_is_read_strictly() {
        let good = r#"echo '{"Version":1,"AccessKeyId":"A","SecretAccessKey":"s","SessionToken":"t"}'"#;
        let credentials = sh(good).await.unwrap();
        assert_eq!(credentials.account.unwrap().as_str(), "111122223333");
        for (script, fault) in [
            ("true", "`/bin/sh` printed no credentials: it is no JSON object"),
            ("echo []", "`/bin/sh` printed no credentials: it is no JSON object"),
            ("echo '{}'", "`/bin/sh` printed no credentials: `Version` is missing"),
            (r#"echo '{"Version":"1"}'"#, "`/bin/sh` printed no credentials: `Version` is not 1"),
            (r#"echo '{"Version":1}'"#, "`/bin/sh` printed no credentials: `AccessKeyId` is missing"),
            ("echo 'no such vault' >&2; exit 3", "`/bin/sh` failed (exit status: 3): no such vault"),
            ("yes", "`/bin/sh` printed more than 64000 bytes"),
            ("kill -9 $$", "`/bin/sh` failed (signal: 9 (SIGKILL))"),
            (
                "yes complaint | head -c 1000000 >&2; echo '{}'",
                "`/bin/sh` printed no credentials: `Version` is missing",
            ),
        ] {
            assert_eq!(sh(script).await.unwrap_err().to_string(), fault, "{script}");
        }
        let missing = run(&["/nonexistent/program".to_owned()], 1).await.unwrap_err();
        assert_eq!(missing.to_string(), "could not start `/nonexistent/program`");
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_hangs_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let words = ["/bin/sh", "-c", "echo $$ > \"$0\"; exec sleep 1000", file.to_str().unwrap()];
        let late = run(&words.map(str::to_owned), 1).await.unwrap_err();
        assert_eq!(late.to_string(), "`/bin/sh` did not end within 55 s");
    }
}
