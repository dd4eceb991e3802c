//! What we make of a configuration, compared with what `ssh -G` makes of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

/// How many configurations are generated and compared, from the same seed at every run.
const CONFIGS: u64 = 1_120;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// `ssh` spends its time starting; two at a time keep a machine of two cores busy.
const WORKERS: u64 = 2;

/// What is printed, by keyword.
type Printed = BTreeMap<String, Vec<String>>;

/// What `ssh` prints and we do not: its own lists of algorithms, and what distributions add.
const THEIRS_ALONE: [&str; 13] = [
    "casignaturealgorithms",
    "ciphers",
    "gssapikeyexchange",
    "gssapikexalgorithms",
    "gssapirenewalforcesrekey",
    "gssapitrustdns",
    "hostbasedacceptedalgorithms",
    "hostkeyalgorithms",
    "kexalgorithms",
    "macs",
    "obscurekeystroketiming",
    "pubkeyacceptedalgorithms",
    "warnweakcrypto",
];

/// Defaults that differ: ours on purpose (see `print`), or a distribution's from OpenSSH's.
const DEFAULTS_DIFFER: [&str; 7] = [
    "connecttimeout",
    "forwardx11trusted",
    "gssapiauthentication",
    "identityfile",
    "ipqos",
    "serveraliveinterval",
    "xauthlocation",
];

/// One configuration, a host, and what is on the command line.
struct Case {
    text: String,
    config: PathBuf,
    request: Request,
}

#[test]
fn generated_configurations_mean_what_they_mean_to_ssh() {
    let directory = tempfile::tempdir().unwrap();
    let compare = |worker: u64| {
        let (mut read, mut refused, mut wrong) = (0, 0, Vec::new());
        for number in (0..CONFIGS).filter(|number| number % WORKERS == worker) {
            let case = Case::generate(number, directory.path());
            let (theirs, ours) = (case.ssh(), case.ours());
            match (theirs, ours) {
                (Ok(theirs), Ok(ours)) => {
                    wrong.extend(case.differences(&theirs, &ours).map(|what| case.told(number, &what)));
                    read += 1;
                }
                (Err(_), Err(_)) => refused += 1,
                (Ok(_), Err(ours)) => wrong.push(case.told(number, &format!("we refuse it: {ours}"))),
                (Err(theirs), Ok(_)) => wrong.push(case.told(number, &format!("ssh refuses it: {theirs}"))),
            }
        }
        (read, refused, wrong)
    };
    let counted = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || compare(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    let read: usize = counted.iter().map(|(read, ..)| read).sum();
    let refused: usize = counted.iter().map(|(_, refused, _)| refused).sum();
    let wrong: Vec<_> = counted.iter().flat_map(|(.., wrong)| wrong).collect();
    let shown: String = wrong.iter().take(10).map(|told| format!("{told}\n")).collect();
    assert!(wrong.is_empty(), "{} differences, such as:\n{shown}", wrong.len());
    let told = format!(
        "seed {SEED:#x}: {read} configurations mean the same to ssh, {refused} are refused by both\n"
    );
    io::Write::write_all(&mut io::stdout(), told.as_bytes()).unwrap();
    assert!(read > 1_000 && refused > 20, "the generator makes both kinds: {read} read, {refused} refused");
}

impl Case {
    fn generate(number: u64, directory: &Path) -> Self {
        let mut random = Random(number.wrapping_mul(SEED) | 1);
        let directory = directory.join(number.to_string());
        fs::create_dir(&directory).unwrap();
        let text = configuration(&mut random, &directory, 0);
        let config = write(&directory.join("config"), &text);
        let typed = *random.pick(&["web", "10.0.0.1", "Web1", "db.example.com", "gate", "127.1"]);
        let mut request = Request { host: typed.to_owned(), ..Request::default() };
        if random.below(4) == 0 {
            request.user = Some("typed".to_owned());
        }
        if random.below(6) == 0 {
            request.port = Some(2022);
        }
        if random.below(8) == 0 {
            request.jump = Some((*random.pick(&["j1", "u@j1:44,j2", "ssh://j3:9"])).to_owned());
        }
        for _ in 0..random.below(3) {
            let (keyword, values) = random.pick(SETTINGS);
            // A proxy of both kinds on one command line is refused by `ssh` alone.
            if !keyword.starts_with("Proxy") {
                let value = *random.pick(values);
                request.options.push(((*keyword).to_owned(), value.to_owned()));
            }
        }
        Self { text, config, request }
    }

    fn ours(&self) -> Result<Printed, Error> {
        let person = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
        let surroundings = Surroundings {
            home: person.dir,
            local_user: person.name,
            local_hostname: nix::unistd::gethostname().unwrap().into_string().unwrap(),
            ssh_auth_sock: None,
            user_config: ConfigFile::Path(self.config.clone()),
            system_config: PathBuf::from("/etc/ssh/ssh_config"),
            files: None,
            env: BTreeMap::from([("ORACLE".to_owned(), "/from/env".to_owned())]),
            find_host: |_| false,
        };
        print(&self.request, &surroundings).map(|(text, _)| parse(&text))
    }

    fn ssh(&self) -> Result<Printed, String> {
        let mut command = Command::new("ssh");
        command.args(["-G", "-F"]).arg(&self.config).env("ORACLE", "/from/env").env_remove("SHELL");
        if let Some(user) = &self.request.user {
            command.args(["-l", user]);
        }
        if let Some(port) = self.request.port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(jump) = &self.request.jump {
            command.args(["-J", jump]);
        }
        for (keyword, value) in &self.request.options {
            command.arg("-o").arg(format!("{keyword}={value}"));
        }
        let output = command
            .arg(&self.request.host)
            .output()
            .expect("this test compares with `ssh`: install openssh-client");
        if output.status.success() {
            Ok(parse(&String::from_utf8(output.stdout).unwrap()))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Says which keywords mean something else to `ssh`, and what.
    fn differences(&self, theirs: &Printed, ours: &Printed) -> impl Iterator<Item = String> {
        let said = |keyword: &str| {
            let in_files = self.text.to_ascii_lowercase().contains(keyword);
            in_files || self.request.options.iter().any(|(option, _)| option.eq_ignore_ascii_case(keyword))
        };
        let keywords: std::collections::BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
        let different = keywords.into_iter().filter_map(|keyword| {
            let (theirs, ours) = (theirs.get(keyword), ours.get(keyword));
            let alone = THEIRS_ALONE.contains(&keyword.as_str()) && ours.is_none();
            let default = DEFAULTS_DIFFER.contains(&keyword.as_str())
                && (!said(keyword) || is_default(keyword, ours, theirs));
            (theirs != ours && !alone && !default)
                .then(|| format!("`{keyword}` is {theirs:?} to ssh and {ours:?} to us"))
        });
        different.collect::<Vec<_>>().into_iter()
    }

    fn told(&self, number: u64, what: &str) -> String {
        format!("case {number}: {what}\n{:?}\n{}", self.request, self.text)
    }
}

/// Whether each prints its own default, because what is said does not apply.
fn is_default(keyword: &str, ours: Option<&Vec<String>>, theirs: Option<&Vec<String>>) -> bool {
    let one = |values: Option<&Vec<String>>, defaults: &[&str]| {
        values.and_then(|values| values.first()).is_some_and(|value| defaults.contains(&value.as_str()))
    };
    match keyword {
        "connecttimeout" => one(ours, &["10"]) && one(theirs, &["none"]),
        "serveraliveinterval" => one(ours, &["15"]) && one(theirs, &["0", "300"]),
        "identityfile" => one(ours, &["~/.ssh/id_rsa"]) && one(theirs, &["~/.ssh/id_rsa"]),
        _ => false,
    }
}

fn parse(text: &str) -> Printed {
    let mut printed = Printed::new();
    for line in text.lines() {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        let values = printed.entry(keyword.to_ascii_lowercase()).or_default();
        // In its second pass `ssh` meets the same lines again, and sends nothing twice for that.
        if keyword != "sendenv" || !values.iter().any(|known| known == value) {
            values.push(value.to_owned());
        }
    }
    printed
}

fn write(path: &Path, text: &str) -> PathBuf {
    private_fs::write(path, text.as_bytes()).unwrap();
    path.to_owned()
}

/// Makes a configuration. Everything in it means the same to OpenSSH 9.2 and later versions; `ProxyJump none` does not
/// where there is a second pass.
fn configuration(random: &mut Random, directory: &Path, depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..random.below(14) {
        match random.below(8) {
            0 => writeln!(text, "{} {}", random.pick(&["Host", "host", "HOST"]), hosts(random, " ")).unwrap(),
            1 => {
                let mut criteria = Vec::new();
                for _ in 0..=random.below(2) {
                    let negation = random.pick(&["", "", "!"]);
                    criteria.push(match random.below(8) {
                        0 => format!("{negation}host {}", hosts(random, ",")),
                        1 => format!("{negation}originalhost {}", hosts(random, ",")),
                        2 => format!("{negation}user {}", random.pick(&["u*", "root", "bob,u1", "*,!u2"])),
                        3 => format!("{negation}localuser {}", random.pick(&["*", "nobody-here", "r??t"])),
                        4 => format!("host={}", hosts(random, ",")),
                        5 => format!("{negation}exec {}", random.pick(EXECS)),
                        _ => (*random.pick(&["final", "canonical", "!canonical"])).to_owned(),
                    });
                }
                if random.below(6) == 0 {
                    criteria = vec![(*random.pick(&["all", "final all", "!all"])).to_owned()];
                }
                writeln!(text, "Match {}", criteria.join(" ")).unwrap();
            }
            2 if depth < 3 => {
                let name = format!("{depth}-{}.conf", random.below(1000));
                let included = configuration(random, directory, depth + 1);
                write(&directory.join(&name), &included);
                let pattern = match random.below(4) {
                    0 => format!("{depth}-*.conf"),
                    1 => format!("[{depth}]-???.con[a-f]"),
                    _ => name,
                };
                writeln!(text, "Include {}/{pattern} {}/none-*", directory.display(), directory.display())
                    .unwrap();
            }
            3 => writeln!(text, "{}", random.pick(&["", "# comment", "   # indented", "\t"])).unwrap(),
            _ => {
                let (keyword, values) = random.pick(SETTINGS);
                let value = random.pick(values);
                let keyword =
                    if random.below(3) == 0 { keyword.to_lowercase() } else { (*keyword).to_owned() };
                let (indent, separator) =
                    (random.pick(&["", "  ", "\t"]), random.pick(&[" ", "=", " = ", "\t"]));
                let end = random.pick(&["", "", " ", " # why", "\r"]);
                writeln!(text, "{indent}{keyword}{separator}{value}{end}").unwrap();
            }
        }
    }
    if depth == 0 && random.below(20) == 0 {
        let bad = random.pick(&[
            "Port 0",
            "User \"x",
            "Port",
            "BatchMode maybe",
            "Match host",
            "ConnectTimeout 1x",
            "ProxyJump a,,b",
            "SetEnv A",
            "SendEnv A=b",
            "EscapeChar ab",
            "RequestTTY maybe",
            "CanonicalizeHostname perhaps",
            "Match exec",
            "Match user u all",
            "ConnectionAttempts 0",
            "RekeyLimit 15",
            "LogLevel loud",
        ]);
        writeln!(text, "{bad}").unwrap();
    }
    text
}

/// Commands of `Match exec`; each says yes or no for a reason of its own.
const EXECS: &[&str] = &[
    "true",
    "false",
    "\"exit 3\"",
    "\"test %n = web\"",
    "\"test %h = %n\"",
    "\"test '%p' -gt 1000\"",
    "\"test %r = u1\"",
    "\"test $ORACLE = /from/env\"",
    "\"case %%%u%% in %%root%%) true;; *) false;; esac\"",
];

const FLAG: &[&str] = &["yes", "no", "true", "False"];

const SETTINGS: &[(&str, &[&str])] = &[
    ("HostName", &["%h.example.com", "Target", "10.0.0.2", "web1", "2001:db8::1", "a%%b", "0x7f.010.3"]),
    ("User", &["u1", "u2", "\"bob\"", "DOMAIN\\joe"]),
    ("Port", &["22", "2222", "\"2200\"", "65535"]),
    ("HostKeyAlias", &["Alias", "alias2"]),
    (
        "IdentityFile",
        &["~/.ssh/a", "/keys/b", "\"/keys/with space\"", "/keys/with\\ space", "'/keys/c'", "/k/%h", "/c#d"],
    ),
    ("IdentitiesOnly", FLAG),
    (
        "IdentityAgent",
        &["none", "SSH_AUTH_SOCK", "/agent", "$ORACLE", "~/agent", "${ORACLE}/%h_%r_%p_%u_%l_%L_%n_%i"],
    ),
    (
        "UserKnownHostsFile",
        &["/kh", "~/kh1 ~/kh2", "/kh_%h_%r_%p", "${ORACLE}/kh", "/dev/null", "\"/k h\"", "/kh_%k_%i_%d"],
    ),
    ("GlobalKnownHostsFile", &["/gkh", "/gkh1 /gkh2"]),
    ("StrictHostKeyChecking", &["yes", "no", "ask", "accept-new", "off"]),
    ("HashKnownHosts", FLAG),
    ("ConnectTimeout", &["5", "1m", "1h30m", "none", "0"]),
    ("AddressFamily", &["any", "inet", "inet6"]),
    ("ServerAliveInterval", &["30", "2m", "1"]),
    ("ServerAliveCountMax", &["1", "7"]),
    ("BatchMode", FLAG),
    ("ProxyJump", &["j1", "u@j2:2222", "j1,ssh://u@j2:22", "[::1]:44", "j1, # no", "10.0.0.9"]),
    ("ProxyCommand", &["none", "nc %h %p", "sh -c \"nc '%h' %p\" # so", "/bin/x %%"]),
    ("ProxyUseFdpass", &["no"]),
    ("BindAddress", &["10.0.0.7", "::1"]),
    ("BindInterface", &["eth0"]),
    ("ConnectionAttempts", &["1", "3"]),
    ("TCPKeepAlive", FLAG),
    ("CanonicalDomains", &["example.com", "a.example b.example"]),
    ("CanonicalizeMaxDots", &["0", "2"]),
    ("CanonicalizeFallbackLocal", &["yes", "no"]),
    ("CheckHostIP", FLAG),
    ("Compression", &["yes", "no"]),
    ("ControlMaster", &["yes", "no", "auto", "ask", "autoask"]),
    ("ControlPersist", &["yes", "no", "10m", "90"]),
    ("ClearAllForwardings", &["no"]),
    ("EnableSSHKeysign", FLAG),
    ("EscapeChar", &["none", "%", "~"]),
    ("ExitOnForwardFailure", FLAG),
    ("FingerprintHash", &["md5", "sha256"]),
    ("ForkAfterAuthentication", &["no"]),
    ("ForwardAgent", &["yes", "no"]),
    ("ForwardX11", FLAG),
    ("ForwardX11Timeout", &["60", "1h"]),
    ("GatewayPorts", FLAG),
    ("GSSAPIAuthentication", FLAG),
    ("GSSAPIDelegateCredentials", FLAG),
    ("HostbasedAuthentication", FLAG),
    ("KbdInteractiveAuthentication", FLAG),
    ("ChallengeResponseAuthentication", FLAG),
    ("LocalCommand", &["echo \"%h\" # all", "true"]),
    ("LocalForward", &["8080 web:80", "127.0.0.1:8080 [::1]:80", "9000 localhost:9000", "*:81 a:82"]),
    ("RemoteForward", &["8081 web:80", "localhost:8081 10.0.0.1:80"]),
    ("DynamicForward", &["1080", "127.0.0.1:1081"]),
    ("LogLevel", &["QUIET", "verbose", "DEBUG", "debug1"]),
    ("RekeyLimit", &["1G", "512M 10m", "default none", "0 1h", "1.5k"]),
    ("NoHostAuthenticationForLocalhost", FLAG),
    ("NumberOfPasswordPrompts", &["1", "5"]),
    ("PasswordAuthentication", FLAG),
    ("PermitLocalCommand", FLAG),
    ("PreferredAuthentications", &["publickey", "publickey,password"]),
    ("PubkeyAuthentication", &["yes", "no", "unbound", "host-bound"]),
    ("RemoteCommand", &["tmux attach # it", "\"quoted\" %h"]),
    ("RequestTTY", &["yes", "no", "force", "auto"]),
    ("RevokedHostKeys", &["/revoked", "~/revoked_%h", "\"/revoked keys\"", "none"]),
    ("KnownHostsCommand", &["/bin/keys %H %t # %K", "/bin/sh -c \"keys '%h'\"", "none"]),
    ("RequiredRSASize", &["2048", "1024"]),
    ("SendEnv", &["LANG LC_*", "FOO", "-LC_*", "-F* BAR"]),
    ("SetEnv", &["A=b", "A=b C=\"d e\"", "A=1 A=2"]),
    ("SessionType", &["none", "default"]),
    ("StdinNull", FLAG),
    ("StreamLocalBindUnlink", FLAG),
    ("Tunnel", &["yes", "no", "ethernet", "point-to-point"]),
    ("UpdateHostKeys", &["yes", "no"]),
    ("VerifyHostKeyDNS", &["yes", "no", "ask"]),
    ("VisualHostKey", FLAG),
    ("AddKeysToAgent", &["yes", "no", "ask", "confirm"]),
];

fn hosts(random: &mut Random, separator: &str) -> String {
    let mut patterns = Vec::new();
    for _ in 0..=random.below(3) {
        patterns.push(*random.pick(&[
            "*",
            "web",
            "web?",
            "W*",
            "w*",
            "!web",
            "!web1",
            "*.example.com",
            "db.*",
            "10.0.0.*",
            "target",
            "!10.*",
            "none",
        ]));
    }
    patterns.join(separator)
}

/// xorshift: the same cases at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
