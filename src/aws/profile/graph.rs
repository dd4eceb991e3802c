//! The sections of a profile → where its credentials come from. Pure.

use std::{path::Path, str::FromStr};

use aws_runtime::env_config::section::EnvConfigSections;

use super::{Profiles, SessionKey, Source, SsoRole, SsoSession, errors::Error, parse::encoded};
use crate::names::Role;

/// A profile while it is read; the credentials file wins, as in every SDK.
pub(super) struct ProfileSection<'a> {
    pub(super) profiles: &'a Profiles,
    pub(super) name: &'a str,
}

/// What other kinds of profiles say, in the order in which the AWS CLI looks for it.
const BEFORE_SSO: [&str; 2] = ["role_arn", "web_identity_token_file"];
const AFTER_SSO: [&str; 3] = ["aws_access_key_id", "login_session", "credential_process"];

impl<'a> ProfileSection<'a> {
    pub(super) fn get(&self, key: &str) -> Option<(&'a str, &'a Path)> {
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
        self.optional(key)?.ok_or_else(|| Error::Missing {
            file: self.profiles.files.config.clone(),
            section: self.title(),
            key,
        })
    }

    pub(super) fn source(&self) -> Result<Source, Error> {
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
