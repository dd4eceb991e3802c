//! A lost link is replaced by a new one: the same port, the same tokens, the same paths.
//!
//! Grants, cache, port and tokens outlive a link; everything else dies with it, so that nothing that came through one
//! link is ever answered or judged by another. Order of events: the old link stops serving and is buried → wait →
//! connect to the same machine → free the port that our own dead connection may still hold there → verify, serve and
//! install as at the start. Nobody is asked anything unless the first login took a person; then one presses Enter.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use secrecy::SecretString;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Error, Event, Inputs, Lost, Observer, PortWish, Transport, Tunnel, Up, bring_up,
    link::Ways,
    retry::{Failures, HEALTHY, LOGIN_WAIT, OWN_PORT_TIMEOUT, PORT_TIMEOUT, Verdict, judge},
    wake,
};
use crate::{
    backoff,
    human::{BoxFuture, Human, Question},
    remote::{helper::Facts, probe::Refusal, stale::Grave},
    ssh::{self, dial::Before},
};

/// What a new link has to know of those before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Again {
    pub(super) before: Option<Before>,
    pub(super) graves: Vec<Grave>,
    /// Tokens that anybody on the host may have seen while nobody could be told apart there are not used again.
    pub(super) rotate: bool,
}

/// What outlives a link, beside the grants.
#[derive(Debug)]
pub(super) struct Memory {
    ways: Ways,
    peer: Option<SocketAddr>,
    /// Whether the last login took a person.
    person: bool,
    /// The name of the machine and of its start.
    machine: Option<(String, Option<String>)>,
    directory: String,
    graves: Vec<Grave>,
    failures: Failures,
    /// When what lies there ends by itself, where nothing else removes it, or at the latest is removed (`--linger`).
    pub(super) stays_until: Option<SystemTime>,
}

impl Memory {
    pub(super) fn of(up: &Up) -> Self {
        let mut memory = Self {
            ways: Ways::default(),
            peer: None,
            person: false,
            machine: None,
            directory: String::new(),
            graves: Vec::new(),
            failures: Failures::default(),
            stays_until: None,
        };
        memory.note(up);
        memory
    }

    fn note(&mut self, up: &Up) {
        let link = &up.link;
        self.ways = link.ways.clone();
        self.peer = link.session.facts().peer;
        self.person = link.session.took_a_person();
        self.machine = link.facts.as_ref().map(machine);
        up.files.path().clone_into(&mut self.directory);
        self.stays_until = None;
    }

    /// Remembers what a dead link may have left on the host.
    fn bury(&mut self, inputs: &Inputs, up: &Up) {
        if let Some(facts) = &up.link.facts {
            self.graves.extend(Grave::of(facts));
            // A connection that is not mentioned any more ends by the keepalives of its server.
            let surplus = self.graves.len().saturating_sub(MOST_GRAVES);
            self.graves.drain(..surplus);
        }
        self.stays_until = up.stays_until(inputs);
        if up.since.elapsed() >= HEALTHY {
            self.failures = Failures::default();
        }
    }
}

fn machine(facts: &Facts) -> (String, Option<String>) {
    (facts.host.clone(), facts.boot_id.clone())
}

/// How one attempt is made.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// Nobody is asked anything.
    silent: bool,
    /// Only on the machine that we were on.
    alone: bool,
    /// On another port if need be.
    any_port: bool,
}

impl Tunnel {
    /// Replaces the link that was lost by a new one; returns when processes on the host are served again.
    pub(crate) async fn reconnect(&mut self, lost: Lost) -> Result<(), Error> {
        let began = Instant::now();
        let host = self.inputs.host();
        if let Some(up) = self.up.take() {
            self.memory.bury(&self.inputs, &up);
            Box::pin(up.link.abandon()).await;
        }
        let limit = self.inputs.options.reconnect_for;
        // What was our wish is tried once in any case.
        if (limit == Some(Duration::ZERO) && !lost.is_planned()) || lost.is_final() {
            return Err(lost.into());
        }
        self.inputs.observe(Event::Lost { host: host.clone(), reason: lost.told() });
        // Names may lead elsewhere and ports to others meanwhile: whatever is said about that is said once.
        let mut told = HashSet::new();
        let mut changes = wake::Watch::new(self.memory.peer);
        let mut attempt = Attempt { silent: true, alone: true, any_port: false };
        let mut asked = None;
        if self.memory.person {
            self.ask(None).await?;
            (attempt.silent, asked) = (false, Some(Instant::now()));
        }
        let mut wait = if lost.is_planned() || asked.is_some() {
            Duration::ZERO
        } else {
            self.memory.failures.first(backoff::random())
        };
        let mut patient_since = None;
        for number in 1u32.. {
            let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
            tokio::select! {
                () = sleep(left.map_or(wait, |left| wait.min(left))) => {}
                // There may be a network again, and it may lead there.
                _ = changes.changed() => self.inputs.grants.poke(),
                () = self.inputs.steering.asked_for_another() => {}
            }
            attempt.alone = began.elapsed() < ALONE;
            let error = match self.attempt(attempt).await {
                Ok(()) => {
                    self.inputs.steering.has_another().await;
                    self.inputs.grants.poke();
                    self.tell_back(began, number);
                    return Ok(());
                }
                Err(error) => error,
            };
            let verdict = judge(&error);
            if verdict == Verdict::GiveUp {
                return Err(error);
            }
            if limit.is_some_and(|limit| began.elapsed() + MOMENT >= limit) {
                return Err(Error::NotBack { host, after: began.elapsed(), source: Box::new(error) });
            }
            wait = self.memory.failures.wait(verdict, began.elapsed(), backoff::random());
            if verdict == Verdict::LoggedOut && self.inputs.target.batch {
                // In batch somebody has to say how long it is worth while to knock.
                if limit.is_none() {
                    return Err(Error::LoggedOut { host, source: Box::new(error) });
                }
                wait = wait.max(LOGIN_WAIT);
            }
            if verdict == Verdict::Patiently {
                let since = *patient_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= patience(&error) {
                    if attempt.any_port || !self.may_move(&error) {
                        return Err(port_lost(error));
                    }
                    attempt.any_port = true;
                    wait = Duration::ZERO;
                }
            } else {
                patient_since = None;
            }
            let reason = error.chain();
            if told.insert(reason.clone()) {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                self.inputs.observe(Event::Retrying { host: host.clone(), reason, wait_ms });
            }
            // A yes is for now: what is asked of a person, here or on a telephone, is never a surprise.
            let stale_yes = asked.is_some_and(|asked: Instant| asked.elapsed() >= YES);
            let refused = verdict == Verdict::LoggedOut && !self.inputs.target.batch;
            if refused || stale_yes || (asked.is_some() && reached(&error)) {
                self.ask(Some(error)).await?;
                (attempt.silent, asked, wait) = (false, Some(Instant::now()), Duration::ZERO);
            }
        }
        Err(lost.into())
    }

    /// Has a person say that now is the time to log in; whoever is not there is not asked twice.
    async fn ask(&self, refused: Option<Error>) -> Result<(), Error> {
        let host = self.inputs.host();
        let question = Question {
            text: format!("broker: {host}: connection lost - press Enter to log in again "),
            echo: true,
        };
        match self.inputs.human.ask(question).await {
            Some(_) => Ok(()),
            None => Err(match refused {
                Some(error) => Error::LoggedOut { host, source: Box::new(error) },
                None => Error::NeedsPerson { host },
            }),
        }
    }

    async fn attempt(&mut self, attempt: Attempt) -> Result<(), Error> {
        let inputs = self.inputs_for(attempt);
        let _turn = inputs.turns.acquire().await;
        let again = Again {
            before: self.memory.peer.map(|address| Before { address, alone: attempt.alone }),
            graves: self.memory.graves.clone(),
            rotate: true,
        };
        let bringing = Box::pin(bring_up(&inputs, Some(&again)));
        let (up, exports) = if attempt.silent {
            timeout(ATTEMPT_TIMEOUT, bringing).await.map_err(|_| {
                let (host, step, after) = (inputs.host(), "all of it", ATTEMPT_TIMEOUT);
                Error::Ssh(ssh::error::Error::Stalled { host, step, after })
            })??
        } else {
            bringing.await?
        };
        self.tell_differences(&up);
        self.memory.note(&up);
        up.mark(&self.plot);
        // Who holds what we need was freed; who holds nothing is not in the way.
        self.memory.graves.clear();
        (self.up, self.exports) = (Some(up), exports);
        Ok(())
    }

    /// Returns what a new link is made of: as the first one, but with exactly what was published.
    fn inputs_for(&self, attempt: Attempt) -> Inputs {
        let mut inputs = self.inputs.clone();
        if attempt.silent {
            inputs.target = inputs.target.for_nobody();
            inputs.human = Arc::new(Nobody);
        }
        let Ways { port, socket, file } = &self.memory.ways;
        inputs.options.port = match port {
            Some(port) if !attempt.any_port => PortWish::Exactly(*port),
            _ => inputs.options.port,
        };
        inputs.options.transport = match (inputs.options.transport, port, socket, file) {
            (Transport::Auto, None, Some(_), _) => Transport::Unix,
            (_, None, None, true) => Transport::File,
            (transport, ..) => transport,
        };
        inputs.observer = self.teller.observer(&self.inputs.observer);
        inputs
    }

    /// Whether another port will do: nobody who still runs there was told this one.
    fn may_move(&self, error: &Error) -> bool {
        let Inputs { options, runs, command, .. } = &self.inputs;
        matches!(error, Error::Forward { .. })
            && options.port == PortWish::Auto
            && *runs
            && command.is_none()
            && !options.install_profiles
            && !options.tmux
    }

    fn tell_differences(&self, up: &Up) {
        let host = self.inputs.host();
        let warn = |message| self.inputs.observe(Event::Warning { message });
        let notice = |message| self.inputs.observe(Event::Notice { message });
        let now = up.link.facts.as_ref().map(machine);
        if let (Some((old, old_boot)), Some((new, new_boot))) = (&self.memory.machine, &now) {
            if old != new {
                warn(format!(
                    "{host} is now the machine `{new}` and was `{old}` before: what runs on `{old}` gets no credentials"
                ));
            } else if old_boot != new_boot {
                notice(format!("{host} was started anew meanwhile"));
            }
        }
        let path = up.files.path();
        if path != self.memory.directory {
            warn(format!(
                "our directory on {host} is now `{path}`: programs that were started before look for it in vain; \
                 `. {path}/env.sh` tells a shell of yours there"
            ));
        }
        if let (Some(old), Some(new)) = (self.memory.ways.port, up.link.ways.port)
            && old != new
        {
            warn(format!(
                "the port on {host} is now {new}, as somebody else has {old}: programs that were started before get \
                 no credentials through a port"
            ));
        }
    }

    fn tell_back(&self, began: Instant, attempts: u32) {
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        tracing::debug!(tasks, "back in service");
        let Ways { port, socket, file } = self.memory.ways.clone();
        self.inputs.observe(Event::Back {
            host: self.inputs.host(),
            after_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            attempts,
            port,
            socket,
            files: file,
            directory: self.memory.directory.clone(),
        });
    }
}

/// How long what may pass is waited for.
fn patience(error: &Error) -> Duration {
    match error {
        Error::Forward { refusal: Refusal::PortBusyByUs { .. }, .. } => OWN_PORT_TIMEOUT,
        _ => PORT_TIMEOUT,
    }
}

fn port_lost(error: Error) -> Error {
    match error {
        Error::Forward { host, refusal } => Error::PortLost { host, refusal },
        other => other,
    }
}

/// Whether the login had begun, so that a person may have been asked for something.
fn reached(error: &Error) -> bool {
    use ssh::error::Error as Ssh;
    fn far(error: &Ssh) -> bool {
        match error {
            Ssh::Jump { source, .. } => far(source),
            Ssh::Unreachable { .. } | Ssh::NoProxy { .. } | Ssh::Broken { .. } => false,
            Ssh::NoHandshake { .. } | Ssh::Protocol { .. } => false,
            _ => true,
        }
    }
    if let Error::Ssh(error) = error { far(error) } else { true }
}

/// Remembers what was said, so that it is not said again with every link.
#[derive(Clone, Debug, Default)]
pub(super) struct Teller(Arc<Mutex<HashSet<String>>>);

impl Teller {
    /// Returns an observer that passes everything on, and remembers.
    pub(super) fn first(&self, observer: &Observer) -> Observer {
        let (told, observer) = (self.clone(), Arc::clone(observer));
        Arc::new(move |event| {
            told.is_new(&event);
            observer(event);
        })
    }

    /// Returns an observer that passes on what is new, and no steps.
    fn observer(&self, observer: &Observer) -> Observer {
        let (told, observer) = (self.clone(), Arc::clone(observer));
        Arc::new(move |event| {
            let step = matches!(event, Event::Started { .. } | Event::Done { .. } | Event::Ready { .. });
            if !step && told.is_new(&event) {
                observer(event);
            }
        })
    }

    fn is_new(&self, event: &Event) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Notice { message } | Event::Warning { message } => {
                told.len() >= MOST_TOLD || told.insert(message.clone())
            }
            _ => true,
        }
    }
}

/// Nobody is there.
struct Nobody;

impl Human for Nobody {
    fn ask(&self, _: Question) -> BoxFuture<'_, Option<SecretString>> {
        Box::pin(async { None })
    }

    // Banners and remarks on keys were read at the first login.
    fn tell(&self, _: &str) {}

    fn browse(&self, _: &str) -> bool {
        false
    }
}

/// Longer than every step of a connection that succeeds; one that hangs must not keep the next one waiting.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// So long only the machine that we were on will do; after that, another one of the same name is better than none.
const ALONE: Duration = Duration::from_secs(120);

/// How long a person's Enter stands.
const YES: Duration = Duration::from_secs(60);

/// What is left of a limit when nothing can be done in it any more.
const MOMENT: Duration = Duration::from_millis(50);

/// Connections of ours that a host may still believe in: one for each time it was lost and nobody got back in.
const MOST_GRAVES: usize = 16;

/// Different sentences are few; a host that makes up more is heard but not remembered.
const MOST_TOLD: usize = 256;
