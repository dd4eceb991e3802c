//! From the text of `~/.aws/config` and `~/.aws/credentials` to where a profile's credentials come from.
//!
//! No network, no environment. Every mistake names its file, section and key, so that it ends here and not at AWS.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    pin::pin,
    str::FromStr,
    task::{Context, Poll, Waker},
};

use aws_runtime::env_config::{
    file::{EnvConfigFileKind, EnvConfigFiles},
    section::EnvConfigSections,
    source,
};
use aws_types::os_shim_internal::{Env, Fs};

use super::client::check_url;
use crate::{
    names::{ProfileName, Region, Role},
    printable::one_line,
    private_fs,
};

/// The two files that hold profiles.
#[derive(Clone, Debug)]
pub(crate) struct ConfigFiles {
    pub(crate) config: PathBuf,
    pub(crate) credentials: PathBuf,
}

/// Every profile and SSO session that the files hold.
#[derive(Debug)]
pub(crate) struct Profiles {
    files: ConfigFiles,
    config: EnvConfigSections,
    credentials: EnvConfigSections,
}

/// One profile, ready to be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Profile {
    pub(crate) name: ProfileName,
    pub(crate) region: Option<Region>,
    pub(crate) output: Option<String>,
    pub(crate) source: Source,
}

/// Where the credentials of a profile come from. Chains and other sources join here as variants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    Sso(SsoRole),
}

/// A role that an SSO session may have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SsoRole {
    pub(crate) session: SsoSession,
    pub(crate) role: Role,
}

/// One sign-in to one Identity Center; profiles share it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SsoSession {
    pub(crate) name: SessionKey,
    pub(crate) start_url: StartUrl,
    pub(crate) region: Region,
    /// `sso_registration_scopes`; empty where none are configured.
    pub(crate) scopes: Vec<String>,
}

/// What a session is known by, to people and to the token cache.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum SessionKey {
    /// The name of an `[sso-session]` section.
    Session(String),
    /// The start URL: a legacy profile without `sso_session`.
    StartUrl,
}

/// The start URL of an access portal, kept to the letter because the token cache is named after it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct StartUrl(String);

/// A text that is no start URL.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is {fault}")]
pub(crate) struct BadStartUrl {
    text: String,
    fault: &'static str,
}

impl FromStr for StartUrl {
    type Err = BadStartUrl;

    fn from_str(text: &str) -> Result<Self, BadStartUrl> {
        match check_url(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(fault) => Err(BadStartUrl { text: one_line(text), fault }),
        }
    }
}

impl StartUrl {
    /// Returns the URL as configured.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl SsoSession {
    /// Returns the text whose SHA-1 names the token file, as every AWS SDK computes it.
    pub(crate) fn cache_key(&self) -> &str {
        match &self.name {
            SessionKey::Session(name) => name,
            SessionKey::StartUrl => self.start_url.as_str(),
        }
    }
}

impl fmt::Display for SsoSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.cache_key()))
    }
}

/// A mistake in the files, or a profile that we cannot use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] private_fs::Error),
    #[error("could not parse `{}`: {fault}", path.display())]
    Syntax { path: PathBuf, fault: String },
    #[error("there is no profile `{profile}` in `{}`", file.display())]
    UnknownProfile { profile: String, file: PathBuf, near: Vec<String>, known: Vec<String> },
    #[error("there is no `[sso-session {session}]` in `{}`{}", file.display(), wanted_by(profile.as_deref()))]
    UnknownSession { session: String, profile: Option<String>, file: PathBuf, near: Vec<String> },
    #[error("`[{section}]` in `{}` has no `{key}`", file.display())]
    Missing { file: PathBuf, section: String, key: &'static str },
    #[error("`{key}` of `[{section}]` in `{}` cannot be used", file.display())]
    Invalid {
        file: PathBuf,
        section: String,
        key: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{key}` of `[{section}]` in `{}` is not that of `[sso-session {session}]`", file.display())]
    Inconsistent { file: PathBuf, section: String, key: &'static str, session: String },
    #[error("profile `{profile}` uses `{key}` (in `{}`), which this version does not support yet", file.display())]
    Unsupported { profile: String, key: &'static str, file: PathBuf },
    #[error("profile `{profile}` in `{}` does not say where credentials come from", file.display())]
    NoSource { profile: String, file: PathBuf },
}

fn wanted_by(profile: Option<&str>) -> String {
    profile.map(|profile| format!(", but profile `{profile}` uses it")).unwrap_or_default()
}

impl Error {
    /// Returns what the person can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::UnknownProfile { near, .. } | Self::UnknownSession { near, .. } if !near.is_empty() => {
                Some(format!("did you mean {}?", alternatives(near)))
            }
            Self::UnknownProfile { known, .. } if known.is_empty() => Some(CONFIGURE.to_owned()),
            Self::UnknownProfile { known, .. } => Some(format!("there are: {}", listed(known))),
            Self::UnknownSession { session, .. } => {
                Some(format!("add it with `aws configure sso-session`, as `{session}`"))
            }
            Self::Inconsistent { key, session, .. } => {
                Some(format!("remove `{key}` from the profile; `[sso-session {session}]` has it"))
            }
            Self::Unsupported { .. } | Self::NoSource { .. } => Some(
                "use a profile with `sso_session`, `sso_account_id` and `sso_role_name` (`aws configure sso` writes one)"
                    .to_owned(),
            ),
            Self::Syntax { .. } => Some("correct the file, or name another one with AWS_CONFIG_FILE".to_owned()),
            Self::Missing { key, .. } => {
                Some(format!("add a line `{key} = …` there (`aws configure sso` writes all that is needed)"))
            }
            Self::Invalid { key, .. } => Some(format!("correct the line `{key} = …` there")),
        }
    }
}

/// What a person does who has no profile yet.
pub(crate) const CONFIGURE: &str = "run `aws configure sso` once, or name another file with AWS_CONFIG_FILE";

/// How many names are read by anybody.
const MOST_LISTED: usize = 12;

/// Joins names for a person, leaving out the end of a long list.
pub(crate) fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(MOST_LISTED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MOST_LISTED {
        text.push_str(&format!(" and {} more", names.len() - MOST_LISTED));
    }
    text
}

fn alternatives(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

impl Profiles {
    /// Reads both files; one that does not exist is empty.
    pub(crate) fn load(files: &ConfigFiles) -> Result<Self, Error> {
        let config = private_fs::read_config(&files.config)?;
        let credentials = private_fs::read_config(&files.credentials)?;
        if let Err(private_fs::Error::Exposed { mode, .. }) = private_fs::read(&files.credentials) {
            tracing::warn!(
                file = %files.credentials.display(),
                mode = format_args!("{mode:04o}"),
                "other users of this machine can read the credentials file"
            );
        }
        Self::parse(
            files,
            config.as_ref().map_or(&[], |bytes| bytes.as_slice()),
            credentials.as_ref().map_or(&[], |bytes| bytes.as_slice()),
        )
    }

    fn parse(files: &ConfigFiles, config: &[u8], credentials: &[u8]) -> Result<Self, Error> {
        Ok(Self {
            files: files.clone(),
            config: sections(&files.config, EnvConfigFileKind::Config, config)?,
            credentials: sections(&files.credentials, EnvConfigFileKind::Credentials, credentials)?,
        })
    }

    /// Returns the names of all profiles that could be served, sorted.
    pub(crate) fn names(&self) -> Vec<ProfileName> {
        let names: BTreeSet<String> =
            self.config.profiles().chain(self.credentials.profiles()).filter_map(decoded).collect();
        names.into_iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns the names of all `[sso-session]` sections, sorted.
    pub(crate) fn session_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.config.sso_sessions().filter_map(decoded).collect();
        names.into_iter().collect()
    }

    /// Returns the profile that is meant when nobody names one: a usable `default`, or else the only one.
    pub(crate) fn default_choice(&self) -> Option<ProfileName> {
        let names = self.names();
        let default = names.iter().find(|name| name.as_str() == "default" && self.resolve(name).is_ok());
        match (default, names.as_slice()) {
            (Some(default), _) => Some(default.clone()),
            (None, [only]) if self.resolve(only).is_ok() => Some(only.clone()),
            (None, _) => None,
        }
    }

    /// Follows a profile to its source.
    pub(crate) fn resolve(&self, name: &ProfileName) -> Result<Profile, Error> {
        let section = ProfileSection { profiles: self, name: name.as_str() };
        let key = encoded(name.as_str());
        if self.config.get_profile(&key).is_none() && self.credentials.get_profile(&key).is_none() {
            let names = self.names();
            return Err(Error::UnknownProfile {
                profile: name.to_string(),
                file: self.files.config.clone(),
                near: near(name.as_str(), names.iter().map(ProfileName::as_str)),
                known: names.iter().map(ToString::to_string).collect(),
            });
        }
        Ok(Profile {
            name: name.clone(),
            region: section.optional("region")?,
            output: section.get("output").map(|(value, _)| value.to_owned()),
            source: section.source()?,
        })
    }

    /// Returns an `[sso-session]` by its name.
    pub(crate) fn sso_session(&self, name: &str) -> Result<SsoSession, Error> {
        self.session_for(name, None)
    }

    fn session_for(&self, name: &str, profile: Option<&str>) -> Result<SsoSession, Error> {
        let file = &self.files.config;
        let Some(section) = self.config.sso_session(&encoded(name)) else {
            return Err(Error::UnknownSession {
                session: one_line(name),
                profile: profile.map(str::to_owned),
                file: file.clone(),
                near: near(name, self.session_names().iter().map(String::as_str)),
            });
        };
        let title = format!("sso-session {name}");
        let value = |key| {
            section.get(key).filter(|value| !value.is_empty()).ok_or_else(|| Error::Missing {
                file: file.clone(),
                section: title.clone(),
                key,
            })
        };
        Ok(SsoSession {
            name: SessionKey::Session(name.to_owned()),
            start_url: parsed(value("sso_start_url")?, file, &title, "sso_start_url")?,
            region: parsed(value("sso_region")?, file, &title, "sso_region")?,
            scopes: section
                .get("sso_registration_scopes")
                .unwrap_or_default()
                .split(',')
                .map(str::trim)
                .filter(|scope| !scope.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// A profile while it is read; the credentials file wins, as in every SDK.
struct ProfileSection<'a> {
    profiles: &'a Profiles,
    name: &'a str,
}

/// What other kinds of profiles say, in the order in which the AWS CLI looks for it.
const BEFORE_SSO: [&str; 2] = ["role_arn", "web_identity_token_file"];
const AFTER_SSO: [&str; 3] = ["aws_access_key_id", "login_session", "credential_process"];

impl<'a> ProfileSection<'a> {
    fn get(&self, key: &str) -> Option<(&'a str, &'a Path)> {
        let in_file = |sections: &'a EnvConfigSections, path: &'a Path| {
            sections
                .get_profile(&encoded(self.name))?
                .get(key)
                .filter(|value| !value.is_empty())
                .map(|value| (value, path))
        };
        in_file(&self.profiles.credentials, &self.profiles.files.credentials)
            .or_else(|| in_file(&self.profiles.config, &self.profiles.files.config))
    }

    fn title(&self) -> String {
        if self.name == "default" { "default".to_owned() } else { format!("profile {}", self.name) }
    }

    fn optional<T>(&self, key: &'static str) -> Result<Option<T>, Error>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.get(key).map(|(value, file)| parsed(value, file, &self.title(), key)).transpose()
    }

    fn required<T>(&self, key: &'static str) -> Result<T, Error>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.optional(key)?.ok_or_else(|| Error::Missing {
            file: self.profiles.files.config.clone(),
            section: self.title(),
            key,
        })
    }

    fn source(&self) -> Result<Source, Error> {
        let unsupported = |keys: &[&'static str]| {
            keys.iter().find_map(|key| {
                let (_, file) = self.get(key)?;
                Some(Error::Unsupported { profile: self.name.to_owned(), key, file: file.to_owned() })
            })
        };
        if let Some(error) = unsupported(&BEFORE_SSO) {
            return Err(error);
        }
        let sso = ["sso_session", "sso_start_url", "sso_account_id", "sso_role_name"];
        let names_a_role = self.get("sso_account_id").is_some() || self.get("sso_role_name").is_some();
        // A session without a role is for `aws sso login`; the profile's credentials may come from elsewhere.
        if !names_a_role && let Some(error) = unsupported(&AFTER_SSO) {
            return Err(error);
        }
        if sso.iter().all(|key| self.get(key).is_none()) {
            return Err(Error::NoSource {
                profile: self.name.to_owned(),
                file: self.profiles.files.config.clone(),
            });
        }
        let session = self.session()?;
        let role = Role { account: self.required("sso_account_id")?, name: self.required("sso_role_name")? };
        Ok(Source::Sso(SsoRole { session, role }))
    }

    fn session(&self) -> Result<SsoSession, Error> {
        let Some((name, _)) = self.get("sso_session") else {
            return Ok(SsoSession {
                name: SessionKey::StartUrl,
                start_url: self.required("sso_start_url")?,
                region: self.required("sso_region")?,
                scopes: Vec::new(),
            });
        };
        let session = self.profiles.session_for(name, Some(self.name))?;
        // Repeated keys are fine while they agree; which one would count is anybody's guess when they do not.
        for (key, expected) in
            [("sso_start_url", session.start_url.as_str()), ("sso_region", session.region.as_str())]
        {
            if let Some((value, file)) = self.get(key)
                && value != expected
            {
                return Err(Error::Inconsistent {
                    file: file.to_owned(),
                    section: self.title(),
                    key,
                    session: name.to_owned(),
                });
            }
        }
        Ok(session)
    }
}

fn parsed<T>(value: &str, file: &Path, section: &str, key: &'static str) -> Result<T, Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    value.parse().map_err(|source: T::Err| Error::Invalid {
        file: file.to_owned(),
        section: section.to_owned(),
        key,
        source: Box::new(source),
    })
}

/// Parses one file on its own, so that every value is known to come from it.
fn sections(path: &Path, kind: EnvConfigFileKind, bytes: &[u8]) -> Result<EnvConfigSections, Error> {
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
    EnvConfigSections::parse(loaded).map_err(|error| {
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

/// Returns the names that were probably meant, best first.
fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let distance = edit_distance(&wanted, &lower);
            let related = wanted.len() >= 3 && (lower.contains(&wanted) || wanted.contains(&lower));
            (distance <= 1 + wanted.chars().count() / 4 || related).then_some((distance, name))
        })
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Counts the insertions, deletions, replacements and swaps of neighbours that make `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    let at = |rows: &[Vec<usize>], i: usize, j: usize| {
        rows.get(i).and_then(|row| row.get(j)).copied().unwrap_or_default()
    };
    for (i, from) in a.iter().enumerate() {
        rows.push(vec![i + 1]);
        for (j, to) in b.iter().enumerate() {
            let replaced = at(&rows, i, j) + usize::from(from != to);
            let mut least = replaced.min(at(&rows, i, j + 1) + 1).min(at(&rows, i + 1, j) + 1);
            if let (Some(p), Some(q)) = (i.checked_sub(1), j.checked_sub(1))
                && (a.get(p), b.get(q)) == (Some(to), Some(from))
            {
                least = least.min(at(&rows, p, q) + 1);
            }
            if let Some(row) = rows.last_mut() {
                row.push(least);
            }
        }
    }
    at(&rows, a.len(), b.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    const CONFIG: &str = "
# a comment
[default]
region = eu-west-1
[sso-session corp]
sso_start_url = https://corp.awsapps.com/start#/
sso_region = us-east-1
sso_registration_scopes = sso:account:access, codewhisperer:completions
[profile dev]
sso_session = corp
sso_account_id = 111122223333
sso_role_name = Developer
region = eu-central-1
output = json
s3 =
  max_concurrent_requests = 20
[profile legacy]
sso_start_url = https://d-abc123.awsapps.com/start
sso_region = us-west-2
sso_account_id = 444455556666
sso_role_name = ReadOnly
[profile equal]
sso_session = corp
sso_start_url = https://corp.awsapps.com/start#/
sso_region = us-east-1
sso_account_id = 111122223333
sso_role_name = Developer
[profile unequal]
sso_session = corp
sso_region = us-east-2
sso_account_id = 111122223333
sso_role_name = Developer
[profile chained]
role_arn = arn:aws:iam::111122223333:role/x
source_profile = dev
[profile process]
credential_process = /bin/true
[profile lost]
sso_session = crop
sso_account_id = 111122223333
sso_role_name = Developer
[profile norole]
sso_session = corp
sso_account_id = 111122223333
[profile badaccount]
sso_session = corp
sso_account_id = 1111
sso_role_name = Developer
";

    fn files() -> ConfigFiles {
        ConfigFiles { config: "/h/.aws/config".into(), credentials: "/h/.aws/credentials".into() }
    }

    fn profiles(config: &str, credentials: &str) -> Profiles {
        Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes()).unwrap()
    }

    fn resolve(name: &str) -> Result<Profile, Error> {
        profiles(CONFIG, "[keys]\naws_access_key_id = AKIA\n").resolve(&name.parse().unwrap())
    }

    fn complaint(name: &str) -> (String, Option<String>) {
        let error = resolve(name).unwrap_err();
        (error.to_string(), error.hint())
    }

    #[test]
    fn a_session_profile_is_followed_to_its_session() {
        let profile = resolve("dev").unwrap();
        let Source::Sso(SsoRole { session, role }) = &profile.source;
        assert_eq!(session.name, SessionKey::Session("corp".into()));
        assert_eq!(session.start_url.as_str(), "https://corp.awsapps.com/start#/");
        assert_eq!(session.region.as_str(), "us-east-1");
        assert_eq!(session.scopes, ["sso:account:access", "codewhisperer:completions"]);
        assert_eq!(role.to_string(), "111122223333/Developer");
        assert_eq!(profile.region.unwrap().as_str(), "eu-central-1");
        assert_eq!(profile.output.as_deref(), Some("json"));
        assert_eq!(session.cache_key(), "corp");
    }

    #[test]
    fn a_legacy_profile_is_its_own_session() {
        let Source::Sso(SsoRole { session, .. }) = resolve("legacy").unwrap().source;
        assert_eq!(session.name, SessionKey::StartUrl);
        assert_eq!(session.cache_key(), "https://d-abc123.awsapps.com/start");
        assert!(session.scopes.is_empty());
    }

    #[test]
    fn session_keys_may_be_repeated_but_not_contradicted() {
        assert_eq!(resolve("equal").unwrap().source, resolve("dev").unwrap().source);
        let (text, hint) = complaint("unequal");
        assert_eq!(
            text,
            "`sso_region` of `[profile unequal]` in `/h/.aws/config` is not that of `[sso-session corp]`"
        );
        assert_eq!(hint.unwrap(), "remove `sso_region` from the profile; `[sso-session corp]` has it");
    }

    #[test]
    fn other_kinds_of_profiles_are_named_by_their_key() {
        assert_eq!(
            complaint("chained").0,
            "profile `chained` uses `role_arn` (in `/h/.aws/config`), which this version does not support yet"
        );
        assert!(complaint("process").0.contains("`credential_process`"));
        assert!(complaint("keys").0.contains("`aws_access_key_id` (in `/h/.aws/credentials`)"));
        assert!(matches!(resolve("default"), Err(Error::NoSource { .. })));
    }

    #[test]
    fn a_mistyped_name_gets_the_near_ones() {
        let (text, hint) = complaint("legasy");
        assert_eq!(text, "there is no profile `legasy` in `/h/.aws/config`");
        assert_eq!(hint.unwrap(), "did you mean `legacy`?");
        assert_eq!(complaint("dve").1.unwrap(), "did you mean `dev`?");
        let (text, hint) = complaint("lost");
        assert_eq!(text, "there is no `[sso-session crop]` in `/h/.aws/config`, but profile `lost` uses it");
        assert_eq!(hint.unwrap(), "did you mean `corp`?");
        assert!(complaint("zzzzzz").1.unwrap().starts_with("there are: badaccount, chained, "));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(complaint("norole").0, "`[profile norole]` in `/h/.aws/config` has no `sso_role_name`");
        assert_eq!(
            complaint("badaccount").0,
            "`sso_account_id` of `[profile badaccount]` in `/h/.aws/config` cannot be used"
        );
        let error = Profiles::parse(&files(), b"[profile x]\nregion eu-west-1\n", b"").unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not parse `/h/.aws/config`: line 2: Expected an '=' sign defining a property"
        );
        assert!(Profiles::parse(&files(), b"\xff\xfe", b"").is_err());
        let plain = CONFIG.replace("https://corp", "http://corp");
        assert!(matches!(
            profiles(&plain, "").resolve(&"dev".parse().unwrap()),
            Err(Error::Invalid { key: "sso_start_url", .. })
        ));
    }

    #[test]
    fn a_name_may_be_whatever_the_aws_cli_takes() {
        let rest = "sso_account_id=111122223333\nsso_role_name=R\n";
        let config = format!(
            "[sso-session 'my corp']\nsso_start_url=https://x\nsso_region=us-east-1\n\
             [profile 'team a'] ; ours\nsso_session=my corp\n{rest}[profile über]\nsso_session=my corp\n{rest}\
             [profile \"a%b\"]\nsso_session=my corp\n{rest}[profile two words]\nsso_session=my corp\n{rest}"
        );
        let profiles = profiles(&config, "[old keys]\naws_access_key_id=AKIA\n");
        let names: Vec<_> = profiles.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a%b", "old keys", "team a", "über"]);
        for name in ["team a", "über", "a%b"] {
            let Source::Sso(role) = profiles.resolve(&name.parse().unwrap()).unwrap().source;
            assert_eq!(role.session.cache_key(), "my corp");
        }
        assert!(matches!(profiles.resolve(&"old keys".parse().unwrap()), Err(Error::Unsupported { .. })));
        assert_eq!(profiles.session_names(), ["my corp"]);
    }

    #[test]
    fn the_default_choice_is_a_usable_default_or_the_only_profile() {
        assert_eq!(profiles(CONFIG, "").default_choice(), None, "default has no source");
        let usable = format!(
            "{CONFIG}\n[profile default]\nsso_session=corp\nsso_account_id=111122223333\nsso_role_name=R\n"
        );
        assert_eq!(profiles(&usable, "").default_choice().unwrap().as_str(), "default");
        let one = "[profile one]\nsso_start_url=https://x\nsso_region=us-east-1\nsso_account_id=111122223333\nsso_role_name=R\n";
        assert_eq!(profiles(one, "").default_choice().unwrap().as_str(), "one");
        assert_eq!(profiles("", "").default_choice(), None);
    }

    #[test]
    fn files_are_read_from_disk_and_may_be_absent() {
        let home = tempfile::tempdir().unwrap();
        let files =
            ConfigFiles { config: home.path().join("config"), credentials: home.path().join("credentials") };
        assert!(Profiles::load(&files).unwrap().names().is_empty());
        private_fs::write(&files.config, CONFIG.as_bytes()).unwrap();
        private_fs::write(&files.credentials, b"[keys]\naws_access_key_id=AKIA\n").unwrap();
        std::fs::set_permissions(&files.credentials, std::fs::Permissions::from_mode(0o644)).unwrap();
        let profiles = Profiles::load(&files).unwrap();
        let names: Vec<_> = profiles.names().iter().map(ToString::to_string).collect();
        assert!(names.contains(&"dev".to_owned()) && names.contains(&"keys".to_owned()), "{names:?}");
        assert_eq!(profiles.session_names(), ["corp"]);
        std::fs::set_permissions(&files.config, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(Profiles::load(&files), Err(Error::File(private_fs::Error::Exposed { .. }))));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(config: String, credentials: String) {
            if let Ok(profiles) = Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes()) {
                for name in profiles.names() {
                    drop(profiles.resolve(&name));
                }
            }
        }

        #[test]
        fn no_line_of_a_profile_makes_it_panic(lines in proptest::collection::vec("[a-z_\\[\\]= #;\t]{0,24}", 0..12)) {
            let text = format!("[profile x]\n{}", lines.join("\n"));
            if let Ok(profiles) = Profiles::parse(&files(), text.as_bytes(), b"") {
                drop(profiles.resolve(&"x".parse().unwrap()));
            }
        }
    }
}
