//! One SSH connection and all that dies with it.
//!
//! Order of events: connect, authenticate, forward and helper at once, listener verified, self-test through the
//! tunnel. Only then may anything be installed on the host or answered. Closing goes the other way round.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
    task::JoinSet,
};
use tracing::debug;

use super::{
    CallerCheck, DEFAULT_PORT, Error, Event, Inputs, PortWish, Step, Transport,
    lasting::Claim,
    login_shell::{self, Question},
    reraise,
    role_files::{self, Written},
    start_helper::start_helper,
};
use crate::{
    caller::{Caller, Uid, Unproven},
    creds::grant::Grants,
    human::Human,
    remote::{
        helper::{Facts, Helper, Nonce},
        install::{self, Directory, Hands, Installed, Key},
        probe::{self, Attempt, Probes},
        sftp::Sftp,
        shadow::Variable,
        sockets,
    },
    serve::{self, Endpoint},
    ssh::{
        dial,
        error::ForwardRefused,
        forward::{Arrival, Forward, Listener},
        handler::{Ended, Facts as ServerFacts},
        session::{HostKeys, Session, Unauthenticated},
        sftp,
        target::Target,
    },
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
    /// Nothing can be renewed or removed any more.
    #[error("the SFTP session on {host} ended, without which the files there cannot be renewed")]
    Sftp {
        host: String,
        #[source]
        source: Option<install::Error>,
    },
}

impl Link {
    /// Connects and proves that the listener on the host is ours and leads to us.
    pub(super) async fn open(inputs: &Inputs) -> Result<Self, Error> {
        let target = &inputs.target;
        let subject = format!("{}@{}", target.user, target.original);
        inputs.observe(Event::Started { step: Step::Connect, subject: subject.clone() });
        let session = connect(target, &inputs.host_keys, &inputs.human, |facts| {
            inputs.log.note_host_key(&facts.fingerprint);
        })
        .await?;
        let session = Arc::new(session);
        debug!(facts = ?session.facts(), "logged in");
        inputs.observe(Event::Done { step: Step::Connect, subject });

        inputs.observe(Event::Started { step: Step::Forward, subject: inputs.host() });
        match Self::establish(inputs, Arc::clone(&session)).await {
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

    async fn establish(inputs: &Inputs, session: Arc<Session>) -> Result<Self, Error> {
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
                return Self::over_sftp(inputs, session, tasks, error).await;
            }
            Err(error) => return Err(error),
        };
        let mut link = Self::new(session, Hands::Helper(helper.clone()), Some(facts.clone()), tasks);
        link.ask_login_shell(inputs);
        let without_port = match forward {
            None => None,
            Some(asked) => link.open_port(inputs, (&helper, &facts), wanted, asked).await.err(),
        };
        let without_port = match without_port {
            Some(error) if only_port || !error.leaves_other_ways() => return Err(error),
            without_port => without_port,
        };
        let key = link.ways.port.map_or_else(|| inputs.key.clone(), Key::port);
        let failed = |source| Error::Install { host: inputs.host(), source };
        let directory = link.hands.directory(key).await.map_err(failed)?;
        if matches!(transport, Transport::Auto | Transport::Unix) {
            let path = format!("{}/s", directory.path());
            match link.session.forward_streamlocal(&path).await {
                Ok(forward) => {
                    link.forwards.push(forward);
                    link.ways.socket = Some(path);
                }
                Err(refused @ ForwardRefused::Denied { .. }) if transport == Transport::Unix => {
                    return Err(Error::NoSocket { host: inputs.host(), source: refused });
                }
                Err(refused @ ForwardRefused::Denied { .. }) => debug!(%refused, "no unix socket"),
                Err(broken) => return Err(Error::Ssh(broken.into())),
            }
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
        link.directory = Some(link.hands.directory(claim.key.clone()).await.map_err(failed)?);
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
            tasks,
            asking: JoinSet::new(),
            stop_serving,
        }
    }

    /// Takes the port that was asked for, or another one, and proves that it is ours and leads to us.
    async fn open_port(
        &mut self,
        inputs: &Inputs,
        helper: (&Helper, &Facts),
        wanted: u16,
        asked: Result<(Forward, u16), ForwardRefused>,
    ) -> Result<(), Error> {
        let (forward, port) = match asked {
            Ok((forward, _)) => (forward, wanted),
            Err(refused) => self.another_port(inputs, helper, wanted, refused).await?,
        };
        let forward = self.check_listener(inputs, helper, forward, port).await?;
        let forward = self.self_test(inputs, forward, port).await?;
        self.forwards.push(forward);
        self.ways.port = Some(port);
        Ok(())
    }

    /// Finds out why the port was refused, and takes one of our own where that is what the user wants.
    async fn another_port(
        &self,
        inputs: &Inputs,
        (helper, facts): (&Helper, &Facts),
        wanted: u16,
        refused: ForwardRefused,
    ) -> Result<(Forward, u16), Error> {
        if !matches!(refused, ForwardRefused::Denied { .. }) {
            return Err(Error::Ssh(refused.into()));
        }
        let listening = helper.listeners(wanted).await.ok();
        let probes = Probes {
            any_port: self.probe_any_port().await,
            unix_socket: self.probe_unix_socket(helper).await,
        };
        let refusal = probe::classify(wanted, probes, listening.as_ref(), facts.uid);
        if refusal.is_about_this_port() && inputs.options.port == PortWish::Auto {
            for attempt in 0..FALLBACK_PORTS {
                let port = probe::fallback_port(facts.uid, attempt);
                match self.session.forward_tcp(port).await {
                    Ok((forward, _)) => {
                        let message = format!("{refusal}; using port {port} instead");
                        inputs.observe(Event::Notice { message });
                        return Ok((forward, port));
                    }
                    Err(ForwardRefused::Denied { .. }) => {}
                    // Silence or the end of the connection: it would be the same for every port.
                    Err(refused) => return Err(Error::Ssh(refused.into())),
                }
            }
        }
        Err(Error::Forward { host: inputs.host(), refusal })
    }

    async fn probe_any_port(&self) -> Attempt {
        match self.session.forward_tcp(0).await {
            Ok((forward, _)) => {
                self.session.cancel(forward).await;
                Attempt::Allowed
            }
            Err(ForwardRefused::Denied { .. }) => Attempt::Refused,
            Err(_) => Attempt::Untried,
        }
    }

    async fn probe_unix_socket(&self, helper: &Helper) -> Attempt {
        let Some(key) = Key::new("probe") else { return Attempt::Untried };
        let Ok(directory) = helper.directory(key).await else { return Attempt::Untried };
        let attempt = match self.session.forward_streamlocal(&format!("{}/s", directory.path())).await {
            Ok(forward) => {
                self.session.cancel(forward).await;
                Attempt::Allowed
            }
            Err(ForwardRefused::Denied { .. }) => Attempt::Refused,
            Err(_) => Attempt::Untried,
        };
        // sshd leaves the socket behind; the directory goes with it.
        if let Err(error) = helper.remove().await {
            debug!(%error, "the probe's directory goes with the connection");
        }
        attempt
    }

    /// Proves that the listener is ours alone, or gives it up.
    async fn check_listener(
        &self,
        inputs: &Inputs,
        (helper, facts): (&Helper, &Facts),
        forward: Forward,
        port: u16,
    ) -> Result<Forward, Error> {
        let host = inputs.host();
        if !facts.shows_sockets {
            if inputs.options.caller_check == CallerCheck::TrustHostUsers {
                inputs.observe(Event::Warning {
                    message: format!(
                        "{host} does not show who owns a connection, so every user there who gets hold of the \
                         token is served (--trust-host-users)"
                    ),
                });
                return Ok(forward);
            }
            self.session.cancel(forward).await;
            return Err(Error::CannotCheckCallers { host, system: facts.system.clone() });
        }
        let listening = match helper.listeners(port).await {
            Ok(listening) => listening,
            Err(source) => {
                self.session.cancel(forward).await;
                return Err(Error::Helper { host, source });
            }
        };
        match sockets::verify(&listening, facts.uid) {
            Ok(others) => {
                for other in others {
                    debug!(address = %other.address, uid = other.uid.0, "somebody else listens on this port too");
                }
                Ok(forward)
            }
            Err(problem) => {
                self.session.cancel(forward).await;
                Err(Error::Listener { host, port, problem })
            }
        }
    }

    /// Sends a nonce to the port from the host's side; it must come out at our end.
    async fn self_test(&self, inputs: &Inputs, mut forward: Forward, port: u16) -> Result<Forward, Error> {
        let (stream, pump) = match self.session.direct_tcpip("127.0.0.1", port).await {
            Ok(opened) => opened,
            // PermitOpen and the like: the listener was verified, so this proves nothing against it.
            Err(refused) => {
                debug!(%refused, "the self-test could not be made");
                return Ok(forward);
            }
        };
        let nonce = Nonce::generate()?;
        let expected = nonce.as_str().to_owned();
        let send = async move {
            let mut stream = stream;
            // A connection that breaks shows as a nonce that does not arrive.
            drop(stream.write_all(nonce.as_str().as_bytes()).await);
            drop(stream.shutdown().await);
        };
        let sending = async {
            tokio::join!(send, pump);
            std::future::pending::<()>().await;
        };
        let arrived = async {
            let mut candidates = JoinSet::new();
            loop {
                tokio::select! {
                    arrival = forward.arrivals.recv() => match arrival {
                        Some(arrival) => { candidates.spawn(bears(arrival, expected.clone())); }
                        None => return false,
                    },
                    Some(candidate) = candidates.join_next() => if reraise(candidate) { return true; },
                }
            }
        };
        let arrived = async {
            tokio::select! { () = sending => false, arrived = arrived => arrived }
        };
        if matches!(tokio::time::timeout(SELF_TEST_TIMEOUT, arrived).await, Ok(true)) {
            return Ok(forward);
        }
        self.session.cancel(forward).await;
        Err(Error::SelfTest { host: inputs.host(), port })
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
    pub(super) fn serve(&mut self, grants: &Arc<Grants>) {
        // Without a helper nothing is forwarded.
        let (Hands::Helper(helper), Some(facts)) = (&self.hands, &self.facts) else { return };
        for forward in std::mem::take(&mut self.forwards) {
            let door = match (&forward.listener, facts.shows_sockets) {
                (Listener::Tcp(port), true) => Door::Checked { port: *port, helper: helper.clone() },
                (Listener::Tcp(port), false) => Door::Trusted { port: *port },
                (Listener::Local(_), _) => Door::Socket { uid: facts.uid },
            };
            let server = serve_forward(forward, door, Arc::clone(grants), self.stop_serving.subscribe());
            self.tasks.spawn(async move {
                server.await;
                TaskEnd::Server
            });
        }
    }

    /// Keeps role credentials in files fresh from now on.
    pub(super) fn keep_files(&mut self, grants: Arc<Grants>, installed: Arc<Installed>, written: Written) {
        let keeping = role_files::keep(grants, installed, written, self.stop_serving.subscribe());
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

    /// Stops serving, removes what lies on the host, disconnects. Returns whether the host is known to be clean.
    pub(super) async fn close(mut self) -> bool {
        self.stop_serving.send_replace(true);
        let removed = tokio::time::timeout(REMOVE_TIMEOUT, self.hands.remove()).await;
        let farewell = self.hands.bye();
        drop(tokio::time::timeout(BYE_TIMEOUT, farewell).await);
        self.session.disconnect().await;
        self.tasks.shutdown().await;
        self.asking.shutdown().await;
        matches!(removed, Ok(Ok(())))
    }
}

/// Dials the host, checks its key and logs in. `introduced` hears what is known of the server before the login.
pub(super) async fn connect(
    target: &Target,
    host_keys: &Arc<dyn HostKeys>,
    human: &Arc<dyn Human>,
    introduced: impl FnOnce(&ServerFacts),
) -> Result<Session, Error> {
    let stream = dial::dial(target).await?;
    let peer = stream.peer();
    let connection =
        Unauthenticated::open(stream, Some(peer), target, Arc::clone(host_keys), Arc::clone(human)).await?;
    introduced(&connection.facts());
    Ok(connection.authenticate(target).await?)
}

/// Whether this connection brings the nonce, and nothing else first.
async fn bears(arrival: Arrival, nonce: String) -> bool {
    let Arrival { mut stream, pump, .. } = arrival;
    let read = async move {
        let mut said = vec![0; nonce.len()];
        stream.read_exact(&mut said).await.is_ok() && said == nonce.as_bytes()
    };
    tokio::join!(read, pump).0
}

/// How a forward tells who is asking.
#[derive(Clone)]
enum Door {
    /// By the uid that the host shows for the caller's end of the connection.
    Checked { port: u16, helper: Helper },
    /// Not at all (`--trust-host-users`).
    Trusted { port: u16 },
    /// By the kernel: the socket lies in a 0700 directory of this user, so nobody else can connect but root.
    Socket { uid: Uid },
}

/// Accepts what comes through the forward until told to stop or the link is gone, then ends what is open.
async fn serve_forward(
    mut forward: Forward,
    door: Door,
    grants: Arc<Grants>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopping.changed() => break,
            arrival = forward.arrivals.recv() => {
                let Some(arrival) = arrival else { break };
                connections.spawn(answer(arrival, door.clone(), Arc::clone(&grants)));
            }
            Some(ended) = connections.join_next() => reraise(ended),
        }
    }
    connections.shutdown().await;
}

async fn answer(arrival: Arrival, door: Door, grants: Arc<Grants>) {
    let Arrival { stream, pump, originator } = arrival;
    let port = match door {
        Door::Checked { port, .. } | Door::Trusted { port } => Some(port),
        Door::Socket { .. } => None,
    };
    let caller = async move {
        match (door, originator) {
            (Door::Checked { port, helper }, Some(SocketAddr::V4(originator))) => {
                helper.caller(originator, port).await.map(Caller::Uid)
            }
            (Door::Checked { .. }, _) => Err(Unproven::Gone),
            (Door::Trusted { .. }, _) => Ok(Caller::Trusted),
            (Door::Socket { uid }, _) => Ok(Caller::Uid(uid)),
        }
    };
    let endpoint = Endpoint { port, originator_port: originator.map(|address| address.port()) };
    tokio::join!(serve::connection(stream, &endpoint, caller, &grants), pump);
}

/// One round trip through the host and back, on a slow line.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(5);

/// When the connection dies, its end and the helper's come within one turn of the loop.
const REASON_TIMEOUT: Duration = Duration::from_millis(200);

/// The whole stop has 2 s; removing takes one round trip and an `rm`.
const REMOVE_TIMEOUT: Duration = Duration::from_millis(1000);

/// What is left for the helper's end, which nobody waits for if it does not come.
const BYE_TIMEOUT: Duration = Duration::from_millis(300);

/// A user with more live brokers than this on one host has to name ports.
const FALLBACK_PORTS: u16 = 8;
