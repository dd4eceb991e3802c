//! The result of a resolution in the format of `ssh -G`.
//!
//! What is printed is what the configuration says, also of keywords that we do not honour. Where it says nothing it
//! is OpenSSH's default, but for `ServerAliveInterval` and `ConnectTimeout`, where it is ours, and for the lists of
//! algorithms, which are not printed.

use std::fmt::Write as _;

use super::{
    Error, Request, Resolver, Surroundings, Warning,
    evaluate::Setting,
    keyword::{self, flag},
};
use crate::ssh::target::{AddressFamily, Target};

/// How a value is printed.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// `yes` or `no`.
    Flag,
    /// `true` or `false`, or a word of its own.
    State,
    /// Seconds.
    Seconds,
    /// The first argument as it is.
    Text,
    /// All arguments on one line.
    Words,
    /// A line for each setting or argument.
    Lines,
    /// Made by [`Printer::special`].
    Special,
}
use Form::{Flag, Lines, Seconds, Special, State, Text, Words};

/// Every keyword that is printed, in OpenSSH's order, with its default.
const KEYWORDS: &[(&str, Form, Option<&str>)] = &[
    ("user", Special, None),
    ("hostname", Special, None),
    ("port", Special, None),
    ("addressfamily", Special, None),
    ("batchmode", Flag, Some("no")),
    ("canonicalizefallbacklocal", Flag, Some("yes")),
    ("canonicalizehostname", State, Some("false")),
    ("checkhostip", Flag, Some("no")),
    ("compression", Flag, Some("no")),
    ("controlmaster", State, Some("false")),
    ("enablesshkeysign", Flag, Some("no")),
    ("clearallforwardings", Flag, Some("no")),
    ("exitonforwardfailure", Flag, Some("no")),
    ("fingerprinthash", Special, Some("SHA256")),
    ("forwardx11", Flag, Some("no")),
    ("forwardx11trusted", Flag, Some("no")),
    ("gatewayports", Flag, Some("no")),
    ("gssapiauthentication", Flag, Some("no")),
    ("gssapidelegatecredentials", Flag, Some("no")),
    ("hashknownhosts", Flag, Some("no")),
    ("hostbasedauthentication", Flag, Some("no")),
    ("identitiesonly", Flag, Some("no")),
    ("kbdinteractiveauthentication", Flag, Some("yes")),
    ("nohostauthenticationforlocalhost", Flag, Some("no")),
    ("passwordauthentication", Flag, Some("yes")),
    ("permitlocalcommand", Flag, Some("no")),
    ("proxyusefdpass", Flag, Some("no")),
    ("pubkeyauthentication", State, Some("true")),
    ("requesttty", State, Some("auto")),
    ("sessiontype", State, Some("default")),
    ("stdinnull", Flag, Some("no")),
    ("forkafterauthentication", Flag, Some("no")),
    ("streamlocalbindunlink", Flag, Some("no")),
    ("stricthostkeychecking", State, Some("ask")),
    ("tcpkeepalive", Flag, Some("yes")),
    ("tunnel", Special, Some("false")),
    ("verifyhostkeydns", State, Some("false")),
    ("visualhostkey", Flag, Some("no")),
    ("updatehostkeys", Special, None),
    ("enableescapecommandline", Flag, Some("no")),
    ("canonicalizemaxdots", Text, Some("1")),
    ("connectionattempts", Text, Some("1")),
    ("forwardx11timeout", Seconds, Some("1200")),
    ("numberofpasswordprompts", Text, Some("3")),
    ("serveralivecountmax", Text, Some("3")),
    ("serveraliveinterval", Seconds, Some("15")),
    ("requiredrsasize", Text, Some("1024")),
    ("bindaddress", Text, None),
    ("bindinterface", Text, None),
    ("ciphers", Text, None),
    ("controlpath", Text, None),
    ("hostkeyalgorithms", Text, None),
    ("hostkeyalias", Special, None),
    ("identityagent", Special, None),
    ("ignoreunknown", Text, None),
    ("kbdinteractivedevices", Text, None),
    ("kexalgorithms", Text, None),
    ("casignaturealgorithms", Text, None),
    ("hostbasedacceptedalgorithms", Text, None),
    ("pubkeyacceptedalgorithms", Text, None),
    ("localcommand", Text, None),
    ("remotecommand", Special, None),
    ("loglevel", Special, Some("INFO")),
    ("rekeylimit", Special, Some("0")),
    ("macs", Text, None),
    ("pkcs11provider", Text, None),
    ("securitykeyprovider", Text, Some("internal")),
    ("preferredauthentications", Text, None),
    ("xauthlocation", Text, Some("/usr/bin/xauth")),
    ("knownhostscommand", Text, None),
    ("tag", Text, None),
    ("versionaddendum", Text, None),
    ("dynamicforward", Special, None),
    ("localforward", Special, None),
    ("remoteforward", Special, None),
    ("identityfile", Special, None),
    ("canonicaldomains", Words, Some("none")),
    ("certificatefile", Lines, None),
    ("globalknownhostsfile", Special, None),
    ("userknownhostsfile", Special, None),
    ("revokedhostkeys", Words, None),
    ("sendenv", Special, None),
    ("setenv", Special, None),
    ("logverbose", Words, Some("none")),
    ("channeltimeout", Words, None),
    ("permitremoteopen", Words, Some("any")),
    ("addkeystoagent", State, Some("false")),
    ("forwardagent", Special, Some("no")),
    ("connecttimeout", Special, None),
    ("tunneldevice", Special, Some("any:any")),
    ("canonicalizepermittedcnames", Words, Some("none")),
    ("controlpersist", Special, Some("no")),
    ("escapechar", Text, Some("~")),
    ("ipqos", Words, Some("lowdelay throughput")),
    ("streamlocalbindmask", Special, Some("0177")),
    ("syslogfacility", Special, Some("USER")),
    ("proxy", Special, None),
];

/// Returns the one name of a keyword in lower case under which it is kept.
pub(super) fn name(keyword: &str) -> Option<&'static str> {
    let keyword = match keyword {
        "skeyauthentication" | "challengeresponseauthentication" | "tisauthentication" => {
            "kbdinteractiveauthentication"
        }
        "hostbasedkeytypes" => "hostbasedacceptedalgorithms",
        "pubkeyacceptedkeytypes" => "pubkeyacceptedalgorithms",
        "dsaauthentication" => "pubkeyauthentication",
        "keepalive" => "tcpkeepalive",
        "smartcarddevice" => "pkcs11provider",
        keyword => keyword,
    };
    KEYWORDS.iter().map(|(name, ..)| *name).find(|name| *name == keyword)
}

/// Returns whether what follows a keyword is a command line, quotes and all.
pub(super) fn is_command(keyword: &str) -> bool {
    matches!(keyword, "remotecommand" | "localcommand" | "knownhostscommand")
}

/// Resolves `request` and prints what came of it.
pub(crate) fn print(request: &Request, surroundings: &Surroundings) -> Result<(String, Vec<Warning>), Error> {
    let mut resolver = Resolver::new(request, surroundings, Vec::new())?;
    // What the jump hosts are is printed for them.
    resolver.follow = false;
    let target = resolver.target()?;
    let mut printer = Printer { resolver: &resolver, target: &target, text: String::new() };
    printer.all();
    let text = std::mem::take(&mut printer.text);
    Ok((text, resolver.evaluated.warnings))
}

struct Printer<'a> {
    resolver: &'a Resolver<'a>,
    target: &'a Target,
    text: String,
}

impl Printer<'_> {
    fn all(&mut self) {
        self.line("host", &self.resolver.request.host);
        for (name, form, default) in KEYWORDS {
            match (form, self.resolver.setting(name)) {
                (Special, _) => self.special(name, *default),
                (Lines, _) => {
                    for setting in self.list(name) {
                        self.line(name, setting.value());
                    }
                }
                // What is taken back with `none` is not printed.
                (_, Some(setting))
                    if matches!(*name, "knownhostscommand" | "revokedhostkeys")
                        && setting.value().eq_ignore_ascii_case("none") => {}
                (_, None) => default.iter().for_each(|default| self.line(name, default)),
                (Flag, Some(setting)) => self.line(name, yes_no(setting.value())),
                (State, Some(setting)) => self.line(name, &state(setting.value())),
                (Seconds, Some(setting)) => self.line(name, &seconds(setting.value())),
                (Text, Some(setting)) => self.line(name, setting.value()),
                (Words, Some(setting)) => self.line(name, &setting.args.join(" ")),
            }
        }
    }

    fn line(&mut self, name: &str, value: &str) {
        // What is printed may be pasted into a terminal; a file may hold anything.
        let value = crate::printable::one_line(value);
        // OpenSSH spells one keyword so.
        let name = if name == "canonicalizepermittedcnames" { "canonicalizePermittedcnames" } else { name };
        writeln!(self.text, "{name} {value}").unwrap_or_default();
    }

    fn list(&self, name: &str) -> Vec<Setting> {
        self.resolver.evaluated.lists.get(name).cloned().unwrap_or_default()
    }

    fn special(&mut self, name: &str, default: Option<&str>) {
        let target = self.target;
        let setting = self.resolver.setting(name).cloned();
        let raw = setting.as_ref().map(Setting::value).or(default);
        match name {
            "user" => self.line(name, &target.user),
            "hostname" => self.line(name, &target.hostname),
            "port" => self.line(name, &target.port.to_string()),
            "addressfamily" => {
                let family = match target.address_family {
                    AddressFamily::Any => "any",
                    AddressFamily::Inet => "inet",
                    AddressFamily::Inet6 => "inet6",
                };
                self.line(name, family);
            }
            "fingerprinthash" | "syslogfacility" => {
                self.line(name, &raw.unwrap_or_default().to_ascii_uppercase());
            }
            "loglevel" => {
                let level = raw.unwrap_or_default().to_ascii_uppercase();
                // Of two names for one level, OpenSSH prints this one.
                let printed = match level.as_str() {
                    "QUIET" => "SILENT",
                    "DEBUG1" => "DEBUG",
                    level => level,
                };
                self.line(name, printed);
            }
            "rekeylimit" => {
                let said = setting.as_ref().and_then(|setting| keyword::rekey(&setting.args));
                let (bytes, seconds) = said.unwrap_or_default();
                self.line(name, &format!("{bytes} {seconds}"));
            }
            "tunnel" => {
                let mode = state(raw.unwrap_or_default());
                self.line(name, if mode == "true" { "point-to-point" } else { &mode });
            }
            "hostkeyalias" => target.host_key_alias.iter().for_each(|alias| self.line(name, alias)),
            "identityagent" => {
                // A path is printed expanded, the words that stand for one are not.
                match (raw, &target.identities.agent) {
                    (Some(text), Some(path)) if text.contains('/') => {
                        self.line(name, &path.display().to_string())
                    }
                    (Some(text), _) => self.line(name, text),
                    (None, _) => {}
                }
            }
            "identityfile" => self.identity_files(),
            "globalknownhostsfile" | "userknownhostsfile" => {
                let global = name.starts_with('g');
                let files = if global { &target.known_hosts.global } else { &target.known_hosts.user };
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                self.line(name, &files.join(" "));
            }
            "sendenv" => self.resolver.send_env().iter().for_each(|pattern| self.line(name, pattern)),
            "setenv" => {
                let variables = self.resolver.set_env();
                variables
                    .iter()
                    .for_each(|(variable, value)| self.line(name, &format!("{variable}={value}")));
            }
            "dynamicforward" | "localforward" | "remoteforward" => {
                let ends =
                    |setting: &Setting| setting.args.iter().map(|end| forward_end(end)).collect::<Vec<_>>();
                let mut forwards: Vec<String> = Vec::new();
                for setting in self.list(name) {
                    let forward = ends(&setting).join(" ");
                    // One that is asked for twice is one.
                    if !forwards.contains(&forward) {
                        self.line(name, &forward);
                        forwards.push(forward);
                    }
                }
            }
            "forwardagent" | "controlpersist" => {
                let value = raw.unwrap_or_default();
                let value = flag(value)
                    .map_or_else(|| seconds(value), |yes| if yes { "yes" } else { "no" }.to_owned());
                self.line(name, &value);
            }
            "connecttimeout" => {
                let unsaid = || target.connect_timeout.as_secs().to_string();
                self.line(name, &raw.map_or_else(unsaid, seconds));
            }
            "tunneldevice" => {
                let value = raw.unwrap_or_default();
                self.line(name, &if value.contains(':') { value.to_owned() } else { format!("{value}:any") });
            }
            "streamlocalbindmask" => {
                let mask = raw.unwrap_or_default().trim_start_matches('0');
                self.line(name, &format!("0{mask}"));
            }
            "remotecommand" => match (&target.session.command, raw) {
                (Some(command), _) => self.line(name, command),
                (None, Some(none)) => self.line(name, none),
                (None, None) => {}
            },
            "updatehostkeys" => {
                // On for those who keep to the usual file and ask no DNS.
                let usual = self.resolver.setting("userknownhostsfile").is_none();
                let dns = self
                    .resolver
                    .setting("verifyhostkeydns")
                    .is_some_and(|dns| state(dns.value()) != "false");
                let default = if usual && !dns { "true" } else { "false" };
                self.line(name, &raw.map_or_else(|| default.to_owned(), state));
            }
            "proxy" => self.proxy(setting),
            _ => {}
        }
    }

    fn identity_files(&mut self) {
        let typed = self.resolver.request.identity_files.iter().map(|path| path.display().to_string());
        let configured = self.resolver.evaluated.identity_files.iter().map(|s| s.value().to_owned());
        let mut files: Vec<String> = typed.chain(configured).collect();
        if files.is_empty() {
            files = super::IDENTITY_FILES.iter().map(|name| format!("~/.ssh/{name}")).collect();
        }
        files.iter().for_each(|file| self.line("identityfile", file));
    }

    fn proxy(&mut self, setting: Option<Setting>) {
        let Some(setting) = setting.filter(|setting| !setting.value().eq_ignore_ascii_case("none")) else {
            return;
        };
        if setting.args.get(1).is_some_and(|keyword| keyword == "ProxyCommand") {
            return self.line("proxycommand", setting.value());
        }
        let (before, last) = match setting.value().rsplit_once(',') {
            Some((before, last)) => (format!("{before},"), last),
            None => (String::new(), setting.value()),
        };
        let shown = super::Destination::parse(last).map_or_else(|_| last.to_owned(), |hop| shown(&hop));
        self.line("proxyjump", &format!("{before}{shown}"));
    }
}

/// A hop as OpenSSH prints it: an address in brackets.
fn shown(hop: &super::Destination) -> String {
    let address =
        hop.host.contains(':') || hop.host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let host = if address { format!("[{}]", hop.host) } else { hop.host.clone() };
    let user = hop.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let port = hop.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{user}{host}{port}")
}

/// One end of a forward: a port, a path, or a host and a port.
fn forward_end(end: &str) -> String {
    match end.rsplit_once([':', '/']) {
        Some((host, port)) if !end.starts_with('/') => {
            format!("[{}]:{port}", host.trim_start_matches('[').trim_end_matches(']'))
        }
        _ => end.to_owned(),
    }
}

fn yes_no(value: &str) -> &str {
    match flag(value) {
        Some(true) => "yes",
        Some(false) => "no",
        None => value,
    }
}

fn state(value: &str) -> String {
    match flag(value) {
        Some(true) => "true".to_owned(),
        Some(false) => "false".to_owned(),
        None if value.eq_ignore_ascii_case("off") => "false".to_owned(),
        None => value.to_ascii_lowercase(),
    }
}

fn seconds(value: &str) -> String {
    keyword::time(value).map_or_else(|| value.to_owned(), |seconds| seconds.to_string())
}
