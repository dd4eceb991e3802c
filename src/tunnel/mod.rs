//! One host's life: start order, supervision, stop order. Knows neither AWS nor the terminal.

mod error;
mod event;
mod examine;
mod graveyard;
mod lasting;
mod link;
mod login_shell;
mod on_host;
mod options;
mod reconnect;
mod retry;
mod role_files;
mod start_helper;
mod steering;
mod travels;
mod trust;
mod visit;
mod wake;
mod watch;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub(crate) use error::Error;
pub(crate) use event::{Event, Step};
pub(crate) use examine::{Check, Level};
pub(crate) use graveyard::Graveyard;
pub(crate) use lasting::Lasting;
pub(crate) use link::Lost;
use link::{Left, Link};
pub(crate) use options::{CallerCheck, DEFAULT_PORT, Options, PortWish, TokenPlace, Transport};
pub(crate) use retry::FirstTries;
pub(crate) use steering::{NotPut, Steering};
use tokio::time::Instant;
pub(crate) use visit::Visit;

use self::{
    graveyard::Plot,
    on_host::{Exports, OnHost, put_files},
    reconnect::{Again, Memory, Teller},
};
use crate::{
    audit::{self, Log},
    clock::Clock,
    creds::grant::Grants,
    human::Human,
    remote::{
        exports::Shell,
        files, helper,
        install::{Hands, Installed, Key},
        managed::Managed,
        stale::Grave,
        tmux,
    },
    ssh::{self, process::Process, pump::Pump, session::HostKeys, target::Target, terminal::Pty},
    tls::Identity,
};

/// Returns a name for our directory that no other tunnel of this user has.
pub(crate) fn key() -> Result<Key, crate::random::NoRandomness> {
    let nonce = helper::Nonce::generate()?;
    let text = nonce.as_str().get(..12).unwrap_or_default();
    #[expect(clippy::expect_used, reason = "a nonce is 32 hexadecimal digits")]
    Ok(Key::new(text).expect("hexadecimal digits"))
}

/// Hears what happens.
pub(crate) type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// What a tunnel is made of.
#[derive(Clone)]
pub(crate) struct Inputs {
    pub(crate) target: Target,
    pub(crate) options: Options,
    /// Who we are to TLS clients at the port (`--tls`).
    pub(crate) tls: Option<Arc<Identity>>,
    /// A command for the login shell, whose file has to be installed with the others.
    pub(crate) command: Option<String>,
    /// Whether a shell or a command is to run on the host.
    pub(crate) runs: bool,
    /// The name of our directory on the host where no port gives it one; the same for every link of one tunnel.
    pub(crate) key: Key,
    /// The names for it where nothing on the host removes what we have to leave.
    pub(crate) lasting: Lasting,
    /// Connections that hosts may still believe in when this process is gone.
    pub(crate) graveyard: Arc<Graveyard>,
    pub(crate) allow_uids: Vec<u32>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) host_keys: Arc<dyn HostKeys>,
    pub(crate) human: Arc<dyn Human>,
    pub(crate) log: Log,
    pub(crate) observer: Observer,
    /// What others can do with the tunnel while it is up.
    pub(crate) steering: Steering,
    /// Who connects to one server at once: a server takes few that have not logged in yet (`MaxStartups`).
    pub(crate) turns: Arc<tokio::sync::Semaphore>,
    pub(crate) clock: Clock,
}

impl Inputs {
    fn observe(&self, event: Event) {
        (self.observer)(event);
    }

    fn host(&self) -> String {
        self.target.original.clone()
    }
}

/// A tunnel: verified, serving, and installed on the host; or on its way back there.
pub(crate) struct Tunnel {
    inputs: Inputs,
    /// Nothing between a lost link and the next.
    up: Option<Up>,
    exports: Exports,
    memory: Memory,
    plot: Plot,
    teller: Teller,
}

/// What dies with one link.
struct Up {
    link: Link,
    files: Arc<Installed>,
    /// Our block in the host's own configuration (`--install-profiles`).
    managed: Option<Managed>,
    since: Instant,
}

/// Connects, verifies, serves and installs, in this order. Nothing stays behind when it fails.
async fn bring_up(inputs: &Inputs, again: Option<&Again>) -> Result<(Up, Exports), Error> {
    let mut link = Link::open(inputs, again).await?;
    let ours = link.facts.as_ref().map(|facts| facts.uid);
    let uids = ours.into_iter().chain(inputs.allow_uids.iter().copied().map(crate::caller::Uid));
    inputs.grants.allow(uids);
    if again.is_some_and(|again| again.rotate) && link.serves_unproven() {
        // Whoever held the port meanwhile may have been sent the old ones.
        inputs.grants.rotate()?;
    }
    link.serve(&inputs.grants, inputs.tls.as_ref());

    inputs.observe(Event::Started { step: Step::Install, subject: inputs.host() });
    let OnHost { files, managed, exports } = match put_files(inputs, &mut link).await {
        Ok(on_host) => on_host,
        Err(source) => {
            link.close(false).await;
            return Err(Error::Install { host: inputs.host(), source });
        }
    };
    inputs.observe(Event::Done { step: Step::Install, subject: inputs.host() });
    inputs.log.record(audit::Entry { event: audit::Event::TunnelUp, ..audit::Entry::default() });
    inputs.observe(Event::Ready {
        host: inputs.host(),
        port: link.ways.port,
        socket: link.ways.socket.clone(),
        files: link.ways.file,
        url: link.ways.port.map(|port| files::url(port, inputs.tls.as_ref().map(|tls| tls.host()))),
        profiles: inputs.grants.list().iter().map(|grant| grant.profile.to_string()).collect(),
        directory: files.path().to_owned(),
    });
    Ok((Up { link, files, managed, since: Instant::now() }, exports))
}

impl Tunnel {
    /// Connects, verifies, serves and installs. Nothing stays behind when it fails, and the grants are as before.
    pub(crate) async fn start(inputs: Inputs) -> Result<Self, Error> {
        let teller = Teller::default();
        let observer = teller.first(&inputs.observer);
        let first = Inputs { observer, ..inputs.clone() };
        let turn = Arc::clone(&inputs.turns).acquire_owned().await;
        let (up, exports) = Box::pin(bring_up(&first, None)).await?;
        drop(turn);
        let (memory, plot) = (Memory::of(&up), inputs.graveyard.plot());
        up.mark(&plot);
        Ok(Self { inputs, up: Some(up), exports, memory, plot, teller })
    }

    /// Returns the exports for `shell`, or for the login shell of the host.
    pub(crate) fn exports(&self, shell: Option<Shell>) -> zeroize::Zeroizing<String> {
        let shell = shell.or(self.exports.login_shell).unwrap_or_else(|| {
            if let Some(program) = self.login_shell() {
                self.inputs.observe(Event::Notice {
                    message: format!("your login shell there is `{program}`, but these exports are for sh"),
                });
            }
            Shell::Sh
        });
        shell.render(&self.exports.environment)
    }

    /// Returns the path of the host's login shell.
    pub(crate) fn login_shell(&self) -> Option<&str> {
        self.up.as_ref()?.link.facts.as_ref()?.shell.as_deref()
    }

    /// Starts the login shell on the host, in our environment.
    pub(crate) async fn shell(&self, pty: Option<&Pty>) -> Result<(Process, Pump), Error> {
        match self.inputs.options.tmux {
            true => self.run(tmux::command, pty).await,
            false => self.run(files::shell_command, pty).await,
        }
    }

    /// Starts the command that was installed.
    pub(crate) async fn command(&self, pty: Option<&Pty>) -> Result<(Process, Pump), Error> {
        self.run(files::command_command, pty).await
    }

    async fn run(
        &self,
        command: impl FnOnce(&str) -> String,
        pty: Option<&Pty>,
    ) -> Result<(Process, Pump), Error> {
        let Some(Up { link, files, .. }) = &self.up else { return Err(self.gone().into()) };
        let (session, command) = (&link.session, command(files.path()));
        Ok(match pty {
            Some(pty) => session.exec_pty(Some(&command), pty).await?,
            None => session.exec(&command, ssh::process::Keep::All).await?,
        })
    }

    fn gone(&self) -> Lost {
        Lost::Connection { host: self.inputs.host(), source: ssh::handler::Ended::Closed }
    }

    /// Drives the tunnel until `job` is done, or fails when the link that it runs over is lost before.
    pub(crate) async fn during<T>(&mut self, job: impl Future<Output = T>) -> Result<T, Lost> {
        let mut job = std::pin::pin!(job);
        // The connection that the job runs over, where it is not that of the link any more.
        let mut kept = None;
        let outcome = loop {
            let lost = tokio::select! {
                // The job first: an exit status that came with the end of the connection counts.
                biased;
                done = &mut job => break Ok(done),
                lost = self.supervise() => lost,
            };
            match self.up.take() {
                Some(up) if kept.is_none() && lost.is_planned() => {
                    kept = Some(Box::pin(up.link.retire()).await)
                }
                up if kept.is_none() => {
                    self.up = up;
                    break Err(lost);
                }
                up => self.up = up,
            }
            tokio::select! {
                biased;
                done = &mut job => break Ok(done),
                back = Box::pin(self.reconnect(lost)) => if let Err(error) = back {
                    self.inputs.observe(Event::Warning { message: error.chain() });
                    break Err(self.gone());
                }
            }
        };
        if let Some(session) = kept {
            session.disconnect().await;
        }
        outcome
    }

    /// Watches the link until it is lost or should be renewed.
    async fn supervise(&mut self) -> Lost {
        let host = self.inputs.host();
        let Some(up) = &mut self.up else { return self.gone() };
        let session = Arc::clone(&up.link.session);
        let mut changes = wake::Watch::new(session.facts().peer);
        // Nobody is asked to log in again for what strangers do.
        let renewable = !session.took_a_person() && self.inputs.options.reconnect_for != Some(Duration::ZERO);
        let outgrown = async {
            // Every other time is seldom enough for a flood not to have us log in all the time.
            for look in 1u64.. {
                if let Some(change) = changes.look().await {
                    tracing::debug!(?change, "looking whether the connection still works");
                    session.probe(wake::PROBE_TIMEOUT).await;
                    self.inputs.grants.poke();
                }
                if renewable && look % 2 == 0 && Link::is_outgrown(&session) {
                    break;
                }
            }
        };
        let asked = async {
            loop {
                self.inputs.steering.asked_for_another().await;
                if !session.took_a_person() {
                    break;
                }
                // Who has to type something may not be there; that this one works is all that can be seen to.
                self.inputs.observe(Event::Notice {
                    message: format!("the connection to {host} is kept, as a new one would need a person"),
                });
                session.probe(wake::PROBE_TIMEOUT).await;
            }
        };
        tokio::select! {
            lost = up.link.lost(&host) => lost,
            () = outgrown => Lost::Outgrown { host: host.clone() },
            () = asked => Lost::Asked { host: host.clone() },
            never = trust::watch(self.inputs.tls.as_deref(), &host, &*self.inputs.observer) => match never {},
            never = watch::watch(&self.inputs.grants, &host, &*self.inputs.observer) => match never {},
        }
    }

    /// Returns why the link is gone, when whatever ran over it was just told that it is.
    pub(crate) async fn lost(&mut self) -> Lost {
        let host = self.inputs.host();
        let Some(up) = &mut self.up else { return self.gone() };
        match tokio::time::timeout(LOST_TIMEOUT, up.link.lost(&host)).await {
            Ok(lost) => lost,
            Err(_) => self.gone(),
        }
    }

    /// Drives a tunnel in which nothing of ours runs, over as many links as it takes. Returns when none can be had.
    pub(crate) async fn keep(&mut self) -> Error {
        loop {
            let lost = self.supervise().await;
            if let Err(error) = Box::pin(self.reconnect(lost)).await {
                return error;
            }
        }
    }

    /// Takes all grants back. What lies on the host does not follow any more, as it may stay (`--linger`).
    pub(crate) fn revoke(&self) {
        if let Some(up) = &self.up {
            up.link.stop_serving();
        }
        self.inputs.grants.revoke_all();
    }

    /// Revokes, cleans the host, disconnects: within 2 s, whatever the host does.
    pub(crate) async fn stop(self, reason: &str) {
        self.revoke();
        let Self { inputs, up, memory, plot, .. } = self;
        let (host_clean, stays_until) = match up {
            Some(up) => Box::pin(take_down(&inputs, up, &plot)).await,
            // Whatever lay there had 45 s, and somebody may still be cut off with it.
            None => (false, memory.stays_until),
        };
        inputs.log.record(audit::Entry { event: audit::Event::TunnelDown, ..audit::Entry::default() });
        let lingers = inputs.options.linger.is_some();
        // What the host has removed meanwhile, or within the 45 s, is not worth a time.
        let stays_until = stays_until.filter(|until| !lingers || *until > inputs.clock.now());
        let lingers = lingers && stays_until.is_some();
        let (host, reason) = (inputs.host(), reason.to_owned());
        inputs.observe(Event::Stopped { host, reason, host_clean, stays_until, lingers });
    }
}

impl Up {
    /// Writes down what the host may still believe in when we are gone.
    fn mark(&self, plot: &Plot) {
        let grave = self.link.facts.as_ref().and_then(Grave::of);
        plot.mark(&self.link.session.facts().fingerprint, grave.as_ref());
    }

    /// Returns until when at the latest credentials lie on the host that we cannot remove any more; `None` where its
    /// helper removes them.
    fn stays_until(&self, inputs: &Inputs) -> Option<SystemTime> {
        let ends = self.files.ends();
        match inputs.options.linger {
            // The host may notice only then that we are gone.
            Some(most) => ends.map(|ends| ends.min(inputs.clock.now() + NOTICED + most)),
            None => ends.filter(|_| matches!(self.link.hands, Hands::Sftp(_))),
        }
    }
}

/// Cleans the host and disconnects. Returns whether the host is known to be clean, and otherwise until when what stays
/// there is worth something, where nothing else removes it at once.
async fn take_down(inputs: &Inputs, up: Up, plot: &Plot) -> (bool, Option<SystemTime>) {
    let stays_until = up.stays_until(inputs);
    let Up { link, managed, .. } = up;
    if let Some(managed) = managed
        && !matches!(tokio::time::timeout(UNMANAGE_TIMEOUT, managed.remove()).await, Ok(Ok(())))
    {
        inputs.observe(Event::Warning {
            message: format!(
                "our profiles are still in `~/.aws/config` of {host} and lead nowhere now; the next connection \
                 replaces them, and `broker clean {host}` removes them",
                host = inputs.host()
            ),
        });
    }
    let left = link.close(inputs.options.linger.is_some()).await;
    // Who does not answer may not hear that we leave, either.
    if left != Left::Unknown {
        plot.clear();
    }
    match left {
        Left::Nothing => (true, None),
        Left::Credentials(stay) => (false, Some(inputs.clock.now() + stay)),
        Left::Unknown => (false, stays_until),
    }
}

/// The host notices by then that it hears nothing from us any more (`product.md` 3).
const NOTICED: Duration = Duration::from_secs(45);

/// The connection says why it ended a moment after it did.
const LOST_TIMEOUT: Duration = Duration::from_millis(500);

/// The removal is a round trip and a rename, and part of the two seconds that a stop may take.
const UNMANAGE_TIMEOUT: Duration = Duration::from_millis(600);
