//! The person at the terminal, as a seam: what only a human can answer, see or open.
//!
//! The rooms word their questions; `cli::terminal` shows them. Under `--batch` nobody answers.

use std::{future::Future, pin::Pin};

use secrecy::SecretString;

/// A future that an object-safe trait can return.
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A question to the person at the terminal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Question {
    /// What is asked, already safe to print (`crate::printable`), possibly several lines, no newline at the end.
    pub(crate) text: String,
    /// Whether the answer may be seen while it is typed.
    pub(crate) echo: bool,
}

/// What only a person can do for us.
pub(crate) trait Human: Send + Sync {
    /// Asks one question and returns the answer without its newline.
    ///
    /// `None`: nobody can answer (`--batch`, no terminal, end of input). Questions are asked one at a time.
    fn ask(&self, question: Question) -> BoxFuture<'_, Option<SecretString>>;

    /// Shows text that needs no answer. `text` is already safe to print.
    fn tell(&self, text: &str);

    /// Opens `url` in the person's browser; `false` when there is none or none is wanted.
    fn browse(&self, url: &str) -> bool;
}
