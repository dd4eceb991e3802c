//! What works on a host and what does not, in the order in which a tunnel would need it. Changes nothing there: a
//! forward and a directory of ours are made, looked at, and taken away again.

use serde::Serialize;

use super::{
    DEFAULT_PORT, Visit,
    login_shell::{self, Question},
};
use crate::{
    clock::Clock,
    remote::{
        home::HomeFile,
        install::{Key, Place, Stay},
        leftovers::{State, Sweep},
        probe::{self, Attempt, Probes},
        shadow::{self, Shadow},
        sockets,
        survey::{self, Fetcher, Skew},
    },
    ssh::error::ForwardRefused,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// It works in another way, or endangers something else.
    Warning,
    /// It does not work, or not safely.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Check {
    /// A word for scripts.
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    /// What was found.
    pub(crate) message: String,
    /// The line that fixes it.
    pub(crate) fix: Option<String>,
}

impl Check {
    /// Makes a check that found nothing wrong.
    pub(crate) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, message: message.into(), fix: None }
    }

    /// Makes a check that found something.
    pub(crate) fn found(
        name: &'static str,
        level: Level,
        message: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self { name, level, message: message.into(), fix }
    }

    fn warning(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::found(name, Level::Warning, message, Some(fix.into()))
    }

    fn problem(name: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::found(name, Level::Problem, message, Some(fix.into()))
    }
}

impl Visit {
    /// Looks at everything that a tunnel to this host needs, and at what endangers it.
    pub(crate) async fn examine(&self, clock: &Clock) -> Vec<Check> {
        let mut checks = vec![Check::ok("helper", format!("our helper runs there ({})", self.facts.system))];
        checks.extend(self.token_caches());
        // Before we make a directory ourselves.
        let leftovers = self.leftovers().await;
        let tcp = self.tcp_forward().await;
        let (directory, unix) = self.directory_and_socket().await;
        let socket_works = unix.level == Level::Ok;
        checks.extend(tcp);
        checks.push(unix);
        checks.push(self.callers());
        checks.push(directory);
        checks.extend(self.programs_and_clock(clock, socket_works).await);
        checks.extend(self.shadows().await);
        checks.extend(leftovers);
        checks
    }

    fn token_caches(&self) -> Vec<Check> {
        let found = shadow::in_caches(&self.host, &self.facts.token_caches);
        if found.is_empty() {
            return vec![Check::ok("token-cache", "no token of IAM Identity Center lies there")];
        }
        let check = |Shadow { what, fix }| Check::problem("token-cache", what, fix);
        found.into_iter().map(check).collect()
    }

    /// Asks for the port, looks at who listens, and gives it back.
    async fn tcp_forward(&self) -> Vec<Check> {
        const NAME: &str = "forward-tcp";
        let refused = match self.session.forward_tcp(DEFAULT_PORT).await {
            Ok((forward, _)) => {
                let listening = self.helper.listeners(DEFAULT_PORT).await;
                self.session.cancel(forward).await;
                let mut checks = vec![Check::ok(NAME, format!("port {DEFAULT_PORT} can be forwarded"))];
                checks.push(match listening.map(|listening| sockets::verify(&listening, self.facts.uid)) {
                    Ok(Ok(_)) => Check::ok("exposure", "only processes on the host can reach it"),
                    Ok(Err(problem)) => {
                        Check::found("exposure", Level::Problem, problem.to_string(), problem.hint())
                    }
                    Err(error) => Check::found(
                        "exposure",
                        Level::Warning,
                        format!("who could reach it is not known: {error}"),
                        Some("use `--transport unix`".to_owned()),
                    ),
                });
                return checks;
            }
            Err(refused @ ForwardRefused::Denied { .. }) => refused,
            Err(broken) => {
                return vec![Check::problem(
                    NAME,
                    broken.to_string(),
                    "try again; the connection may be slow",
                )];
            }
        };
        tracing::debug!(%refused, "no port");
        let listening = self.helper.listeners(DEFAULT_PORT).await.ok();
        let any_port = match self.session.forward_tcp(0).await {
            Ok((forward, _)) => {
                self.session.cancel(forward).await;
                Attempt::Allowed
            }
            Err(ForwardRefused::Denied { .. }) => Attempt::Refused,
            Err(_) => Attempt::Untried,
        };
        let (_, unix) = self.directory_and_socket().await;
        let unix_socket = if unix.level == Level::Ok { Attempt::Allowed } else { Attempt::Refused };
        let refusal = probe::classify(
            DEFAULT_PORT,
            Probes { any_port, unix_socket },
            listening.as_ref(),
            self.facts.uid,
        );
        vec![Check::found(NAME, Level::Warning, refusal.to_string(), refusal.hint())]
    }

    /// Makes our directory with a socket in it, and removes both.
    async fn directory_and_socket(&self) -> (Check, Check) {
        const PLACE: &str = "directory";
        const SOCKET: &str = "forward-unix";
        let untried = || Check::problem(SOCKET, "there is no directory for a socket", "see `directory`");
        let Some(key) = Key::new("doctor") else { return (untried(), untried()) };
        let directory = match self.helper.directory(key, Stay::Goes).await {
            Ok(directory) => directory,
            Err(error) => {
                return (Check::found(PLACE, Level::Problem, error.to_string(), error.hint()), untried());
            }
        };
        let path = directory.path().to_owned();
        let place = match directory.place() {
            Place::Runtime | Place::SharedMemory | Place::Temporary => {
                Check::ok(PLACE, format!("our files would lie in `{path}`"))
            }
            Place::Random => Check::warning(
                PLACE,
                format!(
                    "another user holds our usual directory, so our files would lie in `{path}`, and elsewhere after a reconnect"
                ),
                "ask root to remove `/dev/shm/broker-*` and `/tmp/broker-*` that are not their user's",
            ),
            Place::Home => Check::warning(
                PLACE,
                format!("nothing but the home directory can be written, so the token would lie in `{path}`"),
                "ask for a writable `/run/user/UID`, `/dev/shm` or `/tmp`",
            ),
        };
        let socket = match self.session.forward_streamlocal(&format!("{path}/s")).await {
            Ok(forward) => {
                self.session.cancel(forward).await;
                Check::ok(SOCKET, "a unix socket can be forwarded")
            }
            Err(ForwardRefused::Denied { .. }) => Check::warning(
                SOCKET,
                "sshd does not forward a unix socket (AllowStreamLocalForwarding, DisableForwarding, or `restrict` on your key), or the path is too long",
                "ask for `AllowStreamLocalForwarding yes` in sshd_config",
            ),
            Err(broken) => {
                Check::problem(SOCKET, broken.to_string(), "try again; the connection may be slow")
            }
        };
        if let Err(error) = self.helper.remove().await {
            tracing::debug!(%error, "our directory goes with the connection");
        }
        (place, socket)
    }

    fn callers(&self) -> Check {
        const NAME: &str = "callers";
        if self.facts.shows_sockets {
            return Check::ok(NAME, "the host shows who owns a connection");
        }
        Check::warning(
            NAME,
            format!(
                "the host ({}) does not show who owns a connection (/proc/net/tcp), so no port is used there",
                self.facts.system
            ),
            "use `--transport unix`, or `--trust-host-users` if you trust every user of that host",
        )
    }

    async fn programs_and_clock(&self, clock: &Clock, socket_works: bool) -> Vec<Check> {
        const PROGRAMS: &str = "programs";
        const CLOCK: &str = "clock";
        let before = clock.now();
        let survey = match survey::survey(&self.helper).await {
            Ok(survey) => survey,
            Err(error) => {
                return vec![Check::found(PROGRAMS, Level::Problem, error.to_string(), error.hint())];
            }
        };
        let level = if socket_works { Level::Problem } else { Level::Warning };
        let programs = match survey.fetcher() {
            Fetcher::Curl(version) => Check::ok(PROGRAMS, format!("curl {version} serves `--profile NAME`")),
            Fetcher::Python => Check::ok(PROGRAMS, "python3 serves `--profile NAME`; curl would be faster"),
            Fetcher::Netcat => Check::warning(
                PROGRAMS,
                "only nc is there to serve `--profile NAME`, and not every nc knows unix sockets (`-U`)",
                "install curl on the host",
            ),
            Fetcher::OldCurl(version) => Check::found(
                PROGRAMS,
                level,
                format!("curl {version} knows no unix sockets, so `--profile NAME` does not work over one"),
                Some("install curl 7.40 or later on the host, or use `--transport tcp`".to_owned()),
            ),
            Fetcher::Nothing => Check::found(
                PROGRAMS,
                level,
                "neither curl nor python3 nor nc is there, so `--profile NAME` does not work",
                Some("install curl on the host, or use `--transport tcp` with one profile".to_owned()),
            ),
        };
        let fix = "set the clock of the host, or of this machine (`timedatectl set-ntp true`)";
        let time = match survey.skew(before, clock.now()) {
            Skew::Fine => Check::ok(CLOCK, "its clock agrees with ours"),
            Skew::Unknown => {
                Check::warning(CLOCK, "its clock is not known", "compare `date -u` on both sides")
            }
            Skew::Noticeable(off) => {
                Check::warning(CLOCK, format!("its clock and ours are {} s apart", off.as_secs()), fix)
            }
            Skew::TooMuch(off) => Check::problem(
                CLOCK,
                format!(
                    "its clock and ours are {} s apart, and AWS refuses signatures that are 300 s off",
                    off.as_secs()
                ),
                fix,
            ),
        };
        vec![programs, time]
    }

    async fn shadows(&self) -> Vec<Check> {
        const NAME: &str = "shadowing";
        let mut checks = Vec::new();
        let warning = |Shadow { what, fix }| Check::warning(NAME, what, fix);
        match login_shell::ask(&self.session, Question::Outside).await {
            Some(exported) => {
                checks.extend(shadow::in_login_shell(&self.host, &exported, false).into_iter().map(warning));
            }
            None => checks.push(Check::warning(
                NAME,
                "the login shell did not tell what it exports",
                format!("look at `ssh {} env`, and at the rc files there", self.host),
            )),
        }
        match (HomeFile::config(&self.helper).await, HomeFile::credentials(&self.helper).await) {
            (Ok(config), Ok(credentials)) => {
                let config = config.content().unwrap_or_default();
                let credentials = credentials.content().unwrap_or_default();
                checks.extend(shadow::in_files(&self.host, config, credentials).into_iter().map(warning));
            }
            (Err(error), _) | (_, Err(error)) => {
                checks.push(Check::warning(NAME, error.to_string(), "make it readable text, or remove it"));
            }
        }
        if checks.is_empty() {
            checks.push(Check::ok(NAME, "nothing there would be used instead of us"));
        }
        checks
    }

    async fn leftovers(&self) -> Vec<Check> {
        const NAME: &str = "leftovers";
        let host = &self.host;
        let fix = format!("broker clean {host}");
        let found = match self.sweep(Sweep::Look).await {
            Ok(found) => found,
            Err(error) => return vec![Check::found(NAME, Level::Problem, error.to_string(), error.hint())],
        };
        let mut checks = Vec::new();
        let mut look = |what: String, state: State| {
            match state {
            State::Dead | State::Removed | State::Stuck => {
                checks.push(Check::warning(
                    NAME,
                    format!("{what} is left from a broker that has ended"),
                    fix.clone(),
                ));
            }
            State::Elsewhere => checks.push(Check::warning(
                NAME,
                format!("{what} was made on another host that shares this home"),
                "run `broker clean` for that host",
            )),
            State::Lingers => checks.push(Check::ok(
                NAME,
                format!(
                    "{what} has role credentials that `--linger` left; they go by themselves, or at once with \
                     `broker clean {host}`"
                ),
            )),
            State::Live => checks.push(Check::ok(NAME, format!("{what} is in use by a running broker"))),
        }
        };
        let (dead, others): (Vec<_>, Vec<_>) =
            found.iter().partition(|leftover| leftover.state == State::Dead);
        let named = if dead.len() > MOST_NAMED { 1 } else { dead.len() };
        let more = match dead.len() - named {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        for leftover in dead.iter().take(named) {
            look(format!("`{}`{more}", leftover.path), leftover.state);
        }
        for leftover in others {
            look(format!("`{}`", leftover.path), leftover.state);
        }
        match self.sweep_profiles(&found, Sweep::Look).await {
            Ok(blocks) => {
                for block in blocks {
                    look(format!("the block {} in `~/.aws/config`", block.mark), block.state);
                }
            }
            // Told with what shadows us.
            Err(error) => tracing::debug!(%error, "no blocks"),
        }
        if checks.is_empty() {
            checks.push(Check::ok(NAME, "nothing of any broker is left there"));
        }
        checks
    }
}

/// One line each is for a few leftovers; more have one cause and one remedy.
const MOST_NAMED: usize = 8;
