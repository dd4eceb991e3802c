//! The load: clients that open a connection, ask, check the answer, close, and begin anew.
//!
//! It runs in a process of its own, as the user of the host: `broker` serves nobody else, and its processor time must
//! not be mixed up with that of the server.

use std::{
    io::{self, Write as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sandbox::home::Home;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{measure::percentile, tunnels::Endpoint};

/// No SDK waits longer (reference: botocore 2 s, Rust and Ruby 5 s).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// So many failures prove that something is broken; more would only take time.
const MAX_ERRORS: usize = 20;

/// Asked before anything is timed, so that the first touch of every page is not in the figures.
const WARM_UP: usize = 20;

/// What a load found.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    pub(crate) per_second: f64,
    /// The size of an answer's body.
    pub(crate) body: u64,
    pub(crate) errors: u64,
}

/// Lets `clients` ask until they have asked `requests` times together.
pub(crate) fn run(exe: &str, user: &Home, endpoint: &Endpoint, clients: usize, requests: usize) -> Outcome {
    let mut command = user.command(exe);
    endpoint.arguments(command.arg("load"));
    command.args([clients.to_string(), requests.to_string()]);
    let output = user.run(command).success();
    let found: Value = serde_json::from_slice(&output.stdout).expect("the load ends with a line of JSON");
    let number = |name: &str| found[name].as_f64().unwrap();
    let errors = found["errors"].as_u64().unwrap();
    if errors > 0 {
        let which = endpoint.variant.name();
        eprintln!(
            "{which}: {errors} of {requests} requests of {clients} clients failed: {}",
            found["first_error"]
        );
    }
    Outcome {
        p50_us: number("p50_us"),
        p99_us: number("p99_us"),
        max_us: number("max_us"),
        per_second: number("per_second"),
        body: found["body"].as_u64().unwrap(),
        errors,
    }
}

struct Plan {
    port: u16,
    request: Vec<u8>,
    marker: String,
    requests: usize,
    taken: AtomicUsize,
    errors: AtomicUsize,
}

/// What the child process does: `PORT PATH TOKEN_FILE MARKER CLIENTS REQUESTS`.
pub(crate) fn main(arguments: &[String]) {
    let [port, path, token_file, marker, clients, requests] = arguments else {
        panic!("load: {arguments:?}")
    };
    let plan = Plan {
        port: port.parse().unwrap(),
        request: request(port, path, &PathBuf::from(token_file)),
        marker: marker.clone(),
        requests: requests.parse().unwrap(),
        taken: AtomicUsize::new(0),
        errors: AtomicUsize::new(0),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(load(Arc::new(plan), clients.parse().unwrap()));
    println!("{found}");
}

fn request(port: &str, path: &str, token_file: &PathBuf) -> Vec<u8> {
    let token = std::fs::read_to_string(token_file).expect("the token file can be read on the host");
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\n\
         Authorization: {token}\r\nUser-Agent: bench\r\n\r\n"
    )
    .into_bytes()
}

async fn load(plan: Arc<Plan>, clients: usize) -> Value {
    let mut body = 0;
    let mut first_error = None;
    for _ in 0..WARM_UP {
        match fetch(&plan).await {
            Ok(size) => body = size,
            Err(e) => {
                plan.errors.fetch_add(1, Ordering::Relaxed);
                first_error.get_or_insert(e.to_string());
            }
        }
    }
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        running.spawn(client(Arc::clone(&plan)));
    }
    let mut times = Vec::with_capacity(plan.requests);
    while let Some(done) = running.join_next().await {
        let (took, error) = done.unwrap();
        times.extend(took);
        first_error = first_error.or(error);
    }
    let elapsed = started.elapsed();
    times.sort_by(f64::total_cmp);
    json!({
        "errors": plan.errors.load(Ordering::Relaxed),
        "first_error": first_error,
        "body": body,
        "p50_us": percentile(&times, 0.5),
        "p99_us": percentile(&times, 0.99),
        "max_us": percentile(&times, 1.0),
        "per_second": times.len() as f64 / elapsed.as_secs_f64(),
    })
}

async fn client(plan: Arc<Plan>) -> (Vec<f64>, Option<String>) {
    let mut times = Vec::new();
    let mut error = None;
    while plan.errors.load(Ordering::Relaxed) < MAX_ERRORS
        && plan.taken.fetch_add(1, Ordering::Relaxed) < plan.requests
    {
        let started = Instant::now();
        match fetch(&plan).await {
            Ok(_) => times.push(started.elapsed().as_secs_f64() * 1e6),
            Err(e) => {
                plan.errors.fetch_add(1, Ordering::Relaxed);
                error.get_or_insert(e.to_string());
            }
        }
    }
    (times, error)
}

/// Asks once, and returns the size of the body.
async fn fetch(plan: &Plan) -> io::Result<usize> {
    tokio::time::timeout(REQUEST_TIMEOUT, exchange(plan))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn exchange(plan: &Plan) -> io::Result<usize> {
    let wrong = |text: String| io::Error::other(text);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, plan.port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&plan.request).await?;
    let mut answer = Vec::with_capacity(4096);
    let mut complete = None;
    // As SDKs do: the end is where Content-Length says, and the client does not wait for the server to close.
    while complete.is_none_or(|end| answer.len() < end) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(wrong(format!("cut after {} bytes", answer.len())));
        }
        if complete.is_none() {
            complete = end_of_answer(&answer);
        }
    }
    let text = String::from_utf8_lossy(&answer);
    if !text.starts_with("HTTP/1.1 200 ") {
        return Err(wrong(text.into_owned()));
    }
    // Whoever else answers on this port does not know what this run issued.
    if !text.contains(&plan.marker) {
        return Err(wrong("an answer that is not of this run".to_owned()));
    }
    Ok(text.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len()))
}

fn end_of_answer(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(answer.get(..head)?).to_ascii_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    Some(head + length.unwrap_or(0))
}

/// Starts a process that sends requests without end and reads no answer.
pub(crate) fn flooder(exe: &str, user: &Home, endpoint: &Endpoint, life: Duration) -> Command {
    let mut command = user.command(exe);
    endpoint.arguments(command.arg("flood"));
    command.arg(life.as_millis().to_string());
    command
}

/// What that process does: `PORT PATH TOKEN_FILE MARKER MILLISECONDS`. It has no token, as any user of the host.
pub(crate) fn flood(arguments: &[String]) {
    let [port, path, _, _, life] = arguments else { panic!("flood: {arguments:?}") };
    let until = Instant::now() + Duration::from_millis(life.parse().unwrap());
    let one = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let many = one.repeat(64 * 1024 / one.len());
    let port: u16 = port.parse().unwrap();
    println!("flooding");
    io::stdout().flush().unwrap();
    while Instant::now() < until {
        let Ok(mut stream) = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        while Instant::now() < until {
            match stream.write(many.as_bytes()) {
                Ok(_) => {}
                // Nobody takes more: this is the state in which the others must go on.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => break,
            }
        }
    }
}
