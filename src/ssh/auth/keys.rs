//! Public keys: those of the agent, of files and of the environment.

use std::{path::Path, sync::Arc};

use russh::keys::{Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::timeout_at;

use super::{Login, Step};
use crate::{
    human::Question,
    printable::one_line,
    ssh::{
        agent::{self, Agent},
        algorithms::rsa_bits,
        error::Error,
        identity::{Candidate, Source},
    },
};

impl Login<'_> {
    pub(super) async fn agent(&self, socket: &Path) -> Option<Agent> {
        match agent::connect(socket, self.handle.agent_session_binding()).await {
            Ok(agent) => Some(agent),
            Err(error) => {
                let socket = one_line(&socket.display().to_string());
                self.shared
                    .human
                    .tell(&format!("broker: warning: the agent at `{socket}` is not used: {error}"));
                None
            }
        }
    }

    /// Returns the hash for RSA signatures, asking the server once; `Err` when there is none that both take.
    async fn rsa_hash(&mut self) -> Result<Option<HashAlg>, ()> {
        if self.rsa_hash.is_none() {
            // Bounded by russh to one second.
            let server = self.handle.best_supported_rsa_hash().await.unwrap_or_default();
            self.rsa_hash = Some(self.target.algorithms.rsa_hash(server));
        }
        self.rsa_hash.unwrap_or(Err(()))
    }

    pub(super) async fn key(&mut self, key: Candidate, agent: Option<&mut Agent>) -> Result<Step, Error> {
        let title = key.title();
        let hash = if key.is_rsa() {
            let Ok(hash) = self.rsa_hash().await else {
                self.tried.push(format!(
                    "{title} not (there is no safe way to sign with RSA that both sides take)"
                ));
                return Ok(Step::Out(None));
            };
            hash
        } else {
            None
        };
        self.tried.push(title);
        let user = self.target.user.clone();
        let deadline = self.deadline();
        match key.source {
            Source::Agent { .. } => {
                let Some(agent) = agent else { return Ok(Step::Out(None)) };
                let signing = agent.authenticate(self.handle, self.shared, user, &key, hash);
                let answer = timeout_at(deadline, signing).await;
                match answer {
                    Ok(Err(agent::SignError::Unable)) => Ok(Step::Out(None)),
                    Ok(Err(agent::SignError::Agent(error))) => {
                        // Declined by a person, or a key that is gone: the next may do.
                        if let Some(last) = self.tried.last_mut() {
                            last.push_str(" (the agent did not sign)");
                        }
                        tracing::debug!(%error, "the agent did not sign");
                        if self.handle.is_closed() {
                            return Err(self.over().await);
                        }
                        Ok(Step::Out(None))
                    }
                    Ok(Err(agent::SignError::Session)) => Err(self.over().await),
                    Ok(Ok(result)) => self.answered(Ok(Ok(result)), "public key").await,
                    Err(elapsed) => self.answered(Err(elapsed), "signature of the agent").await,
                }
            }
            Source::Environment { private, .. } | Source::File { private: Some(private), .. } => {
                self.private_key(private, key.certificate, hash).await
            }
            Source::File { private: None, path, text } => {
                // Encrypted: the passphrase is asked for only when the server would take the key.
                let mut probe = agent::Probe::default();
                let probed = match (&key.certificate, key.public) {
                    (Some(certificate), _) => {
                        let certificate = certificate.clone();
                        let probing =
                            self.handle.authenticate_certificate_with(user, certificate, hash, &mut probe);
                        Some(timeout_at(deadline, probing).await)
                    }
                    (None, Some(public)) => {
                        let probing = self.handle.authenticate_publickey_with(user, public, hash, &mut probe);
                        Some(timeout_at(deadline, probing).await)
                    }
                    (None, None) => None,
                };
                match probed {
                    None => {}
                    Some(Err(elapsed)) => return self.answered(Err(elapsed), "public key").await,
                    Some(Ok(Ok(result))) => return self.answered(Ok(Ok(result)), "public key").await,
                    Some(Ok(Err(_))) if probe.accepted => {}
                    Some(Ok(Err(_))) => return Err(self.over().await),
                }
                match self.unlock(&path, text).await {
                    Some(private) => self.private_key(private, key.certificate, hash).await,
                    None => Ok(Step::Out(None)),
                }
            }
        }
    }

    async fn private_key(
        &mut self,
        private: Arc<PrivateKey>,
        certificate: Option<Certificate>,
        hash: Option<HashAlg>,
    ) -> Result<Step, Error> {
        let user = self.target.user.clone();
        // What type an encrypted key has may be known only now.
        let hash = if private.algorithm().is_rsa() && hash.is_none() {
            match self.rsa_hash().await {
                Ok(hash) => hash,
                Err(()) => return Ok(Step::Out(None)),
            }
        } else {
            hash
        };
        let short = rsa_bits(private.public_key()).is_some_and(|bits| bits < self.target.required_rsa_size);
        if short || !self.target.algorithms.takes_key(&private.algorithm(), certificate.is_some()) {
            return Ok(Step::Out(None));
        }
        let deadline = self.deadline();
        let answer = match certificate {
            Some(certificate) => {
                let mut signer = agent::Local(private);
                let logging_in =
                    self.handle.authenticate_certificate_with(user, certificate, hash, &mut signer);
                match timeout_at(deadline, logging_in).await {
                    Ok(Err(agent::SignError::Unable)) => return Ok(Step::Out(None)),
                    Ok(answer) => Ok(answer.map_err(|_| russh::Error::Disconnect)),
                    Err(elapsed) => Err(elapsed),
                }
            }
            None => {
                let key = PrivateKeyWithHashAlg::new(private, hash);
                timeout_at(deadline, self.handle.authenticate_publickey(user, key)).await
            }
        };
        self.answered(answer, "public key").await
    }

    /// Asks for the passphrase of the key at `path`.
    async fn unlock(&mut self, path: &Path, text: Arc<SecretString>) -> Option<Arc<PrivateKey>> {
        let mut note = |note: &str| {
            if let Some(last) = self.tried.last_mut() {
                last.push_str(note);
            }
        };
        if self.target.batch {
            note(" (it has a passphrase, and nobody can be asked)");
            return None;
        }
        for _ in 0..self.target.authentication.prompts {
            let question = Question {
                text: format!("Enter passphrase for key '{}': ", one_line(&path.display().to_string())),
                echo: false,
            };
            let passphrase = self.shared.human.ask(question).await?;
            if passphrase.expose_secret().is_empty() {
                break;
            }
            let text = Arc::clone(&text);
            // Deriving the key takes a good part of a second, by design.
            let decoded = tokio::task::spawn_blocking(move || {
                russh::keys::decode_secret_key(text.expose_secret(), Some(passphrase.expose_secret()))
            });
            if let Ok(Ok(key)) = decoded.await {
                let key = Arc::new(key);
                // From now on it takes nobody.
                self.target.identities.unlocked.keep(path, &key);
                return Some(key);
            }
        }
        note(" (no passphrase opened it)");
        None
    }
}
