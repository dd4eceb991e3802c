//! Everything that talks to or parses AWS; knows neither SSH nor the serving of HTTP.
//!
//! [`profile`] turns configuration into a [`profile::Source`]; [`session`] keeps one SSO session alive and is the
//! [`crate::creds::RoleSource`] of its roles; [`login`] is how a person starts such a session. Secrets leave
//! this room as [`crate::creds::secret::RoleCredentials`] or in the token cache that we share with the AWS CLI.

pub(crate) mod client;
pub(crate) mod login;
pub(crate) mod oidc;
pub(crate) mod portal;
pub(crate) mod profile;
pub(crate) mod session;
pub(crate) mod time;
pub(crate) mod token;

#[cfg(test)]
mod tests;
