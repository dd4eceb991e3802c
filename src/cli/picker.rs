//! Which profile, where none was named and there are several: asked on the terminal, drawn below the cursor.

use std::{io::IsTerminal as _, path::PathBuf, sync::Arc, time::Duration};

use secrecy::ExposeSecret as _;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::{
    Output,
    defaults::ForHost,
    failure::{Failure, Kind},
    identity::Whose,
    keyboard::Keyboard,
    pick::{Chosen, Entry, Pick, keys},
    stop_signal,
    terminal::Terminal,
};
use crate::{
    aws::token::{Loaded, TokenFile},
    clock,
    config::{Environment, Error, pin::Pin, whose},
    human::{Human as _, Question},
    names::ProfileName,
    printable::one_line,
    private_fs,
};

/// The rest of a key's bytes comes at once; what comes later is another key.
const REST_OF_KEY: Duration = Duration::from_millis(50);

/// Names that are remembered as used.
const REMEMBERED: usize = 100;

/// How often a list is answered wrongly.
const TRIES: usize = 3;

/// Has a person choose a profile for the hosts for which none is named, as [`choose_one`] does.
pub(super) async fn choose(
    hosts: &mut [ForHost],
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<(), Failure> {
    let mut without: Vec<&mut ForHost> =
        hosts.iter_mut().filter(|host| host.arguments.whose.names_none()).collect();
    let pins: Vec<Pin> = without.iter().map(|one| environment.file().pin_as_typed(&one.host)).collect();
    let permitted = |profile: &ProfileName| pins.iter().all(|pin| pin.permits(profile, "").is_ok());
    let Some(first) = without.first() else { return Ok(()) };
    let mut whose = first.arguments.whose.clone();
    if let Some(profile) = choose_one(&mut whose, &permitted, output, environment, terminal).await? {
        for host in &mut without {
            Arc::make_mut(&mut host.arguments).whose.choose(profile.clone());
        }
    }
    Ok(())
}

/// Has a person choose a profile where `whose` names none, there are several, and somebody is there.
pub(super) async fn choose_one(
    whose: &mut Whose,
    permitted: &dyn Fn(&ProfileName) -> bool,
    output: &Output,
    environment: &Environment,
    terminal: &Arc<Terminal>,
) -> Result<Option<String>, Failure> {
    if output.batch || !std::io::stderr().is_terminal() || !terminal.is_for_people() {
        return Ok(None);
    }
    // Somebody may see what is said here and have no keys to answer with, as under `-f`.
    if Keyboard::tty().is_err() {
        return Ok(None);
    }
    // Every other mistake is told by whoever makes the plan.
    let Err(Error::NoProfile { known, .. }) =
        whose::profiles(&whose.wanted(""), environment, &mut Vec::new())
    else {
        return Ok(None);
    };
    let permitted = |name: &&String| name.parse().is_ok_and(|name| permitted(&name));
    let known: Vec<String> = known.iter().filter(permitted).cloned().collect();
    let Some(pick) = offer(&known, environment) else { return Ok(None) };
    let simple = matches!(environment.get("TERM"), None | Some("dumb"));
    let chosen = if simple { by_number(&pick, terminal).await } else { by_keys(pick, terminal).await? };
    let Chosen::Profile(profile) = chosen else {
        return Err(Failure::new(Kind::Interrupted, "no profile was chosen"));
    };
    remember(&profile, environment);
    whose.choose(profile.clone());
    Ok(Some(profile))
}

/// Notes that a profile is used, for the next choice.
pub(super) fn remember(profile: &str, environment: &Environment) {
    let mut used = used(environment);
    if used.first().is_some_and(|first| first == profile) {
        return;
    }
    used.retain(|known| known != profile);
    used.insert(0, profile.to_owned());
    used.truncate(REMEMBERED);
    // A comfort; where it cannot be written, the order is that of the names.
    if let Err(error) = private_fs::write(&used_file(environment), (used.join("\n") + "\n").as_bytes()) {
        tracing::debug!(%error, "could not note which profile was used");
    }
}

fn used_file(environment: &Environment) -> PathBuf {
    environment.state_directory().join("used-profiles")
}

fn used(environment: &Environment) -> Vec<String> {
    let bytes = private_fs::read(&used_file(environment)).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().take(REMEMBERED).map(str::to_owned).collect()
}

/// Returns the profiles that work, the last used first; `None` when there is nothing to choose from.
fn offer(known: &[String], environment: &Environment) -> Option<Pick> {
    let all = environment.aws_profiles().ok()?;
    let names = super::profiles::account_names(environment);
    let clock = clock::Clock::system();
    let mut entries: Vec<Entry> = known
        .iter()
        .filter_map(|name| {
            let profile = all.resolve(&name.parse().ok()?).ok()?;
            let role = profile.source.role();
            let account = role.as_ref().map(|role| role.account.to_string()).unwrap_or_default();
            let until = profile.source.sso_session().map(|session| {
                match TokenFile::new(&environment.home, session).load() {
                    Loaded::Found(token) if token.expires_at() > clock.now() => {
                        let utc = clock::utc(token.expires_at()).unwrap_or_default();
                        let day = if utc.get(..10)
                            == clock::utc(clock.now()).as_deref().and_then(|now| now.get(..10))
                        {
                            String::new()
                        } else {
                            format!("{} ", utc.get(..10).unwrap_or_default())
                        };
                        format!("signed in until {day}{} UTC", utc.get(11..16).unwrap_or_default())
                    }
                    Loaded::Found(_) | Loaded::Missing | Loaded::Unusable(_) => "not signed in".to_owned(),
                }
            });
            Some(Entry {
                profile: one_line(name),
                account: names.get(&account).map_or(account, |name| one_line(name)),
                role: role.map(|role| role.name.to_string()).unwrap_or_default(),
                until: until.unwrap_or_default(),
            })
        })
        .collect();
    let used = used(environment);
    // Stable: what was never used stays in the order of names.
    entries.sort_by_key(|entry| used.iter().position(|name| *name == entry.profile).unwrap_or(usize::MAX));
    (!entries.is_empty()).then(|| Pick::new(entries))
}

async fn by_number(pick: &Pick, terminal: &Terminal) -> Chosen {
    terminal.tell(&pick.list());
    for _ in 0..TRIES {
        let question = Question { text: "profile (number or name): ".to_owned(), echo: true };
        let Some(answer) = terminal.ask(question).await else { break };
        match pick.answered(answer.expose_secret()) {
            Some(profile) => return Chosen::Profile(profile),
            None if answer.expose_secret().trim().is_empty() => break,
            None => terminal.tell("There is no such profile in the list."),
        }
    }
    Chosen::Nothing
}

async fn by_keys(mut pick: Pick, terminal: &Terminal) -> Result<Chosen, Failure> {
    let failed = |error: std::io::Error| Failure::new(Kind::Failed, error);
    let stop = stop_signal().map_err(failed)?;
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut keyboard = Keyboard::tty().map_err(failed)?;
    terminal.raw().map_err(failed)?;
    let mut drawn = Drawn { terminal, lines: 0 };
    let chosen = async {
        let mut bytes = Vec::new();
        let mut buffer = [0; 64];
        loop {
            drawn.draw(&pick);
            tokio::select! {
                read = async {
                    // Escape alone is a key, and also the beginning of others.
                    if bytes.is_empty() { Ok(keyboard.read(&mut buffer).await) }
                    else { timeout(REST_OF_KEY, keyboard.read(&mut buffer)).await }
                } => match read {
                    Ok(Ok(0) | Err(_)) => return Chosen::Nothing,
                    Ok(Ok(length)) => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                    Err(_) if bytes.first() == Some(&0x1b) => return Chosen::Nothing,
                    Err(_) => bytes.clear(),
                },
                _ = resized.recv() => {}
            }
            for key in keys(&mut bytes) {
                if let Some(chosen) = pick.press(key) {
                    return chosen;
                }
            }
        }
    };
    let chosen = tokio::select! {
        chosen = chosen => chosen,
        _ = stop => Chosen::Nothing,
    };
    drop(drawn);
    terminal.restore();
    Ok(chosen)
}

/// What is on the screen; dropping it takes it away again.
struct Drawn<'a> {
    terminal: &'a Terminal,
    lines: usize,
}

impl Drawn<'_> {
    fn draw(&mut self, pick: &Pick) {
        let (rows, columns) = self.terminal.window();
        let (lines, chosen) = pick.lines(rows.min(MOST_ROWS), columns);
        let mut text = self.erasure();
        text.push_str("\x1b[?25l");
        for (row, line) in lines.iter().enumerate() {
            let (start, end) = if chosen == Some(row) { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            text.push_str(&format!("{}{start}{line}{end}", if row > 0 { "\r\n" } else { "" }));
        }
        self.terminal.draw(&text);
        self.lines = lines.len();
    }

    fn erasure(&self) -> String {
        match self.lines {
            0 => String::new(),
            1 => "\r\x1b[J".to_owned(),
            lines => format!("\r\x1b[{}A\x1b[J", lines - 1),
        }
    }
}

impl Drop for Drawn<'_> {
    fn drop(&mut self) {
        self.terminal.draw(&format!("{}\x1b[?25h", self.erasure()));
    }
}

/// Enough to choose from without losing sight of what was there.
const MOST_ROWS: usize = 14;
