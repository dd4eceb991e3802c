//! One SSH connection and all that dies with it.
//!
//! Order of events: connect, authenticate, forward and helper at once, listener verified, self-test through the
//! tunnel. Only then may anything be installed on the host or answered. Closing goes the other way round.

mod port;
mod serving;
mod socket;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tracing::debug;

use self::serving::{Door, serve_forward};
pub(super) use self::socket::LONGEST_SOCKET;
use super::{
    DEFAULT_PORT, Error, Event, Inputs, PortWish, Step, Transport,
    lasting::Claim,
    login_shell::{self, Question},
    reconnect::Again,
    role_files::{self, Linger, Written},
    start_helper::start_helper,
    travels,
};
use crate::{
    causes,
    creds::grant::Grants,
    human::Human,
    remote::{
        helper::Facts,
        install::{self, Directory, Hands, Installed, Key, Stay},
        sftp::Sftp,
        shadow::Variable,
        trust::Trust,
    },
    ssh::{
        dial::{self, Before},
        forward::{Forward, Listener},
        handler::{Ended, Facts as ServerFacts},
        session::{HostKeys, Session, Unauthenticated},
        sftp,
        target::Target,
        transport::Killed,
    },
    tasks::reraise,
    tls::Identity,
};

/// One SSH connection, verified, and all that dies with it.
pub(super) struct Link {
    pub(super) session: Arc<Session>,
    pub(super) hands: Hands,
    /// What the host said about itself, where a helper can ask it.
    pub(super) facts: Option<Facts>,
    pub(super) ways: Ways,
    /// Ours and empty, until something is installed in it.
    pub(super) directory: Option<Directory>,
    /// Keeps other processes of this laptop from using the same directory.
    claim: Option<Claim>,
    forwards: Vec<Forward>,
    /// What the host said about TLS, where that is used.
    pub(super) trust: Trust,
    tasks: JoinSet<TaskEnd>,
    /// What the login shell of the host exports, while it is being asked.
    asking: JoinSet<Vec<Variable>>,
    stop_serving: watch::Sender<bool>,
}

/// How processes on the host reach us over this link. At least one of the first two, or `file`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ways {
    /// The port on 127.0.0.1, verified.
    pub(crate) port: Option<u16>,
    /// The path of the unix socket.
    pub(crate) socket: Option<String>,
    /// Credentials lie in files.
    pub(crate) file: bool,
}

/// Which task of the link ended.
pub(super) enum TaskEnd {
    Helper(Result<(), install::Error>),
    /// The SFTP session, or what could not be written through it.
    Sftp(Option<install::Error>),
    Server,
}

/// How a link ended that nobody closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error("the connection to {host} was lost")]
    Connection {
        host: String,
        #[source]
        source: Ended,
    },
    /// No caller can be checked any more, so nobody is served.
    #[error("the helper on {host} ended, without which callers cannot be checked")]
    Helper {
        host: String,
        #[source]
        source: Option<install::Error>,
    },
    /// We gave it up ourselves, for a fresh one.
    #[error("the connection to {host} is renewed, as strangers there used it up")]
    Outgrown { host: String },
    /// Somebody here said that it is time for a new one.
    #[error("the connection to {host} is made anew, as SIGHUP asked for it")]
    Asked { host: String },
    /// Nothing can be renewed or removed any more.
    #[error("the SFTP session on {host} ended, without which the files there cannot be renewed")]
    Sftp {
        host: String,
        #[source]
        source: Option<install::Error>,
    },
}

impl Lost {
    /// Returns what happened with its cause, in one line.
    pub(super) fn told(&self) -> String {
        causes::chain(self)
    }

    /// Whether to come back would be wrong.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Connection { source: Ended::Killed(Killed::Violation(_)), .. })
    }

    /// Whether it was our wish.
    pub(super) fn is_planned(&self) -> bool {
        matches!(self, Self::Outgrown { .. } | Self::Asked { .. })
    }
}

impl Link {
    /// Connects and proves that the listener on the host is ours and leads to us.
    pub(super) async fn open(inputs: &Inputs, again: Option<&Again>) -> Result<Self, Error> {
        let target = &inputs.target;
        let subject = format!("{}@{}", target.user, target.original);
        inputs.observe(Event::Started { step: Step::Connect, subject: subject.clone() });
        let session = connect(
            target,
            again.and_then(|again| again.before),
            &inputs.host_keys,
            &inputs.human,
            |facts| {
                inputs.log.note_host_key(&facts.fingerprint);
            },
        )
        .await?;
        let session = Arc::new(session);
        debug!(facts = ?session.facts(), "logged in");
        inputs.observe(Event::Done { step: Step::Connect, subject });

        inputs.observe(Event::Started { step: Step::Forward, subject: inputs.host() });
        match Box::pin(Self::establish(inputs, again, Arc::clone(&session))).await {
            Ok(link) => {
                let verified = match (link.ways.port, &link.ways.socket) {
                    (Some(port), _) => Some(format!("{}:{port}", inputs.host())),
                    (None, Some(_)) => Some(inputs.host()),
                    // There is no tunnel to verify, as a notice has just said.
                    (None, None) => None,
                };
                if let Some(subject) = verified {
                    inputs.observe(Event::Done { step: Step::Forward, subject });
                }
                Ok(link)
            }
            Err(e) => {
                // A dying connection takes the helper along, and says more about why.
                let ended = match &e {
                    Error::Helper { .. } => tokio::time::timeout(REASON_TIMEOUT, session.ended()).await.ok(),
                    _ => None,
                };
                session.disconnect().await;
                Err(ended.map_or(e, |source| Lost::Connection { host: inputs.host(), source }.into()))
            }
        }
    }

    async fn establish(inputs: &Inputs, again: Option<&Again>, session: Arc<Session>) -> Result<Self, Error> {
        let target = &inputs.target;
        let transport = inputs.options.transport;
        let wanted = match inputs.options.port {
            PortWish::Auto => DEFAULT_PORT,
            PortWish::Exactly(port) => port,
        };
        let mut tasks = JoinSet::new();
        let forward = async {
            match transport {
                Transport::Auto | Transport::Tcp => Some(session.forward_tcp(wanted).await),
                Transport::Unix | Transport::File => None,
            }
        };
        // Both at once: one round trip instead of two.
        let (forward, helper) = tokio::join!(forward, start_helper(&target.original, &session, &mut tasks));
        // A port that was asked for by its number, or a tunnel that leads elsewhere, is no case for another way.
        let only_port = transport == Transport::Tcp || inputs.options.port != PortWish::Auto;
        let (helper, facts) = match helper {
            Ok(started) => started,
            Err(error) if !only_port && transport != Transport::Unix && error.leaves_sftp() => {
                if let Some(Ok((forward, _))) = forward {
                    // Who calls there could not be told.
                    session.cancel(forward).await;
                }
                return Box::pin(Self::over_sftp(inputs, session, tasks, error)).await;
            }
            Err(error) => return Err(error),
        };
        travels::check(inputs, &facts)?;
        let mut link = Self::new(session, Hands::Helper(helper.clone()), Some(facts.clone()), tasks);
        link.ask_login_shell(inputs);
        let without_port = match forward {
            None => None,
            Some(asked) => {
                let opening = link.open_port(inputs, again, (&helper, &facts), wanted, asked);
                Box::pin(opening).await.err()
            }
        };
        let without_port = match without_port {
            Some(error) if only_port || !error.leaves_other_ways() => return Err(error),
            without_port => without_port,
        };
        let key = link.ways.port.map_or_else(|| inputs.key.clone(), Key::port);
        let failed = |source| Error::Install { host: inputs.host(), source };
        let stay = if inputs.options.linger.is_some() { Stay::Outlives } else { Stay::Goes };
        let directory = link.hands.directory(key, stay).await.map_err(failed)?;
        // Where no program can ask at a socket, it would only keep SDKs from files, which need none.
        let is_of_use = facts.fetches || link.ways.port.is_some();
        if transport == Transport::Unix || transport == Transport::Auto && is_of_use {
            link.open_socket(inputs, directory.path(), transport == Transport::Unix).await?;
        }
        link.directory = Some(directory);
        link.ways.file = link.ways.port.is_none() && link.ways.socket.is_none();
        if let Some(error) = without_port {
            let instead = if link.ways.file {
                "role credentials are kept in files there instead, and renewed while we are connected"
            } else {
                "processes there are served through a unix socket instead"
            };
            inputs.observe(Event::Notice { message: format!("{}; {instead}", error.told()) });
        }
        Ok(link)
    }

    /// Puts files there over SFTP, because nothing else can be done on this host.
    async fn over_sftp(
        inputs: &Inputs,
        session: Arc<Session>,
        mut tasks: JoinSet<TaskEnd>,
        no_helper: Error,
    ) -> Result<Self, Error> {
        let host = inputs.host();
        if inputs.runs {
            return Err(Error::NothingRuns { host, source: Box::new(no_helper) });
        }
        if inputs.options.linger.is_some() {
            return Err(Error::CannotLinger { host, source: Box::new(no_helper) });
        }
        let opened = session.subsystem("sftp").await;
        let (stream, pump) = match opened {
            Ok(opened) => opened,
            Err(refused) => return Err(Error::NoSftp { host, refused, source: Box::new(no_helper) }),
        };
        tasks.spawn(async move {
            pump.await;
            TaskEnd::Sftp(None)
        });
        let failed = |source| Error::Install { host: host.clone(), source };
        let client = sftp::Client::start(stream).await.map_err(|e| failed(install::Error::Sftp(e.into())))?;
        let mut link = Self::new(session, Hands::Sftp(Sftp::new(client)), None, tasks);
        let claim = inputs.lasting.claim()?;
        link.directory = Some(link.hands.directory(claim.key.clone(), Stay::Goes).await.map_err(failed)?);
        link.claim = Some(claim);
        link.ways.file = true;
        inputs.observe(Event::Notice {
            message: format!(
                "no command runs on {host} ({}), so role credentials are kept in files there over SFTP, and renewed while \
                 we are connected; should the connection break, they stay there until they expire or we connect again",
                no_helper.told(),
            ),
        });
        Ok(link)
    }

    fn new(session: Arc<Session>, hands: Hands, facts: Option<Facts>, tasks: JoinSet<TaskEnd>) -> Self {
        let (stop_serving, _) = watch::channel(false);
        let (ways, forwards) = (Ways::default(), Vec::new());
        Self {
            session,
            hands,
            facts,
            ways,
            directory: None,
            claim: None,
            forwards,
            trust: Trust::default(),
            tasks,
            asking: JoinSet::new(),
            stop_serving,
        }
    }

    /// Asks the login shell that will run in our environment what it exports, while we go on. After the helper, which
    /// needs its channel more where a server allows one only.
    fn ask_login_shell(&mut self, inputs: &Inputs) {
        let how = match (&inputs.command, inputs.runs) {
            (Some(_), _) => Question::Command,
            (None, true) => Question::Shell,
            (None, false) => return,
        };
        let session = Arc::clone(&self.session);
        self.asking.spawn(async move { login_shell::ask(&session, how).await.unwrap_or_default() });
    }

    /// Returns what the login shell exports; nothing if it was not asked or did not say.
    pub(super) async fn exported(&mut self) -> Vec<Variable> {
        self.asking.join_next().await.map(reraise).unwrap_or_default()
    }

    /// Answers what comes through the forwards from now on.
    pub(super) fn serve(&mut self, grants: &Arc<Grants>, tls: Option<&Arc<Identity>>) {
        // Without a helper nothing is forwarded.
        let (Hands::Helper(helper), Some(facts)) = (&self.hands, &self.facts) else { return };
        for forward in std::mem::take(&mut self.forwards) {
            let door = match (&forward.listener, facts.shows_sockets) {
                (Listener::Tcp(port), true) => Door::Checked { port: *port, helper: helper.clone() },
                (Listener::Tcp(port), false) => Door::Trusted { port: *port },
                (Listener::Local(_), _) => Door::Socket { uid: facts.uid },
            };
            let tls = tls.filter(|_| matches!(forward.listener, Listener::Tcp(_))).cloned();
            let server = serve_forward(forward, door, tls, Arc::clone(grants), self.stop_serving.subscribe());
            self.tasks.spawn(async move {
                server.await;
                TaskEnd::Server
            });
        }
    }

    /// Whether a token alone opens the port, because nobody can be told apart there.
    pub(super) fn serves_unproven(&self) -> bool {
        self.ways.port.is_some() && self.facts.as_ref().is_some_and(|facts| !facts.shows_sockets)
    }

    /// Keeps role credentials in files fresh from now on.
    pub(super) fn keep_files(
        &mut self,
        grants: Arc<Grants>,
        installed: Arc<Installed>,
        written: Written,
        linger: Option<Linger>,
    ) {
        let keeping = role_files::keep(grants, installed, written, linger, self.stop_serving.subscribe());
        self.tasks.spawn(async move {
            match keeping.await {
                Ok(()) => TaskEnd::Server,
                // A helper that cannot write any more cannot keep its other promises either.
                Err(error @ install::Error::Helper(_)) => TaskEnd::Helper(Err(error)),
                Err(error @ install::Error::Sftp(_)) => TaskEnd::Sftp(Some(error)),
            }
        });
    }

    /// Returns when the link is lost, with the reason.
    pub(super) async fn lost(&mut self, host: &str) -> Lost {
        loop {
            tokio::select! {
                source = self.session.ended() => return Lost::Connection { host: host.to_owned(), source },
                Some(task) = self.tasks.join_next() => {
                    let host = host.to_owned();
                    let lost = match reraise(task) {
                        TaskEnd::Server => continue,
                        TaskEnd::Helper(result) => Lost::Helper { host: host.clone(), source: result.err() },
                        TaskEnd::Sftp(source) => Lost::Sftp { host: host.clone(), source },
                    };
                    // A dying connection takes them along, and says more about why.
                    let ended = tokio::time::timeout(REASON_TIMEOUT, self.session.ended()).await;
                    return match ended {
                        Ok(source) => Lost::Connection { host, source },
                        Err(_) => lost,
                    };
                }
            }
        }
    }

    /// Stops serving, frees what we held on the host and leaves the connection to whatever still runs over it.
    pub(super) async fn retire(mut self) -> Arc<Session> {
        self.stop_serving.send_replace(true);
        let port = self.ways.port.map(Listener::Tcp);
        let socket = self.ways.socket.take().map(Listener::Local);
        for listener in port.iter().chain(&socket) {
            self.session.cancel_listener(listener).await;
        }
        drop(tokio::time::timeout(BYE_TIMEOUT, self.hands.bye()).await);
        self.tasks.shutdown().await;
        self.asking.shutdown().await;
        self.session
    }

    /// Returns whether strangers have used the connection up, so that it should be renewed before it fills memory.
    pub(super) fn is_outgrown(session: &Session) -> bool {
        let (_, closed_by_us) = session.channels();
        closed_by_us >= MOST_CLOSED
    }

    /// Stops serving at once and cuts the connection. What lies on the host is left to the helper there.
    pub(super) async fn abandon(mut self) {
        self.stop_serving.send_replace(true);
        self.tasks.shutdown().await;
        self.asking.shutdown().await;
        // Says goodbye where somebody still listens: only the helper may have ended.
        self.session.disconnect().await;
    }

    /// Serves nobody any more, and lets what lies on the host be as it is.
    pub(super) fn stop_serving(&self) {
        self.stop_serving.send_replace(true);
    }

    /// Stops serving, removes what lies on the host, disconnects. Returns what is known to be left there.
    pub(super) async fn close(mut self, linger: bool) -> Left {
        self.stop_serving.send_replace(true);
        let removing = async {
            match linger {
                true => self.hands.part().await,
                false => self.hands.remove().await.map(|()| None),
            }
        };
        let removed = tokio::time::timeout(REMOVE_TIMEOUT, removing).await;
        let farewell = self.hands.bye();
        drop(tokio::time::timeout(BYE_TIMEOUT, farewell).await);
        self.session.disconnect().await;
        self.tasks.shutdown().await;
        self.asking.shutdown().await;
        match removed {
            Ok(Ok(None)) => Left::Nothing,
            Ok(Ok(Some(stays))) => Left::Credentials(stays),
            Err(_) | Ok(Err(_)) => Left::Unknown,
        }
    }
}

/// What is left on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Left {
    Nothing,
    /// Role credentials, for so long (`--linger`).
    Credentials(Duration),
    Unknown,
}

/// Dials the host, checks its key and logs in. `introduced` hears what is known of the server before the login.
pub(super) async fn connect(
    target: &Target,
    before: Option<Before>,
    host_keys: &Arc<dyn HostKeys>,
    human: &Arc<dyn Human>,
    introduced: impl FnOnce(&ServerFacts),
) -> Result<Session, Error> {
    let stream = dial::dial(target, before, host_keys, human).await?;
    let (peer, person) = (stream.peer(), stream.took_a_person());
    let connection =
        Unauthenticated::open(stream, peer, target, Arc::clone(host_keys), Arc::clone(human)).await?;
    introduced(&connection.facts());
    Ok(connection.authenticate(target).await?.after_a_person(person))
}

/// When the connection dies, its end and the helper's come within one turn of the loop.
const REASON_TIMEOUT: Duration = Duration::from_millis(200);

/// The whole stop has 2 s; removing takes one round trip and an `rm`.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(1000);

/// What is left for the helper's end, which nobody waits for if it does not come.
const BYE_TIMEOUT: Duration = Duration::from_millis(300);

/// Each channel that we close before the server does costs 3.5 KB until the connection ends: 7 MB.
const MOST_CLOSED: usize = 2048;
