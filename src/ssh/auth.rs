//! Logging in, in the order and with the questions that OpenSSH users know.
//!
//! none (to learn what the server takes) → a Kerberos ticket → public keys, those of the agent first →
//! keyboard-interactive → password. The two last need a person. A server may want several of them: after each partial success the rest
//! is tried on the same connection. What was tried, and what the server said at the end, makes one error.

mod gssapi;
mod keys;
mod questions;
mod refused;

use std::{sync::Arc, time::Duration};

use russh::{
    MethodKind, MethodSet,
    client::{AuthResult, Handle},
    keys::HashAlg,
};
use tokio::time::{Instant, timeout, timeout_at};

pub(crate) use self::refused::Refused;
use super::{
    error::Error,
    handler::{Ended, Handler, Shared},
    identity::candidates,
    target::{Method, Target},
};

/// One answer of a server to a login step when a person is there: a push to a phone may hang on it.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// The whole login when nobody is there.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The session loop says why it ended a moment after it did.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// sshd's MaxAuthTries is 6 and counts every key; the sixth failure ends the connection.
const MOST_FAILURES: usize = 6;

/// Questions of one login, all rounds and methods together.
const MOST_QUESTIONS: usize = 48;

/// What a server may have a person read between the questions of one login, in bytes: as much as in banners.
const MOST_SAID: usize = 16 * 1024;

/// How one method went.
enum Step {
    In,
    /// This was right, and more is wanted.
    Partly(MethodSet),
    /// The methods that the server takes further on; `None` when it was not asked.
    Out(Option<MethodSet>),
}

struct Login<'a> {
    handle: &'a mut Handle<Handler>,
    shared: &'a Arc<Shared>,
    target: &'a Target,
    /// When nobody is there, the end of everything.
    batch_deadline: Instant,
    tried: Vec<String>,
    offered: MethodSet,
    failures: usize,
    questions_left: usize,
    /// What the server may still say.
    said_left: usize,
    /// Whether a person was not asked because of the host's key.
    unheard: bool,
    rsa_hash: Option<Result<Option<HashAlg>, ()>>,
    /// Whether a person was needed so far.
    person: bool,
}

/// Logs in over `handle`, and says whether that took a person.
pub(super) async fn authenticate(
    handle: &mut Handle<Handler>,
    shared: &Arc<Shared>,
    target: &Target,
) -> Result<bool, Error> {
    let mut login = Login {
        handle,
        shared,
        target,
        batch_deadline: Instant::now() + BATCH_TIMEOUT,
        tried: Vec::new(),
        offered: MethodSet::empty(),
        failures: 0,
        questions_left: MOST_QUESTIONS,
        said_left: MOST_SAID,
        unheard: false,
        rsa_hash: None,
        person: false,
    };
    login.run().await?;
    Ok(login.person)
}

impl Login<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let deadline = self.deadline();
        let probed = timeout_at(deadline, self.handle.authenticate_none(&self.target.user)).await;
        match self.answered(probed, "login").await? {
            // Some appliances let in whoever reached them; the host key was judged before.
            Step::In => return Ok(()),
            Step::Partly(offered) | Step::Out(Some(offered)) => self.offered = offered,
            Step::Out(None) => {}
        }
        // sshd does not count this question.
        self.failures = 0;
        let mut agent = match &self.target.identities.agent {
            Some(socket) if self.has(Method::PublicKey) => self.agent(socket).await,
            _ => None,
        };
        let listed = agent.as_ref().map(|agent| agent.keys.clone()).unwrap_or_default();
        let (mut keys, notes) = candidates(&self.target.identities, listed).await;
        if self.has(Method::PublicKey) {
            for note in notes {
                self.shared.human.tell(&format!("broker: warning: {note}"));
            }
        }
        keys.retain(|key| {
            if key.is_short(self.target.required_rsa_size) {
                self.tried.push(format!("{} not (`RequiredRSASize`)", key.title()));
                return false;
            }
            let taken = key.is_taken(&self.target.algorithms);
            if !taken {
                self.tried.push(format!("{} not (`PubkeyAcceptedAlgorithms`)", key.title()));
            }
            taken
        });
        // After a partial success the next method is looked for from the start; what was used up stays so.
        let (mut asked, mut typed, mut ticket) = (0, 0, false);
        let prompts = self.target.authentication.prompts;
        loop {
            let next = self.target.authentication.methods.iter().copied().find(|method| match method {
                Method::Gssapi => self.offers(MethodKind::GssapiWithMic) && !ticket,
                Method::PublicKey => {
                    self.offers(MethodKind::PublicKey) && !keys.is_empty() && self.may_try_key()
                }
                Method::KeyboardInteractive => {
                    self.may_ask(MethodKind::KeyboardInteractive) && asked < prompts
                }
                Method::Password => self.may_ask(MethodKind::Password) && typed < prompts,
            });
            let Some(next) = next else { break };
            let secret = matches!(next, Method::KeyboardInteractive | Method::Password);
            if secret && !self.shared.may_hear_secrets() {
                self.unheard = true;
                break;
            }
            let step = match next {
                // It proves who we are and, to us, that this is the host: it is no secret, whoever hears it.
                Method::Gssapi => {
                    ticket = true;
                    self.gssapi().await?
                }
                Method::PublicKey => {
                    let key = keys.remove(0);
                    let touched = key.is_security_key();
                    let step = self.key(key, agent.as_mut()).await?;
                    self.person |= touched && matches!(step, Step::In | Step::Partly(_));
                    step
                }
                Method::KeyboardInteractive => {
                    asked += 1;
                    match self.keyboard_interactive().await? {
                        // Nobody was asked anything, or nobody answered: again would be the same.
                        (step @ Step::Out(_), false) => {
                            asked = prompts;
                            step
                        }
                        (step, _) => step,
                    }
                }
                Method::Password => {
                    typed += 1;
                    match self.password().await? {
                        Some(step) => step,
                        None => {
                            typed = prompts;
                            continue;
                        }
                    }
                }
            };
            match step {
                Step::In => return Ok(()),
                Step::Partly(offered) => {
                    self.tried.push("accepted so far".into());
                    self.offered = offered;
                }
                Step::Out(Some(offered)) => self.offered = offered,
                Step::Out(None) => {}
            }
        }
        if !keys.is_empty() && self.offers(MethodKind::PublicKey) {
            self.tried.push(format!("and left {} more keys out, as servers give up after six", keys.len()));
        }
        Err(self.refused(self.shared.ended_already()))
    }

    fn offers(&self, method: MethodKind) -> bool {
        self.offered.contains(&method)
    }

    /// Whether the configuration allows a method.
    fn has(&self, method: Method) -> bool {
        self.target.authentication.methods.contains(&method)
    }

    /// Whether a person can answer what the server would ask.
    fn may_ask(&self, method: MethodKind) -> bool {
        !self.target.batch && self.offers(method)
    }

    /// A person's password needs a try too; without one, keys may use all of them.
    fn may_try_key(&self) -> bool {
        let person = self.has(Method::KeyboardInteractive) && self.may_ask(MethodKind::KeyboardInteractive)
            || self.has(Method::Password) && self.may_ask(MethodKind::Password);
        self.failures < if person { MOST_FAILURES - 1 } else { MOST_FAILURES }
    }

    fn deadline(&self) -> Instant {
        if self.target.batch { self.batch_deadline } else { Instant::now() + INTERACTIVE_TIMEOUT }
    }

    fn stalled(&self, step: &'static str) -> Error {
        let after = if self.target.batch { BATCH_TIMEOUT } else { INTERACTIVE_TIMEOUT };
        Error::Stalled { host: self.shared.host.clone(), step, after }
    }

    fn refused(&self, ended: Option<Ended>) -> Error {
        Error::Authentication(Box::new(Refused {
            host: self.shared.host.clone(),
            user: self.target.user.clone(),
            tried: self.tried.clone(),
            offered: self.offered.iter().map(<&str>::from).collect(),
            ended,
            batch: self.target.batch,
            unheard: self.unheard,
        }))
    }

    /// The session is over: says why, which russh does not.
    async fn over(&self) -> Error {
        let ended = timeout(GOODBYE_TIMEOUT, self.shared.ended()).await;
        self.refused(Some(ended.unwrap_or(Ended::Closed)))
    }

    async fn answered(
        &mut self,
        answer: Result<Result<AuthResult, russh::Error>, tokio::time::error::Elapsed>,
        step: &'static str,
    ) -> Result<Step, Error> {
        match answer {
            Err(_) => Err(self.stalled(step)),
            Ok(Ok(AuthResult::Success)) => Ok(Step::In),
            Ok(Ok(AuthResult::Failure { remaining_methods, partial_success })) => {
                self.failed(remaining_methods, partial_success).await
            }
            Ok(Err(_)) => Err(self.over().await),
        }
    }

    async fn failed(&mut self, remaining: MethodSet, partial: bool) -> Result<Step, Error> {
        if partial {
            return Ok(Step::Partly(remaining));
        }
        if remaining.is_empty() {
            // Nothing is left, or the session died: russh says the same for both, and ends the session for both.
            let Error::Authentication(mut refused) = self.over().await else {
                return Err(self.refused(None));
            };
            if matches!(&refused.ended, Some(Ended::Protocol(error)) if matches!(**error, russh::Error::NoAuthMethod))
            {
                refused.ended = None;
                refused.offered.clear();
            }
            return Err(Error::Authentication(refused));
        }
        self.failures += 1;
        Ok(Step::Out(Some(remaining)))
    }
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
