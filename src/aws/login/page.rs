//! The page that the browser shows at the end of a login. Static: nothing that anybody sent is in it.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};

const STYLE: &str = include_str!("page.css");
const DONE: &str = r#"<svg viewBox="0 0 24 24" role="img" aria-label="done"><circle cx="12" cy="12" r="11"/><path d="M7 12.5l3.5 3.5L17 9"/></svg>"#;
const FAILED: &str = r#"<svg class="bad" viewBox="0 0 24 24" role="img" aria-label="failed"><circle cx="12" cy="12" r="11"/><path d="M8 8l8 8M16 8l-8 8"/></svg>"#;

/// A whole page with its `Content-Security-Policy`.
pub(super) struct Page {
    pub(super) html: String,
}

/// Shown when the token is there.
pub(super) static SUCCESS: LazyLock<Page> = LazyLock::new(|| {
    page("Signed in", DONE, "You are signed in", "Close this window and go back to the terminal.")
});

/// Shown when AWS or the person said no.
pub(super) static FAILURE: LazyLock<Page> = LazyLock::new(|| {
    page(
        "Not signed in",
        FAILED,
        "The sign-in did not work",
        "The terminal says why. Close this window and try again from there.",
    )
});

/// Shown to a request that does not belong to this login.
pub(super) static STRANGER: LazyLock<Page> = LazyLock::new(|| {
    page(
        "Not this sign-in",
        FAILED,
        "This is not the sign-in we wait for",
        "Go on in the window that the terminal opened.",
    )
});

/// Allows this one style sheet and nothing else: no script, no image, no form, no frame.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        STANDARD.encode(digest)
    )
});

fn page(title: &str, icon: &str, heading: &str, text: &str) -> Page {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · broker</title>\n\
         <style>{STYLE}</style>\n<main>{icon}<h1>{heading}</h1><p>{text}</p><footer>broker</footer></main>\n</html>\n"
    );
    Page { html }
}
