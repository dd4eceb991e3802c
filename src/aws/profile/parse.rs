//! The text of one file → its sections. Pure: the text is at hand, and nothing is looked up.

use std::{
    fmt,
    path::Path,
    pin::pin,
    task::{Context, Poll, Waker},
};

use aws_runtime::env_config::{
    file::{EnvConfigFileKind, EnvConfigFiles},
    property::PropertiesKey,
    section::{EnvConfigSections, Profile, SsoSession},
    source,
};
use aws_types::os_shim_internal::{Env, Fs};

use super::errors::Error;
use crate::printable::one_line;

/// The sections of one file, under the names that people know.
#[derive(Debug)]
pub(super) struct Sections(EnvConfigSections);

impl Sections {
    /// Returns a profile by its name.
    pub(super) fn profile(&self, name: &str) -> Option<&Profile> {
        self.0.get_profile(&encoded(name))
    }

    /// Returns an `[sso-session]` by its name.
    pub(super) fn sso_session(&self, name: &str) -> Option<&SsoSession> {
        self.0.sso_session(&encoded(name))
    }

    /// Returns the names of all profiles.
    pub(super) fn profile_names(&self) -> impl Iterator<Item = String> {
        self.0.profiles().filter_map(decoded)
    }

    /// Returns the names of all `[sso-session]`s.
    pub(super) fn session_names(&self) -> impl Iterator<Item = String> {
        self.0.sso_sessions().filter_map(decoded)
    }

    /// Returns the `endpoint_url` of one service in `[services NAME]`.
    pub(super) fn endpoint(&self, services: &str, service: &str) -> Option<&str> {
        let key = PropertiesKey::builder()
            .section_key("services")
            .section_name(encoded(services))
            .property_name(service)
            .sub_property_name("endpoint_url")
            .build()
            .ok()?;
        self.0.other_sections().get(&key).map(String::as_str).filter(|url| !url.is_empty())
    }
}

/// Parses one file on its own, so that every value is known to come from it.
pub(super) fn sections(path: &Path, kind: EnvConfigFileKind, bytes: &[u8]) -> Result<Sections, Error> {
    let syntax = |fault: String| Error::Syntax { path: path.to_owned(), fault };
    let text = std::str::from_utf8(bytes).map_err(|_| syntax("it is not UTF-8 text".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = with_encoded_names(text, matches!(kind, EnvConfigFileKind::Credentials));
    let files = EnvConfigFiles::builder().with_contents(kind, text).build();
    let (environment, file_system) = (Env::from_slice(&[]), Fs::from_slice(&[]));
    // The text is at hand, so that this future is ready at its first poll: there is nothing to wait for.
    let loading = pin!(source::load(&environment, &file_system, &files));
    let Poll::Ready(loaded) = loading.poll(&mut Context::from_waker(Waker::noop())) else {
        return Err(syntax("the parser did not finish".to_owned()));
    };
    let loaded = loaded.map_err(|error| syntax(one_line(&error.to_string())))?;
    EnvConfigSections::parse(loaded).map(Sections).map_err(|error| {
        let fault = one_line(&error.to_string());
        // The parser knows no path: "error parsing  on line 3:   Expected…".
        let fault =
            fault.trim_start_matches("error parsing").trim_start().trim_start_matches("on ").to_owned();
        syntax(fault.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// Encodes the names in section headers: the parser ignores sections whose name is more than an identifier, but the
/// AWS CLI takes `[profile 'team a']`. Lines stay where they are.
fn with_encoded_names(text: &str, in_credentials: bool) -> String {
    let header = |line: &str| {
        let (title, rest) = line.strip_prefix('[')?.split_once(']')?;
        let title = title.trim();
        let words = title.split_once(char::is_whitespace).filter(|_| !in_credentials);
        let (prefix, name) = words.map_or(("", title), |(prefix, name)| (prefix, name.trim()));
        let quoted = |quote| name.strip_prefix(quote)?.strip_suffix(quote);
        let name = match quoted('\'').or_else(|| quoted('"')) {
            Some(name) if !in_credentials => encoded(name),
            // Without quotes the AWS CLI takes two words for two names, and the section for none.
            None if !in_credentials && name.contains(char::is_whitespace) => name.to_owned(),
            Some(_) | None => encoded(name),
        };
        Some(format!("[{prefix} {name}]{rest}"))
    };
    text.split('\n')
        .map(|line| header(line).unwrap_or_else(|| line.to_owned()))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Writes a name as an identifier: what is not a letter, a digit or one of `_-/.@:+` as `%XX`.
fn encoded(name: &str) -> String {
    use fmt::Write as _;

    name.bytes().fold(String::with_capacity(name.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"_-/.@:+".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

/// Undoes [`encoded`].
fn decoded(name: &str) -> Option<String> {
    let mut bytes = name.bytes();
    let mut decoded = Vec::with_capacity(name.len());
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(decoded).ok()
}
