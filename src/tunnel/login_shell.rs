//! Asks the login shell of the host, on an exec channel of its own, what it exports after its rc files.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::{
    remote::{
        helper::Nonce,
        shadow::{self, Variable},
    },
    ssh::{
        process::{Event, Keep, Process},
        session::Session,
    },
};

/// Which shell is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Question {
    /// The one that a person gets.
    Shell,
    /// The one that runs a command.
    Command,
    /// The one that a person gets without us.
    Outside,
}

/// Returns what the shell exports; `None` if it does not say in time, or the server allows no further channel.
pub(super) async fn ask(session: &Session, question: Question) -> Option<Vec<Variable>> {
    let asking = async {
        let nonce = Nonce::generate().ok()?;
        let mark = nonce.as_str();
        let command = shadow::question(question != Question::Command, question == Question::Outside);
        let (process, pump) = session.exec(&command, Keep::All).await.ok()?;
        let Process { mut stdin, mut events, .. } = process;
        let talk = async {
            stdin.write_all(shadow::script(mark).as_bytes()).await.ok()?;
            stdin.flush().await.ok()?;
            let mut said = Vec::new();
            let end = shadow::end(mark);
            while let Some(event) = events.next().await {
                match event {
                    Event::Stdout(bytes) => said.extend_from_slice(&bytes),
                    Event::Stderr(_) => {}
                    Event::Exit(_) => break,
                }
                if said.ends_with(end.as_bytes()) {
                    return Some(shadow::answer(&String::from_utf8_lossy(&said), mark));
                }
                if said.len() > LONGEST_ANSWER {
                    break;
                }
            }
            None
        };
        let carry = async {
            pump.await;
            // What came last is still to be read.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = talk => answer,
            () = carry => None,
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asking).await.ok().flatten()
}

/// A login shell that takes longer is one that its user waits for as well; we do not wait twice.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What rc files may print.
const LONGEST_ANSWER: usize = 64 << 10;
