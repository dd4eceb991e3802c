//! What one more tunnel costs in a process that has many: resident memory of `broker connect HOST... -N`, beside that of
//! as many `ssh -N -R` and of a process that does nothing but hold as many connections of russh.
//!
//! `cargo bench --bench many` with 500 tunnels to a server in this process, `cargo bench --bench many -- 50` with fewer.
//! The helpers on the pretend host are real processes, and are not counted: they run elsewhere in real life. Ends with 1
//! when a further tunnel costs more than a used connection of russh alone and what is ours. The goal is [`GOAL_KIB`], and
//! is out of reach with russh 0.65: its four queues have room for 32 messages of 552 bytes each, which fill up to that
//! size as they are used, and there is no way to have smaller ones.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what goes wrong here fails the benchmark, and a panic is its report"
)]

mod bare;
mod peers;

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use sandbox::{
    aws::FakeAws,
    bastion::{Bastion, Options},
    home::{Home, Process, Stream},
};

/// What each tunnel beyond the first should cost.
const GOAL_KIB: f64 = 80.0;

/// How much of a tunnel that has just come up is not russh's: grants, the helper's end, what a reconnect needs.
const OURS_KIB: f64 = 50.0;

/// All of them together may take this long to come up on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the handshakes needed is given back by then.
const REST: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if bare::is_asked_for() {
        return bare::run();
    }
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs us as well.
        println!("run it with `cargo bench --bench many`");
        return ExitCode::SUCCESS;
    }
    let count = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(500);
    println!("| {count} tunnels | up in s | KiB | KiB with {} | KiB for each further one |", count / 10);
    println!("|---|---|---|---|---|");
    let each = row("broker", count, tunnels);
    let floor = row("russh alone: a login, a forward, a command", count, bare::connections);
    let used = row("russh alone, half an hour later", count, bare::used_connections);
    let ssh = row("a process of `ssh -N -R` for each (PSS)", count, peers::processes);
    println!(
        "{each:.1} KiB for each further tunnel; {:.1} of them are not russh's, at most {OURS_KIB}; `ssh` takes {:.1} times \
         as much",
        each - floor,
        ssh / each
    );
    let goal = if each <= GOAL_KIB { "reached" } else { "NOT reached" };
    println!(
        "the goal of {GOAL_KIB} KiB is {goal}: russh alone takes {floor:.1}, and {used:.1} half an hour later"
    );
    if each - floor <= OURS_KIB { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measures and prints what each further tunnel takes, in KiB.
fn row(name: &str, count: usize, measure: fn(usize) -> (f64, Duration)) -> f64 {
    // Each starts once, so that what is measured is one process at two sizes and not one process as it grows.
    let (small, _) = measure(count / 10);
    let (large, took) = measure(count);
    let further = f64::from(u32::try_from(count - count / 10).unwrap());
    let each = (large - small) / further;
    println!("| {name} | {:.1} | {large:.0} | {small:.0} | {each:.1} |", took.as_secs_f64());
    each
}

/// Returns the resident memory of a process in KiB.
fn resident(pid: u32) -> f64 {
    field(pid, "status", "VmRSS:")
}

fn field(pid: u32, file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns the resident memory of one `broker` with so many tunnels in KiB, and how long their start took.
fn tunnels(count: usize) -> (f64, Duration) {
    let aws = FakeAws::start_blocking();
    aws.add_role("123456789012", "Development", "Developer");
    let home = Home::temporary();
    let bastion = Bastion::start(Options { home: home.path().to_owned(), ..Options::default() });
    aws.seed_home(home.path(), "corp", &[("dev", "123456789012", "Developer")], "eu-west-1");
    aws.seed_token(home.path(), "corp");
    let mut config = String::new();
    // As it would be: a line for every host.
    let mut known_hosts = String::new();
    let names: Vec<String> = (1..=count).map(|number| format!("host{number}")).collect();
    for name in &names {
        writeln!(
            config,
            "Host {name}\n  HostName 127.0.0.1\n  HostKeyAlias {name}\n  Port {}\n  User ada\n  IdentityFile {}\n  \
             IdentitiesOnly yes\n  UserKnownHostsFile {}",
            bastion.port(),
            bastion.client_key_path().display(),
            home.join("known_hosts").display()
        )
        .unwrap();
        writeln!(known_hosts, "{name} {}", bastion.host_public_key_line()).unwrap();
    }
    home.write("config", config, 0o600);
    home.write("known_hosts", known_hosts, 0o600);
    let mut command = home.command(env!("CARGO_BIN_EXE_broker"));
    command.args(["connect", "-N", "--batch", "--transport", "unix", "--print-env", "json", "-p", "dev"]);
    command.envs(std::env::vars().filter(|(name, _)| name.starts_with("MALLOC_")));
    command.args(["-F"]).arg(home.join("config")).args(&names).envs(aws.environment());
    let started = Instant::now();
    let mut process = Process::spawn(command);
    let up = |process: &Process| process.text(Stream::Stdout).lines().count();
    while up(&process) < count {
        assert!(
            !process.has_ended() && started.elapsed() < PATIENCE,
            "{} of {count} are up\n{}",
            up(&process),
            process.text(Stream::Stderr)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = started.elapsed();
    std::thread::sleep(REST);
    let resident = resident(process.pid());
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(130), "{output}");
    (resident, took)
}
