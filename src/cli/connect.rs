//! `broker connect`: the main job, from the words on the command line to the last line on stderr.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::{ArgGroup, Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::Instant,
};

use super::{
    Output, completions,
    defaults::ForHost,
    desk::{Desk, Desks, Why},
    failure::{Failure, Kind},
    ground::{certificate, open_log},
    hang_up::Ends,
    host::HowToReach,
    identity::{Identity, Login, Whose},
    job,
    limits::{self, Limits},
    notify, picker, relogin, stop_signal,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    clock::Clock,
    config::{self, Environment, Flags, Job, Plan},
    creds::grant::Grants,
    human::Human,
    remote::exports::Shell,
    ssh::{
        host_keys::{self, KnownHostKeys},
        target::Target,
    },
    tls,
    tunnel::{self, Graveyard, Inputs, Lasting, Transport, Tunnel},
};

/// Connect to a host and let the AWS SDKs there use a role of yours.
///
/// Signs in to IAM Identity Center if needed, connects by SSH, opens a reverse tunnel on 127.0.0.1:4144 of the
/// host that ends in this process, and starts your login shell there with the AWS variables set. Role credentials
/// stay in memory and are renewed here; the host gets a token file in a private directory on tmpfs, which goes
/// away with the connection. When this process ends, access ends.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("no_shell_of_ours").args(["no_shell", "background"]).multiple(true))]
#[command(after_help = "\
Examples:
  broker connect ada@bastion -p deploy                a shell on bastion, with AWS credentials
  broker connect bastion -p deploy -- aws s3 ls       one command; its exit status is ours
  broker connect bastion -p deploy -p audit -N        tunnel only; prints the exports to paste there
  broker connect web1 web2 web3 -p deploy -- ./up     on each, its lines behind its name; the worst exit status is ours

To undo: leave the shell, or end broker. Nothing stays on the host, but for what `--linger` leaves.")]
pub(super) struct Arguments {
    /// The host, also as a URL (ssh://…), or an alias from ssh_config; several with -N, -f or a command. @LIST is all of a
    /// list in ~/.config/broker/config.toml
    #[arg(value_name = "[USER@]HOST[:PORT]", required = true, num_args = 1.., add = ArgValueCompleter::new(completions::hosts_and_lists))]
    hosts: Vec<String>,

    /// A command for the login shell of the host, as with ssh
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,

    #[command(flatten)]
    pub(super) whose: Whose,

    /// Port on the host; `auto` is 4144, or a port of your own where another user has that
    #[arg(short = 'R', long, value_name = "PORT|auto", default_value = "auto", value_parser = remote_port)]
    remote_port: RemotePort,

    /// How processes on the host reach us: a port, a unix socket, files, or whatever the server allows
    #[arg(long, value_name = "HOW", default_value = "auto")]
    transport: TransportArgument,

    /// Open the tunnel only: print the exports for the host on stdout and stay until stopped
    #[arg(short = 'N', long, conflicts_with = "command")]
    no_shell: bool,

    /// As -N, and return once the tunnel is ready; it goes on without a terminal
    #[arg(short = 'f', long, conflicts_with = "command")]
    background: bool,

    /// Language of the exports that -N prints (default: the login shell of the host)
    #[arg(long, value_name = "SHELL", requires = "no_shell_of_ours")]
    print_env: Option<ShellArgument>,

    #[command(flatten)]
    pub(super) reach: HowToReach,

    /// Ask for a terminal even with a command
    #[arg(short = 't', long = "tty", conflicts_with = "no_tty")]
    tty: bool,

    /// Ask for no terminal even for a shell
    #[arg(short = 'T', long = "no-tty")]
    no_tty: bool,

    /// Where the token lies on the host: a file, or the environment for SDKs older than November 2023
    #[arg(long, value_name = "WHERE", default_value = "file")]
    token: TokenArgument,

    /// Speak HTTPS at the port: `auto` makes a certificate for this tunnel, CERT,KEY are PEM files of your own.
    ///
    /// Off by default, because the uid of every caller is checked anyway, and because boto3 and the AWS CLI trust only
    /// public CAs at that port; with our configuration there they ask through credential_process instead.
    #[arg(long, value_name = "CERT,KEY|auto", value_parser = tls_wish)]
    tls: Option<tls::Wish>,

    /// Serve although the uid of callers cannot be checked: every user of the host who gets the token is served
    #[arg(long)]
    trust_host_users: bool,

    /// A further uid on the host that may ask, such as 0 for sudo; repeat for more
    #[arg(long = "allow-uid", value_name = "UID")]
    allow_uids: Vec<u32>,

    /// Put our profiles into ~/.aws/config of the host, for processes that no shell of ours starts, until we end
    #[arg(long)]
    install_profiles: bool,

    /// Which configuration SDKs on the host read: ours, or the host's own, of which we only say what is in our way
    #[arg(long, value_name = "WHOSE", default_value = "replace")]
    remote_config: RemoteConfig,

    /// Leave role credentials on the host for at most so long after the end, for jobs that outlive this process.
    ///
    /// Processes there that use our configuration go on with them until they expire or D is over, whichever is first; then
    /// they are removed by themselves. While we run they lie in files there already, in case we end without a word. Never
    /// a token of the sign-in. `broker clean HOST` removes them at once.
    #[arg(long, value_name = "D", value_parser = limits::duration)]
    linger: Option<Duration>,

    /// How long to try to get back after the connection is lost, such as 90s, 15m or 8h; 0 for not at all. Of several hosts
    /// also how long to try one that is not reached at first
    #[arg(long, value_name = "D", value_parser = patience)]
    reconnect_for: Option<Duration>,

    /// Run the shell inside tmux on the host, so that your work there survives a lost connection
    #[arg(long, conflicts_with_all = ["command", "no_shell", "no_tty"])]
    tmux: bool,

    /// Sign in with a code on another device instead of a browser here
    #[arg(long)]
    pub(super) device_code: bool,

    /// Profiles that processes on the host may ask for by name, such as `team-*`; fetched when one does
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,

    #[command(flatten)]
    pub(super) limits: Limits,
}

#[derive(Clone, Copy, Debug)]
enum RemotePort {
    Auto,
    Exactly(u16),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RemoteConfig {
    /// Ours, with a profile for each role, while a shell or command of ours runs
    Replace,
    /// The host's
    Keep,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransportArgument {
    /// A port and a socket together where the server allows them, else files
    Auto,
    /// A port on 127.0.0.1, for every SDK as it is
    Tcp,
    /// A unix socket that only your own user can open, through credential_process
    Unix,
    /// Short-lived role credentials in files, renewed while connected
    File,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ShellArgument {
    /// POSIX sh, also for dash, ksh and ash
    Sh,
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
    /// csh
    Csh,
    /// tcsh
    Tcsh,
    /// PowerShell 5.1 and 7
    #[value(name = "powershell", alias = "pwsh")]
    PowerShell,
    /// cmd.exe, as a batch file to `call`
    Cmd,
    /// {"set":{NAME:VALUE},"unset":[NAME]}, without the host's own NO_PROXY
    Json,
    /// NAME=VALUE lines, without the host's own NO_PROXY; what must not be set is in a comment
    Dotenv,
}

impl From<ShellArgument> for Shell {
    fn from(argument: ShellArgument) -> Self {
        match argument {
            ShellArgument::Sh => Self::Sh,
            ShellArgument::Bash => Self::Bash,
            ShellArgument::Zsh => Self::Zsh,
            ShellArgument::Fish => Self::Fish,
            ShellArgument::Csh | ShellArgument::Tcsh => Self::Csh,
            ShellArgument::PowerShell => Self::PowerShell,
            ShellArgument::Cmd => Self::Cmd,
            ShellArgument::Json => Self::Json,
            ShellArgument::Dotenv => Self::Dotenv,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum TokenArgument {
    /// A 0600 file that goes away with the connection
    File,
    /// AWS_CONTAINER_AUTHORIZATION_TOKEN, which every child process inherits
    Env,
}

fn remote_port(text: &str) -> Result<RemotePort, String> {
    match text {
        "auto" => Ok(RemotePort::Auto),
        "0" => Err("port 0 would change at every reconnect; use `auto`".to_owned()),
        text => {
            text.parse().map(RemotePort::Exactly).map_err(|_| "not a port (1 to 65535) or `auto`".to_owned())
        }
    }
}

fn tls_wish(text: &str) -> Result<tls::Wish, String> {
    if text == "auto" {
        return Ok(tls::Wish::Auto);
    }
    match text.split(',').collect::<Vec<_>>().as_slice() {
        [certificate, key] if !certificate.is_empty() && !key.is_empty() => {
            Ok(tls::Wish::Own { certificate: certificate.into(), key: key.into() })
        }
        _ => Err("expected `auto`, or the paths of a certificate chain and its key with a comma between"
            .to_owned()),
    }
}

/// Parses how long to try.
fn patience(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { limits::duration(text) }
}

impl Arguments {
    /// Whether a remote shell or command decides the exit status.
    pub(super) fn is_remote(&self) -> bool {
        !self.exports_only()
    }

    /// Whether only the tunnel is wanted, and its exports.
    fn exports_only(&self) -> bool {
        self.no_shell || self.background
    }

    /// Whether the tunnel goes on when the person has their prompt back.
    pub(super) fn is_background(&self) -> bool {
        self.background
    }

    pub(super) fn flags(&self, host: &str, batch: bool) -> Flags {
        let no_shell = self.exports_only();
        Flags {
            wanted: self.whose.wanted(host),
            remote_port: match self.remote_port {
                RemotePort::Auto => None,
                RemotePort::Exactly(port) => Some(port),
            },
            transport: Some(match self.transport {
                TransportArgument::Auto => Transport::Auto,
                TransportArgument::Tcp => Transport::Tcp,
                TransportArgument::Unix => Transport::Unix,
                TransportArgument::File => Transport::File,
            }),
            no_shell,
            background: self.background,
            print_env: self.print_env.map(Shell::from),
            command: self.command.clone(),
            request_tty: match (self.tty, self.no_tty) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            token_in_environment: self.token == TokenArgument::Env,
            trust_host_users: self.trust_host_users,
            allow_uids: self.allow_uids.clone(),
            allow: self.allow.clone(),
            install_profiles: self.install_profiles,
            tls: self.tls.clone(),
            linger: self.linger,
            reconnect_for: self.reconnect_for,
            tmux: self.tmux,
            keep_config: matches!(self.remote_config, RemoteConfig::Keep),
            ..self.reach.flags(host, batch)
        }
    }
}

/// Finds what cannot be meant of several hosts. They are meant only where something says that they are hosts, and not a
/// command.
fn together(hosts: &[ForHost]) -> Result<(), Failure> {
    let [first, rest @ ..] = hosts else { return Ok(()) };
    let job = |one: &ForHost| (one.arguments.no_shell, one.arguments.background);
    if let Some(other) = rest.iter().find(|other| job(other) != job(first)) {
        let what = format!(
            "`no-shell` or `background` holds for {} and {} in different ways",
            first.host, other.host
        );
        return Err(Failure::new(Kind::Usage, what)
            .with_hint(Some("say `-N`, `-f` or a command, which then holds for all of them".to_owned())));
    }
    let is_shell = !first.arguments.exports_only() && first.arguments.command.is_empty();
    let Some(second) = rest.first().filter(|_| is_shell) else { return Ok(()) };
    let (first, second) = (&first.host, &second.host);
    Err(Failure::new(Kind::Usage, format!("`{second}` is a second host, and a shell leads to one host"))
        .with_hint(Some(format!(
            "to run `{second}` on {first}, put `--` before it; several hosts go with `-N`, `-f` or a command"
        ))))
}

/// Runs `broker connect`: resolve, sign in, first credentials, tunnel, job, stop.
pub(super) async fn run(
    mut hosts: Vec<ForHost>,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    // Before anybody is asked anything.
    together(&hosts)?;
    picker::choose(&mut hosts, output, environment, terminal).await?;
    let [ForHost { host, arguments, .. }] = hosts.as_slice() else {
        return Box::pin(super::many::run(&hosts, output, environment, terminal)).await;
    };
    let mut ends = Ends::watch().map_err(|e| Failure::new(Kind::Failed, e))?;
    let clock = Clock::system();
    let device_code = arguments.device_code;
    let limits = arguments.limits.clone();

    // 1. Everything that can be wrong without a network.
    let plan = config::plan(arguments.flags(host, output.batch), environment).map_err(usage)?;
    if let Some(profile) = plan.profiles.first() {
        picker::remember(profile.name.as_str(), environment);
    }
    let endpoints = environment.endpoints().map_err(|e| usage(e.into()))?;
    for warning in &plan.warnings {
        terminal.warning(warning);
    }
    let human = Arc::clone(terminal) as Arc<dyn Human>;
    let host_keys = KnownHostKeys::load(&plan.target, Arc::clone(&human)).map_err(host_key)?;

    let tls = certificate(&plan, &clock, terminal)?;
    let mut background = JoinSet::new();
    let (log, stop_writing) = open_log(environment, &clock, terminal, &mut background);
    let grants = Grants::new(log.for_host(&plan.target.original));
    let (stop_refreshing, refreshed) = oneshot::channel::<()>();
    let (mut stop_refreshing, mut stopping) = (Some(stop_refreshing), None);
    let refreshing = Arc::clone(&grants);
    // The log ends when nobody has anything to write any more: the refresher's last lines say how often strangers came.
    let refresher_writes = Arc::clone(&stop_writing);
    background.spawn(async move {
        refreshing.run(async { drop(refreshed.await) }).await;
        drop(refresher_writes);
    });

    let identity = Arc::new(Identity::new(&plan.profiles, environment, &endpoints, &clock));
    if limits.confirm {
        grants.require_confirmation();
    }
    if let Some(most) = plan.options.linger {
        grants.keep_ahead(most);
    }
    let host = plan.target.original.clone();
    let desk = Desk::new(
        1,
        &plan,
        Arc::clone(&grants),
        Arc::clone(&identity),
        Arc::new(environment.clone()),
        clock.clone(),
    );
    let (stop_listening, listened) = oneshot::channel::<()>();
    let desks = Desks(vec![Arc::clone(&desk)]);
    desks.open(environment, terminal, &mut background, async { drop(listened.await) });
    if let Some(end) = limits.ends_at(clock.now()) {
        desk.board.ends(end);
    }
    let policy = Login { terminal, batch: output.batch, device_code };
    let observer = {
        let (terminal, desk) = (Arc::clone(terminal), Arc::clone(&desk));
        Arc::new(move |event| {
            desk.observe(&event);
            terminal.event(&event);
        }) as tunnel::Observer
    };
    let outcome = async {
        let start = async {
            // 2. and 3. Who we are, and the first credentials of every role, before any host sees us.
            identity.sign_in(&policy).await?;
            identity.grant_all(&plan, &grants)?;
            identity.first_credentials(&grants, &policy).await?;
            // 4. to 6. The tunnel, and only then what lies on the host.
            let inputs = Inputs {
                target: plan.target.clone(),
                options: plan.options,
                tls,
                runs: !matches!(plan.job, Job::Exports { .. }),
                lasting: Lasting::new(environment.state_directory(), account(&plan.target)),
                key: tunnel::key().map_err(|e| Failure::new(Kind::Failed, e))?,
                command: match &plan.job {
                    Job::Command { line, .. } => Some(line.clone()),
                    Job::Shell { .. } | Job::Exports { .. } => None,
                },
                graveyard: Graveyard::new(&environment.state_directory()),
                allow_uids: plan.allow_uids.clone(),
                grants: Arc::clone(&grants),
                host_keys: Arc::new(host_keys),
                human,
                log: log.for_host(&plan.target.original),
                observer,
                steering: desk.steering.clone(),
                turns: Arc::new(Semaphore::new(1)),
                clock: clock.clone(),
            };
            Tunnel::start(inputs).await.map_err(tunnel_failure)
        };
        let mut tunnel = tokio::select! {
            started = with_ticks(terminal, Box::pin(start)) => started?,
            () = ends.start() => return Err(interrupted()),
            why = desk.stopped() => return done(&plan, why),
        };
        let can_ask = matches!(plan.job, Job::Exports { .. });
        // 7. The shell, the command, or the exports.
        let (ended, reason) = tokio::select! {
            ended = Box::pin(job::run(&plan, &mut tunnel, environment, terminal)) => match &ended {
                Ok(_) => (ended, "the remote side ended".to_owned()),
                Err(_) if ends.hung_up().await => (Err(interrupted()), "stopped".to_owned()),
                // What went wrong is said once, at the end.
                Err(_) => (ended, "disconnected".to_owned()),
            },
            () = ends.tunnel(&plan, &desk.steering) => (Err(interrupted()), "stopped".to_owned()),
            why = desk.stopped() => (done(&plan, why), why.reason()),
            why = limits.over(&host, &grants, &clock, terminal) => (done(&plan, why), why.reason()),
            never = limits::confirm(&host, &grants, terminal, can_ask) => match never {},
            never = relogin::keep(&identity, &grants, terminal) => match never {},
        };
        desk.stopping();
        // 8. A second signal does not wait for a host that may not answer. A fetch that is under way lands meanwhile.
        stopping = Some(Instant::now());
        // A manager that is gone waits for nothing.
        notify::stopping(environment).unwrap_or_default();
        tunnel.revoke();
        drop(stop_refreshing.take());
        terminal.restore();
        let impatient = async {
            match stop_signal() {
                Ok(signal) => drop(signal.await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = impatient => {}
            () = tunnel.stop(&reason) => {}
        }
        ended
    }
    .await;

    grants.revoke_all();
    desk.ended();
    drop((stop_refreshing, stop_writing, stop_listening));
    let finish = async {
        while background.join_next().await.is_some() {}
        identity.settle().await;
    };
    // What is not written by then is on a disk that does not answer.
    let left = STOP_TIMEOUT.saturating_sub(stopping.map(|since| since.elapsed()).unwrap_or_default());
    drop(tokio::time::timeout(left.max(LAST_LINES_TIMEOUT), finish).await);
    outcome
}

/// Returns how `connect` ends when it was meant to. A command that was cut short has not succeeded.
pub(super) fn done(plan: &Plan, why: Why) -> Result<ExitCode, Failure> {
    match plan.job {
        Job::Command { .. } => {
            Err(Failure::new(Kind::Failed, format!("the command was cut short: {}", why.reason())))
        }
        Job::Shell { .. } | Job::Exports { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// Returns where a host's name leads: `user@name:port`.
pub(super) fn account(target: &Target) -> String {
    format!("{}@{}:{}", target.user, target.hostname, target.port)
}

/// Returns a mistake in what was asked for or configured.
pub(super) fn usage(error: config::Error) -> Failure {
    let hint = error.hint();
    let kind = match &error {
        config::Error::Pinned(_) => Kind::RoleDenied,
        _ => Kind::Usage,
    };
    Failure::new(kind, error).with_hint(hint)
}

/// Returns why a host key is not trusted.
pub(super) fn host_key(error: host_keys::Refused) -> Failure {
    let hint = error.hint();
    Failure::new(Kind::HostKeyRefused, error).with_hint(hint)
}

/// Returns why there is no connection or tunnel.
pub(super) fn tunnel_failure(error: tunnel::Error) -> Failure {
    use crate::ssh::error::{ChannelRefused, Error as Ssh, ForwardRefused};
    let kind = match &error {
        tunnel::Error::Ssh(ssh) if ssh.is_host_key() => Kind::HostKeyRefused,
        // The connection is gone, whatever it was that we were waiting for.
        tunnel::Error::Ssh(
            Ssh::ForwardRefused(ForwardRefused::Closed { .. })
            | Ssh::ChannelRefused(ChannelRefused::Closed { .. }),
        ) => Kind::Unreachable,
        tunnel::Error::Ssh(Ssh::ForwardRefused(_) | Ssh::ChannelRefused(_))
        | tunnel::Error::Forward { .. }
        | tunnel::Error::Helper { .. }
        | tunnel::Error::Install { .. }
        | tunnel::Error::NothingRuns { .. }
        | tunnel::Error::NoSftp { .. }
        | tunnel::Error::CannotLinger { .. }
        | tunnel::Error::CannotCheckCallers { .. }
        | tunnel::Error::TokenTravels { .. }
        | tunnel::Error::Listener { .. }
        | tunnel::Error::NoSocket { .. }
        | tunnel::Error::NameElsewhere { .. }
        | tunnel::Error::SocketPath { .. }
        | tunnel::Error::PortLost { .. }
        | tunnel::Error::SelfTest { .. } => Kind::ForwardRefused,
        tunnel::Error::Ssh(_)
        | tunnel::Error::Lost(_)
        | tunnel::Error::NeedsPerson { .. }
        | tunnel::Error::LoggedOut { .. }
        | tunnel::Error::NotBack { .. } => Kind::Unreachable,
        tunnel::Error::NoRandomness(_) => Kind::Failed,
    };
    let hint = error.hint();
    Failure::new(kind, error).with_hint(hint)
}

pub(super) fn interrupted() -> Failure {
    Failure::new(Kind::Interrupted, "interrupted")
}

/// A whole stop (`product.md` 7), less what a process needs to end.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(1900);

/// For the last audit lines, when the host has used up the rest of [`STOP_TIMEOUT`].
pub(super) const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_can_be_asked_for() {
        let all = "sh bash zsh fish csh tcsh powershell cmd json dotenv";
        let names: Vec<_> = ShellArgument::value_variants()
            .iter()
            .filter_map(|shell| Some(shell.to_possible_value()?.get_name().to_owned()))
            .collect();
        assert_eq!(names.join(" "), all);
        for name in all.split(' ').take(8) {
            let shell = ShellArgument::from_str(name, false).map(Shell::from);
            assert_eq!(shell.ok(), Shell::of(name), "{name}");
        }
    }
}
