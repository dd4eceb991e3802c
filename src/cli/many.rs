//! `broker connect` to several hosts: one process, one login, one refresh, a tunnel to each.
//!
//! What can be wrong without a network is found for all of them first; then we sign in and fetch the credentials, once;
//! then every host has a task of its own, which nothing that happens to another ends.

use std::{
    collections::{BTreeSet, HashMap},
    net::ToSocketAddrs as _,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Output, background,
    connect::{
        LAST_LINES_TIMEOUT, STOP_TIMEOUT, account, done, host_key, interrupted, tunnel_failure, usage,
    },
    console,
    defaults::ForHost,
    desk::{Desk, Desks},
    failure::{Failure, Kind},
    ground::{certificate, open_log},
    hang_up::Ends,
    identity::{Identity, Login, Shared},
    job::{self, NotPrinted},
    limits::{self, Limits},
    notify,
    prefixed::Prefixed,
    relogin,
    terminal::Terminal,
    with_ticks,
};
use crate::{
    clock::Clock,
    config::{self, Environment, Job, Plan},
    creds::grant::Grants,
    human::Human,
    remote::exports::Shell,
    ssh::{
        config::aliases,
        host_keys::{KnownHostKeys, OnFile},
        inbox::Exit,
        target::{Target, Way},
        terminal::{Local, Outcome, bridge},
    },
    tls,
    tunnel::{self, Event, FirstTries, Graveyard, Inputs, Lasting, Tunnel},
};

/// Of these a server with OpenSSH's `MaxStartups 10:30:100` refuses none: it begins to at ten.
const AT_ONCE_PER_SERVER: usize = 8;

/// Each handshake is some milliseconds of the one thread that also answers requests.
const AT_ONCE: usize = 32;

/// A resolver that does not answer says nothing about a word.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(3);

/// What the tasks of all hosts share.
struct Common {
    terminal: Arc<Terminal>,
    clock: Clock,
    batch: bool,
    device_code: bool,
    identity: Arc<Identity>,
    starting: Semaphore,
    stop: watch::Receiver<bool>,
}

/// One host.
struct Member {
    plan: Box<Plan>,
    limits: Limits,
    grants: Arc<Grants>,
    desk: Arc<Desk>,
    inputs: Box<Inputs>,
    /// Told when the tunnel is up, or was not reached at first; and when one of the latter is up after all.
    settling: Settling,
    /// Until then the refresher of its grants runs.
    refreshed: oneshot::Sender<()>,
}

/// What the others need not wait for any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Settled {
    /// A host is there, or was not at the first attempt, or will never be.
    First,
    /// It is there after all, or will never be.
    Late,
}

/// Says that nobody needs to wait for one host any more.
struct Settling {
    words: mpsc::Sender<Settled>,
    said: AtomicBool,
}

impl Settling {
    /// It may come yet.
    fn not_yet(&self) {
        if !self.said.swap(true, Ordering::Relaxed) {
            // There is room for two words of each.
            self.words.try_send(Settled::First).unwrap_or_default();
        }
    }

    /// It is there, or will never be.
    fn done(&self) {
        let word = if self.said.swap(true, Ordering::Relaxed) { Settled::Late } else { Settled::First };
        self.words.try_send(word).unwrap_or_default();
    }
}

/// How it ended for one host: the exit status there, or what went wrong.
type Ended = Result<u8, Failure>;

/// Runs `broker connect` to several hosts.
pub(super) async fn run(
    hosts: &[ForHost],
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<ExitCode, Failure> {
    let mut ends = Ends::watch().map_err(|e| Failure::new(Kind::Failed, e))?;
    let clock = Clock::system();

    // 1. Everything that can be wrong without a network, for every host.
    let plans = plans(hosts, output, environment).await?;
    let endpoints = environment.endpoints().map_err(|e| usage(e.into()))?;
    let graveyard = Graveyard::new(&environment.state_directory());
    let mut told = BTreeSet::new();
    for warning in plans.iter().flat_map(|plan| &plan.warnings) {
        if told.insert(warning) {
            terminal.warning(warning);
        }
    }
    let (Some(first), Some(ForHost { arguments, .. })) = (plans.first(), hosts.first()) else {
        return Ok(ExitCode::SUCCESS);
    };
    // What to do at a signal is the same for all of them.
    let plan = first.clone();
    let profiles: Vec<_> = plans.iter().flat_map(|plan| plan.profiles.clone()).collect();
    let identity = Arc::new(Identity::new(&profiles, environment, &endpoints, &clock));

    let mut tasks = JoinSet::new();
    let (log, stop_writing) = open_log(environment, &clock, terminal, &mut tasks);
    let (stop, stopped) = watch::channel(false);
    let common = Arc::new(Common {
        terminal: Arc::clone(terminal),
        clock: clock.clone(),
        batch: output.batch,
        device_code: arguments.device_code,
        identity: Arc::clone(&identity),
        starting: Semaphore::new(AT_ONCE),
        stop: stopped,
    });
    let (settled, mut settling) = mpsc::channel(2 * plans.len());
    let mut turns: HashMap<String, Arc<Semaphore>> = HashMap::new();
    let mut shared = Shared::default();
    let mut on_file = OnFile::default();
    let everywhere = Arc::new(environment.clone());
    let mut members = Vec::new();
    let mut certificates: Vec<(Option<tls::Wish>, Option<Arc<tls::Identity>>)> = Vec::new();
    for ((id, plan), one) in (1u32..).zip(plans).zip(hosts) {
        let limits = one.arguments.limits.clone();
        let tls = match certificates.iter().find(|(wish, _)| *wish == plan.tls) {
            Some((_, identity)) => identity.clone(),
            None => {
                let identity = certificate(&plan, &clock, terminal)?;
                certificates.push((plan.tls.clone(), identity.clone()));
                identity
            }
        };
        let human = Arc::clone(terminal) as Arc<dyn Human>;
        let host_keys =
            KnownHostKeys::load_beside(&plan.target, Arc::clone(&human), &mut on_file).map_err(host_key)?;
        let host = plan.target.original.clone();
        let grants = Grants::new(log.for_host(&host));
        if limits.confirm {
            grants.require_confirmation();
        }
        if let Some(most) = plan.options.linger {
            grants.keep_ahead(most);
        }
        identity.grant_shared(&plan, &grants, &mut shared)?;
        let desk = Desk::new(
            id,
            &plan,
            Arc::clone(&grants),
            Arc::clone(&identity),
            Arc::clone(&everywhere),
            clock.clone(),
        );
        if let Some(end) = limits.ends_at(clock.now()) {
            desk.board.ends(end);
        }
        let (refreshed, refresh_until) = oneshot::channel::<()>();
        let (refreshing, refresher_writes) = (Arc::clone(&grants), Arc::clone(&stop_writing));
        tasks.spawn(async move {
            refreshing.run(async { drop(refresh_until.await) }).await;
            drop(refresher_writes);
        });
        let turns =
            turns.entry(server(&plan.target)).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_PER_SERVER)));
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
            graveyard: Arc::clone(&graveyard),
            allow_uids: plan.allow_uids.clone(),
            grants: Arc::clone(&grants),
            host_keys: Arc::new(host_keys),
            human,
            log: log.for_host(&host),
            observer: observer(&host, &desk, terminal),
            steering: desk.steering.clone(),
            turns: Arc::clone(turns),
            clock: clock.clone(),
        };
        members.push(Member {
            plan: Box::new(plan),
            limits,
            grants,
            desk,
            inputs: Box::new(inputs),
            settling: Settling { words: settled.clone(), said: AtomicBool::new(false) },
            refreshed,
        });
    }
    drop((settled, log));
    let desks: Vec<_> = members.iter().map(|member| Arc::clone(&member.desk)).collect();
    let steering: Vec<_> = desks.iter().map(|desk| desk.steering.clone()).collect();
    let names: Vec<String> = desks.iter().map(|desk| desk.board.host.clone()).collect();
    let background = members.iter().any(|m| matches!(m.plan.job, Job::Exports { background: true, .. }));
    let (stop_listening, listened) = oneshot::channel::<()>();
    Desks(desks.clone()).open(environment, terminal, &mut tasks, async { drop(listened.await) });

    let mut since = None;
    let outcome = async {
        // 2. and 3. Who we are, and the first credentials, before any host sees us.
        let login = common.login();
        let start = async {
            identity.sign_in(&login).await?;
            match members.first() {
                Some(member) => identity.first_credentials(&member.grants, &login).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            started = with_ticks(terminal, Box::pin(start)) => started?,
            () = ends.start() => return Err(interrupted()),
        }
        let mut running = JoinSet::new();
        for member in members {
            let common = Arc::clone(&common);
            running.spawn(async move {
                let (host, desk) = (member.inputs.target.original.clone(), Arc::clone(&member.desk));
                let ended = Box::pin(live(member, &common)).await;
                desk.ended();
                (host, ended)
            });
        }
        // 4. to 7. Every host by itself.
        let mut results = Results::default();
        let (mut open, mut announced) = (names.len(), false);
        loop {
            tokio::select! {
                Some(settled) = settling.recv() => {
                    open -= usize::from(settled == Settled::First);
                    if open == 0 && !announced && desks.iter().any(|desk| desk.is_up()) {
                        announced = true;
                        let label = match names.as_slice() {
                            [first, rest @ ..] => format!("{first}-and-{}-more", rest.len()),
                            [] => String::new(),
                        };
                        if background {
                            background::detach(terminal, environment, &label)?;
                        }
                        if let Err(error) = notify::ready(environment, &label) {
                            terminal.warning(&format!("the service manager was not told that the tunnels are ready: {error}"));
                        }
                    }
                }
                ended = running.join_next() => match ended {
                    None => break,
                    Some(Ok((host, ended))) => results.add(host, ended, terminal),
                    Some(Err(error)) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => break,
                    },
                },
                () = ends.tunnels(&plan, &steering) => {
                    if since.is_some() {
                        // A second one waits for no host.
                        break;
                    }
                    since = Some(Instant::now());
                    notify::stopping(environment).unwrap_or_default();
                    stop.send_replace(true);
                }
            }
        }
        if since.is_some() { Err(interrupted()) } else { results.verdict(names.len()) }
    }
    .await;
    for desk in &desks {
        desk.ended();
    }
    drop((stop_writing, stop_listening));
    let finish = async {
        while tasks.join_next().await.is_some() {}
        identity.settle().await;
    };
    let left = STOP_TIMEOUT.saturating_sub(since.map(|since| since.elapsed()).unwrap_or_default());
    drop(tokio::time::timeout(left.max(LAST_LINES_TIMEOUT), finish).await);
    outcome
}

impl Common {
    fn login(&self) -> Login<'_> {
        Login { terminal: &self.terminal, batch: self.batch, device_code: self.device_code }
    }
}

/// Makes a plan for every host, or says what is wrong with the first that has something wrong.
async fn plans(hosts: &[ForHost], output: &Output, environment: &Environment) -> Result<Vec<Plan>, Failure> {
    let environment = &environment.reading_once();
    let known = aliases(&environment.home);
    let mut seen = BTreeSet::new();
    let mut plans = Vec::new();
    for (at, ForHost { host, listed, arguments }) in hosts.iter().enumerate() {
        if !seen.insert(host) {
            return Err(Failure::new(Kind::Usage, format!("`{host}` is named twice"))
                .with_hint(Some("one tunnel serves everything on its host".to_owned())));
        }
        let plan = config::plan(arguments.flags(host, output.batch), environment).map_err(usage)?;
        // `connect bastion ls -N` is meant otherwise.
        let plain = !host.contains(['@', '.', ':', '/']) && !known.contains(host.as_str());
        if at > 0 && !listed && plain && plan.target.hostname == *host && !resolves(&plan.target).await {
            let first = hosts.first().map(|first| first.host.as_str()).unwrap_or_default();
            return Err(Failure::new(Kind::Usage, format!("`{host}` is no host that is known here"))
                .with_hint(Some(format!("to run `{host}` on {first}, put `--` before it"))));
        }
        plans.push(plan);
    }
    Ok(plans)
}

/// Whether a name leads anywhere. Where something else does the dialling, only that knows.
async fn resolves(target: &Target) -> bool {
    if target.way != Way::Direct {
        return true;
    }
    let address = (target.hostname.clone(), target.port);
    let looking = tokio::task::spawn_blocking(move || address.to_socket_addrs().is_ok());
    matches!(tokio::time::timeout(RESOLVER_PATIENCE, looking).await, Err(_) | Ok(Ok(true)))
}

/// Returns the server that the first TCP connection goes to.
fn server(target: &Target) -> String {
    match &target.way {
        Way::Jump(hop) => server(hop),
        Way::Direct => format!("{}:{}", target.hostname, target.port),
        Way::Command(command) => command.line.clone(),
    }
}

/// Tells what happens to one of several tunnels.
fn observer(host: &str, desk: &Arc<Desk>, terminal: &Arc<Terminal>) -> tunnel::Observer {
    let (host, desk, terminal) = (host.to_owned(), Arc::clone(desk), Arc::clone(terminal));
    Arc::new(move |event: Event| {
        desk.observe(&event);
        let named = |message: String| match message.contains(&host) {
            true => message,
            false => format!("{host}: {message}"),
        };
        match event {
            // There is one line for the step under way, and many ways.
            Event::Started { .. } | Event::Done { .. } if !terminal.is_json() => {}
            Event::Notice { message } => terminal.event(&Event::Notice { message: named(message) }),
            Event::Warning { message } => terminal.event(&Event::Warning { message: named(message) }),
            event => terminal.event(&event),
        }
    })
}

/// One host from its start to its end.
async fn live(member: Member, common: &Common) -> Ended {
    let Member { plan, limits, grants, desk, inputs, settling, refreshed } = member;
    let host = plan.target.original.clone();
    let mut stop = common.stop.clone();
    let mut stopped = std::pin::pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
    let started = {
        let start = start(&plan, &inputs, &grants, common, &settling);
        tokio::select! {
            started = Box::pin(start) => started,
            () = &mut stopped => Err(interrupted()),
            _ = desk.stopped() => Err(Failure::new(Kind::Interrupted, "stopped by `broker stop`")),
        }
    };
    settling.done();
    // The tunnel has its own.
    drop(inputs);
    let mut tunnel = match started {
        Ok(tunnel) => tunnel,
        Err(failure) => {
            grants.revoke_all();
            return Err(failure);
        }
    };
    let terminal = &common.terminal;
    let status = |done: Result<ExitCode, Failure>| done.map(|_| 0);
    let (ended, reason) = tokio::select! {
        ended = Box::pin(work(&plan, &mut tunnel, terminal)) => match &ended {
            Ok(_) => (ended, "the remote side ended".to_owned()),
            Err(_) => (ended, "disconnected".to_owned()),
        },
        () = &mut stopped => (Err(interrupted()), "stopped".to_owned()),
        why = desk.stopped() => (status(done(&plan, why)), why.reason()),
        why = limits.over(&host, &grants, &common.clock, terminal) => (status(done(&plan, why)), why.reason()),
        never = limits::confirm(&host, &grants, terminal, matches!(plan.job, Job::Exports { .. })) => match never {},
        never = relogin::keep(&common.identity, &grants, terminal) => match never {},
    };
    // 8. Revoke, clean the host, disconnect.
    desk.stopping();
    tunnel.revoke();
    drop(refreshed);
    Box::pin(tunnel.stop(&reason)).await;
    ended
}

/// Opens the tunnel of one host. Where only the tunnel is wanted and somebody said for how long to try (`--reconnect-for`), a
/// host that is not reached is tried again, as one that was lost is.
async fn start(
    plan: &Plan,
    inputs: &Inputs,
    grants: &Grants,
    common: &Common,
    settling: &Settling,
) -> Result<Box<Tunnel>, Failure> {
    let limit = inputs.options.reconnect_for.filter(|_| matches!(plan.job, Job::Exports { .. }));
    let (mut tries, mut told) = (FirstTries::new(limit), BTreeSet::new());
    loop {
        let tried = async {
            // Others have their turn while this one waits.
            let _turn = common.starting.acquire().await;
            // A role of its own (`--role-arn`) is fetched for it alone.
            let missing = |grant: &Arc<_>| {
                let grant: &crate::creds::grant::Grant = grant;
                !grant.is_unasked() && grant.status().expires_at.is_none()
            };
            if grants.list().iter().any(missing) {
                common.identity.first_credentials(grants, &common.login()).await?;
            }
            Ok(Box::pin(Tunnel::start(inputs.clone())).await.map(Box::new))
        };
        let error = match Box::pin(tried).await? {
            Ok(tunnel) => return Ok(tunnel),
            Err(error) => error,
        };
        let Some(wait) = tries.next(&error) else { return Err(tunnel_failure(error)) };
        settling.not_yet();
        let (host, reason) = (plan.target.original.clone(), error.chain());
        if told.insert(reason.clone()) {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            (inputs.observer)(Event::Retrying { host, reason, wait_ms });
        }
        tokio::time::sleep(wait).await;
    }
}

/// The exports, or the command.
async fn work(plan: &Plan, tunnel: &mut Tunnel, terminal: &Terminal) -> Ended {
    let host = &plan.target.original;
    match &plan.job {
        Job::Exports { shell, .. } => {
            if shell.is_none()
                && let Some(notice) = job::sh_instead(host, tunnel.login_shell())
            {
                terminal.notice(&notice);
            }
            {
                // Not kept for as long as the tunnel lives.
                let block = headed(host, *shell, &tunnel.exports(*shell));
                terminal.data(block.as_bytes()).map_err(|e| Failure::new(Kind::Failed, NotPrinted(e)))?;
            }
            Err(tunnel_failure(tunnel.keep().await))
        }
        Job::Command { .. } | Job::Shell { .. } => {
            let (process, pump) = Box::pin(tunnel.command(None)).await.map_err(tunnel_failure)?;
            let mut stdout = Prefixed::new(host, tokio::io::stdout());
            let mut stderr = Prefixed::new(host, tokio::io::stderr());
            let (_resized, sizes) = mpsc::channel(1);
            // What is typed cannot be meant for all of them.
            let local = Local {
                stdin: tokio::io::empty(),
                stdout: &mut stdout,
                stderr: &mut stderr,
                sizes,
                escape: None,
                suspend: &mut || {},
            };
            let outcome = Box::pin(tunnel.during(bridge(process, pump, local))).await;
            stdout.finish().await.unwrap_or_default();
            stderr.finish().await.unwrap_or_default();
            match outcome {
                Ok(Outcome::Exited(Exit::Lost)) => Err(tunnel_failure(tunnel.lost().await.into())),
                Ok(outcome) => console::status(outcome, host),
                Err(lost) => Err(tunnel_failure(lost.into())),
            }
        }
    }
}

/// Returns the exports of one of several hosts, and whose they are.
fn headed(host: &str, shell: Option<Shell>, exports: &str) -> zeroize::Zeroizing<String> {
    let host = crate::printable::one_line(host);
    zeroize::Zeroizing::new(match shell {
        Some(Shell::Cmd) => format!("rem {host}\r\n{exports}"),
        Some(Shell::Json) => {
            let name = serde_json::Value::from(host);
            format!("{{\"host\":{name},{}", exports.strip_prefix('{').unwrap_or(exports))
        }
        _ => format!("# {host}\n{exports}"),
    })
}

/// How it ended so far.
#[derive(Default)]
struct Results {
    /// The worst exit status of a command.
    status: u8,
    failed: Vec<String>,
    worst: Option<Kind>,
}

impl Results {
    fn add(&mut self, host: String, ended: Ended, terminal: &Terminal) {
        match ended {
            Ok(status) => {
                if status != 0 {
                    terminal.warning(&format!("{host}: exit status {status}"));
                }
                self.status = self.status.max(status);
            }
            // Said once for all of them.
            Err(failure) if failure.kind == Kind::Interrupted => {}
            Err(failure) => {
                if self.worst.is_none_or(|worst| worst.code() < failure.kind.code()) {
                    self.worst = Some(failure.kind);
                }
                terminal.failure(&failure.of(&host), false);
                self.failed.push(host);
            }
        }
    }

    fn verdict(self, hosts: usize) -> Result<ExitCode, Failure> {
        match self.worst {
            None => Ok(ExitCode::from(self.status)),
            Some(kind) => {
                let what =
                    format!("{} of {hosts} hosts failed: {}", self.failed.len(), self.failed.join(", "));
                Err(Failure::new(kind, what))
            }
        }
    }
}
