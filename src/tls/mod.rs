//! TLS around a stream of bytes (`--tls`): whose certificate it is, and what a client has to trust.
//!
//! Made before any host sees us, from the user's files ([`own`]) or for this tunnel alone ([`made`]), and the same for
//! every link of a tunnel. [`Stream`] does the handshake when it is first read, so that whoever counts callers and
//! deadlines sees a TLS client as early as a plain one. The private key never leaves this process.

mod made;
mod own;
mod stream;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::NoServerSessionStorage,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

pub(crate) use own::Error;
pub(crate) use stream::Stream;

/// What was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// A certificate for this tunnel alone.
    Auto,
    /// Files of the user: a chain, leaf first, and its key.
    Own { certificate: PathBuf, key: PathBuf },
}

/// Who we are to TLS clients.
pub(crate) struct Identity {
    server: Arc<ServerConfig>,
    leaf: CertificateDer<'static>,
    host: String,
    anchors: String,
    made: bool,
    refused: watch::Sender<Refused>,
}

/// What made clients go away in the handshake, as far as a person can do something about it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Refused {
    /// One does not trust our certificate.
    pub(crate) distrust: bool,
    /// One did not speak TLS.
    pub(crate) plain: bool,
}

impl Identity {
    /// Makes or reads the certificate; also returns what the person should know about it.
    pub(crate) fn new(wish: &Wish, now: SystemTime) -> Result<(Self, Vec<String>), Error> {
        let (material, warnings) = match wish {
            Wish::Auto => (made::make(now)?, Vec::new()),
            Wish::Own { certificate, key } => own::read(certificate, key, now)?,
        };
        let Material { chain, key, host, anchors, made } = material;
        let Some(leaf) = chain.first().cloned() else {
            return Err(Error::NotUsable(rustls::Error::NoCertificatesPresented));
        };
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|server| server.with_no_client_auth().with_single_cert(chain, key))
            .map_err(Error::NotUsable)?;
        // One request for a connection, so nothing is resumed, and no memory kept for it.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let refused = watch::Sender::new(Refused::default());
        Ok((Self { server: Arc::new(server), leaf, host, anchors, made, refused }, warnings))
    }

    /// Returns the name in our URL: what the certificate is for.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns [`Self::host`] if clients have to look it up.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(self.host()).filter(|host| !matches!(*host, made::ADDRESS | "localhost"))
    }

    /// Returns what to trust to reach nobody but us, as PEM.
    pub(crate) fn anchors(&self) -> &str {
        &self.anchors
    }

    /// Returns the name under which OpenSSL looks for our own CA, if there is one.
    pub(crate) fn hashed_name(&self) -> Option<&'static str> {
        self.made.then_some(made::HASHED_NAME)
    }

    fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Stream<S> {
        Stream::accept(Arc::clone(&self.server), self.refused.clone(), stream)
    }

    /// Connects to ourselves: succeeds only with who has our key.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin + use<S>> {
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Exactly(self.leaf.clone(), provider())))
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).map_err(std::io::Error::other)?;
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await
    }

    /// Hears of clients that went away in the handshake.
    pub(crate) fn refused(&self) -> watch::Receiver<Refused> {
        self.refused.subscribe()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("host", &self.host).field("made", &self.made).finish_non_exhaustive()
    }
}

/// What an [`Identity`] is made of.
struct Material {
    /// Leaf first.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    host: String,
    anchors: String,
    made: bool,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Trusts one certificate and no other, whoever signed it: ours.
#[derive(Debug)]
struct Exactly(CertificateDer<'static>, Arc<CryptoProvider>);

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}
