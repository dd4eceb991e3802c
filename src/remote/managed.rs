//! Our profiles in the host's own `~/.aws/config`, for processes that no shell of ours starts: put there, found again,
//! taken out.
//!
//! A profile that the user has already is never written a second time: SDKs refuse the whole file then.

use super::{
    helper::Helper,
    home::{Error, HomeFile},
    leftovers::{self, Leftover, State, Sweep},
    profiles::{self, Block, Mark},
};
use crate::printable::one_line;

/// A profile for the host's configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wanted {
    /// `default`, or the profile's name.
    pub(crate) profile: String,
    /// Its section: whole lines.
    pub(crate) section: String,
}

/// A profile that was not written, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LeftOut {
    pub(crate) profile: String,
    pub(crate) why: Conflict,
}

/// Who has a profile of the same name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Conflict {
    /// The user, in `~/.aws/config`.
    Config,
    /// The user, in `~/.aws/credentials`, which SDKs prefer.
    Credentials,
    /// Another tunnel, on this host or on another one that shares the home.
    Tunnel(Mark),
}

impl LeftOut {
    /// Returns what the person should know and do.
    pub(crate) fn told(&self, host: &str) -> String {
        let profile = one_line(&self.profile);
        let section =
            if self.profile == "default" { "[default]".to_owned() } else { format!("[profile {profile}]") };
        match &self.why {
            Conflict::Config if self.profile == "default" => format!(
                "`~/.aws/config` of {host} has a `[default]` of its own, which stays as it is: name a profile there (`AWS_PROFILE`), or remove that section and connect again"
            ),
            Conflict::Config => format!(
                "`~/.aws/config` of {host} has a `{section}` of its own, which stays as it is: rename or remove that section there and connect again"
            ),
            Conflict::Credentials => format!(
                "`~/.aws/credentials` of {host} has a `[{profile}]`, which SDKs would prefer to ours: remove that section there and connect again"
            ),
            Conflict::Tunnel(mark) => format!(
                "`{section}` in `~/.aws/config` of {host} belongs to another tunnel (`{}` on {}): end that one, or run `broker clean` for that host if it is gone",
                mark.directory(),
                mark.host()
            ),
        }
    }
}

/// Our block in the host's configuration.
#[derive(Debug)]
pub(crate) struct Managed {
    file: HomeFile,
    mark: Mark,
}

/// What came of putting profiles into the host's configuration.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `None` when every profile was left out.
    pub(crate) managed: Option<Managed>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// Puts the profiles into the configuration of the host that calls itself `host`, for files in `directory`.
///
/// Blocks that dead tunnels left on this host go, as does what an earlier link of this tunnel wrote.
pub(crate) async fn install(
    helper: &Helper,
    host: &str,
    directory: &str,
    wanted: &[Wanted],
) -> Result<Outcome, Error> {
    let mark = Mark::new(host, directory);
    let found = leftovers::sweep(helper, Sweep::Look).await?;
    let stale = |block: &Block| {
        block.mark == mark || (block.mark.is_of(host) && !is_live(&found, block.mark.directory()))
    };
    let mut file = HomeFile::config(helper).await?;
    while first(file.content(), stale).is_some() {
        file.edit(|config, _| {
            first(config, stale).map(|block| profiles::remove(config.unwrap_or_default(), &block))
        })
        .await?;
    }
    let credentials = HomeFile::credentials(helper).await?;
    let credentials = credentials.content().unwrap_or_default();
    let body = |config: &[u8]| -> String {
        let fits = |wanted: &&Wanted| conflict(&wanted.profile, config, credentials).is_none();
        wanted.iter().filter(fits).map(|wanted| wanted.section.as_str()).collect()
    };
    let left_out: Vec<LeftOut> = wanted
        .iter()
        .filter_map(|wanted| {
            let why = conflict(&wanted.profile, file.content().unwrap_or_default(), credentials)?;
            Some(LeftOut { profile: wanted.profile.clone(), why })
        })
        .collect();
    if left_out.len() == wanted.len() {
        return Ok(Outcome { managed: None, left_out });
    }
    file.edit(|config, directory_exists| {
        let body = body(config.unwrap_or_default());
        (!body.is_empty()).then(|| profiles::insert(config, directory_exists, &mark, &body))
    })
    .await?;
    Ok(Outcome { managed: Some(Managed { file, mark }), left_out })
}

impl Managed {
    /// Takes our block out again; that it is gone already is fine.
    pub(crate) async fn remove(mut self) -> Result<(), Error> {
        let ours = |block: &Block| block.mark == self.mark;
        self.file
            .edit(|config, _| {
                first(config, ours).map(|block| profiles::remove(config.unwrap_or_default(), &block))
            })
            .await
    }
}

/// What was done with a block that some broker left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Cleaned {
    pub(crate) mark: Mark,
    pub(crate) state: State,
}

/// Treats every block of any broker as `sweep` says; `found` is what is known of the tunnels on this host.
pub(crate) async fn clean(
    helper: &Helper,
    host: &str,
    found: &[Leftover],
    sweep: Sweep,
) -> Result<Vec<Cleaned>, Error> {
    let mut file = HomeFile::config(helper).await?;
    let state = |mark: &Mark| {
        if sweep == Sweep::Force {
            State::Dead
        } else if !mark.is_of(host) {
            State::Elsewhere
        } else if is_live(found, mark.directory()) {
            State::Live
        } else {
            State::Dead
        }
    };
    let mut cleaned: Vec<Cleaned> = profiles::blocks(file.content().unwrap_or_default())
        .into_iter()
        .map(|block| Cleaned { state: state(&block.mark), mark: block.mark })
        .collect();
    if sweep == Sweep::Look {
        return Ok(cleaned);
    }
    for cleaned in cleaned.iter_mut().filter(|cleaned| cleaned.state == State::Dead) {
        let this = |block: &Block| block.mark == cleaned.mark;
        file.edit(|config, _| {
            first(config, this).map(|block| profiles::remove(config.unwrap_or_default(), &block))
        })
        .await?;
        cleaned.state = State::Removed;
    }
    Ok(cleaned)
}

fn first(config: Option<&[u8]>, wanted: impl Fn(&Block) -> bool) -> Option<Block> {
    profiles::blocks(config?).into_iter().find(wanted)
}

fn is_live(found: &[Leftover], directory: &str) -> bool {
    found.iter().any(|leftover| leftover.state == State::Live && leftover.path == directory)
}

/// Returns who has this profile already.
fn conflict(profile: &str, config: &[u8], credentials: &[u8]) -> Option<Conflict> {
    let blocks = profiles::blocks(config);
    let has = |sections: &[profiles::Section]| sections.iter().any(|section| section.profile == profile);
    if has(&profiles::sections(config, &blocks.iter().collect::<Vec<_>>())) {
        return Some(Conflict::Config);
    }
    for block in &blocks {
        if has(&profiles::sections(config.get(block.range.clone()).unwrap_or_default(), &[])) {
            return Some(Conflict::Tunnel(block.mark.clone()));
        }
    }
    let credentials = profiles::sections(credentials, &[]);
    let prefers = credentials.iter().any(|section| section.profile == profile && !section.keys.is_empty());
    prefers.then_some(Conflict::Credentials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_somebody_has_is_left_to_them() {
        let block =
            profiles::insert(None, true, &Mark::new("login2", "/d/1"), "[profile theirs]\nregion = x\n");
        let config = format!("[default]\nregion = x\n[profile \"a b\"]\n{}", block.text);
        let who = |profile| conflict(profile, config.as_bytes(), b"[keys]\naws_access_key_id =\n[empty]\n");
        assert_eq!(who("default"), Some(Conflict::Config));
        assert_eq!(who("a b"), Some(Conflict::Config));
        assert_eq!(who("theirs"), Some(Conflict::Tunnel(Mark::new("login2", "/d/1"))));
        assert_eq!(who("keys"), Some(Conflict::Credentials));
        assert_eq!(who("empty"), None);
        assert_eq!(who("dev"), None);
        for profile in ["default", "a b", "theirs", "keys"] {
            let told = LeftOut { profile: profile.into(), why: who(profile).unwrap() }.told("bastion");
            assert!(told.contains(profile) && told.contains("bastion") && told.contains(": "), "{told}");
        }
    }
}
