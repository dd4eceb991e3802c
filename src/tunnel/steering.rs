//! What can be done with a tunnel that is up by somebody who does not drive it: other terminals, through `control`.
//!
//! What lies on the host is noted here anew with every link. After the link is lost the exports are still right, because
//! the next one has the same port and directory; nothing can be written until then.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::{TokenPlace, role_files, travels, trust};
use crate::{
    creds::grant::Grants,
    names::ProfileName,
    remote::{
        exports::Shell,
        files::{self, Layout, Profiles, role_file, token_file},
        helper::Facts,
        install::{self, Content, File, Installed, Place},
        trust::Trust,
    },
    tls::Identity,
};

/// A handle to the tunnel, which may outlive it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steering {
    placed: Arc<Mutex<Option<Arc<Placed>>>>,
    another: Arc<Notify>,
}

/// What lies on the host, and how it was made.
#[derive(Debug)]
pub(super) struct Placed {
    /// Gone with the link.
    pub(super) files: Weak<Installed>,
    pub(super) directory: String,
    pub(super) below_home: Option<String>,
    pub(super) place: Place,
    /// What the host said about itself, where a helper could ask it.
    pub(super) facts: Option<Facts>,
    pub(super) port: Option<u16>,
    pub(super) profiles: Profiles,
    pub(super) alias: Option<ProfileName>,
    pub(super) token: TokenPlace,
    pub(super) keep_config: bool,
    pub(super) tls: Option<Arc<Identity>>,
    pub(super) trust: Trust,
    pub(super) login_shell: Option<Shell>,
    /// The path of the login shell.
    pub(super) program: Option<String>,
    pub(super) managed: bool,
    /// Whether role credentials lie in files beside a port or a socket (`--linger`).
    pub(super) lingers: bool,
}

/// Exports for another terminal on the host. They name the token's file, and hold no secret.
#[derive(Debug)]
pub(crate) struct Exports {
    pub(crate) text: Zeroizing<String>,
    /// What reads our file on the host instead, where the token is in the environment (`--token env`): nothing else puts
    /// it there.
    pub(crate) with_token: Option<String>,
    /// The path of the host's login shell, where we cannot write for it and these are for sh.
    pub(crate) not_for: Option<Option<String>>,
}

/// Why something is not on the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPut {
    /// It will be put there with the next link.
    #[error("there is no connection to the host now")]
    NoLink,
    #[error("could not put it on the host")]
    Failed(#[from] install::Error),
}

impl Steering {
    pub(super) fn placed(&self, placed: Placed) {
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(placed));
    }

    fn now(&self) -> Option<Arc<Placed>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the link replaced by a new one, or the next attempt made now where there is none.
    pub(crate) fn reconnect(&self) {
        self.another.notify_one();
    }

    /// Returns when another link was asked for. What was asked for while nobody waited counts once.
    pub(super) async fn asked_for_another(&self) {
        self.another.notified().await;
    }

    /// What was asked for until now has been done.
    pub(super) async fn has_another(&self) {
        tokio::select! {
            biased;
            () = self.another.notified() => {}
            () = std::future::ready(()) => {}
        }
    }

    /// Returns the exports for `shell`, or for the login shell of the host; `None` before the tunnel is up.
    pub(crate) fn exports(&self, grants: &Grants, shell: Option<Shell>) -> Option<Exports> {
        let placed = self.now()?;
        let chosen = shell.or(placed.login_shell);
        let language = chosen.unwrap_or(Shell::Sh);
        let text =
            placed.layout(grants, false, |layout| language.render(&layout.environment(&placed.directory)))?;
        let in_environment = placed.token == TokenPlace::Environment && placed.port.is_some();
        Some(Exports {
            text,
            with_token: in_environment.then(|| files::source_line(language, &placed.directory)).flatten(),
            not_for: chosen.is_none().then(|| placed.program.clone()),
        })
    }

    /// Whether a block in the host's own configuration names our profiles.
    pub(crate) fn has_block(&self) -> bool {
        self.now().is_some_and(|placed| placed.managed)
    }

    /// Whether the shells that were started have the default grant's token in their environment.
    pub(crate) fn has_token_in_environment(&self) -> bool {
        self.now().is_some_and(|placed| placed.token == TokenPlace::Environment && placed.port.is_some())
    }

    /// Writes on the host what follows from the grants as they are now; `gone` has been taken back.
    pub(crate) async fn update(&self, grants: &Grants, gone: &[ProfileName]) -> Result<(), NotPut> {
        let placed = self.now().ok_or(NotPut::NoLink)?;
        let installed = placed.files.upgrade().ok_or(NotPut::NoLink)?;
        let in_environment = placed.token == TokenPlace::Environment;
        let all = placed.layout(grants, in_environment, |layout| layout.files(&placed.directory));
        // The configuration last: whoever reads a new name there finds all that it leads to.
        for file in all.unwrap_or_default().into_iter().rev() {
            installed.write(file).await?;
        }
        let without_us = placed.profiles == Profiles::Files && placed.port.is_none();
        if without_us || placed.lingers {
            for grant in grants.list() {
                let (credentials, content) = role_files::content(grants, &grant).await;
                if let Some(credentials) = credentials {
                    installed.holds_until(credentials.expires_at);
                }
                installed.write(File { name: role_file(&grant.profile), content }).await?;
            }
        }
        for profile in gone {
            let role = (placed.profiles == Profiles::Files || placed.lingers).then(|| role_file(profile));
            let token = (placed.profiles != Profiles::Files).then(|| token_file(profile));
            for name in [role, token].into_iter().flatten() {
                installed.write(File { name, content: Content::text(String::new()) }).await?;
            }
        }
        Ok(())
    }
}

impl Placed {
    /// Makes something of the layout; `None` when there is no grant at all.
    fn layout<T>(
        &self,
        grants: &Grants,
        token_in_environment: bool,
        make: impl FnOnce(&Layout<'_>) -> T,
    ) -> Option<T> {
        let grants = grants.served();
        let tokens: Vec<_> = grants.iter().map(|grant| grant.token.expose_for_token_file()).collect();
        let mut grants = grants.iter().zip(&tokens).map(|(grant, token)| files::Grant {
            profile: &grant.profile,
            token,
            region: grant.region.as_ref(),
            output: grant.output.as_deref(),
        });
        let layout = Layout {
            port: self.port,
            profiles: self.profiles,
            default: grants.next()?,
            others: grants.collect(),
            alias: self.alias.as_ref(),
            token_in_environment,
            keep_config: self.keep_config,
            tls: trust::of(self.tls.as_deref(), &self.trust),
            command: None,
            below_home: self.below_home.as_deref(),
            reach: travels::reach(self.place, self.facts.as_ref(), self.token, self.keep_config),
            lingers: self.lingers,
        };
        Some(make(&layout))
    }
}
