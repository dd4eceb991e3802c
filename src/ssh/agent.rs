//! The user's ssh agent: which keys it holds, and its signatures.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Buf as _;
use russh::{
    Signer,
    client::{AuthResult, Handle},
    keys::{
        Algorithm, Certificate, HashAlg, PrivateKey, PublicKey,
        agent::{AgentIdentity, AgentSessionBinding, client::AgentClient},
        signature::Signer as _,
        ssh_key::private::KeypairData,
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use super::{
    handler::{Handler, Shared},
    identity::{Candidate, Source},
};

/// Listing keys needs no person; an agent that does not answer at once is stuck, or is a forwarded one whose
/// connection is dead.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that OpenSSH's client takes from an agent, in bytes.
const LARGEST_ANSWER: usize = 256 * 1024;

/// A connection to the agent, and what it holds.
pub(super) struct Agent {
    client: AgentClient<UnixStream>,
    pub(super) keys: Vec<AgentIdentity>,
}

/// Why the agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("could not talk to it")]
    Io(#[from] std::io::Error),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("it did not answer as an agent does")]
    Protocol,
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    #[error(transparent)]
    Agent(#[from] russh::keys::Error),
    #[error("the key cannot sign")]
    Unable,
    #[error("the session is over")]
    Session,
}

impl From<russh::SendError> for SignError {
    fn from(_: russh::SendError) -> Self {
        Self::Session
    }
}

/// Connects to the agent at `socket`, tells it which server its signatures are for, and lists its keys.
pub(super) async fn connect(socket: &Path, binding: Option<&AgentSessionBinding>) -> Result<Agent, Error> {
    let connecting = async {
        let mut stream = UnixStream::connect(socket).await?;
        if let Some(binding) = binding {
            // Old agents do not know it and say no; keys restricted to other hosts are left out by those that do.
            drop(AgentClient::connect(&mut stream).bind_session(binding, false).await);
        }
        let keys = list(&mut stream).await?;
        Ok(Agent { client: AgentClient::connect(stream), keys })
    };
    timeout(LIST_TIMEOUT, connecting).await.map_err(|_| Error::TimedOut)?
}

/// Lists the keys that we can read. russh would show none when one of them is of a kind it does not know.
async fn list<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<Vec<AgentIdentity>, Error> {
    const REQUEST_IDENTITIES: u8 = 11;
    stream.write_all(&[0, 0, 0, 1, REQUEST_IDENTITIES]).await?;
    let length = stream.read_u32().await? as usize;
    if length > LARGEST_ANSWER {
        return Err(Error::Protocol);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    identities(&answer).ok_or(Error::Protocol)
}

fn identities(mut answer: &[u8]) -> Option<Vec<AgentIdentity>> {
    const IDENTITIES_ANSWER: u8 = 12;
    if answer.try_get_u8().ok()? != IDENTITIES_ANSWER {
        return None;
    }
    let mut keys = Vec::new();
    for _ in 0..answer.try_get_u32().ok()? {
        let blob = string(&mut answer)?;
        let comment = String::from_utf8_lossy(string(&mut answer)?).into_owned();
        keys.extend(identity(blob, comment));
    }
    Some(keys)
}

fn string<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = from.try_get_u32().ok()? as usize;
    let (string, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(string)
}

fn identity(blob: &[u8], comment: String) -> Option<AgentIdentity> {
    let kind = string(&mut &*blob)?;
    if kind.ends_with(b"-cert-v01@openssh.com") {
        let certificate = Certificate::from_bytes(blob).ok()?;
        return Some(AgentIdentity::Certificate { certificate, comment });
    }
    let key = PublicKey::from_bytes(blob).ok()?;
    // The agent of a smart card may hold keys that no server of today takes.
    (!matches!(key.algorithm(), Algorithm::Dsa)).then_some(AgentIdentity::PublicKey { key, comment })
}

impl Agent {
    /// Logs in with one of the agent's keys.
    pub(super) async fn authenticate(
        &mut self,
        handle: &mut Handle<Handler>,
        shared: &Arc<Shared>,
        user: String,
        key: &Candidate,
        hash: Option<HashAlg>,
    ) -> Result<AuthResult, SignError> {
        let mut signer = Touch { client: &mut self.client, shared, key };
        match (&key.certificate, &key.public) {
            (Some(certificate), _) => {
                let certificate = certificate.clone();
                handle.authenticate_certificate_with(user, certificate, hash, &mut signer).await
            }
            (None, Some(public)) => {
                handle.authenticate_publickey_with(user, public.clone(), hash, &mut signer).await
            }
            (None, None) => Err(SignError::Session),
        }
    }
}

/// The agent as a signer that says when it waits for a finger.
struct Touch<'a> {
    client: &'a mut AgentClient<UnixStream>,
    shared: &'a Shared,
    key: &'a Candidate,
}

impl Signer for Touch<'_> {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        key: &AgentIdentity,
        hash: Option<HashAlg>,
        to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        if matches!(key.public_key().algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256) {
            self.shared.human.tell(&format!("Confirm user presence for key {}", self.key.name()));
        }
        let plain = match (&self.key.source, &self.key.public) {
            (Source::Agent { plain: true }, Some(public)) => {
                Some(AgentIdentity::PublicKey { key: public.clone(), comment: String::new() })
            }
            _ => None,
        };
        Ok(self.client.sign_request(plain.as_ref().unwrap_or(key), hash, to_sign).await?)
    }
}

/// A private key of ours as a signer: russh's own way names the wrong algorithm for the certificates of RSA keys.
pub(super) struct Local(pub(super) Arc<PrivateKey>);

impl Signer for Local {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        hash: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        let signature = match self.0.key_data() {
            KeypairData::Rsa(pair) => (pair, hash).try_sign(&to_sign),
            _ => self.0.try_sign(&to_sign),
        };
        let signature = signature.ok().and_then(|signature| Vec::try_from(signature).ok());
        let signature: Vec<u8> = signature.ok_or(SignError::Unable)?;
        let length = u32::try_from(signature.len()).map_err(|_| SignError::Unable)?;
        to_sign.extend(length.to_be_bytes());
        to_sign.extend(signature);
        Ok(to_sign)
    }
}

/// A signer that never signs: it learns whether the server would take a key.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pub(super) accepted: bool,
}

impl Signer for Probe {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        _: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        self.accepted = true;
        Err(SignError::Session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::peer::key;

    fn put(into: &mut Vec<u8>, string: &[u8]) {
        into.extend(u32::try_from(string.len()).unwrap().to_be_bytes());
        into.extend(string);
    }

    #[test]
    fn a_key_of_an_unknown_kind_does_not_hide_the_others() {
        let known = key(1).public_key().clone();
        let mut unknown = Vec::new();
        put(&mut unknown, b"ssh-future@example.org");
        put(&mut unknown, b"???");
        let mut answer = vec![12, 0, 0, 0, 2];
        put(&mut answer, &unknown);
        put(&mut answer, b"new");
        put(&mut answer, &known.to_bytes().unwrap());
        put(&mut answer, b"old");
        let keys = identities(&answer).unwrap();
        let found: Vec<_> = keys.iter().filter(|key| key.comment() == "old").collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].public_key().key_data(), known.key_data());
    }

    #[test]
    fn a_short_or_wrong_answer_is_an_error_and_no_panic() {
        let mut answer = vec![12, 0, 0, 0, 1];
        put(&mut answer, &key(1).public_key().to_bytes().unwrap());
        for length in 0..answer.len() {
            assert!(identities(&answer[..length]).is_none());
        }
        assert!(identities(&[5]).is_none());
        assert!(identities(&[12, 255, 255, 255, 255]).is_none());
    }
}
