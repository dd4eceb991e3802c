//! Secrets as types: redacted, wiped, compared in constant time, and with as few ways out as possible.

use std::{fmt, time::SystemTime};

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::{
    names::AccountId,
    random::{self, NoRandomness},
};

/// The secret that a remote SDK sends back to us, without the word `Bearer`.
///
/// No `Clone`, `Display` or `Serialize`, so that the only ways out of this type are [`Self::matches`] and
/// [`Self::expose_for_token_file`].
pub(crate) struct BearerToken(SecretString);

impl BearerToken {
    /// Makes a token of 256 random bits.
    pub(crate) fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
        random::fill(bytes.as_mut_slice())?;
        let text =
            base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes.as_slice());
        Ok(Self(text.into()))
    }

    /// Compares the value of an `Authorization` header with `Bearer <token>`, in constant time.
    pub(crate) fn matches(&self, authorization: &[u8]) -> bool {
        let expected = self.expose_for_token_file();
        // Digests, so that the length of what was presented does not decide how long this takes.
        let presented = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, authorization);
        let expected =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, expected.expose_secret().as_bytes());
        presented.as_ref().ct_eq(expected.as_ref()).into()
    }

    /// Returns the whole value of the `Authorization` header, `Bearer <token>`, as the host's SDKs must send it.
    pub(crate) fn expose_for_token_file(&self) -> SecretString {
        format!("Bearer {}", self.0.expose_secret()).into()
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(<redacted>)")
    }
}

/// Temporary credentials of one role. Shared by `Arc`, never cloned, serialised only by `serve::reply`.
pub(crate) struct RoleCredentials {
    /// Not a secret; joins our audit log with CloudTrail.
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: SecretString,
    pub(crate) session_token: SecretString,
    /// When we obtained them.
    pub(crate) issued_at: SystemTime,
    pub(crate) expires_at: SystemTime,
    pub(crate) account: Option<AccountId>,
    /// `arn:aws:iam::<account>:role/<name>` where it is known.
    pub(crate) role_arn: Option<String>,
}

impl fmt::Debug for RoleCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoleCredentials")
            .field("access_key_id", &self.access_key_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_header_value_matches() {
        let token = BearerToken::generate().unwrap();
        let header = token.expose_for_token_file();
        let header = header.expose_secret();
        assert!(token.matches(header.as_bytes()));
        assert_eq!(header.len(), "Bearer ".len() + 43);
        for wrong in ["", "Bearer ", &header[7..], &header.to_lowercase(), &format!("{header} ")] {
            assert!(!token.matches(wrong.as_bytes()));
        }
        assert!(!BearerToken::generate().unwrap().matches(header.as_bytes()));
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = BearerToken::generate().unwrap();
        assert_eq!(format!("{token:?}"), "BearerToken(<redacted>)");
        let credentials = RoleCredentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: "canary-secret".to_owned().into(),
            session_token: "canary-session".to_owned().into(),
            issued_at: SystemTime::UNIX_EPOCH,
            expires_at: SystemTime::UNIX_EPOCH,
            account: None,
            role_arn: None,
        };
        assert!(!format!("{credentials:?}").contains("canary"));
    }
}
