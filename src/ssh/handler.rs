//! What happens inside russh's session loop.
//!
//! Everything here must return at once: while a callback waits, the connection stands still. So callbacks put
//! things where others find them, and refuse what was not asked for. The one exception is the host key, which a
//! person may have to judge: then nothing else is due on the connection, and the clock of the key exchange stops.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, Names, Sig,
    client::{ChannelOpenHandle, DisconnectReason, Msg, Session},
    keys::{HashAlg, PublicKey, PublicKeyOrCertificate},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{
    algorithms,
    chunk::Kind,
    error::HostKeyRefused,
    forward::{Arrival, Forwards, Judgement},
    inbox::{Channels, Exit, Inbox, Limit, Verdict},
    pump::{Outward, Pump},
    session::{HostKeys, Trust},
    transport::{Kill, Killed},
};
use crate::{
    human::Human,
    printable::{one_line, printable},
};

/// What a credential channel may receive in its life, in bytes: one request of 8 KB, with room for TLS around it.
pub(super) const ARRIVAL_LIMIT: Limit = Limit::Total(256 * 1024);

/// How many channels we may have had to close before the server did, each of which costs 3.5 KB for as long as the
/// connection lives. It is renewed long before; this is for one that cannot be.
const MOST_LEAKED: usize = 32 * 1024;

/// What a server may say in banners altogether, in bytes.
const MOST_BANNER: usize = 16 * 1024;

/// Why a connection is over.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the server stopped answering")]
    KeepaliveTimeout,
    /// The server said goodbye; the text is its own, safe to print.
    #[error("the server closed the connection: {0}")]
    Disconnected(String),
    /// The other side is gone without a word.
    #[error("the server closed the connection")]
    Closed,
    #[error("the connection broke")]
    Lost(#[source] Arc<std::io::Error>),
    #[error("the server and we do not understand each other")]
    Protocol(#[source] Arc<russh::Error>),
    /// We cut it: it stalled, the server broke the rules, or it was our wish.
    #[error(transparent)]
    Killed(Killed),
    /// We said goodbye.
    #[error("we closed the connection")]
    Ours,
}

impl Ended {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Disconnected(text) if text.contains("Too many authentication failures") => {
                Some("name the key with `-i FILE` and `-o IdentitiesOnly=yes`".into())
            }
            Self::Killed(Killed::Violation(_)) => {
                Some("do not connect to this server again before its administrator looked at it".into())
            }
            _ => None,
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Facts {
    /// `SHA256:…` of the host key.
    pub(crate) fingerprint: String,
    /// The type of the host key, as known_hosts writes it.
    pub(crate) key_type: String,
    pub(crate) kex: String,
    pub(crate) cipher: String,
    /// How the server's software calls itself; safe to print.
    pub(crate) server: String,
    /// The address that we are connected to, where it is a network address.
    pub(crate) peer: Option<SocketAddr>,
}

/// What the handler and the session both hold.
pub(super) struct Shared {
    pub(super) host: String,
    pub(super) channels: Arc<Channels>,
    pub(super) forwards: Forwards,
    pub(super) kill: Kill,
    pub(super) human: Arc<dyn Human>,
    /// Whether a person is being asked about the host key.
    pub(super) asking: watch::Sender<bool>,
    ended: watch::Sender<Option<Ended>>,
    /// Whether the session loop is over.
    pub(super) gone: watch::Sender<bool>,
    facts: Mutex<Facts>,
    refusals: Mutex<VecDeque<(u32, String)>>,
    /// How well the host is known, once its key was judged.
    trust: Mutex<Option<Trust>>,
}

impl Shared {
    pub(super) fn new(host: String, kill: Kill, human: Arc<dyn Human>, facts: Facts) -> Self {
        Self {
            host,
            channels: Arc::default(),
            forwards: Forwards::new(),
            kill,
            human,
            asking: watch::Sender::new(false),
            ended: watch::Sender::new(None),
            gone: watch::Sender::new(false),
            facts: Mutex::new(facts),
            refusals: Mutex::default(),
            trust: Mutex::default(),
        }
    }

    /// Returns why the connection is over, if it is.
    pub(super) fn ended_already(&self) -> Option<Ended> {
        // The session loop may not have noticed yet that we cut it.
        self.ended.borrow().clone().or_else(|| self.kill.reason().map(Ended::Killed))
    }

    /// Waits until the connection is over.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        // The sender lives in `self`; the other arms cannot happen.
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Ended::Closed),
            Err(_) => Ended::Closed,
        }
    }

    /// Says that the connection is over. The first reason stays; every channel ends.
    pub(super) fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(why);
            }
            first
        });
        self.channels.lost();
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the host may hear what opens other doors too: a password, a code.
    pub(super) fn may_hear_secrets(&self) -> bool {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) == Some(Trust::Known)
    }

    fn refusals(&self) -> MutexGuard<'_, VecDeque<(u32, String)>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the text that came with a refusal for `reason`: russh gives it to the handler only.
    pub(super) fn refusal(&self, reason: &ChannelOpenFailure) -> String {
        let mut refusals = self.refusals();
        let at = refusals.iter().position(|(code, _)| *code == reason.code());
        match at.and_then(|at| refusals.remove(at)) {
            Some((_, text)) if !text.is_empty() => text,
            _ => reason.description().to_lowercase(),
        }
    }
}

/// Why the session loop stops.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Russh(#[from] russh::Error),
    #[error(transparent)]
    HostKey(HostKeyRefused),
    #[error("{0}")]
    Weak(&'static str),
}

/// The callbacks of one connection.
pub(super) struct Handler {
    shared: Arc<Shared>,
    host_keys: Arc<dyn HostKeys>,
    banner_left: usize,
}

impl Handler {
    pub(super) fn new(shared: Arc<Shared>, host_keys: Arc<dyn HostKeys>, quiet: bool) -> Self {
        Self { shared, host_keys, banner_left: if quiet { 0 } else { MOST_BANNER } }
    }

    fn inbox(&self, channel: ChannelId) -> Option<Arc<Inbox>> {
        self.shared.channels.find(channel.into())
    }

    fn receive(
        &self,
        channel: ChannelId,
        kind: Kind,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Failure> {
        let Some(inbox) = self.inbox(channel) else { return Ok(()) };
        if inbox.push(kind, data) == Verdict::Cut {
            debug!(%channel, "closed a channel that received too much");
            self.shared.channels.cut(channel.into());
            session.close(channel)?;
        }
        Ok(())
    }

    async fn judge(
        &self,
        judgement: Judgement,
        originator: Option<SocketAddr>,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
    ) {
        let place = match judgement {
            Judgement::Take(place) => place,
            Judgement::Full => return reply.reject(ChannelOpenFailure::ResourceShortage).await,
            Judgement::Refuse => {
                return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            }
            Judgement::Violation { what, fatal } => return self.punish(what, fatal, reply).await,
        };
        if self.shared.channels.closed_by_us() >= MOST_LEAKED {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
        let inbox = Arc::new(Inbox::new(ARRIVAL_LIMIT));
        let Some(taken) = self.shared.forwards.room.take(&inbox) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        self.shared.channels.add(channel.id().into(), Arc::clone(&inbox));
        // The queue is closed here, so the session loop never waits for it: see `inbox`.
        let (queue, write) = channel.split();
        drop(queue);
        let outward = Outward::new(write, inbox, Arc::clone(&self.shared.channels));
        let (stream, pump) = Pump::stream(outward, Some(taken));
        // Into russh's own queue, which is emptied before anything else is sent: this does not wait.
        reply.accept().await;
        drop(place.send(Box::new(Arrival { stream, pump, originator })));
    }

    async fn punish(&self, what: String, fatal: bool, reply: ChannelOpenHandle) {
        warn!(host = %self.shared.host, what, "refused a channel");
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        if fatal {
            self.shared.kill.kill(Killed::Violation(what));
        }
    }

    async fn never(&self, kind: &str, reply: ChannelOpenHandle) -> Result<(), Failure> {
        if let Judgement::Violation { what, fatal } = self.shared.forwards.violation(kind) {
            self.punish(what, fatal, reply).await;
        }
        Ok(())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // Whatever happened to the session loop, nobody waits for it any more.
        let why = self.shared.kill.reason().map_or(Ended::Closed, Ended::Killed);
        self.shared.end(why);
        self.shared.gone.send_replace(true);
    }
}

impl russh::client::Handler for Handler {
    type Error = Failure;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Failure> {
        let key: PublicKey = shown.public_key();
        {
            let mut facts = self.shared.facts();
            facts.fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
            facts.key_type = key.algorithm().as_str().to_owned();
        }
        self.shared.asking.send_replace(true);
        let judged = tokio::select! {
            judged = self.host_keys.check(shown) => judged,
            () = self.shared.kill.killed() => return Err(russh::Error::Disconnect.into()),
        };
        self.shared.asking.send_replace(false);
        let trust = judged.map_err(Failure::HostKey)?;
        *self.shared.trust.lock().unwrap_or_else(PoisonError::into_inner) = Some(trust);
        Ok(true)
    }

    async fn kex_done(
        &mut self,
        _: Option<&[u8]>,
        names: &Names,
        session: &mut Session,
    ) -> Result<(), Failure> {
        if let Some(weakness) = algorithms::weakness(names) {
            return Err(Failure::Weak(weakness));
        }
        let mut facts = self.shared.facts();
        names.kex.as_ref().clone_into(&mut facts.kex);
        names.cipher.as_ref().clone_into(&mut facts.cipher);
        facts.server = one_line(&String::from_utf8_lossy(session.remote_sshid()));
        Ok(())
    }

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), Failure> {
        let shown = printable(banner.trim_end());
        if !shown.is_empty() && shown.len() <= self.banner_left {
            self.banner_left -= shown.len();
            self.shared.human.tell(&format!("{} says:\n{shown}", self.shared.host));
        }
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.shared.channels.confirmed(id.into());
        Ok(())
    }

    async fn channel_open_failure(
        &mut self,
        _: ChannelId,
        reason: ChannelOpenFailure,
        description: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), Failure> {
        let mut refusals = self.shared.refusals();
        refusals.push_back((reason.code(), one_line(description)));
        if refusals.len() > 8 {
            refusals.pop_front();
        }
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Failure> {
        self.receive(id, Kind::Data, data, session)
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _: u32,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Failure> {
        self.receive(id, Kind::Extended, data, session)
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Failure> {
        if let Some(inbox) = self.inbox(id) {
            inbox.eof();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Failure> {
        self.shared.channels.closed(id.into());
        Ok(())
    }

    async fn channel_success(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Failure> {
        if let Some(inbox) = self.inbox(id) {
            inbox.reply(true);
        }
        Ok(())
    }

    async fn channel_failure(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Failure> {
        if let Some(inbox) = self.inbox(id) {
            inbox.reply(false);
        }
        Ok(())
    }

    async fn exit_status(&mut self, id: ChannelId, status: u32, _: &mut Session) -> Result<(), Failure> {
        if let Some(inbox) = self.inbox(id) {
            inbox.exit(Exit::Status(status));
        }
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        core_dumped: bool,
        message: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), Failure> {
        if let Some(inbox) = self.inbox(id) {
            inbox.exit(Exit::Signal { name: signal_name(&signal), core_dumped, message: one_line(message) });
        }
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        let judgement = self.shared.forwards.tcp(connected_address, connected_port, originator_address);
        // The address is how the helper finds the uid of the caller; without one there is no proof. A v4-mapped one,
        // as a dual-stack client has it, is the IPv4 connection that it is.
        let originator = originator_address
            .parse::<IpAddr>()
            .ok()
            .zip(u16::try_from(originator_port).ok().filter(|port| *port != 0))
            .map(|(address, port)| SocketAddr::new(address.to_canonical(), port));
        self.judge(judgement, originator, channel, reply).await;
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.judge(self.shared.forwards.local(path), None, channel, reply).await;
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a way to the ssh agent", reply).await
    }

    async fn should_accept_unknown_server_channel(&mut self, _: ChannelId, _: &str) -> bool {
        // Yes, to be asked below: after a no, russh refuses twice, and sshd gives up on a client that does.
        true
    }

    async fn server_channel_open_unknown(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a channel of an unknown kind", reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a session on this machine", reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a connection into this machine's network", reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a connection to a socket on this machine", reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Failure> {
        self.never("a window on this machine's display", reply).await
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Failure>) -> Result<(), Failure> {
        let why = match (self.shared.kill.reason(), reason) {
            (Some(Killed::Ours), _) => Ended::Ours,
            (Some(killed), _) => Ended::Killed(killed),
            (None, DisconnectReason::ReceivedDisconnect(said)) => {
                let text = one_line(&said.message);
                Ended::Disconnected(if text.is_empty() { format!("{:?}", said.reason_code) } else { text })
            }
            (None, DisconnectReason::Error(Failure::Russh(error))) => ended_by(error),
            (None, DisconnectReason::Error(error)) => {
                Ended::Protocol(Arc::new(russh::Error::IO(std::io::Error::other(error.to_string()))))
            }
        };
        debug!(host = %self.shared.host, %why, "the connection ended");
        self.shared.end(why);
        Ok(())
    }
}

pub(super) fn ended_by(error: russh::Error) -> Ended {
    match error {
        russh::Error::KeepaliveTimeout => Ended::KeepaliveTimeout,
        russh::Error::Disconnect | russh::Error::HUP => Ended::Closed,
        russh::Error::IO(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ended::Closed,
        russh::Error::IO(error) => Ended::Lost(Arc::new(error)),
        error => Ended::Protocol(Arc::new(error)),
    }
}

fn signal_name(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => one_line(name.trim_start_matches("SIG")),
        known => format!("{known:?}"),
    }
}
