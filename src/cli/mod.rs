//! The command line: one file per command, and the two ways in which anything is said ([`terminal`], [`failure`]).

// clap prints doc comments as they are, and hosts are written `[USER@]HOST` there.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    reason = "help texts are no documentation pages"
)]

mod askpass;
mod audit;
mod background;
mod clean;
mod completions;
mod connect;
mod console;
mod credentials;
mod defaults;
mod desk;
mod doctor;
pub(crate) mod failure;
mod ground;
mod hang_up;
mod host;
mod identity;
mod identity_env;
mod job;
mod keyboard;
mod limits;
mod log;
mod login;
mod logout;
mod man;
mod many;
mod notify;
mod pick;
mod picker;
mod prefixed;
mod profiles;
mod relogin;
mod ssh_config;
mod status;
pub(crate) mod stderr;
mod stdout;
mod steer;
pub(crate) mod terminal;
mod tunnels;

use std::{
    ffi::OsString,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    defaults::{Merged, NotMerged, Typed},
    failure::{Failure, Kind},
    terminal::{Color, LogFormat, Style, Terminal},
};
use crate::{
    causes::chain,
    clock::Clock,
    config::{Environment, file::File},
    printable,
};

/// Gives AWS SDKs on a machine that you reach by SSH short-lived credentials, and leaves nothing there.
#[derive(Debug, Parser)]
#[command(name = "broker", version, help_expected = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten, next_help_heading = "Questions and messages")]
    output: Output,

    /// Leave the terminal when the tunnel is ready, and say so through stdin
    #[arg(long, hide = true)]
    detach_when_ready: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Connect(Box<connect::Arguments>),
    Credentials(Box<credentials::Arguments>),
    Profiles(profiles::Arguments),
    Login(login::Arguments),
    Logout(logout::Arguments),
    Audit(audit::Arguments),
    Doctor(Box<doctor::Arguments>),
    Clean(Box<clean::Arguments>),
    Status(status::Arguments),
    Env(steer::Env),
    Grant(steer::Grant),
    Approve(steer::Approve),
    Deny(steer::Deny),
    Revoke(steer::Revoke),
    Stop(steer::Stop),
    Refresh(steer::Refresh),
    SshConfig(Box<ssh_config::Arguments>),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

/// How we talk; the same for every command.
#[derive(Args, Clone, Debug)]
struct Output {
    /// Ask nothing: a login, a new host key or a passphrase that is needed is an error
    #[arg(long, global = true)]
    batch: bool,

    /// Write messages to stderr as text or as one JSON object per line
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormatArgument,

    /// Use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorArgument,

    /// Log what happens inside to stderr; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Say only what needs attention
    #[arg(short, long, global = true)]
    quiet: bool,

    /// Print the sign-in address instead of opening a browser
    #[arg(long, global = true)]
    no_browser: bool,

    /// Take no option from ~/.config/broker/config.toml; its lists of hosts and what it permits hosts still count
    #[arg(long, global = true)]
    no_defaults: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormatArgument {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ColorArgument {
    /// Even into a pipe
    Always,
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Never
    Never,
}

impl Command {
    /// Returns the variable that holds a private key, where one is named.
    fn identity_env(&self) -> Option<&str> {
        let reach = match self {
            Self::Connect(arguments) => &arguments.reach,
            Self::Doctor(arguments) => &arguments.reach,
            Self::Clean(arguments) => &arguments.reach,
            Self::SshConfig(arguments) => &arguments.reach,
            _ => return None,
        };
        reach.identity_env()
    }
}

/// Parses `arguments`, runs the command, says what went wrong, returns the exit code.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = completions::answer(&arguments) {
        return code;
    }
    let typed = match Typed::read(&arguments) {
        Ok(typed) => typed,
        Err(e) => return not_understood(&e, &arguments),
    };
    let fail = |failure: Failure| {
        let style = defaults::output(&typed).map(|output| style(&output, None));
        let terminal = Terminal::new(style.unwrap_or_else(|| plain(false)), Clock::system());
        terminal.failure(&failure, typed.is_remote());
        failure.exit_code(typed.is_remote())
    };
    let mut environment = match Environment::capture() {
        Ok(environment) => environment,
        Err(e) => {
            let hint = e.hint();
            return fail(Failure::new(Kind::Failed, e).with_hint(hint));
        }
    };
    match File::load(&environment).and_then(|file| defaults::check(&file).map(|()| file)) {
        Ok(file) => environment.take_file(Ok(file)),
        Err(mistake) if typed.works_anyhow() => environment.take_file(Err(mistake)),
        Err(mistake) => {
            let hint = mistake.hint();
            return fail(Failure::new(Kind::Usage, mistake).with_hint(hint));
        }
    }
    let Merged { cli, hosts } = match typed.merge(&environment) {
        Ok(merged) => merged,
        Err(NotMerged::Words(e)) => return not_understood(&e, &arguments),
        Err(NotMerged::Other(failure)) => return fail(failure),
    };
    let remote = matches!(&cli.command, Command::Connect(arguments) if arguments.is_remote());
    if matches!(&cli.command, Command::Connect(arguments) if arguments.is_background())
        && !cli.detach_when_ready
    {
        return background::start(&arguments).unwrap_or_else(|failure| {
            let terminal = Terminal::new(style(&cli.output, Some(&environment)), Clock::system());
            terminal.failure(&failure, remote);
            failure.exit_code(remote)
        });
    }
    if let Some(name) = cli.command.identity_env() {
        match identity_env::take(name, &environment) {
            Ok(Some(key)) => environment.take_key(name, key),
            // Whoever needs it says that it is missing.
            Ok(None) => {}
            Err(failure) => {
                Terminal::new(style(&cli.output, Some(&environment)), Clock::system())
                    .failure(&failure, remote);
                return failure.exit_code(remote);
            }
        }
    }
    harden();
    // What the others do takes less, and can be aborted without harm.
    let connects = matches!(cli.command, Command::Connect(_));
    if let Err(failure) = room_for_files().and_then(|()| if connects { room_in_memory() } else { Ok(()) }) {
        Terminal::new(style(&cli.output, Some(&environment)), Clock::system()).failure(&failure, remote);
        return failure.exit_code(remote);
    }
    let terminal =
        std::sync::Arc::new(Terminal::new(style(&cli.output, Some(&environment)), Clock::system()));
    log::start(&cli.output, terminal.stderr());
    // `doctor` says it among what it found.
    if let Some(mistake) = environment.file_mistake()
        && !matches!(cli.command, Command::Doctor(_))
    {
        terminal.warning(&format!("{}; nothing of that file counts", chain(mistake)));
    }

    // One thread: fastest and smallest as measured, so every await has its deadline and nothing blocks here.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let failure = Failure::new(Kind::Failed, e);
            terminal.failure(&failure, remote);
            return failure.exit_code(remote);
        }
    };
    let work = async {
        match cli.command {
            Command::Connect(_) => connect::run(hosts, &cli.output, &environment, &terminal).await,
            Command::Credentials(arguments) => {
                credentials::run(*arguments, &cli.output, &environment, &terminal).await
            }
            Command::Profiles(arguments) => {
                profiles::run(&arguments, &cli.output, &environment, &terminal).await
            }
            Command::Login(arguments) => login::run(&arguments, &environment, &terminal).await,
            Command::Doctor(arguments) => doctor::run(&arguments, &cli.output, &environment, &terminal).await,
            Command::Clean(arguments) => clean::run(&arguments, &cli.output, &environment, &terminal).await,
            Command::SshConfig(arguments) => {
                ssh_config::run(&arguments, &cli.output, &environment, &terminal)
            }
            Command::Logout(arguments) => logout::run(&arguments, &environment, &terminal).await,
            Command::Audit(arguments) => audit::run(&arguments, &environment, &terminal),
            Command::Status(arguments) => status::run(&arguments, &environment, &terminal).await,
            Command::Env(arguments) => steer::env(&arguments, &environment, &terminal).await,
            Command::Grant(arguments) => steer::grant(&arguments, &cli.output, &environment, &terminal).await,
            Command::Approve(arguments) => steer::approve(&arguments, &environment, &terminal).await,
            Command::Deny(arguments) => steer::deny(&arguments, &environment, &terminal).await,
            Command::Revoke(arguments) => steer::revoke(&arguments, &environment, &terminal).await,
            Command::Stop(arguments) => steer::stop(&arguments, &environment, &terminal).await,
            Command::Completions(arguments) => completions::run(&arguments, &terminal),
            Command::Man(arguments) => man::run(&arguments, &terminal),
            Command::Refresh(arguments) => steer::refresh(&arguments, &environment, &terminal).await,
        }
    };
    let code = match drive(runtime, work, || terminal.restore()) {
        Ok(code) => code,
        Err(failure) => {
            terminal.failure(&failure, remote);
            failure.exit_code(remote)
        }
    };
    // A thread that still waits for a key may hold the terminal, so its end is not the end of what we have to say.
    terminal.stderr().flush();
    code
}

/// Says what is wrong with a command line that could not be read, or prints the help that was asked for.
fn not_understood(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    let whole_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if whole_help || !error.use_stderr() {
        // Help and version are data and go to stdout. A closed pipe is no news.
        drop(error.print());
        return ExitCode::from(if error.use_stderr() { Kind::Usage.code() } else { 0 });
    }
    // What was understood before the mistake is not told, so these three are looked for by themselves.
    let mut ours = arguments.split(|word| word == "--");
    let words: Vec<&str> = ours.next().unwrap_or_default().iter().filter_map(|word| word.to_str()).collect();
    let remote = ours.next().is_some();
    let json =
        words.contains(&"--log-format=json") || words.windows(2).any(|pair| pair == ["--log-format", "json"]);
    let whole = Cli::command();
    let command = words.iter().skip(1).find(|word| whole.find_subcommand(word).is_some());

    let text = error.render().to_string();
    let mut paragraphs =
        text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = paragraphs.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let see =
        format!("see `broker{} --help`", command.map(|command| format!(" {command}")).unwrap_or_default());
    // How to pass what is no option as a value is a tip for nobody.
    let tips = paragraphs.filter_map(|paragraph| paragraph.strip_prefix("tip: ").map(str::to_owned));
    let tips = tips.filter(|tip| !tip.starts_with("to pass"));
    let hint = tips.chain([see]).collect::<Vec<_>>().join("; ");
    let failure = Failure::new(Kind::Usage, printable::one_line(&message)).with_hint(Some(hint));
    Terminal::new(plain(json), Clock::system()).failure(&failure, remote);
    failure.exit_code(remote)
}

/// Returns how we talk where it is not known how we should.
fn plain(json: bool) -> Style {
    Style {
        format: if json { LogFormat::Json } else { LogFormat::Text },
        color: Color::Never,
        no_color: true,
        quiet: false,
        batch: true,
        browser: None,
        askpass: askpass::Askpass::default(),
    }
}

/// Drives `work` to its end, which may be a panic, and calls `restore` in any case.
fn drive<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>, restore: impl FnOnce()) -> T {
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
    // A thread that still waits for a key or a full pipe must not hold us.
    runtime.shutdown_background();
    restore();
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

fn style(output: &Output, environment: Option<&Environment>) -> Style {
    let get = |name: &str| environment.and_then(|e| e.get(name)).map(str::to_owned);
    Style {
        format: match output.log_format {
            LogFormatArgument::Text => LogFormat::Text,
            LogFormatArgument::Json => LogFormat::Json,
        },
        color: match output.color {
            ColorArgument::Always => Color::Always,
            ColorArgument::Auto => Color::Auto,
            ColorArgument::Never => Color::Never,
        },
        no_color: get("NO_COLOR").is_some() || get("TERM").as_deref() == Some("dumb"),
        quiet: output.quiet,
        batch: output.batch,
        browser: browser(output, get),
        askpass: askpass::Askpass::from_environment(get),
    }
}

/// Returns what opens a URL here; over SSH, or without a display, a browser would open where nobody looks.
fn browser(output: &Output, get: impl Fn(&str) -> Option<String>) -> Option<String> {
    if output.no_browser {
        return None;
    }
    if let Some(named) = get("BROWSER") {
        return Some(named);
    }
    if cfg!(target_os = "macos") {
        return Some("open".to_owned());
    }
    let here = get("SSH_CONNECTION").is_none() && get("SSH_TTY").is_none();
    let display = get("DISPLAY").is_some() || get("WAYLAND_DISPLAY").is_some();
    (here && display).then(|| "xdg-open".to_owned())
}

/// Makes it harder to read our memory: no core dumps, no ptrace by other processes of this user.
fn harden() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    // Refused by some sandboxes; the rest of what we do for secrets does not depend on it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap_or_default();
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap_or_default();
}

/// Open files that one tunnel and what it starts need. The libraries below us panic where there are none.
const OPEN_FILES: u64 = 24;

/// Open files that hundreds of tunnels need.
const MANY_OPEN_FILES: u64 = 8192;

/// Takes as many open files as we may have, because every tunnel takes some; an error when they are not enough for one.
fn room_for_files() -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current: Some(current), maximum } = getrlimit(Resource::Nofile) else { return Ok(()) };
    let wanted = maximum.unwrap_or(MANY_OPEN_FILES).min(MANY_OPEN_FILES);
    if current < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).is_ok() {
        return room_enough(wanted);
    }
    room_enough(current)
}

fn room_enough(allowed: u64) -> Result<(), Failure> {
    if allowed >= OPEN_FILES {
        return Ok(());
    }
    let what = format!("a process may have {allowed} open files here, and broker needs {OPEN_FILES}");
    Err(Failure::new(Kind::Failed, what).with_hint(Some(format!("`ulimit -n {OPEN_FILES}`, or more"))))
}

/// Addresses that one tunnel and the threads for what blocks take beside the program, in MiB: more than was ever seen. The
/// process is aborted where there are none left, in the middle of whatever it does.
const MEMORY: u64 = 24;

/// An error where the process may not grow (`ulimit -v`).
fn room_in_memory() -> Result<(), Failure> {
    use rustix::process::{Resource, getrlimit};
    let Some(limit) = getrlimit(Resource::As).current else { return Ok(()) };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let used = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB"));
    // Where there is no /proc, at least for what comes on top of it.
    let used: u64 = used.and_then(|used| used.parse().ok()).unwrap_or_default();
    let (limit, needed) = (limit >> 10, used + (MEMORY << 10));
    if limit >= needed {
        return Ok(());
    }
    let what = format!("a process may have {limit} KiB of memory here, and broker needs {needed}");
    Err(Failure::new(Kind::Failed, what).with_hint(Some(format!("`ulimit -v {needed}`, or more"))))
}

/// A signal that ends us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stop {
    Interrupt,
    Terminate,
    HangUp,
}

/// Returns a future of the first signal that ends us. Signals are watched from this call on, not from the first poll.
fn stop_signal() -> std::io::Result<impl Future<Output = Stop>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => Stop::Interrupt,
            _ = terminate.recv() => Stop::Terminate,
            _ = hang_up.recv() => Stop::HangUp,
        }
    })
}

/// Drives `work`, keeps the terminal's live line moving.
async fn with_ticks<T>(terminal: &Terminal, work: impl Future<Output = T>) -> T {
    let mut ticks = tokio::time::interval(TICK);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => terminal.tick(),
        }
    }
}

/// Ctrl-C is answered within two seconds ; a refresh of a token that is under way may use them.
const SETTLING: Duration = Duration::from_millis(1800);

/// Often enough to look alive, seldom enough to cost nothing.
const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_help() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_panic_restores_the_terminal_and_waits_for_no_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // As stdin does while nobody types.
        let (typed, reading) = std::sync::mpsc::channel::<()>();
        let (restored, is_restored) = std::sync::mpsc::channel();
        let (ended, has_ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let work = async move {
                tokio::task::spawn_blocking(move || reading.recv());
                panic!("a bug");
            };
            let ended_by =
                catch_unwind(AssertUnwindSafe(|| drive(runtime, work, || restored.send(()).unwrap())));
            ended.send(ended_by.is_err()).unwrap();
        });
        let patience = Duration::from_secs(10);
        is_restored.recv_timeout(patience).expect("the terminal is restored");
        assert!(has_ended.recv_timeout(patience).expect("nothing is waited for"), "the panic goes on");
        drop(typed);
    }
}
