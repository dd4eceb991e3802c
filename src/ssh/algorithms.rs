//! Which algorithms we offer: no SHA-1, no CBC, no compression, and nothing that Terrapin breaks.

use std::borrow::Cow;

use russh::{
    Names, Preferred, cipher, compression,
    kex::{self, EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT, EXTENSION_SUPPORT_AS_CLIENT},
    keys::{Algorithm, EcdsaCurve, HashAlg},
    mac,
};

use crate::printable::one_line;

/// The NIST curves are for bastions in FIPS mode, the groups for appliances. Without the two last names the client
/// would have neither strict key exchange nor `server-sig-algs`.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
    EXTENSION_SUPPORT_AS_CLIENT,
    EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];

/// Returns every host key type that we accept, most preferred first.
pub(crate) fn host_keys() -> Vec<Algorithm> {
    vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ]
}

/// Returns the algorithms that an authority may have signed a host's certificate with (`CASignatureAlgorithms`).
pub(super) fn certificate_signatures() -> Vec<Algorithm> {
    [host_keys(), vec![Algorithm::SkEd25519, Algorithm::SkEcdsaSha2NistP256]].concat()
}

/// Returns what we offer. Host key types that are `known` for this host come first: asking for another type would
/// make a known host look unknown.
pub(super) fn preferred(known: &[Algorithm], certificates: bool) -> Preferred {
    let same_type = |a: &Algorithm, b: &Algorithm| {
        a == b || matches!((a, b), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }))
    };
    let (mut keys, others): (Vec<_>, Vec<_>) =
        host_keys().into_iter().partition(|key| known.iter().any(|known| same_type(known, key)));
    keys.sort_by_key(|key| known.iter().position(|known| same_type(known, key)));
    keys.extend(others);
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Owned(keys),
        host_key_certificates: if certificates { Cow::Owned(host_keys()) } else { Cow::Borrowed(&[]) },
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// Says what is wrong with the combination that was negotiated, if anything is.
///
/// ChaCha20 without strict key exchange lets somebody on the way cut messages out (Terrapin, CVE-2023-48795).
pub(super) fn weakness(names: &Names) -> Option<&'static str> {
    (names.cipher == cipher::CHACHA20_POLY1305 && !names.strict_kex())
        .then_some("ChaCha20 without strict key exchange can be tampered with (CVE-2023-48795)")
}

/// Returns names that the server sent, safe to print and not endless.
pub(super) fn listed(names: &[String]) -> String {
    one_line(&names.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_types_of_host_keys_come_first_and_none_is_lost() {
        let rsa = Algorithm::Rsa { hash: None };
        let p384 = Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 };
        let keys = preferred(&[rsa, p384.clone()], false).key;
        assert_eq!(keys.len(), host_keys().len());
        assert!(keys[..2].iter().all(|key| matches!(key, Algorithm::Rsa { .. })));
        assert_eq!((&keys[2], &keys[3]), (&p384, &Algorithm::Ed25519));
    }

    #[test]
    fn nothing_old_is_offered() {
        let offered = preferred(&[], false);
        assert!(!offered.key.contains(&Algorithm::Rsa { hash: None }), "ssh-rsa is SHA-1");
        let names = offered.kex.iter().map(AsRef::<str>::as_ref).chain(offered.mac.iter().map(AsRef::as_ref));
        assert!(names.into_iter().all(|name| !name.contains("sha1")));
        assert!(offered.cipher.iter().all(|cipher| !cipher.as_ref().contains("cbc")));
        assert_eq!(offered.compression.len(), 1);
        assert!(offered.kex.contains(&EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT));
    }
}
