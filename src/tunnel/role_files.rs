//! Role credentials in files on the host, for servers that refuse every forward.
//!
//! Each grant's file is written before the tunnel is ready, again with every renewal, and emptied when there is nothing
//! valid to put in. Removal belongs to the directory that the files lie in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use crate::{
    creds::{
        grant::{Grant, Grants},
        secret::RoleCredentials,
    },
    names::ProfileName,
    remote::{
        files::role_file,
        install::{Content, Error, File, Installed},
    },
    serve::reply::credentials_text,
};

/// What lies in the files, by the access key ids, which are no secrets; `None` for an empty file.
#[derive(Debug, Default)]
pub(super) struct Written(HashMap<ProfileName, Option<String>>);

/// Writes what is new.
pub(super) async fn write(
    grants: &Grants,
    installed: &Installed,
    written: &mut Written,
) -> Result<(), Error> {
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
    }
    for grant in list {
        let (credentials, content) = content(grants, &grant).await;
        let id = credentials.as_ref().map(|credentials| credentials.access_key_id.clone());
        if written.0.get(&grant.profile) == Some(&id) {
            continue;
        }
        if let Some(credentials) = credentials {
            // Before they lie there, because we may never hear that they do.
            installed.holds_until(credentials.expires_at);
        }
        installed.write(File { name: role_file(&grant.profile), content }).await?;
        written.0.insert(grant.profile.clone(), id);
    }
    Ok(())
}

/// Keeps the files as fresh as the grants until `stopping` changes or the helper is gone.
pub(super) async fn keep(
    grants: Arc<Grants>,
    installed: Arc<Installed>,
    mut written: Written,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut changes = grants.changes();
    loop {
        tokio::select! {
            _ = stopping.changed() => return Ok(()),
            _ = changes.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        tokio::select! {
            // Whoever stops has two seconds in all, and removes what a dropped write leaves.
            _ = stopping.changed() => return Ok(()),
            result = write(&grants, &installed, &mut written) => result?,
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
