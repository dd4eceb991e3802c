//! What one more tunnel costs in a process that has many: resident memory of `broker connect HOST... -N`.
//!
//! `cargo bench --bench many` with 500 tunnels to a server in this process, `cargo bench --bench many -- 50` with fewer.
//! The helpers on the pretend host are real processes, and are not counted: they run elsewhere in real life.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what goes wrong here fails the benchmark, and a panic is its report"
)]

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

/// What the product promises for each tunnel beyond the first.
const PER_TUNNEL_KIB: f64 = 80.0;

/// All of them together may take this long to come up on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let count = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(500);
    // Each starts once, so that what is measured is one process at two sizes and not one process as it grows.
    let (small, _) = measure(count / 10);
    let (large, took) = measure(count);
    let further = f64::from(u32::try_from(count - count / 10).unwrap());
    let each = (large - small) / further;
    println!(
        "{count} tunnels: up in {:.1} s, {large:.0} KiB resident ({small:.0} with {}): {each:.1} KiB for each further one, \
         at most {PER_TUNNEL_KIB}",
        took.as_secs_f64(),
        count / 10
    );
    if each <= PER_TUNNEL_KIB { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns resident memory in KiB, and how long the start took.
fn measure(count: usize) -> (f64, Duration) {
    let aws = FakeAws::start_blocking();
    aws.add_role("123456789012", "Development", "Developer");
    let home = Home::temporary();
    let bastion = Bastion::start(Options { home: home.path().to_owned(), ..Options::default() });
    aws.seed_home(home.path(), "corp", &[("dev", "123456789012", "Developer")], "eu-west-1");
    aws.seed_token(home.path(), "corp");
    let mut config = String::new();
    let names: Vec<String> = (1..=count).map(|number| format!("host{number}")).collect();
    for name in &names {
        writeln!(
            config,
            "Host {name}\n  HostName 127.0.0.1\n  Port {}\n  User ada\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {}",
            bastion.port(),
            bastion.client_key_path().display(),
            home.join("known_hosts").display()
        )
        .unwrap();
    }
    home.write("config", config, 0o600);
    home.write("known_hosts", bastion.known_hosts_line("127.0.0.1"), 0o600);
    let mut command = home.command(env!("CARGO_BIN_EXE_broker"));
    command.args(["connect", "-N", "--batch", "--transport", "unix", "--print-env", "json", "-p", "dev"]);
    command.envs(std::env::vars().filter(|(n, _)| n.starts_with("MALLOC_")));
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
    // What the handshakes needed is given back by then.
    std::thread::sleep(Duration::from_secs(2));
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(130), "{output}");
    (resident, took)
}
