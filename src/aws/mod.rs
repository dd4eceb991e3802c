//! Everything that talks to or parses AWS; knows neither SSH nor the serving of HTTP.
//!
//! [`profile`] turns configuration into a [`profile::Source`]; [`identity`] makes it the
//! [`crate::creds::RoleSource`] of a profile; [`session`] keeps one SSO session alive, and [`login`] is how a person
//! starts one. Secrets leave this room as [`crate::creds::secret::RoleCredentials`] or in the token cache that we share with the AWS CLI.

pub(crate) mod client;
mod credentials;
pub(crate) mod discover;
mod http;
pub(crate) mod identity;
pub(crate) mod kept;
mod keyring;
pub(crate) mod login;
mod login_session;
mod metadata;
pub(crate) mod oidc;
mod pace;
pub(crate) mod portal;
mod process;
pub(crate) mod profile;
mod refreshing;
pub(crate) mod session;
mod sts;
pub(crate) mod time;
pub(crate) mod token;
mod web_identity;
mod window;

#[cfg(test)]
mod tests;
