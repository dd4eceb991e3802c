//! What the files say, and that the real sh reads it so.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

fn profile(name: &str) -> ProfileName {
    name.parse().unwrap()
}

pub(super) fn with_layout<T>(name: &str, command: Option<&str>, test: impl FnOnce(&Layout<'_>) -> T) -> T {
    let (profile, other) = (profile(name), profile("other"));
    let token = SecretString::from("Bearer 0123456789abcdef".to_owned());
    let region = "eu-west-1".parse().unwrap();
    test(&Layout {
        port: Some(4144),
        profiles: Profiles::Port,
        default: Grant { profile: &profile, token: &token, region: Some(&region), output: Some("json") },
        others: vec![Grant { profile: &other, token: &token, region: None, output: None }],
        alias: None,
        token_in_environment: false,
        keep_config: false,
        tls: None,
        command,
        below_home: None,
        reach: Reach::Ours,
        lingers: false,
    })
}

pub(super) fn text_of<'a>(files: &'a [File], name: &str) -> &'a str {
    let file = files.iter().find(|file| file.name.as_str() == name).expect(name);
    match &file.content {
        Content::Text(text) => text,
        Content::Secret(secret) => secret.expose_secret(),
    }
}

/// Writes the files as the helper would and runs a script of theirs.
fn run(directory: &Path, layout: &Layout<'_>, script: &str, environment: &[(&str, &str)]) -> String {
    let path = directory.to_str().unwrap();
    let files = layout.files(path);
    for file in &files {
        #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
        std::fs::write(directory.join(file.name.as_str()), text_of(&files, file.name.as_str())).unwrap();
    }
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).env_clear().envs(environment.iter().copied());
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tokens_are_alone_in_their_files_and_come_last() {
    with_layout("team a", Some("true"), |layout| {
        let files = layout.files("/d");
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "config",
                "credentials",
                "shell.sh",
                "run-broker-connect-if-this-is-missing.sh",
                "command.sh",
                "env.sh",
                "env.fish",
                "env.csh",
                "env.ps1",
                "token-team=20a",
                "token-other"
            ]
        );
        assert_eq!(text_of(&files, "credentials"), "");
        let token = layout.default.token;
        assert_eq!(text_of(&files, "token-team=20a"), token.expose_secret());
        for file in files.iter().filter(|file| !file.name.as_str().starts_with("token-")) {
            let text = text_of(&files, file.name.as_str());
            assert!(!text.contains("Bearer") && !text.contains(&token.expose_secret()[7..]), "{file:?}");
        }
    });
}

#[test]
fn on_a_port_the_default_is_left_to_the_container_variables_and_others_are_fetched() {
    let expected = |header: &str| {
        let settings = "region = eu-west-1\noutput = json\n";
        let script = "/bin/sh /d/run-broker-connect-if-this-is-missing.sh /d other /slot/other 4144";
        format!(
            "# Made by broker; removed when it ends.\n[default]\n{settings}{header}{settings}\
             [profile other]\ncredential_process = {script}\n"
        )
    };
    for (name, header) in
        [("corp", "[profile corp]\n"), ("team a", "[profile \"team a\"]\n"), ("a#b", "[profile \"a#b\"]\n")]
    {
        with_layout(name, None, |layout| assert_eq!(layout.config("/d"), expected(header)));
    }
    with_layout("default", None, |layout| assert_eq!(layout.config("/d").matches('[').count(), 2));
}

#[test]
fn what_rc_files_name_as_the_profile_leads_to_the_default_role_unless_it_is_served() {
    for (alias, sections) in [("stale", 4), ("other", 3), ("corp", 3), ("default", 3)] {
        let alias = profile(alias);
        with_layout("corp", None, |layout| {
            let layout = Layout {
                profiles: Profiles::Socket,
                alias: Some(&alias),
                default: layout.default,
                others: layout.others.clone(),
                ..*layout
            };
            let config = layout.config("/d");
            assert_eq!(config.matches("[").count(), sections, "{config}");
            if alias.as_str() == "stale" {
                let (_, section) = config.split_once("[profile stale]\n").unwrap();
                assert!(section.lines().nth(2).unwrap().ends_with(" /d corp / 4144"), "{config}");
            }
        });
    }
}

#[test]
fn processes_that_no_shell_of_ours_starts_have_a_way_for_every_profile() {
    for profiles in [Profiles::Port, Profiles::Socket, Profiles::Files] {
        with_layout("corp", None, |layout| {
            let layout =
                Layout { profiles, default: layout.default, others: layout.others.clone(), ..*layout };
            let wanted = layout.sections("/d");
            let names: Vec<_> = wanted.iter().map(|wanted| wanted.profile.as_str()).collect();
            assert_eq!(names, ["default", "corp", "other"]);
            for wanted in &wanted {
                let port = profiles != Profiles::Files;
                assert!(
                    wanted.section.contains("credential_process = /bin/sh /d/")
                        && wanted.section.ends_with(" 4144\n") == port
                );
            }
        });
    }
}

#[test]
fn a_profile_has_a_process_that_needs_neither_shell_nor_quotes() {
    with_layout("team ä", None, |layout| {
        let layout =
            Layout { profiles: Profiles::Socket, default: layout.default, others: vec![], ..*layout };
        let config = layout.config("/run/user/1000/broker-1000/4144");
        let lines: Vec<_> = config.lines().filter(|line| line.starts_with("credential_process")).collect();
        assert_eq!(lines.len(), 2, "{config}");
        for line in lines {
            let (_, command) = line.split_once(" = ").unwrap();
            assert!(
                command.bytes().all(|b| b.is_ascii_alphanumeric() || b" /._=%-".contains(&b)),
                "{command}"
            );
        }
    });
}

#[test]
fn a_home_whose_path_is_not_known_is_reached_through_the_variable() {
    with_layout("team ä", None, |layout| {
        let default = layout.default;
        let below_home = Some(".cache/broker-7/x");
        let layout =
            Layout { port: None, profiles: Profiles::Files, default, others: vec![], below_home, ..*layout };
        let home = tempfile::tempdir().unwrap();
        let real = home.path().join(".cache/broker-7/x");
        std::fs::create_dir_all(&real).unwrap();
        // What the SFTP server calls it.
        let files = layout.files("/chroot/.cache/broker-7/x");
        #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
        for name in [CREDENTIAL_PROCESS_SH, "config"] {
            std::fs::write(real.join(name), text_of(&files, name)).unwrap();
        }
        #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
        std::fs::write(real.join(role_file(default.profile).as_str()), "{}\n").unwrap();
        let config = text_of(&files, "config");
        let line = config.lines().find(|line| line.starts_with("credential_process = ")).unwrap();
        let (_, line) = line.split_once(" = ").unwrap();
        let output = Command::new("/bin/sh").args(["-c", line]).env("HOME", home.path()).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "{}\n");
        // As botocore splits it.
        assert_eq!(line.split('\'').count(), 3, "{line}");
    });
}

#[test]
fn what_other_machines_see_is_used_on_its_own_machine_alone() {
    let directory = tempfile::tempdir().unwrap();
    let here = Command::new("uname").arg("-n").output().unwrap();
    let here = String::from_utf8(here.stdout).unwrap().trim().to_owned();
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
    for (host, boot, says) in [
        (&*here, &*boot, "no valid credentials here"),
        ("it's another", &boot, "the tunnel ends on it's another, and this is another machine"),
        (&here, "another boot", "this is another machine"),
    ] {
        with_layout("corp", None, |layout| {
            for profiles in [Profiles::Port, Profiles::Files] {
                let reach = Reach::Shared(Machine { host, boot });
                let layout = Layout { profiles, reach, default: layout.default, others: vec![], ..*layout };
                let environment = layout.environment("/d");
                assert!(environment.set.iter().all(|(name, _)| !name.contains("CONTAINER")));
                assert_eq!(layout.config("/d").matches("credential_process").count(), 2);
                if profiles == Profiles::Files {
                    let path = directory.path().to_str().unwrap();
                    let script = format!("sh {path}/{CREDENTIAL_PROCESS_SH} {path} corp / 2>&1 || true");
                    let output = run(directory.path(), &layout, &script, &[("PATH", "/usr/bin:/bin")]);
                    assert!(output.contains(says), "{host}/{boot}: {output}");
                }
            }
        });
    }
}

#[test]
fn what_outlives_us_runs_only_what_is_ours() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("d");
    with_layout("corp", None, |layout| {
        let layout = Layout {
            profiles: Profiles::Files,
            reach: Reach::Anybodys,
            default: layout.default,
            others: vec![],
            ..*layout
        };
        let path = directory.to_str().unwrap();
        let sections = layout.sections(path);
        let line = sections[0].section.lines().last().unwrap().strip_prefix("credential_process = ").unwrap();
        // Neither a comment for any reader of such files, nor more words than four for those that split it.
        assert!(!line.contains(" ;") && !line.contains('#') && line.matches('\'').count() == 2, "{line}");
        let told = || {
            let output = Command::new("/bin/sh").args(["-c", line]).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        assert_eq!(told(), "broker: there is no tunnel here; run broker connect\n");
        std::fs::create_dir(&directory).unwrap();
        let script = directory.join(CREDENTIAL_PROCESS_SH);
        #[expect(clippy::disallowed_methods, reason = "no secret")]
        std::fs::write(script, "echo ours >&2; exit 1\n").unwrap();
        assert_eq!(told(), "ours\n");
        // Only root can make a directory of somebody else's.
        if std::os::unix::fs::chown(&directory, Some(65534), None).is_ok() {
            assert_eq!(told(), "broker: there is no tunnel here; run broker connect\n");
        }
    });
}

#[test]
fn where_credentials_lie_in_files_there_is_no_token() {
    with_layout("corp", None, |layout| {
        let default = layout.default;
        let layout = Layout { port: None, profiles: Profiles::Files, default, others: vec![], ..*layout };
        assert!(layout.files("/d").iter().all(|file| matches!(file.content, Content::Text(_))));
        let environment = layout.environment("/d");
        assert!(environment.unset.contains(&"AWS_CONTAINER_CREDENTIALS_FULL_URI"));
        assert!(environment.set.iter().all(|(name, _)| !name.contains("CONTAINER")));
    });
}

#[test]
fn what_lingers_is_found_without_us_and_not_when_its_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let path_only = [("PATH", "/usr/bin:/bin")];
    #[expect(clippy::disallowed_methods, reason = "no secret")]
    let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    for profiles in [Profiles::Port, Profiles::Socket, Profiles::Files] {
        with_layout("corp", None, |layout| {
            let layout = Layout {
                port: Some(1),
                profiles,
                lingers: true,
                default: layout.default,
                others: vec![],
                ..*layout
            };
            // A port that is dead one day is nobody's business.
            let environment = layout.environment(path);
            assert!(environment.set.iter().all(|(name, _)| !name.contains("CONTAINER")));
            assert_eq!(layout.config(path).matches("credential_process").count(), 2);
            let script = format!("sh {path}/{CREDENTIAL_PROCESS_SH} {path} corp / 1 2>&1 || echo no");
            let ask = || run(directory.path(), &layout, &script, &path_only);
            assert!(ask().ends_with("no\n"), "{profiles:?}");
            put("role-corp.json", "");
            assert!(ask().ends_with("no\n"), "{profiles:?}");
            put("role-corp.json", "{role}\n");
            assert_eq!(ask(), "{role}\n", "{profiles:?}");
            put(".timer", "1\n99999999999\n");
            assert_eq!(ask(), "{role}\n", "{profiles:?}");
            // What should have removed it has not.
            put(".timer", "1\n1000000000\n");
            assert!(ask().ends_with("no\n"), "{profiles:?}");
            assert!(!directory.path().join("role-corp.json").exists(), "{profiles:?}");
            std::fs::remove_file(directory.path().join(".timer")).unwrap();
        });
    }
}

#[test]
fn an_output_format_cannot_add_a_setting() {
    with_layout("corp", None, |layout| {
        let default = Grant { output: Some("json\ncredential_process = x"), ..layout.default };
        let layout = Layout { default, others: vec![], ..*layout };
        assert!(
            !layout.config("/d").contains("credential_process") && !layout.config("/d").contains("output")
        );
    });
}

#[test]
fn the_login_shell_gets_the_message_of_the_day_and_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let shell = directory.path().join("my shell");
    #[expect(clippy::disallowed_methods, reason = "no secret")]
    std::fs::write(&shell, "#!/bin/sh\necho \"$0 $*\"; env\n").unwrap();
    std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = directory.path().to_str().unwrap();
    let environment = [
        ("SHELL", shell.to_str().unwrap()),
        ("HOME", home),
        ("AWS_PROFILE", "stale"),
        ("PATH", "/usr/bin:/bin"),
    ];
    with_layout("corp", None, |layout| {
        let output = run(directory.path(), layout, &shell_command(home), &environment);
        assert!(output.contains(&format!("{} -l\n", shell.display())), "{output}");
        assert!(output.contains(&format!("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={home}/token-corp\n")));
        assert!(!output.contains("AWS_PROFILE"));
        for motd in ["/run/motd.dynamic", "/etc/motd"] {
            let motd = std::fs::read_to_string(motd).unwrap_or_default();
            assert!(output.contains(&motd), "{output}");
        }
        let greeting = |output: &str| output.find("my shell").unwrap();
        #[expect(clippy::disallowed_methods, reason = "no secret")]
        std::fs::write(directory.path().join(".hushlogin"), "").unwrap();
        let hushed = run(directory.path(), layout, &shell_command(home), &environment);
        assert!(greeting(&hushed) <= home.len() + 1, "{hushed}");
    });
}

#[test]
fn a_login_shell_that_is_not_there_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    with_layout("corp", Some("echo $0 $AWS_REGION"), |layout| {
        let command = command_command(directory.path().to_str().unwrap());
        for shell in ["", "/nowhere/sh", "/etc/passwd", "/"] {
            assert_eq!(run(directory.path(), layout, &command, &[("SHELL", shell)]), "/bin/sh eu-west-1\n");
        }
        assert_eq!(run(directory.path(), layout, &command, &[]), "/bin/sh eu-west-1\n");
    });
}

#[test]
fn different_profiles_have_different_files() {
    let long = |end: &str| profile(&format!("{}{end}", "é".repeat(60)));
    assert_eq!(token_file(&profile("a=20b")).as_str(), "token-a=3D20b");
    assert_ne!(token_file(&long("1")), token_file(&long("2")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn every_command_reaches_the_login_shell_unchanged(word in "[^\\x00/]{0,30}") {
        // The login shell is one that prints its last argument.
        let directory = tempfile::tempdir().unwrap();
        let shell = directory.path().join("printer");
        #[expect(clippy::disallowed_methods, reason = "no secret")]
        std::fs::write(&shell, "#!/bin/sh\nprintf '%s|%s' \"$1\" \"$2\"\n").unwrap();
        std::fs::set_permissions(&shell, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = with_layout("corp", Some(&word), |layout| {
            let command = command_command(directory.path().to_str().unwrap());
            run(directory.path(), layout, &command, &[("SHELL", shell.to_str().unwrap())])
        });
        prop_assert_eq!(output, format!("-c|{word}"));
    }

    #[test]
    fn every_profile_has_a_token_file(name in "\\PC{1,40}") {
        if let Ok(profile) = name.parse::<ProfileName>() {
            prop_assert!(token_file(&profile).as_str().starts_with("token-"));
        }
    }
}
