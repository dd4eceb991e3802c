use std::pin::pin;

use secrecy::ExposeSecret as _;
use tokio::{sync::oneshot, time::advance};

use super::*;
use crate::{
    audit::Memory,
    creds::fake::{Source, Then, Time},
};

const US: Uid = Uid(1000);
const HOUR: Then = Then::Lives(Duration::from_secs(3600));

struct Lab {
    grants: Arc<Grants>,
    time: Time,
    memory: Memory,
}

fn lab() -> Lab {
    let (log, memory) = Log::to_memory();
    let grants = Grants::new(log);
    grants.allow([US]);
    Lab { grants, time: Time::new(), memory }
}

impl Lab {
    /// Adds a grant and returns what an SDK would send for it.
    fn add(&self, profile: &str, then: Then) -> (Vec<u8>, Arc<Source>) {
        let source = Source::new(&self.time, then);
        let cache = Cache::new(Arc::clone(&source) as Arc<dyn crate::creds::RoleSource>, self.time.clock());
        let role = Role { account: "111122223333".parse().unwrap(), name: "Deploy".parse().unwrap() };
        let token = BearerToken::generate().unwrap();
        let grant = Grant::new(profile.parse().unwrap(), Some(role), None, None, token, cache);
        let grant = self.grants.add(grant).unwrap();
        (grant.token.expose_for_token_file().expose_secret().as_bytes().to_vec(), source)
    }

    fn open(&self, route: &Route, token: Option<&[u8]>, caller: Uid) -> Result<String, Refused> {
        self.grants.open(route, token, Caller::Uid(caller)).map(|grant| grant.profile.to_string())
    }
}

fn slot(profile: &str) -> Route {
    Route::Slot(profile.parse().unwrap())
}

fn health(profile: &str) -> Route {
    Route::Health(Some(profile.parse().unwrap()))
}

#[tokio::test]
async fn a_token_opens_exactly_its_own_grant() {
    use Refused::{Foreign, NoAuthorization, Theft, WrongPath, WrongToken};
    let lab = lab();
    let (a, _) = lab.add("a", HOUR);
    let (b, _) = lab.add("b", HOUR);
    let (a, b) = (Some(a.as_slice()), Some(b.as_slice()));
    let wrong = Some(b"Bearer AAAA".as_slice());
    let bare = a.map(|token| &token[7..]);
    for (route, token, caller, expected) in [
        (Route::Default, a, US, Ok("a")),
        (slot("a"), a, US, Ok("a")),
        (Route::Health(None), a, US, Ok("a")),
        (health("a"), a, US, Ok("a")),
        (slot("b"), b, US, Ok("b")),
        (health("b"), b, US, Ok("b")),
        (Route::Default, b, US, Err(WrongPath)),
        (Route::Health(None), b, US, Err(WrongPath)),
        (slot("a"), b, US, Err(WrongPath)),
        (slot("b"), a, US, Err(WrongPath)),
        (health("b"), a, US, Err(WrongPath)),
        (slot("none"), a, US, Err(WrongPath)),
        (Route::Unknown, a, US, Err(WrongPath)),
        (Route::Default, wrong, US, Err(WrongToken)),
        (Route::Unknown, wrong, US, Err(WrongToken)),
        (Route::Default, bare, US, Err(WrongToken)),
        (Route::Default, Some(b""), US, Err(WrongToken)),
        (Route::Default, None, US, Err(NoAuthorization)),
        (Route::Unknown, None, US, Err(NoAuthorization)),
        (Route::Default, a, Uid(0), Err(Theft)),
        (slot("a"), b, Uid(65534), Err(Theft)),
        (Route::Default, wrong, Uid(65534), Err(Foreign)),
        (Route::Default, None, Uid(65534), Err(Foreign)),
    ] {
        assert_eq!(lab.open(&route, token, caller), expected.map(str::to_owned), "{route:?} {caller}");
    }
    lab.grants.allow([US, Uid(0)]);
    assert!(lab.open(&Route::Default, a, Uid(0)).is_ok());
}

#[tokio::test]
async fn before_the_uid_is_known_nobody_is_let_in() {
    let lab = lab();
    let (a, _) = lab.add("a", HOUR);
    lab.grants.allow([]);
    assert_eq!(lab.open(&Route::Default, Some(&a), Uid(0)), Err(Refused::Theft));
}

#[tokio::test]
async fn what_is_revoked_opens_nothing_and_nothing_follows() {
    let mut lab = lab();
    let (a, _) = lab.add("a", HOUR);
    let (b, _) = lab.add("b", HOUR);
    let under_way = lab.grants.open(&Route::Default, Some(&a), Caller::Uid(US)).unwrap();
    lab.grants.revoke_all();
    assert!(under_way.is_revoked());
    for token in [&a, &b] {
        assert_eq!(lab.open(&Route::Default, Some(token), US), Err(Refused::WrongToken));
        assert_eq!(lab.open(&slot("b"), Some(token), US), Err(Refused::WrongToken));
    }
    let cache = Cache::new(Source::new(&lab.time, HOUR), lab.time.clock());
    let token = BearerToken::generate().unwrap();
    let late = Grant::new("c".parse().unwrap(), None, None, None, token, cache);
    assert_eq!(lab.grants.add(late).unwrap_err(), Closed);
    let events: Vec<_> = lab.memory.entries().into_iter().map(|entry| entry.event).collect();
    use Event::{GrantAdded, GrantRevoked};
    assert_eq!(events, [GrantAdded, GrantAdded, GrantRevoked, GrantRevoked], "the late one was never added");
}

#[tokio::test]
async fn a_grant_that_is_replaced_ends_and_keeps_its_place() {
    let lab = lab();
    let (old, _) = lab.add("a", HOUR);
    lab.add("b", HOUR);
    let under_way = Arc::clone(&lab.grants.list()[0]);
    let (new, _) = lab.add("a", HOUR);
    assert!(under_way.is_revoked());
    assert_eq!(lab.open(&Route::Default, Some(&old), US), Err(Refused::WrongToken));
    assert_eq!(lab.open(&Route::Default, Some(&new), US), Ok("a".into()));
    assert_eq!(lab.grants.list().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn all_profiles_are_fetched_at_once_and_each_says_what_came_of_it() {
    let lab = lab();
    let (_, a) = lab.add("a", HOUR);
    lab.add("b", Then::Denied);
    lab.add("c", HOUR);
    a.hold();
    let mut fetch = pin!(lab.grants.first_fetch());
    assert!(timeout(Duration::from_secs(1), &mut fetch).await.is_err());
    a.let_go();
    let landed: Vec<_> =
        fetch.await.into_iter().map(|(profile, result)| (profile.to_string(), result.is_ok())).collect();
    assert_eq!(landed, [("a".into(), true), ("b".into(), false), ("c".into(), true)]);
}

#[tokio::test(start_paused = true)]
async fn credentials_stay_ahead_of_their_expiry_all_day() {
    let lab = lab();
    let (_, a) = lab.add("a", HOUR);
    let (_, short) = lab.add("short", Then::Lives(Duration::from_secs(900)));
    let (stop, stopped) = oneshot::channel::<()>();
    let grants = Arc::clone(&lab.grants);
    let day = async {
        for minute in 0..24 * 60 {
            advance(Duration::from_secs(60)).await;
            for grant in lab.grants.list() {
                let got = grant.credentials(Instant::now() + Duration::from_millis(900)).await.unwrap();
                let left = got.expires_at.duration_since(lab.time.now()).unwrap();
                let life = got.expires_at.duration_since(got.issued_at).unwrap();
                let least = Duration::from_secs(20 * 60).min(life / 3) - Duration::from_secs(61);
                assert!(left >= least, "minute {minute}: {} has {left:?} left", grant.profile);
            }
        }
        drop(stop);
    };
    tokio::join!(grants.run(async { drop(stopped.await) }), day);
    assert!((35..=37).contains(&a.calls()), "{}", a.calls());
    assert!((140..=146).contains(&short.calls()), "{}", short.calls());
}

#[tokio::test(start_paused = true)]
async fn after_a_login_all_grants_recover_without_a_request_and_a_dead_session_is_not_hammered() {
    let lab = lab();
    let sources = ["a", "b", "c"].map(|profile| lab.add(profile, Then::LoginNeeded).1);
    let (stop, stopped) = oneshot::channel::<()>();
    let people = async {
        let mut changes = lab.grants.changes();
        let default = Arc::clone(&lab.grants.list()[0]);
        for _ in 0..600 {
            advance(Duration::from_secs(1)).await;
            let answer = default.credentials(Instant::now() + Duration::from_millis(900)).await;
            assert!(matches!(answer, Err(Unavailable::Failed(_))), "{answer:?}");
        }
        for source in &sources {
            assert!((18..=21).contains(&source.calls()), "{}", source.calls());
            source.then(HOUR);
        }
        lab.grants.poke();
        while lab.grants.list().iter().any(|grant| grant.status().expires_at.is_none()) {
            changes.changed().await.unwrap();
        }
        drop(stop);
    };
    tokio::join!(lab.grants.run(async { drop(stopped.await) }), people);
}

#[tokio::test(start_paused = true)]
async fn the_runner_ends_within_its_time_although_aws_hangs() {
    let lab = lab();
    let (_, source) = lab.add("a", HOUR);
    source.hold();
    let begun = Instant::now();
    let stop = async {
        while source.calls() == 0 {
            tokio::task::yield_now().await;
        }
    };
    lab.grants.run(stop).await;
    assert_eq!(begun.elapsed(), LANDING_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_theft_is_its_own_event_and_a_burst_of_it_is_counted() {
    let mut lab = lab();
    let entry = || Entry {
        event: Event::TokenTheftSuspected,
        reason: Some(Refused::Theft.reason()),
        ..Entry::default()
    };
    for _ in 0..50 {
        lab.grants.note_stranger(Some(Uid(7)), entry());
    }
    lab.grants.run(async {}).await;
    let lines: Vec<_> = lab.memory.entries().into_iter().map(|entry| (entry.event, entry.count)).collect();
    assert_eq!(lines, [(Event::TokenTheftSuspected, None), (Event::TokenTheftSuspected, Some(49))]);
}

#[tokio::test]
async fn nothing_takes_the_place_of_a_default_that_was_taken_back() {
    let lab = lab();
    let (a, _) = lab.add("a", HOUR);
    let (b, _) = lab.add("b", HOUR);
    let profiles = |grants: &Grants| -> Vec<String> {
        grants.served().iter().map(|grant| grant.profile.to_string()).collect()
    };
    let revoked = lab.grants.revoke(&"a".parse().unwrap()).unwrap();
    assert!(revoked.is_revoked() && lab.grants.revoke(&"a".parse().unwrap()).is_none());
    assert_eq!(lab.open(&Route::Default, Some(&a), US), Err(Refused::WrongToken));
    assert_eq!(lab.open(&Route::Default, Some(&b), US), Err(Refused::WrongPath));
    assert_eq!(lab.open(&slot("b"), Some(&b), US).as_deref(), Ok("b"));
    assert_eq!(profiles(&lab.grants), ["a", "b"], "on the host the first is the default");
    let (again, _) = lab.add("a", HOUR);
    assert_eq!(lab.open(&Route::Default, Some(&again), US).as_deref(), Ok("a"));
    assert_eq!(lab.open(&Route::Default, Some(&a), US), Err(Refused::WrongToken));
    assert_eq!(profiles(&lab.grants), ["a", "b"]);
    lab.grants.revoke_all();
    assert!(profiles(&lab.grants).is_empty());
}

#[tokio::test]
async fn a_yes_outlives_a_new_token_and_not_another_role() {
    let lab = lab();
    lab.grants.require_confirmation();
    drop(lab.add("a", HOUR));
    let ask = || {
        let grant = lab.grants.list().pop().unwrap();
        lab.grants.confirmed(&grant, Some(US), || None)
    };
    assert_eq!(ask(), Err(Unconfirmed::Waiting));
    assert_eq!(lab.grants.confirm(|_, _| true, true).len(), 1);
    assert_eq!(ask(), Ok(()));
    drop(lab.add("a", HOUR));
    assert_eq!(ask(), Ok(()), "the same role with another token");
    let source = Source::new(&lab.time, HOUR);
    let cache = Cache::new(source, lab.time.clock());
    let token = BearerToken::generate().unwrap();
    lab.grants.add(Grant::new("a".parse().unwrap(), None, None, None, token, cache)).unwrap();
    assert_eq!(ask(), Err(Unconfirmed::Waiting));
}

#[tokio::test(start_paused = true)]
async fn what_has_to_last_without_us_is_kept_fresh_in_every_grant() {
    let lab = lab();
    let (_, before) = lab.add("a", HOUR);
    lab.grants.keep_ahead(Duration::from_secs(7200));
    let (_, after) = lab.add("b", HOUR);
    for (source, grant) in [before, after].into_iter().zip(lab.grants.list()) {
        grant.first().await.unwrap();
        advance(Duration::from_secs(31 * 60)).await;
        grant.cache.fly_if_due().await;
        assert_eq!(source.calls(), 2, "{}", grant.profile);
    }
}
