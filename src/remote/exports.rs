//! The environment in which AWS SDKs on the host find us, and its text for each shell. Pure.

use std::fmt::Write as _;

use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::quoted;
use crate::names::Region;

/// What proxies must leave alone; the SDK for Rust, among others, sends even loopback requests to `HTTP_PROXY`.
const LOOPBACK: &str = "127.0.0.1,localhost,::1";

/// What decides about the environment.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    /// The port of the host that leads to us, and the token for it; `None` where there is no port.
    pub(crate) endpoint: Option<(u16, Token<'a>)>,
    /// The default grant's region; `None` leaves what the host has.
    pub(crate) region: Option<&'a Region>,
    /// Our own configuration; `None` leaves the host's in force (`--remote-config keep`).
    pub(crate) config: Option<ConfigFiles<'a>>,
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
    Plain(String),
    Secret(SecretString),
    /// Added to the comma-separated list that the host has under this name or, failing that, under `sibling`.
    Added {
        items: &'static str,
        sibling: Name,
    },
}

impl Environment {
    /// Decides about every variable that leads SDKs to us or away from us.
    pub(crate) fn new(settings: Settings<'_>) -> Self {
        let plain = |text: &str| Value::Plain(text.to_owned());
        let mut set = Vec::new();
        let mut unset = UNSET.to_vec();
        match settings.endpoint {
            Some((port, token)) => {
                let uri = format!("http://127.0.0.1:{port}/");
                set.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", Value::Plain(uri)));
                match token {
                    Token::File(path) => {
                        set.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", plain(path)));
                        unset.push("AWS_CONTAINER_AUTHORIZATION_TOKEN");
                    }
                    Token::Environment(token) => {
                        set.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN", Value::Secret(token)));
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
        set.push(("NO_PROXY", Value::Added { items: LOOPBACK, sibling: "no_proxy" }));
        set.push(("no_proxy", Value::Added { items: LOOPBACK, sibling: "NO_PROXY" }));
        Self { set, unset }
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
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shell {
    Sh,
    Bash,
    Zsh,
}

impl Shell {
    /// Returns the shell whose program has this path, as `$SHELL` holds it; `None` for one that we cannot write for.
    pub(crate) fn of(program: &str) -> Option<Self> {
        match program.rsplit('/').next()? {
            "sh" | "dash" | "ash" | "ksh" | "ksh93" | "mksh" | "busybox" => Some(Self::Sh),
            "bash" | "rbash" => Some(Self::Bash),
            "zsh" => Some(Self::Zsh),
            _ => None,
        }
    }

    /// Returns the lines to be read by this shell (`.`, `source`, `eval`). May be read more than once.
    pub(crate) fn render(self, environment: &Environment) -> Zeroizing<String> {
        match self {
            Self::Sh | Self::Bash | Self::Zsh => posix(environment),
        }
    }
}

fn posix(environment: &Environment) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    for name in &environment.unset {
        line(&mut text, format_args!("unset {name}"));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Plain(value) => line(&mut text, format_args!("export {name}={}", quoted(value))),
            Value::Secret(value) => {
                let value = Zeroizing::new(quoted(value.expose_secret()));
                line(&mut text, format_args!("export {name}={}", *value));
            }
            // `*` alone means no proxy at all, and would not any more with company. The default is for `set -u`.
            Value::Added { items, sibling } => {
                let first = quoted(items.split(',').next().unwrap_or(items));
                line(
                    &mut text,
                    format_args!(
                        "{name}=\"${{{name}:-${{{sibling}-}}}}\"\n\
                         case \",${name},\" in\n  \
                           (*,{first},*|',*,') ;;\n  \
                           (*) {name}=\"${{{name}:+${name},}}\"{items} ;;\n\
                         esac\n\
                         export {name}",
                        items = quoted(items),
                    ),
                );
            }
        }
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    #[expect(clippy::expect_used, reason = "a String takes everything")]
    writeln!(text, "{line}").expect("infallible");
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    const SHELLS: [(&str, Shell); 5] = [
        ("dash", Shell::Sh),
        ("ksh", Shell::Sh),
        ("busybox", Shell::Sh),
        ("bash", Shell::Bash),
        ("zsh", Shell::Zsh),
    ];

    fn settings(token: Token<'_>) -> Settings<'_> {
        let config = ConfigFiles { config: "/d/config", credentials: "/d/credentials" };
        Settings { endpoint: Some((4144, token)), region: None, config: Some(config) }
    }

    /// What a child of `shell` finds in its environment after it read `text` twice.
    fn environment_after(shell: &str, text: &str, before: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut command = Command::new(shell);
        if shell == "busybox" {
            command.arg("sh");
        }
        let script = format!("set -eu\n{text}\n{text}\nexec /usr/bin/env -0");
        command.args(["-c", &script]).env_clear().envs(before.iter().copied()).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
        let output = String::from_utf8(output.stdout).unwrap();
        let pairs = output.split_terminator('\0').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn of<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
        environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn sdks_are_led_to_us_and_nowhere_else() {
        let region = "eu-west-1".parse().unwrap();
        let settings = Settings { region: Some(&region), ..settings(Token::File("/d/token-x")) };
        let environment = Environment::new(settings);
        let mut before: Vec<_> = UNSET.iter().map(|name| (*name, "stale")).collect();
        before.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN", "stale"));
        before.push(("AWS_CONFIG_FILE", "stale"));
        before.push(("KEPT", "kept"));
        for (program, shell) in SHELLS {
            let after = environment_after(program, &shell.render(&environment), &before);
            let aws: Vec<_> = after
                .iter()
                .filter(|(n, _)| n.contains("AWS") || n.contains("AMAZON") || n.contains("BOTO"))
                .collect();
            assert_eq!(aws.len(), 7, "{program} {aws:?}");
            for (name, value) in [
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:4144/"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/d/token-x"),
                ("AWS_REGION", "eu-west-1"),
                ("AWS_DEFAULT_REGION", "eu-west-1"),
                ("AWS_CONFIG_FILE", "/d/config"),
                ("AWS_SHARED_CREDENTIALS_FILE", "/d/credentials"),
                ("AWS_EC2_METADATA_DISABLED", "true"),
                ("NO_PROXY", LOOPBACK),
                ("no_proxy", LOOPBACK),
                ("KEPT", "kept"),
            ] {
                assert_eq!(of(&after, name), Some(value), "{program} {name}");
            }
        }
    }

    #[test]
    fn exactly_one_of_token_and_token_file_is_set() {
        let environment = Environment::new(settings(Token::Environment("Bearer x".to_owned().into())));
        let after = environment_after(
            "dash",
            &Shell::Sh.render(&environment),
            &[("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "stale")],
        );
        assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), Some("Bearer x"));
        assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), None);
        assert!(!format!("{environment:?}").contains("Bearer x"));
    }

    #[test]
    fn the_hosts_own_no_proxy_stays() {
        let environment = Environment::new(settings(Token::File("/t")));
        let both = |text: &str| (text.to_owned(), text.to_owned());
        for (program, shell) in SHELLS {
            let text = shell.render(&environment);
            for (before, (upper, lower)) in [
                (&[("NO_PROXY", ".corp")][..], both(&format!(".corp,{LOOPBACK}"))),
                (&[("no_proxy", ".corp")], both(&format!(".corp,{LOOPBACK}"))),
                (&[("no_proxy", "a,127.0.0.1,b")], both("a,127.0.0.1,b")),
                (&[("NO_PROXY", "*")], both("*")),
                (&[("NO_PROXY", "")], both(LOOPBACK)),
                (
                    &[("NO_PROXY", "A"), ("no_proxy", "b 'c")],
                    (format!("A,{LOOPBACK}"), format!("b 'c,{LOOPBACK}")),
                ),
            ] {
                let after = environment_after(program, &text, before);
                assert_eq!(of(&after, "NO_PROXY"), Some(&*upper), "{program} {before:?}");
                assert_eq!(of(&after, "no_proxy"), Some(&*lower), "{program} {before:?}");
            }
        }
    }

    #[test]
    fn login_shells_are_known_by_their_path() {
        assert_eq!(Shell::of("/usr/local/bin/zsh"), Some(Shell::Zsh));
        assert_eq!(Shell::of("/bin/bash"), Some(Shell::Bash));
        assert_eq!(Shell::of("dash"), Some(Shell::Sh));
        assert_eq!(Shell::of("/usr/bin/pwsh"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_goes_into_a_shell_comes_out(
            value in prop_oneof!["[^\\x00]{0,40}", "[-!'\"\\\\$`*?~#&|;<>(){}\\[\\]=:%^ \t\r\n]{0,40}"],
        ) {
            let mut environment = Environment::new(settings(Token::Environment(value.clone().into())));
            environment.set.push(("PLAIN", Value::Plain(value.clone())));
            for (program, shell) in SHELLS {
                let after = environment_after(program, &shell.render(&environment), &[]);
                prop_assert_eq!(of(&after, "PLAIN"), Some(&*value), "{}", program);
                prop_assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), Some(&*value), "{}", program);
            }
        }
    }
}
