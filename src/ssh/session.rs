//! One SSH connection, from its first byte to its last: [`Unauthenticated`], then [`Session`].
//!
//! What is asked of russh takes more than a KB to ask, so those futures are in boxes: a tunnel waits for other things
//! nearly always, and what waits would be as large as the largest thing that it ever does.
//!
//! Everything that a person may be asked for happens before there is a [`Session`]; every step that waits for the
//! server has a deadline. Nothing here runs by itself but russh's own loop, which ends with the [`Session`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelOpenFailure, Disconnect, Limits, Preferred, SshId,
    client::{Config, GexParams, Handle, Msg},
    keys::{Algorithm, PublicKeyOrCertificate},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    algorithms::Certificates,
    auth, config,
    dial::Broken,
    error::{BEHIND_PROXY, ChannelRefused, Error, ForwardRefused, HostKeyRefused},
    forward::{BIND_ADDRESS, Forward, Listener},
    handler::{ARRIVAL_LIMIT, Ended, Facts, Failure, Handler, Shared, ended_by},
    inbox::Limit,
    process::{Keep, Process, Size},
    pump::{Outward, Pump, Stream},
    target::{Rekey, Target, Way},
    terminal::Pty,
    transport::{Kill, Killed, Transport},
};
use crate::human::{BoxFuture, Human};

/// Version exchange and key exchange: some round trips and a signature, on a machine that may be busy.
const KEX_TIMEOUT: Duration = Duration::from_secs(20);

/// A forward is one request; sshd answers at once unless it is stuck.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Opening a channel, or starting a command on it: the host may have to run its login stack first.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(30);

/// Part of the two seconds that a whole stop may take.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(500);

/// Part of the two seconds that a whole stop may take.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(400);

/// What a subsystem may send before it is read: more than all answers to what we ask for at once.
const SUBSYSTEM_LIMIT: Limit = Limit::Waiting(2 << 20);

/// What a connection inside this one may leave unread: the window of a whole channel (2 MiB), so that the line is
/// never idle while the reader is busy sending.
const CARRIED_LIMIT: Limit = Limit::Held(2 << 20);

/// Decides whether a host may have the key that it shows.
pub(crate) trait HostKeys: Send + Sync {
    /// Finds out, for one connection, what the host is to be asked for.
    fn wanted(&self) -> BoxFuture<'_, Result<Wanted, HostKeyRefused>>;

    /// Judges what the host has proven to hold. May ask a person: no deadline runs meanwhile.
    fn check(&self, shown: &PublicKeyOrCertificate) -> BoxFuture<'_, Result<Trust, HostKeyRefused>>;

    /// Returns what decides on the jump host of this one; `None` for a host without one.
    fn of_jump(&self) -> Option<Arc<dyn HostKeys>> {
        None
    }
}

/// What a host is asked for, so that it shows something that can be judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The types of the keys that are known for it, most preferred first; empty for a new host.
    pub(crate) keys: Vec<Algorithm>,
    /// Whether there is an authority that could vouch for it with a certificate, or a list that could revoke one.
    pub(crate) certificates: Certificates,
}

/// How well a host is known whose key was not refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trust {
    /// Its key is on file, certified or pinned, or a person has just looked at it.
    Known,
    /// `accept-new` took it, and nobody looked: it may prove that we are somebody, but hears no password.
    Unseen,
}

/// A connection whose server is known and whose user is not.
pub(crate) struct Unauthenticated {
    handle: Handle<Handler>,
    shared: Arc<Shared>,
    guard: KillOnDrop,
}

/// An authenticated connection. Dropping it cuts it.
pub(crate) struct Session {
    handle: Handle<Handler>,
    shared: Arc<Shared>,
    /// What the user's shells and commands get, if the server likes (`SendEnv`, `SetEnv`).
    environment: Vec<(String, String)>,
    person: bool,
    /// Last, so that nothing of the session outlives its transport.
    guard: KillOnDrop,
}

/// russh's loop is a task of its own: it ends when its transport does.
struct KillOnDrop(Kill);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill(Killed::Ours);
    }
}

impl Unauthenticated {
    /// Exchanges versions and keys over `stream` and has the host key judged.
    pub(crate) async fn open<S>(
        stream: S,
        peer: Option<SocketAddr>,
        target: &Target,
        host_keys: Arc<dyn HostKeys>,
        human: Arc<dyn Human>,
    ) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Before anything is said to a server that might then wait for us.
        let wanted = host_keys.wanted().await?;
        let (transport, kill) = Transport::new(stream);
        let guard = KillOnDrop(kill.clone());
        let host = target.original.clone();
        let facts = Facts { peer, ..Facts::default() };
        let shared = Arc::new(Shared::new(host.clone(), kill, human, facts));
        let preferred = target.algorithms.preferred(&wanted.keys, wanted.certificates);
        let config = Arc::new(config(target, preferred));
        let handler = Handler::new(Arc::clone(&shared), host_keys, target.quiet);
        let connecting = Box::pin(russh::client::connect_stream(config, transport, handler));
        // `ConnectTimeout` covers this as well (ssh_config(5)), so one that somebody wrote down is a wish.
        let wish = Some(target.connect_timeout).filter(|wish| *wish != config::CONNECT_TIMEOUT);
        let limit = wish.unwrap_or(KEX_TIMEOUT);
        match within(limit, &shared.asking, connecting).await {
            Some(Ok(handle)) => Ok(Self { handle, shared, guard }),
            Some(Err(failure)) => Err(open_error(host, failure, shared.ended_already())),
            None => {
                let proxy = matches!(target.way, Way::Command(_));
                Err(Error::Stalled {
                    host,
                    step: if proxy { BEHIND_PROXY } else { "key exchange" },
                    after: limit,
                })
            }
        }
    }

    /// Returns what is known of the server.
    pub(crate) fn facts(&self) -> Facts {
        self.shared.facts().clone()
    }

    /// Logs in as the user of `target`.
    pub(crate) async fn authenticate(mut self, target: &Target) -> Result<Session, Error> {
        let person = Box::pin(auth::authenticate(&mut self.handle, &self.shared, target)).await?;
        let Self { handle, shared, guard } = self;
        shared.kill.trust();
        let environment = target.session.environment.clone();
        Ok(Session { handle, shared, environment, person, guard })
    }
}

fn config(target: &Target, preferred: Preferred) -> Config {
    Config {
        client_id: SshId::Standard(concat!("SSH-2.0-broker_", env!("CARGO_PKG_VERSION")).into()),
        preferred,
        // Servers with 2048-bit moduli only are common among appliances.
        gex: GexParams::new(2048, 3072, 8192).unwrap_or_default(),
        keepalive_interval: Some(target.server_alive_interval).filter(|interval| !interval.is_zero()),
        // russh waits one interval more than it is told. Its 0 means never, so a count of 1 is taken for 2.
        keepalive_max: target.server_alive_count_max.saturating_sub(1).max(1),
        limits: limits(target.rekey),
        nodelay: true,
        ..Config::default()
    }
}

/// Keys that are made anew for every packet would be all that there is on the line.
const LEAST_BEFORE_REKEY: u64 = 64 << 10;

/// Without a wish it is what RFC 4253 (9) recommends, which is also the most that there may be.
fn limits(wish: Rekey) -> Limits {
    let usual = Limits::default();
    let most = usual.rekey_write_limit.min(usual.rekey_read_limit);
    let bytes = wish
        .bytes
        .map_or(most, |bytes| usize::try_from(bytes.max(LEAST_BEFORE_REKEY)).unwrap_or(most).min(most));
    Limits::new(bytes, bytes, wish.after.unwrap_or(usual.rekey_time_limit).min(usual.rekey_time_limit))
}

fn open_error(host: String, failure: Failure, ended: Option<Ended>) -> Error {
    match (failure, ended) {
        (Failure::HostKey(refused), _) => refused.into(),
        (Failure::Weak(why), _) => Error::Weak { host, why },
        (_, Some(source @ (Ended::Disconnected(_) | Ended::Killed(Killed::Stalled)))) => {
            Error::Closed { host, source }
        }
        (Failure::Russh(error), _) => match error {
            russh::Error::IO(error) if error.get_ref().is_some_and(|inner| inner.is::<Broken>()) => {
                let inner = error.into_inner().and_then(|inner| inner.downcast::<Broken>().ok());
                match inner {
                    Some(source) => Error::Broken { host, source },
                    // It was one just before.
                    None => Error::NoHandshake { host, source: Ended::Closed },
                }
            }
            russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_) => {
                Error::NoHandshake { host, source: ended_by(error) }
            }
            source => Error::Protocol { host, source },
        },
    }
}

/// Runs `future` for at most `limit`, not counting the time in which a person is asked.
async fn within<F: Future + Unpin>(
    limit: Duration,
    asking: &watch::Sender<bool>,
    mut future: F,
) -> Option<F::Output> {
    let mut asking = asking.subscribe();
    let mut left = limit;
    loop {
        let counting = !*asking.borrow_and_update();
        let since = Instant::now();
        tokio::select! {
            biased;
            output = &mut future => return Some(output),
            // The sender outlives this borrow, so this is a change and no failure.
            _ = asking.changed() => {}
            () = tokio::time::sleep(left), if counting => return None,
        }
        if counting {
            left = left.saturating_sub(since.elapsed());
        }
    }
}

impl Session {
    /// Has the server listen on `port` of its 127.0.0.1; 0 lets it choose. Returns the port it listens on.
    pub(crate) async fn forward_tcp(&self, port: u16) -> Result<(Forward, u16), ForwardRefused> {
        let mut forward = self.shared.forwards.add(Listener::Tcp(port));
        let asked = Box::pin(self.handle.tcpip_forward(BIND_ADDRESS, port.into()));
        let chosen = self.forwarded(&forward.listener, asked).await?;
        if port != 0 {
            return Ok((forward, port));
        }
        match u16::try_from(chosen) {
            Ok(chosen) if chosen != 0 => {
                self.shared.forwards.chosen(&mut forward, chosen);
                Ok((forward, chosen))
            }
            _ => {
                self.shared.forwards.remove(&forward.listener);
                Err(ForwardRefused::Denied { what: forward.listener.to_string() })
            }
        }
    }

    /// Has the server listen on a unix socket at `path`.
    pub(crate) async fn forward_streamlocal(&self, path: &str) -> Result<Forward, ForwardRefused> {
        let forward = self.shared.forwards.add(Listener::Local(path.to_owned()));
        self.forwarded(&forward.listener, Box::pin(self.handle.streamlocal_forward(path))).await?;
        Ok(forward)
    }

    async fn forwarded<T>(
        &self,
        listener: &Listener,
        asked: impl Future<Output = Result<T, russh::Error>>,
    ) -> Result<T, ForwardRefused> {
        let what = listener.to_string();
        let refused = match timeout(FORWARD_TIMEOUT, asked).await {
            Ok(Ok(confirmed)) => return Ok(confirmed),
            Ok(Err(russh::Error::RequestDenied)) => ForwardRefused::Denied { what },
            Ok(Err(_)) => ForwardRefused::Closed { what, source: self.over().await },
            Err(_) => ForwardRefused::TimedOut { what, after: FORWARD_TIMEOUT },
        };
        self.shared.forwards.remove(listener);
        Err(refused)
    }

    /// Frees the port or socket of `forward`, bounded; says whether the server confirmed it.
    pub(crate) async fn cancel(&self, forward: Forward) -> bool {
        self.cancel_listener(&forward.listener).await
    }

    /// Frees a port or socket whose [`Forward`] is gone, bounded; says whether the server confirmed it.
    pub(crate) async fn cancel_listener(&self, listener: &Listener) -> bool {
        self.shared.forwards.remove(listener);
        let cancelled = match listener {
            Listener::Tcp(port) => {
                let asked = self.handle.cancel_tcpip_forward(BIND_ADDRESS, (*port).into());
                timeout(CANCEL_TIMEOUT, Box::pin(asked)).await
            }
            Listener::Local(path) => {
                let asked = self.handle.cancel_streamlocal_forward(path.as_str());
                timeout(CANCEL_TIMEOUT, Box::pin(asked)).await
            }
        };
        matches!(cancelled, Ok(Ok(())))
    }

    /// Runs `command` with the user's login shell, without a terminal.
    pub(crate) async fn exec(&self, command: &str, keep: Keep) -> Result<(Process, Pump), Error> {
        let channel = self.open_session("a command", keep).await?;
        if keep == Keep::All {
            // The user's, and not a helper of ours, which wants an environment that it knows.
            self.send_environment(&channel).await;
        }
        let requested = Box::pin(channel.write.exec(true, command)).await;
        self.requested(&channel, "a command", requested).await?;
        Ok(self.process(channel, keep, false))
    }

    /// Runs `command`, or the login shell without one, on a terminal. A server that gives no terminal runs it all
    /// the same, as with `ssh`; [`Process::has_pty`] tells.
    pub(crate) async fn exec_pty(&self, command: Option<&str>, pty: &Pty) -> Result<(Process, Pump), Error> {
        let what = if command.is_some() { "a command" } else { "a shell" };
        let channel = self.open_session(what, Keep::All).await?;
        self.send_environment(&channel).await;
        let Size { columns, rows, width, height } = pty.size;
        let asked =
            Box::pin(channel.write.request_pty(true, &pty.term, columns, rows, width, height, &pty.modes))
                .await;
        // Both requests go out together; the answers come in this order.
        let requested = match command {
            Some(command) => Box::pin(channel.write.exec(true, command)).await,
            None => Box::pin(channel.write.request_shell(true)).await,
        };
        let has_pty = match self.requested(&channel, "a terminal", asked).await {
            Ok(()) => true,
            Err(ChannelRefused::Request { .. }) => false,
            Err(refused) => return Err(refused.into()),
        };
        self.requested(&channel, what, requested).await?;
        Ok(self.process(channel, Keep::All, has_pty))
    }

    fn process(&self, channel: Outward, keep: Keep, has_pty: bool) -> (Process, Pump) {
        let shared = Arc::clone(&self.shared);
        let behind = move || {
            shared.human.tell(&format!(
                "{}: so much of its output waits to be read here that the connection waits as well, and whoever asks for \
                 credentials there",
                shared.host
            ));
        };
        Process::new(channel, self.shared.kill.clone(), keep, has_pty, behind)
    }

    /// Asks for the variables without waiting for an answer: most servers take few, and say nothing about it.
    async fn send_environment(&self, channel: &Outward) {
        for (name, value) in &self.environment {
            // An error means that the connection is gone, which the next request notices.
            Box::pin(channel.write.set_env(false, name.as_str(), value.as_str())).await.unwrap_or_default();
        }
    }

    /// Starts a subsystem, such as `sftp`, as a stream of bytes; what it says on standard error is dropped.
    pub(crate) async fn subsystem(&self, name: &'static str) -> Result<(Stream, Pump), ChannelRefused> {
        let channel = self.opened(name, Box::pin(self.handle.channel_open_session())).await?;
        let channel = self.outward(channel, SUBSYSTEM_LIMIT);
        let requested = Box::pin(channel.write.request_subsystem(true, name)).await;
        self.requested(&channel, name, requested).await?;
        Ok(Pump::stream(channel, None))
    }

    /// Connects to `host:port` as the server sees them. The stream receives at most 256 KiB: it is for probes.
    pub(crate) async fn direct_tcpip(&self, host: &str, port: u16) -> Result<(Stream, Pump), ChannelRefused> {
        let opening = Box::pin(self.handle.channel_open_direct_tcpip(host, port.into(), BIND_ADDRESS, 0));
        let channel = self.opened("a connection", opening).await?;
        Ok(Pump::stream(self.outward(channel, ARRIVAL_LIMIT), None))
    }

    /// Connects to `host:port` as the server sees them, for a connection of its own that this one carries. It must
    /// stay the only channel: while its reader is behind, nothing of this connection is read.
    pub(super) async fn carry(&self, host: &str, port: u16) -> Result<(Stream, Pump), ChannelRefused> {
        let opening = Box::pin(self.handle.channel_open_direct_tcpip(host, port.into(), BIND_ADDRESS, 0));
        let channel = self.outward(self.opened("a connection", opening).await?, CARRIED_LIMIT);
        channel.inbox.set_transport(self.shared.kill.clone());
        Ok(Pump::stream(channel, None))
    }

    /// Returns why the connection is over, if it is.
    pub(super) fn ended_already(&self) -> Option<Ended> {
        self.shared.ended_already()
    }

    async fn open_session(&self, what: &'static str, keep: Keep) -> Result<Outward, ChannelRefused> {
        let channel = self.opened(what, Box::pin(self.handle.channel_open_session())).await?;
        Ok(self.outward(channel, keep.limit()))
    }

    fn outward(&self, channel: Channel<Msg>, limit: Limit) -> Outward {
        let inbox = self.shared.channels.claim(channel.id().into(), limit);
        // The queue is closed here, so the session loop never waits for it: see `inbox`.
        let (queue, write) = channel.split();
        drop(queue);
        Outward::new(write, inbox, Arc::clone(&self.shared.channels))
    }

    async fn opened(
        &self,
        what: &'static str,
        opening: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
    ) -> Result<Channel<Msg>, ChannelRefused> {
        match timeout(CHANNEL_TIMEOUT, opening).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(ChannelRefused::Open {
                host: self.shared.host.clone(),
                what,
                prohibited: reason == ChannelOpenFailure::AdministrativelyProhibited,
                text: self.shared.refusal(&reason),
            }),
            Ok(Err(_)) => Err(ChannelRefused::Closed { what, source: self.over().await }),
            Err(_) => Err(ChannelRefused::TimedOut { what, after: CHANNEL_TIMEOUT }),
        }
    }

    async fn requested(
        &self,
        channel: &Outward,
        what: &'static str,
        sent: Result<(), russh::Error>,
    ) -> Result<(), ChannelRefused> {
        let replied = async {
            match sent {
                Ok(()) => channel.inbox.replied().await,
                Err(_) => None,
            }
        };
        match timeout(CHANNEL_TIMEOUT, replied).await {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => Err(ChannelRefused::Request { host: self.shared.host.clone(), what }),
            Ok(None) => match self.shared.ended_already() {
                Some(source) => Err(ChannelRefused::Closed { what, source }),
                None => Err(ChannelRefused::Request { host: self.shared.host.clone(), what }),
            },
            Err(_) => Err(ChannelRefused::TimedOut { what, after: CHANNEL_TIMEOUT }),
        }
    }

    /// Waits until the connection is over, and says why.
    pub(crate) async fn ended(&self) -> Ended {
        self.shared.ended().await
    }

    /// Returns why the connection is over, when a call on it just failed for that.
    async fn over(&self) -> Ended {
        // The loop drops what callers wait for a moment before it says why.
        timeout(CANCEL_TIMEOUT, self.shared.ended()).await.unwrap_or(Ended::Closed)
    }

    /// Asks the server for a sign of life, and says whether one came in time.
    pub(crate) async fn answers(&self, limit: Duration) -> bool {
        // russh says that all is well when the session died meanwhile.
        timeout(limit, Box::pin(self.handle.send_ping())).await.is_ok_and(|sent| sent.is_ok())
            && self.shared.ended_already().is_none()
    }

    /// Asks the server for a sign of life, and cuts the connection where none comes in time.
    pub(crate) async fn probe(&self, limit: Duration) {
        if !self.answers(limit).await {
            self.guard.0.kill(Killed::Unanswered);
        }
    }

    /// Notes whether the way here took a person already.
    pub(crate) fn after_a_person(mut self, person: bool) -> Self {
        self.person |= person;
        self
    }

    /// Returns whether the login, or the way here, took a person: a password, an answer, a touch.
    pub(crate) fn took_a_person(&self) -> bool {
        self.person
    }

    /// Returns what is known of the connection.
    pub(crate) fn facts(&self) -> Facts {
        self.shared.facts().clone()
    }

    /// Returns how many channels are open, and how many we had to close before the server did.
    pub(crate) fn channels(&self) -> (usize, usize) {
        (self.shared.channels.len(), self.shared.channels.closed_by_us())
    }

    /// Says goodbye, bounded, and cuts the connection.
    pub(crate) async fn disconnect(&self) {
        let (open, closed_by_us) = self.channels();
        debug!(host = %self.shared.host, open, closed_by_us, "disconnecting");
        let goodbye = async {
            let mut gone = self.shared.gone.subscribe();
            // Every error means that the connection is gone, which is what is wanted.
            let farewell = self.handle.disconnect(Disconnect::ByApplication, "disconnected by user", "");
            drop(Box::pin(farewell).await);
            drop(gone.wait_for(|gone| *gone).await);
        };
        self.shared.end(Ended::Ours);
        drop(timeout(DISCONNECT_TIMEOUT, goodbye).await);
        self.guard.0.kill(Killed::Ours);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
