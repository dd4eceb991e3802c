//! Login by device code: the person confirms a code in a browser on any machine, while we ask whether they did.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    LoginError, Scene, browsable,
    registration::{self, Flow},
};
use crate::{
    aws::{
        oidc::{self, DeviceAuthorization},
        token::{Registration, SsoToken},
    },
    printable::one_line,
};

/// Added to the interval at every `SlowDownException` (RFC 8628, 3.5).
const SLOW_DOWN: Duration = Duration::from_secs(5);

/// No code of AWS lives longer; a fake one might claim to.
const LONGEST: Duration = Duration::from_secs(30 * 60);

pub(super) async fn login(scene: &Scene<'_>, open_browser: bool) -> Result<SsoToken, LoginError> {
    let (registration, authorization) = match start(scene).await {
        Err(StartError::Oidc(oidc::Error::StaleClient(_))) => {
            registration::forget(scene).await;
            start(scene).await?
        }
        other => other?,
    };
    present(scene, &authorization, open_browser)?;
    let deadline = Instant::now() + authorization.expires_in.min(LONGEST);
    let mut interval = authorization.interval;
    loop {
        let next = Instant::now() + interval;
        if next >= deadline {
            return Err(LoginError::TimedOut);
        }
        tokio::time::sleep_until(next).await;
        match oidc::redeem_device_code(scene.clients, &registration, &authorization.device_code).await {
            Ok(issued) => return Ok(scene.token(issued, registration)),
            Err(error) => interval = next_interval(error, interval)?,
        }
    }
}

/// Returns after how long to ask again, if that makes sense.
fn next_interval(error: oidc::Error, interval: Duration) -> Result<Duration, LoginError> {
    match error {
        // Trouble on the way is no answer; the person may be confirming right now.
        oidc::Error::Pending | oidc::Error::Transient(_) => Ok(interval),
        oidc::Error::SlowDown => Ok(interval + SLOW_DOWN),
        error => Err(error.into()),
    }
}

enum StartError {
    Login(LoginError),
    Oidc(oidc::Error),
}

impl From<StartError> for LoginError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Login(error) => error,
            StartError::Oidc(error) => error.into(),
        }
    }
}

async fn start(scene: &Scene<'_>) -> Result<(Registration, DeviceAuthorization), StartError> {
    let registration =
        registration::registration(scene, Flow::DeviceCode).await.map_err(StartError::Login)?;
    let authorization = oidc::start_device_authorization(scene.clients, scene.portal, &registration)
        .await
        .map_err(StartError::Oidc)?;
    Ok((registration, authorization))
}

fn present(
    scene: &Scene<'_>,
    authorization: &DeviceAuthorization,
    open_browser: bool,
) -> Result<(), LoginError> {
    let page = browsable(&authorization.verification_uri)?;
    let code = one_line(&authorization.user_code);
    let complete = authorization.verification_uri_complete.as_deref().map(browsable).transpose()?;
    let session = scene.session;
    if open_browser && scene.human.browse(complete.unwrap_or(page)) {
        scene.tell(&format!("to log in to `{session}`, confirm the code {code} in your browser ({page})"));
    } else {
        let shortcut =
            complete.map(|url| format!("\nor open\n  {url}\nand compare the code")).unwrap_or_default();
        scene.tell(&format!(
            "to log in to `{session}`, open\n  {page}\nand enter the code\n  {code}{shortcut}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::client::Failure;

    #[test]
    fn polling_goes_on_until_there_is_an_answer() {
        let five = Duration::from_secs(5);
        assert_eq!(next_interval(oidc::Error::Pending, five).unwrap(), five);
        assert_eq!(next_interval(oidc::Error::Transient(Failure::garbled("x")), five).unwrap(), five);
        assert_eq!(next_interval(oidc::Error::SlowDown, five).unwrap(), five * 2);
        assert!(matches!(next_interval(oidc::Error::Expired, five), Err(LoginError::TimedOut)));
        assert!(matches!(
            next_interval(oidc::Error::Denied(Failure::garbled("x")), five),
            Err(LoginError::Denied { .. })
        ));
    }
}
