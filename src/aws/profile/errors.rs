//! What can be wrong in the files, by file, section and key, and the way out of each.

use std::path::PathBuf;

use crate::private_fs;

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
    #[error("`[{section}]` in `{}` has both `source_profile` and `credential_source`", file.display())]
    TwoSources { file: PathBuf, section: String },
    #[error("`source_profile` of `[{section}]` in `{}` is `{named}`, and there is no such profile", file.display())]
    UnknownSource { file: PathBuf, section: String, named: String, near: Vec<String> },
    #[error("`source_profile` of `[{section}]` in `{}` leads back to `{named}`: {}", file.display(), path.join(" → "))]
    Cycle { file: PathBuf, section: String, named: String, path: Vec<String> },
    #[error("`source_profile` of `[{section}]` in `{}` is the {limit}th in one chain", file.display())]
    TooDeep { file: PathBuf, section: String, limit: usize },
    #[error("`credential_source` of `[{section}]` in `{}` is `{named}`, {fault}", file.display())]
    CredentialSource { file: PathBuf, section: String, named: String, fault: &'static str },
    #[error("`{variable}` is {fault}")]
    Variable { variable: &'static str, fault: String },
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
            Self::UnknownSource { near, .. } if !near.is_empty() => {
                Some(format!("did you mean {}?", alternatives(near)))
            }
            Self::UnknownSource { named, .. } => Some(format!("add a section `[profile {named}]`, or correct the line")),
            Self::TwoSources { .. } => Some("remove one of them".to_owned()),
            Self::Cycle { .. } => {
                Some("one of these profiles must say where its credentials come from by itself".to_owned())
            }
            Self::TooDeep { .. } => Some("let the profile start nearer to its role".to_owned()),
            Self::CredentialSource { .. } => Some(
                "there are `Environment` (AWS_ACCESS_KEY_ID and its like), `EcsContainer` (AWS_CONTAINER_CREDENTIALS_FULL_URI) \
                 and `Ec2InstanceMetadata`"
                    .to_owned(),
            ),
            Self::Variable { variable, .. } => Some(format!("set `{variable}` right, or unset it and its like")),
            Self::NoSource { .. } => Some(
                "use a profile with `sso_session`, `sso_account_id` and `sso_role_name` (`aws configure sso` writes one)"
                    .to_owned(),
            ),
            Self::Syntax { .. } => Some("correct the file, or name another one with AWS_CONFIG_FILE".to_owned()),
            Self::Missing { key, .. } if key.starts_with("sso_") => {
                Some(format!("add a line `{key} = …` there (`aws configure sso` writes all that is needed)"))
            }
            Self::Missing { key, .. } => Some(format!("add a line `{key} = …` there")),
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
