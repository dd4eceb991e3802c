use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

/// Every way in which a shell reads our text, which is in FILE.
const READERS: [(&str, Shell, &str); 17] = [
    ("dash", Shell::Sh, "set -eu; . FILE; . FILE"),
    ("dash", Shell::Sh, "set -eu; eval \"$(/bin/cat FILE)\""),
    ("ksh", Shell::Sh, "set -eu; . FILE; . FILE"),
    ("busybox sh", Shell::Sh, "set -eu; . FILE; . FILE"),
    ("bash", Shell::Bash, "set -eu; . FILE; . FILE"),
    ("bash --posix", Shell::Sh, "set -eu; . FILE"),
    // As rbash is when its user gets a prompt; it runs nothing by its path.
    ("bash", Shell::Bash, "text=$(/bin/cat FILE); set -r -u -e; eval \"$text\"; env -0; exit #"),
    ("zsh -f", Shell::Zsh, "set -eu; . FILE; . FILE"),
    ("zsh -f", Shell::Zsh, "eval \"$(/bin/cat FILE)\""),
    ("fish --no-config", Shell::Fish, "source FILE; source FILE"),
    ("fish --no-config", Shell::Fish, "/bin/cat FILE | source"),
    ("fish --no-config", Shell::Fish, "eval (/bin/cat FILE)"),
    ("tcsh -f", Shell::Csh, "source FILE; source FILE"),
    ("tcsh -f", Shell::Csh, "eval \"`/bin/cat FILE`\""),
    ("bsd-csh -f", Shell::Csh, "source FILE; source FILE"),
    ("bsd-csh -f", Shell::Csh, "eval \"`/bin/cat FILE`\""),
    ("tcsh -f", Shell::Csh, "set backslash_quote; source FILE"),
];

/// What a host's variable may hold.
const HOSTILE: &str = r##"a!b 'c "d\e `f $HOME *?[g ~ # (h)"##;

fn settings(token: Token<'_>) -> Settings<'_> {
    let config = ConfigFiles { config: "/d/config", credentials: "/d/credentials" };
    let url = "http://127.0.0.1:4144/".to_owned();
    let endpoint = Some(Endpoint { url, name: None, token });
    Settings { endpoint, trust: None, region: None, config: Some(config) }
}

/// The decision about `value` under the name `VALUE`, among others.
pub(super) fn environment(value: &str) -> Environment {
    let mut environment = Environment::new(settings(Token::File("/d/token-x")));
    environment.set.push(("VALUE", Value::plain(value)));
    environment
}

/// What a child of a shell finds in its environment after the shell read the exports.
fn environment_after(
    (shell, syntax, script): (&str, Shell, &str),
    environment: &Environment,
    before: &[(&str, &str)],
) -> Vec<(String, String)> {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("exports");
    let text = syntax.render(environment);
    #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
    std::fs::write(&file, &*text).unwrap();
    let script = script.replace("FILE", file.to_str().unwrap());
    let mut words = shell.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["-c", &format!("{script}; exec /usr/bin/env -0")]);
    command.env_clear().env("HOME", home.path()).envs(before.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {script}: {output:?}\n{}", *text);
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
    for reader in READERS {
        let after = environment_after(reader, &environment, &before);
        let aws: Vec<_> = after
            .iter()
            .filter(|(n, _)| n.contains("AWS") || n.contains("AMAZON") || n.contains("BOTO"))
            .collect();
        assert_eq!(aws.len(), 7, "{reader:?} {aws:?}");
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
            assert_eq!(of(&after, name), Some(value), "{reader:?} {name}");
        }
    }
}

#[test]
fn a_ca_of_ours_is_offered_and_never_replaces_the_hosts_choice() {
    let directory = "/run/user/1/broker-1/4144";
    let trust = TrustFiles { file: format!("{directory}/ca.pem"), directory: Some(directory.to_owned()) };
    let endpoint = Endpoint {
        url: "https://broker.corp:4144/".to_owned(),
        name: Some("broker.corp"),
        token: Token::File("/d/token-x"),
    };
    let environment = Environment::new(Settings {
        endpoint: Some(endpoint),
        trust: Some(trust),
        ..settings(Token::File("/d/token-x"))
    });
    let ours = (format!("{directory}/ca.pem"), format!("/etc/ssl/certs:{directory}"));
    let other = ("/corp/ca.pem".to_owned(), HOSTILE.to_owned());
    let earlier = "/etc/ssl/certs:/dev/shm/broker-1/4145";
    for reader in READERS {
        for (before, expected) in [
            (&[][..], &ours),
            (&[("NODE_EXTRA_CA_CERTS", ""), ("SSL_CERT_DIR", "")][..], &ours),
            (
                &[("NODE_EXTRA_CA_CERTS", "/dev/shm/broker-1/4145/ca.pem"), ("SSL_CERT_DIR", earlier)][..],
                &ours,
            ),
            (&[("NODE_EXTRA_CA_CERTS", "/corp/ca.pem"), ("SSL_CERT_DIR", HOSTILE)][..], &other),
        ] {
            let after = environment_after(reader, &environment, before);
            let found = (of(&after, "NODE_EXTRA_CA_CERTS"), of(&after, "SSL_CERT_DIR"));
            assert_eq!(found, (Some(&*expected.0), Some(&*expected.1)), "{reader:?} {before:?}");
            assert_eq!(of(&after, "AWS_CONTAINER_CREDENTIALS_FULL_URI"), Some("https://broker.corp:4144/"));
            let proxies = format!("broker.corp,{LOOPBACK}");
            assert_eq!((of(&after, "NO_PROXY"), of(&after, "no_proxy")), (Some(&*proxies), Some(&*proxies)));
        }
    }
    for (syntax, line) in [
        (
            Shell::PowerShell,
            "if ((-not $env:NODE_EXTRA_CA_CERTS) -or ($env:NODE_EXTRA_CA_CERTS -like '*/broker-*')) {",
        ),
        (Shell::Cmd, "@if not defined NODE_EXTRA_CA_CERTS set \"NODE_EXTRA_CA_CERTS=/run/"),
        (Shell::Dotenv, "NODE_EXTRA_CA_CERTS=/run/"),
        (Shell::Json, "\"NODE_EXTRA_CA_CERTS\":\"/run/"),
    ] {
        assert!(syntax.render(&environment).contains(line), "{line}\n{}", *syntax.render(&environment));
    }
}

#[test]
fn exactly_one_of_token_and_token_file_is_set() {
    let environment = Environment::new(settings(Token::Environment("Bearer x".to_owned().into())));
    let after =
        environment_after(READERS[0], &environment, &[("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "stale")]);
    assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), Some("Bearer x"));
    assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), None);
    assert!(!format!("{environment:?}").contains("Bearer x"));
}

#[test]
fn the_hosts_own_no_proxy_stays() {
    let environment = Environment::new(settings(Token::File("/t")));
    let both = |text: &str| (text.to_owned(), text.to_owned());
    for reader in READERS {
        for (before, (upper, lower)) in [
            (&[("NO_PROXY", ".corp")][..], both(&format!(".corp,{LOOPBACK}"))),
            (&[("no_proxy", ".corp")], both(&format!(".corp,{LOOPBACK}"))),
            (&[("no_proxy", "a,127.0.0.1,b")], both("a,127.0.0.1,b")),
            (&[("NO_PROXY", "*")], both("*")),
            (&[("NO_PROXY", "")], both(LOOPBACK)),
            (&[("NO_PROXY", "-n")], both(&format!("-n,{LOOPBACK}"))),
            (&[("no_proxy", HOSTILE)], both(&format!("{HOSTILE},{LOOPBACK}"))),
            (
                &[("NO_PROXY", "A"), ("no_proxy", "b 'c")],
                (format!("A,{LOOPBACK}"), format!("b 'c,{LOOPBACK}")),
            ),
        ] {
            let after = environment_after(reader, &environment, before);
            assert_eq!(of(&after, "NO_PROXY"), Some(&*upper), "{reader:?} {before:?}");
            assert_eq!(of(&after, "no_proxy"), Some(&*lower), "{reader:?} {before:?}");
        }
    }
}

#[test]
fn login_shells_are_known_by_their_path() {
    for (path, shell) in [
        ("/usr/local/bin/zsh", Some(Shell::Zsh)),
        ("/bin/bash", Some(Shell::Bash)),
        ("/usr/bin/rbash", Some(Shell::Bash)),
        ("dash", Some(Shell::Sh)),
        ("/bin/ksh93", Some(Shell::Sh)),
        ("/opt/homebrew/bin/fish", Some(Shell::Fish)),
        ("/bin/csh", Some(Shell::Csh)),
        ("/usr/bin/tcsh", Some(Shell::Csh)),
        ("/usr/bin/pwsh", Some(Shell::PowerShell)),
        (r"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe", Some(Shell::PowerShell)),
        (r"C:\Windows\System32\cmd.exe", Some(Shell::Cmd)),
        ("/usr/sbin/nologin", None),
        ("/usr/bin/xonsh", None),
        ("/usr/bin/nu", None),
        ("", None),
    ] {
        assert_eq!(Shell::of(path), shell, "{path}");
    }
}

#[test]
fn nobody_hears_a_control_character() {
    let value = "a\nexport AWS_PROFILE=x\r\0\u{1b}[2J\u{7f}\u{85}b";
    let environment = environment(value);
    for reader in READERS {
        let after = environment_after(reader, &environment, &[]);
        assert_eq!(of(&after, "VALUE"), Some("aexport AWS_PROFILE=x[2Jb"), "{reader:?}");
        assert_eq!(of(&after, "AWS_PROFILE"), None, "{reader:?}");
    }
    for shell in [Shell::PowerShell, Shell::Cmd, Shell::Json, Shell::Dotenv] {
        let text = shell.render(&environment);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{shell:?}");
        assert!(!text.lines().any(|line| line.starts_with("export")), "{shell:?}");
    }
}

#[test]
fn fish_keeps_what_the_user_set_for_good() {
    let home = tempfile::tempdir().unwrap();
    let fish = |script: &str| {
        let mut command = Command::new("fish");
        command.args(["-c", script]).env_clear().env("HOME", home.path()).stdin(Stdio::null());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    fish("set -U -x AWS_PROFILE theirs");
    assert_eq!(fish("echo $AWS_PROFILE"), "theirs\n");
    fish(&Shell::Fish.render(&environment("x")));
    assert_eq!(fish("echo $AWS_PROFILE"), "theirs\n");
}

/// For several values in one process of each shell.
const NAMES: [Name; 8] = ["V0", "V1", "V2", "V3", "V4", "V5", "V6", "V7"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_goes_into_a_shell_comes_out(
        values in proptest::collection::vec(
            prop_oneof!["[^\\p{Cc}]{0,40}", "[-!'\"\\\\$`*?~#&|;<>(){}\\[\\]=:%^@+, n0é]{0,40}"],
            NAMES.len(),
        ),
        locale in prop_oneof![Just("C"), Just("C.UTF-8")],
    ) {
        let mut environment = Environment::new(settings(Token::Environment(values[0].clone().into())));
        environment.set.extend(NAMES.iter().zip(&values).map(|(name, value)| (*name, Value::plain(value))));
        for reader in READERS {
            let after = environment_after(reader, &environment, &[("LC_ALL", locale)]);
            for (name, value) in NAMES.iter().zip(&values) {
                prop_assert_eq!(of(&after, name), Some(&**value), "{:?}", reader);
            }
            prop_assert_eq!(of(&after, "AWS_CONTAINER_AUTHORIZATION_TOKEN"), Some(&*values[0]), "{:?}", reader);
        }
    }
}
