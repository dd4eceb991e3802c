//! The environment in which AWS SDKs on the host find us, and its text for each shell. Pure.
//!
//! [`Environment`] decides what is set; a module for each syntax writes it down. What a syntax cannot hold
//! is not escaped by heroics but kept out of [`Value`].

mod cmd;
mod csh;
mod dotenv;
mod fish;
mod json;
mod posix;
mod powershell;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt::Write as _,
    ops::{Deref, DerefMut},
};

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::{Zeroize as _, Zeroizing};

use crate::names::Region;

/// What proxies must leave alone; the SDK for Rust, among others, sends even loopback requests to `HTTP_PROXY`.
const LOOPBACK: &str = "127.0.0.1,localhost,::1";

/// What decides about the environment.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    /// Where one leads to us; `None` where there is no port.
    pub(crate) endpoint: Option<Endpoint<'a>>,
    /// What has to be trusted there (`--tls auto`).
    pub(crate) trust: Option<TrustFiles>,
    /// The default grant's region; `None` leaves what the host has.
    pub(crate) region: Option<&'a Region>,
    /// Our own configuration; `None` leaves the host's in force (`--remote-config keep`).
    pub(crate) config: Option<ConfigFiles<'a>>,
}

/// The port of the host that leads to us.
#[derive(Debug)]
pub(crate) struct Endpoint<'a> {
    pub(crate) url: String,
    /// The name in it, where that was not ours to choose.
    pub(crate) name: Option<&'a str>,
    pub(crate) token: Token<'a>,
}

/// Paths on the host of what is to be trusted besides the host's own CAs.
///
/// Only variables that add to those, or leave them in force when our files are gone, are used. SSL_CERT_FILE,
/// AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE and Java's trustStore replace them, for every connection of every
/// program: a shell that outlives the tunnel could not reach anybody any more.
#[derive(Debug)]
pub(crate) struct TrustFiles {
    /// For Node, which adds it.
    pub(crate) file: String,
    /// For OpenSSL, Go, Rust, .NET and Ruby, which take a list of directories; where the host's own is one of the kind.
    pub(crate) directory: Option<String>,
}

/// Where SDKs find the default grant's token.
#[derive(Debug)]
pub(crate) enum Token<'a> {
    /// In a file of this path on the host.
    File(&'a str),
    /// In the environment itself (`--token env`).
    Environment(SecretString),
}

/// Paths on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConfigFiles<'a> {
    pub(crate) config: &'a str,
    pub(crate) credentials: &'a str,
}

/// Variables to set, to extend and to unset. No variable is in two of them.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) set: Vec<(Name, Value)>,
    pub(crate) unset: Vec<Name>,
}

/// The name of a variable.
pub(crate) type Name = &'static str;

/// What a variable is set to.
#[derive(Debug)]
pub(crate) enum Value {
    Text(Text),
    /// Unless the host has something else under this name, that is not of an earlier tunnel of ours. Syntaxes that cannot
    /// look set it.
    Offered(Text),
    /// Added to the comma-separated list that the host has under this name or, failing that, under `sibling`.
    /// Where a syntax cannot look at the host's list, this is all of it.
    Added {
        items: Items,
        sibling: Name,
    },
}

/// Text without control characters: newlines, above all, which csh, cmd and dotenv files cannot hold.
///
/// No path, region or token of ours has any. From one that had, they are left out, so that it leads nowhere
/// instead of to a second line that says something else.
#[derive(Debug)]
pub(crate) struct Text(SecretString);

/// A list that needs no quoting in any syntax.
#[derive(Clone, Debug)]
pub(crate) struct Items(Cow<'static, str>);

impl Value {
    fn plain(text: &str) -> Self {
        Self::Text(Text::new(text))
    }
}

impl Text {
    fn new(text: &str) -> Self {
        // With room for all of it, so that growing does not leave copies of a token behind.
        let mut kept = String::with_capacity(text.len());
        kept.extend(text.chars().filter(|c| !c.is_control()));
        Self(kept.into())
    }

    fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Items {
    /// What stands for all of them where the host's list is searched for ours.
    fn first(&self) -> &str {
        self.0.split(',').next().unwrap_or_default()
    }
}

impl Environment {
    /// Decides about every variable that leads SDKs to us or away from us.
    pub(crate) fn new(settings: Settings<'_>) -> Self {
        let plain = Value::plain;
        let mut set = Vec::new();
        let mut unset = UNSET.to_vec();
        let items = match settings.endpoint.as_ref().and_then(|endpoint| endpoint.name) {
            // It comes first, so that a host that has ours from elsewhere still gets it.
            Some(name) if !LOOPBACK.split(',').any(|known| known == name) => {
                Items(format!("{name},{LOOPBACK}").into())
            }
            _ => Items(LOOPBACK.into()),
        };
        match settings.endpoint {
            Some(Endpoint { url, token, .. }) => {
                set.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", plain(&url)));
                match token {
                    Token::File(path) => {
                        set.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", plain(path)));
                        unset.push("AWS_CONTAINER_AUTHORIZATION_TOKEN");
                    }
                    Token::Environment(token) => {
                        set.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN", plain(token.expose_secret())));
                        unset.push("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
                    }
                }
            }
            None => unset.extend([
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            ]),
        }
        if let Some(region) = settings.region {
            set.push(("AWS_REGION", plain(region.as_str())));
            set.push(("AWS_DEFAULT_REGION", plain(region.as_str())));
        }
        if let Some(ConfigFiles { config, credentials }) = settings.config {
            set.push(("AWS_CONFIG_FILE", plain(config)));
            set.push(("AWS_SHARED_CREDENTIALS_FILE", plain(credentials)));
        }
        // Or SDKs would silently go on as the host's own role when we cannot answer.
        set.push(("AWS_EC2_METADATA_DISABLED", plain("true")));
        if let Some(TrustFiles { file, directory }) = settings.trust {
            set.push(("NODE_EXTRA_CA_CERTS", Value::Offered(Text::new(&file))));
            if let Some(directory) = directory {
                // The host's own first: it stays in force when ours is gone.
                let both = format!("{HOST_DIRECTORY}:{directory}");
                set.push(("SSL_CERT_DIR", Value::Offered(Text::new(&both))));
            }
        }
        set.push(("NO_PROXY", Value::Added { items: items.clone(), sibling: "no_proxy" }));
        set.push(("no_proxy", Value::Added { items, sibling: "NO_PROXY" }));
        Self { set, unset }
    }
}

/// Where the CAs of most systems lie, each under the hash of its name.
const HOST_DIRECTORY: &str = "/etc/ssl/certs";

/// What every path below a directory of ours holds.
const OURS: &str = "/broker-";
/// One set of credentials, as text.
#[derive(Debug)]
pub(crate) struct Credentials<'a> {
    pub(crate) access_key_id: &'a str,
    pub(crate) secret_access_key: &'a SecretString,
    pub(crate) session_token: &'a SecretString,
}

impl Environment {
    /// Decides about the variables that hold credentials themselves; for this machine, never for a host.
    pub(crate) fn of_credentials(credentials: Credentials<'_>, until: &str, region: Option<&Region>) -> Self {
        let plain = Value::plain;
        let mut set = vec![
            ("AWS_ACCESS_KEY_ID", plain(credentials.access_key_id)),
            ("AWS_SECRET_ACCESS_KEY", plain(credentials.secret_access_key.expose_secret())),
            ("AWS_SESSION_TOKEN", plain(credentials.session_token.expose_secret())),
            ("AWS_CREDENTIAL_EXPIRATION", plain(until)),
        ];
        if let Some(region) = region {
            set.push(("AWS_REGION", plain(region.as_str())));
            set.push(("AWS_DEFAULT_REGION", plain(region.as_str())));
        }
        // What counts before the keys somewhere: a profile for JavaScript, the old name of the token for botocore.
        Self { set, unset: vec!["AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"] }
    }
}

/// What SDKs would use before or instead of us. Empty is not unset: botocore takes an empty relative URI for one.
const UNSET: [Name; 19] = [
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_ACCOUNT_ID",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AMAZON_ACCESS_KEY_ID",
    "AMAZON_SECRET_ACCESS_KEY",
    "AMAZON_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CREDENTIAL_FILE",
    "BOTO_CONFIG",
];

/// A syntax to write the environment in.
#[expect(clippy::enum_variant_names, reason = "PowerShell is its name")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shell {
    /// dash, ksh, busybox ash and their like.
    Sh,
    Bash,
    Zsh,
    Fish,
    /// csh and tcsh.
    Csh,
    /// Windows PowerShell 5.1 and PowerShell 7.
    PowerShell,
    /// A batch file for `cmd.exe`.
    Cmd,
    /// One object: `set`, from names to values, and `unset`, a list of names.
    Json,
    /// `NAME=VALUE` lines, as for `docker --env-file`.
    Dotenv,
}

impl Shell {
    /// Returns the shell whose program has this path, as `$SHELL` holds it; `None` for one that we cannot write for.
    pub(crate) fn of(program: &str) -> Option<Self> {
        let name = program.rsplit(['/', '\\']).next()?;
        match name.strip_suffix(".exe").unwrap_or(name) {
            "sh" | "dash" | "ash" | "busybox" | "ksh" | "ksh93" | "rksh" | "mksh" | "oksh" | "yash" => {
                Some(Self::Sh)
            }
            "bash" | "rbash" => Some(Self::Bash),
            "zsh" | "rzsh" => Some(Self::Zsh),
            "fish" => Some(Self::Fish),
            "csh" | "tcsh" | "bsd-csh" => Some(Self::Csh),
            "pwsh" | "pwsh-preview" | "powershell" => Some(Self::PowerShell),
            "cmd" => Some(Self::Cmd),
            _ => None,
        }
    }

    /// Returns the lines to be read by this shell. Those for shells may be read more than once, and every
    /// statement ends with its line, so that they can be pasted.
    ///
    /// How they are read: `eval "$(…)"` by sh, bash and zsh; `… | source` by fish; ``eval "`…`"`` by csh;
    /// `… | Out-String | Invoke-Expression` by PowerShell; from a batch file by cmd.
    pub(crate) fn render(self, environment: &Environment) -> Zeroizing<String> {
        let page = match self {
            Self::Sh | Self::Bash | Self::Zsh => posix::render(environment),
            Self::Fish => fish::render(environment),
            Self::Csh => csh::render(environment),
            Self::PowerShell => powershell::render(environment),
            Self::Cmd => cmd::render(environment),
            Self::Json => json::render(environment),
            Self::Dotenv => dotenv::render(environment),
        };
        // A few pages wait until they are on the host, and a page is mostly empty.
        Zeroizing::new(page.as_str().to_owned())
    }
}

/// What is being written. Large enough from the start, so that growing does not leave copies of a token behind; wiped
/// and used again for the next, as there are some for each of many hosts.
#[derive(Debug)]
struct Page(Zeroizing<String>);

thread_local! {
    static PAGES: RefCell<Vec<Zeroizing<String>>> = const { RefCell::new(Vec::new()) };
}

fn page() -> Page {
    let used = PAGES.with_borrow_mut(Vec::pop);
    Page(used.unwrap_or_else(|| Zeroizing::new(String::with_capacity(16 * 1024))))
}

impl Drop for Page {
    fn drop(&mut self) {
        self.0.zeroize();
        let page = std::mem::take(&mut self.0);
        // A thread that ends has no pages any more.
        PAGES.try_with(|pages| pages.borrow_mut().push(page)).unwrap_or_default();
    }
}

impl Deref for Page {
    type Target = String;

    fn deref(&self) -> &String {
        &self.0
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut String {
        &mut self.0
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    #[expect(clippy::expect_used, reason = "a String takes everything")]
    writeln!(text, "{line}").expect("infallible");
}
