//! What a running `broker connect` answers to other terminals (`control`).

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum as _;
use tokio::{sync::watch, task::JoinSet};

use super::{
    connect::{ShellArgument, account},
    failure::{Failure, Kind},
    identity::Identity,
    limits::spoken,
    terminal::Terminal,
};
use crate::{
    clock::Clock,
    config::{self, Environment, Plan, pin::Pin},
    control::{
        board::{Board, Ways},
        message::{Answer, Answered, Refreshed, Refusal, RefusalKind, Request, Revoked, State},
        server::{self, Server},
    },
    creds::{
        FetchError,
        grant::{Grant, Grants},
    },
    human::BoxFuture,
    names::ProfileName,
    printable,
    remote::exports::Shell,
    tunnel::{Event, NotPut, Steering},
};

/// Why a tunnel ends that nothing is wrong with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// `broker stop`.
    Stopped,
    Lifetime(Duration),
    Idle(Duration),
}

impl Why {
    /// Returns the reason as the last line tells it.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Stopped => "stopped by `broker stop`".to_owned(),
            Self::Lifetime(time) => format!("its {} are over (--max-lifetime)", spoken(time)),
            Self::Idle(time) => {
                format!("nobody asked for credentials for {} (--idle-timeout)", spoken(time))
            }
        }
    }
}

/// One tunnel, as other terminals know it.
pub(super) struct Desk {
    /// The number of the tunnel in this process.
    id: u32,
    pub(super) board: Board,
    pub(super) steering: Steering,
    /// Which profiles the host may ever get.
    pin: Pin,
    grants: Arc<Grants>,
    identity: Arc<Identity>,
    environment: Arc<Environment>,
    stop: watch::Sender<bool>,
    /// Whether there is no tunnel any more.
    ended: watch::Sender<bool>,
    /// One change at a time, or what lies on the host would follow from neither.
    turn: tokio::sync::Mutex<()>,
}

impl Desk {
    pub(super) fn new(
        id: u32,
        plan: &Plan,
        grants: Arc<Grants>,
        identity: Arc<Identity>,
        environment: Arc<Environment>,
        clock: Clock,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            board: Board::new(plan.target.original.clone(), account(&plan.target), clock),
            pin: plan.pin.clone(),
            steering: Steering::default(),
            grants,
            identity,
            environment,
            stop: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// Notes what happens to the tunnel.
    pub(super) fn observe(&self, event: &Event) {
        match event {
            Event::Ready { port, socket, files, directory, .. } => self.board.up(Ways {
                port: *port,
                socket: socket.clone(),
                files: *files,
                directory: Some(directory.clone()),
            }),
            Event::Lost { reason, .. } | Event::Retrying { reason, .. } => {
                self.board.turn(State::Reconnecting, Some(reason.clone()));
            }
            Event::Back { port, socket, files, directory, .. } => self.board.up(Ways {
                port: *port,
                socket: socket.clone(),
                files: *files,
                directory: Some(directory.clone()),
            }),
            Event::Stopped { host_clean, stays_until, lingers, .. } => {
                self.board.ended(*host_clean, stays_until.filter(|_| *lingers));
            }
            _ => {}
        }
    }

    /// Returns when somebody said `broker stop`.
    pub(super) async fn stopped(&self) -> Why {
        // The sender is our own.
        drop(self.stop.subscribe().wait_for(|stop| *stop).await);
        Why::Stopped
    }

    /// Notes that the tunnel is on its way out.
    pub(super) fn stopping(&self) {
        self.board.turn(State::Stopping, None);
    }

    /// Notes that there is no tunnel any more: whoever said `broker stop` hears it.
    pub(super) fn ended(&self) {
        self.ended.send_replace(true);
    }

    /// Whether processes on the host are served now.
    pub(super) fn is_up(&self) -> bool {
        self.board.state() == State::Up
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    async fn dispatch(&self, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Status => Ok(Answer::Status { tunnels: vec![self.board.report(self.id, &self.grants)] }),
            Request::Env { shell } => self.env(shell),
            Request::Stop => {
                self.stop.send_replace(true);
                drop(self.ended.subscribe().wait_for(|ended| *ended).await);
                Ok(Answer::Stopped(self.board.end()))
            }
            Request::Refresh => self.refresh().await,
            Request::Revoke { profile } => self.revoke(profile).await,
            Request::Grant { profile } => self.grant(&profile).await,
            Request::Confirm { allow, profile, uid } => {
                let chosen = |known: &ProfileName, client: Option<u32>| {
                    profile.as_deref().is_none_or(|wanted| wanted == known.as_str())
                        && uid.is_none_or(|wanted| client == Some(wanted))
                };
                let answered = self.grants.confirm(chosen, allow).into_iter();
                let answered = answered.map(|(profile, uid)| Answered { profile: profile.to_string(), uid });
                Ok(Answer::Confirmed { answered: answered.collect() })
            }
        }
    }

    fn env(&self, shell: Option<String>) -> Result<Answer, Refusal> {
        let shell = match shell {
            None => None,
            Some(name) => Some(ShellArgument::from_str(&name, false).map(Shell::from).map_err(|_| {
                let name = printable::one_line(&name);
                Refusal::new(RefusalKind::Usage, format!("`{name}` is no language for exports"))
            })?),
        };
        let host = &self.board.host;
        // Readiness probes ask this: nobody on the host gets anything meanwhile, although the exports will hold again.
        let why = match self.board.state() {
            State::Reconnecting => Some("has no connection now"),
            State::Stopping => Some("is ending"),
            State::Starting | State::Up | State::Unknown => None,
        };
        if let Some(why) = why {
            let hint = format!(
                "`broker status` says why; the exports of {host} stay what they were once it is back"
            );
            return Err(Refusal::new(RefusalKind::Failed, format!("the tunnel to {host} {why}"))
                .with_hint((self.board.state() == State::Reconnecting).then_some(hint)));
        }
        let exports = self.steering.exports(&self.grants, shell).ok_or_else(|| {
            Refusal::new(RefusalKind::Failed, format!("the tunnel to {host} is not up yet"))
        })?;
        let mut notices = Vec::new();
        if let Some(program) = &exports.not_for
            && let Some(notice) = super::job::sh_instead(host, program.as_deref())
        {
            notices.push(notice);
        }
        if let Some(line) = &exports.with_token {
            notices.push(format!(
                "these exports name the token's file, as a token does not leave its tunnel this way; for SDKs that are too \
                 old for that, run `{line}` on {host}"
            ));
        }
        Ok(Answer::Env { exports: exports.text.as_str().to_owned(), notices })
    }

    async fn refresh(&self) -> Result<Answer, Refusal> {
        let mut flights = JoinSet::new();
        for (at, grant) in self.grants.list().into_iter().enumerate() {
            flights.spawn(async move {
                let renewed = tokio::time::timeout(RENEWAL, grant.renew()).await;
                let (expires_at, trouble) = match renewed {
                    Ok(Ok(end)) => (Some(end), None),
                    Ok(Err(error)) => {
                        (grant.status().expires_at, Some(printable::one_line(&error.to_string())))
                    }
                    Err(_) => (
                        grant.status().expires_at,
                        Some(format!("AWS gave no answer within {} s", RENEWAL.as_secs())),
                    ),
                };
                (at, Refreshed { profile: grant.profile.to_string(), expires_at, trouble })
            });
        }
        let mut roles = flights.join_all().await;
        roles.sort_by_key(|(at, _)| *at);
        Ok(Answer::Refreshed { roles: roles.into_iter().map(|(_, role)| role).collect() })
    }

    async fn revoke(&self, profile: Option<String>) -> Result<Answer, Refusal> {
        let _turn = self.turn.lock().await;
        let wanted: Vec<ProfileName> = match &profile {
            None => self.grants.list().iter().map(|grant| grant.profile.clone()).collect(),
            Some(name) => vec![
                name.parse()
                    .map_err(|e: crate::names::BadName| Refusal::new(RefusalKind::Usage, e.to_string()))?,
            ],
        };
        let revoked: Vec<Arc<Grant>> =
            wanted.iter().filter_map(|profile| self.grants.revoke(profile)).collect();
        if revoked.is_empty() {
            let host = &self.board.host;
            let message = match profile {
                Some(profile) => {
                    format!("profile `{}` is not served on {host}", printable::one_line(&profile))
                }
                None => format!("nothing is served on {host} any more"),
            };
            let known: Vec<String> =
                self.grants.list().iter().map(|grant| grant.profile.to_string()).collect();
            let hint = (!known.is_empty()).then(|| format!("served there: {}", known.join(", ")));
            return Err(Refusal::new(RefusalKind::Failed, message).with_hint(hint));
        }
        let gone: Vec<ProfileName> = revoked.iter().map(|grant| grant.profile.clone()).collect();
        let mut notices = Vec::new();
        if let Err(error) = self.put(&gone).await {
            notices.push(format!(
                "nobody is served with it any more, but what lies on {} for it could not be removed: {}",
                self.board.host,
                crate::causes::chain(&error)
            ));
        }
        let profiles = revoked
            .iter()
            .map(|grant| Revoked {
                profile: grant.profile.to_string(),
                role: grant.role.as_ref().map(ToString::to_string),
            })
            .collect();
        Ok(Answer::Revoked { profiles, notices })
    }

    async fn grant(&self, profile: &str) -> Result<Answer, Refusal> {
        let _turn = self.turn.lock().await;
        let names = [profile.to_owned()];
        let resolved = config::profiles(&names, &self.environment).map_err(|error| {
            let hint = error.hint();
            Refusal::new(RefusalKind::Usage, crate::causes::chain(&error)).with_hint(hint)
        })?;
        let Some(profile) = resolved.first() else {
            return Err(Refusal::new(RefusalKind::Usage, "no profile was named"));
        };
        self.pin.permits(&profile.name, &self.board.host).map_err(|error| {
            let hint = error.hint();
            Refusal::new(RefusalKind::RoleDenied, error.to_string()).with_hint(hint)
        })?;
        let grant = self.identity.grant(profile, false).map_err(|failure| refusal(&failure))?;
        // What AWS refuses is told before anything changes.
        let first = tokio::time::timeout(RENEWAL, grant.first()).await.map_err(|_| {
            let message = format!("AWS gave no answer within {} s", RENEWAL.as_secs());
            Refusal::new(RefusalKind::Failed, message)
        })?;
        if let Err(error) = first {
            let kind = match *error {
                FetchError::LoginNeeded { .. } => RefusalKind::LoginNeeded,
                FetchError::Denied { .. } => RefusalKind::RoleDenied,
                FetchError::Transient { .. } => RefusalKind::Failed,
            };
            let message = format!("no credentials for profile `{}`: {error}", profile.name);
            return Err(Refusal::new(kind, printable::one_line(&message)));
        }
        let replaced = self.grants.list().iter().any(|known| known.profile == profile.name);
        let grant =
            self.grants.add(grant).map_err(|closed| Refusal::new(RefusalKind::Failed, closed.to_string()))?;
        let host = &self.board.host;
        let mut notices = Vec::new();
        if let Err(error) = self.put(&[]).await {
            notices.push(match error {
                NotPut::NoLink => {
                    format!("there is no connection to {host} now; it will be there with the next one")
                }
                error => format!(
                    "`--profile {}` does not work on {host} yet: {}",
                    grant.profile,
                    crate::causes::chain(&error)
                ),
            });
        }
        if self.steering.has_block() {
            notices.push(format!(
                "the block in `~/.aws/config` of {host} (--install-profiles) knows it with the next connection"
            ));
        }
        let default = self.grants.served().first().is_some_and(|first| Arc::ptr_eq(first, &grant));
        if replaced && default && self.steering.has_token_in_environment() {
            notices.push(format!(
                "shells that run on {host} have the old token in their environment (--token env), which opens nothing now"
            ));
        }
        Ok(Answer::Granted {
            profile: grant.profile.to_string(),
            role: grant.role.as_ref().map(ToString::to_string),
            replaced,
            default,
            notices,
        })
    }

    /// Has the host follow what was granted and taken back.
    async fn put(&self, gone: &[ProfileName]) -> Result<(), NotPut> {
        tokio::time::timeout(PUT_TIMEOUT, self.steering.update(&self.grants, gone))
            .await
            .unwrap_or(Err(NotPut::NoLink))
    }
}

/// All tunnels of this process.
pub(super) struct Desks(pub(super) Vec<Arc<Desk>>);

impl Desks {
    /// Listens for other terminals until `shutdown` completes. Without a place for a socket the tunnel works, and says
    /// that it cannot be steered.
    pub(super) fn open(
        self,
        environment: &Environment,
        terminal: &Terminal,
        tasks: &mut JoinSet<()>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        let directories: Vec<PathBuf> = environment.runtime_directories();
        match Server::open(&directories) {
            Ok(server) => {
                let desk = Arc::new(self) as Arc<dyn server::Desk>;
                tasks.spawn(server.run(desk, shutdown));
            }
            Err(error) => terminal.warning(&format!(
                "`broker status` and its like will not find this tunnel: {}; it works all the same",
                crate::causes::chain(&error)
            )),
        }
    }
}

impl server::Desk for Desks {
    fn answer(&self, id: Option<u32>, request: Request) -> BoxFuture<'_, Result<Answer, Refusal>> {
        Box::pin(async move {
            if id.is_none() && request == Request::Status {
                let reports = self.0.iter().filter(|desk| !desk.has_ended());
                let reports = reports.map(|desk| desk.board.report(desk.id, &desk.grants));
                return Ok(Answer::Status { tunnels: reports.collect() });
            }
            match self.0.iter().find(|desk| Some(desk.id) == id) {
                Some(desk) => desk.dispatch(request).await,
                None => Err(Refusal::new(RefusalKind::Usage, "this process has no such tunnel")),
            }
        })
    }

    fn is_over(&self) -> bool {
        self.0.iter().all(|desk| desk.has_ended())
    }
}

fn refusal(failure: &Failure) -> Refusal {
    let kind = match failure.kind {
        Kind::Usage => RefusalKind::Usage,
        Kind::LoginNeeded => RefusalKind::LoginNeeded,
        Kind::RoleDenied => RefusalKind::RoleDenied,
        _ => RefusalKind::Failed,
    };
    let causes: String = failure.causes().iter().map(|cause| format!(": {cause}")).collect();
    Refusal::new(kind, format!("{failure}{causes}")).with_hint(failure.hint.clone())
}

/// For new credentials: AWS answers within a second, and a source gives up by itself before this.
const RENEWAL: Duration = Duration::from_secs(40);

/// For a dozen small files on a host that may be far away.
const PUT_TIMEOUT: Duration = Duration::from_secs(15);
