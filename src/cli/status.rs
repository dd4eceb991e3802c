//! `broker status`: every tunnel of this user, what it serves, and who asked.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::json;

use super::{
    failure::{Failure, Kind},
    limits::spoken,
    stop_signal,
    terminal::Terminal,
};
use crate::{
    clock::Clock,
    config::Environment,
    control::{
        client::{self, Found},
        message::{Profile, Report, Requests, State, VERSION},
    },
    printable::one_line,
};

/// Show the tunnels that run, their roles, and who asked for what.
///
/// Every `broker connect` of yours is found, on whatever terminal it runs. Nothing is changed, but sockets of processes
/// that were killed are removed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  broker status
  broker status --watch                             until Ctrl-C
  broker status --json | jq -r '.tunnels[].host'

The object that --json prints has `version` (1), `tunnels` and `silent` (processes that do not answer: `pid`, `error`).
A tunnel has `id`, `pid`, `broker` (its version), `host`, `destination`, `state` (starting, up, reconnecting, stopping),
`since`, `started_at`, `ends_at`, `trouble`, `port`, `socket`, `files`, `directory`, and the lists
`profiles` (`profile`, `role`, `default`, `expires_at`, `on_request`, `trouble`, `requests`),
`refused` and each `requests` (`uid`, `allowed`, `refused`, `last_at`), `waiting` (`profile`, `uid`, `user_agent`, `since`).
Times are UTC, as 2026-01-31T12:00:00Z; what is not known is null. Fields may be added, and none will change.")]
pub(super) struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show it again whenever it changes, until Ctrl-C; with --json one object per line
    #[arg(short, long)]
    watch: bool,
}

/// Runs `broker status`.
pub(super) async fn run(
    arguments: &Arguments,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let clock = Clock::system();
    let directories = environment.runtime_directories();
    if !arguments.watch {
        let found = client::find(&directories).await;
        if found.tunnels.is_empty() && found.silent.is_empty() && !arguments.json {
            terminal.notice("no tunnel runs here; `broker connect HOST` starts one");
            return Ok(ExitCode::SUCCESS);
        }
        let text = if arguments.json { object(&found) } else { table(&found, clock.now()) };
        terminal.data(text.as_bytes()).map_err(not_printed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stop = stop_signal().map_err(|e| Failure::new(Kind::Failed, e))?;
    let mut screen = Screen::new(io::stdout().is_terminal() && !arguments.json);
    let watching = async {
        let mut ticks = tokio::time::interval(LOOK);
        let mut last = String::new();
        loop {
            ticks.tick().await;
            let found = client::find(&directories).await;
            let text = if arguments.json {
                object(&found)
            } else if screen.live || !found.tunnels.is_empty() || !found.silent.is_empty() {
                table(&found, clock.now())
            } else {
                "no tunnel runs here\n".to_owned()
            };
            // What is live shows the seconds pass; elsewhere a line is for what has changed.
            let key = if arguments.json { text.clone() } else { table(&found, SystemTime::UNIX_EPOCH) };
            if screen.live || key != last {
                last = key;
                terminal.data(screen.frame(&text).as_bytes()).map_err(not_printed)?;
            }
        }
    };
    tokio::select! {
        failed = watching => failed,
        _ = stop => Err(super::host::interrupted()),
    }
}

fn not_printed(error: io::Error) -> Failure {
    Failure::new(Kind::Failed, error)
}

/// What is on the terminal.
struct Screen {
    live: bool,
    lines: usize,
}

impl Screen {
    fn new(live: bool) -> Self {
        Self { live, lines: 0 }
    }

    /// Returns what shows `text` in the place of the last one: only on a terminal, and only lines that fit on it, because
    /// one that goes on in the next row cannot be taken back.
    fn frame(&mut self, text: &str) -> String {
        if !self.live {
            return text.to_owned();
        }
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let positive = |size: u16, default: usize| if size == 0 { default } else { usize::from(size) };
        let columns = size.map_or(80, |size| positive(size.ws_col, 80));
        let rows = size.map_or(24, |size| positive(size.ws_row, 24));
        let mut frame = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        };
        let text = if text.is_empty() { "no tunnel runs here\n" } else { text };
        self.lines = 0;
        for line in text.lines().take(rows.saturating_sub(1).max(1)) {
            frame.extend(line.chars().take(columns.saturating_sub(1)));
            frame.push('\n');
            self.lines += 1;
        }
        frame
    }
}

/// Returns the object that `--json` prints, in one line.
fn object(found: &Found) -> String {
    let tunnels: Vec<&Report> = found.tunnels.iter().map(|(_, report)| report).collect();
    let silent: Vec<_> = found
        .silent
        .iter()
        .map(|(pid, error)| json!({ "pid": pid, "error": crate::causes::chain(error) }))
        .collect();
    format!("{}\n", json!({ "version": VERSION, "tunnels": tunnels, "silent": silent }))
}

/// Returns what a person reads: a line for each tunnel, and one for each of its profiles below it.
fn table(found: &Found, now: SystemTime) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut notes: Vec<(usize, String)> = Vec::new();
    for (_, report) in &found.tunnels {
        rows.push(vec![
            one_line(&report.host),
            reached(report),
            state(report, now),
            report.destination.clone(),
        ]);
        for profile in &report.profiles {
            rows.push(vec![format!("  {}", one_line(&profile.profile)), role(profile), expiry(profile, now)]);
            notes.push((rows.len(), format!("    {}", asked(&profile.requests, now))));
            if let Some(trouble) = &profile.trouble {
                notes.push((rows.len(), format!("    ! {}", one_line(trouble))));
            }
        }
        if report.profiles.is_empty() {
            notes.push((rows.len(), "  nothing is served (`broker grant` changes that)".to_owned()));
        }
        for refused in &report.refused {
            let who = refused.uid.map_or("somebody".to_owned(), |uid| format!("uid {uid}"));
            let ago = ago(refused.last_at, now);
            notes.push((rows.len(), format!("  refused: {who} {} times, {ago}", refused.refused)));
        }
        for waiting in &report.waiting {
            let who = waiting.uid.map_or("somebody".to_owned(), |uid| format!("uid {uid}"));
            let says = waiting.user_agent.as_deref().map(|agent| format!(" (says: {})", one_line(agent)));
            notes.push((
                rows.len(),
                format!(
                    "  waits for `broker approve {}`: {who} for {}{}",
                    one_line(&report.host),
                    one_line(&waiting.profile),
                    says.unwrap_or_default()
                ),
            ));
        }
        if let Some(trouble) = &report.trouble {
            notes.push((rows.len(), format!("  ! {}", one_line(trouble))));
        }
    }
    let mut text = aligned(&rows, &notes);
    for (pid, error) in &found.silent {
        text.push_str(&format!("? process {pid}: {}\n", one_line(&crate::causes::chain(error))));
    }
    text
}

/// Returns the rows in columns, with the notes behind the rows whose number they have.
fn aligned(rows: &[Vec<String>], notes: &[(usize, String)]) -> String {
    let mut widths = [0; 4];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, row) in (1..).zip(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
        for (_, note) in notes.iter().filter(|(after, _)| *after == number) {
            text.push_str(note);
            text.push('\n');
        }
    }
    text
}

fn state(report: &Report, now: SystemTime) -> String {
    let word = match report.state {
        State::Starting => "starting",
        State::Up => "up",
        State::Reconnecting => "reconnecting",
        State::Stopping => "stopping",
        State::Unknown => "?",
    };
    let mut text = format!("{word} {}", spoken(now.duration_since(report.since).unwrap_or_default()));
    if let Some(end) = report.ends_at {
        text.push_str(&format!(", ends in {}", spoken(end.duration_since(now).unwrap_or_default())));
    }
    text
}

fn reached(report: &Report) -> String {
    let ways = [
        report.port.map(|port| format!("127.0.0.1:{port}")),
        report.socket.is_some().then(|| "socket".to_owned()),
        report.files.then(|| "files".to_owned()),
    ];
    let ways: Vec<String> = ways.into_iter().flatten().collect();
    format!("{} (process {})", if ways.is_empty() { "-".to_owned() } else { ways.join(" + ") }, report.pid)
}

fn role(profile: &Profile) -> String {
    let role = profile.role.as_deref().map_or("-".to_owned(), one_line);
    if profile.default { format!("{role} (default)") } else { role }
}

fn expiry(profile: &Profile, now: SystemTime) -> String {
    match profile.expires_at {
        Some(end) => format!("ends in {}", spoken(end.duration_since(now).unwrap_or_default())),
        None if profile.on_request => "when asked for".to_owned(),
        None => "no credentials".to_owned(),
    }
}

fn asked(requests: &[Requests], now: SystemTime) -> String {
    let told: Vec<String> = requests
        .iter()
        .map(|request| {
            let who = request.uid.map_or("somebody".to_owned(), |uid| format!("uid {uid}"));
            let refused =
                if request.refused > 0 { format!(" + {} refused", request.refused) } else { String::new() };
            let ago = ago(request.last_at, now);
            format!("{who}: {}{refused}, {ago}", request.allowed)
        })
        .collect();
    if told.is_empty() { "nobody asked yet".to_owned() } else { told.join("; ") }
}

fn ago(then: SystemTime, now: SystemTime) -> String {
    format!("{} ago", spoken(now.duration_since(then).unwrap_or_default()))
}

/// As often as a person can see a difference.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        serde_json::from_value(json!({
            "id": 1, "pid": 77, "broker": "0.1.0", "host": "bastion\u{1b}[2J", "destination": "ada@bastion:22",
            "state": "up", "since": "2026-01-31T12:00:00Z", "started_at": "2026-01-31T12:00:00Z",
            "ends_at": "2026-01-31T20:00:00Z", "trouble": null, "port": 4144, "socket": "/run/s", "files": false,
            "directory": "/run/b", "later": "a field that we do not know",
            "profiles": [
                { "profile": "dev", "role": "123456789012/Dev", "default": true, "expires_at": "2026-01-31T13:05:00Z",
                  "requests": [{ "uid": 1000, "allowed": 3, "refused": 1, "last_at": "2026-01-31T12:01:00Z" }] },
                { "profile": "audit", "role": null, "default": false, "expires_at": null, "on_request": true,
                  "trouble": "log in\u{7}", "requests": [] },
            ],
            "refused": [{ "uid": 65534, "allowed": 0, "refused": 9, "last_at": "2026-01-31T12:01:00Z" }],
            "waiting": [{ "profile": "audit", "uid": 1000, "user_agent": "aws-cli/2", "since": "2026-01-31T12:01:00Z" }],
        }))
        .unwrap()
    }

    #[test]
    fn the_table_says_everything_and_nothing_raw() {
        let report = report();
        let now = report.since + Duration::from_secs(120);
        let peer = serde_json::to_value(&report).unwrap();
        assert_eq!(peer["since"], "2026-01-31T12:00:00Z", "times are written as they are read");
        let text = table_of(&[report], now);
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
        for part in [
            "up 2 min, ends in 7 h 58 min",
            "127.0.0.1:4144 + socket (process 77)",
            "123456789012/Dev (default)",
            "ends in 1 h 3 min",
            "uid 1000: 3 + 1 refused, 1 min ago",
            "when asked for",
            "nobody asked yet",
            "refused: uid 65534 9 times",
            ": uid 1000 for audit (says: aws-cli/2)",
            "! log in",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    fn table_of(reports: &[Report], now: SystemTime) -> String {
        let tunnels = reports.iter().map(|report| (client::Peer::nobody(), report.clone())).collect();
        table(&Found { tunnels, silent: Vec::new() }, now)
    }

    #[test]
    fn a_frame_takes_back_exactly_the_lines_of_the_last() {
        let mut screen = Screen::new(true);
        assert_eq!(screen.frame("a\nb\n"), "a\nb\n");
        assert_eq!(screen.frame("c\n"), "\u{1b}[2A\r\u{1b}[Jc\n");
        let long = "x".repeat(500);
        assert!(screen.frame(&long).lines().all(|line| line.chars().count() < 100));
        let mut plain = Screen::new(false);
        assert_eq!((plain.frame("a\n"), plain.frame("b\n")), ("a\n".to_owned(), "b\n".to_owned()));
    }
}
