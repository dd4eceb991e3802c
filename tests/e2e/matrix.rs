//! Every client in every login shell through every transport: which have the role, and which cannot.
//!
//! `docs/clients.md` is what came of it; `BLESS=1` writes it anew. Needs `tests/sdks/install`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sandbox::{home::run_within, sshd::SshdOptions, users::User};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, checkout, sdk, snapshot};

/// Half an hour on a machine that has much else to do; a few minutes on one that has not.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// What all clients may take together in one shell.
const ALL_CLIENTS: Duration = Duration::from_secs(300);

const SHELLS: [&str; 7] = ["bash", "zsh", "fish", "tcsh", "dash", "ksh", "ash"];

/// The shell in which clients ask for the second role by its name too: no login shell reads that name.
const NAMING_SHELL: &str = "bash";

/// A way to reach us, the options that choose it, and how the table calls it.
struct Way {
    name: &'static str,
    options: &'static [&'static str],
    heading: &'static str,
    /// Whether there is a port, a socket, credentials in files.
    has: [bool; 3],
}

const WAYS: [Way; 5] = [
    Way { name: "auto", options: &[], heading: "as it is", has: [true, true, false] },
    Way {
        name: "tcp",
        options: &["--transport", "tcp"],
        heading: "`--transport tcp`",
        has: [true, false, false],
    },
    Way {
        name: "tcp+env",
        options: &["--transport", "tcp", "--token", "env"],
        heading: "`--transport tcp --token env`",
        has: [true, false, false],
    },
    Way {
        name: "unix",
        options: &["--transport", "unix"],
        heading: "`--transport unix`",
        has: [false, true, false],
    },
    Way {
        name: "file",
        options: &["--transport", "file"],
        heading: "`--transport file`",
        has: [false, false, true],
    },
];

/// A program that prints its ARN.
struct Client {
    name: String,
    /// Nothing where its toolchain is not on this machine.
    line: Option<String>,
    /// Whether it was made before there were token files.
    old: Option<Old>,
}

/// How a client that knows no token files fails.
#[derive(Clone, Copy)]
enum Old {
    /// With the sentence that our answer has for it.
    ShowsOurSentence,
}

/// What is expected of a cell that is not green: how it ends, what it says, and why.
struct Unsupported {
    says: &'static str,
    reason: &'static str,
}

impl Client {
    /// What is known not to work.
    fn unsupported(&self, way: &Way) -> Option<Unsupported> {
        match (self.old, way.name) {
            (Some(Old::ShowsOurSentence), "tcp") => Some(Unsupported {
                says: "--token env",
                reason: "It is too old for token files, sends no token, and is answered with a sentence that says so.\n\
                         Leave out `--transport tcp`, add `--token env`, or name the profile.",
            }),
            _ => None,
        }
    }
}

/// The line of `file` in tests/sdks that pins `what`, without it.
fn pinned(file: &str, what: &str) -> String {
    let text = std::fs::read_to_string(checkout("tests/sdks").join(file)).unwrap();
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(what));
    let rest = line.unwrap_or_else(|| panic!("{file} has no {what}"));
    rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

/// What `aws --version` says.
fn aws_version(program: &str) -> String {
    let mut command = Command::new(program);
    command.arg("--version");
    let said = run_within(command, &[], PATIENCE).success().stdout();
    said.strip_prefix("aws-cli/").unwrap().split(' ').next().unwrap().to_owned()
}

/// Where something of [`sdk`] is, unless its toolchain is missing.
pub fn optional(path: &str, toolchain: &str) -> Option<PathBuf> {
    let found = |program: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join(program).is_file())
    };
    toolchain.split(' ').all(found).then(|| sdk(path))
}

fn clients() -> Vec<Client> {
    let client = |name: String, line: String| Client { name, line: Some(line), old: None };
    let path = |path: &str| sdk(path).display().to_string();
    let caller = "sts get-caller-identity --query Arn --output text";
    let (whoami, v2) = (path("whoami.py"), path("awscli-v2/aws"));
    let python = |name: &str| format!("{} {whoami}", path(&format!("{name}/bin/python")));
    // Of the package: another one may come first in the PATH.
    let debian = "/usr/bin/aws";
    vec![
        client(format!("boto3 {}", pinned("requirements.txt", "boto3==")), python("python")),
        Client {
            old: Some(Old::ShowsOurSentence),
            ..client(format!("boto3 {}", pinned("requirements-old.txt", "boto3==")), python("python-old"))
        },
        client(
            format!("AWS CLI {}", pinned("requirements.txt", "awscli==")),
            format!("{} -m awscli {caller}", path("python/bin/python")),
        ),
        client(format!("AWS CLI {}", aws_version(&v2)), format!("{v2} {caller}")),
        Client {
            old: Some(Old::ShowsOurSentence),
            ..client(
                format!("AWS CLI {} (Debian 12)", aws_version(debian)),
                format!("{debian} --endpoint-url $AWS_ENDPOINT_URL_STS {caller}"),
            )
        },
        client(
            format!("JavaScript SDK {}", pinned("package.json", "\"@aws-sdk/client-sts\": \"")),
            format!("/usr/bin/node {}", path("whoami.mjs")),
        ),
        client(
            format!("Rust SDK, aws-config {}", pinned("rust/Cargo.toml", "aws-config = { version = \"=")),
            path("rust/debug/whoami"),
        ),
        Client {
            name: format!(
                "Go SDK v2, config {}",
                pinned("go/go.mod", "github.com/aws/aws-sdk-go-v2/config v")
            ),
            line: optional("go/whoami", "go").map(|program| program.display().to_string()),
            old: None,
        },
        Client {
            name: format!("Java SDK {}", pinned("java/pom.xml", "<version>2"))
                .replace("Java SDK .", "Java SDK 2."),
            line: optional("java/whoami.jar", "mvn javac")
                .map(|jar| format!("java -XX:TieredStopAtLevel=1 -jar {}", jar.display())),
            old: None,
        },
    ]
}

/// What came of one client in one shell through one way.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Outcome {
    Works,
    Unsupported,
    Absent,
}

type Cells = BTreeMap<(usize, &'static str, &'static str), Outcome>;

/// Runs all clients in one shell through one way, and adds what came of it.
fn run(
    world: &mut World,
    clients: &[Client],
    shell: &'static str,
    way: &Way,
    cells: &mut Cells,
) -> Vec<String> {
    let mut jobs = serde_json::Map::new();
    for (n, client) in clients.iter().enumerate() {
        let Some(line) = &client.line else {
            cells.insert((n, shell, way.name), Outcome::Absent);
            continue;
        };
        jobs.insert(format!("{n}"), json!({"line": line, "env": {}}));
        if shell == NAMING_SHELL {
            jobs.insert(format!("{n} named"), json!({"line": line, "env": {"AWS_PROFILE": "audit"}}));
        }
    }
    let port = "printenv AWS_CONTAINER_CREDENTIALS_FULL_URI";
    jobs.insert("port".to_owned(), json!({"line": port, "env": {}}));
    let files = format!("find /dev/shm/broker-{}", world.sshd.user().uid);
    jobs.insert("files".to_owned(), json!({"line": files, "env": {}}));

    let mut arguments = vec!["-p", "dev", "-p", "audit"];
    arguments.extend(way.options);
    let cells_py = format!("/usr/bin/python3 {}", sdk("cells.py").display());
    arguments.extend(["--", &cells_py]);
    let connect = world.connect(&arguments);
    let output = run_within(connect, Value::Object(jobs).to_string().as_bytes(), ALL_CLIENTS);
    world.heard("all clients", &output);
    let mut results: serde_json::Map<_, _> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{shell}, {}: {e}: {output}", way.name));
    let mut said = |key| results.remove(key).unwrap()[1].as_str().unwrap().to_owned();
    let (port, files) = (said("port"), said("files"));
    let is_there = |name: &str| files.lines().any(|line| line.ends_with(name));
    let has = [!port.is_empty(), is_there("/s"), is_there("/role-dev.json")];
    assert_eq!(has, way.has, "{shell}: {} is another way: {port}{files}", way.name);

    let mut wrong = Vec::new();
    for (key, result) in &results {
        let (n, named) = key.strip_suffix(" named").map_or((key.as_str(), false), |n| (n, true));
        let n: usize = n.parse().unwrap();
        let (code, stdout, stderr) =
            (result[0].as_i64().unwrap(), result[1].as_str().unwrap(), result[2].as_str().unwrap());
        let arn = World::arn(if named { "Auditor" } else { "Developer" });
        let unsupported = clients[n].unsupported(way).filter(|_| !named);
        let as_expected = match &unsupported {
            None => code == 0 && stdout.trim() == arn,
            Some(how) => code > 0 && stdout.is_empty() && stderr.contains(how.says),
        };
        if !as_expected {
            let name = if named { "the named role" } else { "the role" };
            let instead = unsupported.map_or(name, |_| "its documented failure");
            wrong.push(format!(
                "{shell}, {}, {}: not {instead}, but exit code {code}\n{stdout}\n{stderr}",
                way.name, clients[n].name
            ));
        } else if !named {
            let outcome = if unsupported.is_some() { Outcome::Unsupported } else { Outcome::Works };
            cells.insert((n, shell, way.name), outcome);
        }
    }
    wrong
}

/// The table in full: a line for each client and way, a column for each shell.
fn table(clients: &[Client], cells: &Cells) -> String {
    let mut text = format!("{:<32} {:<8}", "", "");
    SHELLS.iter().for_each(|shell| write!(text, " {shell:>5}").unwrap());
    for (n, client) in clients.iter().enumerate() {
        for way in &WAYS {
            write!(text, "\n{:<32} {:<8}", client.name, way.name).unwrap();
            for shell in SHELLS {
                let cell = match cells[&(n, shell, way.name)] {
                    Outcome::Works => "yes",
                    Outcome::Unsupported => "no",
                    Outcome::Absent => "absent",
                };
                write!(text, " {cell:>5}").unwrap();
            }
        }
    }
    text
}

/// The page for users. What could not be run here is said as it was said before.
fn page(clients: &[Client], cells: &Cells, before: &str) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    let mut rows = String::new();
    for (n, client) in clients.iter().enumerate() {
        let row = format!("| {} |", client.name);
        if client.line.is_none() {
            let line = before.lines().find(|line| line.starts_with(&row));
            writeln!(rows, "{}", line.unwrap_or("a row that is not there: its toolchain is needed once"))
                .unwrap();
            continue;
        }
        rows.push_str(&row);
        for way in &WAYS {
            let found: BTreeSet<_> = SHELLS.iter().map(|shell| cells[&(n, *shell, way.name)]).collect();
            assert_eq!(found.len(), 1, "{} through {}: the shells differ", client.name, way.name);
            match client.unsupported(way) {
                None => rows.push_str(" yes |"),
                Some(Unsupported { reason, .. }) => {
                    if !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                    let number = reasons.iter().position(|known| *known == reason).unwrap() + 1;
                    write!(rows, " no ({number}) |").unwrap();
                }
            }
        }
        rows.push('\n');
    }
    let mut text = String::from(
        "# Clients\n\n\
         Which programs on the host have the role, with nothing done there but starting them. A test writes this page from\n\
         what it ran with a real sshd: each cell in each of the login shells ",
    );
    let (last, first) = SHELLS.split_last().unwrap();
    writeln!(
        text,
        "{} and {last}, and once\nmore with `AWS_PROFILE` naming a second role, which works in every cell.\n",
        first.join(", ")
    )
    .unwrap();
    text.push_str("| client |");
    WAYS.iter().for_each(|way| write!(text, " {} |", way.heading).unwrap());
    text.push_str("\n|---|");
    WAYS.iter().for_each(|_| text.push_str("---|"));
    writeln!(text, "\n{}", rows.trim_end()).unwrap();
    for (number, reason) in reasons.iter().enumerate() {
        writeln!(text, "\n({}) {reason}", number + 1).unwrap();
    }
    text.push_str(
        "\nThe newest AWS CLI is AWS's own build, from the package that brings it to AWS Lambda. The Rust, Go and Java programs are\n\
         in `tests/sdks`. Go and Java are run where their toolchains are. Not tried: the SDKs for .NET, Ruby, PHP, C++, Swift\n\
         and Kotlin, and PowerShell as a login shell.\n",
    );
    text
}

fn shell_path(name: &str) -> PathBuf {
    if name == "ash" {
        return sdk("ash");
    }
    let paths = ["/bin", "/usr/bin"].map(|directory| Path::new(directory).join(name));
    paths.into_iter().find(|path| path.exists()).expect(name)
}

#[test]
#[ignore = "takes minutes of all cores; tests/run runs it alone"]
fn every_client_in_every_shell_through_every_transport() {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients.txt");
    if sandbox::isolated!(TIMEOUT) {
        println!("{}", std::fs::read_to_string(report).unwrap());
        return;
    }
    let started = Instant::now();
    let clients = clients();
    let (mut cells, mut wrong) = (Cells::new(), Vec::new());
    for shell in SHELLS {
        let user = User::ensure(&format!("broker-{shell}"), shell_path(shell));
        let mut world = World::with(SshdOptions::new(user));
        for way in &WAYS {
            wrong.extend(run(&mut world, &clients, shell, way, &mut cells));
        }
        world.wait_for_clean_host();
        world.assert_clean();
    }
    assert!(wrong.is_empty(), "{} cells are not as documented:\n{}", wrong.len(), wrong.join("\n\n"));
    let seconds = started.elapsed().as_secs();
    std::fs::write(report, format!("{}\n{} cells in {seconds} s\n", table(&clients, &cells), cells.len()))
        .unwrap();
    let path = checkout("docs/clients.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    snapshot(&path, &page(&clients, &cells, &before));
}
