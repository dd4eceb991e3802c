//! How fast and how small `broker` is beside what people use today; `cargo bench --bench tunnel`.
//!
//! One machine, one loopback: a real sshd, the pretend AWS of the sandbox, and four ways from an SDK to credentials
//! ([`tunnels::Variant`]). In every round each row is measured for every way, one after the other, and the order
//! changes from round to round; what counts is the median of the ratios within the rounds, because the machine is never
//! the same twice. Needs root (users, sshd, a network namespace) and what `tests/run` installs (boto3).
//!
//! It runs in a network namespace that remembers few closed connections: `broker` reads the table of all sockets to
//! know its caller, and ten thousands of them, a minute old, would be an artefact of the load. What such a table costs
//! is a row of its own.
//!
//! Prints tables, writes them and every single value into `target/bench/`, and ends with 1 when a gate does not hold.
//! `BENCH_QUICK=1` proves within half a minute that everything works, and judges nothing; nor is a debug build judged.

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

mod load;
mod measure;
mod report;
mod serve;
mod tunnels;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use sandbox::home::Process;
use serde_json::Value;

use self::{
    measure::median,
    report::{Figures, Row},
    tunnels::{Tunnel, Variant, World},
};

/// How much is measured.
struct Extent {
    rounds: usize,
    connects: usize,
    /// Requests of 1, 10 and 100 clients.
    fetches: [usize; 3],
    boto3: usize,
    /// Times that a program is started to fetch.
    processes: usize,
    /// Requests of one tunnel, after which its memory is looked at again.
    many: usize,
    idle: Duration,
    starts: usize,
}

const FULL: Extent = Extent {
    rounds: 3,
    connects: 8,
    fetches: [200, 1000, 1500],
    boto3: 50,
    processes: 40,
    many: 20_000,
    idle: Duration::from_secs(10),
    starts: 20,
};

const QUICK: Extent = Extent {
    rounds: 1,
    connects: 2,
    fetches: [100, 300, 500],
    boto3: 10,
    processes: 10,
    many: 2000,
    idle: Duration::from_secs(2),
    starts: 5,
};

/// Rounds that are added when a gate does not hold: on two shared cores an unlucky round is no rare thing.
const MORE_ROUNDS: usize = 2;

/// How long a tunnel is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a hostile process on the host floods the tunnel.
const FLOOD: Duration = Duration::from_secs(3);

/// What is asked through the tunnel meanwhile.
const DURING_FLOOD: usize = 200;

/// How many closed connections the namespace remembers: as many as a host that is in use has.
const REMEMBERED: usize = 256;

/// How many sockets a crowded host has.
const CROWD: usize = 10_000;

/// What is asked there.
const IN_CROWD: usize = 100;

/// Says inside the namespace that we are inside.
const INSIDE: &str = "BENCH_INSIDE";

const LIMIT: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve::main(),
        Some("load") => load::main(&arguments[1..]),
        Some("flood") => load::flood(&arguments[1..]),
        _ if std::env::var_os(INSIDE).is_some() => return bench(),
        _ if arguments.iter().any(|argument| argument == "--bench") => return isolated(),
        // `cargo test --all-targets` runs us as well.
        _ => println!("run it with `cargo bench --bench tunnel`"),
    }
    ExitCode::SUCCESS
}

fn isolated() -> ExitCode {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--", "sh", "-ec", "ip link set lo up; exec \"$1\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .env(INSIDE, "1");
    let status = command.status().expect("unshare is there (util-linux)");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn bench() -> ExitCode {
    std::fs::write(LIMIT, REMEMBERED.to_string()).expect("the namespace is ours");
    let quick = std::env::var_os("BENCH_QUICK").is_some_and(|value| value == "1");
    let extent = if quick { QUICK } else { FULL };
    let judged = !quick && !cfg!(debug_assertions);
    let started = Instant::now();
    // Another program can take its place: one that counts what `broker` runs (benches/tunnel/hot-functions).
    let other = std::env::var("BENCH_BROKER");
    let broker = other.as_deref().unwrap_or(env!("CARGO_BIN_EXE_broker"));
    let world = World::new(broker);
    let python = python();

    let mut figures = Figures::new(measure::round_trip());
    start_up(&world, &extent, &mut figures);
    figures.add(Row::Binary, Variant::Broker, std::fs::metadata(broker).unwrap().len() as f64 / 1e6);
    for round in 0..extent.rounds {
        eprintln!("round {} of {} ({} s)", round + 1, extent.rounds, started.elapsed().as_secs());
        measure_round(&world, &python, &extent, round, &mut figures);
    }
    eprintln!("memory, idleness and a hostile process ({} s)", started.elapsed().as_secs());
    long_run(&world, &extent, &mut figures);
    if judged && figures.gates().iter().any(|gate| !gate.holds()) {
        eprintln!("a gate does not hold: {MORE_ROUNDS} more rounds ({} s)", started.elapsed().as_secs());
        for round in 0..MORE_ROUNDS {
            measure_round(&world, &python, &extent, extent.rounds + round, &mut figures);
        }
    }
    crowded(&world, &mut figures);

    let verdict = if judged { figures.gates().iter().all(report::Gate::holds) } else { true };
    let why_not_judged = match (quick, cfg!(debug_assertions)) {
        (true, _) => Some("BENCH_QUICK: nothing is judged"),
        (false, true) => Some("a debug build: nothing is judged"),
        (false, false) => None,
    };
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("bench");
    let text = figures.publish(&directory, why_not_judged, started.elapsed());
    println!("{text}");
    if verdict { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything that is compared, once for every way.
fn measure_round(world: &World, python: &Path, extent: &Extent, round: usize, figures: &mut Figures) {
    let mut order = Variant::ALL;
    order.rotate_left(round % Variant::ALL.len());
    let among =
        |those: &[Variant]| order.into_iter().filter(|variant| those.contains(variant)).collect::<Vec<_>>();

    let mut connects: Vec<_> =
        among(&Variant::CONNECTS).into_iter().map(|variant| (variant, Vec::new())).collect();
    for _ in 0..extent.connects {
        for (variant, taken) in &mut connects {
            let tunnel = Tunnel::open(world, *variant);
            let (ready, spent) = (tunnel.ready, tunnel.spent);
            taken.push((ready.as_secs_f64(), spent.as_secs_f64(), tunnel.close().as_secs_f64()));
        }
    }
    for (variant, taken) in connects {
        let of = |part: fn(&(f64, f64, f64)) -> f64| median(taken.iter().map(part).collect()) * 1e3;
        figures.add(Row::Connect, variant, of(|taken| taken.0));
        figures.add(Row::ConnectCpu, variant, of(|taken| taken.1));
        figures.add(Row::End, variant, of(|taken| taken.2));
    }

    let tunnels: Vec<_> =
        among(&Variant::ANSWERS).into_iter().map(|variant| (variant, Tunnel::open(world, variant))).collect();
    for (clients, requests) in [1, 10, 100].into_iter().zip(extent.fetches) {
        for (variant, tunnel) in &tunnels {
            let pids = tunnel.pids();
            let before = measure::processor_time(&pids);
            let found = load::run(&world.exe, &world.host, &tunnel.endpoint, clients, requests);
            let spent = measure::processor_time(&pids).saturating_sub(before);
            figures.fetched(*variant, clients, requests, &found, spent);
        }
    }
    let (_, ours) = tunnels.iter().find(|(variant, _)| *variant == Variant::Broker).unwrap();
    let (bare, process) = at_the_socket(world, ours, extent.processes);
    figures.add(Row::Bare, Variant::Broker, bare);
    figures.add(Row::Process, Variant::Broker, process);
    for (variant, tunnel) in &tunnels {
        figures.add(Row::Boto3, *variant, boto3(world, python, tunnel, extent.boto3) / 1e3);
    }
    for (_, tunnel) in tunnels {
        tunnel.close();
    }
}

/// Memory of fresh tunnels, what they do when nobody asks, memory after many requests, and who suffers under a flood.
fn long_run(world: &World, extent: &Extent, figures: &mut Figures) {
    let tunnels = Variant::ANSWERS.map(|variant| (variant, Tunnel::open(world, variant)));
    thread::sleep(SETTLE);
    let idle: Vec<_> = tunnels
        .iter()
        .map(|(_, tunnel)| {
            let pids = tunnel.pids();
            (measure::processor_time(&pids), measure::wake_ups(&pids), measure::resident(&pids))
        })
        .collect();
    thread::sleep(extent.idle);
    for ((variant, tunnel), (spent, woken, resident)) in tunnels.iter().zip(idle) {
        let pids = tunnel.pids();
        // The gates speak of half a minute. A thread that ended meanwhile takes its counters with it.
        let scale = 30.0 / extent.idle.as_secs_f64();
        let spent = measure::processor_time(&pids).saturating_sub(spent).as_secs_f64() * 1e3;
        let woken = measure::wake_ups(&pids).saturating_sub(woken) as f64;
        figures.add(Row::IdleCpu, *variant, spent * scale);
        figures.add(Row::WakeUps, *variant, woken * scale);
        figures.add(Row::Threads, *variant, measure::threads(&pids) as f64);
        figures.add(Row::IdleMemory, *variant, resident as f64 / 1e3);
        figures.add(Row::IdleShare, *variant, measure::proportional(&pids) as f64 / 1e3);
        if *variant == Variant::Ssh {
            // Would take a minute of waiting for acknowledgements, and the one with a session tells the same.
            continue;
        }
        let found = load::run(&world.exe, &world.host, &tunnel.endpoint, 10, extent.many);
        figures.failed(*variant, &found);
        thread::sleep(SETTLE);
        let after = measure::resident(&pids);
        figures.add(Row::LaterMemory, *variant, after as f64 / 1e3);
        figures.add(Row::Growth, *variant, (after as f64 - resident as f64) / 1e3);
    }
    for (variant, tunnel) in &tunnels {
        let mut flooder = Process::spawn(load::flooder(&world.exe, &world.host, &tunnel.endpoint, FLOOD));
        flooder.wait_for_line(sandbox::home::Stream::Stdout, "flooding", FLOOD);
        let found = load::run(&world.exe, &world.host, &tunnel.endpoint, 1, DURING_FLOOD);
        figures.failed(*variant, &found);
        figures.add(Row::Flooded, *variant, found.max_us / 1e3);
        drop(flooder);
    }
    for (_, tunnel) in tunnels {
        tunnel.close();
    }
}

/// What it costs that the host has many sockets. Last of all, because they stay for a minute.
fn crowded(world: &World, figures: &mut Figures) {
    let tunnels = Variant::ANSWERS.map(|variant| (variant, Tunnel::open(world, variant)));
    std::fs::write(LIMIT, (2 * CROWD).to_string()).unwrap();
    let (_, direct) = tunnels.iter().find(|(variant, _)| *variant == Variant::Direct).unwrap();
    load::run(&world.exe, &world.host, &direct.endpoint, 10, CROWD);
    for (variant, tunnel) in &tunnels {
        let found = load::run(&world.exe, &world.host, &tunnel.endpoint, 1, IN_CROWD);
        figures.failed(*variant, &found);
        figures.add(Row::Crowded, *variant, found.p50_us / 1e3);
    }
    for (_, tunnel) in tunnels {
        tunnel.close();
    }
}

fn start_up(world: &World, extent: &Extent, figures: &mut Figures) {
    let time = |command: fn(&World) -> Command| {
        let times = (0..extent.starts).map(|_| {
            let mut command = command(world);
            let started = Instant::now();
            assert!(command.output().unwrap().status.success());
            started.elapsed().as_secs_f64() * 1e3
        });
        median(times.collect())
    };
    let broker = |world: &World| {
        let mut command = world.broker();
        command.arg("--help");
        command
    };
    let ssh = |world: &World| {
        let mut command = world.laptop.command("ssh");
        command.arg("-V");
        command
    };
    figures.add(Row::StartUp, Variant::Broker, time(broker));
    figures.add(Row::StartUp, Variant::Ssh, time(ssh));
}

/// Returns the median of boto3's own fetch in microseconds.
fn boto3(world: &World, python: &Path, tunnel: &Tunnel, count: usize) -> f64 {
    let endpoint = &tunnel.endpoint;
    let mut command = world.host.command(python);
    command.args(["-c", include_str!("fetch.py"), &endpoint.uri(), &endpoint.marker, &count.to_string()]);
    command.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &endpoint.token_file);
    let output = world.host.run(command).success();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    found["p50_us"].as_f64().unwrap()
}

/// Returns the medians, in milliseconds, of a bare request with curl at the tunnel's socket and of what
/// `credential_process` runs there, taken in turns.
fn at_the_socket(world: &World, tunnel: &Tunnel, count: usize) -> (f64, f64) {
    let directory = tunnel.endpoint.token_file.parent().unwrap();
    let config = std::fs::read_to_string(directory.join("config")).expect("our configuration lies there");
    let line = config.lines().find_map(|line| line.strip_prefix("credential_process = "));
    let line = line.expect("the default profile asks at the socket");
    let token = std::fs::read_to_string(&tunnel.endpoint.token_file).unwrap();
    let header = directory.join("bench-header");
    std::fs::write(&header, format!("header = \"Authorization: {token}\"\n")).unwrap();
    std::fs::set_permissions(&header, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..count {
        let mut bare = world.host.command("curl");
        bare.args(["-q", "-s", "--noproxy", "*", "--unix-socket"]).arg(directory.join("s"));
        bare.arg("-K").arg(&header).arg("http://broker/");
        // As SDKs do: without a shell, and the line has no quotes.
        let mut words = line.split(' ');
        let mut process = world.host.command(words.next().unwrap());
        process.args(words);
        for (mut command, times) in [bare, process].into_iter().zip(&mut times) {
            let started = Instant::now();
            let output = command.output().unwrap();
            times.push(started.elapsed().as_secs_f64() * 1e3);
            let answer: Value = serde_json::from_slice(&output.stdout).expect("credentials");
            assert_eq!(answer["AccessKeyId"], tunnel.endpoint.marker.as_str());
        }
    }
    std::fs::remove_file(header).unwrap();
    let [bare, process] = times.map(median);
    (bare, process)
}

/// Returns the Python that `tests/run` has put boto3 into.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    [target, &Path::new(env!("CARGO_MANIFEST_DIR")).join("target")]
        .map(|target| target.join("sdks/python/bin/python"))
        .into_iter()
        .find(|python| python.exists())
        .expect("boto3 is missing: `tests/run` installs it")
}
