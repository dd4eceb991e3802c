//! The decision on a host key: pin, known_hosts, the person, in that order.
//!
//! A certificate comes first where an authority for the host is on file; one that is not good leaves its key to be judged
//! as any other. A changed or revoked key always stops us. A new key needs a person or `accept-new`, and `accept-new` does not
//! accept a host that is known by another type of key: that is what an impostor without the right key looks like.
//! What `RevokedHostKeys` names is refused before anything else, pinned or not; it is read for every connection anew.

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use russh::keys::{Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};
use secrecy::ExposeSecret as _;

use super::{
    algorithms::{self, Certificates},
    error::HostKeyRefused,
    host_certificate,
    known_hosts::{self, Authority, HostName, KnownHosts, Verdict},
    known_hosts_command::{self, Invocation},
    revoked::{self, Revoked},
    session::{HostKeys, Trust, Wanted},
    target::{KnownHostsFiles, StrictHostKeyChecking, Target, Way},
};
use crate::{
    clock::Clock,
    human::{BoxFuture, Human, Question},
};

/// Why a host's key was refused. Every variant ends the connection before anything secret was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the host key of {host} is not known ({algorithm} {fingerprint})")]
    Unknown { host: String, algorithm: String, fingerprint: String },
    #[error("the host key of {host} was not accepted")]
    NotAccepted { host: String },
    #[error(
        "THE HOST KEY OF {host} HAS CHANGED: it sent {sent}, but `{}` line {line} has another key; \
         either the host was set up anew, or somebody stands between you and it",
        path.display()
    )]
    Changed {
        host: String,
        /// The name in known_hosts.
        name: Box<str>,
        sent: String,
        path: PathBuf,
        line: usize,
    },
    #[error(
        "{host} sent a key of a type that is not known for it ({sent}), but `{}` line {line} has its {known} key",
        path.display()
    )]
    OtherType {
        host: String,
        /// The name in known_hosts.
        name: Box<str>,
        sent: String,
        known: String,
        path: PathBuf,
        line: usize,
    },
    #[error(
        "THE HOST KEY OF {host} HAS CHANGED since we connected: it sent {sent}, and had {accepted} before; \
         either the host was set up anew, or somebody stands between you and it"
    )]
    ChangedMeanwhile { host: String, sent: String, accepted: String },
    #[error("the host key of {host} is marked as revoked (`{}` line {line})", path.display())]
    Revoked { host: String, path: PathBuf, line: usize },
    #[error(
        "{host} has no certificate of its authority (`{}` line {line}), and its key is not known ({sent})",
        path.display()
    )]
    NotCertified { host: String, sent: String, path: PathBuf, line: usize },
    #[error("the host key of {host} is {fingerprint}, not the pinned {pinned}")]
    NotPinned { host: String, fingerprint: String, pinned: String },
    #[error("the host key of {host} could not be checked")]
    KnownHosts {
        host: String,
        #[source]
        source: known_hosts::Error,
    },
    #[error("the host key of {host} is revoked ({sent}, in `{}`)", path.display())]
    RevokedByList { host: String, sent: String, path: PathBuf },
    #[error("the host key of {host} could not be checked")]
    RevokedHostKeys {
        host: String,
        #[source]
        source: revoked::Error,
    },
    #[error("the host key of {host} could not be checked")]
    Command {
        host: String,
        #[source]
        source: known_hosts_command::Error,
    },
    #[error("the host key of {host} has only {bits} bits, and {required} are required (`RequiredRSASize`)")]
    Short { host: String, bits: u32, required: u32 },
}

impl Refused {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { host, fingerprint, .. } => Some(format!(
                "compare the fingerprint with what the host's administrator says, then connect once at a terminal, \
                 or pass `--host-key {fingerprint}` to use {host} without asking"
            )),
            Self::NotAccepted { .. } => {
                Some("ask the host's administrator for the fingerprint of its key".to_owned())
            }
            Self::Changed { path, .. } | Self::OtherType { path, .. } if known_hosts_command::is_place(path) => {
                Some("ask the host's administrator; the key that it should have is what your KnownHostsCommand says".to_owned())
            }
            Self::Changed { name, path, .. } | Self::OtherType { name, path, .. } => Some(format!(
                "ask the host's administrator; if the new key is right, remove the old one with \
                 `ssh-keygen -f '{}' -R '{name}'`",
                path.display()
            )),
            Self::ChangedMeanwhile { host, .. } => {
                Some(format!("ask the host's administrator, and then connect to {host} anew"))
            }
            Self::Revoked { .. } | Self::RevokedByList { .. } => {
                Some("ask the host's administrator for the new key".to_owned())
            }
            Self::RevokedHostKeys { source, .. } => source.hint(),
            Self::Command { source, .. } => source.hint(),
            Self::Short { .. } => Some("ask the host's administrator for a larger key, or one of Ed25519".to_owned()),
            Self::NotCertified { .. } => Some(
                "ask the host's administrator; at a terminal, without `accept-new`, you can look at the key and accept it"
                    .to_owned(),
            ),
            Self::NotPinned { .. } => {
                Some("ask the host's administrator which key is right, and pin that".to_owned())
            }
            Self::KnownHosts { source, .. } => source.hint(),
        }
    }
}

/// What was read of known_hosts so far: many hosts have the same files, with a line for each of them.
#[derive(Debug, Default)]
pub(crate) struct OnFile(Vec<(KnownHostsFiles, Arc<KnownHosts>)>);

impl OnFile {
    fn read(&mut self, files: &KnownHostsFiles) -> Result<Arc<KnownHosts>, known_hosts::Error> {
        if let Some((_, known)) = self.0.iter().find(|(read, _)| read == files) {
            return Ok(Arc::clone(known));
        }
        let known = Arc::new(KnownHosts::load(files)?);
        warn_of_bad_lines(&known);
        self.0.push((files.clone(), Arc::clone(&known)));
        Ok(known)
    }
}

/// Host keys as known_hosts and the person know them.
pub(crate) struct KnownHostKeys {
    target: Target,
    name: HostName,
    known: Arc<KnownHosts>,
    human: Arc<dyn Human>,
    clock: Clock,
    /// The key that was accepted on this run, and why: a reconnect must see the same one, whatever is on file.
    accepted: Mutex<Option<(PublicKey, Trust)>>,
    /// As read for the connection that is being made.
    revoked: Mutex<Revoked>,
    /// The same of the jump host, which has files and a mind of its own.
    jump: Option<Arc<Self>>,
}

impl KnownHostKeys {
    /// Reads the known_hosts files of `target`.
    pub(crate) fn load(target: &Target, human: Arc<dyn Human>) -> Result<Self, Refused> {
        Self::load_beside(target, human, &mut OnFile::default())
    }

    /// Reads the known_hosts files of `target`, but those that were read for another target already.
    pub(crate) fn load_beside(
        target: &Target,
        human: Arc<dyn Human>,
        on_file: &mut OnFile,
    ) -> Result<Self, Refused> {
        let name = HostName::of(target);
        let known = match &target.pinned_host_key {
            Some(_) => Arc::default(),
            None => on_file
                .read(&target.known_hosts)
                .map_err(|source| Refused::KnownHosts { host: target.original.clone(), source })?,
        };
        let jump = match &target.way {
            Way::Jump(hop) => Some(Arc::new(Self::load_beside(hop, Arc::clone(&human), on_file)?)),
            Way::Direct | Way::Command(_) => None,
        };
        Ok(Self {
            target: target.clone(),
            name,
            known,
            human,
            clock: Clock::system(),
            accepted: Mutex::default(),
            revoked: Mutex::default(),
            jump,
        })
    }

    async fn decide(&self, key: &PublicKey, certificate: Option<&Certificate>) -> Result<Trust, Refused> {
        let host = self.target.original.clone();
        let algorithm = key.algorithm().as_str().to_owned();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let sent = described(key);
        if let Some(pinned) = &self.target.pinned_host_key {
            return if *pinned == fingerprint {
                Ok(Trust::Known)
            } else {
                Err(Refused::NotPinned { host, fingerprint, pinned: pinned.clone() })
            };
        }
        let known = self.known(Invocation::HostName(key, certificate)).await?;
        if let Some(certificate) = certificate
            && self.is_certified(&known, certificate)?
        {
            return Ok(Trust::Known);
        }
        let (other_types, same_key_as) = match known.verdict(&self.name, key) {
            Verdict::Known => return Ok(Trust::Known),
            Verdict::Changed { path, line, .. } => {
                return Err(Refused::Changed { host, name: self.name.to_string().into(), sent, path, line });
            }
            Verdict::Revoked { path, line } => return Err(Refused::Revoked { host, path, line }),
            Verdict::New { other_types, same_key_as } => (other_types, same_key_as),
        };
        let other_type = other_types.first().map(|(known, path, line)| Refused::OtherType {
            host: host.clone(),
            name: self.name.to_string().into(),
            sent: sent.clone(),
            known: known.to_string(),
            path: path.clone(),
            line: *line,
        });
        match self.target.strict_host_key_checking {
            StrictHostKeyChecking::AcceptNew => match (other_type, known.cert_authority(&self.name)) {
                (Some(refused), _) => Err(refused),
                (None, Some((path, line))) => Err(Refused::NotCertified { host, sent, path, line }),
                (None, None) => {
                    self.remember(key);
                    Ok(Trust::Unseen)
                }
            },
            StrictHostKeyChecking::Ask if !self.target.batch => {
                let mut text = format!(
                    "The authenticity of host '{host}' can't be established.\n{} key fingerprint is {fingerprint}.\n",
                    short_name(&algorithm)
                );
                for (known, path, line) in &other_types {
                    text.push_str(&format!(
                        "This host is known by its {} key ({}:{line}), but sent another type.\n",
                        short_name(known),
                        path.display()
                    ));
                }
                if let Some((path, line)) = known.cert_authority(&self.name) {
                    text.push_str(&format!(
                        "Its certificate authority is on file ({}:{line}), but no certificate of it vouches for this key.\n",
                        path.display()
                    ));
                }
                if same_key_as.is_empty() {
                    text.push_str("This key is not known by any other names.\n");
                } else {
                    text.push_str(&format!(
                        "This key is known by the following other names/addresses: {}\n",
                        crate::printable::one_line(&same_key_as.join(", "))
                    ));
                }
                text.push_str("Are you sure you want to continue connecting (yes/no/[fingerprint])? ");
                loop {
                    let question = Question { text: text.clone(), echo: true };
                    let Some(answer) = self.human.ask(question).await else {
                        return Err(Refused::Unknown { host, algorithm, fingerprint });
                    };
                    match answer.expose_secret().trim() {
                        answer if answer == "yes" || answer == fingerprint => {
                            self.remember(key);
                            return Ok(Trust::Known);
                        }
                        "no" => return Err(Refused::NotAccepted { host }),
                        _ => "Please type 'yes', 'no' or the fingerprint: ".clone_into(&mut text),
                    }
                }
            }
            StrictHostKeyChecking::Ask | StrictHostKeyChecking::Yes => {
                Err(Refused::Unknown { host, algorithm, fingerprint })
            }
        }
    }

    /// Decides on another key than the one that this run has accepted. Nobody is asked, and nothing is written down: a
    /// host whose name has several keys on file may show another of them, and nobody else may.
    async fn decide_again(
        &self,
        key: &PublicKey,
        certificate: Option<&Certificate>,
        accepted: &PublicKey,
    ) -> Result<Trust, Refused> {
        let host = self.target.original.clone();
        if self.target.pinned_host_key.is_none() {
            let known = self.known(Invocation::HostName(key, certificate)).await?;
            if let Some(certificate) = certificate
                && self.is_certified(&known, certificate)?
            {
                return Ok(Trust::Known);
            }
            match known.verdict(&self.name, key) {
                Verdict::Known => return Ok(Trust::Known),
                Verdict::Revoked { path, line } => return Err(Refused::Revoked { host, path, line }),
                Verdict::Changed { .. } | Verdict::New { .. } => {}
            }
        }
        Err(Refused::ChangedMeanwhile { host, sent: described(key), accepted: described(accepted) })
    }

    /// Writes a new key down. That it cannot be written is no reason to refuse a key that the person accepted.
    fn remember(&self, key: &PublicKey) {
        let Some(file) = self.target.known_hosts.user.first() else { return };
        match known_hosts::append(file, &self.name, key, self.target.known_hosts.hash) {
            Ok(()) if self.target.quiet => {}
            Ok(()) => self.human.tell(&format!(
                "broker: permanently added '{}' ({}) to the list of known hosts",
                self.name,
                short_name(key.algorithm().as_str())
            )),
            Err(e) => self.human.tell(&format!("broker: warning: the host key is not remembered: {e}")),
        }
    }

    /// Returns whether an authority of this host vouches for it. One that does so wrongly is told, as with `ssh`.
    fn is_certified(&self, known: &KnownHosts, certificate: &Certificate) -> Result<bool, Refused> {
        let host = &self.target.original;
        let (path, line) = match known.authority(&self.name, certificate) {
            Authority::Revoked { path, line } => {
                return Err(Refused::Revoked { host: host.clone(), path, line });
            }
            Authority::Unknown => return Ok(false),
            Authority::Known { path, line } => (path, line),
        };
        let signatures = self.target.algorithms.certificate_signatures();
        let checked =
            host_certificate::check(certificate, self.name.without_port(), self.clock.now(), &signatures);
        if let Err(flaw) = &checked {
            self.human.tell(&crate::printable::printable(&format!(
                "broker: warning: the certificate of {host} is not taken (authority: {}:{line}): {flaw}",
                path.display()
            )));
        }
        Ok(checked.is_ok())
    }

    /// Returns what the files say, and the command where there is one.
    async fn known(&self, invocation: Invocation<'_>) -> Result<Cow<'_, KnownHosts>, Refused> {
        let Some(command) = &self.target.known_hosts.command else { return Ok(Cow::Borrowed(&self.known)) };
        let printed = known_hosts_command::run(command, &self.name, invocation, &self.human)
            .await
            .map_err(|source| Refused::Command { host: self.target.original.clone(), source })?;
        let known = self.known.with_printed(&printed, &known_hosts_command::place(invocation), &self.name);
        warn_of_bad_lines(&known);
        Ok(Cow::Owned(known))
    }

    async fn prepare(&self) -> Result<Wanted, Refused> {
        let paths = self.target.revoked_host_keys.clone();
        if !paths.is_empty() {
            // What blocks runs elsewhere; it neither panics nor is cancelled.
            let read = tokio::task::spawn_blocking(move || Revoked::load(&paths)).await;
            let read = read.unwrap_or(Err(revoked::Error::Unread));
            let revoked = read
                .map_err(|source| Refused::RevokedHostKeys { host: self.target.original.clone(), source })?;
            *self.revoked.lock().unwrap_or_else(PoisonError::into_inner) = revoked;
        }
        if self.target.pinned_host_key.is_some() {
            return Ok(Wanted::default());
        }
        let known = self.known(Invocation::Order).await?;
        let certificates = if known.cert_authority(&self.name).is_some() {
            Certificates::All
        } else if !self.target.revoked_host_keys.is_empty() || known.revokes_any(&self.name) {
            Certificates::OfKnownTypes
        } else {
            Certificates::None
        };
        Ok(Wanted { keys: known.known_algorithms(&self.name), certificates })
    }

    /// Refuses what no host may have, whoever vouches for it.
    fn refuse_never(&self, key: &PublicKey, certificate: Option<&Certificate>) -> Result<(), Refused> {
        let host = || self.target.original.clone();
        let required = self.target.required_rsa_size;
        if let Some(bits) = algorithms::rsa_bits(key).filter(|bits| *bits < required) {
            return Err(Refused::Short { host: host(), bits, required });
        }
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        match revoked.by(key, certificate) {
            Some(path) => {
                Err(Refused::RevokedByList { host: host(), sent: described(key), path: path.to_owned() })
            }
            None => Ok(()),
        }
    }
}

fn refused(refused: Refused) -> HostKeyRefused {
    let hint = refused.hint();
    HostKeyRefused { error: Box::new(refused), hint }
}

fn described(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm().as_str(), key.fingerprint(HashAlg::Sha256))
}

fn warn_of_bad_lines(known: &KnownHosts) {
    for warning in known.bad_lines() {
        tracing::warn!("{warning}");
    }
}

impl HostKeys for KnownHostKeys {
    fn wanted(&self) -> BoxFuture<'_, Result<Wanted, HostKeyRefused>> {
        Box::pin(async { self.prepare().await.map_err(refused) })
    }

    fn check(&self, shown: &PublicKeyOrCertificate) -> BoxFuture<'_, Result<Trust, HostKeyRefused>> {
        let key: PublicKey = shown.public_key();
        let certificate = match shown {
            PublicKeyOrCertificate::Certificate(certificate) => Some(certificate.clone()),
            PublicKeyOrCertificate::PublicKey { .. } => None,
        };
        Box::pin(async move {
            let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.refuse_never(&key, certificate.as_ref()).map_err(refused)?;
            let decided = match accepted {
                Some((accepted, trust)) if accepted.key_data() == key.key_data() => return Ok(trust),
                Some((accepted, _)) => self.decide_again(&key, certificate.as_ref(), &accepted).await,
                None => self.decide(&key, certificate.as_ref()).await,
            };
            let trust = decided.map_err(refused)?;
            *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some((key, trust));
            Ok(trust)
        })
    }

    fn of_jump(&self) -> Option<Arc<dyn HostKeys>> {
        self.jump.clone().map(|jump| jump as Arc<dyn HostKeys>)
    }
}

/// Returns how OpenSSH names a key type to people: `ED25519`, `RSA`, `ECDSA`.
fn short_name(algorithm: &str) -> String {
    match algorithm {
        "ssh-ed25519" => "ED25519".to_owned(),
        "ssh-rsa" => "RSA".to_owned(),
        ecdsa if ecdsa.starts_with("ecdsa-sha2-") => "ECDSA".to_owned(),
        other => crate::printable::one_line(other),
    }
}

#[cfg(test)]
#[path = "host_keys_tests.rs"]
mod tests;
