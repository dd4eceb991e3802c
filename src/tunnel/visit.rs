//! A short look at a host: one SSH connection and the helper, no forward and nothing of AWS.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    Error, Event, Observer, Step,
    link::{TaskEnd, connect},
    start_helper::start_helper,
};
use crate::{
    human::Human,
    remote::{
        helper::{self, Facts, Helper},
        home,
        leftovers::{self, Leftover, Sweep},
        managed::{self, Cleaned},
    },
    ssh::{
        session::{HostKeys, Session},
        target::Target,
    },
};

/// A connection to a host, with the helper running there.
pub(crate) struct Visit {
    pub(super) host: String,
    pub(super) session: Session,
    pub(super) helper: Helper,
    pub(super) facts: Facts,
    tasks: JoinSet<TaskEnd>,
}

impl Visit {
    /// Connects and starts the helper.
    pub(crate) async fn open(
        target: &Target,
        host_keys: &Arc<dyn HostKeys>,
        human: &Arc<dyn Human>,
        observer: &Observer,
    ) -> Result<Self, Error> {
        let subject = format!("{}@{}", target.user, target.original);
        observer(Event::Started { step: Step::Connect, subject: subject.clone() });
        let session = connect(target, None, host_keys, human, |_| {}).await?;
        observer(Event::Done { step: Step::Connect, subject });
        let mut tasks = JoinSet::new();
        let host = target.original.clone();
        match start_helper(&host, &session, &mut tasks).await {
            Ok((helper, facts)) => Ok(Self { host, session, helper, facts, tasks }),
            Err(error) => {
                session.disconnect().await;
                Err(error)
            }
        }
    }

    /// Finds what brokers left on the host, and treats it as `sweep` says.
    pub(crate) async fn sweep(&self, sweep: Sweep) -> Result<Vec<Leftover>, Error> {
        leftovers::sweep(&self.helper, sweep).await.map_err(|source| self.failed(source))
    }

    /// Finds the blocks of brokers in the host's own configuration, and treats them as `sweep` says.
    pub(crate) async fn sweep_profiles(
        &self,
        found: &[Leftover],
        sweep: Sweep,
    ) -> Result<Vec<Cleaned>, home::Error> {
        managed::clean(&self.helper, &self.facts.host, found, sweep).await
    }

    /// Ends the helper and the connection.
    pub(crate) async fn close(mut self) {
        drop(tokio::time::timeout(BYE_TIMEOUT, self.helper.bye()).await);
        self.session.disconnect().await;
        self.tasks.shutdown().await;
    }

    fn failed(&self, source: helper::Error) -> Error {
        Error::Helper { host: self.host.clone(), source }
    }
}

/// Nothing waits on the host for the helper's end.
const BYE_TIMEOUT: Duration = Duration::from_millis(500);
