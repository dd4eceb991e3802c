//! From the text of `~/.aws/config` and `~/.aws/credentials` to where a profile's credentials come from.
//!
//! No network, no environment. Every mistake names its file, section and key, so that it ends here and not at AWS.

mod ambient;
mod errors;
mod graph;
mod near;
mod parse;
mod source;
mod words;

use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr};

use aws_runtime::env_config::file::EnvConfigFileKind;

pub(crate) use self::{
    ambient::{Ambient, DEPTH, container_url},
    errors::{CONFIGURE, Error, listed},
    source::{
        AssumeRole, Assumed, Container, ContainerToken, IdentityToken, Instance, Keys, LoginSession,
        NotARoleArn, Process, Restriction, RoleArn, Source, SsoRole, WebIdentity,
    },
};
use self::{
    graph::{ProfileSection, parsed},
    near::near,
    parse::{Sections, sections},
};
use super::client::{ServiceUrl, check_url};
use crate::{
    names::{ProfileName, Region},
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
    config: Sections,
    credentials: Sections,
    ambient: Ambient,
}

/// One profile, ready to be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Profile {
    pub(crate) name: ProfileName,
    pub(crate) region: Option<Region>,
    pub(crate) output: Option<String>,
    pub(crate) source: Source,
    pub(crate) urls: ServiceUrls,
}

/// Addresses that `[services]` names in place of AWS's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ServiceUrls {
    pub(crate) sso: Option<ServiceUrl>,
    pub(crate) sso_oidc: Option<ServiceUrl>,
    pub(crate) sts: Option<ServiceUrl>,
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

impl Profiles {
    /// Reads both files; one that does not exist is empty.
    pub(crate) fn load(files: &ConfigFiles, ambient: Ambient) -> Result<Self, Error> {
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
            ambient,
        )
    }

    fn parse(
        files: &ConfigFiles,
        config: &[u8],
        credentials: &[u8],
        ambient: Ambient,
    ) -> Result<Self, Error> {
        Ok(Self {
            files: files.clone(),
            config: sections(&files.config, EnvConfigFileKind::Config, config)?,
            credentials: sections(&files.credentials, EnvConfigFileKind::Credentials, credentials)?,
            ambient,
        })
    }

    /// Returns the names of all profiles that could be served, sorted.
    pub(crate) fn names(&self) -> Vec<ProfileName> {
        let names: BTreeSet<String> =
            self.config.profile_names().chain(self.credentials.profile_names()).collect();
        names.into_iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns the names of all `[sso-session]` sections, sorted.
    pub(crate) fn session_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.config.session_names().collect();
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

    /// Follows a profile that somebody named to its source.
    pub(crate) fn resolve(&self, name: &ProfileName) -> Result<Profile, Error> {
        if !self.has(name.as_str()) {
            let names = self.names();
            return Err(Error::UnknownProfile {
                profile: name.to_string(),
                file: self.files.config.clone(),
                near: near(name.as_str(), names.iter().map(ProfileName::as_str)),
                known: names.iter().map(ToString::to_string).collect(),
            });
        }
        let section = ProfileSection { profiles: self, name: name.as_str() };
        self.profile(name, section.source()?)
    }

    /// Returns the roles of a session that profiles name.
    pub(crate) fn roles_of(&self, session: &SsoSession) -> Vec<SsoRole> {
        let profiles = self.names().into_iter().filter_map(|name| self.resolve(&name).ok());
        let roles = profiles.filter_map(|profile| profile.source.sso_role().cloned());
        roles.filter(|role| role.session.cache_key() == session.cache_key()).collect()
    }

    /// Follows what is meant when nobody names a profile on the command line: keys in the environment count before
    /// everything, and `name` may be a profile that does not exist if the environment has something else.
    pub(crate) fn resolve_unnamed(&self, name: &ProfileName) -> Result<Profile, Error> {
        let section = ProfileSection { profiles: self, name: name.as_str() };
        let source = section.unnamed_source()?;
        self.profile(name, source)
    }

    fn profile(&self, name: &ProfileName, source: Source) -> Result<Profile, Error> {
        let section = ProfileSection { profiles: self, name: name.as_str() };
        Ok(Profile {
            name: name.clone(),
            region: section.optional("region")?,
            output: section.get("output").map(|(value, _)| value.to_owned()),
            source,
            urls: self.urls(&section)?,
        })
    }

    /// Returns whether there is such a profile.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.config.profile(name).is_some() || self.credentials.profile(name).is_some()
    }

    /// Reads `services`. The profile's own `endpoint_url` is for every service and left out on purpose, as
    /// `AWS_ENDPOINT_URL` is: it leads to emulators, which must not see an SSO token.
    fn urls(&self, section: &ProfileSection<'_>) -> Result<ServiceUrls, Error> {
        let ignored = section
            .get("ignore_configured_endpoint_urls")
            .is_some_and(|(value, _)| value.eq_ignore_ascii_case("true"));
        let Some((services, _)) = section.get("services").filter(|_| !ignored) else {
            return Ok(ServiceUrls::default());
        };
        let url = |service| {
            let title = format!("services {services}");
            let url = self.config.endpoint(services, service);
            url.map(|url| parsed(url, &self.files.config, &title, "endpoint_url")).transpose()
        };
        Ok(ServiceUrls { sso: url("sso")?, sso_oidc: url("sso_oidc")?, sts: url("sts")? })
    }

    /// Returns an `[sso-session]` by its name.
    pub(crate) fn sso_session(&self, name: &str) -> Result<SsoSession, Error> {
        self.session_for(name, None)
    }

    fn session_for(&self, name: &str, profile: Option<&str>) -> Result<SsoSession, Error> {
        let file = &self.files.config;
        let Some(section) = self.config.sso_session(name) else {
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

#[cfg(test)]
mod tests;
