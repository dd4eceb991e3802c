//! What we make of a configuration, compared with what `ssh -G` makes of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

/// How many configurations are generated and compared.
const CONFIGS: u64 = 320;

/// What `ssh -G` prints, by keyword, for the keywords that we honour.
type Printed = BTreeMap<&'static str, Vec<String>>;

const KEYWORDS: [&str; 16] = [
    "hostname",
    "user",
    "port",
    "hostkeyalias",
    "identityfile",
    "identitiesonly",
    "identityagent",
    "userknownhostsfile",
    "globalknownhostsfile",
    "stricthostkeychecking",
    "hashknownhosts",
    "connecttimeout",
    "addressfamily",
    "serveraliveinterval",
    "serveralivecountmax",
    "batchmode",
];

#[test]
fn generated_configurations_mean_what_they_mean_to_ssh() {
    let directory = tempfile::tempdir().unwrap();
    let (mut read, mut refused) = (0, 0);
    for seed in 0..CONFIGS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let case = directory.path().join(seed.to_string());
        fs::create_dir(&case).unwrap();
        let text = configuration(&mut random, &case, 0);
        let config = write(&case.join("config"), &text);
        for typed in [*random.pick(&["web", "10.0.0.1"]), *random.pick(&["Web1", "db.example.com"])] {
            let theirs = ssh(&config, typed);
            let ours = ours(&config, typed);
            match (&theirs, &ours) {
                (Some(theirs), Ok(ours)) => {
                    assert_eq!(ours, theirs, "seed {seed}, host {typed}:\n{text}");
                    read += 1;
                }
                (None, Err(_)) => refused += 1,
                _ => panic!("seed {seed}, host {typed}: ssh {theirs:?}, we {ours:?}\n{text}"),
            }
        }
    }
    assert!(read > 500 && refused > 10, "the generator makes both kinds: {read} read, {refused} refused");
}

fn ours(config: &Path, typed: &str) -> Result<Printed, Error> {
    let person = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
    let home = person.dir.clone();
    let surroundings = Surroundings {
        home: home.clone(),
        local_user: person.name,
        local_hostname: nix::unistd::gethostname().unwrap().into_string().unwrap(),
        ssh_auth_sock: None,
        user_config: ConfigFile::Path(config.to_owned()),
        system_config: PathBuf::from("/etc/ssh/ssh_config"),
        env: BTreeMap::from([("ORACLE".to_owned(), "/from/env".to_owned())]),
    };
    let request = Request { host: typed.to_owned(), ..Request::default() };
    let evaluated = evaluate::evaluate(&request, &surroundings, home.to_str().unwrap())?;
    let (target, _) = resolve(&request, &surroundings)?;

    let raw = |keyword: &str, default: &str| {
        evaluated.first.get(keyword).map_or(default, |setting| setting.value()).to_owned()
    };
    let seconds = |keyword: &str, default: &str| {
        let text = raw(keyword, default);
        keyword::time(&text).map_or(text, |seconds| seconds.to_string())
    };
    let paths = |paths: &[PathBuf]| paths.iter().map(|p| p.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let flag = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut printed = Printed::new();
    let mut one = |keyword, value: String| drop(printed.insert(keyword, vec![value]));
    one("hostname", target.hostname);
    one("user", target.user);
    one("port", target.port.to_string());
    if let Some(alias) = target.host_key_alias {
        one("hostkeyalias", alias);
    }
    one("identitiesonly", flag(target.identities.only));
    if evaluated.first.contains_key("identityagent") {
        // A path is printed expanded, the words that stand for one are not.
        let text = raw("identityagent", "");
        let is_path = text.contains('/');
        let agent = target.identities.agent.map(|path| path.to_str().unwrap().to_owned());
        one("identityagent", if is_path { agent.unwrap() } else { text });
    }
    one("userknownhostsfile", paths(&target.known_hosts.user));
    one("globalknownhostsfile", paths(&target.known_hosts.global));
    let strict = match keyword::strict(&raw("stricthostkeychecking", "ask")).unwrap() {
        Strict::Yes => "true",
        Strict::Ask => "ask",
        Strict::AcceptNew => "accept-new",
        Strict::Off => "false",
    };
    one("stricthostkeychecking", strict.to_owned());
    one("hashknownhosts", flag(target.known_hosts.hash));
    one("connecttimeout", seconds("connecttimeout", "none"));
    let family = match target.address_family {
        AddressFamily::Any => "any",
        AddressFamily::Inet => "inet",
        AddressFamily::Inet6 => "inet6",
    };
    one("addressfamily", family.to_owned());
    if evaluated.first.contains_key("serveraliveinterval") {
        one("serveraliveinterval", seconds("serveraliveinterval", ""));
    }
    one("serveralivecountmax", raw("serveralivecountmax", "3"));
    one("batchmode", flag(target.batch));
    if !evaluated.identity_files.is_empty() {
        let files = evaluated.identity_files.iter().map(|setting| setting.value().to_owned()).collect();
        printed.insert("identityfile", files);
    }
    Ok(printed)
}

fn ssh(config: &Path, typed: &str) -> Option<Printed> {
    let output = Command::new("ssh")
        .args(["-G", "-F"])
        .arg(config)
        .arg(typed)
        .env("ORACLE", "/from/env")
        .output()
        .expect("this test compares with `ssh`: install openssh-client");
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut printed = Printed::new();
    for line in text.lines() {
        let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(keyword) = KEYWORDS.iter().find(|known| **known == keyword) {
            printed.entry(keyword).or_default().push(value.to_owned());
        }
    }
    if let Some(timeout) = printed.get_mut("connecttimeout") {
        timeout.iter_mut().filter(|t| *t == "none").for_each(|t| *t = "0".to_owned());
    }
    // Debian's default in batch mode is its own; no generated value is either of the two.
    if printed.get("serveraliveinterval").is_some_and(|seconds| seconds == &["0"] || seconds == &["300"]) {
        printed.remove("serveraliveinterval");
    }
    // Its defaults are a list that changes with the version; ours are checked elsewhere.
    if printed.get("identityfile").is_some_and(|files| files.iter().any(|file| file == "~/.ssh/id_ecdsa_sk"))
    {
        printed.remove("identityfile");
    }
    Some(printed)
}

fn write(path: &Path, text: &str) -> PathBuf {
    private_fs::write(path, text.as_bytes()).unwrap();
    path.to_owned()
}

/// Makes a configuration. Everything in it means the same to OpenSSH 9.2 and later versions.
fn configuration(random: &mut Random, directory: &Path, depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..random.below(14) {
        match random.below(8) {
            0 => writeln!(text, "{} {}", random.pick(&["Host", "host", "HOST"]), hosts(random, " ")).unwrap(),
            1 => {
                let mut criteria = Vec::new();
                for _ in 0..=random.below(2) {
                    let negation = random.pick(&["", "", "!"]);
                    criteria.push(match random.below(6) {
                        0 => format!("{negation}host {}", hosts(random, ",")),
                        1 => format!("{negation}originalhost {}", hosts(random, ",")),
                        2 => format!("{negation}user {}", random.pick(&["u*", "root", "bob,u1", "*,!u2"])),
                        3 => format!("{negation}localuser {}", random.pick(&["*", "nobody-here", "r??t"])),
                        4 => format!("host={}", hosts(random, ",")),
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
                let (keyword, values) = random.pick(&SETTINGS);
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
    if depth == 0 && random.below(25) == 0 {
        let bad = random.pick(&[
            "Port 0",
            "User \"x",
            "Port",
            "BatchMode maybe",
            "Match host",
            "ConnectTimeout 1x",
        ]);
        writeln!(text, "{bad}").unwrap();
    }
    text
}

const SETTINGS: [(&str, &[&str]); 15] = [
    ("HostName", &["%h.example.com", "Target", "10.0.0.2", "web1", "2001:db8::1", "a%%b"]),
    ("User", &["u1", "u2", "\"bob\"", "DOMAIN\\joe"]),
    ("Port", &["22", "2222", "\"2200\"", "65535"]),
    ("HostKeyAlias", &["Alias", "alias2"]),
    (
        "IdentityFile",
        &["~/.ssh/a", "/keys/b", "\"/keys/with space\"", "/keys/with\\ space", "'/keys/c'", "/k/%h", "/c#d"],
    ),
    ("IdentitiesOnly", &["yes", "no", "true", "YES"]),
    ("IdentityAgent", &["none", "SSH_AUTH_SOCK", "/agent", "$ORACLE", "~/agent"]),
    ("UserKnownHostsFile", &["/kh", "~/kh1 ~/kh2", "/kh_%h_%r_%p", "${ORACLE}/kh", "/dev/null", "\"/k h\""]),
    ("GlobalKnownHostsFile", &["/gkh", "/gkh1 /gkh2"]),
    ("StrictHostKeyChecking", &["yes", "no", "ask", "accept-new", "off"]),
    ("HashKnownHosts", &["yes", "no"]),
    ("ConnectTimeout", &["5", "1m", "1h30m", "none", "0"]),
    ("AddressFamily", &["any", "inet", "inet6"]),
    ("ServerAliveInterval", &["30", "2m", "1"]),
    ("BatchMode", &["yes", "no", "false"]),
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
