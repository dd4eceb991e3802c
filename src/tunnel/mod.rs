//! One host's life: start order, supervision, stop order. Knows neither AWS nor the terminal.

mod event;
mod examine;
mod lasting;
mod link;
mod login_shell;
mod options;
mod role_files;
mod start_helper;
mod visit;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

pub(crate) use event::{Event, Step};
pub(crate) use examine::{Check, Level};
pub(crate) use lasting::Lasting;
use link::Link;
pub(crate) use link::Lost;
pub(crate) use options::{CallerCheck, DEFAULT_PORT, Options, PortWish, TokenPlace, Transport};
use tokio::task::JoinError;
pub(crate) use visit::Visit;

use crate::{
    audit::{self, Log},
    creds::grant::Grants,
    human::Human,
    names::ProfileName,
    remote::{
        self,
        exports::Shell,
        files::{self, Layout},
        helper,
        home::HomeFile,
        install::{self, Hands, Installed, Key, Place},
        managed::{self, Managed},
        probe::Refusal,
        shadow::{self, Shadow, Variable},
        sockets::ListenerProblem,
    },
    ssh::{self, process::Process, pump::Pump, session::HostKeys, target::Target, terminal::Pty},
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
}

impl Inputs {
    fn observe(&self, event: Event) {
        (self.observer)(event);
    }

    fn host(&self) -> String {
        self.target.original.clone()
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Ssh(#[from] ssh::error::Error),
    #[error("{host} does not forward the port: {refusal}")]
    Forward { host: String, refusal: Refusal },
    #[error("the helper on {host} failed")]
    Helper {
        host: String,
        #[source]
        source: helper::Error,
    },
    #[error("could not put our files on {host}")]
    Install {
        host: String,
        #[source]
        source: install::Error,
    },
    #[error("no command runs on {host}, so there can be no shell or command with credentials there")]
    NothingRuns {
        host: String,
        #[source]
        source: Box<Self>,
    },
    #[error("no command runs on {host}, and SFTP is no way there either: {refused}")]
    NoSftp {
        host: String,
        refused: ssh::error::ChannelRefused,
        /// Why no command runs.
        #[source]
        source: Box<Self>,
    },
    #[error(
        "{host} ({system}) does not show who owns a connection, so another user there could use your credentials unnoticed"
    )]
    CannotCheckCallers { host: String, system: String },
    #[error("port {port} of {host} is not ours alone")]
    Listener {
        host: String,
        port: u16,
        #[source]
        problem: ListenerProblem,
    },
    #[error("{host} does not forward a unix socket (AllowStreamLocalForwarding)")]
    NoSocket {
        host: String,
        #[source]
        source: ssh::error::ForwardRefused,
    },
    #[error("what we sent to port {port} of {host} did not come back to us, so something else is there")]
    SelfTest { host: String, port: u16 },
    #[error(transparent)]
    NoRandomness(#[from] crate::random::NoRandomness),
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl Error {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Ssh(e) => e.hint(),
            Self::Forward { refusal, .. } => refusal.hint(),
            Self::Helper { source, .. } => source.hint(),
            Self::Install { source, .. } => source.hint(),
            Self::NothingRuns { .. } => Some(
                "with `-N` role credentials are kept in files there over SFTP, if the server offers that, for \
                 programs that run there without a login"
                    .to_owned(),
            ),
            Self::NoSftp { .. } => Some(
                "the account must be able to run commands (`ssh HOST true` must work; a ForceCommand, a menu or \
                 nologin prevents it), or sshd_config needs `Subsystem sftp internal-sftp`"
                    .to_owned(),
            ),
            Self::CannotCheckCallers { .. } => {
                Some("if you trust every user of that host, pass `--trust-host-users`".to_owned())
            }
            Self::Listener { problem, .. } => problem.hint(),
            Self::SelfTest { port, .. } => {
                // A neighbour that is a port for every port.
                Some(format!("choose another port with `-R`, such as `-R {}`", port ^ 1))
            }
            Self::NoSocket { .. } => Some(
                "use `--transport tcp`, or ask for `AllowStreamLocalForwarding yes` in sshd_config"
                    .to_owned(),
            ),
            Self::Lost(Lost::Connection { source, .. }) => source.hint(),
            Self::Lost(Lost::Helper { source: Some(source), .. } | Lost::Sftp { source: Some(source), .. }) => {
                source.hint()
            }
            Self::Lost(Lost::Helper { .. } | Lost::Sftp { .. }) | Self::NoRandomness(_) => None,
        }
    }
}

impl Error {
    /// Whether processes on the host may still be reached in another way than by a port.
    fn leaves_other_ways(&self) -> bool {
        match self {
            Self::Forward { .. } | Self::CannotCheckCallers { .. } => true,
            // sshd's own doing. A listener that is not there or another user's is a server that lies.
            Self::Listener { problem, .. } => matches!(problem, ListenerProblem::Exposed { .. }),
            _ => false,
        }
    }

    /// Whether files may still be put there over SFTP: a helper could not begin, or not do its work.
    fn leaves_sftp(&self) -> bool {
        use helper::Error::{NoHelper, Unsuitable};
        matches!(
            self,
            Self::Helper { source: NoHelper { .. } | Unsuitable { .. }, .. }
                | Self::Ssh(ssh::error::Error::ChannelRefused(ssh::error::ChannelRefused::Request { .. }))
        )
    }

    /// Returns the error with its cause, in one line.
    fn told(&self) -> String {
        match self {
            Self::Listener { problem, .. } => format!("{self}: {problem}"),
            Self::Helper { source, .. } => source.to_string(),
            _ => self.to_string(),
        }
    }
}

/// A tunnel that is up: verified, serving, and installed on the host.
pub(crate) struct Tunnel {
    inputs: Inputs,
    link: Link,
    on_host: OnHost,
}

/// What lies on the host.
struct OnHost {
    files: Arc<Installed>,
    /// Our block in the host's own configuration (`--install-profiles`).
    managed: Option<Managed>,
    exports: Exports,
}

/// What other shells on the host have to be told.
struct Exports {
    environment: remote::exports::Environment,
    login_shell: Option<Shell>,
}

impl Tunnel {
    /// Connects, verifies, serves and installs, in this order. Nothing stays behind when it fails.
    pub(crate) async fn start(inputs: Inputs) -> Result<Self, Error> {
        let mut link = Link::open(&inputs).await?;
        let ours = link.facts.as_ref().map(|facts| facts.uid);
        let uids = ours.into_iter().chain(inputs.allow_uids.iter().copied().map(crate::caller::Uid));
        inputs.grants.allow(uids);
        link.serve(&inputs.grants);

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
            url: link.ways.port.map(|port| format!("http://127.0.0.1:{port}/")),
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

/// Puts our files on the host.
async fn put_files(inputs: &Inputs, link: &mut Link) -> Result<OnHost, install::Error> {
    let Some(directory) = link.directory.take() else { return Err(helper::Error::NoPlace.into()) };
    match directory.place() {
        Place::Home => inputs.observe(Event::Warning {
            message: format!(
                "nothing but the home directory can be written on {}, so the {} in `{}`",
                inputs.host(),
                if link.ways.file { "credentials lie" } else { "token lies" },
                directory.path()
            ),
        }),
        Place::Random => inputs.observe(Event::Warning {
            message: format!(
                "another user of {} holds our usual directory; this time it is `{}`",
                inputs.host(),
                directory.path()
            ),
        }),
        Place::Runtime | Place::SharedMemory | Place::Temporary => {}
    }
    if let Some(below) = directory.below_home() {
        inputs.observe(Event::Warning {
            message: format!(
                "the SFTP server of {} shows a part of the machine only, so programs there may know `{}` by another \
                 path: if so, set AWS_CONFIG_FILE=\"$HOME/{below}/config\" and \
                 AWS_SHARED_CREDENTIALS_FILE=\"$HOME/{below}/credentials\"",
                inputs.host(),
                directory.path(),
            ),
        });
    }
    let grants = inputs.grants.list();
    let tokens: Vec<_> = grants.iter().map(|grant| grant.token.expose_for_token_file()).collect();
    let mut grants = grants.iter().zip(&tokens).map(|(grant, token)| files::Grant {
        profile: &grant.profile,
        token,
        region: grant.region.as_ref(),
        output: grant.output.as_deref(),
    });
    let Some(default) = grants.next() else {
        return Err(helper::Error::Unfit { name: "no grant".to_owned() }.into());
    };
    let exported = link.exported().await;
    let alias = shadow::profile(&exported).and_then(|name| name.parse::<ProfileName>().ok());
    let keep_config = inputs.options.keep_config;
    let layout = Layout {
        port: link.ways.port,
        profiles: match (&link.ways.socket, link.ways.file) {
            (Some(_), _) => files::Profiles::Socket,
            (None, true) => files::Profiles::Files,
            (None, false) => files::Profiles::Port,
        },
        default,
        others: grants.collect(),
        alias: alias.as_ref().filter(|_| !keep_config),
        token_in_environment: inputs.options.token == TokenPlace::Environment,
        keep_config,
        command: inputs.command.as_deref(),
        below_home: directory.below_home(),
    };
    let environment = layout.environment(directory.path());
    let files = layout.files(directory.path());
    let sections = layout.sections(directory.path());
    let installed = Arc::new(directory.install(files).await?);
    if link.ways.file {
        let mut written = role_files::Written::default();
        role_files::write(&inputs.grants, &installed, &mut written).await?;
        link.keep_files(Arc::clone(&inputs.grants), Arc::clone(&installed), written);
    }
    for shadow in shadows(inputs, link, &exported).await {
        inputs.observe(Event::Warning { message: shadow.to_string() });
    }
    let managed = match inputs.options.install_profiles {
        true => install_profiles(inputs, link, installed.path(), &sections).await,
        false => None,
    };
    let login_shell = link.facts.as_ref().and_then(|facts| Shell::of(facts.shell.as_deref()?));
    Ok(OnHost { files: installed, managed, exports: Exports { environment, login_shell } })
}

/// Finds what on the host would be used instead of us.
async fn shadows(inputs: &Inputs, link: &Link, exported: &[Variable]) -> Vec<Shadow> {
    let host = inputs.host();
    let keep = inputs.options.keep_config;
    // Over SFTP no shell of ours runs, and nothing can be asked.
    let (Hands::Helper(helper), Some(facts)) = (&link.hands, &link.facts) else { return Vec::new() };
    let mut shadows = shadow::in_caches(&host, &facts.token_caches);
    shadows.extend(shadow::in_login_shell(&host, exported, !keep));
    if keep {
        let config = HomeFile::config(helper).await;
        let credentials = HomeFile::credentials(helper).await;
        match (config, credentials) {
            (Ok(config), Ok(credentials)) => shadows.extend(shadow::in_files(
                &host,
                config.content().unwrap_or_default(),
                credentials.content().unwrap_or_default(),
            )),
            (Err(error), _) | (_, Err(error)) => inputs.observe(Event::Warning {
                message: format!("what is in our way in the configuration of {host} is not known: {error}"),
            }),
        }
    }
    shadows
}

/// Puts our profiles into the host's own configuration. What cannot be done there is said, and the rest works without.
async fn install_profiles(
    inputs: &Inputs,
    link: &Link,
    directory: &str,
    sections: &[managed::Wanted],
) -> Option<Managed> {
    let host = inputs.host();
    let (Hands::Helper(helper), Some(facts)) = (&link.hands, &link.facts) else {
        inputs.observe(Event::Warning {
            message: format!(
                "no command runs on {host}, so its `~/.aws/config` is left alone (--install-profiles)"
            ),
        });
        return None;
    };
    match managed::install(helper, &facts.host, directory, sections).await {
        Ok(outcome) => {
            for left_out in &outcome.left_out {
                inputs.observe(Event::Warning { message: left_out.told(&host) });
            }
            outcome.managed
        }
        Err(error) => {
            inputs.observe(Event::Warning {
                message: format!("no profile was put into `~/.aws/config` of {host}: {error}"),
            });
            None
        }
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
