//! The sections of a profile → where its credentials come from. Pure.
//!
//! The order is the AWS CLI's (botocore, `create_credential_resolver`), and so are its special cases: keys in the
//! credentials file count before `login_session` and `credential_process`, and keys in the configuration after them;
//! a profile that names itself as its source takes its own keys.

use std::{path::Path, str::FromStr, sync::Arc};

use super::{
    Profiles, SessionKey, Source, SsoRole, SsoSession,
    errors::Error,
    near::near,
    source::{
        AssumeRole, Assumed, IdentityToken, Keys, LoginSession, Process, Restriction, RoleArn, WebIdentity,
    },
    words,
};
use crate::{
    names::{ProfileName, Role},
    printable::one_line,
};

/// More roles than anybody chains. Each is a call to AWS, and a step down our stack.
const DEEPEST: usize = 100;

/// What AWS accepts as the length of a role session.
const DURATIONS: std::ops::RangeInclusive<u32> = 900..=43_200;

/// A duration that AWS would refuse.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a number of seconds from 900 to 43200")]
struct BadDuration(String);

/// A profile whose program asks for the profile itself would start brokers without end.
const MOST_BROKERS: usize = 4;

/// A program that leads back here.
#[derive(Debug, thiserror::Error)]
#[error("it runs `broker`, which runs it again")]
struct Itself;

/// A value that would only fail at AWS.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not {what}")]
struct BadValue {
    text: String,
    what: &'static str,
}

/// A profile while it is read; the credentials file wins, as in every SDK.
pub(super) struct ProfileSection<'a> {
    pub(super) profiles: &'a Profiles,
    pub(super) name: &'a str,
}

/// Which of the two files.
#[derive(Clone, Copy, Eq, PartialEq)]
enum In {
    Config,
    Credentials,
}

impl<'a> ProfileSection<'a> {
    pub(super) fn get(&self, key: &str) -> Option<(&'a str, &'a Path)> {
        self.get_in(In::Credentials, key).or_else(|| self.get_in(In::Config, key))
    }

    fn get_in(&self, file: In, key: &str) -> Option<(&'a str, &'a Path)> {
        let Profiles { files, config, credentials, .. } = self.profiles;
        let (sections, path) = match file {
            In::Config => (config, &files.config),
            In::Credentials => (credentials, &files.credentials),
        };
        let value = sections.profile(self.name)?.get(key)?;
        Some((value, path.as_path())).filter(|(value, _)| !value.is_empty())
    }

    fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn title(&self) -> String {
        if self.name == "default" { "default".to_owned() } else { format!("profile {}", self.name) }
    }

    pub(super) fn optional<T>(&self, key: &'static str) -> Result<Option<T>, Error>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.get(key).map(|(value, file)| parsed(value, file, &self.title(), key)).transpose()
    }

    fn required<T>(&self, key: &'static str) -> Result<T, Error>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        self.optional(key)?.ok_or_else(|| self.missing(key, &self.profiles.files.config))
    }

    fn missing(&self, key: &'static str, file: &Path) -> Error {
        Error::Missing { file: file.to_owned(), section: self.title(), key }
    }

    fn invalid(&self, key: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        let file = self.get(key).map_or(self.profiles.files.config.as_path(), |(_, file)| file);
        Error::Invalid { file: file.to_owned(), section: self.title(), key, source: Box::new(source) }
    }

    /// Returns the source of a profile that was named.
    pub(super) fn source(&self) -> Result<Source, Error> {
        if self.is_assumed() {
            self.assumed(&mut vec![self.name])
        } else {
            self.own_source()?.or_else_ambient(self)
        }
    }

    /// Returns the source of a profile that nobody named on the command line: the environment counts before it.
    pub(super) fn unnamed_source(&self) -> Result<Source, Error> {
        let ambient = &self.profiles.ambient;
        if let Some(keys) = ambient.keys()? {
            return Ok(Source::Keys(keys));
        }
        if self.is_assumed() {
            return self.assumed(&mut vec![self.name]);
        }
        if let Some(web) = ambient.web_identity(|key| Some(self.get(key)?.0))? {
            return Ok(Source::WebIdentity(web));
        }
        self.own_source()?.or_else_ambient(self)
    }

    fn is_assumed(&self) -> bool {
        self.has("role_arn") && !self.has("web_identity_token_file")
    }

    fn has_keys(&self) -> bool {
        self.has("aws_access_key_id") || self.has("aws_secret_access_key")
    }

    /// Returns what the profile says by itself, without any other profile.
    fn own_source(&self) -> Result<Found, Error> {
        if let Some((path, _)) = self.get("web_identity_token_file") {
            return Ok(Found::Yes(Source::WebIdentity(WebIdentity {
                role: self.required("role_arn")?,
                session_name: self.session_name()?,
                token: IdentityToken::File(self.profiles.ambient.path(path)),
            })));
        }
        // A session without a role is for `aws sso login`; the profile's credentials may come from elsewhere.
        if self.has("sso_account_id") || self.has("sso_role_name") {
            return Ok(Found::Yes(Source::Sso(self.sso_role()?)));
        }
        if let Some(keys) = self.keys(In::Credentials)? {
            return Ok(Found::Yes(Source::Keys(keys)));
        }
        if let Some((name, _)) = self.get("login_session") {
            return Ok(Found::Yes(Source::Login(LoginSession {
                profile: self.name.to_owned(),
                name: name.to_owned(),
                directory: self.profiles.ambient.login_directory().to_owned(),
            })));
        }
        if let Some((line, _)) = self.get("credential_process") {
            let words = words::split(line).map_err(|e| self.invalid("credential_process", e))?;
            let account = self.optional("aws_account_id")?;
            let depth = self.profiles.ambient.depth();
            if depth >= MOST_BROKERS {
                return Err(self.invalid("credential_process", Itself));
            }
            let profile = self.name.to_owned();
            return Ok(Found::Yes(Source::Process(Process { profile, words, account, depth })));
        }
        if let Some(keys) = self.keys(In::Config)? {
            return Ok(Found::Yes(Source::Keys(keys)));
        }
        let half = self.has("sso_session") || self.has("sso_start_url");
        Ok(if half { Found::HalfSso } else { Found::No })
    }

    fn keys(&self, file: In) -> Result<Option<Keys>, Error> {
        let Some((id, path)) = self.get_in(file, "aws_access_key_id") else { return Ok(None) };
        let secret = |text: &str| Arc::new(text.to_owned().into());
        let (key, _) = self
            .get_in(file, "aws_secret_access_key")
            .ok_or_else(|| self.missing("aws_secret_access_key", path))?;
        let token = self
            .get_in(file, "aws_security_token")
            .or_else(|| self.get_in(file, "aws_session_token"))
            .map(|(token, _)| secret(token));
        Ok(Some(Keys {
            place: format!("`[{}]` of `{}`", self.title(), path.display()),
            access_key_id: id.to_owned(),
            secret_access_key: secret(key),
            session_token: token,
            expires_at: None,
            account: self.optional("aws_account_id")?,
            mfa_serial: self.mfa_serial()?,
        }))
    }

    fn sso_role(&self) -> Result<SsoRole, Error> {
        let session = self.session()?;
        let role = Role { account: self.required("sso_account_id")?, name: self.required("sso_role_name")? };
        Ok(SsoRole { session, role })
    }

    /// Follows `source_profile` and `credential_source` to the end.
    fn assumed(&self, visited: &mut Vec<&'a str>) -> Result<Source, Error> {
        let arn: RoleArn = self.required("role_arn")?;
        let file = |key| self.get(key).map_or(&*self.profiles.files.config, |(_, file)| file).to_owned();
        let from = match (self.get("source_profile"), self.get("credential_source")) {
            (Some(_), Some(_)) => {
                return Err(Error::TwoSources { file: file("credential_source"), section: self.title() });
            }
            (None, None) => return Err(self.missing("source_profile", &self.profiles.files.config)),
            (None, Some((named, _))) => self.named_source(named)?,
            (Some((named, _)), None) => self.source_profile(named, visited)?,
        };
        let mut role = AssumeRole {
            arn,
            external_id: self.external_id()?,
            mfa_serial: self.mfa_serial()?,
            duration: self.duration()?,
            session_name: self.session_name()?,
            restriction: Restriction::default(),
        };
        let from = match from {
            // One code for a session of the keys, and no more for the hours in which it lives.
            Source::Keys(mut keys) if keys.are_long_lived() && role.mfa_serial.is_some() => {
                keys.mfa_serial = role.mfa_serial.take();
                Source::Keys(keys)
            }
            // As the AWS CLI does: a device is asked for only by the role that names it.
            Source::Keys(mut keys) => {
                keys.mfa_serial = None;
                Source::Keys(keys)
            }
            other => other,
        };
        Ok(Source::Assumed(Box::new(Assumed { role, from })))
    }

    fn source_profile(&self, named: &'a str, visited: &mut Vec<&'a str>) -> Result<Source, Error> {
        let profiles = self.profiles;
        let file = self.get("source_profile").map_or(&*profiles.files.config, |(_, file)| file).to_owned();
        let section = self.title();
        if !profiles.has(named) {
            let names = profiles.names();
            return Err(Error::UnknownSource {
                file,
                section,
                named: one_line(named),
                near: near(named, names.iter().map(ProfileName::as_str)),
            });
        }
        let next = Self { profiles, name: named };
        if visited.contains(&named) && (named != self.name || !next.has_keys()) {
            let path = visited.iter().chain([&named]).map(|name| one_line(name)).collect();
            return Err(Error::Cycle { file, section, named: one_line(named), path });
        }
        visited.push(named);
        if visited.len() > DEEPEST {
            return Err(Error::TooDeep { file, section, limit: DEEPEST });
        }
        if next.has_keys() || !next.is_assumed() {
            return match next.own_source()? {
                Found::Yes(source) => Ok(source),
                Found::HalfSso => Ok(Source::Sso(next.sso_role()?)),
                Found::No => {
                    Err(Error::NoSource { profile: one_line(named), file: profiles.files.config.clone() })
                }
            };
        }
        next.assumed(visited)
    }

    fn named_source(&self, named: &str) -> Result<Source, Error> {
        let ambient = &self.profiles.ambient;
        let wrong = |fault| Error::CredentialSource {
            file: self
                .get("credential_source")
                .map_or(&*self.profiles.files.config, |(_, file)| file)
                .to_owned(),
            section: self.title(),
            named: one_line(named),
            fault,
        };
        match named {
            "Environment" => {
                let keys =
                    ambient.keys()?.ok_or_else(|| wrong("and there are no keys in the environment"))?;
                Ok(Source::Keys(keys))
            }
            "EcsContainer" => {
                let container = ambient.container()?;
                Ok(Source::Container(container.ok_or_else(|| wrong("and no container endpoint is set"))?))
            }
            "Ec2InstanceMetadata" => {
                let instance = ambient.instance();
                Ok(Source::Instance(instance.ok_or_else(|| wrong("and AWS_EC2_METADATA_DISABLED is set"))?))
            }
            _ => Err(wrong("which is no source")),
        }
    }

    fn duration(&self) -> Result<Option<u32>, Error> {
        let Some((text, _)) = self.get("duration_seconds") else { return Ok(None) };
        let seconds = text.parse::<u32>().ok().filter(|seconds| DURATIONS.contains(seconds));
        Ok(Some(seconds.ok_or_else(|| self.invalid("duration_seconds", BadDuration(one_line(text))))?))
    }

    fn session_name(&self) -> Result<Option<String>, Error> {
        let named = |text: &str| (2..=64).contains(&text.len()) && text.bytes().all(is_name_byte);
        self.checked("role_session_name", "a session name (2 to 64 letters, digits or _+=,.@-)", named)
    }

    fn external_id(&self) -> Result<Option<String>, Error> {
        let sound = |text: &str| {
            (2..=1224).contains(&text.len()) && text.bytes().all(|b| is_name_byte(b) || b":/".contains(&b))
        };
        self.checked("external_id", "an external id (2 to 1224 letters, digits or _+=,.@:/-)", sound)
    }

    fn mfa_serial(&self) -> Result<Option<String>, Error> {
        let sound =
            |text: &str| (9..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        self.checked("mfa_serial", "an MFA device (its ARN or serial number)", sound)
    }

    fn checked(
        &self,
        key: &'static str,
        what: &'static str,
        sound: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some((text, _)) if sound(text) => Ok(Some(text.to_owned())),
            Some((text, _)) => Err(self.invalid(key, BadValue { text: one_line(text), what })),
        }
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

/// What a profile says by itself.
enum Found {
    Yes(Source),
    /// A session of Identity Center and no role in it.
    HalfSso,
    No,
}

impl Found {
    /// Returns the source, or the one of this machine: what the AWS CLI takes when a profile says nothing.
    fn or_else_ambient(self, section: &ProfileSection<'_>) -> Result<Source, Error> {
        let ambient = &section.profiles.ambient;
        match self {
            Self::Yes(source) => return Ok(source),
            Self::HalfSso => return Ok(Source::Sso(section.sso_role()?)),
            Self::No => {}
        }
        if let Some(container) = ambient.container()? {
            return Ok(Source::Container(container));
        }
        ambient.meant_instance().map(Source::Instance).ok_or_else(|| Error::NoSource {
            profile: section.name.to_owned(),
            file: section.profiles.files.config.clone(),
        })
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte)
}

pub(super) fn parsed<T>(value: &str, file: &Path, section: &str, key: &'static str) -> Result<T, Error>
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
