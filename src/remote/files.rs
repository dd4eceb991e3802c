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
const SOCKET_SCRIPT: &str = concat!(include_str!("role-file.sh"), include_str!("credential-process.sh"));
const FILE_SCRIPT: &str = concat!(include_str!("role-file.sh"), include_str!("credential-file.sh"));

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
    /// `--linger`: credentials stay when the port and the tokens are gone, so nobody is told of those.
    pub(crate) lingers: bool,
}

/// Where our directory's name leads for somebody who only has our environment or configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reach<'a> {
    /// To our directory or to nothing.
    Ours,
    /// When ours is gone, or on another machine, to whatever another user put there.
    Anybodys,
    /// To our directory from other machines too, whose port may be another user's; or our environment is known there.
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
        // What listens on that port on another machine must not be sent a token, nor asked for credentials without one.
        let port = self.port.filter(|_| !self.lingers && !matches!(self.reach, Reach::Shared(_)));
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
    /// variables; but not with TLS, as some cannot be told whom to trust there, and not where files outlive the port.
    fn config(&self, directory: &str) -> String {
        let mut config = String::from("# Made by broker; removed when it ends.\n");
        for (name, grant, default) in self.profiles() {
            let container = default
                && self.profiles == Profiles::Port
                && self.tls.is_none()
                && !self.lingers
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
mod tests;
