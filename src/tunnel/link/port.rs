//! The port on the host: asked for, proven to be ours alone, and proven to lead to us.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::debug;

use super::{
    super::{CallerCheck, Error, Event, Inputs, PortWish, reconnect::Again, trust},
    Link, TaskEnd,
};
use crate::{
    caller::Uid,
    remote::{
        helper::{Facts, Helper, Nonce},
        install::{Key, Stay},
        probe::{self, Attempt, Probes, Refusal},
        sockets::{self, ListenerProblem},
        stale::How,
    },
    ssh::{
        error::ForwardRefused,
        forward::{Arrival, Forward},
        pump::Pump,
    },
    tasks::reraise,
    tls::{Identity, Stream},
};

impl Link {
    /// Takes the port that was asked for, or another one, and proves that it is ours and leads to us.
    pub(super) async fn open_port(
        &mut self,
        inputs: &Inputs,
        again: Option<&Again>,
        helper: (&Helper, &Facts),
        wanted: u16,
        asked: Result<(Forward, u16), ForwardRefused>,
    ) -> Result<(), Error> {
        self.trust = Box::pin(trust::ask(inputs, helper.0)).await?;
        let asked = match asked {
            Err(refused @ ForwardRefused::Denied { .. }) => self
                .freed(inputs, again, helper, wanted)
                .await
                .map(|forward| (forward, wanted))
                .ok_or(refused),
            asked => asked,
        };
        let refusal = match asked {
            // dropbear is content with [::1] where somebody else has 127.0.0.1.
            Ok((forward, _)) => match Box::pin(self.proven(inputs, helper, forward, wanted)).await {
                Err(Error::Listener { problem: ListenerProblem::Foreign { port, uid }, .. }) => {
                    Refusal::PortBusy { port, uid }
                }
                // So it may be root, whom nobody can tell from sshd by the listener alone.
                Err(
                    error @ (Error::SelfTest { .. }
                    | Error::Listener { problem: ListenerProblem::Exposed { .. }, .. }),
                ) if inputs.options.port == PortWish::Auto => {
                    let refusal = Refusal::PortBusy { port: wanted, uid: Uid(0) };
                    let another = Box::pin(self.another_port(inputs, helper, refusal)).await;
                    self.keep(another.map_err(|_| error)?);
                    return Ok(());
                }
                proven => {
                    self.keep((proven?, wanted));
                    return Ok(());
                }
            },
            Err(refused) => Box::pin(self.why(helper, wanted, refused)).await?,
        };
        let another = Box::pin(self.another_port(inputs, helper, refusal)).await?;
        self.keep(another);
        Ok(())
    }

    fn keep(&mut self, (forward, port): (Forward, u16)) {
        self.forwards.push(forward);
        self.ways.port = Some(port);
    }

    /// Proves that the listener is ours alone and leads to us, or gives it up.
    async fn proven(
        &mut self,
        inputs: &Inputs,
        helper: (&Helper, &Facts),
        forward: Forward,
        port: u16,
    ) -> Result<Forward, Error> {
        let forward = self.check_listener(inputs, helper, forward, port).await?;
        self.self_test(inputs, forward, port).await
    }

    /// Ends dead connections of ours that the host still believes in, and takes the port if one of them had it.
    async fn freed(
        &self,
        inputs: &Inputs,
        again: Option<&Again>,
        (helper, facts): (&Helper, &Facts),
        wanted: u16,
    ) -> Option<Forward> {
        let mut graves = again.map(|again| again.graves.clone()).unwrap_or_default();
        // Those of processes that were killed, too.
        graves.extend(inputs.graveyard.dead(&self.session.facts().fingerprint));
        for how in [How::Ask, How::Kill] {
            let mut told = false;
            for grave in &graves {
                let freed = grave.free(helper, facts, how).await;
                debug!(?grave, ?how, ?freed, "ended a dead connection of ours");
                told |= freed.unwrap_or(false);
            }
            if !told {
                return None;
            }
            let deadline = Instant::now() + FREE_TIMEOUT;
            while Instant::now() < deadline {
                match self.session.forward_tcp(wanted).await {
                    Ok((forward, _)) => return Some(forward),
                    Err(ForwardRefused::Denied { .. }) => sleep(FREE_POLL).await,
                    Err(_) => return None,
                }
            }
        }
        None
    }

    /// Finds out why the port was refused.
    async fn why(
        &self,
        (helper, facts): (&Helper, &Facts),
        wanted: u16,
        refused: ForwardRefused,
    ) -> Result<Refusal, Error> {
        if !matches!(refused, ForwardRefused::Denied { .. }) {
            return Err(Error::Ssh(refused.into()));
        }
        let listening = helper.listeners(wanted).await.ok();
        let probes = Probes {
            any_port: self.probe_any_port().await,
            unix_socket: self.probe_unix_socket(helper).await,
        };
        Ok(probe::classify(wanted, probes, listening.as_ref(), facts.uid))
    }

    /// Takes a port of our own instead of the one that could not be had, where that is what the user wants.
    async fn another_port(
        &mut self,
        inputs: &Inputs,
        helper: (&Helper, &Facts),
        refusal: Refusal,
    ) -> Result<(Forward, u16), Error> {
        if refusal.is_about_this_port() && inputs.options.port == PortWish::Auto {
            for attempt in 0..FALLBACK_PORTS {
                let port = probe::fallback_port(helper.1.uid, attempt);
                match self.session.forward_tcp(port).await {
                    Ok((forward, _)) => {
                        let forward = match self.proven(inputs, helper, forward, port).await {
                            Err(Error::Listener { problem: ListenerProblem::Foreign { .. }, .. }) => continue,
                            proven => proven?,
                        };
                        let message = format!("{refusal}; using port {port} instead");
                        inputs.observe(Event::Notice { message });
                        return Ok((forward, port));
                    }
                    Err(ForwardRefused::Denied { .. }) => {}
                    // Silence or the end of the connection: it would be the same for every port.
                    Err(refused) => return Err(Error::Ssh(refused.into())),
                }
            }
        }
        Err(Error::Forward { host: inputs.host(), refusal })
    }

    async fn probe_any_port(&self) -> Attempt {
        match self.session.forward_tcp(0).await {
            Ok((forward, _)) => {
                self.session.cancel(forward).await;
                Attempt::Allowed
            }
            Err(ForwardRefused::Denied { .. }) => Attempt::Refused,
            Err(_) => Attempt::Untried,
        }
    }

    async fn probe_unix_socket(&self, helper: &Helper) -> Attempt {
        let Some(key) = Key::new("probe") else { return Attempt::Untried };
        let Ok(directory) = helper.directory(key, Stay::Goes).await else { return Attempt::Untried };
        let attempt = match self.session.forward_streamlocal(&format!("{}/s", directory.path())).await {
            Ok(forward) => {
                self.session.cancel(forward).await;
                Attempt::Allowed
            }
            Err(ForwardRefused::Denied { .. }) => Attempt::Refused,
            Err(_) => Attempt::Untried,
        };
        // sshd leaves the socket behind; the directory goes with it.
        if let Err(error) = helper.remove().await {
            debug!(%error, "the probe's directory goes with the connection");
        }
        attempt
    }

    /// Proves that the listener is ours alone, or gives it up.
    async fn check_listener(
        &self,
        inputs: &Inputs,
        (helper, facts): (&Helper, &Facts),
        forward: Forward,
        port: u16,
    ) -> Result<Forward, Error> {
        let host = inputs.host();
        if !facts.shows_sockets {
            if inputs.options.caller_check == CallerCheck::TrustHostUsers {
                inputs.observe(Event::Warning {
                    message: format!(
                        "{host} does not show who owns a connection, so every user there who gets hold of the \
                         token is served (--trust-host-users)"
                    ),
                });
                return Ok(forward);
            }
            self.session.cancel(forward).await;
            return Err(Error::CannotCheckCallers { host, system: facts.system.clone() });
        }
        let listening = match helper.listeners(port).await {
            Ok(listening) => listening,
            Err(source) => {
                self.session.cancel(forward).await;
                return Err(Error::Helper { host, source });
            }
        };
        match sockets::verify(&listening, facts.uid) {
            Ok(others) => {
                for other in others {
                    debug!(address = %other.address, uid = other.uid.0, "somebody else listens on this port too");
                }
                Ok(forward)
            }
            Err(problem) => {
                self.session.cancel(forward).await;
                Err(Error::Listener { host, port, problem })
            }
        }
    }

    /// Sends a nonce to the port from the host's side; it must come out at our end.
    async fn self_test(
        &mut self,
        inputs: &Inputs,
        mut forward: Forward,
        port: u16,
    ) -> Result<Forward, Error> {
        let (stream, pump) = match self.session.direct_tcpip("127.0.0.1", port).await {
            Ok(opened) => opened,
            // PermitOpen and the like: the listener was verified, so this proves nothing against it.
            Err(refused) => {
                debug!(%refused, "the self-test could not be made");
                return Ok(forward);
            }
        };
        let nonce = Nonce::generate()?;
        let expected = nonce.as_str().to_owned();
        let send = say(stream, inputs.tls.clone(), nonce);
        let mut sending = Box::pin(async move {
            tokio::join!(send, pump);
        });
        let mut sent = false;
        let arrived = async {
            let mut candidates = JoinSet::new();
            loop {
                tokio::select! {
                    arrival = forward.arrivals.recv() => {
                        let arrival = arrival?;
                        candidates.spawn(bears(arrival, inputs.tls.clone(), expected.clone()));
                    }
                    Some(candidate) = candidates.join_next() => if let Some(rest) = reraise(candidate) {
                        return Some(rest);
                    },
                    () = &mut sending, if !sent => sent = true,
                }
            }
        };
        let arrived = tokio::time::timeout(SELF_TEST_TIMEOUT, arrived).await;
        if let Ok(Some(rest)) = arrived {
            // The proof is there. The server may take its time to close both ends, and asyncssh never does.
            self.tasks.spawn(async move {
                let unsent = async {
                    if !sent {
                        sending.await;
                    }
                };
                tokio::join!(unsent, async {
                    if let Some(pump) = rest {
                        pump.await;
                    }
                });
                TaskEnd::Server
            });
            return Ok(forward);
        }
        self.session.cancel(forward).await;
        Err(Error::SelfTest { host: inputs.host(), port })
    }
}

/// Sends the nonce as a client of ours would.
async fn say<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, tls: Option<Arc<Identity>>, nonce: Nonce) {
    let nonce = nonce.as_str().as_bytes();
    // A connection that breaks shows as a nonce that does not arrive.
    match tls {
        None => {
            drop(stream.write_all(nonce).await);
            drop(stream.shutdown().await);
        }
        Some(tls) => match Box::pin(tls.connect(stream)).await {
            Ok(mut stream) => {
                drop(stream.write_all(nonce).await);
                drop(stream.shutdown().await);
            }
            Err(error) => debug!(%error, "what answers at the port is not us"),
        },
    }
}

/// Whether this connection brings the nonce, and nothing else first; if so, returns what is left to be driven of it.
async fn bears(arrival: Box<Arrival>, tls: Option<Arc<Identity>>, nonce: String) -> Option<Option<Pump>> {
    let Arrival { stream, mut pump, .. } = *arrival;
    let mut stream = Stream::new(stream, tls.as_deref());
    let mut read = Box::pin(async move {
        let mut said = vec![0; nonce.len()];
        stream.read_exact(&mut said).await.is_ok() && said == nonce.as_bytes()
    });
    tokio::select! {
        biased;
        proven = &mut read => match proven {
            true => Some(Some(pump)),
            false => {
                pump.await;
                None
            }
        },
        // What came before the end can still be read.
        _ = &mut pump => read.await.then_some(None),
    }
}

/// One round trip through the host and back, on a slow line.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A user with more live brokers than this on one host has to name ports.
const FALLBACK_PORTS: u16 = 8;

/// sshd ends within 0.1 s of being told to, where it can.
const FREE_TIMEOUT: Duration = Duration::from_millis(700);

/// Nobody tells when a port is free.
const FREE_POLL: Duration = Duration::from_millis(30);
