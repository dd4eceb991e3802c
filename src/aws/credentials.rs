//! Credentials on their way through a chain of sources: temporary or not, with or without a known end.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};

use super::{profile::Keys, time};
use crate::{creds::secret::RoleCredentials, names::AccountId};

/// How long temporary credentials are taken to live whose end nobody tells: they were checked at AWS just now, and are
/// asked for and checked again after two thirds of it.
pub(super) const UNTOLD_LIFE: Duration = Duration::from_secs(15 * 60);

/// What a source gave.
pub(crate) struct Credentials {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: SecretString,
    /// `None`: long-lived keys.
    pub(super) session_token: Option<SecretString>,
    pub(super) issued_at: SystemTime,
    pub(super) expires_at: Option<SystemTime>,
    pub(super) account: Option<AccountId>,
    pub(super) role_arn: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Returns keys as they stand in a file.
    pub(super) fn of_keys(keys: &Keys, now: SystemTime) -> Self {
        let copy = |secret: &SecretString| SecretString::from(secret.expose_secret().to_owned());
        Self {
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: copy(&keys.secret_access_key),
            session_token: keys.session_token.as_ref().map(|token| copy(token)),
            issued_at: now,
            expires_at: keys.expires_at,
            account: keys.account.clone(),
            role_arn: None,
        }
    }

    /// Returns credentials of the portal.
    pub(super) fn of_role(role: RoleCredentials) -> Self {
        Self {
            access_key_id: role.access_key_id,
            secret_access_key: role.secret_access_key,
            session_token: Some(role.session_token),
            issued_at: role.issued_at,
            expires_at: Some(role.expires_at),
            account: role.account,
            role_arn: role.role_arn,
        }
    }

    /// Reads the members of a JSON object as a program or an endpoint writes them; `token` is what it calls the
    /// session token.
    pub(super) fn from_json(
        object: &mut Map<String, Value>,
        token: &str,
        now: SystemTime,
    ) -> Result<Self, String> {
        let mut text = |name: &str| match object.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{name}` is not a text")),
        };
        let sound = |name: &str, value: Option<String>| match value {
            Some(value) if value.bytes().all(|b| b.is_ascii_graphic()) => Ok(value),
            Some(_) => Err(format!("`{name}` has characters that no key has")),
            None => Err(format!("`{name}` is missing")),
        };
        let access_key_id = sound("AccessKeyId", text("AccessKeyId")?)?;
        let secret_access_key = sound("SecretAccessKey", text("SecretAccessKey")?)?;
        let session_token = match text(token)? {
            Some(value) => Some(sound(token, Some(value))?),
            None => None,
        };
        let expires_at = match text("Expiration")? {
            Some(value) => Some(
                time::parse(&value).ok_or("`Expiration` is not a time (such as `2026-01-01T08:00:00Z`)")?,
            ),
            None => None,
        };
        if expires_at.is_some_and(|at| at <= now) {
            return Err("the credentials have expired already".to_owned());
        }
        let account = match text("AccountId")? {
            Some(value) => {
                Some(value.parse().map_err(|_| "`AccountId` is not an account id (twelve digits)")?)
            }
            None => None,
        };
        Ok(Self {
            access_key_id,
            secret_access_key: secret_access_key.into(),
            session_token: session_token.map(SecretString::from),
            issued_at: now,
            expires_at,
            account,
            role_arn: None,
        })
    }

    /// Returns whether there is much life left in them at `now`.
    pub(super) fn are_fresh(&self, now: SystemTime) -> bool {
        let life = |from: SystemTime| self.expires_at.and_then(|at| at.duration_since(from).ok());
        match (life(now), life(self.issued_at)) {
            (Some(left), Some(whole)) => left > STEP_MARGIN.min(whole / 3),
            _ => false,
        }
    }

    /// Returns whether they may still be used at `now`.
    pub(super) fn are_alive(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|at| at > now)
    }

    /// Returns a copy, for the one step in a chain that is also handed out.
    pub(super) fn copy(&self) -> Self {
        let copy = |secret: &SecretString| SecretString::from(secret.expose_secret().to_owned());
        Self {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: copy(&self.secret_access_key),
            session_token: self.session_token.as_ref().map(copy),
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            account: self.account.clone(),
            role_arn: self.role_arn.clone(),
        }
    }

    /// Returns what may be handed out; `None` for long-lived keys.
    pub(super) fn into_role(self) -> Option<RoleCredentials> {
        Some(RoleCredentials {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key,
            session_token: self.session_token?,
            issued_at: self.issued_at,
            expires_at: self.expires_at.unwrap_or(self.issued_at + UNTOLD_LIFE),
            account: self.account,
            role_arn: self.role_arn,
        })
    }
}

/// What a step of a chain needs to be worth using for the next one: a call takes seconds.
const STEP_MARGIN: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(mut value: Value) -> Result<Credentials, String> {
        Credentials::from_json(value.as_object_mut().unwrap(), "SessionToken", time::from_epoch(1000))
    }

    #[test]
    fn only_whole_and_living_credentials_are_read() {
        let good = json!({"AccessKeyId": "A", "SecretAccessKey": "s", "SessionToken": "t",
            "Expiration": "2026-01-01T00:00:00+01:00", "AccountId": "111122223333", "More": 1});
        let read_back = read(good.clone()).unwrap();
        assert_eq!(read_back.expires_at.map(time::format).unwrap(), "2025-12-31T23:00:00Z");
        assert_eq!(read_back.account.unwrap().as_str(), "111122223333");
        for (member, value, fault) in [
            ("AccessKeyId", json!(null), "`AccessKeyId` is missing"),
            ("SecretAccessKey", json!(""), "`SecretAccessKey` is missing"),
            ("SecretAccessKey", json!(7), "`SecretAccessKey` is not a text"),
            ("SessionToken", json!("a\nb"), "`SessionToken` has characters that no key has"),
            ("Expiration", json!("tomorrow"), "`Expiration` is not a time (such as `2026-01-01T08:00:00Z`)"),
            ("Expiration", json!(1_767_225_600), "`Expiration` is not a text"),
            ("Expiration", json!("1970-01-01T00:00:01Z"), "the credentials have expired already"),
            ("AccountId", json!("1"), "`AccountId` is not an account id (twelve digits)"),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            assert_eq!(read(bad).unwrap_err(), fault);
        }
        let keys = read(json!({"AccessKeyId": "A", "SecretAccessKey": "s"})).unwrap();
        assert!(keys.into_role().is_none(), "long-lived keys are never handed out");
    }
}
