//! How soon processes on the host are served again after a cut; `cargo bench --bench reconnect`.
//!
//! One tunnel through a real sshd is cut again and again: the sshd child is killed, or nothing passes for some seconds.
//! Cuts follow each other faster than those of any network, so that the waits between attempts, of four seconds at
//! most, are in it. Needs root and nftables (`tests/run` installs them). `BENCH_QUICK=1` makes few cuts and judges
//! nothing; nor is a debug build judged. Ends with 1 when a goal is missed.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement: what goes wrong here is a failed run, and a panic is its report"
)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    aws::FakeAws,
    home::{Home, Host, Process, Stream, run_within},
    sshd::{Sshd, SshdOptions},
    users::User,
};

/// Back in service after the network is, 95 of 100 times.
const BACK: Duration = Duration::from_secs(5);

/// A killed sshd child is noticed.
const NOTICED: Duration = Duration::from_millis(200);

/// Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the port is tried while it is away; a figure is no better than this.
const POLL: Duration = Duration::from_millis(5);

/// Says inside the namespace that we are inside.
const INSIDE: &str = "BENCH_INSIDE";

fn main() -> ExitCode {
    let asked = std::env::args().any(|argument| argument == "--bench");
    if std::env::var_os(INSIDE).is_some() {
        return bench();
    }
    if !asked {
        // `cargo test --all-targets` runs us as well.
        println!("run it with `cargo bench --bench reconnect`");
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

struct Lab {
    sshd: Sshd,
    process: Process,
    token: String,
}

impl Lab {
    fn new(aws: &FakeAws, laptop: &Home, sshd: Sshd) -> Self {
        laptop.add_host(&Host {
            alias: "bastion".into(),
            port: sshd.port(),
            user: sshd.user().name.clone(),
            known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
            key: sshd.client_key(),
        });
        // Our own requests are root's.
        let arguments = ["connect", "bastion", "--batch", "-N", "-p", "dev", "--allow-uid", "0"];
        let mut connect = laptop.command(env!("CARGO_BIN_EXE_broker"));
        connect
            .args(arguments)
            .args(["--log-format", "json", "--print-env", "json"])
            .args(["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=2"])
            .envs(aws.environment());
        let mut process = laptop.spawn(connect);
        process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
        let line = process.wait_for_line(Stream::Stdout, "TOKEN_FILE", PATIENCE);
        let exports: serde_json::Value = serde_json::from_str(&line).expect("one line of JSON");
        let file = exports["set"]["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"].as_str().unwrap().to_owned();
        let token = std::fs::read_to_string(file).unwrap();
        Self { sshd, process, token }
    }

    /// Whether an SDK gets credentials now, over a connection of its own and with the token of the first link.
    fn serves(&self) -> bool {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:4144\r\nAuthorization: {}\r\nAccept: application/json\r\n\r\n",
            self.token
        );
        let mut answer = Vec::new();
        let asked = TcpStream::connect(("127.0.0.1", 4144)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)
        });
        asked.is_ok()
            && answer.starts_with(b"HTTP/1.1 200")
            && String::from_utf8_lossy(&answer).contains("AccessKeyId")
    }

    fn until_served(&self, since: Instant) -> Duration {
        while !self.serves() {
            assert!(
                since.elapsed() < PATIENCE,
                "it did not come back:\n{}",
                self.process.text(Stream::Stderr)
            );
            thread::sleep(POLL);
        }
        since.elapsed()
    }

    /// Kills the sshd child. Returns when that was noticed, and when an SDK was served again.
    fn kill(&mut self) -> (Duration, Duration) {
        let since = Instant::now();
        assert_eq!(self.sshd.kill_connections(), 1);
        self.process.wait_for_line(Stream::Stderr, "\"lost\"", PATIENCE);
        let noticed = since.elapsed();
        let back = self.until_served(since);
        self.process.wait_for_line(Stream::Stderr, "\"back\"", PATIENCE);
        (noticed, back)
    }

    /// Lets nothing pass until the link is given up, and `more` after that. Returns when an SDK was served after the
    /// network was whole.
    fn silence(&mut self, more: Duration) -> Duration {
        let port = self.sshd.port();
        nft(&format!(
            "table inet cut {{\n chain input {{\n type filter hook input priority 0\n \
             tcp dport {port} drop\n tcp sport {port} drop\n }}\n}}\n"
        ));
        self.process.wait_for_line(Stream::Stderr, "\"lost\"", PATIENCE);
        thread::sleep(more);
        nft("delete table inet cut\n");
        let healed = Instant::now();
        // The port of the dead connection is open until the new one has it, so that the event tells.
        self.process.wait_for_line(Stream::Stderr, "\"back\"", PATIENCE);
        self.until_served(healed)
    }
}

fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    let output = run_within(command, rules.as_bytes(), PATIENCE);
    assert_eq!(output.code, Some(0), "{rules}: {output}");
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn row(name: &str, times: &[Duration]) {
    let [p50, p95, most] = [50, 95, 100].map(|percent| percentile(times, percent).as_secs_f64() * 1e3);
    println!("| {name} | {} | {p50:.0} | {p95:.0} | {most:.0} |", times.len());
}

fn bench() -> ExitCode {
    let quick = std::env::var_os("BENCH_QUICK").is_some_and(|value| value == "1");
    let judged = !quick && !cfg!(debug_assertions);
    let (kills, silences) = if quick { (5, 2) } else { (70, 30) };
    let aws = FakeAws::start_blocking();
    aws.add_role("123456789012", "Development", "Developer");
    let laptop = Home::of(User::current());
    aws.seed_home(laptop.path(), "corp", &[("dev", "123456789012", "Developer")], "eu-west-1");
    aws.seed_token(laptop.path(), "corp");
    let mut lab = Lab::new(&aws, &laptop, Sshd::start(SshdOptions::default()));
    assert!(lab.serves(), "it does not even begin");

    let (mut noticed, mut killed, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..kills {
        let (notice, back) = lab.kill();
        noticed.push(notice);
        killed.push(back);
    }
    for cut in 0..silences {
        silent.push(lab.silence(Duration::from_secs(cut % 10)));
    }
    let all: Vec<Duration> = killed.iter().chain(&silent).copied().collect();
    println!("| ms | cuts | p50 | p95 | most |\n|---|---|---|---|---|");
    row("a killed sshd child is noticed", &noticed);
    row("served again after a kill", &killed);
    row("served again after the network is back", &silent);
    row("served again, all cuts", &all);
    if !judged {
        println!("not judged: {}", if quick { "BENCH_QUICK" } else { "a debug build" });
        return ExitCode::SUCCESS;
    }
    let holds = percentile(&all, 95) <= BACK && percentile(&noticed, 95) <= NOTICED;
    println!("{}", if holds { "both goals hold" } else { "A GOAL IS MISSED" });
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
