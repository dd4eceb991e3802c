//! How `broker` does as an SSH client, beside OpenSSH's; `cargo bench --bench ssh`.
//!
//! The same real sshd, the same key, the same algorithms, one after the other in every round and in changing order; what
//! counts is the median of the ratios within the rounds, because the machine is never the same twice. Three things that
//! a person at a terminal notices: how long it takes until the host has let us in, how fast a large file comes, and how
//! long a typed key takes to the screen. `broker` gets credentials before it connects, and that counts.
//!
//! Needs root and what `tests/run` installs. `BENCH_QUICK=1` proves that everything works and judges nothing; nor is a
//! debug build judged. Ends with 1 when a gate does not hold.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement: what goes wrong here is a failed run, and a panic is its report"
)]

use std::{
    fmt::Write as _,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    aws::FakeAws,
    home::{Home, Host},
    sshd::{Sshd, SshdOptions},
    users::User,
};
use tempfile::TempDir;

/// The key exchange of all but the row that says otherwise: both have it, and it is cheap on both sides.
const KEX: &str = "curve25519-sha256";

/// Encrypted and authenticated in one, and there on both sides.
const CIPHERS: [&str; 3] =
    ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"];

/// How much later than with `ssh` the host may have let us in.
const LOGIN: f64 = 1.2;

/// What of `ssh`'s throughput there must be.
const BULK: f64 = 1.0;

/// How much later than with `ssh` a key may be on the screen, in milliseconds.
const ECHO: f64 = 1.0;

/// Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the log of sshd is looked at; a figure is no better than this.
const POLL: Duration = Duration::from_micros(200);

/// Says inside the namespace that we are inside.
const INSIDE: &str = "BENCH_INSIDE";

struct Extent {
    rounds: usize,
    logins: usize,
    files: usize,
    /// Megabytes of a file.
    bulk: u64,
    keys: usize,
}

const FULL: Extent = Extent { rounds: 7, logins: 6, files: 3, bulk: 500, keys: 150 };
const QUICK: Extent = Extent { rounds: 1, logins: 2, files: 1, bulk: 50, keys: 20 };

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_some() {
        return bench();
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs us as well.
        println!("run it with `cargo bench --bench ssh`");
        return ExitCode::SUCCESS;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", "sh", "-ec", "ip link set lo up; exec \"$1\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1");
    let status = command.status().expect("unshare is there (util-linux)");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Client {
    Broker,
    Ssh,
}

struct World {
    aws: FakeAws,
    laptop: Home,
    sshd: Sshd,
    place: TempDir,
    broker: PathBuf,
}

impl World {
    fn new(megabytes: u64) -> Self {
        let aws = FakeAws::start_blocking();
        aws.add_role("123456789012", "Benchmark", "Developer");
        let laptop = Home::of(User::current());
        aws.seed_home(laptop.path(), "bench", &[("bench", "123456789012", "Developer")], "eu-central-1");
        aws.seed_token(laptop.path(), "bench");
        let sshd = Sshd::start(SshdOptions::default());
        laptop.add_host(&Host {
            alias: "host".into(),
            port: sshd.port(),
            user: sshd.user().name.clone(),
            known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
            key: sshd.client_key(),
        });
        // Holes of a file in memory cost the host nothing to read.
        let place = tempfile::Builder::new().prefix("bench-").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::File::create(place.path().join("file")).unwrap().set_len(megabytes << 20).unwrap();
        // Another program can take its place, such as one of another version.
        let other = std::env::var_os("BENCH_BROKER");
        let broker = other.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_broker")), PathBuf::from);
        Self { aws, laptop, sshd, place, broker }
    }

    /// Runs `line` on the host, with these options of ssh_config.
    fn command(&self, client: Client, terminal: bool, options: &[String], line: &str) -> Command {
        let mut command = match client {
            Client::Broker => {
                let mut command = self.laptop.command(&self.broker);
                command.args(["connect", "host", "--batch", "-p", "bench"]).envs(self.aws.environment());
                command
            }
            Client::Ssh => self.laptop.ssh(),
        };
        command.env("TERM", "xterm");
        for option in options {
            command.args(["-o", option]);
        }
        if terminal {
            command.arg("-t");
        }
        match client {
            Client::Broker => command.args(["--", line]),
            Client::Ssh => command.args(["host", line]),
        };
        command
    }

    /// Milliseconds from the start of the program until the host has let it in, as sshd logs it.
    fn login(&self, client: Client, options: &[String]) -> f64 {
        let accepted = || self.sshd.log().matches("Accepted publickey").count();
        let before = accepted();
        let mut command = self.command(client, false, options, "true");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        while accepted() == before {
            assert!(started.elapsed() < PATIENCE, "{client:?} does not get in");
            thread::sleep(POLL);
        }
        let took = started.elapsed();
        assert!(child.wait().unwrap().success(), "{client:?}");
        took.as_secs_f64() * 1e3
    }

    /// Megabytes in a second, from the first byte to the last.
    fn bulk(&self, client: Client, cipher: &str) -> f64 {
        let options = [format!("KexAlgorithms={KEX}"), format!("Ciphers={cipher}")];
        let file = self.place.path().join("file").display().to_string();
        let mut command = self.command(client, false, &options, &format!("cat {file}"));
        let said = self.place.path().join("said");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&said).unwrap());
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut buffer = vec![0; 256 << 10];
        let first = stdout.read(&mut buffer).unwrap();
        let started = Instant::now();
        let mut bytes = 0;
        loop {
            match stdout.read(&mut buffer).unwrap() {
                0 => break,
                n => bytes += n,
            }
        }
        let took = started.elapsed();
        let status = child.wait().unwrap();
        assert!(status.success(), "{client:?}: {status}\n{}", std::fs::read_to_string(said).unwrap());
        let whole = std::fs::metadata(self.place.path().join("file")).unwrap().len();
        assert_eq!((first + bytes) as u64, whole, "{client:?}");
        bytes as f64 / 1e6 / took.as_secs_f64()
    }

    /// Milliseconds from a typed key to its echo on the screen: one of half of all keys, and one of 99 of 100.
    fn echo(&self, client: Client, keys: usize) -> (f64, f64) {
        let options = [format!("KexAlgorithms={KEX}"), format!("Ciphers={}", CIPHERS[0])];
        let command = self.command(client, true, &options, "echo ready; exec cat");
        let mut terminal = self.laptop.terminal(command, 24, 80);
        terminal.wait_for_text("ready", PATIENCE);
        let mut times = Vec::with_capacity(keys);
        for n in 0..keys {
            // A person's pace, more or less, so that no packet waits for another's acknowledgement by chance.
            thread::sleep(Duration::from_millis(5 + (n as u64 * 7) % 11));
            let key = char::from(b'a' + (n % 26) as u8).to_string();
            let typed = Instant::now();
            terminal.send(&key);
            terminal.wait_for_text(&key, PATIENCE);
            times.push(typed.elapsed().as_secs_f64() * 1e3);
            if n % 40 == 39 {
                terminal.send("\r");
                terminal.wait_for_text("\n", PATIENCE);
                terminal.wait_for_text("\n", PATIENCE);
            }
        }
        terminal.send("\r\u{4}");
        assert_eq!(terminal.wait(PATIENCE).code, Some(0), "{client:?}");
        times.sort_by(f64::total_cmp);
        (times[keys / 2], times[keys * 99 / 100])
    }
}

/// One row: what each client did in each round.
struct Row {
    name: String,
    unit: &'static str,
    values: Vec<[f64; 2]>,
    gate: Gate,
}

#[derive(Clone, Copy)]
enum Gate {
    /// At most so many times what `ssh` takes.
    Ratio(f64),
    /// At least so many times what `ssh` does.
    Throughput(f64),
    /// At most so much more than `ssh` takes.
    More(f64),
    None,
}

impl Row {
    fn new(name: impl Into<String>, unit: &'static str, gate: Gate) -> Self {
        Self { name: name.into(), unit, values: Vec::new(), gate }
    }

    fn median_of(&self, of: impl Fn(&[f64; 2]) -> f64) -> f64 {
        median(self.values.iter().map(of).collect())
    }

    fn holds(&self) -> bool {
        let ratio = self.median_of(|[broker, ssh]| broker / ssh);
        match self.gate {
            Gate::Ratio(most) => ratio <= most,
            Gate::Throughput(least) => ratio >= least,
            Gate::More(most) => self.median_of(|[broker, ssh]| broker - ssh) <= most,
            Gate::None => true,
        }
    }

    fn markdown(&self) -> String {
        let (broker, ssh) = (self.median_of(|values| values[0]), self.median_of(|values| values[1]));
        let ratio = self.median_of(|[broker, ssh]| broker / ssh);
        let gate = match self.gate {
            Gate::Ratio(most) => format!("≤ {most:.2}×"),
            Gate::Throughput(least) => format!("≥ {least:.2}×"),
            Gate::More(most) => format!("≤ {most:.1} {} more", self.unit),
            Gate::None => String::new(),
        };
        let verdict = if self.holds() { "" } else { " **missed**" };
        format!(
            "| {} | {broker:.3} {unit} | {ssh:.3} {unit} | {ratio:.2}× | {gate}{verdict} |",
            self.name,
            unit = self.unit
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn bench() -> ExitCode {
    let quick = std::env::var_os("BENCH_QUICK").is_some_and(|value| value == "1");
    let judged = !quick && !cfg!(debug_assertions);
    let extent = if quick { QUICK } else { FULL };
    let started = Instant::now();
    let world = World::new(extent.bulk);
    let same = vec![format!("KexAlgorithms={KEX}")];
    let mut login = Row::new("let in, the same key exchange", "ms", Gate::Ratio(LOGIN));
    let mut own = Row::new("let in, each with its own first key exchange", "ms", Gate::Ratio(LOGIN));
    let mut bulk = CIPHERS.map(|cipher| {
        Row::new(format!("`-- cat`, {}", cipher.split('@').next().unwrap()), "MB/s", Gate::Throughput(BULK))
    });
    let mut echo = Row::new("a key to the screen, half of them", "ms", Gate::More(ECHO));
    let mut late = Row::new("a key to the screen, 99 of 100", "ms", Gate::None);
    for round in 0..extent.rounds {
        eprintln!("round {} of {} ({} s)", round + 1, extent.rounds, started.elapsed().as_secs());
        // Whoever is first in this round is second in the next.
        let both = |measure: &mut dyn FnMut(Client) -> f64| {
            let mut values = [0.0; 2];
            let mut order = [Client::Broker, Client::Ssh];
            order.rotate_left(round % 2);
            order.into_iter().for_each(|client| values[client as usize] = measure(client));
            values
        };
        let several = |times: usize, measure: &mut dyn FnMut(Client) -> f64| {
            let each: Vec<_> = (0..times).map(|_| both(measure)).collect();
            let of = |client: usize| median(each.iter().map(|values| values[client]).collect());
            [of(0), of(1)]
        };
        for (row, options) in [(&mut login, &same), (&mut own, &Vec::new())] {
            row.values.push(several(extent.logins, &mut |client| world.login(client, options)));
        }
        for (row, cipher) in bulk.iter_mut().zip(CIPHERS) {
            row.values.push(several(extent.files, &mut |client| world.bulk(client, cipher)));
        }
        let mut slowest = [0.0; 2];
        echo.values.push(both(&mut |client| {
            let (half, most) = world.echo(client, extent.keys);
            slowest[client as usize] = most;
            half
        }));
        late.values.push(slowest);
    }
    let rows: Vec<Row> = [login, own].into_iter().chain(bulk).chain([echo, late]).collect();
    let mut text = String::from("| | broker | ssh | ratio | gate |\n|---|---|---|---|---|\n");
    rows.iter().for_each(|row| writeln!(text, "{}", row.markdown()).unwrap());
    writeln!(text, "\nMedians of {} rounds, {} s.", extent.rounds, started.elapsed().as_secs()).unwrap();
    if !judged {
        text.push_str(if quick { "Not judged: BENCH_QUICK.\n" } else { "Not judged: a debug build.\n" });
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("ssh.md"), &text).unwrap();
    println!("{text}");
    if !judged || rows.iter().all(Row::holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
