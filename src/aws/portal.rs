//! The access portal: role credentials for a token, and the end of a session.

use std::time::SystemTime;

use aws_sdk_sso::config::retry::RetryConfig;
use secrecy::ExposeSecret as _;

use super::{
    client::{Clients, Failure},
    time,
    token::SsoToken,
};
use crate::{
    creds::secret::RoleCredentials,
    names::{AccountId, Role, RoleName},
};

/// Why there are no credentials, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The token is dead.
    #[error("AWS does not accept the SSO token")]
    Unauthorized,
    /// The person may not have this role, or it does not exist.
    #[error("AWS denies the role")]
    Denied(#[source] Failure),
    /// Worth another try after a while.
    #[error("the access portal of AWS did not answer properly")]
    Transient(#[source] Failure),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.code.as_deref() {
            Some("UnauthorizedException") => Self::Unauthorized,
            // Not in AWS's own model; it is what an unassigned role gets.
            Some("ForbiddenException" | "AccessDeniedException" | "ResourceNotFoundException") => {
                Self::Denied(failure)
            }
            Some("InvalidRequestException") if failure.is_refusal() => Self::Denied(failure),
            _ => Self::Transient(failure),
        }
    }
}

/// Gets credentials of `role`. What comes back is complete and lives on after `now`.
pub(crate) async fn role_credentials(
    clients: &Clients,
    token: &SsoToken,
    role: &Role,
    now: impl FnOnce() -> SystemTime,
) -> Result<RoleCredentials, Error> {
    let answer = clients
        .sso()
        .get_role_credentials()
        .access_token(token.access_token.expose_secret())
        .account_id(role.account.as_str())
        .role_name(role.name.as_str())
        .send()
        .await
        .map_err(Failure::from)?;
    credentials(answer.role_credentials, role, now())
        .map_err(|fault| Error::Transient(Failure::garbled(fault)))
}

fn credentials(
    answer: Option<aws_sdk_sso::types::RoleCredentials>,
    role: &Role,
    now: SystemTime,
) -> Result<RoleCredentials, &'static str> {
    let answer = answer.ok_or("AWS answered without credentials")?;
    let sound = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    // Milliseconds here, seconds in OIDC.
    let expires_at = time::from_epoch(u64::try_from(answer.expiration).unwrap_or(0) / 1000);
    let (Some(access_key_id), Some(secret_access_key), Some(session_token)) = (
        answer.access_key_id.filter(sound),
        answer.secret_access_key.filter(sound),
        answer.session_token.filter(sound),
    ) else {
        return Err("AWS answered with incomplete credentials");
    };
    if expires_at <= now {
        return Err("AWS answered with expired credentials; is the clock of this machine right?");
    }
    Ok(RoleCredentials {
        access_key_id,
        secret_access_key: secret_access_key.into(),
        session_token: session_token.into(),
        issued_at: now,
        expires_at,
        account: Some(role.account.clone()),
        // The role behind a permission set has a path and a suffix that AWS does not tell here.
        role_arn: None,
    })
}

/// One page of a list.
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) next: Option<String>,
}

/// An account that the person has roles in.
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) name: String,
    pub(crate) email: String,
}

/// The most that AWS puts on one page.
const PAGE: i32 = 100;

/// The SDK makes no second try of a call that lists: who makes many knows best when.
fn once() -> aws_sdk_sso::config::Builder {
    aws_sdk_sso::Config::builder().retry_config(RetryConfig::disabled())
}

/// Lists accounts. What is no account id is left out.
pub(crate) async fn accounts(
    clients: &Clients,
    token: &SsoToken,
    next: Option<String>,
) -> Result<Page<Account>, Error> {
    let call = clients.sso().list_accounts().access_token(token.access_token.expose_secret());
    let call = call.max_results(PAGE).set_next_token(next).customize().config_override(once());
    let answer = call.send().await.map_err(Failure::from)?;
    let items = answer.account_list.unwrap_or_default().into_iter().filter_map(|account| {
        Some(Account {
            id: account.account_id?.parse().ok()?,
            name: account.account_name.unwrap_or_default(),
            email: account.email_address.unwrap_or_default(),
        })
    });
    Ok(Page { items: items.collect(), next: answer.next_token.filter(|next| !next.is_empty()) })
}

/// Lists the roles of the person in one account.
pub(crate) async fn roles(
    clients: &Clients,
    token: &SsoToken,
    account: &AccountId,
    next: Option<String>,
) -> Result<Page<RoleName>, Error> {
    let call = clients.sso().list_account_roles().access_token(token.access_token.expose_secret());
    let call = call.account_id(account.as_str()).max_results(PAGE).set_next_token(next);
    let call = call.customize().config_override(once());
    let answer = call.send().await.map_err(Failure::from)?;
    let names = answer.role_list.unwrap_or_default().into_iter();
    let items = names.filter_map(|role| role.role_name?.parse().ok()).collect();
    Ok(Page { items, next: answer.next_token.filter(|next| !next.is_empty()) })
}

/// Ends the session at AWS; every token of it is dead afterwards.
pub(crate) async fn logout(clients: &Clients, token: &SsoToken) -> Result<(), Error> {
    clients
        .sso()
        .logout()
        .access_token(token.access_token.expose_secret())
        .send()
        .await
        .map_err(Failure::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(expiration: i64) -> aws_sdk_sso::types::builders::RoleCredentialsBuilder {
        aws_sdk_sso::types::RoleCredentials::builder()
            .access_key_id("ASIAX")
            .secret_access_key("secret")
            .session_token("session")
            .expiration(expiration)
    }

    #[test]
    fn only_complete_and_living_credentials_pass() {
        let role = Role { account: "111122223333".parse().unwrap(), name: "Dev".parse().unwrap() };
        let now = time::from_epoch(1000);
        let check = |answer| credentials(answer, &role, now);
        let good = check(Some(answer(1_001_500).build())).unwrap();
        assert_eq!(good.expires_at, time::from_epoch(1001));
        assert_eq!((good.access_key_id.as_str(), good.issued_at), ("ASIAX", now));
        assert!(check(None).is_err());
        for bad in [
            answer(1_000_000),
            answer(0),
            answer(-1),
            answer(i64::MIN),
            answer(2_000_000).access_key_id(""),
            answer(2_000_000).set_secret_access_key(None),
            answer(2_000_000).session_token("a\nb"),
        ] {
            assert!(check(Some(bad.build())).is_err());
        }
        drop(check(Some(answer(i64::MAX).build())));
    }
}
