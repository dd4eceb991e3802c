//! `--max-lifetime`, `--idle-timeout` and `--confirm`: a tunnel that ends by itself, and one that asks.

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use clap::Args;
use tokio::time::{Instant, sleep};

use super::{desk::Why, terminal::Terminal};
use crate::{
    clock::Clock,
    creds::{confirm::Waiting, grant::Grants},
    human::{Human, Question},
    printable,
};

/// What bounds a tunnel.
#[derive(Args, Clone, Debug)]
pub(super) struct Limits {
    /// End after this time, such as 8h or 1h30m, whatever runs there
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(super) max_lifetime: Option<Duration>,

    /// End when no process on the host asked for credentials for this time; SDKs keep what they got for up to an hour
    #[arg(long, value_name = "D", value_parser = duration)]
    pub(super) idle_timeout: Option<Duration>,

    /// Ask here, or wait for `broker approve`, before each user of the host gets each profile for the first time
    #[arg(long)]
    pub(super) confirm: bool,
}

/// Parses `90s`, `15m`, `8h`, `2d` and sums of them.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time such as 90s, 15m, 8h, 2d or 1h30m".to_owned();
    let mut seconds = 0u64;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    }
    if !number.is_empty() || !(1..=LONGEST).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

/// Returns a time as [`duration`] reads it, to the second or to the minute.
pub(super) fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, 0) => format!("{m} min"),
        (0, 0, m, s) if m < 10 => format!("{m} min {s} s"),
        (0, 0, m, _) => format!("{m} min"),
        (0, h, 0, _) => format!("{h} h"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, 0, ..) => format!("{d} d"),
        (d, h, ..) => format!("{d} d {h} h"),
    }
}

impl Limits {
    /// Returns when the tunnel ends by itself at the latest.
    pub(super) fn ends_at(&self, now: SystemTime) -> Option<SystemTime> {
        now.checked_add(self.max_lifetime?)
    }

    /// Returns when the tunnel has to end, having said so before.
    pub(super) async fn over(&self, host: &str, grants: &Grants, clock: &Clock, terminal: &Terminal) -> Why {
        let (since, started) = (Instant::now(), clock.now());
        let mut lifetime = self.max_lifetime.map(Alarm::new);
        let mut idle = self.idle_timeout.map(Alarm::new);
        loop {
            let mut wait = LOOK;
            if let Some(alarm) = &mut lifetime {
                // The monotonic clock stands still while a laptop sleeps, and the other one may be set back.
                let age = clock.now().duration_since(started).unwrap_or_default().max(since.elapsed());
                match alarm.look(age) {
                    Look::Over => return Why::Lifetime(alarm.time),
                    Look::Soon(left) => terminal.warning(&format!(
                        "the tunnel to {host} ends in {} (--max-lifetime {}); start a new one for what still runs there",
                        spoken(left),
                        spoken(alarm.time)
                    )),
                    Look::Wait(_) => {}
                }
                wait = wait.min(alarm.next(age));
            }
            if let Some(alarm) = &mut idle {
                let quiet = grants.last_served().unwrap_or(since).elapsed();
                match alarm.look(quiet) {
                    Look::Over => return Why::Idle(alarm.time),
                    Look::Soon(left) => terminal.warning(&format!(
                        "nobody on {host} asked for credentials for {}; the tunnel ends in {} unless somebody does \
                         (--idle-timeout {})",
                        spoken(quiet),
                        spoken(left),
                        spoken(alarm.time)
                    )),
                    Look::Wait(_) => {}
                }
                wait = wait.min(alarm.next(quiet));
            }
            sleep(wait).await;
        }
    }
}

/// A time that runs out, and what was said about it.
struct Alarm {
    time: Duration,
    told: bool,
}

enum Look {
    Over,
    /// So much is left, which is to be told now.
    Soon(Duration),
    Wait(()),
}

impl Alarm {
    fn new(time: Duration) -> Self {
        Self { time, told: false }
    }

    /// How long before the end it is told.
    fn notice(&self) -> Duration {
        (self.time / 5).min(NOTICE)
    }

    fn look(&mut self, gone: Duration) -> Look {
        let left = self.time.saturating_sub(gone);
        if left.is_zero() {
            return Look::Over;
        }
        let soon = left <= self.notice();
        if soon && !std::mem::replace(&mut self.told, soon) {
            return Look::Soon(left);
        }
        self.told = soon;
        Look::Wait(())
    }

    /// How long nothing happens.
    fn next(&self, gone: Duration) -> Duration {
        let left = self.time.saturating_sub(gone);
        let next = if left > self.notice() { left.saturating_sub(self.notice()) } else { left };
        next.max(Duration::from_millis(10))
    }
}

/// Tells a person what waits for their word, and asks where they can answer.
pub(super) async fn confirm(host: &str, grants: &Grants, terminal: &Terminal, can_ask: bool) -> Infallible {
    let mut changes = grants.changes();
    let mut told: Vec<Waiting> = Vec::new();
    loop {
        let waiting = grants.waiting();
        told.retain(|asked| waiting.contains(asked));
        let new: Vec<Waiting> = waiting.into_iter().filter(|asked| !told.contains(asked)).collect();
        for asked in new {
            let who = who(&asked);
            let Waiting { profile, uid, .. } = &asked;
            let answer = match can_ask {
                true => terminal.ask(question(host, &asked)).await,
                false => None,
            };
            match answer.as_ref().and_then(yes_or_no) {
                Some(allow) => {
                    let answered = grants.confirm(|p, u| p == profile && u == *uid, allow);
                    if answered.is_empty() {
                        terminal.notice("that was answered elsewhere meanwhile");
                    }
                }
                None => {
                    terminal.warning(&format!(
                        "{who} on {host} asks for `{profile}` and waits: `broker approve {host}` or `broker deny {host}` \
                         from another terminal"
                    ));
                }
            }
            told.push(asked);
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn question(host: &str, asked: &Waiting) -> Question {
    let says = asked.user_agent.as_ref().map(|agent| {
        let agent: String = printable::one_line(agent).chars().take(80).collect();
        format!(" (it says that it is `{agent}`)")
    });
    let text = format!(
        "broker: {} on {host} asks for `{}`{}; allow it from now on? [y/N] ",
        who(asked),
        asked.profile,
        says.unwrap_or_default()
    );
    Question { text, echo: true }
}

fn who(asked: &Waiting) -> String {
    match asked.uid {
        Some(uid) => format!("a process of uid {uid}"),
        None => "somebody".to_owned(),
    }
}

fn yes_or_no(answer: &secrecy::SecretString) -> Option<bool> {
    use secrecy::ExposeSecret as _;
    Some(matches!(answer.expose_secret().trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// What wakes us while nothing happens: a laptop that slept may have slept through the end.
const LOOK: Duration = Duration::from_secs(30);

/// Time to save what one is doing.
const NOTICE: Duration = Duration::from_secs(5 * 60);

/// Ten years: more is a mistake.
const LONGEST: u64 = 3650 * 86400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("8h", 28800), ("2d", 172_800), ("1h30m", 5400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0s", "5", "h", "1x", "-1h", "1h30", "99999999999999999999h", "4000d", "1 h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_end_is_told_once_and_again_after_it_was_put_off() {
        let mut alarm = Alarm::new(Duration::from_secs(100));
        let look = |alarm: &mut Alarm, gone| alarm.look(Duration::from_secs(gone));
        assert!(matches!(look(&mut alarm, 10), Look::Wait(())));
        assert_eq!(alarm.next(Duration::from_secs(10)), Duration::from_secs(70));
        assert!(matches!(look(&mut alarm, 80), Look::Soon(left) if left == Duration::from_secs(20)));
        assert!(matches!(look(&mut alarm, 90), Look::Wait(())));
        assert!(matches!(look(&mut alarm, 0), Look::Wait(())), "somebody asked");
        assert!(matches!(look(&mut alarm, 99), Look::Soon(_)));
        assert!(matches!(look(&mut alarm, 100), Look::Over));
    }

    #[test]
    fn only_yes_is_yes() {
        for (answer, allow) in [("y", true), (" YES ", true), ("", false), ("n", false), ("yikes", false)] {
            assert_eq!(yes_or_no(&answer.to_owned().into()), Some(allow), "{answer:?}");
        }
    }
}
