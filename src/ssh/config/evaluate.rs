//! Lines → settings: which blocks apply, what is included, and which value came first.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ConfigFile, Error, Request, Surroundings, Warning,
    canonical::{self, Canonicalize},
    destination, expand, files, glob,
    keyword::{self, Keyword, Syntax},
    line::{self, Line, Place},
    pattern::{self, ListMatch},
    print, way,
};
use crate::ssh::target::AddressFamily;

/// How deep files may include each other; OpenSSH's number.
const DEEPEST: usize = 16;

/// One value that was obtained.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) args: Vec<String>,
    pub(super) place: Place,
    /// By the user: on the command line or in a file of theirs, not in the system's.
    pub(super) by_user: bool,
}

impl Setting {
    /// Returns the first argument; every setting that was checked has one.
    pub(super) fn value(&self) -> &str {
        self.args.first().map_or("", String::as_str)
    }
}

/// What the configuration says about one host.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// By keyword in lower case; the first value that applied.
    pub(super) first: BTreeMap<&'static str, Setting>,
    /// `IdentityFile`s, all that applied.
    pub(super) identity_files: Vec<Setting>,
    /// The other keywords that accumulate, all that applied.
    pub(super) lists: BTreeMap<&'static str, Vec<Setting>>,
    /// The name to dial, in its one spelling.
    pub(super) host: String,
    pub(super) warnings: Vec<Warning>,
}

impl Evaluated {
    /// Returns the name of the jump host that connects us to the host, or nothing.
    pub(super) fn jump_host(&self) -> &str {
        jump_host(&self.first)
    }
}

/// `%j`: the last host that `ProxyJump` names, without its user and port.
fn jump_host<'a>(first: &'a BTreeMap<&'static str, Setting>) -> &'a str {
    let setting =
        first.get("proxy").filter(|setting| setting.args.get(1).is_some_and(|name| name == "ProxyJump"));
    let value = setting.map_or("", Setting::value);
    if value.eq_ignore_ascii_case("none") {
        return "";
    }
    let last = value.rsplit(',').next().unwrap_or_default();
    let last = last.strip_prefix("ssh://").unwrap_or(last);
    let host = last.rsplit('@').next().unwrap_or_default();
    match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Evaluates the command line, the user's file and the system's file for one host.
pub(super) fn evaluate(
    request: &Request,
    surroundings: &Surroundings,
    home: &str,
) -> Result<Evaluated, Error> {
    let mut evaluator = Evaluator {
        request,
        surroundings,
        home,
        first: BTreeMap::new(),
        identity_files: Vec::new(),
        ignored: Vec::new(),
        lists: BTreeMap::new(),
        warnings: Vec::new(),
        final_host: None,
        want_final: false,
    };
    evaluator.command_line()?;
    evaluator.files()?;
    let mut host = evaluator.current_host()?;
    destination::check_host(&host)?;
    host = match destination::address(&host) {
        Some(address) => address,
        None => match destination::short_ipv4(&host).filter(|_| !evaluator.only_ipv6()) {
            Some(address) => address.to_string(),
            None => host.to_ascii_lowercase(),
        },
    };
    let canonicalize = Canonicalize::of(&evaluator.first);
    if canonicalize != Canonicalize::No {
        host = canonical::name(host, canonicalize, &evaluator.first, surroundings.find_host)?;
    }
    if evaluator.want_final || canonicalize != Canonicalize::No {
        evaluator.final_host = Some(host.clone());
        // What canonicalisation went by is settled.
        for (keyword, default) in canonical::DEFAULTS {
            let setting =
                || Setting { args: vec![default.into()], place: Place::CommandLine, by_user: false };
            evaluator.first.entry(keyword).or_insert_with(setting);
        }
        evaluator.files()?;
    }
    evaluator.warn_of_ignored();
    let Evaluator { first, identity_files, lists, warnings, .. } = evaluator;
    Ok(Evaluated { first, identity_files, lists, host, warnings })
}

pub(super) struct Evaluator<'a> {
    pub(super) request: &'a Request,
    pub(super) surroundings: &'a Surroundings,
    home: &'a str,
    pub(super) first: BTreeMap<&'static str, Setting>,
    identity_files: Vec<Setting>,
    /// What was ignored of keywords that accumulate: the first of each.
    ignored: Vec<(&'static str, Setting)>,
    lists: BTreeMap<&'static str, Vec<Setting>>,
    warnings: Vec<Warning>,
    /// The host's final name, in the second pass.
    pub(super) final_host: Option<String>,
    pub(super) want_final: bool,
}

/// The file that is being read, and how.
#[derive(Clone)]
struct Source {
    path: Arc<Path>,
    by_user: bool,
    /// Whether its owner and permissions matter, as those of every file that can be found without being named.
    checked: bool,
    /// The block that includes it does not apply, so that nothing in it does: it is only checked.
    never: bool,
    depth: usize,
}

impl Evaluator<'_> {
    fn command_line(&mut self) -> Result<(), Error> {
        let mut set = |keyword: &'static str, value: String| {
            let setting = Setting { args: vec![value], place: Place::CommandLine, by_user: true };
            self.first.insert(keyword, setting);
        };
        if let Some(user) = &self.request.user {
            set("user", user.clone());
        }
        if let Some(port) = self.request.port {
            set("port", port.to_string());
        }
        if let Some(jump) = &self.request.jump {
            let line = line::parse_option("ProxyJump", jump)?;
            self.setting(Keyword::Proxy("ProxyJump"), &line, true, true)?;
        }
        for (keyword, value) in &self.request.options {
            let line = line::parse_option(keyword, value)?;
            match keyword::lookup(&line.keyword) {
                Some(Keyword::Host | Keyword::Match | Keyword::Include) => {
                    return Err(Error::bad(&line.place, format!("`{}` belongs into a file", line.keyword)));
                }
                Some(known) => self.setting(known, &line, true, true)?,
                None if self.is_ignored_unknown(&line.keyword) => {}
                None => {
                    return Err(Error::bad(
                        &line.place,
                        format!("`{}` is not an option of ssh", line.keyword),
                    ));
                }
            }
        }
        Ok(())
    }

    fn files(&mut self) -> Result<(), Error> {
        let source = |path: &Path, by_user, checked| Source {
            path: Arc::from(path),
            by_user,
            checked,
            never: false,
            depth: 0,
        };
        match &self.surroundings.user_config {
            ConfigFile::None => Ok(()),
            ConfigFile::Path(path) => match self.file(&source(path, true, false), true)? {
                Found::Yes => Ok(()),
                Found::No => Err(Error::Read { path: path.clone(), source: rustix::io::Errno::NOENT.into() }),
            },
            ConfigFile::Default => {
                let user = self.surroundings.home.join(".ssh/config");
                self.file(&source(&user, true, true), true)?;
                self.file(&source(&self.surroundings.system_config, false, false), true)?;
                Ok(())
            }
        }
    }

    fn file(&mut self, source: &Source, mut active: bool) -> Result<Found, Error> {
        let before = self.surroundings.files.as_ref();
        let Some(lines) = files::lines(&source.path, source.checked, before)? else { return Ok(Found::No) };
        for line in lines.iter() {
            match keyword::lookup(&line.keyword) {
                Some(Keyword::Host) => active = self.host_applies(line)? && !source.never,
                Some(Keyword::Match) => active = self.match_applies(line, source.never)? && !source.never,
                Some(Keyword::Include) => self.include(line, source, active)?,
                Some(known) => self.setting(known, line, active, source.by_user)?,
                None if !active || self.is_ignored_unknown(&line.keyword) => {}
                None => {
                    self.warn(&line.place, format!("`{}` is unknown and ignored", printable(&line.keyword)));
                }
            }
        }
        Ok(Found::Yes)
    }

    fn host_applies(&self, line: &Line) -> Result<bool, Error> {
        let host = self.final_host.as_ref().unwrap_or(&self.request.host);
        let mut applies = false;
        for arg in &line.args {
            if arg.is_empty() {
                return Err(Error::bad(&line.place, "a pattern is empty"));
            }
            match arg.strip_prefix('!') {
                Some(pattern) if pattern::matches(host, pattern) => return Ok(false),
                Some(_) => {}
                None => applies |= pattern::matches(host, arg),
            }
        }
        Ok(applies)
    }

    fn include(&mut self, line: &Line, source: &Source, active: bool) -> Result<(), Error> {
        let bad = |why: String| Error::bad(&line.place, why);
        for arg in &line.args {
            if arg.is_empty() {
                return Err(bad("an argument is empty".to_owned()));
            }
            let host = self.current_host()?;
            let alias = self.first.get("hostkeyalias").map_or(host.as_str(), Setting::value);
            let tokens = self.tokens(&host, alias);
            let path = expand::all(arg, &tokens, &self.surroundings.env).map_err(bad)?;
            let path = if path.starts_with('~') {
                if !source.by_user {
                    return Err(bad("the system's file includes no file of a user".to_owned()));
                }
                expand::tilde(&path, self.home).map_err(bad)?
            } else if path.starts_with('/') {
                path
            } else if source.by_user {
                format!("{}/.ssh/{path}", self.home)
            } else {
                let directory = self.surroundings.system_config.parent().unwrap_or(Path::new("/etc/ssh"));
                format!("{}/{path}", directory.display())
            };
            let found =
                glob::paths(&path).map_err(|source| Error::Read { path: PathBuf::from(&path), source })?;
            for path in found {
                if path.is_dir() {
                    self.warn(&line.place, format!("`{}` is a directory", path.display()));
                    continue;
                }
                if source.depth >= DEEPEST {
                    return Err(bad(format!("files include each other more than {DEEPEST} times")));
                }
                let included = Source {
                    path: Arc::from(path),
                    by_user: source.by_user,
                    checked: true,
                    never: source.never || !active,
                    depth: source.depth + 1,
                };
                // A block that begins in the included file ends with it: `active` here stays what it is.
                self.file(&included, active)?;
            }
        }
        Ok(())
    }

    fn setting(&mut self, known: Keyword, line: &Line, active: bool, by_user: bool) -> Result<(), Error> {
        let setting = || Setting {
            // A command is taken as it stands.
            args: if print::is_command(&line.keyword) {
                vec![line.rest.trim_start_matches([' ', '\t', '=']).to_owned()]
            } else {
                line.args.clone()
            },
            place: line.place.clone(),
            by_user,
        };
        let check = |syntax: Syntax| {
            let named = |why| Error::bad(&line.place, format!("`{}`: {why}", line.keyword));
            syntax.check(&line.args).map_err(named)
        };
        let first_wins = match known {
            // Structure is the caller's.
            Keyword::Host | Keyword::Match | Keyword::Include => return Ok(()),
            Keyword::Silent => {
                let Some(name) = print::name(&line.keyword) else { return Ok(()) };
                name
            }
            Keyword::Value(name, syntax) => {
                check(syntax)?;
                // Each half of it is a value of its own.
                if syntax == Syntax::Rekey
                    && active
                    && let Some(first) = self.first.get_mut(name)
                    && first.args.get(1).is_none_or(|after| after == "none")
                    && let Some(after) = line.args.get(1)
                {
                    first.args.truncate(1);
                    first.args.push(after.clone());
                }
                // To OpenSSH a time of `none` is one that was never obtained: a later line may still say one.
                if syntax == Syntax::Time && line.args.iter().any(|arg| arg == "none") {
                    return Ok(());
                }
                name
            }
            Keyword::CertificateFile => {
                check(Syntax::Text)?;
                if active && !self.has(line) {
                    self.lists.entry("certificatefile").or_default().push(setting());
                }
                return Ok(());
            }
            Keyword::IdentityFile => {
                check(Syntax::Text)?;
                let twice = self.identity_files.iter().any(|s| s.args == line.args && s.by_user == by_user);
                if active && !twice {
                    self.identity_files.push(setting());
                }
                return Ok(());
            }
            Keyword::SendEnv => {
                if line.args.is_empty() || line.args.iter().any(|arg| arg.is_empty() || arg.contains('=')) {
                    return Err(Error::bad(&line.place, "`sendenv`: it takes names of variables"));
                }
                if active {
                    self.lists.entry("sendenv").or_default().push(setting());
                }
                return Ok(());
            }
            Keyword::IgnoreUnknown => {
                check(Syntax::Text)?;
                "ignoreunknown"
            }
            Keyword::RefuseConnection => {
                if active {
                    return Err(Error::Refused {
                        place: line.place.clone(),
                        message: printable(&line.args.join(" ")),
                    });
                }
                return Ok(());
            }
            Keyword::Proxy(name) => {
                let mut value = line.rest.trim_start_matches([' ', '\t', '=']);
                if name == "ProxyJump" {
                    // A command may hold a `#`, a host cannot.
                    value = value.split('#').next().unwrap_or_default().trim_end();
                    way::check_jump(value)
                        .map_err(|why| Error::bad(&line.place, format!("`proxyjump`: {why}")))?;
                }
                if active && !self.first.contains_key("proxy") {
                    let args = vec![value.to_owned(), name.to_owned()];
                    self.first.insert("proxy", Setting { args, place: line.place.clone(), by_user });
                }
                return Ok(());
            }
            Keyword::Ignored(ignored) => {
                if ignored.accumulates {
                    let told = self.ignored.iter().any(|(name, _)| *name == ignored.name);
                    if active && !told && (ignored.missed)(&line.args) {
                        self.ignored.push((ignored.name, setting()));
                    }
                    if active
                        && (self.final_host.is_none() || !self.has(line))
                        && let Some(name) = print::name(&line.keyword)
                    {
                        self.lists.entry(name).or_default().push(setting());
                    }
                    return Ok(());
                }
                print::name(&line.keyword).unwrap_or(ignored.name)
            }
        };
        if active && !self.first.contains_key(first_wins) {
            self.first.insert(first_wins, setting());
        }
        Ok(())
    }

    /// Returns whether this very line has added to a list.
    fn has(&self, line: &Line) -> bool {
        self.lists.values().flatten().any(|setting| setting.place == line.place && setting.args == line.args)
    }

    /// Warns of every ignored keyword whose value, the first that applied, will be missed.
    fn warn_of_ignored(&mut self) {
        let mut told = std::mem::take(&mut self.ignored);
        let mut comforts: Vec<(&str, Setting)> = Vec::new();
        for (key, setting) in &self.first {
            if let Some(Keyword::Ignored(ignored)) = keyword::lookup(&key.to_ascii_lowercase())
                && (ignored.missed)(&setting.args)
                && (setting.by_user || !ignored.comfort)
            {
                let told = if ignored.comfort { &mut comforts } else { &mut told };
                told.push((ignored.name, setting.clone()));
            }
        }
        if let Some((_, first)) = comforts.first() {
            let names: Vec<_> = comforts.iter().map(|(name, _)| format!("`{name}`")).collect();
            self.warn(&first.place.clone(), format!("without effect in broker: {}", names.join(", ")));
        }
        for (name, setting) in told {
            self.warn(&setting.place, format!("`{name}` is ignored for now"));
        }
    }

    fn only_ipv6(&self) -> bool {
        let said = || keyword::family(self.first.get("addressfamily")?.value());
        self.request.address_family.or_else(said) == Some(AddressFamily::Inet6)
    }

    fn is_ignored_unknown(&self, keyword: &str) -> bool {
        let patterns = self.first.get("ignoreunknown").map_or("", Setting::value);
        pattern::list(keyword, &patterns.to_ascii_lowercase()) == ListMatch::Yes
    }

    /// Returns the host as far as it is known: what `Match host` compares.
    pub(super) fn current_host(&self) -> Result<String, Error> {
        if let Some(host) = &self.final_host {
            return Ok(host.clone());
        }
        match self.first.get("hostname") {
            Some(setting) => expand::hostname(setting.value(), &self.request.host)
                .map_err(|why| Error::bad(&setting.place, format!("`hostname`: {why}"))),
            None => Ok(self.request.host.clone()),
        }
    }

    pub(super) fn current_user(&self) -> &str {
        self.first.get("user").map_or(&self.surroundings.local_user, Setting::value)
    }

    pub(super) fn tokens<'t>(&'t self, host: &'t str, host_key_alias: &'t str) -> expand::Tokens<'t> {
        expand::Tokens {
            host,
            original: &self.request.host,
            port: self.first.get("port").and_then(|s| destination::port(s.value())).unwrap_or(22),
            user: Some(self.current_user()),
            host_key_alias,
            home: self.home,
            local_user: &self.surroundings.local_user,
            local_hostname: &self.surroundings.local_hostname,
            jump: jump_host(&self.first),
        }
    }

    /// Says it once: the second pass meets the same lines again.
    pub(super) fn warn(&mut self, place: &Place, text: String) {
        let warning = Warning { place: place.clone(), text };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

/// Whether a file was there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Yes,
    No,
}

fn printable(text: &str) -> String {
    crate::printable::one_line(text)
}
