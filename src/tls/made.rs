//! A certificate for one tunnel: a CA that signs this one leaf, and whose key is gone when the function returns.
//!
//! The two certificates are a fixed form with four holes (keys, times, serial numbers), so they are written here, in
//! DER, instead of by a library that can write any. Their names are limited to loopback, twice: what was told to
//! trust the CA trusts it for nothing else, and nobody has its key.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    digest,
    encoding::AsDer as _,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Material, own::Error};
use crate::random;

/// What the certificate is for, besides `localhost`.
pub(super) const ADDRESS: &str = "127.0.0.1";

/// `openssl x509 -subject_hash` of the CA, and the number that OpenSSL wants behind it.
pub(super) const HASHED_NAME: &str = "7f0fb33b.0";

/// The host's clock may be behind ours.
const BEFORE: Duration = Duration::from_secs(24 * 3600);

/// Longer than a tunnel lives, and as long as the pickiest clients bear (398 days from its beginning).
const AFTER: Duration = Duration::from_secs(396 * 24 * 3600);

pub(super) fn make(now: SystemTime) -> Result<Material, Error> {
    let new_key = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(|_| Error::NotMade);
    let (leaf, chain, anchor) = {
        let (authority, leaf) = (new_key()?, new_key()?);
        let (from, until) = (time(now.checked_sub(BEFORE))?, time(now.checked_add(AFTER))?);
        let validity = sequence(&[&from, &until]);
        let (issuer, subject) = (name("broker tunnel CA"), name("broker tunnel"));
        let id = key_id(&authority);
        let anchor = certificate(
            &authority,
            &issuer,
            &validity,
            &issuer,
            &authority,
            &[
                extension(BASIC_CONSTRAINTS, true, &sequence(&[TRUE, &tlv(0x02, &[&[0]])])),
                // keyCertSign
                extension(KEY_USAGE, true, &tlv(0x03, &[&[2, 0b0000_0100]])),
                extension(
                    NAME_CONSTRAINTS,
                    true,
                    &sequence(&[&tlv(
                        0xa0,
                        &[
                            &sequence(&[&tlv(0x87, &[&[127, 0, 0, 1, 255, 255, 255, 255]])]),
                            &sequence(&[&tlv(0x82, &[b"localhost"])]),
                        ],
                    )]),
                ),
                extension(SUBJECT_KEY_ID, false, &tlv(0x04, &[&id])),
            ],
        )?;
        let certificate = certificate(
            &authority,
            &issuer,
            &validity,
            &subject,
            &leaf,
            &[
                extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
                // digitalSignature
                extension(KEY_USAGE, true, &tlv(0x03, &[&[7, 0b1000_0000]])),
                extension(EXTENDED_KEY_USAGE, false, &sequence(&[SERVER_AUTH])),
                extension(
                    SUBJECT_ALT_NAME,
                    false,
                    &sequence(&[&tlv(0x87, &[&[127, 0, 0, 1]]), &tlv(0x82, &[b"localhost"])]),
                ),
                extension(SUBJECT_KEY_ID, false, &tlv(0x04, &[&key_id(&leaf)])),
                extension(AUTHORITY_KEY_ID, false, &sequence(&[&tlv(0x80, &[&id])])),
            ],
        )?;
        // The authority's key ends here.
        (leaf, CertificateDer::from(certificate), anchor)
    };
    let key = leaf.to_pkcs8v1().map_err(|_| Error::NotMade)?;
    let key = PrivatePkcs8KeyDer::from(key.as_ref().to_vec());
    Ok(Material {
        chain: vec![chain],
        key: PrivateKeyDer::Pkcs8(key),
        host: ADDRESS.to_owned(),
        anchors: pem(&anchor),
        made: true,
    })
}

/// Returns a certificate as text.
pub(super) fn pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while let Some((line, more)) = rest.split_at_checked(64) {
        text.extend([line, "\n"]);
        rest = more;
    }
    if !rest.is_empty() {
        text.extend([rest, "\n"]);
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

// RFC 5280, 4.1.
fn certificate(
    signer: &EcdsaKeyPair,
    issuer: &[u8],
    validity: &[u8],
    subject: &[u8],
    key: &EcdsaKeyPair,
    extensions: &[Vec<u8>],
) -> Result<Vec<u8>, Error> {
    let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
    let public_key = key.public_key().as_der().map_err(|_| Error::NotMade)?;
    let mut serial = [0; 16];
    random::fill(&mut serial).map_err(|_| Error::NotMade)?;
    // A positive number, of all its bytes.
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    let algorithm = sequence(&[ECDSA_WITH_SHA256]);
    let signed = sequence(&[
        &tlv(0xa0, &[&tlv(0x02, &[&[2]])]),
        &tlv(0x02, &[&serial]),
        &algorithm,
        issuer,
        validity,
        subject,
        public_key.as_ref(),
        &tlv(0xa3, &[&sequence(&extensions)]),
    ]);
    let signature =
        signer.sign(&aws_lc_rs::rand::SystemRandom::new(), &signed).map_err(|_| Error::NotMade)?;
    Ok(sequence(&[&signed, &algorithm, &tlv(0x03, &[&[0], signature.as_ref()])]))
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical = if critical { TRUE } else { &[] };
    sequence(&[id, critical, &tlv(0x04, &[value])])
}

/// One common name.
fn name(text: &str) -> Vec<u8> {
    sequence(&[&tlv(0x31, &[&sequence(&[COMMON_NAME, &tlv(0x0c, &[text.as_bytes()])])])])
}

/// UTCTime until 2049, GeneralizedTime after that.
fn time(time: Option<SystemTime>) -> Result<Vec<u8>, Error> {
    let text = time.and_then(crate::clock::utc).ok_or(Error::NotMade)?;
    let digits: String = text.chars().filter(|c| !matches!(c, '-' | 'T' | ':')).collect();
    Ok(match digits.strip_prefix("20") {
        Some(short) if short < "50" => tlv(0x17, &[short.as_bytes()]),
        _ => tlv(0x18, &[digits.as_bytes()]),
    })
}

fn key_id(key: &EcdsaKeyPair) -> Vec<u8> {
    let id = digest::digest(&digest::SHA256, key.public_key().as_ref());
    id.as_ref().iter().copied().take(20).collect()
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

/// Tag, length and value.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    let digits = length.to_be_bytes();
    let digits: Vec<u8> = digits.into_iter().skip_while(|digit| *digit == 0).collect();
    match (length, u8::try_from(digits.len())) {
        (128.., Ok(count)) => bytes.push(0x80 | count),
        (0, _) => bytes.push(0),
        _ => {}
    }
    bytes.extend(digits);
    bytes.extend(parts.iter().copied().flatten());
    bytes
}

const TRUE: &[u8] = &[0x01, 0x01, 0xff];
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// 1.2.840.10045.4.3.2
const ECDSA_WITH_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const SUBJECT_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1e];
const AUTHORITY_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
const EXTENDED_KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x25];
/// 1.3.6.1.5.5.7.3.1
const SERVER_AUTH: &[u8] = &[0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
