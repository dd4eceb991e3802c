//! Which profiles a host may ever get (`only-profiles` in our configuration file), whatever is asked for.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{Environment, Error, whose, whose::Wanted};
use crate::{
    aws::profile::{Profile, listed},
    names::ProfileName,
    printable::one_line,
    ssh::config::pattern,
};

/// The key in a section of a host. It is no option: nothing on a command line goes around it.
pub(super) const KEY: &str = "only-profiles";

/// Which profiles the hosts of one section may get.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) place: Place,
    /// Names and patterns.
    pub(super) profiles: Vec<String>,
}

/// Where it stands, for whoever has to change it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
    pub(super) line: usize,
    section: String,
}

impl Place {
    pub(super) fn new(path: &Path, line: usize, section: &str) -> Self {
        Self { path: path.to_owned(), line, section: section.to_owned() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{KEY}` of {} in `{}` line {}", self.section, self.path.display(), self.line)
    }
}

/// A host may not get that.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not for {host}: {place} {}", permission(permitted))]
pub(crate) struct Refused {
    what: String,
    host: String,
    place: Place,
    permitted: Vec<String>,
}

impl Refused {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self.permitted.as_slice() {
            [] => "change that line, if the host is to get any".to_owned(),
            _ => "name one of those with `-p`, or change that line".to_owned(),
        })
    }
}

fn permission(permitted: &[String]) -> String {
    match permitted {
        [] => "permits none".to_owned(),
        permitted => format!("permits {}", listed(permitted)),
    }
}

/// What the file says about the profiles of one host: of its name as it was typed, and of the name that this leads to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pin(Vec<Rule>);

impl Pin {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// Says who forbids that `host` gets the profile.
    pub(crate) fn permits(&self, profile: &ProfileName, host: &str) -> Result<(), Box<Refused>> {
        let permits = |rule: &&Rule| rule.profiles.iter().any(|p| pattern::matches(profile.as_str(), p));
        match self.0.iter().find(|rule| !permits(rule)) {
            None => Ok(()),
            Some(rule) => Err(rule.refuse(format!("profile `{profile}`"), host)),
        }
    }

    /// Says who forbids that `host` gets something that is no profile.
    fn only_profiles(&self, what: &str, host: &str) -> Result<(), Box<Refused>> {
        self.0.first().map_or(Ok(()), |rule| Err(rule.refuse(what.to_owned(), host)))
    }

    /// Holds what was asked for, and what came of it, against what the host may get.
    pub(super) fn check(
        &self,
        host: &str,
        wanted: &Wanted,
        profiles: &[Profile],
        environment: &Environment,
    ) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        if wanted.role.is_some() {
            self.only_profiles("a role that no profile names", host)?;
        }
        for profile in profiles {
            self.permits(&profile.name, host)?;
            if wanted.profiles.is_empty() && whose::is_ambient(&profile.name, environment)? {
                self.only_profiles("what the environment holds instead of a profile", host)?;
            }
        }
        Ok(())
    }
}

impl Rule {
    fn refuse(&self, what: String, host: &str) -> Box<Refused> {
        Box::new(Refused {
            what,
            host: one_line(host),
            place: self.place.clone(),
            permitted: self.profiles.iter().map(|name| one_line(name)).collect(),
        })
    }
}
