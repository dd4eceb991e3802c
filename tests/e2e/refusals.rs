//! What a person gets who cannot have what they asked for: one error that names the thing and the way out, an exit code
//! that a script can use, nothing on stdout, nothing on the host.

use std::{
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use sandbox::{
    home::{Output, Stream},
    sshd::{Program, SshdOptions},
    users::{AsUser as _, User},
};

use crate::support::{self, BASTION, PATIENCE, World, holder_of_ours};

/// The word and the exit code of a kind of failure (`product.md` 8).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind(pub(crate) &'static str, pub(crate) i32);

pub(crate) const FAILED: Kind = Kind("failed", 1);
pub(crate) const USAGE: Kind = Kind("usage", 2);
pub(crate) const LOGIN_NEEDED: Kind = Kind("login-needed", 3);
pub(crate) const HOST_KEY_REFUSED: Kind = Kind("host-key-refused", 4);
pub(crate) const UNREACHABLE: Kind = Kind("unreachable", 5);
pub(crate) const FORWARD_REFUSED: Kind = Kind("forward-refused", 6);
pub(crate) const ROLE_DENIED: Kind = Kind("role-denied", 7);

/// Printed by the command that must never run.
const RAN: &str = "the-command-ran";

/// A command line that is refused, and the essential words of the refusal: what failed, on which thing, what to do.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    /// What follows `broker`, without `-N` and `-- COMMAND`.
    pub(crate) arguments: &'a [&'a str],
    pub(crate) kind: Kind,
    pub(crate) words: &'a [&'a str],
}

impl Case<'_> {
    /// Runs it with `-N`, with `-N` and JSON, and with a command, one after the other.
    #[track_caller]
    pub(crate) fn is_refused(&self, world: &mut World) -> String {
        let [text, json, command] = self.forms(world).map(|command| world.laptop.run(command));
        self.judge(world, &text, &json, &command)
    }

    /// The same at once, for what takes its time and holds no port.
    #[track_caller]
    pub(crate) fn is_refused_at_leisure(&self, world: &mut World) -> String {
        let mut running = self.forms(world).map(|command| world.laptop.spawn(command));
        let [text, json, command] = running.each_mut().map(|process| {
            process.close_stdin();
            process.wait(PATIENCE)
        });
        self.judge(world, &text, &json, &command)
    }

    fn forms(&self, world: &World) -> [Command; 3] {
        let further: [&[&str]; 3] = [&["-N"], &["-N", "--log-format", "json"], &["--", "echo", RAN]];
        further.map(|further| world.broker(&[self.arguments, further].concat()))
    }

    #[track_caller]
    fn judge(&self, world: &mut World, text: &Output, json: &Output, command: &Output) -> String {
        let name = self.name;
        println!("== {name}\n{}", text.stderr());
        for output in [text, json, command] {
            world.heard(name, output);
            assert_eq!(output.stdout(), "", "{name}: something was published\n{output}");
        }
        let Kind(kind, code) = self.kind;

        // For a person.
        assert_eq!(text.code, Some(code), "{name}\n{text}");
        let said = text.stderr();
        assert_reads_well(name, &said);
        assert!(said.contains("broker: hint: "), "{name}: no way out is named\n{said}");
        for words in self.words {
            assert!(said.contains(words), "{name}: `{words}` is missing\n{said}");
        }

        // For a program.
        assert_eq!(json.code, Some(code), "{name}\n{json}");
        let error = json_error(name, &json.stderr());
        assert_eq!((&error["kind"], &error["code"]), (&kind.into(), &code.into()), "{name}\n{json}");
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(!hint.is_empty() && error["causes"].is_array(), "{name}\n{json}");
        let causes = error["causes"].as_array().unwrap().iter().filter_map(|cause| cause.as_str());
        let all: Vec<&str> = error["message"].as_str().into_iter().chain(causes).chain([hint]).collect();
        for words in self.words {
            assert!(all.join("\n").contains(words), "{name}: `{words}` is missing in JSON\n{json}");
        }

        // As with ssh, where the exit status is the command's.
        assert_eq!(command.code, Some(255), "{name}\n{command}");
        let last = command.stderr().lines().last().unwrap_or_default().to_owned();
        assert_eq!(last, format!("broker: failed: {kind} ({code})"), "{name}\n{command}");

        assert_eq!(world.left_on_host(), Vec::<std::path::PathBuf>::new(), "{name}: left on the host");
        said
    }
}

/// Every line is ours, none is said twice, no cause repeats what it explains, and what is named exists.
#[track_caller]
pub(crate) fn assert_reads_well(name: &str, said: &str) {
    let errors = said.lines().filter(|line| line.starts_with("broker: error: ")).count();
    assert_eq!(errors, 1, "{name}: not one error\n{said}");
    let mut before = String::new();
    for line in said.lines() {
        let ours = [
            "broker: error: ",
            "broker: caused by: ",
            "broker: hint: ",
            "broker: warning: ",
            "broker: ",
            "✓ ",
        ];
        let text = ours.iter().find_map(|start| line.strip_prefix(start));
        let text = text.unwrap_or_else(|| panic!("{name}: a stray line `{line}`\n{said}"));
        assert!(!text.is_empty() && !before.contains(text), "{name}: `{text}` is said twice\n{said}");
        before.push_str(line);
        before.push('\n');
        for alarm in ["Os {", "Error(", "Some(", "panicked", "russh", "hyper", "SdkError", "os error"] {
            assert!(!text.contains(alarm), "{name}: `{alarm}` is for programmers\n{said}");
        }
    }
    let help = helps().concat();
    for word in said.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
        let option = word.starts_with("--")
            && word.len() > 2
            && !said.contains(&format!("unexpected argument '{word}'"));
        assert!(!option || help.contains(word), "{name}: there is no option `{word}`\n{said}");
    }
    for command in said.split("`broker ").skip(1) {
        let word = command.split([' ', '`']).next().unwrap_or_default();
        assert!(COMMANDS.contains(&word), "{name}: there is no `broker {word}`\n{said}");
    }
}

/// The one error among events of which each line is one.
#[track_caller]
pub(crate) fn json_error(name: &str, stderr: &str) -> serde_json::Value {
    let events: Vec<serde_json::Value> = stderr
        .lines()
        .map(|line| {
            let event = serde_json::from_str(line);
            event.unwrap_or_else(|e| panic!("{name}: `{line}` is not JSON: {e}\n{stderr}"))
        })
        .inspect(|event: &serde_json::Value| assert!(event.is_object(), "{name}: not an object\n{stderr}"))
        .collect();
    let errors: Vec<_> = events.into_iter().filter(|event| event["event"] == "error").collect();
    let [error] = &errors[..] else { panic!("{name}: not one error event\n{stderr}") };
    error.clone()
}

/// Runs all cases, so that one run shows everything that is wrong, and fails if one failed.
#[track_caller]
pub(crate) fn all<T>(cases: impl IntoIterator<Item = T>, mut run: impl FnMut(T)) {
    let failed = cases.into_iter().filter_map(|case| {
        // The world may be in any state after a panic, which the next case would only report again.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case))).err()
    });
    let failed = failed.count();
    assert_eq!(failed, 0, "cases failed");
}

const COMMANDS: [&str; 19] = [
    "connect",
    "credentials",
    "profiles",
    "login",
    "logout",
    "audit",
    "clean",
    "doctor",
    "ssh-config",
    "completions",
    "man",
    "status",
    "env",
    "grant",
    "approve",
    "deny",
    "revoke",
    "stop",
    "refresh",
];

/// The help of `broker` and of every command.
fn helps() -> Vec<String> {
    let help = |arguments: &[&str]| {
        let output = Command::new(support::program()).args(arguments).arg("--help").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    std::iter::once(help(&[])).chain(COMMANDS.map(|command| help(&[command]))).collect()
}

#[test]
fn what_was_asked_for_wrongly_is_a_usage_error() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let cases = [
        (
            "near",
            &["connect", BASTION, "-p", "dve"][..],
            &["no profile `dve`", ".aws/config", "did you mean `dev`?"][..],
        ),
        ("far", &["connect", BASTION, "-p", "zzzzzz"], &["no profile `zzzzzz`", "audit", "dev"]),
        ("no profile of two", &["connect", BASTION], &["no profile was named", "-p NAME", "audit, dev"]),
        ("port as profile", &["connect", BASTION, "-p", "2222"], &["`-p 2222`", "`-P 2222`"]),
        ("second word", &["connect", BASTION, "-p", "dev", "uptime"], &["`uptime`", "put `--` before it"]),
        ("destination", &["connect", "a@b@", "-p", "dev"], &["a@b@", "[user@]host[:port]"]),
        ("port 0", &["connect", BASTION, "-p", "dev", "-R", "0"], &["port 0", "auto"]),
        ("port 65536", &["connect", BASTION, "-p", "dev", "-R", "65536"], &["65536", "1 to 65535", "auto"]),
        ("port x", &["connect", BASTION, "-p", "dev", "-R", "x"], &["'x'", "1 to 65535", "auto"]),
        ("negative port", &["connect", BASTION, "-p", "dev", "-R=-1"], &["-1", "1 to 65535"]),
        ("unknown option", &["connect", BASTION, "-p", "dev", "--forward", "x"], &["--forward", "--help"]),
        ("pin", &["connect", BASTION, "-p", "dev", "--host-key", "MD5:ab"], &["MD5:ab", "SHA256:"]),
        ("ssh option", &["connect", BASTION, "-p", "dev", "-o", "Port"], &["Port", "KEY=VALUE"]),
    ];
    all(cases, |(name, arguments, words)| {
        Case { name, arguments, kind: USAGE, words }.is_refused(&mut world);
    });
    assert!(world.aws.calls().is_empty(), "a usage error reached the network: {:?}", world.aws.calls());
    assert_eq!(world.sshd.knocks(), 0, "a usage error reached the host");
    // Exports are only printed by a tunnel without a shell, so this one cannot be tried with `-N`.
    let output = world.run(world.connect(&["-p", "dev", "--print-env", "sh"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(2), ""), "{output}");
    assert!(output.stderr().contains("-N") || output.stderr().contains("--no-shell"), "{output}");
    let output = world.run(world.connect(&["-p", "dev", "-N", "--print-env", "nu"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(2), ""), "{output}");
    for word in ["nu", "sh", "bash", "zsh", "fish", "powershell", "dotenv"] {
        assert!(output.stderr().contains(word), "{output}");
    }
    world.assert_clean();
}

#[test]
fn a_host_key_that_is_not_right_ends_the_connection() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = ["connect", BASTION, "--batch", "-p", "dev"];
    let right = world.laptop.read(".ssh/known_hosts");
    let fingerprint = fingerprint_of(&world, &right);

    let with = |more: &[&'static str]| [&connect[..], more].concat();
    world.laptop.write(".ssh/known_hosts", "", 0o600);
    let said = Case {
        name: "unknown",
        arguments: &connect,
        kind: HOST_KEY_REFUSED,
        words: &["host key of bastion is not known", &fingerprint, "--host-key SHA256:"],
    }
    .is_refused(&mut world);
    assert!(said.contains(&format!("--host-key {fingerprint}")), "{said}");
    assert_eq!(world.laptop.read(".ssh/known_hosts"), "", "a refused key was remembered");

    // What the hint names works.
    let output = world.run(world.connect(&["-p", "dev", "--host-key", &fingerprint, "--", "echo", "in"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "in\n"), "{output}");
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    Case {
        name: "wrong pin",
        arguments: &with(&["--host-key", wrong]),
        kind: HOST_KEY_REFUSED,
        words: &["bastion", &fingerprint, "pinned", wrong, "administrator"],
    }
    .is_refused(&mut world);

    world.laptop.write(".ssh/known_hosts", format!("@revoked {right}"), 0o600);
    let known_hosts = world.laptop.join(".ssh/known_hosts").display().to_string();
    Case {
        name: "revoked",
        arguments: &connect,
        kind: HOST_KEY_REFUSED,
        words: &["bastion", "revoked", &known_hosts, "line 1", "administrator"],
    }
    .is_refused(&mut world);

    world.laptop.write(".ssh/known_hosts", format!("# one line before\n{right}"), 0o600);
    world.sshd.swap_host_key();
    let said = Case {
        name: "changed",
        arguments: &connect,
        kind: HOST_KEY_REFUSED,
        words: &["THE HOST KEY OF bastion HAS CHANGED", &known_hosts, "line 2", "ssh-keygen"],
    }
    .is_refused(&mut world);
    // Not even a person is asked, and not even `accept-new` accepts it.
    let mut terminal = world.laptop.terminal(world.broker(&["connect", BASTION, "-p", "dev", "-N"]), 24, 200);
    let output = terminal.wait(PATIENCE);
    world.heard("changed, at a terminal", &output);
    assert_eq!(output.code, Some(4), "{output}");
    let output = world.run(world.connect(&["-p", "dev", "-N", "-o", "StrictHostKeyChecking=accept-new"]));
    assert_eq!(output.code, Some(4), "{output}");

    // The command that the hint gives removes the line, after which the key is unknown.
    let hint = said.lines().find(|line| line.contains("ssh-keygen")).unwrap();
    let command = hint.split('`').nth(1).unwrap();
    let mut shell = world.laptop.command("sh");
    shell.args(["-c", command]);
    assert_eq!(world.run(shell).code, Some(0), "{command}");
    Case { name: "after the hint", arguments: &connect, kind: HOST_KEY_REFUSED, words: &["is not known"] }
        .is_refused(&mut world);
    world.assert_clean();
}

#[test]
fn an_unknown_host_key_is_a_question_at_a_terminal() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let right = world.laptop.read(".ssh/known_hosts");
    let fingerprint = fingerprint_of(&world, &right);
    let question = "(yes/no/[fingerprint])? ";
    for (answers, code) in [
        (&["no\n"][..], 4),
        (&["\n", "what?\n", "no\n"], 4),
        (&["yes\n"], 130),
        (&[fingerprint.as_str(), "\n"], 130),
    ] {
        drop(std::fs::remove_file(world.laptop.join(".ssh/known_hosts")));
        let command = world.broker(&["connect", BASTION, "-p", "dev", "-N", "--print-env", "sh"]);
        let mut terminal = world.laptop.terminal(command, 24, 200);
        let asked = terminal.wait_for_text(question, PATIENCE);
        assert!(asked.contains(&fingerprint) && asked.contains("'bastion' can't be established"), "{asked}");
        for (n, answer) in answers.iter().enumerate() {
            if n > 0 && !answers[0].starts_with("SHA256") {
                terminal.wait_for_text("Please type 'yes', 'no' or the fingerprint: ", PATIENCE);
            }
            terminal.send(answer);
        }
        if code == 130 {
            terminal.wait_for_text("AWS SDKs on bastion", PATIENCE);
            terminal.signal(nix::sys::signal::Signal::SIGINT);
        }
        let output = terminal.wait(PATIENCE);
        assert_eq!(output.code, Some(code), "{answers:?}\n{output}");
        let known_hosts = world.laptop.join(".ssh/known_hosts");
        if code == 130 {
            // The system's ssh_config may have names hashed; ssh-keygen finds the line in any case.
            let (name, key) = right.trim_end().split_once(' ').unwrap();
            let mut keygen = world.laptop.command("ssh-keygen");
            keygen.args(["-F", name, "-f"]).arg(&known_hosts);
            let found = world.run(keygen).success().stdout();
            assert!(found.trim_end().ends_with(key), "{answers:?}: {found}");
            let meta = std::fs::metadata(&known_hosts).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, world.laptop.user().uid));
            // And is not asked for again.
            let output = world.run(world.connect(&["-p", "dev", "--", "true"]));
            assert_eq!(output.code, Some(0), "{output}");
        } else {
            assert!(output.stdout().contains("host key of bastion was not accepted"), "{output}");
            assert!(!output.stdout().contains("export "), "{output}");
            assert!(!known_hosts.exists(), "a key that was not accepted was remembered");
        }
        world.heard("at a terminal", &output);
    }
    world.assert_clean();
}

#[test]
fn a_refused_login_names_what_was_tried() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let key = world.laptop.join(".ssh/key-bastion");
    std::fs::remove_file(&key).unwrap();
    let mut keygen = world.laptop.command("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
    assert_eq!(world.run(keygen).code, Some(0));
    let user = world.sshd.user().name.clone();
    let connect = ["connect", BASTION, "--batch", "-p", "dev"];
    let path = key.display().to_string();
    Case {
        name: "wrong key",
        arguments: &connect,
        kind: UNREACHABLE,
        words: &[BASTION, &user, &path, "authorized_keys"],
    }
    .is_refused(&mut world);
    std::fs::remove_file(&key).unwrap();
    Case { name: "no key", arguments: &connect, kind: UNREACHABLE, words: &[BASTION, &user, "-i FILE"] }
        .is_refused(&mut world);
    world.laptop.write(".ssh/key-bastion", "this is no key\n", 0o600);
    let said =
        Case { name: "garbage as key", arguments: &connect, kind: UNREACHABLE, words: &[BASTION, &user] }
            .is_refused(&mut world);
    assert!(said.contains(&format!("broker: warning: the file `{path}` holds no key")), "{said}");
    world.laptop.write(".ssh/key-bastion", world.sshd.client_key(), 0o644);
    let case = Case {
        name: "key that others read",
        arguments: &connect,
        kind: UNREACHABLE,
        words: &[BASTION, &user],
    };
    let said = case.is_refused(&mut world);
    assert!(said.contains(&format!("run `chmod go= '{path}'`")), "{said}");
    world.assert_clean();
}

/// A server that does one thing with every connection, until dropped.
struct Peer {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Peer {
    fn new(behave: impl Fn(TcpStream, &mut Vec<TcpStream>) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                behave(stream, &mut kept);
            }
        });
        Self { port, stop, thread: Some(thread) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        drop(self.thread.take().unwrap().join());
    }
}

#[test]
fn a_host_that_cannot_be_reached_is_said_to_be_so() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let refused = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let silent = Peer::new(|stream, kept| kept.push(stream));
    let web = Peer::new(|mut stream, _| {
        drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>\r\n"));
    });
    let hasty = Peer::new(|stream, _| drop(stream));
    // What is sent here arrives nowhere.
    let mut dummy = Command::new("sh");
    dummy
        .args(["-ec", "ip link add hole type dummy; ip addr add 192.0.2.2/24 dev hole; ip link set hole up"]);
    let hole = dummy.output().unwrap().status.success();

    let at = |port: u16| format!("somebody@127.0.0.1:{port}");
    let (refused, silent_at, web_at, hasty_at) = (at(refused), at(silent.port), at(web.port), at(hasty.port));
    let fast = ["-o", "ConnectTimeout=1"];
    let mut cases = vec![
        (
            "nothing listens",
            refused.as_str(),
            &["could not reach", "127.0.0.1", "connection refused", "-P"][..],
        ),
        (
            "no such name",
            "no-such-host.invalid",
            &["no-such-host.invalid", "could not be resolved", "spelling"],
        ),
        ("silent", &silent_at, &["127.0.0.1", "did not answer", "1 s"]),
        ("web server", &web_at, &["127.0.0.1", "broke off", "is it an SSH server"]),
        ("closes at once", &hasty_at, &["127.0.0.1", "broke off", "is it an SSH server"]),
    ];
    if hole {
        cases.push(("black hole", "somebody@192.0.2.1", &["192.0.2.1:22", "no answer within 1 s", "VPN"]));
    }
    all(cases, |(name, host, words)| {
        let arguments = [&["connect", host, "--batch", "-p", "dev"], &fast[..]].concat();
        Case { name, arguments: &arguments, kind: UNREACHABLE, words }.is_refused_at_leisure(&mut world);
    });
    world.assert_clean();
}

/// Lines of sshd_config, besides those that every host has.
fn configure(world: &World, lines: &[&str]) {
    let environment: Vec<String> =
        world.aws.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut all = vec![format!("SetEnv {}", environment.join(" "))];
    all.extend(lines.iter().map(|&line| line.to_owned()));
    world.sshd.configure(&all);
}

#[test]
fn a_host_that_does_not_forward_is_refused_in_words() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let connect = ["connect", BASTION, "--batch", "-p", "dev", "--transport", "tcp"];
    let cases = [
        (
            "forwarding off",
            &["AllowTcpForwarding no", "AllowStreamLocalForwarding no"][..],
            &["does not allow remote forwarding", "AllowTcpForwarding remote"][..],
        ),
        ("tcp off", &["AllowTcpForwarding no"], &[BASTION, "4144", "PermitListen 127.0.0.1:4144"]),
        ("local only", &["AllowTcpForwarding local"], &[BASTION, "4144", "AllowTcpForwarding remote"]),
        ("all off", &["DisableForwarding yes"], &["does not allow remote forwarding", "DisableForwarding"]),
        (
            "other port",
            &["PermitListen 127.0.0.1:9999"],
            &["4144 is not among them", "PermitListen 127.0.0.1:4144"],
        ),
        ("no port", &["PermitListen none"], &[BASTION, "PermitListen 127.0.0.1:4144"]),
        ("gateway", &["GatewayPorts yes"], &["4144", "to the network", "GatewayPorts no"]),
        ("no session", &["MaxSessions 0"], &[BASTION, "MaxSessions"]),
        ("forced command", &["ForceCommand echo \"$SSH_ORIGINAL_COMMAND\""], &[BASTION, "ForceCommand"]),
        (
            "forced menu",
            &["ForceCommand sh -c 'echo Welcome to the menu; read x; echo $x'"],
            &[BASTION, "Welcome to the menu", "ForceCommand"],
        ),
    ];
    all(cases, |(name, lines, words)| {
        configure(&world, lines);
        let case = Case { name, arguments: &connect, kind: FORWARD_REFUSED, words };
        if name == "forced menu" {
            case.is_refused_at_leisure(&mut world);
        } else {
            case.is_refused(&mut world);
        }
        // The port is free again for whoever wants it.
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 4144)).unwrap_or_else(|e| panic!("{name}: {e}")));
    });
    world.assert_clean();
}

#[test]
fn options_of_the_key_are_respected_and_named() {
    if sandbox::isolated!() {
        return;
    }
    for (key_options, words) in [
        ("restrict", &["does not allow remote forwarding", "restrict"][..]),
        ("no-port-forwarding", &["does not allow remote forwarding", "no-port-forwarding"]),
        ("restrict,port-forwarding,permitlisten=\"127.0.0.1:9999\"", &["4144", "permitlisten"]),
    ] {
        let options = SshdOptions { key_options: key_options.into(), ..SshdOptions::default() };
        let mut world = World::with(options);
        let arguments = ["connect", BASTION, "--batch", "-p", "dev", "--transport", "tcp"];
        Case { name: key_options, arguments: &arguments, kind: FORWARD_REFUSED, words }
            .is_refused(&mut world);
        world.assert_clean();
    }
    // The least that an administrator has to give.
    let enough = "restrict,port-forwarding,permitlisten=\"127.0.0.1:4144\"";
    let options = SshdOptions { key_options: enough.into(), ..SshdOptions::default() };
    let mut world = World::with(options);
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert!(tunnel.url().contains(":4144/"));
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

#[test]
fn a_port_that_was_asked_for_is_never_replaced() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // Another user of the host was here first.
    const HOLD: &str = "import socket, sys, time
s = socket.socket(); s.bind(('127.0.0.1', 5123)); s.listen(); print('held', flush=True); sys.stdin.read()";
    let other = User::other();
    let mut holder = Command::new("python3");
    holder.as_user(&other).args(["-c", HOLD]);
    let mut holder = world.laptop.spawn(holder);
    holder.wait_for_line(Stream::Stdout, "held", PATIENCE);
    let uid = format!("uid {}", other.uid);
    let root = TcpListener::bind((Ipv4Addr::LOCALHOST, 5124)).unwrap();
    // dropbear has [::1] alone, and cannot be told from root.
    let (held_by_root, hint) = match Program::asked_for() {
        Program::Dropbear => ("something else is there", "-R"),
        _ => ("in use by root", "auto"),
    };
    for (port, words) in [
        ("5123", &["port 5123", "in use by another user", &uid, "auto"][..]),
        ("5124", &["port 5124", held_by_root, hint]),
        ("80", &["port 80", "below 1024", "auto"]),
    ] {
        let arguments = ["connect", BASTION, "--batch", "-p", "dev", "-R", port];
        Case { name: port, arguments: &arguments, kind: FORWARD_REFUSED, words }.is_refused(&mut world);
    }
    drop(root);
    // And one of our own.
    let tunnel = world.tunnel(&["-p", "dev", "-R", "5125"]);
    let output = world.run(world.connect(&["-p", "dev", "-N", "-R", "5125"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(6), ""), "{output}");
    assert!(output.stderr().contains(holder_of_ours()), "{output}");
    assert_reads_well("ours", &output.stderr());
    assert!(tunnel.token_file().exists(), "the second broker disturbed the first one");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

/// Gives the host's user an empty home that no other test sees, with these rc files.
fn home_of_their_own(user: &User, mode: &str, files: &[(&str, &str)]) {
    let options = format!("mode={mode},uid={},gid={}", user.uid, user.gid);
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&user.home).status();
    assert!(mounted.unwrap().success(), "could not mount a home on {}", user.home.display());
    for (name, text) in files {
        let path = user.home.join(name);
        std::fs::write(&path, text).unwrap();
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

#[test]
fn a_shell_that_talks_before_it_works_disturbs_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let user = User::host();
    home_of_their_own(&user, "700", &[]);
    let mut world = World::new();
    for (name, rc) in [
        ("a line", "echo Welcome; echo careful >&2"),
        ("no newline", "printf 'module> '; printf 'loading' >&2"),
        ("60 KB", "head -c 60000 /dev/zero | tr '\\0' x"),
        ("60 KB of lines", "yes 'a line of noise' | head -c 60000"),
        ("control characters", "printf '\\033[2J\\033]0;title\\007\\r\\000\\377'"),
        (
            "what looks like ours",
            "echo 'broker-0123456789abcdef0123456789abcdef ready'; echo 0123456789abcdef0123456789abcdef 0 ok",
        ),
    ] {
        let path = user.home.join(".bashrc");
        std::fs::write(&path, format!("{rc}\n")).unwrap();
        let script = "printf \"<%s>\" \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"";
        let output = world.run(world.connect(&["-p", "dev", "--", script]));
        assert_eq!(output.code, Some(0), "{name}\n{output}");
        // The command's own shell reads the same file, as under ssh.
        assert!(output.stdout().ends_with("<http://127.0.0.1:4144/>"), "{name}\n{output}");
        let tunnel = world.tunnel(&["-p", "dev"]);
        assert!(
            tunnel.exports.starts_with("export ") || tunnel.exports.starts_with("unset "),
            "{}",
            tunnel.exports
        );
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{name}\n{output}");
    }
    // With SFTP there would be files instead.
    world.sshd.configure(&["Subsystem other internal-sftp".to_owned()]);
    // More than any rc file prints is no shell.
    std::fs::write(user.home.join(".bashrc"), "yes\n").unwrap();
    Case {
        name: "endless",
        arguments: &["connect", BASTION, "--batch", "-p", "dev"],
        kind: FORWARD_REFUSED,
        words: &[BASTION, "printed too much", "`ssh"],
    }
    .is_refused(&mut world);
    // A shell that hangs is given up within 10 s.
    std::fs::write(user.home.join(".bashrc"), "echo starting; sleep 1000\n").unwrap();
    let started = std::time::Instant::now();
    Case {
        name: "hangs",
        arguments: &["connect", BASTION, "--batch", "-p", "dev"],
        kind: FORWARD_REFUSED,
        words: &[BASTION, "did not answer", "starting"],
    }
    .is_refused_at_leisure(&mut world);
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
    world.assert_clean();
}

#[test]
fn an_account_without_a_shell_is_named() {
    if sandbox::isolated!() {
        return;
    }
    for (user, shell, words) in [
        ("broker-nologin", "/usr/sbin/nologin", &[BASTION, "not available", "nologin"][..]),
        ("broker-false", "/bin/false", &[BASTION, "run commands"]),
    ] {
        // With SFTP there would be files.
        let options = SshdOptions::new(User::ensure(user, shell)).config("Subsystem other internal-sftp");
        let mut world = World::with(options);
        let arguments = ["connect", BASTION, "--batch", "-p", "dev"];
        Case { name: shell, arguments: &arguments, kind: FORWARD_REFUSED, words }.is_refused(&mut world);
        world.assert_clean();
    }
}

#[test]
fn one_session_is_enough_for_a_tunnel_but_not_for_a_command() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    configure(&world, &["MaxSessions 1"]);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    let output = world.run(world.connect(&["-p", "dev", "--", "echo", RAN]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(255), ""), "{output}");
    let said = output.stderr();
    assert!(said.contains("MaxSessions") && said.contains(BASTION), "{output}");
    assert!(said.ends_with("broker: failed: forward-refused (6)\n"), "{output}");
    assert_reads_well("MaxSessions 1", &said);
    world.assert_clean();
}

#[test]
fn a_host_without_terminals_says_how_to_do_without() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    configure(&world, &["PermitTTY no"]);
    let command = world.broker(&["connect", BASTION, "-p", "dev"]);
    let mut terminal = world.laptop.terminal(command, 24, 200);
    let before = terminal.settings();
    let said = terminal.wait_for_text("`-T`", PATIENCE);
    assert!(said.contains("warning") && said.contains("bastion gives no terminal (PermitTTY"), "{said}");
    // It works, as under ssh, and ends with its input.
    terminal.send("echo $((40 + 2)) works\n");
    terminal.wait_for_text("42 works", PATIENCE);
    terminal.send([4]);
    let output = terminal.wait(PATIENCE);
    world.heard("PermitTTY no", &output);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(terminal.settings(), before, "the terminal was not put back");
    let output = world.run(world.connect(&["-p", "dev", "-T", "--", "echo", "works"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    world.assert_clean();
}

#[test]
fn a_home_that_cannot_be_written_is_not_needed() {
    if sandbox::isolated!() {
        return;
    }
    home_of_their_own(&User::host(), "500,ro", &[]);
    let mut world = World::new();
    let output = world.run(world.connect(&["-p", "dev", "--", "echo", "works"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    world.assert_clean();
}

#[test]
fn a_host_with_no_place_for_a_token_gets_none() {
    if sandbox::isolated!() {
        return;
    }
    // Before the checkout may be hidden by what follows.
    let _program = support::program();
    home_of_their_own(&User::host(), "500,ro", &[]);
    for place in ["/tmp", "/dev/shm"] {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "tmpfs", place]).status();
        assert!(mounted.unwrap().success());
    }
    let mut world = World::new();
    Case {
        name: "no place",
        arguments: &["connect", BASTION, "--batch", "-p", "dev"],
        kind: FORWARD_REFUSED,
        words: &[BASTION, "no directory that is safe for a token", "/dev/shm", "/tmp"],
    }
    .is_refused(&mut world);
    world.assert_clean();
}

pub(crate) fn fingerprint_of(world: &World, known_hosts_line: &str) -> String {
    let path = world.laptop.write("one-line", known_hosts_line, 0o600);
    let mut keygen = world.laptop.command("ssh-keygen");
    keygen.arg("-lf").arg(path);
    let output = world.laptop.run(keygen).success();
    output.stdout().split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_user_without_a_home_or_a_name_is_told_what_to_set() {
    if sandbox::isolated!() {
        return;
    }
    // A container often runs as a uid that the user database does not know.
    let nobody = User {
        name: "nobody-knows".into(),
        uid: 4_711_001,
        gid: 4_711_001,
        home: "/".into(),
        shell: "/bin/sh".into(),
    };
    let run = |variables: &[(&str, &str)], further: &[&str]| {
        let mut command = Command::new(support::program());
        command.as_user(&nobody).env_remove("HOME").env_remove("USER").env_remove("LOGNAME");
        command.envs(variables.iter().copied()).args(["connect", "h", "-p", "dev"]).args(further);
        sandbox::home::run_within(command, &[], PATIENCE)
    };
    for (variables, word) in [(&[][..], "HOME"), (&[("HOME", "/nonexistent")], "USER")] {
        let output = run(variables, &["-N"]);
        assert_eq!((output.code, output.stdout().as_str()), (Some(1), ""), "{output}");
        assert!(output.stderr().contains(&format!("broker: hint: set {word}")), "{output}");
        assert_reads_well(word, &output.stderr());
        let output = run(variables, &["-N", "--log-format", "json"]);
        let error = json_error(word, &output.stderr());
        assert_eq!((error["kind"].as_str(), error["code"].as_i64()), (Some("failed"), Some(1)), "{output}");
        let output = run(variables, &["--", "true"]);
        assert_eq!(output.code, Some(255), "{output}");
        assert!(output.stderr().ends_with("broker: failed: failed (1)\n"), "{output}");
    }
    // With both, the files there are what is missing.
    let output = run(&[("HOME", "/nonexistent"), ("USER", "somebody")], &["-N"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr().contains("/nonexistent/.aws/config"), "{output}");
    assert_reads_well("no files", &output.stderr());
}

#[test]
fn help_is_as_it_was_read_and_approved() {
    if sandbox::isolated!() {
        return;
    }
    for (name, help) in std::iter::once("broker").chain(COMMANDS).zip(helps()) {
        let path = support::checkout(&format!("tests/e2e/help/{name}.txt"));
        support::snapshot(&path, &help);
        assert!(!help.contains("eval") && help.lines().all(|line| line.chars().count() <= 120), "{help}");
    }
}

#[test]
fn state_that_cannot_be_written_is_a_warning() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let state = world.laptop.mkdir(".local/state", 0o700);
    world.laptop.mkdir(".local/state/broker", 0o700);
    std::fs::set_permissions(state.join("broker"), std::fs::Permissions::from_mode(0o500)).unwrap();
    let output = world.run(world.connect(&["-p", "dev", "--", "echo", "works"]));
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{output}");
    let said = output.stderr();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("not logged")).collect();
    assert_eq!(warnings.len(), 1, "{output}");
    assert!(warnings[0].starts_with("broker: warning: ") && warnings[0].contains("audit.log"), "{output}");
    world.assert_clean();
}
