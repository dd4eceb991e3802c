//! Our configuration file and the command line, made one: what was typed, then the sections of the host, then `[defaults]`.
//!
//! Settings become words of a command line, `--key=value`, which go through the parser and the checks that typed ones go
//! through. So every option can be set in the file, and none can be that would not be understood here. A setting gives way to
//! what was typed, also where the two cannot go together.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    sync::Arc,
};

use clap::{
    Arg, ArgAction, ArgMatches, Args as _, Command as Clap, CommandFactory as _, FromArgMatches as _,
    Parser as _,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use super::{
    Cli, Command,
    connect::Arguments,
    failure::{Failure, Kind},
    host::HowToReach,
};
use crate::{
    config::{
        Environment,
        file::{Error, File, Section, Setting, Value},
    },
    printable::one_line,
};

/// Options of `connect` that hold for the whole process beside those that every command has, and why.
const WHOLE_PROCESS: &[(&str, &str)] = &[
    ("device-code", "one sign-in serves every host"),
    ("identity-env", "a variable is taken out of the environment of the whole process"),
];

/// Options that count only beside one of these others, as the parser has it (`requires`). What is typed alone is a mistake;
/// a default waits for its occasion.
const BESIDE: &[(&str, &[&str])] = &[
    ("print-env", &["no-shell", "background"]),
    ("account", &["role"]),
    ("role", &["account"]),
    ("sso-session", &["role"]),
    ("start-url", &["role"]),
    ("start-url", &["sso-region"]),
    ("sso-region", &["start-url"]),
    ("duration", &["role-arn"]),
    ("session-policy", &["role-arn"]),
    ("source-ip", &["role-arn"]),
];

/// Commands that look at what runs or end it. They must work whatever stands in the file.
const WORK_ANYHOW: &[&str] = &[
    "approve",
    "audit",
    "completions",
    "deny",
    "doctor",
    "env",
    "logout",
    "man",
    "refresh",
    "revoke",
    "status",
    "stop",
];

/// One host, and everything that was said about it.
#[derive(Clone, Debug)]
pub(super) struct ForHost {
    pub(super) host: String,
    /// Whether it comes from a list, and so is no mistyped command.
    pub(super) listed: bool,
    pub(super) arguments: Arc<Arguments>,
}

/// What was typed, as far as it was understood.
pub(super) struct Typed {
    pub(super) matches: ArgMatches,
    words: Vec<OsString>,
}

/// The command line with what the file adds to it.
pub(super) struct Merged {
    pub(super) cli: Cli,
    /// For `connect`: at least one.
    pub(super) hosts: Vec<ForHost>,
}

/// Why the two cannot be one.
pub(super) enum NotMerged {
    /// The command line is wrong.
    Words(clap::Error),
    Other(Failure),
}

impl Typed {
    /// Reads what can be read; an option may lack another that stands in the file.
    pub(super) fn read(words: &[OsString]) -> Result<Self, clap::Error> {
        if let Err(error) = Cli::try_parse_from(words)
            && error.kind() != ErrorKind::MissingRequiredArgument
        {
            return Err(error);
        }
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(words)?;
        Ok(Self { matches, words: words.to_vec() })
    }

    /// Returns the name of the command.
    fn command(&self) -> &str {
        self.matches.subcommand_name().unwrap_or_default()
    }

    /// Whether the command has to work although the file is wrong.
    pub(super) fn works_anyhow(&self) -> bool {
        WORK_ANYHOW.contains(&self.command())
    }

    /// Whether a remote shell or command decides the exit status, as far as was typed.
    pub(super) fn is_remote(&self) -> bool {
        let said = |sub: &ArgMatches| is_set(sub, "no_shell") || is_set(sub, "background");
        self.matches.subcommand_matches("connect").is_some_and(|sub| !said(sub))
    }

    fn hosts(&self) -> Vec<String> {
        let Some((name, sub)) = self.matches.subcommand() else { return Vec::new() };
        match name {
            "connect" => {
                let hosts = sub.try_get_many::<String>("hosts").ok().flatten();
                hosts.unwrap_or_default().cloned().collect()
            }
            "doctor" | "clean" | "ssh-config" => {
                sub.try_get_one::<String>("host").ok().flatten().cloned().into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn parse(&self, more: &[OsString]) -> Result<Cli, NotMerged> {
        // Values of options before a command are words of a few letters, none of which is a command.
        let at = self.words.iter().skip(1).position(|word| *word == *self.command()).map_or(1, |at| at + 2);
        let (before, after) = self.words.split_at(at.min(self.words.len()));
        Cli::try_parse_from([before, more, after].concat()).map_err(NotMerged::Words)
    }

    /// Adds what the file says.
    pub(super) fn merge(&self, environment: &Environment) -> Result<Merged, NotMerged> {
        let file = environment.file();
        let typed = self.hosts();
        if self.command() != "connect" {
            let host = typed.first().map(String::as_str);
            let cli = self.parse(&self.additions(host, environment))?;
            return Ok(Merged { cli, hosts: Vec::new() });
        }
        let mut known: HashMap<Vec<OsString>, Arc<Arguments>> = HashMap::new();
        let (mut first, mut hosts) = (None, Vec::new());
        for (host, listed) in expanded(&typed, file).map_err(NotMerged::Other)? {
            let additions = self.additions(Some(&host), environment);
            let arguments = match known.get(&additions) {
                Some(arguments) => Arc::clone(arguments),
                None => {
                    let mut cli = self.parse(&additions)?;
                    let Command::Connect(arguments) = &mut cli.command else { continue };
                    let arguments = Arc::new((**arguments).clone());
                    first.get_or_insert(cli);
                    known.insert(additions, Arc::clone(&arguments));
                    arguments
                }
            };
            hosts.push(ForHost { host, listed, arguments });
        }
        match first {
            Some(cli) => Ok(Merged { cli, hosts }),
            // Without a host the parser says what is missing.
            None => Ok(Merged { cli: self.parse(&[])?, hosts }),
        }
    }

    /// Returns the words that the file adds for this host, or where there is none.
    fn additions(&self, host: Option<&str>, environment: &Environment) -> Vec<OsString> {
        let file = environment.file();
        let (Some((name, sub)), false) = (self.matches.subcommand(), file.is_empty()) else {
            return Vec::new();
        };
        let mut whole = Cli::command();
        whole.build();
        let Some(command) = whole.find_subcommand(name) else { return Vec::new() };
        if is_set(&self.matches, "no_defaults") {
            return Vec::new();
        }
        let mut choice = Choice { command, settled: BTreeSet::new(), active: Vec::new() };
        for arg in command.get_arguments() {
            if typed(arg, sub) {
                choice.take(arg);
            }
        }
        // Flags > environment > file; AWS_PROFILE is what `-p` would say.
        let named = environment.get("AWS_PROFILE").or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        if named.is_some()
            && let Some(profile) = option(command, "profile")
        {
            choice.take(profile);
        }
        let takes = takes(name);
        let sections = host.into_iter().flat_map(|host| file.sections(host));
        let mut chosen = Vec::new();
        for setting in sections.chain([&file.defaults]).flat_map(|section| &section.settings) {
            if let Some(arg) = option(command, &setting.key).filter(|arg| takes(arg))
                && let Some(words) = choice.offer(arg, setting)
            {
                chosen.push((setting.key.as_str(), words));
            }
        }
        // One that waits for another may be what a third waits for.
        loop {
            let before = chosen.len();
            let is_there = |key: &&str| option(command, key).is_some_and(|arg| choice.is_active(arg));
            let waits: Vec<&str> = BESIDE
                .iter()
                .filter(|(_, others)| !others.iter().any(is_there))
                .map(|(key, _)| *key)
                .collect();
            chosen.retain(|(key, _)| !waits.contains(key));
            choice
                .active
                .retain(|arg| !waits.iter().any(|key| arg.get_long() == Some(key)) || typed(arg, sub));
            if chosen.len() == before {
                break;
            }
        }
        chosen.into_iter().flat_map(|(_, words)| words).collect()
    }
}

/// What counts so far.
struct Choice<'a> {
    command: &'a Clap,
    /// Options that something was said about already.
    settled: BTreeSet<&'a str>,
    /// Those of them that are there.
    active: Vec<&'a Arg>,
}

impl<'a> Choice<'a> {
    fn take(&mut self, arg: &'a Arg) {
        self.settled.insert(arg.get_id().as_str());
        self.active.push(arg);
    }

    fn is_active(&self, arg: &Arg) -> bool {
        self.active.iter().any(|active| active.get_id() == arg.get_id())
    }

    /// Returns the words of a setting that nothing stronger is in the way of.
    fn offer(&mut self, arg: &'a Arg, setting: &Setting) -> Option<Vec<OsString>> {
        if self.settled.contains(arg.get_id().as_str()) {
            return None;
        }
        let conflicts = |a: &Arg, b: &Arg| {
            self.command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id())
        };
        let words = words(arg, setting).ok()?;
        if !words.is_empty() && self.active.iter().any(|there| conflicts(there, arg) || conflicts(arg, there))
        {
            return None;
        }
        // `false` and `[]` are said as well: what is said more generally does not count then.
        if words.is_empty() {
            self.settled.insert(arg.get_id().as_str());
        } else {
            self.take(arg);
        }
        Some(words)
    }
}

/// Returns which options of a command can stand in the file. Those of `connect` can; other commands take from there how a
/// host is reached, how one signs in, and what every command has.
fn takes(command: &str) -> impl Fn(&Arg) -> bool + use<> {
    let reach: BTreeSet<String> = HowToReach::augment_args(Clap::new("reach"))
        .get_arguments()
        .map(|arg| arg.get_id().to_string())
        .collect();
    let is_connect = command == "connect";
    move |arg: &Arg| {
        is_connect
            || arg.is_global_set()
            || arg.get_long() == Some("device-code")
            || reach.contains(arg.get_id().as_str())
    }
}

/// Returns the option that can be set by this key: its long name.
fn option<'a>(command: &'a Clap, key: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        let set = matches!(
            arg.get_action(),
            ArgAction::Set | ArgAction::Append | ArgAction::SetTrue | ArgAction::Count
        );
        set && arg.get_long() == Some(key) && key != "no-defaults"
    })
}

/// Returns a setting as it would be typed.
fn words(arg: &Arg, setting: &Setting) -> Result<Vec<OsString>, String> {
    let key = &setting.key;
    let word = |value: &dyn std::fmt::Display| OsString::from(format!("--{key}={value}"));
    match (arg.get_action(), &setting.value) {
        (ArgAction::SetTrue, Value::Truth(true)) => Ok(vec![format!("--{key}").into()]),
        (ArgAction::SetTrue, Value::Truth(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("`{key}` is true or false")),
        (ArgAction::Count, Value::Number(n @ 0..=9)) => {
            Ok((0..*n).map(|_| format!("--{key}").into()).collect())
        }
        (ArgAction::Count, _) => Err(format!("`{key}` is a number from 0 to 9")),
        (ArgAction::Append, Value::Several(several)) => Ok(several.iter().map(|one| word(one)).collect()),
        (_, Value::Several(_)) => Err(format!("`{key}` takes one value")),
        (_, Value::Number(number)) => Ok(vec![word(number)]),
        (_, Value::Text(text)) => Ok(vec![word(text)]),
        (_, Value::Truth(_)) => Err(format!("`{key}` takes a value, not true or false")),
    }
}

/// Checks every setting of the file with the parser of the command line, whether it counts now or not.
pub(super) fn check(file: &File) -> Result<(), Error> {
    if file.is_empty() {
        return Ok(());
    }
    let mut whole = Cli::command();
    whole.build();
    let Some(connect) = whole.find_subcommand("connect") else { return Ok(()) };
    check_section(&file.defaults, connect, file)?;
    for host in &file.hosts {
        for setting in &host.section.settings {
            let global = option(connect, &setting.key).is_some_and(Arg::is_global_set);
            let alone = WHOLE_PROCESS.iter().find(|(key, _)| *key == setting.key).map(|(_, why)| *why);
            if let Some(why) = alone.or(global.then_some("what is said is said once for all hosts")) {
                let what = format!("`{}` cannot differ between hosts: {why}", setting.key);
                return Err(file.mistake(setting.line, what, Some("put it below `[defaults]`".to_owned())));
            }
        }
        check_section(&host.section, connect, file)?;
    }
    Ok(())
}

fn check_section(section: &Section, connect: &Clap, file: &File) -> Result<(), Error> {
    let mut all: Vec<OsString> = ["broker", "connect", "host"].map(OsString::from).into();
    let start = all.len();
    let mut ends = Vec::new();
    for setting in &section.settings {
        let Some(arg) = option(connect, &setting.key) else { return Err(unknown(setting, section, file)) };
        all.extend(words(arg, setting).map_err(|what| file.mistake(setting.line, what, None))?);
        ends.push((setting, all.len()));
    }
    if all.len() == start || understood(&all).is_none() {
        return Ok(());
    }
    // The first with which it is wrong: by its value, or beside one that stands before it.
    for (setting, end) in ends {
        if let Some(error) = all.get(..end).and_then(understood) {
            let text = error.render().to_string();
            let text = text.split("\n\n").next().unwrap_or_default();
            let text = text.strip_prefix("error: ").unwrap_or(text);
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let what = format!("`{}` in {}: {}", setting.key, section.name, one_line(&text));
            return Err(file.mistake(setting.line, what, Some("see `broker connect --help`".to_owned())));
        }
    }
    Ok(())
}

/// Returns what the parser has against these words, but for what may be typed or stand elsewhere.
fn understood(words: &[OsString]) -> Option<clap::Error> {
    Cli::try_parse_from(words).err().filter(|error| error.kind() != ErrorKind::MissingRequiredArgument)
}

fn unknown(setting: &Setting, section: &Section, file: &File) -> Error {
    let key = one_line(&setting.key);
    let what = format!("`{key}` in {} is no option of `broker connect` that can be set here", section.name);
    let near =
        Cli::try_parse_from(["broker", "connect", "host", &format!("--{key}")]).err().and_then(|error| {
            match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(near)) => Some(near.trim_start_matches('-').to_owned()),
                _ => None,
            }
        });
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            "a key is the long name of an option, without its dashes: see `broker connect --help`".to_owned()
        }
    };
    file.mistake(setting.line, what, Some(hint))
}

/// Returns the hosts that are meant, and whether a list names them: `@NAME` is a list.
fn expanded(typed: &[String], file: &File) -> Result<Vec<(String, bool)>, Failure> {
    let mut hosts: Vec<(String, bool)> = Vec::new();
    for word in typed {
        let Some(name) = word.strip_prefix('@') else {
            hosts.push((word.clone(), false));
            continue;
        };
        let Some(list) = file.list(name) else {
            let known: Vec<String> = file.lists().map(|name| format!("@{name}")).collect();
            let hint = match known.as_slice() {
                [] => format!("write it there: `[lists]`, and `{} = [\"host1\", \"host2\"]`", one_line(name)),
                known => format!("it has {}", known.join(", ")),
            };
            let what = format!("`{}` has no list of hosts `{}`", file.path.display(), one_line(name));
            return Err(Failure::new(Kind::Usage, what).with_hint(Some(hint)));
        };
        for host in list {
            if !hosts.iter().any(|(known, _)| known == host) {
                hosts.push((host.clone(), true));
            }
        }
    }
    Ok(hosts)
}

fn typed(arg: &Arg, sub: &ArgMatches) -> bool {
    sub.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
}

/// Whether a flag is there. What could not be parsed to its end has not even the value that says no.
fn is_set(matches: &ArgMatches, id: &str) -> bool {
    matches.try_get_one::<bool>(id).ok().flatten() == Some(&true)
}

/// Returns how we talk, as far as that was understood.
pub(super) fn output(typed: &Typed) -> Option<super::Output> {
    super::Output::from_arg_matches(&typed.matches).ok()
}

#[cfg(test)]
mod tests;
