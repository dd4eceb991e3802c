//! What the host has to say before TLS is used there: how it looks up certificates, and where a name leads.

use std::net::IpAddr;

use super::helper::{Error, Helper};

/// What the host said.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trust {
    /// Whether its own CAs lie in `/etc/ssl/certs` one by one, so that a second such directory can stand beside it.
    pub(crate) has_directory: bool,
    /// Where the name leads; nothing if it leads nowhere, or the host cannot say.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Asks the host, about `name` too.
pub(crate) async fn ask(helper: &Helper, name: Option<&str>) -> Result<Trust, Error> {
    let answer = helper.run(format!("tls {}", name.unwrap_or_default()), None).await?;
    Ok(Trust::read(&answer.rows))
}

impl Trust {
    fn read(rows: &[String]) -> Self {
        let mut trust = Self::default();
        for row in rows {
            match row.split_once(' ').unwrap_or((row, "")) {
                ("directory", _) => trust.has_directory = true,
                ("at", address) => trust.addresses.extend(address.parse::<IpAddr>()),
                _ => {}
            }
        }
        trust
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_read() {
        let rows = ["directory", "at 127.0.0.1", "at ::1", "at nowhere", "", "odd"].map(str::to_owned);
        let trust = Trust::read(&rows);
        assert!(trust.has_directory);
        assert_eq!(trust.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(Trust::read(&[]), Trust::default());
    }
}
