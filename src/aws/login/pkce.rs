//! Login in the browser: authorization code with PKCE (RFC 7636, 8252) and a callback on 127.0.0.1.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    LoginError, Scene,
    callback::{Answer, Callback},
    random_text,
    registration::{self, Flow},
};
use crate::{
    aws::{oidc, token::SsoToken},
    printable::one_line,
};

pub(super) async fn login(scene: &Scene<'_>) -> Result<SsoToken, LoginError> {
    let registration = registration::registration(scene, Flow::AuthorizationCode).await?;
    let state = random_text::<32>()?;
    let verifier = random_text::<48>()?;
    // Bound before the browser opens, so that nobody else can be there when it comes back.
    let mut callback = Callback::bind(state).await.map_err(LoginError::Listen)?;
    let redirect_uri = callback.redirect_uri();
    let url = authorize_url(
        &scene.clients.authorize_url(),
        &registration.client_id,
        &redirect_uri,
        callback.state(),
        &registration::scopes(scene.session, Flow::AuthorizationCode),
        &verifier,
    );
    let session = scene.session;
    if scene.human.browse(&url) {
        scene.tell(&format!("log in to `{session}` in your browser; if none opened, open\n  {url}"));
    } else {
        scene.tell(&format!("to log in to `{session}`, open this in a browser on this machine:\n  {url}"));
    }
    let (answer, page) = callback.wait().await?;
    let code = match answer {
        Answer::Code(code) => code,
        Answer::Error { error, description } => {
            page.failed();
            callback.finish().await;
            let reason = description.unwrap_or(error);
            return Err(LoginError::Denied { reason: one_line(&reason) });
        }
    };
    let redeemed =
        oidc::redeem_authorization_code(scene.clients, &registration, &code, &verifier, &redirect_uri).await;
    match &redeemed {
        Ok(_) => page.succeeded(),
        Err(_) => page.failed(),
    }
    callback.finish().await;
    match redeemed {
        Ok(issued) => Ok(scene.token(issued, registration)),
        Err(error) => {
            if matches!(error, oidc::Error::StaleClient(_)) {
                registration::forget(scene).await;
            }
            Err(error.into())
        }
    }
}

fn authorize_url(
    base: &str,
    client_id: &str,
    redirect_uri: &str,
    state: &SecretString,
    scopes: &[String],
    verifier: &SecretString,
) -> String {
    let encode = percent_encode;
    format!(
        "{base}?response_type=code&client_id={}&redirect_uri={}&state={}&code_challenge_method=S256&scopes={}&code_challenge={}",
        encode(client_id),
        encode(redirect_uri),
        encode(state.expose_secret()),
        encode(&scopes.join(" ")),
        challenge(verifier),
    )
}

fn challenge(verifier: &SecretString) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.expose_secret().as_bytes());
    URL_SAFE_NO_PAD.encode(digest)
}

/// Encodes everything but RFC 3986's unreserved characters.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;

    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_the_rfc() {
        // RFC 7636, appendix B.
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned().into();
        assert_eq!(challenge(&verifier), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn the_url_is_what_the_authorize_page_expects() {
        let url = authorize_url(
            "https://oidc.eu-west-1.amazonaws.com/authorize",
            "a&b",
            "http://127.0.0.1:49152/oauth/callback",
            &"st".to_owned().into(),
            &["sso:account:access".into(), "x".into()],
            &"v".to_owned().into(),
        );
        assert_eq!(
            url,
            format!(
                "https://oidc.eu-west-1.amazonaws.com/authorize?response_type=code&client_id=a%26b\
                 &redirect_uri=http%3A%2F%2F127.0.0.1%3A49152%2Foauth%2Fcallback&state=st\
                 &code_challenge_method=S256&scopes=sso%3Aaccount%3Aaccess%20x&code_challenge={}",
                challenge(&"v".to_owned().into())
            )
        );
    }

    #[test]
    fn the_verifier_has_the_length_that_the_rfc_allows() {
        let verifier = random_text::<48>().unwrap();
        assert_eq!(verifier.expose_secret().len(), 64);
        assert_ne!(verifier.expose_secret(), random_text::<48>().unwrap().expose_secret());
    }
}
