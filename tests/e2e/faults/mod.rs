//! Faults that a link can meet, each named by its row in the table of faults, injected into the real thing.
//!
//! In every row: nobody is answered wrongly or with expired credentials, what was told to programs on the host stays
//! true, and at the end nothing lies there.

mod again;
mod aws;
mod ends;
mod life;
mod link;
mod machine;
mod port;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::{
    home::{Output, Stream, run_within},
    users::User,
};

use crate::support::{PATIENCE, Tunnel, World};

/// Back in service after the network is (`product.md` 7).
pub(super) const BACK: Duration = Duration::from_secs(5);

/// A link whose death is noticed within three seconds instead of 45.
pub(super) const QUICK: [&str; 4] = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3"];

/// Whether waits are as long as the table says.
pub(super) fn long() -> bool {
    std::env::var_os("BROKER_TEST_LONG").is_some_and(|long| long == "1")
}

pub(super) fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    let output = run_within(command, rules.as_bytes(), PATIENCE);
    assert_eq!(output.code, Some(0), "{rules}: {output}");
}

/// Notes what was measured for a row of the table, which `tests/faults` prints.
pub(super) fn seen(row: u32, what: &str) {
    let target = std::path::Path::new(env!("CARGO_BIN_EXE_broker")).parent().unwrap().parent().unwrap();
    std::fs::create_dir_all(target.join("faults")).unwrap();
    std::fs::write(target.join("faults").join(row.to_string()), what).unwrap();
}

/// A network that is broken until this is dropped.
#[must_use = "dropped, it is whole again"]
pub(super) struct Broken;

impl Broken {
    pub(super) fn heal(self) -> Instant {
        drop(self);
        Instant::now()
    }
}

impl Drop for Broken {
    // Also when a test fails: what it started could not end otherwise.
    fn drop(&mut self) {
        nft("delete table inet faults\n");
    }
}

/// From now on nothing passes between laptop and host.
pub(super) fn cut_network(world: &World) -> Broken {
    let port = world.sshd.port();
    broken(&format!(
        "tcp dport {port} tcp flags & (syn | ack) == syn counter drop\n tcp dport {port} drop\n tcp sport {port} drop"
    ))
}

/// From now on the host takes no new connections, as where no sshd runs.
pub(super) fn refuse_connections(world: &World) -> Broken {
    let port = world.sshd.port();
    broken(&format!("tcp dport {port} tcp flags & (syn | ack) == syn counter reject with tcp reset"))
}

pub(super) fn broken(rules: &str) -> Broken {
    nft(&format!(
        "table inet faults {{\n chain input {{\n type filter hook input priority 0\n {rules}\n }}\n}}\n"
    ));
    Broken
}

/// How many connections were tried since the network broke.
pub(super) fn tried() -> u64 {
    let output = Command::new("nft").args(["list", "table", "inet", "faults"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = text.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    count.unwrap_or_else(|| panic!("no counter in {text}"))
}

/// Kills the helper, and not the shell that is its dead-man switch.
pub(super) fn kill_helper(world: &World) {
    let helpers: Vec<i32> = world
        .processes_on_host()
        .into_iter()
        .filter_map(|(id, command)| command.starts_with("/bin/sh -c a=").then_some(id))
        .collect();
    let id = helpers.into_iter().min().expect("a helper");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGKILL).unwrap();
}

impl Tunnel {
    pub(super) fn wait_until_lost(&mut self, deadline: Duration) -> String {
        self.process.wait_for_line(Stream::Stderr, "connecting again", deadline)
    }

    pub(super) fn wait_until_back(&mut self, deadline: Duration) -> String {
        self.process.wait_for_line(Stream::Stderr, "back after", deadline)
    }
}

/// What programs on the host were told is true, and they get credentials.
#[track_caller]
pub(super) fn assert_serves_as_before(world: &mut World, tunnel: &Tunnel, token: &str) {
    let user = world.sshd.user().clone();
    assert!(world.fetch(&user, tunnel.url(), Some(token)).key_id().starts_with("ASIA"));
    assert_eq!(tunnel.token(), token, "the token file");
    let other = User::other();
    assert_eq!(world.fetch(&other, tunnel.url(), Some(token)).status(), 401, "another user");
    let sourced =
        format!(". {}/env.sh; echo $AWS_CONTAINER_CREDENTIALS_FULL_URI", tunnel.directory().display());
    let output = world.run(world.on_host("sh", &["-c", &sourced])).success();
    assert_eq!(output.stdout().trim(), tunnel.url());
}

#[track_caller]
pub(super) fn assert_stops_clean(world: &mut World, tunnel: Tunnel) {
    let output = tunnel.stop(world);
    assert_eq!(output.code, Some(130), "{output}");
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[track_caller]
pub(super) fn assert_ended(world: &mut World, tunnel: &mut Tunnel, code: i32, patience: Duration) -> Output {
    let output = tunnel.process.wait(patience);
    assert_eq!(output.code, Some(code), "{output}");
    world.heard("broker", &output);
    output
}
