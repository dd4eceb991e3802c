//! The user's certificate and key, checked before any network: what would fail on the host fails here, in words.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{Material, made};
use crate::{clock, printable::one_line, private_fs};

/// Enough to renew it without hurry.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not read the certificate or key for --tls")]
    File(#[source] private_fs::Error),
    #[error("there is no file `{}`", path.display())]
    Missing { path: PathBuf },
    #[error("`{}` holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("`{}` holds no private key in PEM form", path.display())]
    NoKey { path: PathBuf },
    #[error("the key in `{}` is encrypted", path.display())]
    EncryptedKey { path: PathBuf },
    #[error("the key in `{}` does not belong to the first certificate in `{}`", key.display(), certificate.display())]
    OtherKey { key: PathBuf, certificate: PathBuf },
    #[error("the certificate in `{}` expired on {when}", path.display())]
    Expired { path: PathBuf, when: String },
    #[error("the certificate in `{}` is not valid before {when}", path.display())]
    NotYet { path: PathBuf, when: String },
    #[error("the certificate in `{}` is for {}, none of which can be in our URL", path.display(), if names.is_empty() { "no name" } else { names })]
    WrongName { path: PathBuf, names: String },
    #[error("the certificates in `{}` are not usable for a server: {why}", path.display())]
    BadChain { path: PathBuf, why: String },
    #[error("the certificate is not usable")]
    NotUsable(#[source] rustls::Error),
    #[error("could not make a certificate for the tunnel")]
    NotMade,
}

impl Error {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File(error) => return error.hint(),
            Self::EncryptedKey { path } => {
                format!("write it in the clear to a file that only you can read: `(umask 077; openssl pkey -in '{}' -out key.pem)`", path.display())
            }
            Self::WrongName { .. } => "it needs a subjectAltName of IP:127.0.0.1, DNS:localhost, or a DNS name that leads to 127.0.0.1 \
                 on the host (wildcards do not say which)".to_owned(),
            Self::BadChain { .. } => "the file begins with the server's own certificate, for which a serverAuth usage is allowed, and \
                 each further one has signed the one before it".to_owned(),
            Self::Missing { .. } | Self::NoCertificate { .. } | Self::NoKey { .. } | Self::OtherKey { .. } => {
                "pass `--tls CERT,KEY` with PEM files (certificate chain, then key), or `--tls auto` for a certificate of the \
                 tunnel's own".to_owned()
            }
            Self::Expired { .. } | Self::NotUsable(_) => "renew it, or pass `--tls auto`".to_owned(),
            Self::NotYet { .. } => "is the clock of this machine right?".to_owned(),
            Self::NotMade => return None,
        })
    }
}

/// Reads and checks both; also returns what the person should know.
pub(super) fn read(
    certificate: &Path,
    key: &Path,
    now: SystemTime,
) -> Result<(Material, Vec<String>), Error> {
    let missing = |path: &Path| Error::Missing { path: path.to_owned() };
    let pem =
        private_fs::read_config(certificate).map_err(Error::File)?.ok_or_else(|| missing(certificate))?;
    let key_pem = private_fs::read_key(key).map_err(Error::File)?.ok_or_else(|| missing(key))?;
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap_or_default();
    let Some(leaf) = chain.first() else { return Err(Error::NoCertificate { path: certificate.to_owned() }) };
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
        let encrypted = key_pem.windows(9).any(|bytes| bytes == b"ENCRYPTED");
        let path = key.to_owned();
        if encrypted { Error::EncryptedKey { path } } else { Error::NoKey { path } }
    })?;
    let mut warnings = Vec::new();
    let host = check(certificate, leaf, &chain, now, &mut warnings)?;
    match CertifiedKey::from_der(chain.clone(), private.clone_key(), &aws_lc_rs::default_provider()) {
        Ok(_) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(Error::OtherKey { key: key.to_owned(), certificate: certificate.to_owned() });
        }
        Err(error) => return Err(Error::NotUsable(error)),
    }
    let anchors = chain.iter().map(|certificate| made::pem(certificate)).collect();
    Ok((Material { chain, key: private, host, anchors, made: false }, warnings))
}

/// Returns the name that the certificate gives our URL.
fn check(
    path: &Path,
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
    warnings: &mut Vec<String>,
) -> Result<String, Error> {
    let bad = |why: String| Error::BadChain { path: path.to_owned(), why };
    let parsed = EndEntityCert::try_from(leaf).map_err(|error| bad(error.to_string()))?;
    let at =
        |time: SystemTime| UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    let day = |time: UnixTime| {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
        time.and_then(clock::utc).unwrap_or_else(|| "an odd date".to_owned())
    };
    // A chain is led to its last certificate. Where that is the leaf itself, there is nothing to lead to, but what is
    // wrong with the leaf alone is found before that is.
    let last = chain.last().filter(|_| chain.len() > 1).map(anchor_from_trusted_cert);
    let anchors: Vec<_> = last.transpose().map_err(|error| bad(error.to_string()))?.into_iter().collect();
    let between = chain.get(1..).unwrap_or_default();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let verify = |time| {
        let usage = KeyUsage::server_auth();
        parsed.verify_for_usage(algorithms, &anchors, between, at(time), usage, None, None).map(drop)
    };
    let told = |error| match error {
        webpki::Error::CertExpired { not_after, .. } => {
            Err(Error::Expired { path: path.to_owned(), when: day(not_after) })
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            Err(Error::NotYet { path: path.to_owned(), when: day(not_before) })
        }
        webpki::Error::UnknownIssuer if anchors.is_empty() => Ok(()),
        webpki::Error::UnknownIssuer => Err(bad("they do not lead from one to the next".to_owned())),
        // What `openssl req -x509` makes. Most clients take it.
        webpki::Error::CaUsedAsEndEntity => Ok(()),
        error => Err(bad(error.to_string())),
    };
    let verified = verify(now);
    if matches!(verified, Err(webpki::Error::CaUsedAsEndEntity)) {
        warnings.push(format!(
            "the certificate in `{}` is a CA certificate, with which the SDK for Rust and others that use rustls do not \
             speak (it needs basicConstraints=CA:FALSE)",
            path.display()
        ));
    }
    verified.or_else(told)?;
    if let Some(soon) = now.checked_add(SOON)
        && let Err(Error::Expired { when, .. }) = verify(soon).or_else(told)
    {
        warnings.push(format!(
            "the certificate in `{}` expires on {when}, and the tunnel's port with it",
            path.display()
        ));
    }
    for fixed in [made::ADDRESS, "localhost"] {
        let name = ServerName::try_from(fixed).map_err(|_| Error::NotMade)?;
        if parsed.verify_is_valid_for_subject_name(&name).is_ok() {
            return Ok(fixed.to_owned());
        }
    }
    let names: Vec<&str> = parsed.valid_dns_names().collect();
    let plain = |name: &&&str| {
        name.contains('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
            && ServerName::try_from(**name).is_ok()
    };
    match names.iter().find(plain) {
        Some(name) => Ok(name.to_ascii_lowercase()),
        None => Err(Error::WrongName { path: path.to_owned(), names: one_line(&names.join(", ")) }),
    }
}
