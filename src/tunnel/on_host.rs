//! What lies on the host while a tunnel is up: put there once the link is verified, and again on every new link.

use std::sync::Arc;

use super::{
    Event, Inputs, TokenPlace, error,
    link::Link,
    role_files::{self, Linger},
    steering::Placed,
    travels, trust,
};
use crate::{
    names::ProfileName,
    remote::{
        self,
        exports::Shell,
        files::{self, Layout},
        helper,
        home::HomeFile,
        install::{self, Hands, Installed},
        managed::{self, Managed},
        shadow::{self, Shadow, Variable},
        tmux,
    },
};

/// What lies on the host.
pub(super) struct OnHost {
    pub(super) files: Arc<Installed>,
    /// Our block in the host's own configuration (`--install-profiles`).
    pub(super) managed: Option<Managed>,
    pub(super) exports: Exports,
}

/// What other shells on the host have to be told.
pub(super) struct Exports {
    pub(super) environment: remote::exports::Environment,
    pub(super) login_shell: Option<Shell>,
}

/// Puts our files on the host.
pub(super) async fn put_files(inputs: &Inputs, link: &mut Link) -> Result<OnHost, install::Error> {
    let Some(directory) = link.directory.take() else { return Err(helper::Error::NoPlace.into()) };
    let place = directory.place();
    let linger = inputs.options.linger.map(|most| Linger { most, clock: inputs.clock.clone() });
    let credentials_lie_there = link.ways.file || linger.is_some();
    travels::tell(inputs, link.facts.as_ref(), place, directory.path(), credentials_lie_there);
    if let Some(below) = directory.below_home() {
        inputs.observe(Event::Warning {
            message: format!(
                "the SFTP server of {} shows a part of the machine only, so programs there may know `{}` by another \
                 path: if so, set AWS_CONFIG_FILE=\"$HOME/{below}/config\" and \
                 AWS_SHARED_CREDENTIALS_FILE=\"$HOME/{below}/credentials\"",
                inputs.host(),
                directory.path(),
            ),
        });
    }
    if let Some(message) = trust::notice(inputs, link.ways.port) {
        inputs.observe(Event::Notice { message });
    }
    let grants = inputs.grants.served();
    let tokens: Vec<_> = grants.iter().map(|grant| grant.token.expose_for_token_file()).collect();
    let mut grants = grants.iter().zip(&tokens).map(|(grant, token)| files::Grant {
        profile: &grant.profile,
        token,
        region: grant.region.as_ref(),
        output: grant.output.as_deref(),
    });
    let Some(default) = grants.next() else {
        return Err(helper::Error::Unfit { name: "no grant".to_owned() }.into());
    };
    let exported = link.exported().await;
    let alias = shadow::profile(&exported).and_then(|name| name.parse::<ProfileName>().ok());
    let keep_config = inputs.options.keep_config;
    let fetches = link.facts.as_ref().is_none_or(|facts| facts.fetches);
    let profiles = match (&link.ways.socket, link.ways.port) {
        // The container variables need no program.
        (Some(_), Some(_)) if !fetches => files::Profiles::Port,
        (Some(_), _) => files::Profiles::Socket,
        (None, Some(_)) => files::Profiles::Port,
        (None, None) => files::Profiles::Files,
    };
    let below_home = directory.below_home().map(str::to_owned);
    let layout = Layout {
        port: link.ways.port,
        profiles,
        default,
        others: grants.collect(),
        alias: alias.as_ref().filter(|_| !keep_config),
        token_in_environment: inputs.options.token == TokenPlace::Environment,
        keep_config,
        tls: trust::of(inputs.tls.as_deref(), &link.trust),
        command: inputs.command.as_deref(),
        below_home: below_home.as_deref(),
        reach: travels::reach(place, link.facts.as_ref(), inputs.options.token, keep_config),
        lingers: linger.is_some(),
    };
    let environment = layout.environment(directory.path());
    let mut files = layout.files(directory.path());
    if inputs.options.tmux {
        files.extend(tmux::file(directory.path()));
    }
    let sections = layout.sections(directory.path());
    let installed = Arc::new(directory.install(files).await?);
    let mut written = role_files::Written::default();
    if credentials_lie_there {
        role_files::write(&inputs.grants, &installed, &mut written).await?;
    }
    let unserved = match profiles {
        files::Profiles::Socket => Some("so no process there gets credentials"),
        files::Profiles::Port if tokens.len() > 1 || inputs.options.install_profiles => {
            Some("so only the default role is served there, and only to processes with our variables")
        }
        files::Profiles::Port | files::Profiles::Files => None,
    };
    if let Some(unserved) = unserved.filter(|_| !fetches && linger.is_none()) {
        inputs.observe(Event::Warning {
            message: format!(
                "neither curl nor python3 nor nc is on {}, {unserved}; install curl on the host, or use `--transport file`",
                inputs.host()
            ),
        });
    }
    if linger.is_some() {
        inputs.observe(Event::Notice { message: what_lingers(inputs, installed.path()) });
    }
    for shadow in shadows(inputs, link, &exported).await {
        inputs.observe(Event::Warning { message: shadow.to_string() });
    }
    let managed = match inputs.options.install_profiles {
        true => install_profiles(inputs, link, installed.path(), &sections).await,
        false => None,
    };
    let login_shell = link.facts.as_ref().and_then(|facts| Shell::of(facts.shell.as_deref()?));
    inputs.steering.placed(Placed {
        files: Arc::downgrade(&installed),
        directory: installed.path().to_owned(),
        below_home,
        place,
        facts: link.facts.clone(),
        port: link.ways.port,
        profiles,
        alias: alias.filter(|_| !keep_config),
        token: inputs.options.token,
        keep_config,
        tls: inputs.tls.clone(),
        trust: link.trust.clone(),
        login_shell,
        program: link.facts.as_ref().and_then(|facts| facts.shell.clone()),
        managed: managed.is_some(),
        lingers: linger.is_some(),
    });
    if let Some(linger) = &linger
        // Last, so that a start that is interrupted leaves nothing.
        && let Err(error) = linger.tell(&installed, &written).await
    {
        if let Some(managed) = managed {
            // The first error is the one to tell.
            drop(managed.remove().await);
        }
        return Err(error);
    }
    if credentials_lie_there {
        link.keep_files(Arc::clone(&inputs.grants), Arc::clone(&installed), written, linger);
    }
    Ok(OnHost { files: installed, managed, exports: Exports { environment, login_shell } })
}

/// Returns what `--linger` means.
fn what_lingers(inputs: &Inputs, path: &str) -> String {
    let most = inputs.options.linger.map(error::spoken).unwrap_or_default();
    format!(
        "role credentials lie in `{path}` on {host} (`--linger`); when we end they stay there for {most}, or until they \
         expire if that is sooner",
        host = inputs.host()
    )
}

/// Finds what on the host would be used instead of us.
async fn shadows(inputs: &Inputs, link: &Link, exported: &[Variable]) -> Vec<Shadow> {
    let host = inputs.host();
    let keep = inputs.options.keep_config;
    // Over SFTP no shell of ours runs, and nothing can be asked.
    let (Hands::Helper(helper), Some(facts)) = (&link.hands, &link.facts) else { return Vec::new() };
    let mut shadows = shadow::in_caches(&host, &facts.token_caches);
    shadows.extend(shadow::in_login_shell(&host, exported, !keep));
    if keep {
        let config = HomeFile::config(helper).await;
        let credentials = HomeFile::credentials(helper).await;
        match (config, credentials) {
            (Ok(config), Ok(credentials)) => shadows.extend(shadow::in_files(
                &host,
                config.content().unwrap_or_default(),
                credentials.content().unwrap_or_default(),
            )),
            (Err(error), _) | (_, Err(error)) => inputs.observe(Event::Warning {
                message: format!("what is in our way in the configuration of {host} is not known: {error}"),
            }),
        }
    }
    shadows
}

/// Puts our profiles into the host's own configuration. What cannot be done there is said, and the rest works without.
async fn install_profiles(
    inputs: &Inputs,
    link: &Link,
    directory: &str,
    sections: &[managed::Wanted],
) -> Option<Managed> {
    let host = inputs.host();
    let (Hands::Helper(helper), Some(facts)) = (&link.hands, &link.facts) else {
        inputs.observe(Event::Warning {
            message: format!(
                "no command runs on {host}, so its `~/.aws/config` is left alone (--install-profiles)"
            ),
        });
        return None;
    };
    match managed::install(helper, &facts.host, directory, sections).await {
        Ok(outcome) => {
            for left_out in &outcome.left_out {
                inputs.observe(Event::Warning { message: left_out.told(&host) });
            }
            outcome.managed
        }
        Err(error) => {
            inputs.observe(Event::Warning {
                message: format!("no profile was put into `~/.aws/config` of {host}: {error}"),
            });
            None
        }
    }
}
