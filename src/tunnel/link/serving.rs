//! Who is served through a forward, and how it is told who is asking.

use std::{net::SocketAddr, sync::Arc};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    caller::{Caller, Uid, Unproven},
    creds::grant::Grants,
    remote::helper::Helper,
    serve::{self, Endpoint},
    ssh::forward::{Arrival, Forward},
    tasks::reraise,
    tls::{Identity, Stream},
};

/// How a forward tells who is asking.
#[derive(Clone)]
pub(super) enum Door {
    /// By the uid that the host shows for the caller's end of the connection.
    Checked { port: u16, helper: Helper },
    /// Not at all (`--trust-host-users`).
    Trusted { port: u16 },
    /// By the kernel: the socket lies in a 0700 directory of this user, so nobody else can connect but root.
    Socket { uid: Uid },
}

/// Accepts what comes through the forward until told to stop or the link is gone, then ends what is open.
pub(super) async fn serve_forward(
    mut forward: Forward,
    door: Door,
    tls: Option<Arc<Identity>>,
    grants: Arc<Grants>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopping.changed() => break,
            arrival = forward.arrivals.recv() => {
                let Some(arrival) = arrival else { break };
                connections.spawn(answer(arrival, door.clone(), tls.clone(), Arc::clone(&grants)));
            }
            Some(ended) = connections.join_next() => reraise(ended),
        }
    }
    connections.shutdown().await;
}

async fn answer(arrival: Box<Arrival>, door: Door, tls: Option<Arc<Identity>>, grants: Arc<Grants>) {
    let Arrival { stream, pump, originator } = *arrival;
    let port = match door {
        Door::Checked { port, .. } | Door::Trusted { port } => Some(port),
        Door::Socket { .. } => None,
    };
    let caller = async move {
        match (door, originator) {
            (Door::Checked { port, helper }, Some(SocketAddr::V4(originator))) => {
                helper.caller(originator, port).await.map(Caller::Uid)
            }
            (Door::Checked { .. }, _) => Err(Unproven::Gone),
            (Door::Trusted { .. }, _) => Ok(Caller::Trusted),
            (Door::Socket { uid }, _) => Ok(Caller::Uid(uid)),
        }
    };
    let name = tls.as_deref().and_then(Identity::name);
    let endpoint = Endpoint { port, name, originator_port: originator.map(|address| address.port()) };
    let stream = Stream::new(stream, tls.as_deref());
    tokio::join!(serve::connection(stream, &endpoint, caller, &grants), pump);
}
