//! A source and a clock that tests move by hand.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::Semaphore, time::Instant};

use super::{FetchError, RoleSource, secret::RoleCredentials};
use crate::{clock::Clock, human::BoxFuture};

/// A wall clock that goes with Tokio's, and can be set.
#[derive(Clone)]
pub(crate) struct Time {
    started: Instant,
    set_by: Arc<AtomicI64>,
}

impl Time {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), set_by: Arc::default() }
    }

    pub(crate) fn clock(&self) -> Clock {
        let this = self.clone();
        Clock::from_fn(move || this.now())
    }

    pub(crate) fn now(&self) -> SystemTime {
        let set_by = 1_767_225_600 + self.set_by.load(Ordering::Relaxed);
        UNIX_EPOCH + Duration::from_secs(set_by.unsigned_abs()) + self.started.elapsed()
    }

    /// Sets the wall clock by `seconds`, as NTP or a sleep of the machine does.
    pub(crate) fn jump(&self, seconds: i64) {
        self.set_by.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// What the next fetches end in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Lives(Duration),
    LoginNeeded,
    Denied,
    Transient,
}

/// A source that does as it is told, and counts.
pub(crate) struct Source {
    time: Time,
    then: Mutex<Then>,
    calls: AtomicUsize,
    /// A permit for each fetch that may end.
    gate: Semaphore,
}

impl Source {
    pub(crate) fn new(time: &Time, then: Then) -> Arc<Self> {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Arc::new(Self { time: time.clone(), then: Mutex::new(then), calls: AtomicUsize::new(0), gate })
    }

    pub(crate) fn then(&self, then: Then) {
        *self.then.lock().unwrap() = then;
    }

    /// Makes fetches hang until [`Self::let_go`].
    pub(crate) fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn let_go(&self) {
        self.gate.add_permits(1);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl RoleSource for Source {
    fn fetch(&self) -> BoxFuture<'_, Result<RoleCredentials, FetchError>> {
        Box::pin(async {
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            self.gate.acquire().await.unwrap().forget();
            let sentence = format!("canned failure {call}");
            match *self.then.lock().unwrap() {
                Then::Lives(life) => Ok(RoleCredentials {
                    access_key_id: format!("ASIAEXAMPLE{call:09}"),
                    secret_access_key: format!("canary-secret-{call}").into(),
                    session_token: format!("canary-session-{call}").into(),
                    issued_at: self.time.now(),
                    expires_at: self.time.now() + life,
                    account: None,
                    role_arn: None,
                }),
                Then::LoginNeeded => Err(FetchError::LoginNeeded { sentence }),
                Then::Denied => Err(FetchError::Denied { sentence }),
                Then::Transient => Err(FetchError::Transient { sentence, source: None }),
            }
        })
    }
}
