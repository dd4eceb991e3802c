//! Logging in, in the order and with the questions that OpenSSH users know.
//!
//! none (to learn what the server takes) → public keys, those of the agent first → keyboard-interactive →
//! password. The two last need a person. A server may want several of them: after each partial success the rest
//! is tried on the same connection. What was tried, and what the server said at the end, makes one error.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use russh::{
    MethodKind, MethodSet,
    client::{AuthResult, Handle, KeyboardInteractiveAuthResponse as Interactive},
    keys::{Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    agent::{self, Agent},
    algorithms::rsa_bits,
    error::Error,
    handler::{Ended, Handler, Shared},
    identity::{Candidate, Source, candidates},
    target::{Method, Target},
};
use crate::{human::Question, printable::one_line};

/// One answer of a server to a login step when a person is there: a push to a phone may hang on it.
const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// The whole login when nobody is there.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The session loop says why it ended a moment after it did.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// sshd's MaxAuthTries is 6 and counts every key; the sixth failure ends the connection.
const MOST_FAILURES: usize = 6;

/// A password is answered at once, or after the few seconds with which login stacks punish wrong ones. russh drops the
/// question for a new password, so that a server that asks it looks like one that says nothing.
const SLOW_PASSWORD: Duration = Duration::from_secs(10);

/// Rounds and prompts of keyboard-interactive: more than any login stack asks, fewer than an attack would.
const MOST_ROUNDS: usize = 16;
const MOST_PROMPTS: usize = 16;

/// Questions of one login, all rounds and methods together.
const MOST_QUESTIONS: usize = 48;

/// Nobody was let in.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) host: String,
    pub(crate) user: String,
    /// What was tried, or why it could not be, in order; safe to print.
    pub(crate) tried: Vec<String>,
    /// What the server would still have taken.
    pub(crate) offered: Vec<&'static str>,
    /// What the server said at the end, if it closed the connection.
    pub(crate) ended: Option<Ended>,
    /// Whether nobody could be asked.
    pub(crate) batch: bool,
    /// Whether a person could have answered, but not to a host whose key nobody has looked at.
    pub(crate) unheard: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not log in to `{}` as `{}`", self.host, self.user)?;
        match self.tried.as_slice() {
            [] => f.write_str(": there was nothing to try")?,
            tried => write!(f, ": tried {}", tried.join(", "))?,
        }
        if !self.offered.is_empty() {
            write!(f, "; the server takes {}", self.offered.join(", "))?;
        }
        if self.unheard {
            f.write_str("; nothing secret is typed for a host whose key was accepted unseen just now")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.ended.as_ref().map(|ended| ended as _)
    }
}

impl Refused {
    /// Returns what the person can do about it.
    pub(super) fn hint(&self) -> Option<String> {
        if let Some(hint) = self.ended.as_ref().and_then(Ended::hint) {
            return Some(hint);
        }
        if self.unheard {
            return Some(
                "compare the host key's fingerprint (`ssh-keygen -lF HOST`) with what its administrator says, then \
                 connect again"
                    .into(),
            );
        }
        let takes = |method| self.offered.contains(&method);
        if takes("publickey") && !self.tried.iter().any(|tried| tried.starts_with("key")) {
            return Some("name a key with `-i FILE`, or add one to the agent with `ssh-add FILE`".into());
        }
        if self.batch && (takes("password") || takes("keyboard-interactive")) {
            return Some("a person could still log in: run it once without `--batch`".into());
        }
        if takes("publickey") {
            return Some(format!("is the key in `~/.ssh/authorized_keys` of `{}` there?", self.user));
        }
        None
    }
}

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
        let (mut asked, mut typed) = (0, 0);
        let prompts = self.target.authentication.prompts;
        loop {
            let next = self.target.authentication.methods.iter().copied().find(|method| match method {
                Method::PublicKey => {
                    self.offers(MethodKind::PublicKey) && !keys.is_empty() && self.may_try_key()
                }
                Method::KeyboardInteractive => {
                    self.may_ask(MethodKind::KeyboardInteractive) && asked < prompts
                }
                Method::Password => self.may_ask(MethodKind::Password) && typed < prompts,
            });
            let Some(next) = next else { break };
            if next != Method::PublicKey && !self.shared.may_hear_secrets() {
                self.unheard = true;
                break;
            }
            let step = match next {
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

    async fn agent(&self, socket: &Path) -> Option<Agent> {
        match agent::connect(socket, self.handle.agent_session_binding()).await {
            Ok(agent) => Some(agent),
            Err(error) => {
                let socket = one_line(&socket.display().to_string());
                self.shared
                    .human
                    .tell(&format!("broker: warning: the agent at `{socket}` is not used: {error}"));
                None
            }
        }
    }

    /// Returns the hash for RSA signatures, asking the server once; `Err` when there is none that both take.
    async fn rsa_hash(&mut self) -> Result<Option<HashAlg>, ()> {
        if self.rsa_hash.is_none() {
            // Bounded by russh to one second.
            let server = self.handle.best_supported_rsa_hash().await.unwrap_or_default();
            self.rsa_hash = Some(self.target.algorithms.rsa_hash(server));
        }
        self.rsa_hash.unwrap_or(Err(()))
    }

    async fn key(&mut self, key: Candidate, agent: Option<&mut Agent>) -> Result<Step, Error> {
        let title = key.title();
        let hash = if key.is_rsa() {
            let Ok(hash) = self.rsa_hash().await else {
                self.tried.push(format!(
                    "{title} not (there is no safe way to sign with RSA that both sides take)"
                ));
                return Ok(Step::Out(None));
            };
            hash
        } else {
            None
        };
        self.tried.push(title);
        let user = self.target.user.clone();
        let deadline = self.deadline();
        match key.source {
            Source::Agent { .. } => {
                let Some(agent) = agent else { return Ok(Step::Out(None)) };
                let signing = agent.authenticate(self.handle, self.shared, user, &key, hash);
                let answer = timeout_at(deadline, signing).await;
                match answer {
                    Ok(Err(agent::SignError::Unable)) => Ok(Step::Out(None)),
                    Ok(Err(agent::SignError::Agent(error))) => {
                        // Declined by a person, or a key that is gone: the next may do.
                        if let Some(last) = self.tried.last_mut() {
                            last.push_str(" (the agent did not sign)");
                        }
                        tracing::debug!(%error, "the agent did not sign");
                        if self.handle.is_closed() {
                            return Err(self.over().await);
                        }
                        Ok(Step::Out(None))
                    }
                    Ok(Err(agent::SignError::Session)) => Err(self.over().await),
                    Ok(Ok(result)) => self.answered(Ok(Ok(result)), "public key").await,
                    Err(elapsed) => self.answered(Err(elapsed), "signature of the agent").await,
                }
            }
            Source::Environment { private, .. } | Source::File { private: Some(private), .. } => {
                self.private_key(private, key.certificate, hash).await
            }
            Source::File { private: None, path, text } => {
                // Encrypted: the passphrase is asked for only when the server would take the key.
                let mut probe = agent::Probe::default();
                let probed = match (&key.certificate, key.public) {
                    (Some(certificate), _) => {
                        let certificate = certificate.clone();
                        let probing =
                            self.handle.authenticate_certificate_with(user, certificate, hash, &mut probe);
                        Some(timeout_at(deadline, probing).await)
                    }
                    (None, Some(public)) => {
                        let probing = self.handle.authenticate_publickey_with(user, public, hash, &mut probe);
                        Some(timeout_at(deadline, probing).await)
                    }
                    (None, None) => None,
                };
                match probed {
                    None => {}
                    Some(Err(elapsed)) => return self.answered(Err(elapsed), "public key").await,
                    Some(Ok(Ok(result))) => return self.answered(Ok(Ok(result)), "public key").await,
                    Some(Ok(Err(_))) if probe.accepted => {}
                    Some(Ok(Err(_))) => return Err(self.over().await),
                }
                match self.unlock(&path, text).await {
                    Some(private) => self.private_key(private, key.certificate, hash).await,
                    None => Ok(Step::Out(None)),
                }
            }
        }
    }

    async fn private_key(
        &mut self,
        private: Arc<PrivateKey>,
        certificate: Option<Certificate>,
        hash: Option<HashAlg>,
    ) -> Result<Step, Error> {
        let user = self.target.user.clone();
        // What type an encrypted key has may be known only now.
        let hash = if private.algorithm().is_rsa() && hash.is_none() {
            match self.rsa_hash().await {
                Ok(hash) => hash,
                Err(()) => return Ok(Step::Out(None)),
            }
        } else {
            hash
        };
        let short = rsa_bits(private.public_key()).is_some_and(|bits| bits < self.target.required_rsa_size);
        if short || !self.target.algorithms.takes_key(&private.algorithm(), certificate.is_some()) {
            return Ok(Step::Out(None));
        }
        let deadline = self.deadline();
        let answer = match certificate {
            Some(certificate) => {
                let mut signer = agent::Local(private);
                let logging_in =
                    self.handle.authenticate_certificate_with(user, certificate, hash, &mut signer);
                match timeout_at(deadline, logging_in).await {
                    Ok(Err(agent::SignError::Unable)) => return Ok(Step::Out(None)),
                    Ok(answer) => Ok(answer.map_err(|_| russh::Error::Disconnect)),
                    Err(elapsed) => Err(elapsed),
                }
            }
            None => {
                let key = PrivateKeyWithHashAlg::new(private, hash);
                timeout_at(deadline, self.handle.authenticate_publickey(user, key)).await
            }
        };
        self.answered(answer, "public key").await
    }

    /// Asks for the passphrase of the key at `path`.
    async fn unlock(&mut self, path: &Path, text: Arc<SecretString>) -> Option<Arc<PrivateKey>> {
        let mut note = |note: &str| {
            if let Some(last) = self.tried.last_mut() {
                last.push_str(note);
            }
        };
        if self.target.batch {
            note(" (it has a passphrase, and nobody can be asked)");
            return None;
        }
        for _ in 0..self.target.authentication.prompts {
            let question = Question {
                text: format!("Enter passphrase for key '{}': ", one_line(&path.display().to_string())),
                echo: false,
            };
            let passphrase = self.shared.human.ask(question).await?;
            if passphrase.expose_secret().is_empty() {
                break;
            }
            let text = Arc::clone(&text);
            // Deriving the key takes a good part of a second, by design.
            let decoded = tokio::task::spawn_blocking(move || {
                russh::keys::decode_secret_key(text.expose_secret(), Some(passphrase.expose_secret()))
            });
            if let Ok(Ok(key)) = decoded.await {
                let key = Arc::new(key);
                // From now on it takes nobody.
                self.target.identities.unlocked.keep(path, &key);
                return Some(key);
            }
        }
        note(" (no passphrase opened it)");
        None
    }

    /// Answers what the server asks. The flag says whether a person was asked and answered.
    async fn keyboard_interactive(&mut self) -> Result<(Step, bool), Error> {
        // Also where nothing is asked here: then a telephone rings somewhere.
        self.person = true;
        self.tried.push("keyboard-interactive".into());
        let deadline = self.deadline();
        let starting = self.handle.authenticate_keyboard_interactive_start(&self.target.user, None);
        let mut answer = timeout_at(deadline, starting).await;
        let mut answered = false;
        for _ in 0..MOST_ROUNDS {
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
                        if !text.is_empty() {
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

    async fn password(&mut self) -> Result<Option<Step>, Error> {
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

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
