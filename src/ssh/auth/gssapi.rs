//! `gssapi-with-mic` (RFC 4462): the person's Kerberos ticket instead of a key.
//!
//! The KDC is asked for a ticket for `host@HOSTNAME` before the server hears of it, so that whoever has none costs no
//! try. Then tokens go to and fro until both sides know each other, and the last message is a MIC over the session's
//! id: whoever passes the tokens on to another server gains nothing. A context without mutual authentication and
//! integrity is none, whatever the server says.
//!
//! In a binary that was built without the feature `gssapi`, there is no library to ask.

use super::{Login, Step};
use crate::ssh::error::Error;

#[cfg(feature = "gssapi")]
mod context;

/// What is said where the configuration wants what was not built.
#[cfg(not(feature = "gssapi"))]
const NOT_BUILT: &str = "gssapi-with-mic not (this broker was built without it, `--features gssapi`)";

#[cfg(not(feature = "gssapi"))]
impl Login<'_> {
    pub(super) async fn gssapi(&mut self) -> Result<Step, Error> {
        self.tried.push(NOT_BUILT.to_owned());
        Ok(Step::Out(None))
    }
}

#[cfg(feature = "gssapi")]
mod exchange {
    use russh::{
        SendError,
        client::AuthResult,
        {GssapiAuthenticator, GssapiError, GssapiStep},
    };
    use tokio::time::{Instant, timeout_at};
    use tracing::debug;

    use super::{
        Error, Login, Step,
        context::{self, Context, Done, Failure},
    };
    use crate::{
        printable::one_line,
        ssh::transport::{Kill, Killed},
    };

    /// Kerberos needs one token of the server; more than any mechanism does is an attack. What arrives while one is looked at
    /// waits in a queue of russh's, which has no end: that takes the library no time, as the KDC has been asked before.
    const MOST_TOKENS: usize = 8;

    /// A server says one or two things when it refuses; russh would listen for ever.
    const MOST_ERRORS: usize = 8;

    /// A server's answer holds a key and a number. That of a server with a large ticket is still below this.
    const LARGEST_TOKEN: usize = 64 * 1024;

    /// What is shown of a server's text.
    const LONGEST: usize = 300;

    impl Login<'_> {
        /// Logs in with the ticket that the person has, if there is one.
        pub(in crate::ssh::auth) async fn gssapi(&mut self) -> Result<Step, Error> {
            let tickets = self.target.authentication.tickets;
            let limit = (Instant::now() + context::KDC_TIMEOUT).min(self.deadline());
            let begun = Context::begin(&self.target.hostname, tickets.delegate, limit).await;
            let (context, token) = match begun {
                Ok(begun) => begun,
                Err(failure) => {
                    self.without(&failure);
                    self.tried.push(format!("gssapi-with-mic not ({failure})"));
                    return Ok(Step::Out(None));
                }
            };
            self.tried.push("gssapi-with-mic".to_owned());
            let mut exchange = Exchange {
                context,
                kill: self.shared.kill.clone(),
                first: Some(token),
                tokens: 0,
                errors: 0,
                done: None,
                said: None,
            };
            let deadline = self.deadline();
            let mechanisms = vec![context::KERBEROS.to_vec()];
            let user = self.target.user.clone();
            let asking = self.handle.authenticate_gssapi_with_mic(user, mechanisms, &mut exchange);
            let answer = timeout_at(deadline, asking).await;
            if let Some(last) = self.tried.last_mut() {
                if let Some(done) = &exchange.done {
                    last.push_str(&format!(" as {}", done.principal));
                }
                let failure = match &answer {
                    Ok(Err(Broken::Failed(failure))) => Some(failure.to_string()),
                    _ => exchange.said.take().map(|said| format!("the server says: {said}")),
                };
                if let Some(failure) = failure {
                    last.push_str(&format!(" ({failure})"));
                }
            }
            let answer = match answer {
                // Cut already; it says why.
                Ok(Err(Broken::Failed(Failure::Rules(_)))) => return Err(self.over().await),
                // The server waits for us, and the next request takes the place of this one.
                Ok(Err(Broken::Failed(failure))) if !self.handle.is_closed() => {
                    self.without(&failure);
                    return Ok(Step::Out(None));
                }
                Ok(Err(_)) => Ok(Err(russh::Error::Disconnect)),
                Ok(Ok(result)) => Ok(Ok(result)),
                Err(elapsed) => Err(elapsed),
            };
            let accepted = matches!(
                answer,
                Ok(Ok(AuthResult::Success | AuthResult::Failure { partial_success: true, .. }))
            );
            if accepted && let Some(done) = &exchange.done {
                self.tell_of_delegation(tickets.delegate, done);
            }
            self.answered(answer, "gssapi-with-mic").await
        }

        /// Goes on with the next method, silently where a ticket was not to be expected.
        fn without(&self, failure: &Failure) {
            debug!(%failure, "logging in without a Kerberos ticket");
            let asked_for = self.target.authentication.tickets.by_user;
            // Who had to wait is told why.
            if asked_for && !matches!(failure, Failure::NoTicket(_)) || matches!(failure, Failure::Late) {
                self.shared
                    .human
                    .tell(&format!("broker: warning: no login with a Kerberos ticket: {failure}"));
            }
        }

        /// A ticket there is as good as the person's own, until it expires.
        fn tell_of_delegation(&self, wanted: bool, done: &Done) {
            let (host, principal) = (&self.shared.host, &done.principal);
            let text = match (wanted, done.delegated) {
                (true, true) => format!(
                    "broker: warning: {host} has a Kerberos ticket of yours now (`GSSAPIDelegateCredentials`): who is \
                     root there can act as {principal} until it expires"
                ),
                (true, false) => format!(
                    "broker: warning: {host} has no Kerberos ticket of yours: the one of {principal} here cannot be \
                     forwarded (`kinit -f` gets one that can)"
                ),
                (false, _) => return,
            };
            self.shared.human.tell(&text);
        }
    }

    /// Why there is no answer of the server.
    enum Broken {
        /// The session is over.
        Session,
        /// We cannot go on, and tell the server nothing.
        Failed(Failure),
    }

    impl From<SendError> for Broken {
        fn from(_: SendError) -> Self {
            Self::Session
        }
    }

    impl From<Failure> for Broken {
        fn from(failure: Failure) -> Self {
            Self::Failed(failure)
        }
    }

    /// One try, as russh wants it.
    struct Exchange {
        context: Context,
        kill: Kill,
        /// The token that is sent when the server has chosen the mechanism.
        first: Option<context::Token>,
        tokens: usize,
        errors: usize,
        /// Once both sides know each other.
        done: Option<Done>,
        /// What the server said about its refusal; safe to print.
        said: Option<String>,
    }

    impl Exchange {
        async fn step(
            &mut self,
            selected: Option<Vec<u8>>,
            token: Option<Vec<u8>>,
            mic_data: Vec<u8>,
        ) -> Result<GssapiStep, Failure> {
            self.tokens += 1;
            let made = match (selected, token, self.first.take()) {
                (Some(selected), None, Some(first)) if selected == context::KERBEROS => first,
                (Some(_), ..) => return Err(Failure::Rules("chose what was not offered")),
                (None, Some(_), _) if self.done.is_some() || self.tokens > MOST_TOKENS => {
                    return Err(Failure::Rules("does not stop sending tokens"));
                }
                (None, Some(token), None) if token.len() <= LARGEST_TOKEN => self.context.step(token).await?,
                (None, Some(_), None) => return Err(Failure::Rules("sent a token that is too large")),
                (None, ..) => return Err(Failure::Rules("sent a token before it chose a mechanism")),
            };
            if !made.complete {
                let token = made.token.ok_or(Failure::Rules("waits for nothing"))?;
                return Ok(GssapiStep::Continue { token });
            }
            let done = self.context.finish(mic_data).await?;
            let mic = Some(done.mic.clone());
            self.done = Some(done);
            Ok(GssapiStep::Complete { token: made.token, mic })
        }
    }

    impl GssapiAuthenticator for Exchange {
        type Error = Broken;

        async fn gssapi_step(
            &mut self,
            selected: Option<Vec<u8>>,
            token: Option<Vec<u8>>,
            mic_data: Vec<u8>,
        ) -> Result<GssapiStep, Broken> {
            self.step(selected, token, mic_data).await.map_err(|failure| {
                if let Failure::Rules(what) = failure {
                    self.kill.kill(Killed::Violation(format!("gssapi-with-mic: it {what}")));
                }
                Broken::Failed(failure)
            })
        }

        async fn gssapi_error(&mut self, error: GssapiError) {
            self.errors += 1;
            if self.errors > MOST_ERRORS {
                self.kill.kill(Killed::Violation("gssapi-with-mic: it does not stop complaining".to_owned()));
            }
            if let GssapiError::Status { message, .. } = error {
                let said: String = one_line(&message).chars().take(LONGEST).collect();
                if !said.is_empty() {
                    self.said = Some(said);
                }
            }
        }
    }
}
