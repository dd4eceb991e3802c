//! How long `broker credentials` takes where credentials are at hand, beside `aws configure export-credentials` and beside
//! the least that our own binary can take; `cargo bench --bench credentials`.
//!
//! A program that is named in `credential_process` is started for every command of the AWS CLI and by every process
//! that uses an SDK, so that its start is what people wait for. Each round runs all of them, and the order changes from
//! round to round; what counts is the median of the ratios within the rounds. Needs what `tests/sdks/install` installs
//! (AWS CLI v2). A debug build is measured and not judged.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "what goes wrong here fails the benchmark, and a panic is its report"
)]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use sandbox::{aws::FakeAws, home::Home};
use serde_json::Value;

/// What the product promises: this many times faster than the AWS CLI, and this many times the floor.
const LEAST_FASTER: f64 = 20.0;
const MOST_OF_FLOOR: f64 = 2.0;

const ROUNDS: usize = 15;

/// How often each of ours is run in a round; they take a few milliseconds each.
const TIMES: usize = 20;

/// What is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Row {
    /// The floor: the same binary says its version.
    Version,
    /// With credentials that an earlier `broker credentials` kept.
    Kept,
    /// With credentials that the AWS CLI kept.
    OfTheAwsCli,
    AwsCli,
}

impl Row {
    const ALL: [Self; 4] = [Self::Version, Self::Kept, Self::OfTheAwsCli, Self::AwsCli];

    fn words(self) -> &'static str {
        match self {
            Self::Version => "broker --version",
            Self::Kept => "broker credentials, kept by broker",
            Self::OfTheAwsCli => "broker credentials, kept by the AWS CLI",
            Self::AwsCli => "aws configure export-credentials",
        }
    }

    fn times(self) -> usize {
        if self == Self::AwsCli { 1 } else { TIMES }
    }
}

/// The pretend AWS, and a laptop on which both tools have been used a moment ago.
struct World {
    aws: FakeAws,
    home: Home,
    /// In memory, as `$XDG_RUNTIME_DIR` is.
    runtime: tempfile::TempDir,
    cli: PathBuf,
}

impl World {
    fn new() -> Self {
        let aws = FakeAws::start_blocking();
        aws.add_role("123456789012", "Development", "Developer");
        let home = Home::temporary();
        aws.seed_home(home.path(), "corp", &[("dev", "123456789012", "Developer")], "eu-west-1");
        aws.seed_token(home.path(), "corp");
        let cli = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdks/awscli-v2/aws");
        assert!(cli.is_file(), "`{}` is missing: run tests/sdks/install", cli.display());
        let runtime = tempfile::tempdir_in("/dev/shm").expect("a file system in memory");
        std::fs::set_permissions(runtime.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { aws, home, runtime, cli }
    }

    fn command(&self, row: Row) -> Command {
        let mut command = match row {
            Row::AwsCli => self.home.command(&self.cli),
            _ => self.home.command(env!("CARGO_BIN_EXE_broker")),
        };
        match row {
            Row::Version => command.arg("--version"),
            Row::Kept | Row::OfTheAwsCli => command.args(["credentials", "--batch", "-p", "dev"]),
            Row::AwsCli => command.args(["configure", "export-credentials", "--profile", "dev"]),
        };
        if row == Row::Kept {
            command.env("XDG_RUNTIME_DIR", self.runtime.path());
        }
        command.envs(self.aws.environment());
        command
    }

    /// Runs it once, and returns the access key id that it printed, if it is a row that prints one.
    fn answer(&self, row: Row) -> Option<String> {
        let output = self.command(row).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", row.words());
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(answer["AccessKeyId"].as_str().expect("a key").to_owned())
    }

    /// Returns how long one run takes, in milliseconds.
    fn measure(&self, row: Row) -> f64 {
        let mut command = self.command(row);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let times = row.times();
        for _ in 0..times {
            assert!(command.status().expect("it starts").success(), "{}", row.words());
        }
        started.elapsed().as_secs_f64() * 1e3 / times as f64
    }
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs us as well.
        println!("run it with `cargo bench --bench credentials`");
        return ExitCode::SUCCESS;
    }
    let world = World::new();
    // Each tool fetches its own once; broker goes first, because it would use what the AWS CLI has.
    let by_broker = world.answer(Row::Kept);
    let by_the_cli = world.answer(Row::AwsCli);
    assert!(by_broker.is_some() && by_the_cli.is_some() && by_broker != by_the_cli);
    let calls = world.aws.calls().len();

    let mut taken = [const { Vec::new() }; Row::ALL.len()];
    for round in 0..ROUNDS {
        let mut order = [0, 1, 2, 3];
        order.rotate_left(round % Row::ALL.len());
        for row in order {
            taken[row].push(world.measure(Row::ALL[row]));
        }
    }
    assert_eq!(world.aws.calls().len(), calls, "somebody asked AWS: the cache was not warm");
    assert_eq!((world.answer(Row::OfTheAwsCli), world.answer(Row::AwsCli)), (by_the_cli.clone(), by_the_cli));

    let [version, kept, of_the_cli, cli] = &taken;
    for (row, taken) in Row::ALL.into_iter().zip(&taken) {
        println!("{:<42}{:>9.2} ms", row.words(), median(taken.iter().copied()));
    }
    let mut holds = true;
    for (row, ours) in [(Row::Kept, kept), (Row::OfTheAwsCli, of_the_cli)] {
        let ratio = |these: &[f64], those: &[f64]| median(these.iter().zip(those).map(|(a, b)| a / b));
        let (faster, of_floor) = (ratio(cli, ours), ratio(ours, version));
        holds &= faster >= LEAST_FASTER && of_floor <= MOST_OF_FLOOR;
        println!(
            "{}: {faster:.0} times faster than the AWS CLI (at least {LEAST_FASTER}), {of_floor:.2} times the floor \
             (at most {MOST_OF_FLOOR})",
            row.words()
        );
    }
    if cfg!(debug_assertions) {
        println!("a debug build: nothing is judged");
        return ExitCode::SUCCESS;
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}
