//! What may be handed out, to whom, and how fresh it is. Knows neither AWS, HTTP nor SSH.

pub(crate) mod cache;
pub(crate) mod confirm;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod freshness;
pub(crate) mod grant;
pub(crate) mod secret;
mod stranger;
pub(crate) mod tally;

use secret::RoleCredentials;

use crate::human::BoxFuture;

/// Where the credentials of one role come from; `aws` implements it.
pub(crate) trait RoleSource: Send + Sync {
    /// Fetches new credentials. Callers make sure that at most one fetch per source is under way.
    ///
    /// Ends by itself within the deadlines of the implementation, and never waits for a human.
    fn fetch(&self) -> BoxFuture<'_, Result<RoleCredentials, FetchError>>;

    /// Ends when somebody may have logged in since the last fetch, which is then worth another try; never, where
    /// nobody can tell. Costs little while it waits.
    fn revived(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Why no credentials came, by what can be done about it. Each text is one sentence for the person at the host or the laptop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// A person has to log in again; asking AWS again before that is useless.
    #[error("{sentence}")]
    LoginNeeded { sentence: String },
    /// AWS says that this identity may not have this role, or that there is no such role.
    #[error("{sentence}")]
    Denied { sentence: String },
    /// Worth another try after a while: throttled, unreachable, garbled.
    #[error("{sentence}")]
    Transient {
        sentence: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}
