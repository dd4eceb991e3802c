//! Every account and role that a person may have: pages of accounts, then each account's roles, several at once.
//!
//! AWS says of no limit and throttles all the same, so that few calls are under way at a time, all go out at one
//! [`Pace`], and a throttled one waits and comes again.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    client::{Clients, Failure},
    pace::Pace,
    portal,
    session::{IdentityError, SsoSessionState},
    token::SsoToken,
};
use crate::{
    backoff,
    names::{AccountId, RoleName},
    printable::one_line,
    tasks::reraise,
};

/// As many as a browser has to one host; more only meet the throttle.
const AT_ONCE: usize = 6;

/// How often a throttled call comes again, and one that was not answered for another reason.
const TRIES_THROTTLED: u32 = 8;
const TRIES: u32 = 2;

/// How long such a call waits at first and at most.
const PAUSE_LEAST: Duration = Duration::from_millis(500);
const PAUSE_MOST: Duration = Duration::from_secs(10);

/// Thousands of accounts take this long behind a throttle.
const DEADLINE: Duration = Duration::from_secs(300);

/// More pages than any organization has; a server that always has one more must not keep us.
const MOST_PAGES: usize = 1000;

/// One account with the roles that the person may have there, sorted.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) roles: Vec<RoleName>,
}

/// Finds everything, sorted by account name. `progress` hears how many accounts are done, and of how many.
pub(crate) async fn discover(
    session: &Arc<SsoSessionState>,
    progress: impl Fn(usize, usize),
) -> Result<Vec<Account>, IdentityError> {
    let token = session.any_token().await?;
    let clients = session.clients_of(&token);
    let until = Instant::now() + DEADLINE;
    let pace = Arc::new(Pace::new());
    let mut accounts = Vec::new();
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let page = patiently(&pace, until, || portal::accounts(&clients, &token, next.clone())).await;
        let page = page.map_err(|error| session.refused_to_list(error))?;
        accounts.extend(page.items);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    let all = accounts.len();
    let mut waiting = accounts.into_iter();
    let mut under_way = JoinSet::new();
    let mut done = Vec::with_capacity(all);
    loop {
        while under_way.len() < AT_ONCE
            && let Some(account) = waiting.next()
        {
            let (clients, token, pace) = (Arc::clone(&clients), Arc::clone(&token), Arc::clone(&pace));
            under_way.spawn(async move { roles(&clients, &token, &pace, account, until).await });
        }
        let Some(ended) = under_way.join_next().await else { break };
        let account = reraise(ended).map_err(|error| session.refused_to_list(error))?;
        done.push(account);
        progress(done.len(), all);
    }
    done.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    Ok(done)
}

async fn roles(
    clients: &Clients,
    token: &SsoToken,
    pace: &Pace,
    account: portal::Account,
    until: Instant,
) -> Result<Account, portal::Error> {
    let mut roles = Vec::new();
    let mut next = None;
    for _ in 0..MOST_PAGES {
        let page =
            patiently(pace, until, || portal::roles(clients, token, &account.id, next.clone())).await?;
        roles.extend(page.items);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    roles.sort();
    let (name, email) = (one_line(&account.name), one_line(&account.email));
    Ok(Account { id: account.id, name, email, roles })
}

/// Makes a call in its turn, and again while AWS throttles it or seems to have a moment's trouble.
async fn patiently<T, F>(pace: &Pace, until: Instant, call: impl Fn() -> F) -> Result<T, portal::Error>
where
    F: Future<Output = Result<T, portal::Error>>,
{
    let mut tries = 0;
    loop {
        pace.turn().await;
        let failure = match call().await {
            Err(portal::Error::Transient(failure)) => failure,
            other => {
                pace.answered();
                return other;
            }
        };
        let throttled = is_throttled(&failure);
        if throttled {
            pace.throttled();
        }
        let most = if throttled { TRIES_THROTTLED } else { TRIES };
        if tries >= most || Instant::now() >= until {
            return Err(portal::Error::Transient(failure));
        }
        tries += 1;
        sleep(backoff::full_jitter(PAUSE_LEAST, PAUSE_MOST, tries, backoff::random())).await;
    }
}

fn is_throttled(failure: &Failure) -> bool {
    failure.code.as_deref().is_some_and(|code| code.contains("TooManyRequests") || code.contains("Throttl"))
}
