//! Our own configuration file: defaults for options, sections of hosts, pins, lists of hosts.
//!
//! Which options there are, and what each takes, is known to `cli` alone, which passes every setting through the command
//! line's own parser. Here are the text, its types, and where in the file each thing stands, because an error names it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Environment, expand_home,
    pin::{KEY as PIN, Pin, Place, Rule},
};
use crate::{
    printable::one_line,
    private_fs,
    ssh::config::{
        Destination,
        pattern::{self, ListMatch},
    },
};

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] private_fs::Error),
    #[error("`{}` line {line}: {what}", path.display())]
    Text { path: PathBuf, line: usize, what: String, hint: Option<String> },
}

impl Error {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Text { path, hint, .. } => {
                Some(hint.clone().unwrap_or_else(|| format!("correct that line of `{}`", path.display())))
            }
        }
    }
}

/// The file as it was when this process started; without one, nothing is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) defaults: Section,
    /// In the order of the file.
    pub(crate) hosts: Vec<HostSection>,
    lists: BTreeMap<String, Vec<String>>,
}

/// Some options, and what they are to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    /// As it stands in brackets.
    pub(crate) name: String,
    /// In the order of the file.
    pub(crate) settings: Vec<Setting>,
}

/// One option, and what it is to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What an option is to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Value {
    Truth(bool),
    Number(i64),
    Text(String),
    /// For options that may be repeated: numbers and texts.
    Several(Vec<String>),
}

/// What holds for the hosts of a pattern.
#[derive(Clone, Debug)]
pub(crate) struct HostSection {
    /// As in `Host` of ssh_config, with commas.
    patterns: String,
    pub(crate) section: Section,
    pin: Option<Rule>,
}

impl Environment {
    /// Returns where our configuration file is: `$XDG_CONFIG_HOME/broker/config.toml` (XDG Base Directory 0.8).
    pub(crate) fn config_file(&self) -> PathBuf {
        self.get("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .unwrap_or_else(|| self.home.join(".config"))
            .join("broker/config.toml")
    }
}

impl File {
    /// Reads the file; where there is none, everything is as without one.
    pub(crate) fn load(environment: &Environment) -> Result<Self, Error> {
        let path = environment.config_file();
        let Some(bytes) = private_fs::read_config(&path)? else {
            return Ok(Self { path, ..Self::default() });
        };
        Self::parse(&path, &bytes, &environment.home)
    }

    /// Reads what is in a file at `path`, for the user with this home.
    pub(crate) fn parse(path: &Path, bytes: &[u8], home: &Path) -> Result<Self, Error> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let what = "there is a byte that is no UTF-8".to_owned();
            Error::Text { path: path.to_owned(), line, what, hint: None }
        })?;
        Reader { path, text, home }.file()
    }

    /// Returns a mistake that a person has to correct in it.
    pub(crate) fn mistake(&self, line: usize, what: String, hint: Option<String>) -> Error {
        Error::Text { path: self.path.clone(), line, what, hint }
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.defaults.settings.is_empty() && self.hosts.is_empty() && self.lists.is_empty()
    }

    /// Returns the sections of a host as it was typed, in the order of the file.
    pub(crate) fn sections(&self, typed: &str) -> impl Iterator<Item = &Section> {
        let name = Destination::parse(typed).map(|destination| destination.host).unwrap_or_default();
        self.hosts.iter().filter(move |host| host.is_for(&name)).map(|host| &host.section)
    }

    /// Returns which profiles a host may get, by its name as typed and by the name that ssh_config has for it.
    pub(crate) fn pin(&self, typed: &str, leads_to: &str) -> Pin {
        let rule = |name: &str| {
            let mut sections = self.hosts.iter().filter(|host| host.is_for(name));
            sections.find_map(|host| host.pin.clone())
        };
        let mut rules: Vec<Rule> = rule(typed).into_iter().collect();
        if !typed.eq_ignore_ascii_case(leads_to) {
            rules.extend(rule(leads_to));
        }
        Pin::new(rules)
    }

    /// Returns the same before anybody asked ssh_config.
    pub(crate) fn pin_as_typed(&self, typed: &str) -> Pin {
        let name = Destination::parse(typed).map(|destination| destination.host).unwrap_or_default();
        self.pin(&name, &name)
    }

    /// Returns the hosts of a list.
    pub(crate) fn list(&self, name: &str) -> Option<&[String]> {
        self.lists.get(name).map(Vec::as_slice)
    }

    /// Returns the names of the lists.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &str> {
        self.lists.keys().map(String::as_str)
    }

    /// Returns the hosts that it names without a pattern.
    pub(crate) fn named_hosts(&self) -> impl Iterator<Item = &str> {
        let names = self.hosts.iter().flat_map(|host| host.patterns.split(','));
        names.filter(|name| !name.contains(['*', '?', '!']))
    }
}

impl HostSection {
    fn is_for(&self, name: &str) -> bool {
        !name.is_empty() && pattern::host_list(name, &self.patterns) == ListMatch::Yes
    }
}

/// The text of the file, and whose home `~` is in it.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    home: &'a Path,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;

impl<'a> Reader<'a> {
    fn file(&self) -> Result<File, Error> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            self.wrong(at, format!("this is not TOML: {}", one_line(error.message())), None)
        })?;
        let mut file = File { path: self.path.to_owned(), ..File::default() };
        for (key, value) in self.in_order(table.get_ref()) {
            let name = key.get_ref().as_ref();
            match name {
                "defaults" => {
                    let (section, pin) = self.section("[defaults]".to_owned(), self.table(key, value)?)?;
                    if let Some(pin) = pin {
                        let what = format!("`{PIN}` is for the hosts of a section");
                        let hint = format!(
                            "for all hosts, put it below `[hosts.\"*\"]`, behind other sections with `{PIN}`"
                        );
                        return Err(self.at_line(pin.place.line, what, Some(hint)));
                    }
                    file.defaults = section;
                }
                "hosts" => {
                    for (key, value) in self.in_order(self.table(key, value)?) {
                        file.hosts.push(self.host(key, value)?);
                    }
                }
                "lists" => {
                    for (key, value) in self.in_order(self.table(key, value)?) {
                        let (name, hosts) = self.list(key, value)?;
                        file.lists.insert(name, hosts);
                    }
                }
                other => {
                    let what = format!("there is no `{}`", one_line(other));
                    return Err(self.wrong(key.span().start, what, Some(TABLES.to_owned())));
                }
            }
        }
        Ok(file)
    }

    fn host(&self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) -> Result<HostSection, Error> {
        let name = key.get_ref().as_ref();
        let bad = |what: &str| Err(self.wrong(key.span().start, what.to_owned(), Some(HOSTS.to_owned())));
        let patterns: Vec<&str> = name.split_whitespace().collect();
        if patterns.iter().all(|pattern| pattern.starts_with('!')) {
            return bad("this section is for no host");
        }
        if name.contains(['@', '/', ',']) || patterns.iter().any(|p| p.matches(':').count() == 1) {
            return bad("a section of hosts is named by names alone, without user and port");
        }
        let title = format!("[hosts.\"{}\"]", one_line(name));
        let (section, pin) = self.section(title, self.table(key, value)?)?;
        Ok(HostSection { patterns: patterns.join(","), section, pin })
    }

    fn section(&self, name: String, table: &DeTable<'_>) -> Result<(Section, Option<Rule>), Error> {
        let mut section = Section { name, settings: Vec::new() };
        let mut pin = None;
        for (key, value) in self.in_order(table) {
            let line = self.line(key.span().start);
            if key.get_ref() == PIN {
                let place = Place::new(self.path, line, &section.name);
                let profiles = match self.value(key, value)? {
                    Value::Several(profiles) => profiles,
                    Value::Text(profile) => vec![profile],
                    Value::Truth(_) | Value::Number(_) => {
                        return Err(self.at_line(
                            line,
                            format!("`{PIN}` takes names of profiles, such as [\"deploy\", \"team-*\"]"),
                            None,
                        ));
                    }
                };
                pin = Some(Rule { place, profiles });
                continue;
            }
            let value = self.value(key, value)?;
            section.settings.push(Setting { key: key.get_ref().clone().into_owned(), line, value });
        }
        Ok((section, pin))
    }

    fn value(&self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) -> Result<Value, Error> {
        let name = one_line(key.get_ref());
        let wrong = |value: &Spanned<DeValue<'_>>, what: String, hint: Option<&str>| {
            Err(self.wrong(value.span().start, what, hint.map(str::to_owned)))
        };
        Ok(match value.get_ref() {
            DeValue::Boolean(truth) => Value::Truth(*truth),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Number(number),
                Err(_) => return wrong(value, format!("`{name}` is too large a number"), None),
            },
            DeValue::String(text) => Value::Text(self.expanded(text)),
            DeValue::Array(several) => {
                let mut values = Vec::new();
                for value in several.iter() {
                    match (value.get_ref(), self.value(key, value)?) {
                        (DeValue::String(_) | DeValue::Integer(_), Value::Text(text)) => values.push(text),
                        (_, Value::Number(number)) => values.push(number.to_string()),
                        (found, _) => {
                            let found = found.type_str();
                            return wrong(
                                value,
                                format!("in `{name}` there is a {found}, and only texts and numbers can be"),
                                None,
                            );
                        }
                    }
                }
                Value::Several(values)
            }
            DeValue::Table(_) => {
                return wrong(value, format!("`{name}` is a table, and here are options only"), Some(HOSTS));
            }
            other => {
                let found = other.type_str();
                let what = format!("`{name}` is a {found}, and no option takes one: put it in quotes");
                return wrong(value, what, None);
            }
        })
    }

    fn list(&self, key: &Key<'_>, value: &Spanned<DeValue<'_>>) -> Result<(String, Vec<String>), Error> {
        let name = key.get_ref().clone().into_owned();
        let plain = !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !plain {
            let what = format!("`{}` cannot be typed behind an @", one_line(&name));
            let hint = "name a list with letters, digits, `-`, `_` and `.`".to_owned();
            return Err(self.wrong(key.span().start, what, Some(hint)));
        }
        let Value::Several(hosts) = self.value(key, value)? else {
            let what =
                format!("the list `{name}` is no array of hosts, such as [\"web1\", \"ada@web2:2222\"]");
            return Err(self.wrong(value.span().start, what, None));
        };
        if hosts.is_empty() {
            return Err(self.wrong(value.span().start, format!("the list `{name}` is empty"), None));
        }
        for host in &hosts {
            if let Err(error) = Destination::parse(host) {
                let hint = host.starts_with('@').then(|| "lists hold hosts, and no other lists".to_owned());
                let what = format!("in the list `{name}`: {error}");
                return Err(self.wrong(value.span().start, one_line(&what), hint));
            }
        }
        Ok((name, hosts))
    }

    /// Nobody else would: a shell is not between.
    fn expanded(&self, text: &str) -> String {
        match expand_home(text, self.home).into_os_string().into_string() {
            Ok(expanded) if text.starts_with("~/") => expanded,
            _ => text.to_owned(),
        }
    }

    fn table<'b>(&self, key: &Key<'_>, value: &'b Spanned<DeValue<'b>>) -> Result<&'b DeTable<'b>, Error> {
        value.get_ref().as_table().ok_or_else(|| {
            let what = format!("`{}` is no table", one_line(key.get_ref()));
            self.wrong(key.span().start, what, Some(TABLES.to_owned()))
        })
    }

    /// The tables of the parser are sorted by key, and what is first in the file wins.
    fn in_order<'b>(&self, table: &'b DeTable<'b>) -> Vec<(&'b Key<'b>, &'b Spanned<DeValue<'b>>)> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
    }

    fn wrong(&self, at: usize, what: String, hint: Option<String>) -> Error {
        self.at_line(self.line(at), what, hint)
    }

    fn at_line(&self, line: usize, what: String, hint: Option<String>) -> Error {
        Error::Text { path: self.path.to_owned(), line, what, hint }
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }
}

const TABLES: &str = "there are `[defaults]`, `[hosts.\"PATTERN\"]` and `[lists]`";

const HOSTS: &str = "a section of hosts is `[hosts.\"NAME\"]`, in quotes, with names and patterns as behind `Host` in ssh_config";

#[cfg(test)]
mod tests;
