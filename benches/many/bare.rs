//! The least that a tunnel in one process can cost: what russh holds for a connection on which nothing happens.
//!
//! A process of this program with the runtime and the allocator that `broker` has, and of each connection what a tunnel
//! cannot do without: a login with a key, a forward, and a command that runs.

use std::{
    path::PathBuf,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use russh::{
    client::{self, Handle},
    keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate},
};
use sandbox::{
    bastion::{Bastion, Options},
    home::{Home, Process, Stream},
};

use crate::{PATIENCE, REST, resident};

/// How many connections, to which port, with which key.
const COUNT: &str = "BENCH_BARE_COUNT";
const PORT: &str = "BENCH_BARE_PORT";
const KEY: &str = "BENCH_BARE_KEY";
const MESSAGES: &str = "BENCH_BARE_MESSAGES";

/// So many times anything is sent in half an hour in which nobody asks for credentials: our helpers hear a beat each 10 s.
const HALF_AN_HOUR: usize = 180;

/// As `broker` connects to one server.
const AT_ONCE: usize = 8;

/// Whether this process is to be the one that is measured.
pub(crate) fn is_asked_for() -> bool {
    std::env::var_os(COUNT).is_some()
}

/// Returns the resident memory of a process with so many connections in KiB, and how long they took.
pub(crate) fn connections(count: usize) -> (f64, Duration) {
    after(0, count)
}

/// The same for connections that are not new: russh has touched by then what it keeps for messages.
pub(crate) fn used_connections(count: usize) -> (f64, Duration) {
    after(HALF_AN_HOUR, count)
}

fn after(messages: usize, count: usize) -> (f64, Duration) {
    let home = Home::temporary();
    let bastion = Bastion::start(Options { home: home.path().to_owned(), ..Options::default() });
    let mut command = home.command(std::env::current_exe().unwrap());
    command.env(COUNT, count.to_string()).env(PORT, bastion.port().to_string());
    command.env(MESSAGES, messages.to_string());
    command.env(KEY, bastion.client_key_path()).stderr(Stdio::inherit());
    command.envs(std::env::vars().filter(|(name, _)| name.starts_with("MALLOC_")));
    let started = Instant::now();
    let mut process = Process::spawn(command);
    process.wait_for_line(Stream::Stdout, "ready", PATIENCE);
    let took = started.elapsed();
    std::thread::sleep(REST);
    let resident = resident(process.pid());
    process.close_stdin();
    process.wait(PATIENCE);
    (resident, took)
}

/// Connects, says so, and does nothing until its input ends.
pub(crate) fn run() -> ExitCode {
    let number = |name| std::env::var(name).unwrap().parse().unwrap();
    let (count, port, messages): (usize, usize, usize) = (number(COUNT), number(PORT), number(MESSAGES));
    let port = u16::try_from(port).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let key = Arc::new(
            russh::keys::load_secret_key(PathBuf::from(std::env::var_os(KEY).unwrap()), None).unwrap(),
        );
        let turns = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        let (up, mut arriving) = tokio::sync::mpsc::channel(count);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (key, turns, up) = (Arc::clone(&key), Arc::clone(&turns), up.clone());
            tasks.spawn(async move {
                let turn = turns.acquire_owned().await.unwrap();
                let held = Box::pin(connect(port, key, messages)).await;
                drop(turn);
                up.send(()).await.unwrap();
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        for _ in 0..count {
            arriving.recv().await.unwrap();
        }
        println!("ready");
        let mut input = tokio::io::stdin();
        tokio::io::AsyncReadExt::read_to_end(&mut input, &mut Vec::new()).await.unwrap();
    });
    // What still runs is of no interest any more.
    runtime.shutdown_background();
    ExitCode::SUCCESS
}

async fn connect(
    port: u16,
    key: Arc<russh::keys::PrivateKey>,
    messages: usize,
) -> (Handle<Anybody>, russh::ChannelWriteHalf<client::Msg>) {
    let config = client::Config { nodelay: true, ..client::Config::default() };
    let mut handle = client::connect(Arc::new(config), ("127.0.0.1", port), Anybody).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(key, None);
    assert!(handle.authenticate_publickey("ada", key).await.unwrap().success());
    handle.tcpip_forward("127.0.0.1", 0).await.unwrap();
    let channel = handle.channel_open_session().await.unwrap();
    channel.exec(true, "exec cat").await.unwrap();
    for _ in 0..messages {
        handle.send_keepalive(false).await.unwrap();
        // One at a time, as in life.
        tokio::task::yield_now().await;
    }
    // Nobody reads what comes, and nothing does.
    let (_, write) = channel.split();
    (handle, write)
}

/// Takes every host for the right one.
struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}
