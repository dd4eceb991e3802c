//! Which token opens what, for whom. A [`Grant`] is one profile on one host; [`Grants`] are all of one tunnel.
//!
//! A token opens exactly its own grant. Everything else that a caller can try ends in one of the [`Refused`], all
//! of which but one look alike from outside. Revoking is the first act of every stop: what was revoked is gone for
//! requests that are under way as well.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use subtle::{Choice, ConditionallySelectable as _};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub(crate) use super::stranger::Admitted;
use super::{
    FetchError,
    cache::{Cache, Due, Status, Unavailable},
    confirm::{Confirmations, Unconfirmed, Waiting},
    secret::{BearerToken, RoleCredentials},
    stranger::{BURST, Strangers},
    tally::{Count, Tally},
};
use crate::{
    audit::{Decision, Entry, Event, Log, Public, Text},
    caller::{Caller, Uid},
    names::{ProfileName, Region, Role},
    random::NoRandomness,
    tasks::reraise,
};

/// The wall clock may jump while we sleep by the monotonic one: look at it at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// A refresh token that AWS has just replaced should be saved, but an end takes 2 s in all.
const LANDING_TIMEOUT: Duration = Duration::from_secs(1);

/// One profile on one host, with a token of its own. It exists, so policy said yes.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) profile: ProfileName,
    /// Where it leads, as far as the configuration says; `None` for sources that know only themselves.
    pub(crate) role: Option<Role>,
    pub(crate) region: Option<Region>,
    pub(crate) output: Option<String>,
    pub(crate) token: BearerToken,
    cache: Arc<Cache>,
    revoked: AtomicBool,
}

impl Grant {
    /// Returns a grant whose credentials come from `cache`. It opens nothing before [`Grants::add`].
    pub(crate) fn new(
        profile: ProfileName,
        role: Option<Role>,
        region: Option<Region>,
        output: Option<String>,
        token: BearerToken,
        cache: Arc<Cache>,
    ) -> Self {
        Self { profile, role, region, output, token, cache, revoked: AtomicBool::new(false) }
    }

    /// Returns valid credentials, waiting for them until `deadline` when there are none yet.
    pub(crate) async fn credentials(&self, deadline: Instant) -> Result<Arc<RoleCredentials>, Unavailable> {
        self.cache.get(deadline).await
    }

    /// Fetches the first credentials, for however long that takes.
    pub(crate) async fn first(&self) -> Result<Arc<RoleCredentials>, Arc<FetchError>> {
        self.cache.first().await
    }

    /// Returns what is known about the credentials.
    pub(crate) fn status(&self) -> Status {
        self.cache.status()
    }

    /// Fetches new credentials now, however fresh those in memory are, and returns their end.
    pub(crate) async fn renew(&self) -> Result<SystemTime, Arc<FetchError>> {
        self.cache.renew().await
    }

    /// Whether credentials are fetched only when somebody asks, and nobody has yet.
    pub(crate) fn is_unasked(&self) -> bool {
        self.cache.is_unasked()
    }

    /// Returns whether it has been taken back; checked once more right before every answer.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    fn entry(&self, event: Event) -> Entry {
        Entry {
            event,
            profile: Some(Text::of(&self.profile)),
            role: self.role.as_ref().map(Text::of),
            ..Entry::default()
        }
    }
}

impl Public for ProfileName {}
impl Public for Role {}

/// What a request asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// `/`
    Default,
    /// `/slot/<profile>`
    Slot(ProfileName),
    /// `/healthcheck`, and `/healthcheck/slot/<profile>`
    Health(Option<ProfileName>),
    /// Any other path: nobody's, and refused like a wrong token.
    Unknown,
}

/// Why a caller gets nothing. Only [`Self::NoAuthorization`] may be told apart from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    /// No `Authorization` header at all: an SDK that is too old for token files.
    NoAuthorization,
    /// No grant has this token.
    WrongToken,
    /// The token of a grant, and a path that is not its own.
    WrongPath,
    /// Another user of the host.
    Foreign,
    /// Another user of the host, who has a token of ours.
    Theft,
}

impl Refused {
    /// Returns the word for it in the audit log.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoAuthorization => "no_authorization",
            Self::WrongToken => "wrong_token",
            Self::WrongPath => "wrong_path",
            Self::Foreign => "foreign_uid",
            // A word of its own, or the alarm would drown in a burst of wrong tokens.
            Self::Theft => "token_theft_suspected",
        }
    }
}

/// All grants of one tunnel. They outlive its connections.
#[derive(Debug)]
pub(crate) struct Grants {
    state: Mutex<State>,
    strangers: Strangers,
    log: Log,
    wake: Arc<Notify>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which their profiles were added.
    list: Vec<Arc<Grant>>,
    /// The first that was ever added, or what took its place. When it is taken back nothing else becomes the default:
    /// whoever asks without a name must not get another role than before.
    default: Option<Arc<Grant>>,
    allowed: Vec<Uid>,
    /// Who presented a token of ours last, until somebody is told.
    thief: Option<Uid>,
    tally: Tally,
    confirmations: Confirmations,
    /// What should be left of credentials at any time.
    ahead: Duration,
    closed: bool,
}

impl State {
    fn admits(&self, caller: Caller) -> bool {
        match caller {
            Caller::Uid(uid) => self.allowed.contains(&uid),
            Caller::Trusted => true,
        }
    }
}

/// The tunnel is being stopped, so nothing can be granted any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the tunnel is being stopped")]
pub(crate) struct Closed;

impl Grants {
    /// Returns no grants, open to nobody.
    pub(crate) fn new(log: Log) -> Arc<Self> {
        let (changes, _) = watch::channel(0);
        Arc::new(Self {
            state: Mutex::default(),
            strangers: Strangers::new(log.clone()),
            log,
            wake: Arc::default(),
            changes,
        })
    }

    /// Sets whose requests are answered: the login's uid on the host, and those of `--allow-uid`.
    pub(crate) fn allow(&self, uids: impl IntoIterator<Item = Uid>) {
        self.state().allowed = uids.into_iter().collect();
    }

    /// Adds a grant, in the place of the one with the same profile if there is one. The first is the default.
    pub(crate) fn add(&self, grant: Grant) -> Result<Arc<Grant>, Closed> {
        let grant = Arc::new(grant);
        let replaced = {
            let mut state = self.state();
            if state.closed {
                return Err(Closed);
            }
            grant.cache.keep_ahead(state.ahead);
            if state.default.as_ref().is_none_or(|default| default.profile == grant.profile) {
                state.default = Some(Arc::clone(&grant));
            }
            match state.list.iter_mut().find(|known| known.profile == grant.profile) {
                Some(known) => Some(std::mem::replace(known, Arc::clone(&grant))),
                None => {
                    state.list.push(Arc::clone(&grant));
                    None
                }
            }
        };
        if let Some(replaced) = replaced {
            if replaced.role != grant.role {
                // What a person said was said about the other role.
                self.state().confirmations.forget(&grant.profile);
            }
            self.end(&replaced);
        }
        self.log.record(grant.entry(Event::GrantAdded));
        grant.cache.attach(&self.wake);
        self.changed();
        Ok(grant)
    }

    /// Gives every grant a new token; the old ones open nothing any more.
    pub(crate) fn rotate(&self) -> Result<(), NoRandomness> {
        for old in self.list() {
            let new = Grant {
                profile: old.profile.clone(),
                role: old.role.clone(),
                region: old.region.clone(),
                output: old.output.clone(),
                token: BearerToken::generate()?,
                cache: Arc::clone(&old.cache),
                revoked: AtomicBool::new(false),
            };
            if self.add(new).is_err() {
                // Being stopped: what was there is revoked already.
                break;
            }
        }
        Ok(())
    }

    /// Returns all grants, in the order in which their profiles were added.
    pub(crate) fn list(&self) -> Vec<Arc<Grant>> {
        self.state().list.clone()
    }

    /// Returns what lies on the host for the default grant and for the others: the default one first, even if it was
    /// taken back and opens nothing any more.
    pub(crate) fn served(&self) -> Vec<Arc<Grant>> {
        let state = self.state();
        let is_default =
            |grant: &&Arc<Grant>| state.default.as_ref().is_some_and(|it| Arc::ptr_eq(it, grant));
        state.default.iter().chain(state.list.iter().filter(|grant| !is_default(grant))).cloned().collect()
    }

    /// Takes back one grant, and returns it; `None` if there is no such one.
    pub(crate) fn revoke(&self, profile: &ProfileName) -> Option<Arc<Grant>> {
        let revoked = {
            let mut state = self.state();
            let at = state.list.iter().position(|grant| grant.profile == *profile)?;
            state.confirmations.forget(profile);
            state.list.remove(at)
        };
        self.end(&revoked);
        self.changed();
        Some(revoked)
    }

    /// Has the credentials of every grant renewed so early that so much of their life is left at any time, or half of it.
    pub(crate) fn keep_ahead(&self, ahead: Duration) {
        let mut state = self.state();
        state.ahead = ahead;
        for grant in &state.list {
            grant.cache.keep_ahead(ahead);
        }
    }

    /// Has a person asked about every user of the host and every profile from now on (`--confirm`).
    pub(crate) fn require_confirmation(&self) {
        self.state().confirmations.require();
    }

    /// Returns whether `grant` may be handed to this user of the host, or to a file there (`None`); if nobody was asked
    /// about that yet, somebody is.
    pub(crate) fn confirmed(
        &self,
        grant: &Grant,
        uid: Option<Uid>,
        user_agent: impl FnOnce() -> Option<String>,
    ) -> Result<(), Unconfirmed> {
        let uid = uid.map(|uid| uid.0);
        let (confirmed, is_new) = self.state().confirmations.check(&grant.profile, uid, user_agent);
        if is_new {
            self.changed();
        }
        confirmed
    }

    /// Returns what a person has to say something about.
    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        self.state().confirmations.waiting()
    }

    /// Answers what waits and `chosen` wants, also what was answered otherwise before; returns what that was.
    pub(crate) fn confirm(
        &self,
        chosen: impl Fn(&ProfileName, Option<u32>) -> bool,
        allow: bool,
    ) -> Vec<(ProfileName, Option<u32>)> {
        let answered = self.state().confirmations.answer(chosen, allow);
        for (profile, uid) in &answered {
            self.log.record(Entry {
                event: if allow { Event::Approved } else { Event::Denied },
                profile: Some(Text::of(profile)),
                uid: *uid,
                ..Entry::default()
            });
        }
        if !answered.is_empty() {
            self.changed();
        }
        answered
    }

    /// Returns how often each user of the host asked for what.
    pub(crate) fn counts(&self) -> Vec<Count> {
        self.state().tally.counts()
    }

    /// Returns when something was handed out last.
    pub(crate) fn last_served(&self) -> Option<Instant> {
        self.state().tally.served()
    }

    /// Returns the grant that `authorization` opens for `caller`, if `route` leads to it.
    pub(crate) fn open(
        &self,
        route: &Route,
        authorization: Option<&[u8]>,
        caller: Caller,
    ) -> Result<Arc<Grant>, Refused> {
        let state = self.state();
        let opened = authorization.and_then(|presented| opened_by(&state.list, presented));
        if !state.admits(caller) {
            return Err(if opened.is_some() { Refused::Theft } else { Refused::Foreign });
        }
        if authorization.is_none() {
            return Err(Refused::NoAuthorization);
        }
        let grant = opened.ok_or(Refused::WrongToken)?;
        let leads_there = match route {
            Route::Default | Route::Health(None) => {
                state.default.as_ref().is_some_and(|default| Arc::ptr_eq(default, &grant))
            }
            Route::Slot(profile) | Route::Health(Some(profile)) => *profile == grant.profile,
            Route::Unknown => false,
        };
        if leads_there { Ok(grant) } else { Err(Refused::WrongPath) }
    }

    /// Returns whether requests of `caller` may be answered.
    pub(crate) fn is_ours(&self, caller: Caller) -> bool {
        self.state().admits(caller)
    }

    /// Returns leave to answer somebody who is not proven to be our user; `None`: close without a word.
    pub(crate) fn admit_stranger(&self) -> Option<Admitted<'_>> {
        self.strangers.admit()
    }

    /// Logs a refused stranger; bursts become one line with a count.
    pub(crate) fn note_stranger(&self, uid: Option<Uid>, entry: Entry) {
        let theft = entry.event == Event::TokenTheftSuspected;
        self.state().tally.note(None, uid.map(|uid| uid.0), false, 1);
        if self.strangers.note(uid, entry) && theft {
            self.state().thief = uid;
            self.changed();
        }
    }

    /// Returns the other user of the host who presented a token of ours, once for each burst.
    pub(crate) fn take_thief(&self) -> Option<Uid> {
        self.state().thief.take()
    }

    /// Logs a decision about a request of our own user.
    pub(crate) fn note(&self, entry: Entry) {
        let profile = entry.profile.as_ref().map(Text::as_str);
        let allowed = entry.decision == Some(Decision::Allowed);
        // Whoever only looks whether we are well does not use anything.
        if entry.event == Event::Request && entry.reason != Some("health") {
            self.state().tally.note(profile, entry.uid, allowed, 1);
        }
        self.log.record(entry);
    }

    /// Takes back everything, for good: the first act of every stop.
    pub(crate) fn revoke_all(&self) {
        let revoked = {
            let mut state = self.state();
            state.closed = true;
            state.default = None;
            std::mem::take(&mut state.list)
        };
        for grant in &revoked {
            self.end(grant);
        }
        self.changed();
    }

    /// Fetches the credentials of all grants at once and returns what came of each, in their order.
    pub(crate) async fn first_fetch(
        &self,
    ) -> Vec<(ProfileName, Result<Arc<RoleCredentials>, Arc<FetchError>>)> {
        let mut grants = self.list();
        // Those are for whoever asks.
        grants.retain(|grant| !grant.is_unasked());
        let mut flights = JoinSet::new();
        for (at, grant) in grants.iter().enumerate() {
            let cache = Arc::clone(&grant.cache);
            flights.spawn(async move { (at, cache.first().await) });
        }
        let mut landed = Vec::new();
        while let Some(ended) = flights.join_next().await {
            landed.push(reraise(ended));
        }
        landed.sort_by_key(|(at, _)| *at);
        grants.iter().zip(landed).map(|(grant, (_, result))| (grant.profile.clone(), result)).collect()
    }

    /// Has everything that failed tried again now: after a login, or when the machine woke up.
    pub(crate) fn poke(&self) {
        for grant in self.list() {
            grant.cache.poke();
        }
    }

    /// Returns a value that changes whenever [`Grant::status`] of some grant, their list, or
    /// [`Self::take_thief`] may have.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps the credentials of all grants fresh until `shutdown` completes. The one task that fetches.
    pub(crate) async fn run(&self, shutdown: impl Future<Output = ()>) {
        let mut flights = JoinSet::new();
        let mut vigil = Vigil::default();
        tokio::pin!(shutdown);
        loop {
            self.strangers.flush(BURST);
            let mut wait = LONGEST_SLEEP;
            let list = self.list();
            vigil.keep(list.iter().map(|grant| &grant.cache).filter(|cache| cache.needs_login()));
            for grant in list {
                match grant.cache.due() {
                    Due::Now => {
                        let cache = Arc::clone(&grant.cache);
                        // Looks again whether it is due: we may be here twice before it starts.
                        flights.spawn(async move { cache.fly_if_due().await });
                    }
                    Due::In(due) => wait = wait.min(due),
                    // Its landing wakes us.
                    Due::Flying => {}
                }
            }
            tokio::select! {
                () = &mut shutdown => break,
                () = self.wake.notified() => {}
                Some(ended) = flights.join_next() => {
                    reraise(ended);
                    self.changed();
                }
                () = vigil.ended() => {}
                () = sleep(wait) => {}
            }
        }
        let landed = async {
            while let Some(ended) = flights.join_next().await {
                reraise(ended);
            }
        };
        if timeout(LANDING_TIMEOUT, landed).await.is_err() {
            tracing::debug!("gave up a fetch that was under way at the end");
        }
        self.strangers.flush(Duration::ZERO);
    }

    fn end(&self, grant: &Grant) {
        grant.revoked.store(true, Ordering::Release);
        self.log.record(grant.entry(Event::GrantRevoked));
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a login on behalf of all caches that need one: the first that hears of it has all of them try again.
#[derive(Default)]
struct Vigil {
    caches: Vec<Arc<Cache>>,
    tasks: JoinSet<()>,
}

impl Vigil {
    /// Waits for these from now on.
    fn keep<'a>(&mut self, caches: impl Iterator<Item = &'a Arc<Cache>>) {
        let caches: Vec<_> = caches.cloned().collect();
        let same = caches.len() == self.caches.len()
            && caches.iter().zip(&self.caches).all(|(one, other)| Arc::ptr_eq(one, other));
        if same {
            return;
        }
        self.tasks = JoinSet::new();
        for cache in &caches {
            let cache = Arc::clone(cache);
            self.tasks.spawn(async move { cache.revived().await });
        }
        self.caches = caches;
    }

    /// Ends when somebody may have logged in; whatever waited for that is tried again then.
    async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => reraise(ended),
            None => std::future::pending().await,
        }
        self.tasks = JoinSet::new();
        for cache in self.caches.drain(..) {
            cache.poke();
        }
    }
}

/// Returns the grant with this token. Compares with every token, and does the same work wherever the right one
/// stands.
fn opened_by(list: &[Arc<Grant>], presented: &[u8]) -> Option<Arc<Grant>> {
    let mut found = u32::MAX;
    for (at, grant) in (0u32..).zip(list) {
        let matches = Choice::from(u8::from(grant.token.matches(presented)));
        found.conditional_assign(&at, matches);
    }
    list.get(usize::try_from(found).ok()?).cloned()
}

#[cfg(test)]
mod tests;
