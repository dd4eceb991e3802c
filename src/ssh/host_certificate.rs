//! Whether a host's certificate is good for a name now: everything that a signature alone does not say.
//!
//! Which authority may speak for which host stands in known_hosts and is asked there; a certificate that fails here is
//! not the end: its key may still be on file as a plain one, as with `ssh`.

use std::time::{SystemTime, UNIX_EPOCH};

use russh::keys::{Algorithm, Certificate, HashAlg, ssh_key::certificate::CertType};

use super::config::pattern;

/// What is wrong with a certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it is the certificate of a user, not of a host")]
    WrongType,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("it has expired")]
    Expired,
    #[error("`{0}` is not among the names that it is for")]
    WrongName(String),
    /// OpenSSH took it for every name until 10.3.
    #[error("it is for no name at all")]
    NoName,
    #[error("it has critical options, of which a host's certificate knows none")]
    CriticalOptions,
    #[error("its authority signed it with {0}, which is not accepted")]
    SignatureAlgorithm(String),
    #[error("its signature is wrong")]
    Signature,
}

/// Checks everything but who the authority is. `name` is the host's, without a port and in lower case.
pub(super) fn check(
    certificate: &Certificate,
    name: &str,
    now: SystemTime,
    signatures: &[Algorithm],
) -> Result<(), Flaw> {
    if certificate.cert_type() != CertType::Host {
        return Err(Flaw::WrongType);
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if now < certificate.valid_after() {
        return Err(Flaw::NotYetValid);
    }
    if now >= certificate.valid_before() {
        return Err(Flaw::Expired);
    }
    match certificate.valid_principals() {
        [] => return Err(Flaw::NoName),
        names if names.iter().any(|pattern| pattern::matches(name, &pattern.to_ascii_lowercase())) => {}
        _ => return Err(Flaw::WrongName(name.to_owned())),
    }
    if !certificate.critical_options().is_empty() {
        return Err(Flaw::CriticalOptions);
    }
    let signed_with = certificate.signature().algorithm();
    if !signatures.contains(&signed_with) {
        return Err(Flaw::SignatureAlgorithm(signature_name(&signed_with)));
    }
    certificate.verify_signature().map_err(|_| Flaw::Signature)
}

/// `ssh-rsa` names a key as well as SHA-1; here it is the hash that matters.
fn signature_name(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::Rsa { hash: None } => "RSA and SHA-1".to_owned(),
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) } => "RSA and SHA-256".to_owned(),
        other => crate::printable::one_line(other.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command, time::Duration};

    use super::*;
    use crate::{clock::Clock, ssh::algorithms::Algorithms};

    fn ssh_keygen(directory: &Path, arguments: &[&str]) {
        let ran = Command::new("ssh-keygen")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("these tests use `ssh-keygen`: install openssh-client");
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn certificate(directory: &Path) -> Certificate {
        let text = fs::read_to_string(directory.join("host-cert.pub")).unwrap();
        Certificate::from_openssh(text.trim()).unwrap()
    }

    #[test]
    fn certificates_of_ssh_keygen_are_judged_as_ssh_judges_them() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        for kind in ["ed25519", "ecdsa", "rsa"] {
            ssh_keygen(place, &["-q", "-t", kind, "-N", "", "-f", kind]);
        }
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-f", "host"]);
        let now = Clock::system().now();
        let name = |name: &str| Flaw::WrongName(name.to_owned());
        let sha1 = || Flaw::SignatureAlgorithm("RSA and SHA-1".to_owned());
        for (ca, how, asked, expected) in [
            ("ed25519", &["-h", "-n", "web.corp"][..], "web.corp", None),
            ("ecdsa", &["-h", "-n", "web.corp"], "web.corp", None),
            ("rsa", &["-h", "-n", "web.corp"], "web.corp", None),
            ("rsa", &["-h", "-n", "web.corp", "-t", "rsa-sha2-256"], "web.corp", None),
            ("rsa", &["-h", "-n", "web.corp", "-t", "ssh-rsa"], "web.corp", Some(sha1())),
            ("ed25519", &["-h", "-n", "a,web.corp,b"], "web.corp", None),
            ("ed25519", &["-h", "-n", "*.corp"], "web.corp", None),
            ("ed25519", &["-h", "-n", "WEB.corp"], "web.corp", None),
            ("ed25519", &["-h", "-n", "web"], "web.corp", Some(name("web.corp"))),
            ("ed25519", &["-h", "-n", "*.corp"], "corp", Some(name("corp"))),
            ("ed25519", &["-h", "-n", "web.corp"], "evil.web.corp", Some(name("evil.web.corp"))),
            ("ed25519", &["-h"], "web.corp", Some(Flaw::NoName)),
            ("ed25519", &["-n", "web.corp"], "web.corp", Some(Flaw::WrongType)),
            ("ed25519", &["-h", "-n", "web.corp", "-V", "-2d:-1d"], "web.corp", Some(Flaw::Expired)),
            ("ed25519", &["-h", "-n", "web.corp", "-V", "+1d:+2d"], "web.corp", Some(Flaw::NotYetValid)),
            (
                "ed25519",
                &["-h", "-n", "web.corp", "-O", "critical:x@example.org=y"],
                "web.corp",
                Some(Flaw::CriticalOptions),
            ),
            ("ed25519", &["-h", "-n", "web.corp", "-O", "extension:x@example.org=y"], "web.corp", None),
        ] {
            ssh_keygen(place, &[&["-q", "-s", ca, "-I", "id"][..], how, &["host.pub"]].concat());
            let found =
                check(&certificate(place), asked, now, &Algorithms::default().certificate_signatures());
            assert_eq!(found.err(), expected, "{ca} {how:?} for {asked}");
        }
    }

    #[test]
    fn the_first_and_the_last_second_are_those_of_the_protocol() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-f", "ca"]);
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-f", "host"]);
        let validity = ["-V", "20300101000000Z:20300102000000Z"];
        ssh_keygen(
            place,
            &[&["-q", "-s", "ca", "-I", "id", "-h", "-n", "h"][..], &validity, &["host.pub"]].concat(),
        );
        let certificate = certificate(place);
        let (from, until) = (certificate.valid_after(), certificate.valid_before());
        assert_eq!(until - from, 24 * 60 * 60);
        for (at, expected) in [
            (from - 1, Err(Flaw::NotYetValid)),
            (from, Ok(())),
            (until - 1, Ok(())),
            (until, Err(Flaw::Expired)),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(at);
            assert_eq!(
                check(&certificate, "h", now, &Algorithms::default().certificate_signatures()),
                expected,
                "{at}"
            );
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-f", "ca"]);
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-f", "host"]);
        ssh_keygen(place, &["-q", "-s", "ca", "-I", "id", "-h", "-n", "h", "host.pub"]);
        let good = certificate(place);
        let bytes = good.to_bytes().unwrap();
        let now = Clock::system().now();
        assert_eq!(check(&good, "h", now, &Algorithms::default().certificate_signatures()), Ok(()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let Ok(changed) = Certificate::from_bytes(&changed) else { continue };
            let same_authority = changed.signature_key() == good.signature_key();
            let accepted = check(&changed, "h", now, &Algorithms::default().certificate_signatures()).is_ok();
            assert!(!(same_authority && accepted), "byte {at}");
        }
    }
}
