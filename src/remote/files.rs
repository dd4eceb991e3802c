//! Which files lie in our directory on the host, and what is in them. Pure.
//!
//! Tokens come last, so that a disk that fills up half-way has no secret on it.

use std::fmt::Write as _;

use secrecy::SecretString;

use super::{
    exports::{ConfigFiles, Endpoint, Environment, Settings, Shell, Token, TrustFiles},
    install::{Content, File, FileName},
    managed::Wanted,
    quoted,
};
use crate::names::{ProfileName, Region};

const CONFIG: &str = "config";
const CREDENTIALS: &str = "credentials";
/// What to trust at the port, where that speaks TLS.
const CA: &str = "ca.pem";
const ENV_SH: &str = "env.sh";
const ENV_FISH: &str = "env.fish";
const ENV_CSH: &str = "env.csh";
const ENV_PS1: &str = "env.ps1";
const SHELL_SH: &str = "shell.sh";
const COMMAND_SH: &str = "command.sh";
/// When a process runs it although the tunnel is gone, its shell can only say that there is no such file: so that
/// sentence tells what to do.
const CREDENTIAL_PROCESS_SH: &str = "run-broker-connect-if-this-is-missing.sh";
const SOCKET_SCRIPT: &str = include_str!("credential-process.sh");
const FILE_SCRIPT: &str = include_str!("credential-file.sh");

/// The longest encoded profile name that is used whole in a file name.
const LONGEST_PROFILE: usize = 128;

/// What a tunnel puts on the host.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// The port of the host that leads to us, if there is one.
    pub(crate) port: Option<u16>,
    pub(crate) profiles: Profiles,
    /// The grant for whatever asks without a name.
    pub(crate) default: Grant<'a>,
    pub(crate) others: Vec<Grant<'a>>,
    /// A name that the host's rc files put into `AWS_PROFILE` behind us: it leads to the default grant.
    pub(crate) alias: Option<&'a ProfileName>,
    /// `--token env`: the default grant's token is in the environment, and so in `env.sh` and its siblings.
    pub(crate) token_in_environment: bool,
    /// `--remote-config keep`: the host's own configuration stays in force.
    pub(crate) keep_config: bool,
    /// The command after `--`, as the login shell is to read it.
    pub(crate) command: Option<&'a str>,
    /// The certificate that answers at the port (`--tls`).
    pub(crate) tls: Option<Tls<'a>>,
    /// Our directory as programs on the host reach it from their `$HOME`, where its path is not known.
    pub(crate) below_home: Option<&'a str>,
    /// Who else may give our directory's name to something of theirs, or read it from elsewhere.
    pub(crate) reach: Reach<'a>,
}

/// Where our directory's name leads for somebody who only has our environment or configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach<'a> {
    /// To our directory or to nothing.
    Ours,
    /// When ours is gone, or on another machine, to whatever another user put there.
    Anybodys,
    /// To our directory from other machines too, whose port may be another user's.
    Shared(Machine<'a>),
}

/// What tells a machine from others that share its home directories.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Machine<'a> {
    /// `uname -n`.
    pub(crate) host: &'a str,
    /// Linux's boot id, or nothing.
    pub(crate) boot: &'a str,
}

/// What the host has to know of the certificate at the port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tls<'a> {
    /// The name that it is for.
    pub(crate) host: &'a str,
    /// PEM; `credential_process` trusts these and no others.
    pub(crate) anchors: &'a str,
    /// `None` for a certificate that programs there trust already, or else are not told to.
    pub(crate) trusted: Option<Trusted>,
}

/// How SDKs that can be told get to trust a CA that was made for this tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trusted {
    /// The name under which OpenSSL looks for it in a directory.
    pub(crate) name: &'static str,
    /// Whether the host's own CAs lie in a directory, so that ours can be a second one.
    pub(crate) in_directory: bool,
}

/// How `--profile NAME` gets its credentials on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profiles {
    /// Through the port. The container variables serve the default grant there, which need no program on the host.
    Port,
    /// Through the unix socket `s` in our directory; through the port, where there is one, if no program knows sockets.
    Socket,
    /// From files in our directory.
    Files,
}

/// One grant as the host sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant<'a> {
    pub(crate) profile: &'a ProfileName,
    /// What SDKs send as `Authorization`: the whole header value.
    pub(crate) token: &'a SecretString,
    pub(crate) region: Option<&'a Region>,
    /// The output format of the profile on the laptop; anything but a plain word is left out.
    pub(crate) output: Option<&'a str>,
}

impl Layout<'_> {
    /// Returns the environment of shells and commands, for files that lie in `directory`.
    pub(crate) fn environment(&self, directory: &str) -> Environment {
        let path = |name: &str| format!("{directory}/{name}");
        let token = path(token_file(self.default.profile).as_str());
        let (config, credentials) = (path(CONFIG), path(CREDENTIALS));
        // A token that lies where other machines see it must not be sent to what listens on that port there.
        let port = self.port.filter(|_| !matches!(self.reach, Reach::Shared(_)));
        Environment::new(Settings {
            endpoint: port.map(|port| {
                let url = url(port, self.tls.map(|tls| tls.host));
                let token = if self.token_in_environment {
                    Token::Environment(self.default.token.clone())
                } else {
                    Token::File(&token)
                };
                Endpoint { url, name: self.tls.map(|tls| tls.host), token }
            }),
            trust: self.tls.filter(|_| self.port.is_some()).and_then(|tls| tls.trusted).map(|trusted| {
                TrustFiles { file: path(CA), directory: trusted.in_directory.then(|| directory.to_owned()) }
            }),
            region: self.default.region,
            config: (!self.keep_config).then_some(ConfigFiles { config: &config, credentials: &credentials }),
        })
    }

    /// Returns every file, for `directory`, which needs no quoting.
    pub(crate) fn files(&self, directory: &str) -> Vec<File> {
        let text = |name: &str, text: String| File { name: fixed(name), content: Content::text(text) };
        let mut files = vec![
            text(CONFIG, self.config(directory)),
            text(CREDENTIALS, String::new()),
            text(SHELL_SH, shell_sh(directory)),
        ];
        let script = match self.profiles {
            Profiles::Port | Profiles::Socket => SOCKET_SCRIPT,
            Profiles::Files => FILE_SCRIPT,
        };
        let script = match self.reach {
            Reach::Shared(machine) => machine.only() + script,
            Reach::Ours | Reach::Anybodys => script.to_owned(),
        };
        files.push(text(CREDENTIAL_PROCESS_SH, script));
        if let Some(tls) = self.tls {
            let trusted = tls.trusted.map(|trusted| trusted.name);
            files.extend(std::iter::once(CA).chain(trusted).map(|name| text(name, tls.anchors.to_owned())));
        }
        if let Some(command) = self.command {
            files.push(text(COMMAND_SH, command_sh(directory, command)));
        }
        let environment = self.environment(directory);
        for (name, shell) in [
            (ENV_SH, Shell::Sh),
            (ENV_FISH, Shell::Fish),
            (ENV_CSH, Shell::Csh),
            (ENV_PS1, Shell::PowerShell),
        ] {
            files.push(File { name: fixed(name), content: Content::Text(shell.render(&environment)) });
        }
        if self.profiles == Profiles::Files && self.port.is_none() {
            return files;
        }
        // The default grant's file is there with `--token env` too, for processes that no shell of ours starts.
        files.extend(std::iter::once(&self.default).chain(&self.others).map(|grant| File {
            name: token_file(grant.profile),
            content: Content::Secret(grant.token.clone()),
        }));
        files
    }

    /// Returns the configuration for SDKs on the host.
    ///
    /// With [`Profiles::Port`] the default grant's profiles have only a region, which leaves SDKs to the container
    /// variables; but not with TLS, as some cannot be told whom to trust there.
    fn config(&self, directory: &str) -> String {
        let mut config = String::from("# Made by broker; removed when it ends.\n");
        for (name, grant, default) in self.profiles() {
            let container = default
                && self.profiles == Profiles::Port
                && self.tls.is_none()
                && !matches!(self.reach, Reach::Shared(_));
            let process = (!container).then(|| self.process(directory, grant, default, false));
            section(&mut config, &header(name), grant, process);
        }
        config
    }

    /// Returns the sections for the host's own configuration, which processes read that no shell of ours starts.
    pub(crate) fn sections(&self, directory: &str) -> Vec<Wanted> {
        let wanted = |(name, grant, default): (&str, &Grant<'_>, bool)| {
            let mut text = String::new();
            let process = self.process(directory, grant, default, self.reach == Reach::Anybodys);
            section(&mut text, &header(name), grant, Some(process));
            Wanted { profile: name.to_owned(), section: text }
        };
        self.profiles().map(wanted).collect()
    }

    /// Returns the name of every profile on the host with its grant, and whether that is the default one.
    fn profiles(&self) -> impl Iterator<Item = (&str, &Grant<'_>, bool)> {
        let named = |grant: &&Grant<'_>| grant.profile.as_str() != "default";
        // `default` is the default grant, whatever its name: first come, first served.
        let all = || std::iter::once(&self.default).chain(&self.others);
        let alias = self
            .alias
            .map(ProfileName::as_str)
            .filter(|alias| *alias != "default" && !all().any(|grant| grant.profile.as_str() == *alias));
        std::iter::once(("default", &self.default, true))
            .chain(alias.map(|alias| (alias, &self.default, true)))
            .chain(Some(&self.default).filter(named).map(|grant| (grant.profile.as_str(), grant, true)))
            .chain(self.others.iter().filter(named).map(|grant| (grant.profile.as_str(), grant, false)))
    }

    /// Returns the `credential_process` of a grant: words for SDKs that split them, a line for those that run a shell.
    ///
    /// `outlives`: it stays in force when our directory is gone, and must not run what another user puts there then.
    fn process(&self, directory: &str, grant: &Grant<'_>, default: bool, outlives: bool) -> String {
        let path = if default { "/".to_owned() } else { format!("/slot/{}", percent_encoded(grant.profile)) };
        let profile = encoded(grant.profile);
        let port = match (self.profiles, self.port) {
            (Profiles::Port | Profiles::Socket, Some(port)) => match self.tls {
                None => format!(" {port}"),
                Some(tls) => format!(" {port} {}", tls.host),
            },
            _ => String::new(),
        };
        match self.below_home {
            // Once inside, a directory that is ours stays ours, whatever its name leads to.
            None if outlives => format!(
                "/bin/sh -c 'cd {directory} 2>/dev/null && [ -O . ] && \
                 exec /bin/sh ./{CREDENTIAL_PROCESS_SH} {directory} {profile} {path}{port}; \
                 echo \"broker: there is no tunnel here; run broker connect\" >&2; exit 1'"
            ),
            None => format!("/bin/sh {directory}/{CREDENTIAL_PROCESS_SH} {directory} {profile} {path}{port}"),
            // For SDKs that split words as a shell does, and for those that run one.
            Some(below) => format!(
                "/bin/sh -c 'exec /bin/sh \"$HOME/{below}/{CREDENTIAL_PROCESS_SH}\" \"$HOME/{below}\" {profile} {path}'"
            ),
        }
    }
}

/// Returns where the default grant is asked for. With TLS, `tls` is the name on the certificate.
pub(crate) fn url(port: u16, tls: Option<&str>) -> String {
    match tls {
        None => format!("http://127.0.0.1:{port}/"),
        Some(name) => format!("https://{name}:{port}/"),
    }
}

impl Machine<'_> {
    /// Returns the beginning of a script that goes on on this machine only.
    fn only(&self) -> String {
        let (machine, host) = (quoted(&format!("{}/{}", self.host, self.boot)), quoted(self.host));
        format!(
            "# The home directory is all that we may write here, and other machines may see it.\n\
             m=\n\
             [ ! -r {BOOT_ID} ] || IFS= read -r m < {BOOT_ID}\n\
             if [ \"$(uname -n)/$m\" != {machine} ]; then\n  \
               echo \"broker: the tunnel ends on\" {host}\", and this is another machine\" >&2\n  \
               exit 1\n\
             fi\n"
        )
    }
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn section(config: &mut String, header: &str, grant: &Grant<'_>, process: Option<String>) {
    put(config, format_args!("[{header}]\n"));
    if let Some(region) = grant.region {
        put(config, format_args!("region = {region}\n"));
    }
    let plain =
        |output: &&str| !output.is_empty() && output.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if let Some(output) = grant.output.filter(plain) {
        put(config, format_args!("output = {output}\n"));
    }
    if let Some(process) = process {
        put(config, format_args!("credential_process = {process}\n"));
    }
}

/// Returns the command for a channel with a terminal: the login shell, in our environment.
pub(crate) fn shell_command(directory: &str) -> String {
    format!("exec /bin/sh {directory}/{SHELL_SH}")
}

/// Returns the command for a channel that runs [`Layout::command`].
pub(crate) fn command_command(directory: &str) -> String {
    format!("exec /bin/sh {directory}/{COMMAND_SH}")
}

/// Returns what to paste into a shell that we did not start; `None` where the host has no file for it.
pub(crate) fn source_line(shell: Shell, directory: &str) -> Option<String> {
    let (verb, file) = match shell {
        Shell::Sh | Shell::Bash | Shell::Zsh => (".", ENV_SH),
        Shell::Fish => ("source", ENV_FISH),
        Shell::Csh => ("source", ENV_CSH),
        Shell::PowerShell => (".", ENV_PS1),
        Shell::Cmd | Shell::Json | Shell::Dotenv => return None,
    };
    Some(format!("{verb} {directory}/{file}"))
}

/// Returns the name of the file with the token of `profile`.
///
/// Bytes other than letters, digits, `.`, `_` and `-` are written as `=XX`, so that different profiles have
/// different files; a very long name is cut and told apart by its digest.
pub(crate) fn token_file(profile: &ProfileName) -> FileName {
    fixed(&format!("token-{}", encoded(profile)))
}

/// Returns the name of the file with the role credentials of `profile`, where they lie in files.
pub(crate) fn role_file(profile: &ProfileName) -> FileName {
    fixed(&format!("role-{}.json", encoded(profile)))
}

fn encoded(profile: &ProfileName) -> String {
    let mut encoded = String::new();
    for byte in profile.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"._-".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            put(&mut encoded, format_args!("={byte:02X}"));
        }
    }
    if encoded.len() > LONGEST_PROFILE {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, profile.as_str().as_bytes());
        encoded.truncate(LONGEST_PROFILE / 2);
        // No encoded name holds `=-`.
        encoded.push_str("=-");
        for byte in digest.as_ref().iter().take(16) {
            put(&mut encoded, format_args!("{byte:02x}"));
        }
    }
    encoded
}

/// Returns the name for a URL's path: unreserved characters (RFC 3986, section 2.3), the rest percent-encoded.
fn percent_encoded(profile: &ProfileName) -> String {
    let mut encoded = String::new();
    for byte in profile.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"._-~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            put(&mut encoded, format_args!("%{byte:02X}"));
        }
    }
    encoded
}

/// Returns the section header of a profile; botocore splits it as a shell would, so odd names are quoted.
fn header(name: &str) -> String {
    if name == "default" {
        name.to_owned()
    } else if name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@+:=,".contains(&b)) {
        format!("profile {name}")
    } else {
        format!("profile \"{name}\"")
    }
}

// sshd prints no message of the day when a command is given, so we do as it would. The program to run is kept
// in $1, so that no variable of ours stays in the environment.
fn shell_sh(directory: &str) -> String {
    format!(
        "if [ ! -e \"$HOME/.hushlogin\" ]; then\n  \
           [ ! -r /run/motd.dynamic ] || cat /run/motd.dynamic\n  \
           [ ! -r /etc/motd ] || cat /etc/motd\n\
         fi\n\
         . {directory}/{ENV_SH}\n\
         {LOGIN_SHELL}\
         {BSD}\
         exec \"$1\" -l\n"
    )
}

fn command_sh(directory: &str, command: &str) -> String {
    let command = quoted(command);
    format!(". {directory}/{ENV_SH}\n{LOGIN_SHELL}exec \"$1\" -c {command}\n")
}

const LOGIN_SHELL: &str = "set -- \"${SHELL:-/bin/sh}\"\n\
                           if [ ! -f \"$1\" ] || [ ! -x \"$1\" ]; then set -- /bin/sh; fi\n";

// The sh of FreeBSD has no `-l`, so what a login shell reads is read here; other BSDs do not mind.
const BSD: &str = "case $1 in (/bin/sh)\n  \
                     case $(uname -s) in (*BSD|DragonFly)\n    \
                       [ ! -r /etc/profile ] || . /etc/profile\n    \
                       [ ! -r \"$HOME/.profile\" ] || . \"$HOME/.profile\"\n    \
                       exec /bin/sh\n  \
                     esac\n\
                   esac\n";

fn fixed(name: &str) -> FileName {
    #[expect(clippy::expect_used, reason = "our own names, and encoded ones, are safe and short")]
    FileName::new(name).expect("a safe name")
}

fn put(text: &mut String, piece: std::fmt::Arguments<'_>) {
    #[expect(clippy::expect_used, reason = "a String takes everything")]
    text.write_fmt(piece).expect("infallible");
}

#[cfg(test)]
mod shells;

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command};

    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn profile(name: &str) -> ProfileName {
        name.parse().unwrap()
    }

    pub(super) fn with_layout<T>(
        name: &str,
        command: Option<&str>,
        test: impl FnOnce(&Layout<'_>) -> T,
    ) -> T {
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
        for (name, header) in [
            ("corp", "[profile corp]\n"),
            ("team a", "[profile \"team a\"]\n"),
            ("a#b", "[profile \"a#b\"]\n"),
        ] {
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
            let lines: Vec<_> =
                config.lines().filter(|line| line.starts_with("credential_process")).collect();
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
            let layout = Layout {
                port: None,
                profiles: Profiles::Files,
                default,
                others: vec![],
                below_home,
                ..*layout
            };
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
            let output =
                Command::new("/bin/sh").args(["-c", line]).env("HOME", home.path()).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), "{}\n");
            // As botocore splits it.
            assert_eq!(line.split('\'').count(), 3, "{line}");
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
    fn an_output_format_cannot_add_a_setting() {
        with_layout("corp", None, |layout| {
            let default = Grant { output: Some("json\ncredential_process = x"), ..layout.default };
            let layout = Layout { default, others: vec![], ..*layout };
            assert!(
                !layout.config("/d").contains("credential_process")
                    && !layout.config("/d").contains("output")
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
                assert_eq!(
                    run(directory.path(), layout, &command, &[("SHELL", shell)]),
                    "/bin/sh eu-west-1\n"
                );
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
}
