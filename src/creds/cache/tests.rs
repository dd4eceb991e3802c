use super::*;
use crate::creds::fake::{Source, Then, Time};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Then = Then::Lives(Duration::from_secs(3600));
const NO_TIME: Duration = Duration::from_millis(900);

fn cache(time: &Time, then: Then) -> (Arc<Cache>, Arc<Source>) {
    let source = Source::new(time, then);
    (Cache::new(Arc::clone(&source) as Arc<dyn RoleSource>, time.clock()), source)
}

/// Fetches now, whatever happened before.
async fn fly(cache: &Cache) {
    cache.fly(Flight::take_off(cache, |_| true).unwrap()).await;
}

/// What a request sees, in one word and the number of the fetch.
async fn ask(cache: &Cache) -> String {
    match cache.get(Instant::now() + NO_TIME).await {
        Ok(credentials) => credentials.access_key_id.trim_start_matches("ASIAEXAMPLE0").into(),
        Err(Unavailable::Waiting) => "waiting".into(),
        Err(Unavailable::Failed(error)) => error.to_string(),
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_requests_at_once_are_one_fetch() {
    let time = Time::new();
    let (cache, source) = cache(&time, HOUR);
    source.hold();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let cache = Arc::clone(&cache);
        requests.spawn(async move { ask(&cache).await });
    }
    let mut runners = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let cache = Arc::clone(&cache);
        runners.spawn(async move { cache.fly_if_due().await });
    }
    while cache.landings.receiver_count() < 200 || source.calls() == 0 {
        tokio::task::yield_now().await;
    }
    source.let_go();
    runners.join_all().await;
    let answers = requests.join_all().await;
    assert!(answers.iter().all(|answer| answer == "00000001"), "{answers:?}");
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_flight_until_its_deadline_and_no_longer() {
    let time = Time::new();
    let (cache, source) = cache(&time, HOUR);
    source.hold();
    let asked = Instant::now();
    tokio::select! {
        answer = ask(&cache) => assert_eq!(answer, "waiting"),
        _ = fly(&cache) => unreachable!("the flight is held"),
    }
    assert_eq!(asked.elapsed(), NO_TIME);
    // The flight was cancelled with the select; the next may take off.
    source.let_go();
    fly(&cache).await;
    assert_eq!(ask(&cache).await, "00000002");
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_are_never_served() {
    // Minutes that pass by both clocks, and seconds by which the wall clock is set; what a request then gets.
    for (passed, set_by, served) in [
        (0, 0, true),
        (59, 0, true),
        (60, 0, false),
        (600, 0, false),
        (0, 3599, true),
        // A laptop that slept: Tokio's clock stood still.
        (0, 3600, false),
        (30, 1800, false),
        (30, 1700, true),
        // A clock that was set back does not lengthen a life.
        (59, -7200, true),
        (60, -7200, false),
        (61, -3600, false),
    ] {
        let time = Time::new();
        let (cache, source) = cache(&time, HOUR);
        fly(&cache).await;
        source.then(Then::Transient);
        tokio::time::advance(MINUTE * passed).await;
        time.jump(set_by);
        let answer = ask(&cache).await;
        assert_eq!(answer == "00000001", served, "{passed} min, set by {set_by} s: {answer}");
        assert_eq!(cache.status().expires_at.is_some(), served);
    }
}

#[tokio::test(start_paused = true)]
async fn valid_but_short_is_served_while_the_refresh_fails() {
    let time = Time::new();
    let (cache, source) = cache(&time, HOUR);
    fly(&cache).await;
    assert!(matches!(cache.due(), Due::In(wait) if wait == MINUTE * 40));
    tokio::time::advance(MINUTE * 40).await;
    assert_eq!(cache.due(), Due::Now);
    for then in [Then::Transient, Then::LoginNeeded, Then::Denied] {
        source.then(then);
        fly(&cache).await;
        assert_eq!(ask(&cache).await, "00000001");
        assert!(cache.status().trouble.is_some());
    }
    tokio::time::advance(MINUTE * 20).await;
    let asked = Instant::now();
    source.then(HOUR);
    source.hold();
    assert_eq!(ask(&cache).await, "canned failure 4");
    assert_eq!(asked.elapsed(), NO_TIME, "the wait after the failure is over, so it waits for a flight");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_answered_from_memory_until_its_time_has_come() {
    for (then, least, most) in [
        (Then::LoginNeeded, LOGIN_RETRY, LOGIN_RETRY),
        (Then::Denied, DENIED_RETRY, DENIED_RETRY),
        (Then::Transient, BACKOFF_LEAST, BACKOFF_LEAST * 2),
    ] {
        let time = Time::new();
        let (cache, source) = cache(&time, then);
        fly(&cache).await;
        let asked = Instant::now();
        for _ in 0..100 {
            assert_eq!(ask(&cache).await, "canned failure 1");
        }
        assert_eq!(asked.elapsed(), Duration::ZERO);
        assert!(matches!(cache.due(), Due::In(wait) if (least..=most).contains(&wait)), "{then:?}");
        assert_eq!(source.calls(), 1);
        source.then(HOUR);
        cache.poke();
        assert_eq!(cache.due(), Due::Now);
        fly(&cache).await;
        assert_eq!(ask(&cache).await, "00000002");
        assert!(cache.status().trouble.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_repeats_itself_is_not_asked_in_a_circle() {
    let time = Time::new();
    let (cache, source) = cache(&time, Then::Lives(Duration::from_secs(9)));
    fly(&cache).await;
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(cache.due(), Due::In(Duration::from_secs(3)));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(cache.due(), Due::Now, "nothing valid is left, so no settling");
    assert_eq!(source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_have_ended_when_they_arrive_are_a_failure() {
    let time = Time::new();
    let (cache, _source) = cache(&time, Then::Lives(Duration::ZERO));
    fly(&cache).await;
    assert!(ask(&cache).await.contains("clock"));
}

#[tokio::test(start_paused = true)]
async fn a_source_without_a_deadline_of_its_own_gets_ours() {
    let time = Time::new();
    let (cache, source) = cache(&time, HOUR);
    source.hold();
    let started = Instant::now();
    fly(&cache).await;
    assert_eq!(started.elapsed(), FLIGHT_TIMEOUT);
    assert!(ask(&cache).await.contains("no answer"));
}

#[tokio::test(start_paused = true)]
async fn the_first_fetch_tells_what_came_of_it() {
    let time = Time::new();
    let (cache, source) = cache(&time, Then::Denied);
    source.hold();
    let let_go = async { source.let_go() };
    let (one, other, ()) = tokio::join!(cache.first(), cache.first(), let_go);
    assert_eq!(one.unwrap_err().to_string(), "canned failure 1");
    assert_eq!(other.unwrap_err().to_string(), "canned failure 1");
    source.then(HOUR);
    source.let_go();
    assert!(cache.first().await.is_ok(), "a person who asks again is not answered from memory");
    assert!(cache.first().await.is_ok());
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fetched_on_request_before_there_is_one() {
    let time = Time::new();
    let source = Source::new(&time, Then::Lives(Duration::from_secs(3600)));
    let cache = Cache::on_request(Arc::clone(&source) as Arc<_>, time.clock());
    cache.fly_if_due().await;
    assert_eq!((source.calls(), cache.is_unasked()), (0, true));
    let now = Instant::now();
    assert!(matches!(cache.get(now).await, Err(Unavailable::Waiting)), "it is fetched for the next request");
    cache.fly_if_due().await;
    assert!(cache.get(now).await.is_ok());
    assert_eq!((source.calls(), cache.is_unasked()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn fresh_credentials_are_renewed_when_a_person_wants_it_and_kept_when_that_fails() {
    let time = Time::new();
    let (cache, source) = cache(&time, Then::Lives(Duration::from_secs(3600)));
    cache.fly_if_due().await;
    let before = ask(&cache).await;
    cache.fly_if_due().await;
    assert_eq!(source.calls(), 1, "they are fresh");
    let renew = async || tokio::join!(cache.renew(), cache.fly_if_due()).0;
    assert!(renew().await.is_ok());
    let after = ask(&cache).await;
    assert_ne!(after, before);
    source.then(Then::Denied);
    assert!(renew().await.is_err());
    assert_eq!(ask(&cache).await, after);
    assert_eq!(source.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_to_last_without_us_is_renewed_at_half_of_its_life() {
    let time = Time::new();
    let (cache, source) = cache(&time, HOUR);
    cache.keep_ahead(8 * 60 * MINUTE);
    fly(&cache).await;
    tokio::time::advance(29 * MINUTE).await;
    cache.fly_if_due().await;
    assert_eq!(source.calls(), 1);
    tokio::time::advance(MINUTE).await;
    cache.fly_if_due().await;
    assert_eq!(source.calls(), 2);
}
