//! Start URLs of one's own: an organization may give its access portal an address in its own domain, which redirects to
//! the one in AWS's. The OIDC service knows the latter only; the token cache knows the former only, because that is what
//! stands in `~/.aws/config`. So the redirect is followed at a login, and nowhere else (AWS CLI 2.35.13 and later).

use std::time::Duration;

use super::LoginError;
use crate::{
    aws::{
        client::check_url,
        http::{Call, Http},
        profile::{SsoSession, StartUrl},
    },
    names::Region,
    printable::one_line,
};

/// The AWS CLI's figure; nobody has been asked anything yet, so that waiting longer helps nobody.
const DEADLINE: Duration = Duration::from_secs(10);

/// Domains in which AWS names access portals.
const OF_AWS: [&str; 8] = [
    "app.aws",
    "portal.amazonaws.com",
    "portal.amazonaws.com.cn",
    "app.amazonwebservices.com.cn",
    "portal.amazonaws.eu",
    "api.amazonwebservices.eu",
    "awsapps.com",
    "awsapps.cn",
];

/// Names that are a portal by themselves.
const PORTALS: [&str; 4] = [
    "identitycenter.amazonaws.com",
    "identitycenter.amazonaws.com.cn",
    "identitycenter.amazonaws.eu",
    "identitycenter.us-gov.amazonaws.com",
];

/// An access portal as AWS knows it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Portal {
    pub(super) url: StartUrl,
    pub(super) region: Region,
}

/// Returns whether AWS itself answers at this URL.
pub(in crate::aws) fn is_of_aws(url: &StartUrl) -> bool {
    host(url.as_str()).is_some_and(|host| PORTALS.contains(&host.as_str()) || domain(&host).is_some())
}

/// Returns the portal that a session's start URL leads to.
pub(super) async fn portal(session: &SsoSession, http: &Http) -> Result<Portal, LoginError> {
    if is_of_aws(&session.start_url) {
        return Ok(Portal { url: session.start_url.clone(), region: session.region.clone() });
    }
    let url = session.start_url.as_str();
    let failed = |reason: String| LoginError::NoPortal { url: one_line(url), reason };
    let ask = |method| http.call(Call { method, url, headers: &[], body: None, deadline: DEADLINE });
    let unreachable = |error: crate::aws::http::Error| failed(error.to_string());
    let mut answer = ask("HEAD").await.map_err(unreachable)?;
    // Some servers know no HEAD.
    if matches!(answer.status, 405 | 501) {
        answer = ask("GET").await.map_err(unreachable)?;
    }
    match (answer.status, answer.location) {
        (301 | 302 | 303 | 307 | 308, Some(location)) => {
            arrived(&location, &session.region).ok_or_else(|| {
                failed(format!("it redirects to `{}`, which is no access portal of AWS", one_line(&location)))
            })
        }
        (status, _) => Err(failed(format!("it answers with HTTP {status} and redirects nowhere"))),
    }
}

/// Returns the portal at the end of a redirect; `configured` counts where its name tells no region.
fn arrived(location: &str, configured: &Region) -> Option<Portal> {
    check_url(location).ok()?;
    let rest = location.strip_prefix("https://")?;
    let host = host(location)?;
    let url = rest.split(['?', '#']).next()?;
    let (authority, path) = url.split_once('/').unwrap_or((url, ""));
    // Everywhere else a port is part of the name; here it is nothing.
    let authority = authority.strip_suffix(":443").unwrap_or(authority).to_ascii_lowercase();
    let path = path.trim_end_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    let url: StartUrl = format!("https://{authority}{slash}{path}").parse().ok()?;
    let region = region(&host).unwrap_or_else(|| configured.clone());
    is_of_aws(&url).then_some(Portal { url, region })
}

fn host(url: &str) -> Option<String> {
    Some(check_url(url).ok()?.trim_end_matches('.').to_ascii_lowercase())
}

/// Returns which of AWS's domains a host is in, and its name there.
fn domain(host: &str) -> Option<(&'static str, &str)> {
    OF_AWS.into_iter().find_map(|domain| {
        let name = host.strip_suffix(domain)?;
        (name.is_empty() || name.ends_with('.')).then_some((domain, name.trim_end_matches('.')))
    })
}

/// Returns the region in a name: `INSTANCE.portal.REGION.app.aws`, or `INSTANCE.REGION.portal.amazonaws.com`.
fn region(host: &str) -> Option<Region> {
    let (domain, name) = domain(host)?;
    let mut labels = name.split('.');
    let instance = labels.next().filter(|label| !label.is_empty());
    let portal = domain.starts_with("portal.") || labels.next() == Some("portal");
    let region = labels.next()?.parse().ok()?;
    (instance.is_some() && portal && labels.next().is_none() && !domain.starts_with("awsapps"))
        .then_some(region)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(host: &str) -> StartUrl {
        format!("https://{host}/start").parse().unwrap()
    }

    #[test]
    fn what_is_of_aws_is_not_asked() {
        for host in [
            "ssoins-abc123.portal.us-west-2.app.aws",
            "SSOINS-ABC123.PORTAL.US-WEST-2.APP.AWS",
            "ssoins-abc123.us-west-2.portal.amazonaws.com",
            "d-abc123.awsapps.com",
            "myalias.awsapps.com",
            "awsapps.com",
            "identitycenter.amazonaws.com",
            "identitycenter.amazonaws.com.",
            "d-abc123.awsapps.cn",
            "ssoins-abc123.cn-north-1.portal.amazonaws.com.cn",
            "ssoins-abc123.portal.cn-north-1.app.amazonwebservices.com.cn",
            "ssoins-abc123.portal.eusc-de-east-1.api.amazonwebservices.eu",
            "identitycenter.us-gov.amazonaws.com",
            "d-abc123.awsapps.com:443",
        ] {
            assert!(is_of_aws(&at(host)), "{host}");
        }
        for host in [
            "aws.mycompany.com",
            "awsapps.com.evil.net",
            "evil-awsapps.com",
            "x.app.aws.example.com",
            "portal.amazonaws.com.evil.net",
            "notidentitycenter.amazonaws.com",
            "127.0.0.1",
        ] {
            assert!(!is_of_aws(&at(host)), "{host}");
        }
    }

    #[test]
    fn the_name_of_a_portal_tells_its_region() {
        for (host, expected) in [
            ("ssoins-abc.portal.us-west-2.app.aws", Some("us-west-2")),
            ("ssoins-abc.us-gov-west-1.portal.amazonaws.com", Some("us-gov-west-1")),
            ("ssoins-abc.cn-north-1.portal.amazonaws.com.cn", Some("cn-north-1")),
            ("ssoins-abc.portal.cn-north-1.app.amazonwebservices.com.cn", Some("cn-north-1")),
            ("ssoins-abc.eusc-de-east-1.portal.amazonaws.eu", Some("eusc-de-east-1")),
            ("ssoins-abc.portal.eusc-de-east-1.api.amazonwebservices.eu", Some("eusc-de-east-1")),
            ("d-abc123.awsapps.com", None),
            ("a.portal.us-west-2.awsapps.com", None),
            ("identitycenter.amazonaws.com", None),
            ("x.y.portal.us-west-2.app.aws", None),
            ("portal.us-west-2.app.aws", None),
            ("aws.mycompany.com", None),
        ] {
            assert_eq!(region(host).as_ref().map(Region::as_str), expected, "{host}");
        }
    }

    #[test]
    fn a_redirect_ends_at_a_portal_or_nowhere() {
        let configured: Region = "eu-west-1".parse().unwrap();
        for (location, url, region) in [
            (
                "https://ssoins-abc.portal.us-east-1.app.aws:443/",
                "https://ssoins-abc.portal.us-east-1.app.aws",
                "us-east-1",
            ),
            ("https://d-abc123.awsapps.com/start/#/", "https://d-abc123.awsapps.com/start", "eu-west-1"),
            ("https://D-ABC123.awsapps.com/start?x=y", "https://d-abc123.awsapps.com/start", "eu-west-1"),
        ] {
            let expected = Portal { url: url.parse().unwrap(), region: region.parse().unwrap() };
            assert_eq!(arrived(location, &configured), Some(expected), "{location}");
        }
        for location in [
            "http://d-abc123.awsapps.com/start",
            "http://127.0.0.1/start",
            "https://evil.example/start",
            "https://d-abc123.awsapps.com@evil.example/start",
            "https://evil.example/https://d-abc123.awsapps.com/start",
            "https://evil.example\\.awsapps.com/start",
            "/start",
            "start",
            "",
            "https://",
            "javascript:alert(1)//.awsapps.com",
        ] {
            assert_eq!(arrived(location, &configured), None, "{location}");
        }
    }

    proptest! {
        #[test]
        fn no_redirect_leads_elsewhere(location in "[ -~]{0,64}", host in "[a-z.:@/-]{0,16}") {
            let configured: Region = "eu-west-1".parse().unwrap();
            for location in [location, format!("https://{host}.awsapps.com/start")] {
                if let Some(portal) = arrived(&location, &configured) {
                    prop_assert!(is_of_aws(&portal.url));
                }
            }
        }
    }
}
