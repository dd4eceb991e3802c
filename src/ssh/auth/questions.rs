//! What needs a person: keyboard-interactive and the password.

use std::{sync::Arc, time::Duration};

use russh::client::KeyboardInteractiveAuthResponse as Interactive;
use secrecy::ExposeSecret as _;
use tokio::time::{timeout, timeout_at};

use super::{Login, Step};
use crate::{human::Question, ssh::error::Error};

/// A password is answered at once, or after the few seconds with which login stacks punish wrong ones. russh drops the
/// question for a new password, so that a server that asks it looks like one that says nothing.
const SLOW_PASSWORD: Duration = Duration::from_secs(10);

/// Rounds and prompts of keyboard-interactive: more than any login stack asks, fewer than an attack would.
const MOST_ROUNDS: usize = 16;
const MOST_PROMPTS: usize = 16;

impl Login<'_> {
    /// Answers what the server asks. The flag says whether a person was asked and answered.
    pub(super) async fn keyboard_interactive(&mut self) -> Result<(Step, bool), Error> {
        // Also where nothing is asked here: then a telephone rings somewhere.
        self.person = true;
        self.tried.push("keyboard-interactive".into());
        let deadline = self.deadline();
        let starting = self.handle.authenticate_keyboard_interactive_start(&self.target.user, None);
        let mut answer = timeout_at(deadline, starting).await;
        let mut answered = false;
        for _ in 0..MOST_ROUNDS {
            // What is still in the queue of a connection that is over is of no interest.
            if self.shared.ended_already().is_some() {
                return Err(self.over().await);
            }
            let responses = match answer {
                Err(_) => return Err(self.stalled("keyboard-interactive")),
                Ok(Err(_)) => return Err(self.over().await),
                Ok(Ok(Interactive::Success)) => return Ok((Step::In, answered)),
                Ok(Ok(Interactive::Failure { remaining_methods, partial_success })) => {
                    return Ok((self.failed(remaining_methods, partial_success).await?, answered));
                }
                Ok(Ok(Interactive::InfoRequest { name, instructions, prompts })) => {
                    for text in [name, instructions] {
                        let text = crate::printable::printable(text.trim());
                        if !text.is_empty() && text.len() <= self.said_left {
                            self.said_left -= text.len();
                            self.shared.human.tell(&on_every_line(&format!("{}: ", self.shared.host), &text));
                        }
                    }
                    let asked = prompts.len();
                    let mut responses = Vec::with_capacity(asked);
                    for prompt in prompts.into_iter().take(MOST_PROMPTS.min(self.questions_left)) {
                        self.questions_left -= 1;
                        let question = Question { text: self.labelled(&prompt.prompt), echo: prompt.echo };
                        let Some(response) = self.shared.human.ask(question).await else { break };
                        answered = true;
                        responses.push(response.expose_secret().to_owned());
                    }
                    if responses.len() < asked {
                        // russh listens to nothing but an answer now; this one lets the server refuse.
                        answered = false;
                    }
                    responses.resize(asked, String::new());
                    responses
                }
            };
            let deadline = self.deadline();
            let responding = self.handle.authenticate_keyboard_interactive_respond(responses);
            answer = timeout_at(deadline, responding).await;
        }
        Err(self.refused(self.shared.ended_already()))
    }

    pub(super) async fn password(&mut self) -> Result<Option<Step>, Error> {
        let question = Question { text: self.labelled("Password: "), echo: false };
        let Some(password) = self.shared.human.ask(question).await else { return Ok(None) };
        self.tried.push("password".into());
        self.person = true;
        let deadline = self.deadline();
        let human = Arc::clone(&self.shared.human);
        let told = format!(
            "broker: {} has not answered to the password yet; if it has expired, log in once with `ssh` to change it",
            self.shared.host
        );
        let logging_in = self.handle.authenticate_password(&self.target.user, password.expose_secret());
        let answer = {
            tokio::pin!(logging_in);
            match timeout(SLOW_PASSWORD, &mut logging_in).await {
                Ok(answer) => Ok(answer),
                Err(_) => {
                    human.tell(&told);
                    timeout_at(deadline, logging_in).await
                }
            }
        };
        // A request to change the password is swallowed by russh, so it looks like silence.
        self.answered(answer, "password; if it expired, log in once with `ssh` to change it").await.map(Some)
    }

    /// Names who asks, so that a server cannot pass for this machine.
    fn labelled(&self, prompt: &str) -> String {
        let prompt = crate::printable::printable(prompt);
        on_every_line(&format!("({}@{}) ", self.target.user, self.shared.host), &prompt)
    }
}

/// Puts `label` before every line of `text` that has anything on it, and before the last, on which a person types.
fn on_every_line(label: &str, text: &str) -> String {
    let mut labelled = String::new();
    let mut lines = text.split('\n').peekable();
    while let Some(line) = lines.next() {
        let last = lines.peek().is_none();
        if last || !line.is_empty() {
            labelled.push_str(label);
        }
        labelled.push_str(line);
        if !last {
            labelled.push('\n');
        }
    }
    labelled
}
