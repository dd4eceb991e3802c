//! Which algorithms there are, which of them we offer, and which only who asks for danger gets.
//!
//! By default no SHA-1, no CBC, no compression, nothing that Terrapin breaks; the hybrid that a quantum computer does
//! not break comes first, and NIST's curves come last, for hosts in FIPS mode. ssh_config may choose among what is
//! here (`ssh::config` reads its lists); broken ones only with `--dangerous-legacy-algorithms`.

use std::borrow::Cow;

use russh::{
    Names, Preferred, cipher, compression,
    kex::{self, EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT, EXTENSION_SUPPORT_AS_CLIENT},
    keys::{Algorithm, HashAlg, PublicKey},
    mac,
};

use crate::printable::one_line;

/// How an algorithm is offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Always.
    Default,
    /// When ssh_config names it.
    Named,
    /// When ssh_config names it and the command line says that danger is meant.
    Broken,
}

use Standing::{Broken, Default as Usual, Named};

/// Algorithms of one kind by their names in the protocol, most preferred first.
pub(super) type Table = &'static [(&'static str, Standing)];

pub(super) const KEX: Table = &[
    ("mlkem768x25519-sha256", Usual),
    ("curve25519-sha256", Usual),
    ("curve25519-sha256@libssh.org", Usual),
    ("diffie-hellman-group-exchange-sha256", Usual),
    ("diffie-hellman-group16-sha512", Usual),
    ("diffie-hellman-group18-sha512", Usual),
    ("diffie-hellman-group17-sha512", Named),
    ("diffie-hellman-group15-sha512", Named),
    ("diffie-hellman-group14-sha256", Usual),
    ("ecdh-sha2-nistp256", Usual),
    ("ecdh-sha2-nistp384", Usual),
    ("ecdh-sha2-nistp521", Usual),
    ("diffie-hellman-group-exchange-sha1", Broken),
    ("diffie-hellman-group14-sha1", Broken),
    ("diffie-hellman-group1-sha1", Broken),
];

pub(super) const CIPHERS: Table = &[
    ("aes256-gcm@openssh.com", Usual),
    ("aes128-gcm@openssh.com", Usual),
    ("chacha20-poly1305@openssh.com", Usual),
    ("aes256-ctr", Usual),
    ("aes192-ctr", Usual),
    ("aes128-ctr", Usual),
    ("aes256-cbc", Broken),
    ("aes192-cbc", Broken),
    ("aes128-cbc", Broken),
];

pub(super) const MACS: Table = &[
    ("hmac-sha2-256-etm@openssh.com", Usual),
    ("hmac-sha2-512-etm@openssh.com", Usual),
    ("hmac-sha2-256", Usual),
    ("hmac-sha2-512", Usual),
    ("hmac-sha1-etm@openssh.com", Broken),
    ("hmac-sha1", Broken),
];

pub(super) const HOST_KEYS: Table = &[
    ("ssh-ed25519-cert-v01@openssh.com", Usual),
    ("rsa-sha2-512-cert-v01@openssh.com", Usual),
    ("rsa-sha2-256-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp256-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp384-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp521-cert-v01@openssh.com", Usual),
    ("ssh-ed25519", Usual),
    ("rsa-sha2-512", Usual),
    ("rsa-sha2-256", Usual),
    ("ecdsa-sha2-nistp256", Usual),
    ("ecdsa-sha2-nistp384", Usual),
    ("ecdsa-sha2-nistp521", Usual),
    ("ssh-rsa", Broken),
];

pub(super) const PUBLIC_KEYS: Table = &[
    ("ssh-ed25519-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp256-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp384-cert-v01@openssh.com", Usual),
    ("ecdsa-sha2-nistp521-cert-v01@openssh.com", Usual),
    ("sk-ssh-ed25519-cert-v01@openssh.com", Usual),
    ("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com", Usual),
    ("rsa-sha2-512-cert-v01@openssh.com", Usual),
    ("rsa-sha2-256-cert-v01@openssh.com", Usual),
    ("ssh-ed25519", Usual),
    ("ecdsa-sha2-nistp256", Usual),
    ("ecdsa-sha2-nistp384", Usual),
    ("ecdsa-sha2-nistp521", Usual),
    ("sk-ssh-ed25519@openssh.com", Usual),
    ("sk-ecdsa-sha2-nistp256@openssh.com", Usual),
    ("rsa-sha2-512", Usual),
    ("rsa-sha2-256", Usual),
    ("ssh-rsa", Broken),
];

pub(super) const CERTIFICATE_SIGNATURES: Table = &[
    ("ssh-ed25519", Usual),
    ("ecdsa-sha2-nistp256", Usual),
    ("ecdsa-sha2-nistp384", Usual),
    ("ecdsa-sha2-nistp521", Usual),
    ("sk-ssh-ed25519@openssh.com", Usual),
    ("sk-ecdsa-sha2-nistp256@openssh.com", Usual),
    ("rsa-sha2-512", Usual),
    ("rsa-sha2-256", Usual),
    ("ssh-rsa", Broken),
];

/// What is offered to one host, by the names of the protocol, most preferred first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Algorithms {
    pub(super) kex: Vec<&'static str>,
    pub(super) ciphers: Vec<&'static str>,
    pub(super) macs: Vec<&'static str>,
    pub(super) host_keys: Vec<&'static str>,
    /// Whether types of host keys that are known for the host go first, whatever `host_keys` says.
    pub(super) known_first: bool,
    pub(super) public_keys: Vec<&'static str>,
    pub(super) certificate_signatures: Vec<&'static str>,
}

impl Default for Algorithms {
    fn default() -> Self {
        Self {
            kex: usual(KEX),
            ciphers: usual(CIPHERS),
            macs: usual(MACS),
            host_keys: usual(HOST_KEYS),
            known_first: true,
            public_keys: usual(PUBLIC_KEYS),
            certificate_signatures: usual(CERTIFICATE_SIGNATURES),
        }
    }
}

/// Returns what is offered when nobody chooses.
pub(super) fn usual(table: Table) -> Vec<&'static str> {
    table.iter().filter(|(_, standing)| *standing == Usual).map(|(name, _)| *name).collect()
}

/// Names of certificates end so; what stands before it is the name of the key in them.
const CERTIFICATE: &str = "-cert-v01@openssh.com";

/// Of which types a host is asked for a certificate.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Certificates {
    /// Nothing on file could make anything of one.
    #[default]
    None,
    /// Those of its known keys, or of any where none is known: one that is revoked must not go unseen.
    OfKnownTypes,
    /// An authority could vouch for any.
    All,
}

impl Algorithms {
    /// Returns what we offer. Host key types that are `known` for this host come first: asking for another type would
    /// make a known host look unknown.
    pub(super) fn preferred(&self, known: &[Algorithm], certificates: Certificates) -> Preferred {
        let same_type = |a: &Algorithm, b: &Algorithm| {
            a == b || matches!((a, b), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }))
        };
        let parsed = |names: &[&str]| -> Vec<Algorithm> {
            names.iter().filter_map(|name| Algorithm::new(name).ok()).collect()
        };
        let (certified, plain): (Vec<&str>, Vec<&str>) =
            self.host_keys.iter().partition(|name| name.ends_with(CERTIFICATE));
        let mut keys = parsed(&plain);
        if self.known_first {
            // Stable: where the type is equally known, the order stays.
            let place = |key: &Algorithm| known.iter().position(|known| same_type(known, key));
            keys.sort_by_key(|key| place(key).unwrap_or(usize::MAX));
        }
        let certified: Vec<&str> =
            certified.iter().filter_map(|name| name.strip_suffix(CERTIFICATE)).collect();
        let mut certified = parsed(&certified);
        match certificates {
            Certificates::None => certified.clear(),
            Certificates::OfKnownTypes if !known.is_empty() => {
                certified.retain(|type_| known.iter().any(|known| same_type(known, type_)));
            }
            Certificates::OfKnownTypes | Certificates::All => {}
        }
        // Without the two last names the client would have neither strict key exchange nor `server-sig-algs`.
        let kex = self.kex.iter().filter_map(|name| kex::Name::try_from(*name).ok());
        let kex = kex.chain([EXTENSION_SUPPORT_AS_CLIENT, EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT]);
        Preferred {
            kex: kex.collect::<Vec<_>>().into(),
            key: keys.into(),
            host_key_certificates: certified.into(),
            cipher: self
                .ciphers
                .iter()
                .filter_map(|name| cipher::Name::try_from(*name).ok())
                .collect::<Vec<_>>()
                .into(),
            mac: self
                .macs
                .iter()
                .filter_map(|name| mac::Name::try_from(*name).ok())
                .collect::<Vec<_>>()
                .into(),
            compression: Cow::Borrowed(&[compression::NONE]),
        }
    }

    /// Returns the algorithms that an authority may have signed a host's certificate with.
    pub(super) fn certificate_signatures(&self) -> Vec<Algorithm> {
        self.certificate_signatures.iter().filter_map(|name| Algorithm::new(name).ok()).collect()
    }

    /// Whether we may log in with a key, or its certificate, of this type.
    pub(super) fn takes_key(&self, algorithm: &Algorithm, certificate: bool) -> bool {
        let takes = |name: &str| {
            self.public_keys.iter().any(|taken| {
                if certificate { taken.strip_suffix(CERTIFICATE) == Some(name) } else { *taken == name }
            })
        };
        match algorithm {
            Algorithm::Rsa { .. } => ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"].into_iter().any(takes),
            Algorithm::SkEd25519 => takes(if certificate { "sk-ssh-ed25519" } else { algorithm.as_str() }),
            Algorithm::SkEcdsaSha2NistP256 => {
                takes(if certificate { "sk-ecdsa-sha2-nistp256" } else { algorithm.as_str() })
            }
            other => takes(other.as_str()),
        }
    }

    /// Returns the hash for RSA signatures, given what the server takes (`None`: it did not say); `Err` when there is
    /// none that both take. SHA-1 is `Ok(None)`.
    pub(super) fn rsa_hash(&self, server: Option<Option<HashAlg>>) -> Result<Option<HashAlg>, ()> {
        let takes = |name: &str| self.public_keys.contains(&name);
        let best = match server {
            // Every server since 2016 takes SHA-512; who says nothing is either that old or not.
            None if takes("rsa-sha2-512") => Some(HashAlg::Sha512),
            None if takes("rsa-sha2-256") => Some(HashAlg::Sha256),
            None => None,
            Some(Some(HashAlg::Sha512)) if !takes("rsa-sha2-512") => Some(HashAlg::Sha256),
            Some(best) => best,
        };
        let name = match best {
            Some(HashAlg::Sha512) => "rsa-sha2-512",
            Some(_) => "rsa-sha2-256",
            None => "ssh-rsa",
        };
        if takes(name) { Ok(best) } else { Err(()) }
    }
}

/// Says what is wrong with the combination that was negotiated, if anything is.
///
/// ChaCha20, and CBC with encrypt-then-MAC, let somebody on the way cut messages out without strict key exchange
/// (Terrapin, CVE-2023-48795).
pub(super) fn weakness(names: &Names) -> Option<&'static str> {
    if names.strict_kex() {
        return None;
    }
    let etm = |mac: &mac::Name| mac.as_ref().ends_with("-etm@openssh.com");
    let cbc = names.cipher.as_ref().ends_with("-cbc");
    if names.cipher == cipher::CHACHA20_POLY1305 {
        Some("ChaCha20 without strict key exchange can be tampered with (CVE-2023-48795)")
    } else if cbc && (etm(&names.client_mac) || etm(&names.server_mac)) {
        Some("CBC and encrypt-then-MAC without strict key exchange can be tampered with (CVE-2023-48795)")
    } else {
        None
    }
}

/// Returns how many bits a key of RSA has; `None` for other keys.
pub(super) fn rsa_bits(key: &PublicKey) -> Option<u32> {
    let modulus = key.key_data().rsa()?.n().as_positive_bytes()?;
    let unused = modulus.first().map_or(0, |first| first.leading_zeros());
    u32::try_from(modulus.len()).ok()?.checked_mul(8)?.checked_sub(unused)
}

/// Returns names that the server sent, safe to print and not endless.
pub(super) fn listed(names: &[String]) -> String {
    one_line(&names.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// Returns the options that would let us speak with a server that has only these, if we have any of them.
pub(super) fn dangerous_way(theirs: &[String]) -> Option<String> {
    let tables =
        [("KexAlgorithms", KEX), ("Ciphers", CIPHERS), ("MACs", MACS), ("HostKeyAlgorithms", HOST_KEYS)];
    tables.into_iter().find_map(|(keyword, table)| {
        let mut names = table.iter().filter(|(_, standing)| *standing == Broken);
        let (name, _) = names.find(|(name, _)| theirs.iter().any(|theirs| theirs == name))?;
        Some(format!("-o {keyword}=+{name} --dangerous-legacy-algorithms"))
    })
}

#[cfg(test)]
mod tests {
    use russh::keys::EcdsaCurve;

    use super::*;

    #[test]
    fn every_name_is_one_that_russh_has() {
        for (table, known) in [
            (KEX, (|name| kex::Name::try_from(name).is_ok()) as fn(&str) -> bool),
            (CIPHERS, |name| cipher::Name::try_from(name).is_ok()),
            (MACS, |name| mac::Name::try_from(name).is_ok()),
            (HOST_KEYS, |name| {
                Algorithm::new(name.strip_suffix(CERTIFICATE).unwrap_or(name))
                    .is_ok_and(|a| !matches!(a, Algorithm::Other(_)))
            }),
            (CERTIFICATE_SIGNATURES, |name| {
                Algorithm::new(name).is_ok_and(|a| !matches!(a, Algorithm::Other(_)))
            }),
        ] {
            for (name, _) in table {
                assert!(known(name), "{name}");
            }
        }
    }

    #[test]
    fn known_types_of_host_keys_come_first_and_none_is_lost() {
        let rsa = Algorithm::Rsa { hash: None };
        let p384 = Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 };
        let known = [rsa, p384.clone()];
        let all = Algorithms::default();
        let keys = all.preferred(&known, Certificates::None).key;
        assert_eq!(keys.len(), all.preferred(&[], Certificates::None).key.len());
        assert!(keys[..2].iter().all(|key| matches!(key, Algorithm::Rsa { .. })));
        assert_eq!((&keys[2], &keys[3]), (&p384, &Algorithm::Ed25519));
        // Who wrote an order down gets it.
        let chosen = Algorithms { known_first: false, ..Algorithms::default() };
        assert_eq!(chosen.preferred(&known, Certificates::None).key[0], Algorithm::Ed25519);
    }

    #[test]
    fn nothing_old_is_offered_and_certificates_only_where_somebody_can_vouch() {
        let offered = Algorithms::default().preferred(&[], Certificates::None);
        assert!(!offered.key.contains(&Algorithm::Rsa { hash: None }), "ssh-rsa is SHA-1");
        let names = offered.kex.iter().map(AsRef::<str>::as_ref).chain(offered.mac.iter().map(AsRef::as_ref));
        assert!(names.into_iter().all(|name| !name.contains("sha1")));
        assert!(offered.cipher.iter().all(|cipher| !cipher.as_ref().contains("cbc")));
        assert_eq!(offered.compression.len(), 1);
        assert!(offered.kex.contains(&EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT));
        assert_eq!(offered.kex[0], kex::MLKEM768X25519_SHA256);
        assert!(offered.host_key_certificates.is_empty());
        let certified = |known: &[Algorithm], certificates| {
            Algorithms::default().preferred(known, certificates).host_key_certificates.to_vec()
        };
        assert_eq!(certified(&[], Certificates::All).len(), 6);
        assert_eq!(certified(&[Algorithm::Ed25519], Certificates::All).len(), 6);
        assert_eq!(certified(&[], Certificates::OfKnownTypes).len(), 6);
        assert_eq!(certified(&[Algorithm::Ed25519], Certificates::OfKnownTypes), [Algorithm::Ed25519]);
    }

    #[test]
    fn nists_curves_come_last() {
        for table in [KEX, HOST_KEYS] {
            let plain: Vec<_> =
                usual(table).into_iter().filter(|name| !name.ends_with(CERTIFICATE)).collect();
            assert!(
                plain.iter().skip_while(|name| !name.contains("nistp")).all(|name| name.contains("nistp"))
            );
        }
    }

    #[test]
    fn rsa_signs_with_what_both_sides_take_and_never_with_sha_1_by_default() {
        let (sha512, sha256) = (Some(HashAlg::Sha512), Some(HashAlg::Sha256));
        let with =
            |names: &[&'static str]| Algorithms { public_keys: names.to_vec(), ..Algorithms::default() };
        for (ours, server, expected) in [
            (Algorithms::default(), None, Ok(sha512)),
            (Algorithms::default(), Some(sha512), Ok(sha512)),
            (Algorithms::default(), Some(sha256), Ok(sha256)),
            (Algorithms::default(), Some(None), Err(())),
            (with(&["rsa-sha2-256"]), None, Ok(sha256)),
            (with(&["rsa-sha2-256"]), Some(sha512), Ok(sha256)),
            (with(&["rsa-sha2-512"]), Some(sha256), Err(())),
            (with(&["ssh-ed25519"]), None, Err(())),
            (with(&["rsa-sha2-512", "ssh-rsa"]), Some(None), Ok(None)),
        ] {
            assert_eq!(ours.rsa_hash(server), expected, "{:?} {server:?}", ours.public_keys);
        }
    }

    #[test]
    fn keys_are_taken_by_their_names_with_and_without_certificates() {
        let with =
            |names: &[&'static str]| Algorithms { public_keys: names.to_vec(), ..Algorithms::default() };
        let rsa = Algorithm::Rsa { hash: None };
        for (algorithm, certificate) in [
            (Algorithm::Ed25519, false),
            (Algorithm::Ed25519, true),
            (Algorithm::SkEd25519, false),
            (Algorithm::SkEd25519, true),
            (Algorithm::SkEcdsaSha2NistP256, true),
            (Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 }, true),
            (rsa.clone(), false),
            (rsa.clone(), true),
        ] {
            assert!(Algorithms::default().takes_key(&algorithm, certificate), "{algorithm:?} {certificate}");
            assert!(!with(&["none"]).takes_key(&algorithm, certificate));
        }
        assert!(!with(&["ssh-ed25519"]).takes_key(&Algorithm::Ed25519, true));
        assert!(with(&["rsa-sha2-256"]).takes_key(&rsa, false));
    }

    #[test]
    fn a_server_with_nothing_but_broken_algorithms_can_be_reached_by_who_insists() {
        let theirs = ["what", "diffie-hellman-group1-sha1"].map(str::to_owned);
        let way = dangerous_way(&theirs).unwrap();
        assert_eq!(way, "-o KexAlgorithms=+diffie-hellman-group1-sha1 --dangerous-legacy-algorithms");
        assert_eq!(dangerous_way(&["what".to_owned()]), None);
    }
}
