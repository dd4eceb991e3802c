//! What the host has that we need: programs that can speak to a socket, and the right time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::helper::{Error, Helper};

/// `--unix-socket` came with this version of curl.
const CURL_WITH_SOCKETS: [u32; 2] = [7, 40];

/// AWS refuses a signature that is five minutes off.
const SKEW_LIMIT: Duration = Duration::from_secs(300);

/// A clock this far off is not kept by anything.
const SKEW_NOTICE: Duration = Duration::from_secs(30);

/// What the host said.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Survey {
    /// The version of curl, as it tells it.
    pub(crate) curl: Option<String>,
    pub(crate) python3: bool,
    pub(crate) nc: bool,
    /// The host's clock.
    pub(crate) time: Option<SystemTime>,
}

/// Which program asks at our socket, and whether it can.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Fetcher {
    Curl(String),
    /// It cannot ask at a socket, and there is nothing else.
    OldCurl(String),
    Python,
    Netcat,
    Nothing,
}

/// How far the host's clock is off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Skew {
    Unknown,
    Fine,
    Noticeable(Duration),
    TooMuch(Duration),
}

/// Asks the host.
pub(crate) async fn survey(helper: &Helper) -> Result<Survey, Error> {
    let answer = helper.run("survey".to_owned(), None).await?;
    Ok(Survey::read(&answer.rows))
}

impl Survey {
    fn read(rows: &[String]) -> Self {
        let mut survey = Self::default();
        for row in rows {
            match row.split_once(' ').unwrap_or((row, "")) {
                ("curl", version) => survey.curl = Some(crate::printable::one_line(version)),
                ("python3", _) => survey.python3 = true,
                ("nc", _) => survey.nc = true,
                ("time", seconds) => {
                    let since = seconds.parse().ok().map(Duration::from_secs);
                    survey.time = since.and_then(|since| UNIX_EPOCH.checked_add(since));
                }
                _ => {}
            }
        }
        survey
    }

    /// Returns which program `credential_process` uses.
    pub(crate) fn fetcher(&self) -> Fetcher {
        match &self.curl {
            Some(version) if speaks_sockets(version) => Fetcher::Curl(version.clone()),
            _ if self.python3 => Fetcher::Python,
            _ if self.nc => Fetcher::Netcat,
            Some(version) => Fetcher::OldCurl(version.clone()),
            None => Fetcher::Nothing,
        }
    }

    /// Compares the host's clock with ours, which showed `before` and `after` around the question.
    pub(crate) fn skew(&self, before: SystemTime, after: SystemTime) -> Skew {
        let Some(time) = self.time else { return Skew::Unknown };
        let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_default();
        // The host tells whole seconds.
        let off = apart(before, time + Duration::from_secs(1)).max(apart(time, after));
        match off {
            off if off >= SKEW_LIMIT => Skew::TooMuch(off),
            off if off >= SKEW_NOTICE => Skew::Noticeable(off),
            _ => Skew::Fine,
        }
    }
}

fn speaks_sockets(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    [numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()] >= CURL_WITH_SOCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(rows: &[&str]) -> Survey {
        Survey::read(&rows.iter().map(|row| (*row).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_program_is_the_one_that_the_script_takes() {
        assert_eq!(survey(&["curl 7.88.1", "python3"]).fetcher(), Fetcher::Curl("7.88.1".into()));
        assert_eq!(survey(&["curl 8.5.0-DEV"]).fetcher(), Fetcher::Curl("8.5.0-DEV".into()));
        assert_eq!(survey(&["curl 7.29.0", "python3"]).fetcher(), Fetcher::Python);
        assert_eq!(survey(&["curl 7.29.0", "nc"]).fetcher(), Fetcher::Netcat);
        assert_eq!(survey(&["curl 7.29.0"]).fetcher(), Fetcher::OldCurl("7.29.0".into()));
        assert_eq!(survey(&["curl"]).fetcher(), Fetcher::OldCurl(String::new()));
        assert_eq!(survey(&["nc", "python3"]).fetcher(), Fetcher::Python);
        assert_eq!(survey(&["nc"]).fetcher(), Fetcher::Netcat);
        assert_eq!(survey(&[]).fetcher(), Fetcher::Nothing);
    }

    #[test]
    fn a_clock_is_judged_by_the_moment_of_the_question() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let skew = |host: u64| survey(&[&format!("time {host}")]).skew(at(10_000), at(10_020));
        assert_eq!(
            (skew(10_000), skew(10_020), skew(9_999), skew(10_040)),
            (Skew::Fine, Skew::Fine, Skew::Fine, Skew::Fine)
        );
        assert_eq!(skew(10_320), Skew::TooMuch(Duration::from_secs(300)));
        assert_eq!(skew(9_900), Skew::Noticeable(Duration::from_secs(99)));
        assert_eq!(survey(&["time x"]).skew(at(0), at(1)), Skew::Unknown);
    }
}
