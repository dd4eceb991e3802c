//! Every line that is printed and every prompt; the only place that touches the terminal.
//!
//! - Data goes to stdout, everything for people to stderr with the prefix `broker:`.
//! - Messages are lower-case fragments; errors have a cause and a hint on lines of their own.
//! - On a terminal each step of the start is one line that is rewritten when it is done; elsewhere a line when
//!   it is done. Nothing is said only by colour.
//! - Under `--log-format json` stderr holds one JSON object per line and nothing else.
//! - Prompts go to `/dev/tty`, so that stdin and stdout can be pipes.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use secrecy::SecretString;
use serde_json::json;
use zeroize::Zeroizing;

use super::{askpass::Askpass, failure::Failure, stderr::Stderr};
use crate::{
    clock::Clock,
    human::{BoxFuture, Human, Question},
    printable::printable,
    tunnel::{Event, Step},
};

/// How stderr is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Color {
    Always,
    Auto,
    Never,
}

/// What decides how we talk.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    pub(crate) format: LogFormat,
    pub(crate) color: Color,
    /// `NO_COLOR` is set and not empty (no-color.org), or `TERM=dumb`.
    pub(crate) no_color: bool,
    pub(crate) quiet: bool,
    /// Nobody is asked anything.
    pub(crate) batch: bool,
    /// What opens a URL: `BROWSER`, or the platform's opener; `None` when no browser is wanted or can be there.
    pub(crate) browser: Option<String>,
    /// What asks where there is no terminal.
    pub(crate) askpass: Askpass,
}

/// The terminal, or what stands in its place.
pub(crate) struct Terminal {
    style: Style,
    clock: Clock,
    live: AtomicBool,
    colored: AtomicBool,
    stderr: Stderr,
    state: Mutex<State>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    step: Option<(String, Instant)>,
    /// The settings to go back to, with the terminal they belong to.
    saved: Option<(File, Termios)>,
    browsers: Vec<Child>,
}

impl Terminal {
    /// Looks at stderr once and decides how to talk.
    pub(crate) fn new(style: Style, clock: Clock) -> Self {
        let tty = io::stderr().is_terminal();
        let colored = match style.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => tty && !style.no_color,
        } && style.format == LogFormat::Text;
        let live = tty && style.format == LogFormat::Text && !style.quiet;
        let (format, now) = (style.format, clock.clone());
        let stderr = Stderr::new(move |count| match format {
            LogFormat::Text => format!("broker: {count} lines were not shown: nobody read them\n"),
            LogFormat::Json => json_line("missed", [("lines", json!(count))], &now),
        });
        let asking = tokio::sync::Mutex::default();
        let (live, colored) = (AtomicBool::new(live), AtomicBool::new(colored));
        Self { style, clock, live, colored, stderr, state: Mutex::default(), asking }
    }

    /// From now on stderr is a file.
    pub(super) fn detach(&self) {
        self.end_step_line();
        self.stderr.flush();
        self.live.store(false, Relaxed);
        self.colored.store(self.style.color == Color::Always, Relaxed);
    }

    /// Whether a program reads what we say.
    pub(super) fn is_json(&self) -> bool {
        self.style.format == LogFormat::Json
    }

    fn live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// What else writes to stderr goes the same way.
    pub(super) fn stderr(&self) -> Stderr {
        self.stderr.clone()
    }

    /// Writes data to stdout, after all that was said before.
    pub(crate) fn data(&self, data: &[u8]) -> io::Result<()> {
        self.stderr.flush();
        let mut stdout = io::stdout().lock();
        stdout.write_all(data)?;
        stdout.flush()
    }

    /// Says what happened to the tunnel.
    pub(crate) fn event(&self, event: &Event) {
        if self.style.format == LogFormat::Json {
            if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(event) {
                self.json(fields);
            }
            return;
        }
        match event {
            Event::Started { step, subject } => self.begin(&words(*step, subject).0),
            Event::Done { step, subject } => self.finish(&words(*step, subject).1),
            Event::Notice { message } => self.notice(message),
            Event::Warning { message } => self.warning(message),
            Event::Ready { host, port, socket, directory, profiles, .. } => {
                let [first, rest @ ..] = profiles.as_slice() else { return };
                let also = match rest {
                    [] => String::new(),
                    rest => format!(" (also: {})", rest.join(", ")),
                };
                let from = match (port, socket) {
                    (Some(port), Some(_)) => format!("127.0.0.1:{port} and a socket of yours"),
                    (Some(port), None) => format!("127.0.0.1:{port}"),
                    (None, Some(socket)) => socket.clone(),
                    (None, None) => format!("files in {directory}"),
                };
                self.notice(&format!("AWS SDKs on {host} get `{first}`{also} from {from}"));
            }
            Event::Lost { host, reason } => {
                self.end_step_line();
                self.warning(&format!("{host}: {reason}; connecting again"));
            }
            Event::Retrying { host, reason, wait_ms } => self.warning(&format!(
                "{host}: {reason}; trying again{}",
                match wait_ms / 1000 {
                    0..10 => String::new(),
                    wait => format!(" in {wait} s"),
                }
            )),
            Event::Back { host, after_ms, port, socket, .. } => {
                let way = match (port, socket) {
                    (Some(port), _) => format!(" on port {port}"),
                    (None, Some(_)) => " through the socket".to_owned(),
                    (None, None) => " in files".to_owned(),
                };
                let after = seconds(Duration::from_millis(*after_ms));
                self.notice(&format!(
                    "{host}: back after {after}; programs there get credentials{way} as before"
                ));
            }
            Event::Stopped { host, reason, stays_until: Some(until), lingers: true, .. } => {
                let left = until.duration_since(self.clock.now()).unwrap_or_default();
                let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).div_ceil(1000);
                let left =
                    if left < 120 { format!("{left} s") } else { format!("{} min", left.div_ceil(60)) };
                let clock = crate::clock::utc(*until).and_then(|utc| Some(utc.get(11..19)?.to_owned()));
                self.notice(&format!(
                    "{host}: {reason}; role credentials stay there until {} UTC at the latest (in {left}), and go by \
                     themselves; `broker clean {host}` removes them now",
                    clock.unwrap_or_default(),
                ));
            }
            Event::Stopped { host, host_clean, reason, stays_until, .. } => {
                if *host_clean {
                    self.notice(&format!("{host}: {reason}; no credentials were left there"));
                } else if let Some(until) = stays_until {
                    let now = self.clock.now();
                    let minutes = until.duration_since(now).unwrap_or_default().as_secs().div_ceil(60);
                    let clock = crate::clock::utc(*until).and_then(|utc| Some(utc.get(11..16)?.to_owned()));
                    self.warning(&format!(
                        "{host}: {reason}; the role credentials that lie there could not be removed: they end at {} UTC \
                         (in {minutes} min), and the next connection from here removes them",
                        clock.unwrap_or_default(),
                    ));
                } else {
                    self.warning(&format!("{host}: {reason}; what lay there removes itself within 45 s"));
                }
            }
        }
    }

    /// Refreshes the elapsed time of the step under way.
    pub(crate) fn tick(&self) {
        if let Some(line) = self.live_line() {
            self.err(&line);
        }
    }

    fn live_line(&self) -> Option<String> {
        let state = self.lock();
        // While the terminal is not as we found it, somebody types at a prompt or at the host's shell.
        let (text, since) = state.step.as_ref().filter(|_| self.live() && state.saved.is_none())?;
        let elapsed = since.elapsed();
        (elapsed > Duration::from_millis(900)).then(|| format!("\r\x1b[K  {text} … {}", seconds(elapsed)))
    }

    /// Says one sentence that needs no action.
    pub(crate) fn notice(&self, message: &str) {
        if self.style.quiet {
            return;
        }
        self.say("notice", message, "");
    }

    /// Says what needs attention.
    pub(crate) fn warning(&self, message: &str) {
        self.say("warning", message, "33");
    }

    /// Says what went wrong and the way out. `remote`: under a remote shell or command, where the exit code is 255.
    pub(crate) fn failure(&self, failure: &Failure, remote: bool) {
        if self.style.format == LogFormat::Json {
            let mut fields = serde_json::Map::new();
            fields.insert("event".into(), "error".into());
            if let Some(host) = &failure.host {
                fields.insert("host".into(), host.as_str().into());
            }
            fields.insert("kind".into(), failure.kind.name().into());
            fields.insert("code".into(), failure.kind.code().into());
            fields.insert("message".into(), failure.to_string().into());
            fields.insert("causes".into(), failure.causes().into());
            if let Some(hint) = &failure.hint {
                fields.insert("hint".into(), hint.as_str().into());
            }
            self.json(fields);
            return;
        }
        self.end_step_line();
        self.err(&self.described(failure, remote));
    }

    fn described(&self, failure: &Failure, remote: bool) -> String {
        // Texts of others were made safe where they came in; here ends what was missed.
        let what = match &failure.host {
            Some(host) => format!("{host}: {failure}"),
            None => failure.to_string(),
        };
        let mut text = format!("broker: {}: {}\n", self.paint("31;1", "error"), printable(&what));
        for cause in failure.causes() {
            text.push_str(&format!("broker: caused by: {}\n", printable(&cause)));
        }
        if let Some(hint) = &failure.hint {
            text.push_str(&format!("broker: {}: {}\n", self.paint("36", "hint"), printable(hint)));
        }
        if remote {
            text.push_str(&format!("broker: failed: {} ({})\n", failure.kind.name(), failure.kind.code()));
        }
        text
    }

    /// Puts the terminal on `tty` into raw mode until [`Self::restore`].
    pub(crate) fn raw(&self) -> io::Result<Termios> {
        self.stderr.flush();
        let tty = open_tty()?;
        let before = termios::tcgetattr(&tty)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Drain, not flush: what the person typed ahead belongs to the remote shell.
        termios::tcsetattr(&tty, OptionalActions::Drain, &raw)?;
        self.lock().saved = Some((tty, before.clone()));
        Ok(before)
    }

    /// Whether what is said is for people to read, and may be more than lines.
    pub(super) fn is_for_people(&self) -> bool {
        self.style.format == LogFormat::Text && !self.style.batch
    }

    /// Writes to the screen as it is, after [`Self::raw`].
    pub(super) fn draw(&self, text: &str) {
        self.err(text);
        self.stderr.flush();
    }

    /// Returns the rows and columns of the window.
    pub(super) fn window(&self) -> (usize, usize) {
        let size = termios::tcgetwinsize(io::stderr()).map(|size| (size.ws_row.into(), size.ws_col.into()));
        // A terminal that does not know is taken for the smallest that there was.
        size.ok().filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((24, 80))
    }

    /// Puts the terminal back as it was found. Every way out of the program passes here.
    pub(crate) fn restore(&self) {
        let mut state = self.lock();
        if let Some((tty, before)) = state.saved.take() {
            // Nothing can be done about a terminal that is gone.
            termios::tcsetattr(&tty, OptionalActions::Now, &before).unwrap_or_default();
        }
        for child in &mut state.browsers {
            drop(child.try_wait());
        }
    }

    /// Takes back what a program on the host that is lost may have set on the screen: the second screen, mouse and
    /// paste reports, keypad, colours. What was not set stays as it is.
    pub(crate) fn untangle(&self) {
        if io::stdout().is_terminal() {
            let reset = "\x1b[?47l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?25h\x1b[0m\r\n";
            self.data(reset.as_bytes()).unwrap_or_default();
        }
    }

    /// Whether there is a browser to open.
    pub(crate) fn has_browser(&self) -> bool {
        self.style.browser.is_some() && !self.style.batch
    }

    fn begin(&self, text: &str) {
        self.lock().step = Some((text.to_owned(), Instant::now()));
        if self.live() {
            self.err(&format!("\r\x1b[K  {text} …"));
        }
    }

    fn finish(&self, text: &str) {
        let since = self.lock().step.take().map(|(_, since)| since.elapsed());
        if self.style.quiet {
            return;
        }
        let elapsed = since.map(|e| format!(" ({})", seconds(e))).unwrap_or_default();
        let start = if self.live() { "\r\x1b[K" } else { "" };
        self.err(&format!("{start}{} {text}{}\n", self.paint("32", "✓"), self.paint("2", &elapsed)));
    }

    fn say(&self, level: &'static str, message: &str, color: &str) {
        if self.style.format == LogFormat::Json {
            let fields = [("event", level), ("message", message)];
            self.json(fields.map(|(k, v)| (k.to_owned(), v.into())).into_iter().collect());
            return;
        }
        self.end_step_line();
        let level = match level {
            "notice" => String::new(),
            level => format!("{}: ", self.paint(color, level)),
        };
        // In raw mode the terminal does not return the carriage by itself.
        let newline = if self.lock().saved.is_some() { "\r\n" } else { "\n" };
        self.err(&format!("broker: {level}{}{newline}", message.replace('\n', newline)));
    }

    fn json(&self, fields: serde_json::Map<String, serde_json::Value>) {
        self.err(&stamped(fields, &self.clock));
    }

    fn end_step_line(&self) {
        if self.live() && self.lock().step.is_some() {
            self.err("\r\x1b[K");
        }
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.colored.load(Relaxed) && !color.is_empty() {
            format!("\x1b[{color}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn err(&self, text: &str) {
        self.stderr.write(text.as_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.stderr.flush();
    }
}

impl Human for Terminal {
    fn ask(&self, question: Question) -> BoxFuture<'_, Option<SecretString>> {
        Box::pin(async move {
            if self.style.batch {
                return None;
            }
            let _one_at_a_time = self.asking.lock().await;
            self.end_step_line();
            self.stderr.flush();
            let tty = if self.style.askpass.goes_first() { None } else { open_tty().ok() };
            let Some(tty) = tty else {
                if !self.style.askpass.stands_in() {
                    return None;
                }
                let askpass = self.style.askpass.clone();
                let asked = tokio::task::spawn_blocking(move || askpass.ask(&question.text, question.echo));
                return asked.await.ok()?;
            };
            let before = termios::tcgetattr(&tty).ok()?;
            let raw_until_now = self.lock().saved.is_some();
            if raw_until_now {
                // A prompt in the middle of a raw session would fight the shell for every key.
                return None;
            }
            let mut asking = before.clone();
            asking.local_modes.set(LocalModes::ECHO, question.echo);
            asking.local_modes.insert(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHONL);
            // Before anything changes, or there would be no way back.
            self.lock().saved = Some((tty.try_clone().ok()?, before));
            if termios::tcsetattr(&tty, OptionalActions::Flush, &asking).is_err() {
                self.restore();
                return None;
            }
            let answer = tokio::task::spawn_blocking(move || read_line(tty, &question.text)).await;
            self.restore();
            answer.ok()?
        })
    }

    fn tell(&self, text: &str) {
        if self.style.format == LogFormat::Json {
            self.say("notice", text.trim_end(), "");
        } else {
            self.end_step_line();
            self.err(&format!("{}\n", text.trim_end()));
        }
    }

    fn browse(&self, url: &str) -> bool {
        let Some(browser) = self.style.browser.as_deref().filter(|_| !self.style.batch) else { return false };
        // BROWSER may be a list, and an entry may have words and a %s (the de-facto form of Debian and Python).
        browser.split(':').filter(|entry| !entry.trim().is_empty()).any(|entry| {
            let mut words: Vec<String> =
                entry.split_whitespace().map(|word| word.replace("%s", url)).collect();
            if !entry.contains("%s") {
                words.push(url.to_owned());
            }
            let Some((program, arguments)) = words.split_first() else { return false };
            let child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            match child {
                Ok(child) => {
                    self.lock().browsers.push(child);
                    true
                }
                Err(_) => false,
            }
        })
    }
}

/// Returns the line of an event.
pub(super) fn json_line<'a>(
    event: &str,
    fields: impl IntoIterator<Item = (&'a str, serde_json::Value)>,
    clock: &Clock,
) -> String {
    let mut all = serde_json::Map::from_iter([("event".to_owned(), event.into())]);
    all.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
    stamped(all, clock)
}

fn stamped(mut fields: serde_json::Map<String, serde_json::Value>, clock: &Clock) -> String {
    let now = time::OffsetDateTime::from(clock.now());
    let time = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
    fields.insert("time".into(), time.into());
    format!("{}\n", serde_json::Value::Object(fields))
}

/// Returns what is said while a step runs, and when it is done.
fn words(step: Step, subject: &str) -> (String, String) {
    match step {
        Step::SignIn => (format!("signing in to {subject}"), format!("signed in to {subject}")),
        Step::Credentials => (format!("getting {subject}"), format!("got {subject}")),
        Step::Connect => (format!("connecting to {subject}"), format!("connected to {subject}")),
        Step::Forward => {
            (format!("opening the tunnel on {subject}"), format!("tunnel verified on {subject}"))
        }
        Step::Install => (format!("setting up {subject}"), format!("set up {subject}")),
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

fn open_tty() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/tty")
}

/// Reads one line from the terminal; `None` at end of input.
fn read_line(mut tty: File, prompt: &str) -> Option<SecretString> {
    tty.write_all(prompt.as_bytes()).ok()?;
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_ANSWER));
    let mut byte = [0u8; 1];
    loop {
        match tty.read(&mut byte) {
            Ok(0) if line.is_empty() => return None,
            Ok(0) => break,
            Ok(_) if byte == [b'\n'] => break,
            Ok(_) if line.len() < LONGEST_ANSWER => line.extend_from_slice(&byte),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(SecretString::from(String::from_utf8_lossy(&line).into_owned()))
}

/// A terminal in canonical mode gives at most 4096 bytes a line (termios(3)).
const LONGEST_ANSWER: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn terminal() -> Terminal {
        let style = Style {
            format: LogFormat::Text,
            color: Color::Never,
            no_color: true,
            quiet: false,
            batch: false,
            browser: None,
            askpass: Askpass::default(),
        };
        let terminal = Terminal::new(style, Clock::system());
        terminal.live.store(true, Relaxed);
        terminal
    }

    #[test]
    fn a_prompt_is_not_written_over_while_a_person_types() {
        let terminal = terminal();
        let since = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        terminal.lock().step = Some(("connecting to bastion".to_owned(), since));
        assert!(terminal.live_line().unwrap().contains("connecting to bastion … 2.0 s"));
        let pty =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        let before = termios::tcgetattr(&pty).unwrap();
        terminal.lock().saved = Some((File::from(pty), before));
        assert_eq!(terminal.live_line(), None);
        terminal.restore();
        assert!(terminal.live_line().is_some());
    }

    #[test]
    fn a_failure_reaches_the_terminal_without_escapes() {
        let failure = Failure::new(super::super::failure::Kind::Failed, "it said \u{1b}[2J");
        assert_eq!(
            terminal().described(&failure, true),
            "broker: error: it said \u{fffd}[2J\nbroker: failed: failed (1)\n"
        );
    }
}
