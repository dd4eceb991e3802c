//! Role credentials in files on the host: for servers that refuse every forward, and to outlive us (`--linger`).
//!
//! Each grant's file is written before the tunnel is ready, again with every renewal, and emptied when there is nothing
//! valid to put in. Removal belongs to the directory that the files lie in.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use crate::{
    clock::Clock,
    creds::{
        grant::{Grant, Grants},
        secret::RoleCredentials,
    },
    names::ProfileName,
    remote::{
        files::role_file,
        install::{Content, Error, File, FileName, Installed},
    },
    serve::reply::credentials_text,
};

/// What lies in the files: the access key id, which is no secret, and the end; `None` for an empty file.
#[derive(Debug, Default)]
pub(super) struct Written(HashMap<ProfileName, Option<(String, SystemTime)>>);

/// Whether the files stay when we end, and for how long at most.
#[derive(Clone, Debug)]
pub(super) struct Linger {
    pub(super) most: Duration,
    pub(super) clock: Clock,
}

impl Linger {
    /// Tells the host what stays there when we end, from now on. What it has not been told goes.
    pub(super) async fn tell(&self, installed: &Installed, written: &Written) -> Result<(), Error> {
        let now = self.clock.now();
        let left = |(profile, held): (&ProfileName, &Option<(String, SystemTime)>)| {
            let left = held.as_ref()?.1.duration_since(now).ok()?;
            Some((role_file(profile), left))
        };
        let files: Vec<(FileName, Duration)> = written.0.iter().filter_map(left).collect();
        installed.linger(self.most, &files).await
    }
}

/// Writes what is new, and returns whether anything was.
pub(super) async fn write(
    grants: &Grants,
    installed: &Installed,
    written: &mut Written,
) -> Result<bool, Error> {
    let mut new = false;
    let list = grants.list();
    let gone: Vec<ProfileName> = written
        .0
        .keys()
        .filter(|&known| !list.iter().any(|grant| grant.profile == *known))
        .cloned()
        .collect();
    for profile in gone {
        installed.write(File { name: role_file(&profile), content: Content::text(String::new()) }).await?;
        written.0.remove(&profile);
        new = true;
    }
    for grant in list {
        let (credentials, content) = content(grants, &grant).await;
        let held = credentials
            .as_ref()
            .map(|credentials| (credentials.access_key_id.clone(), credentials.expires_at));
        if written.0.get(&grant.profile) == Some(&held) {
            continue;
        }
        if let Some(credentials) = credentials {
            // Before they lie there, because we may never hear that they do.
            installed.holds_until(credentials.expires_at);
        }
        installed.write(File { name: role_file(&grant.profile), content }).await?;
        written.0.insert(grant.profile.clone(), held);
        new = true;
    }
    Ok(new)
}

/// Keeps the files as fresh as the grants until `stopping` changes or the helper is gone.
pub(super) async fn keep(
    grants: Arc<Grants>,
    installed: Arc<Installed>,
    mut written: Written,
    linger: Option<Linger>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut changes = grants.changes();
    loop {
        tokio::select! {
            // First, as the end changes every grant as well, and what lies there may stay then.
            biased;
            _ = stopping.changed() => return Ok(()),
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let writing = async {
            let new = write(&grants, &installed, &mut written).await?;
            match &linger {
                Some(linger) if new => linger.tell(&installed, &written).await,
                _ => Ok(()),
            }
        };
        tokio::select! {
            biased;
            // Whoever stops has two seconds in all, and removes what a dropped write leaves.
            _ = stopping.changed() => return Ok(()),
            result = writing => result?,
        }
    }
}

/// Returns what belongs into the file of this grant now.
pub(super) async fn content(grants: &Grants, grant: &Grant) -> (Option<Arc<RoleCredentials>>, Content) {
    if grants.confirmed(grant, None, || None).is_err() {
        return (None, Content::text(String::new()));
    }
    // What is there already: this never waits for AWS.
    let credentials = grant.credentials(Instant::now()).await.ok();
    match credentials.as_deref().and_then(credentials_text) {
        Some(text) => (credentials, Content::Text(text)),
        None => (None, Content::text(String::new())),
    }
}

/// Credentials end by the clock, which no change announces.
const LOOK: Duration = Duration::from_secs(15);
