//! One host's life: start order, supervision, stop order. Knows neither AWS nor the terminal.

mod error;
mod event;
mod examine;
mod lasting;
mod link;
mod login_shell;
mod on_host;
mod options;
mod role_files;
mod start_helper;
mod steering;
mod travels;
mod trust;
mod visit;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

pub(crate) use error::Error;
pub(crate) use event::{Event, Step};
pub(crate) use examine::{Check, Level};
pub(crate) use lasting::Lasting;
use link::Link;
pub(crate) use link::Lost;
pub(crate) use options::{CallerCheck, DEFAULT_PORT, Options, PortWish, TokenPlace, Transport};
pub(crate) use steering::{NotPut, Steering};
use tokio::task::JoinError;
pub(crate) use visit::Visit;

use self::on_host::{OnHost, put_files};
use crate::{
    audit::{self, Log},
    creds::grant::Grants,
    human::Human,
    remote::{
        exports::Shell,
        files, helper,
        install::{Hands, Key},
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
    pub(crate) allow_uids: Vec<u32>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) host_keys: Arc<dyn HostKeys>,
    pub(crate) human: Arc<dyn Human>,
    pub(crate) log: Log,
    pub(crate) observer: Observer,
    /// What others can do with the tunnel while it is up.
    pub(crate) steering: Steering,
}

impl Inputs {
    fn observe(&self, event: Event) {
        (self.observer)(event);
    }

    fn host(&self) -> String {
        self.target.original.clone()
    }
}

/// A tunnel that is up: verified, serving, and installed on the host.
pub(crate) struct Tunnel {
    inputs: Inputs,
    link: Link,
    on_host: OnHost,
}

impl Tunnel {
    /// Connects, verifies, serves and installs, in this order. Nothing stays behind when it fails.
    pub(crate) async fn start(inputs: Inputs) -> Result<Self, Error> {
        let mut link = Link::open(&inputs).await?;
        let ours = link.facts.as_ref().map(|facts| facts.uid);
        let uids = ours.into_iter().chain(inputs.allow_uids.iter().copied().map(crate::caller::Uid));
        inputs.grants.allow(uids);
        link.serve(&inputs.grants, inputs.tls.as_ref());

        inputs.observe(Event::Started { step: Step::Install, subject: inputs.host() });
        let on_host = match put_files(&inputs, &mut link).await {
            Ok(on_host) => on_host,
            Err(source) => {
                inputs.grants.revoke_all();
                link.close().await;
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
            directory: on_host.files.path().to_owned(),
        });
        Ok(Self { inputs, link, on_host })
    }

    /// Returns the exports for `shell`, or for the login shell of the host.
    pub(crate) fn exports(&self, shell: Option<Shell>) -> zeroize::Zeroizing<String> {
        let shell = shell.or(self.on_host.exports.login_shell).unwrap_or_else(|| {
            if let Some(program) = self.login_shell() {
                self.inputs.observe(Event::Notice {
                    message: format!("your login shell there is `{program}`, but these exports are for sh"),
                });
            }
            Shell::Sh
        });
        shell.render(&self.on_host.exports.environment)
    }

    /// Returns the path of the host's login shell.
    pub(crate) fn login_shell(&self) -> Option<&str> {
        self.link.facts.as_ref()?.shell.as_deref()
    }

    /// Starts the login shell on the host, in our environment.
    pub(crate) async fn shell(&self, pty: Option<&Pty>) -> Result<(Process, Pump), Error> {
        self.run(&files::shell_command(self.on_host.files.path()), pty).await
    }

    /// Starts the command that was installed.
    pub(crate) async fn command(&self, pty: Option<&Pty>) -> Result<(Process, Pump), Error> {
        self.run(&files::command_command(self.on_host.files.path()), pty).await
    }

    async fn run(&self, command: &str, pty: Option<&Pty>) -> Result<(Process, Pump), Error> {
        let session = &self.link.session;
        Ok(match pty {
            Some(pty) => session.exec_pty(Some(command), pty).await?,
            None => session.exec(command, ssh::process::Keep::All).await?,
        })
    }

    /// Drives the tunnel until `job` is done, or fails when the link is lost before.
    pub(crate) async fn during<T>(&mut self, job: impl Future<Output = T>) -> Result<T, Lost> {
        let host = self.inputs.host();
        tokio::select! {
            // The job first: an exit status that came with the end of the connection counts.
            biased;
            done = job => Ok(done),
            lost = self.link.lost(&host) => Err(lost),
            never = trust::watch(self.inputs.tls.as_deref(), &host, &*self.inputs.observer) => match never {},
            never = watch::watch(&self.inputs.grants, &host, &*self.inputs.observer) => match never {},
        }
    }

    /// Revokes, cleans the host, disconnects: within 2 s, whatever the host does.
    pub(crate) async fn stop(self, reason: &str) {
        let Self { inputs, link, on_host: OnHost { files, managed, .. } } = self;
        let over_sftp = matches!(link.hands, Hands::Sftp(_));
        inputs.grants.revoke_all();
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
        let host_clean = link.close().await;
        inputs.log.record(audit::Entry { event: audit::Event::TunnelDown, ..audit::Entry::default() });
        // A helper cleans up after us in any case.
        let stays_until = files.ends().filter(|_| over_sftp && !host_clean);
        let (host, reason) = (inputs.host(), reason.to_owned());
        inputs.observe(Event::Stopped { host, reason, host_clean, stays_until });
    }
}

/// The removal is a round trip and a rename, and part of the two seconds that a stop may take.
const UNMANAGE_TIMEOUT: Duration = Duration::from_millis(600);

/// Returns what a task returned, or goes on with its panic.
fn reraise<T>(ended: Result<T, JoinError>) -> T {
    match ended {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            #[expect(
                clippy::unreachable,
                reason = "only `shutdown` aborts, and it does not return what it aborted"
            )]
            Err(_) => unreachable!("a task was aborted while it was waited for"),
        },
    }
}
