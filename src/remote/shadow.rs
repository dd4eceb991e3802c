//! What on the host SDKs would use instead of us: variables that rc files export, settings in the host's own
//! configuration, tokens that were copied there. Pure, but for the question to the login shell, which is text.

use std::fmt;

use super::profiles;
use crate::printable::one_line;

/// A variable that the login shell exports, with its value if that is no secret and can be shown.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// Something in our way, and what to do about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Shadow {
    /// A sentence without its end.
    pub(crate) what: String,
    /// What the person can do: a sentence, or a command.
    pub(crate) fix: String,
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.fix)
    }
}

/// Variables that decide which credentials an SDK takes.
const VARIABLES: [&str; 18] = [
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CREDENTIAL_FILE",
    "BOTO_CONFIG",
    "AWS_CREDENTIAL_EXPIRATION",
];

/// Settings of a profile that lead to credentials other than ours.
const SETTINGS: [&str; 12] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "role_arn",
    "source_profile",
    "credential_source",
    "credential_process",
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "login_session",
    "web_identity_token_file",
];

/// Returns the command for an exec channel that runs the login shell as `flags` say and lets it start the script on
/// stdin. Its own stdin is empty, so that no rc file waits for an answer; what it complains about is not for us.
///
/// `outside`: what the host exports before any rc file counts too.
pub(crate) fn question(interactive: bool, outside: bool) -> String {
    let flags = if interactive { "-l -i -c" } else { "-c" };
    let unset = if outside { String::new() } else { format!("unset {}; ", VARIABLES.join(" ")) };
    // csh knows neither a third stream nor `-l` with other flags, and reads `.login` with that alone: the script, which
    // is one line, goes through a variable, and `$` through another, as csh reads this line too.
    let csh = if interactive {
        "IFS= read -r q; export q; d=$; echo \"exec /bin/sh -c ${d}q:q\" | exec \"$s\" -l; exit"
    } else {
        "exec \"$s\" -c \"exec /bin/sh\""
    };
    format!(
        "exec /bin/sh -c 'exec 2>/dev/null; {unset}s=${{SHELL:-/bin/sh}}; case $s in (*csh) {csh} ;; esac; \
         exec 3<&0; exec \"$s\" {flags} \"exec /bin/sh <&3\" </dev/null'"
    )
}

/// Returns the script, one line, that prints what [`answer`] reads, each line marked with `mark`. The first one is
/// empty, as an rc file may have left the terminal in the middle of a line.
pub(crate) fn script(mark: &str) -> String {
    format!(
        "echo; for n in {names}; do eval \"v=\\${{$n-}} s=\\${{$n+s}}\"; [ -n \"$s\" ] || continue; \
         case $n in (*KEY*|*TOKEN) v=;; esac; \
         case $v in (*[!A-Za-z0-9/:._@+=,~-]*) v=;; esac; echo \"{mark} $n $v\"; done; echo \"{mark} end\"; exit 0\n",
        names = VARIABLES.join(" ")
    )
}

/// Returns the line that ends the answer.
pub(crate) fn end(mark: &str) -> String {
    format!("{mark} end\n")
}

/// Reads the answer among whatever rc files printed.
pub(crate) fn answer(text: &str, mark: &str) -> Vec<Variable> {
    let row = |line: &str| {
        let (name, value) = line.strip_prefix(mark)?.strip_prefix(' ')?.split_once(' ')?;
        VARIABLES.contains(&name).then(|| Variable {
            name: name.to_owned(),
            value: Some(one_line(value)).filter(|value| !value.is_empty()),
        })
    };
    text.lines().filter_map(row).collect()
}

/// Returns the profile that SDKs take where these variables are exported.
pub(crate) fn profile(exported: &[Variable]) -> Option<&str> {
    let value = |name| exported.iter().find(|variable| variable.name == name)?.value.as_deref();
    value("AWS_PROFILE").or_else(|| value("AWS_DEFAULT_PROFILE"))
}

/// Returns what the login shell exports behind us. `aliased`: a profile that is only named leads to us there.
pub(crate) fn in_login_shell(host: &str, exported: &[Variable], aliased: bool) -> Vec<Shadow> {
    let in_the_way = |variable: &&Variable| {
        let named = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"].contains(&variable.name.as_str());
        !(named && aliased && variable.value.is_some())
    };
    exported
        .iter()
        .filter(in_the_way)
        .map(|variable| {
            let value = variable.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
            Shadow {
                what: format!(
                    "the login shell on {host} exports `{}{value}`, which SDKs there prefer to us",
                    variable.name
                ),
                fix: format!("take it out of the rc files there, or `unset {}`", variable.name),
            }
        })
        .collect()
}

/// Returns what in the host's own configuration is used before us, or by processes that do not have our environment.
pub(crate) fn in_files(host: &str, config: &[u8], credentials: &[u8]) -> Vec<Shadow> {
    let blocks = profiles::blocks(config);
    let config = profiles::sections(config, &blocks.iter().collect::<Vec<_>>());
    let credentials = profiles::sections(credentials, &[]);
    let mut shadows = Vec::new();
    for (file, sections) in [("config", config), ("credentials", credentials)] {
        let keys =
            sections.iter().filter(|section| section.profile == "default").flat_map(|section| &section.keys);
        let mut keys: Vec<_> = keys.map(String::as_str).filter(|key| SETTINGS.contains(key)).collect();
        keys.dedup();
        if !keys.is_empty() {
            shadows.push(Shadow {
                what: format!(
                    "`[default]` in `~/.aws/{file}` of {host} has {}, which SDKs prefer to us where that file is in force",
                    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
                ),
                fix: "take that out, or do without `--remote-config keep`".to_owned(),
            });
        }
    }
    shadows
}

/// Returns the tokens of IAM Identity Center that lie on the host, with the command that removes them.
pub(crate) fn in_caches(host: &str, names: &[String]) -> Vec<Shadow> {
    if names.is_empty() {
        return Vec::new();
    }
    let all = names.iter().any(|name| name.contains('*'));
    let paths: Vec<_> = match all {
        true => vec!["~/.aws/sso/cache/*.json".to_owned()],
        false => names.iter().map(|name| format!("~/.aws/sso/cache/{name}")).collect(),
    };
    vec![Shadow {
        what: format!(
            "a token of IAM Identity Center lies on {host}, with which whoever reads it has every role of yours, not only those served here"
        ),
        fix: format!("remove it with `ssh {host} 'rm {}'`", paths.join(" ")),
    }]
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    fn variable(name: &str, value: Option<&str>) -> Variable {
        Variable { name: name.into(), value: value.map(str::to_owned) }
    }

    /// What a login shell answers whose rc files are `rc`.
    fn asked(shell: &str, rc: &str, interactive: bool, outside: bool) -> Vec<Variable> {
        let home = tempfile::tempdir().unwrap();
        let rc_files = [".profile", ".zshrc", ".cshrc", ".config/fish/config.fish"];
        for name in rc_files.into_iter().filter(|_| rc != CSH_LOGIN).chain([".login"]) {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "no secret")]
            std::fs::write(path, rc).unwrap();
        }
        let program = home.path().join(shell);
        std::os::unix::fs::symlink(std::path::Path::new("/usr/bin").join(shell), &program).unwrap();
        let mut command = Command::new(&program);
        command.args(["-c", &question(interactive, outside)]).env_clear().envs([
            ("HOME", home.path().as_os_str()),
            ("SHELL", program.as_os_str()),
            ("PATH", "/usr/bin:/bin".as_ref()),
            ("AWS_ROLE_ARN", "outside".as_ref()),
        ]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script("mark").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.ends_with(&end("mark")), "{shell}: {text}");
        answer(&text, "mark")
    }

    const CSH_LOGIN: &str = "printf 'no newline'\nsetenv AWS_PROFILE corp\n";

    #[test]
    fn what_only_a_login_of_csh_reads_counts_for_a_person_and_not_for_a_command() {
        for shell in ["tcsh", "bsd-csh"] {
            assert_eq!(
                asked(shell, CSH_LOGIN, true, false),
                [variable("AWS_PROFILE", Some("corp"))],
                "{shell}"
            );
            assert_eq!(asked(shell, CSH_LOGIN, false, false), [], "{shell}");
        }
    }

    #[test]
    fn every_login_shell_tells_what_its_rc_files_export() {
        let sh = "echo Welcome; echo mark AWS_NOTHING x; read answer; printf title\nexport AWS_PROFILE=corp AWS_ACCESS_KEY_ID=CANARY AWS_CONFIG_FILE='/a b'\n";
        let fish = "echo Welcome; printf title; set -gx AWS_PROFILE corp; set -gx AWS_ACCESS_KEY_ID CANARY; set -gx AWS_CONFIG_FILE '/a b'\n";
        let csh = "echo Welcome; printf title\nsetenv AWS_PROFILE corp\nsetenv AWS_ACCESS_KEY_ID CANARY\nsetenv AWS_CONFIG_FILE '/a b'\n";
        let found = [
            variable("AWS_PROFILE", Some("corp")),
            variable("AWS_ACCESS_KEY_ID", None),
            variable("AWS_CONFIG_FILE", None),
        ];
        for (shell, rc) in [
            ("bash", sh),
            ("dash", sh),
            ("ksh", sh),
            ("zsh", sh),
            ("fish", fish),
            ("tcsh", csh),
            ("bsd-csh", csh),
        ] {
            assert_eq!(asked(shell, rc, true, false), found, "{shell}");
            let outside = asked(shell, rc, true, true);
            assert!(outside.contains(&variable("AWS_ROLE_ARN", Some("outside"))), "{shell}: {outside:?}");
            // A command's shell reads fewer files.
            let command = asked(shell, rc, false, false);
            assert_eq!(
                command.is_empty(),
                !["fish", "tcsh", "bsd-csh"].contains(&shell),
                "{shell}: {command:?}"
            );
        }
    }

    #[test]
    fn a_profile_that_leads_to_us_is_not_in_the_way() {
        let exported = [variable("AWS_DEFAULT_PROFILE", Some("b")), variable("AWS_PROFILE", Some("a"))];
        assert_eq!(profile(&exported), Some("a"));
        assert_eq!(in_login_shell("h", &exported, true), []);
        assert_eq!(in_login_shell("h", &exported, false).len(), 2);
        assert_eq!(
            in_login_shell("h", &[variable("AWS_PROFILE", None)], true).len(),
            1,
            "an odd name has no alias"
        );
        let keys = in_login_shell("h", &[variable("AWS_ACCESS_KEY_ID", None)], true);
        assert!(keys[0].to_string().contains("`AWS_ACCESS_KEY_ID`"), "{keys:?}");
    }

    #[test]
    fn only_credentials_of_the_default_profile_are_in_the_way() {
        let harmless = "[default]\nregion = x\noutput = json\n[profile a]\nrole_arn = r\n";
        assert_eq!(in_files("h", harmless.as_bytes(), b"[a]\naws_access_key_id=\n"), []);
        let found = in_files("h", b"[default]\nsso_session = s\n", b"[default]\naws_access_key_id=\n");
        assert_eq!(found.len(), 2);
        assert!(
            found[0].what.contains("`sso_session`") && found[1].what.contains("/credentials`"),
            "{found:?}"
        );
        let ours = profiles::insert(
            None,
            true,
            &profiles::Mark::new("h", "/d"),
            "[default]\ncredential_process = x\n",
        );
        assert_eq!(in_files("h", ours.text.as_bytes(), b""), []);
    }

    #[test]
    fn a_copied_token_is_named_with_the_command_that_removes_it() {
        assert_eq!(in_caches("h", &[]), []);
        let found = in_caches("h", &["a.json".into(), "b.json".into()]);
        assert!(
            found[0].fix.contains("`ssh h 'rm ~/.aws/sso/cache/a.json ~/.aws/sso/cache/b.json'`"),
            "{found:?}"
        );
    }
}
