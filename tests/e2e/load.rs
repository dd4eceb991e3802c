//! Many requests, idle and hostile neighbours: what the others feel of it, and what it costs the laptop.
//!
//! Requests come from the host's user, as the uid check wants it: this test binary starts itself again as that user
//! (see [`generator`]). Figures are printed; bounds are those of a debug build on two busy cores.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::TcpStream,
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    home::{Process, Stream},
    sshd::SshdOptions,
    users::User,
};

use crate::support::{BASTION, PATIENCE, Tunnel, World};

#[test]
fn ten_thousand_requests_leave_the_shell_responsive_and_memory_flat() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let broker = world.broker(&["connect", BASTION, "--batch", "-p", "dev"]);
    let mut terminal = world.laptop.terminal(broker, 24, 120);
    // Whole only in the answer, not in the echo of the question.
    terminal.send("printf 'ready%s\\n' -now; exec cat >/dev/null\r");
    terminal.wait_for_text("ready-now", PATIENCE);
    let [directory] = world.left_on_host().try_into().expect("one directory is ours");
    let token = std::fs::read_to_string(directory.join("4144/token-dev")).unwrap();
    world.keep_token(&token);
    let target = Target { port: 4144, token };

    let mut keys = 0;
    let mut load = |requests: usize| {
        let mut load = target.start(&world, world.sshd.user(), &format!("get {requests} 100"));
        let mut echoes = Vec::new();
        while !load.has_ended() {
            keys += 1;
            let typed = format!("key{keys}.");
            let pressed = Instant::now();
            terminal.send(typed.clone() + "\r");
            terminal.wait_for_text(&typed, PATIENCE);
            echoes.push(pressed.elapsed());
        }
        let report = report(&mut load);
        assert_eq!((report.answered, report.failed), (requests, 0), "{report}");
        let echoes = Spread::of(echoes);
        println!("{requests} requests, 100 at once: {report}; echo of a key meanwhile: {echoes}");
        (report, echoes, Vitals::of(terminal.pid()))
    };
    let (_, _, before) = load(1000);
    let (report, echoes, after) = load(9000);
    println!("broker after 1 000 requests: {before}; after 10 000: {after}");
    assert!(echoes.longest < Duration::from_secs(1), "a key took {echoes}");
    assert!(report.took < Duration::from_secs(50), "{report}");
    assert!(after.resident < before.resident + 3 * 1024, "memory grew: {before}, then {after}");
    assert!(after.descriptors <= before.descriptors, "descriptors leak: {before}, then {after}");
    assert!(after.threads <= 8, "{after}");

    terminal.send("\x04");
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("the shell", &output);
    world.assert_clean();
}

#[test]
fn a_client_that_does_not_read_or_write_delays_nobody() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let target = Target::of(&tunnel);
    let user = world.sshd.user().clone();
    let quiet = target.get(&world, 100, 1);
    println!("alone: {quiet}");
    // What they do, and how many.
    for idle in ["silent 1", "deaf 1", "pipeline 1", "drip 64", "deaf 300", "pipeline 20", "silent 300"] {
        let mut idlers = target.start(&world, &user, idle);
        idlers.wait_for_line(Stream::Stdout, "holding", PATIENCE);
        let report = target.get(&world, 200, 1);
        println!("beside `{idle}`: {report}");
        assert_eq!((report.answered, report.failed), (200, 0), "beside `{idle}`: {report}");
        assert!(report.latency.middle < quiet.latency.middle + Duration::from_millis(100), "{report}");
        assert!(
            report.latency.p99 < Duration::from_millis(250) + quiet.latency.p99,
            "beside `{idle}`: {report}"
        );
        drop(idlers);
    }
    let vitals = Vitals::of(tunnel.process.pid());
    println!("broker: {vitals}");
    assert!(vitals.resident < 64 * 1024, "{vitals}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

#[test]
fn a_thousand_connections_of_another_user_are_refused_and_hurt_nobody() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    let target = Target::of(&tunnel);
    let quiet = target.get(&world, 100, 1);
    println!("alone: {quiet}");
    // With the stolen token, as fast as they can; and such as only hold connections.
    let mut thief = target.start(&world, &User::other(), "get 1000 50");
    let report_beside = target.get(&world, 200, 1);
    println!("beside a thief: {report_beside}");
    assert!(thief.wait(PATIENCE).code.is_some());
    let stolen = report(&mut thief);
    println!("the thief: {stolen}");
    assert_eq!(stolen.answered, 0, "{stolen}");
    assert_eq!((report_beside.answered, report_beside.failed), (200, 0), "{report_beside}");
    assert!(report_beside.latency.p99 < Duration::from_millis(250) + quiet.latency.p99, "{report_beside}");

    // While they pour in faster than the helper can say whose they are, a few of ours may be reset, as when a listener's
    // queue is full; SDKs try again.
    let mut holders = target.start(&world, &User::other(), "silent 1000");
    let burst = target.get(&world, 100, 1);
    println!("while another user opens 1000 connections: {burst}");
    assert!(burst.answered >= 80, "{burst}");
    holders.wait_for_line(Stream::Stdout, "holding", PATIENCE);
    let report_beside = target.get(&world, 200, 1);
    println!("beside 1000 connections of another user: {report_beside}");
    assert_eq!((report_beside.answered, report_beside.failed), (200, 0), "{report_beside}");
    assert!(report_beside.latency.p99 < Duration::from_millis(250) + quiet.latency.p99, "{report_beside}");
    drop(holders);

    let vitals = Vitals::of(tunnel.process.pid());
    println!("broker: {vitals}");
    assert!(vitals.resident < 64 * 1024, "{vitals}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    let audit = world.audit();
    let other = u64::from(User::other().uid);
    let strangers: Vec<_> = audit.iter().filter(|line| line["uid"].as_u64() == Some(other)).collect();
    println!("{} audit lines about the other user", strangers.len());
    assert!(strangers.iter().any(|line| line["event"] == "token_theft_suspected"), "no alarm");
    assert!(strangers.len() < 50, "{} lines", strangers.len());
    world.assert_clean();
}

#[test]
fn keys_are_renewed_under_load_and_no_request_fails() {
    if sandbox::isolated!(alone) {
        return;
    }
    let rekeying = SshdOptions::default().config("RekeyLimit 64K").config("LogLevel DEBUG1");
    let mut world = World::with(rekeying);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let load = "get 2000 50";
    let mut generator = Target::of(&tunnel).start(&world, world.sshd.user(), load);
    let output = generator.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    let report = report(&mut generator);
    let renewed = world.sshd.log().matches("SSH2_MSG_KEXINIT sent").count();
    println!("{report}, keys exchanged {renewed} times");
    assert_eq!((report.answered, report.failed), (2000, 0), "{report}");
    assert!(renewed > 10, "{renewed}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

#[test]
fn keys_are_renewed_as_often_as_ssh_config_says() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().config("LogLevel DEBUG1"));
    for (limit, least, most) in [("1M", 4, 20), ("default none", 1, 1)] {
        let before = world.sshd.log().matches("SSH2_MSG_KEXINIT received").count();
        let limit = format!("RekeyLimit={limit}");
        let command = "head -c 8000000 /dev/zero";
        let output = world.run(world.connect(&["-p", "dev", "-o", &limit, "--", command])).success();
        assert_eq!(output.stdout.len(), 8_000_000);
        let exchanged = world.sshd.log().matches("SSH2_MSG_KEXINIT received").count() - before;
        assert!((least..=most).contains(&exchanged), "{limit}: {exchanged}");
    }
    world.assert_clean();
}

#[test]
fn an_sshd_that_ends_what_is_idle_does_not_end_us() {
    if sandbox::isolated!() {
        return;
    }
    let strict = SshdOptions::default()
        .config("UnusedConnectionTimeout 1s")
        .config("ChannelTimeout forwarded-tcpip=2s direct-tcpip=2s");
    let mut world = World::with(strict);
    let tunnel = world.tunnel(&["-p", "dev"]);
    let target = Target::of(&tunnel);
    // This one is idle until sshd closes it, which is later than an unused connection would have been closed.
    let mut idle = TcpStream::connect(("127.0.0.1", target.port)).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    let _reset_or_end = idle.read(&mut [0]);
    let report = target.get(&world, 10, 1);
    assert_eq!((report.answered, report.failed), (10, 0), "{report}");
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.assert_clean();
}

/// Where requests go.
struct Target {
    port: u16,
    token: String,
}

impl Target {
    fn of(tunnel: &Tunnel) -> Self {
        let port = tunnel.url().trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
        Self { port, token: tunnel.token() }
    }

    /// Starts [`generator`] as `user`.
    fn start(&self, world: &World, user: &User, what: &str) -> Process {
        let binary = sandbox::reach::reachable(&std::env::current_exe().unwrap());
        let arguments = ["--exact", "load::generator", "--ignored", "--nocapture"];
        let mut command = world.as_user(user, binary.to_str().unwrap(), &arguments);
        command.env("LOAD", what).env("PORT", self.port.to_string()).env("TOKEN", &self.token);
        world.laptop.spawn(command)
    }

    /// Makes requests as the host's user, and returns how it went.
    fn get(&self, world: &World, requests: usize, at_once: usize) -> Report {
        let mut load = self.start(world, world.sshd.user(), &format!("get {requests} {at_once}"));
        let output = load.wait(PATIENCE);
        assert_eq!(output.code, Some(0), "{output}");
        report(&mut load)
    }
}

/// Reads what a generator says at its end.
fn report(generator: &mut Process) -> Report {
    let line = generator.wait_for_line(Stream::Stdout, "report ", PATIENCE);
    line.split_once("report ").unwrap().1.parse().unwrap()
}

/// How a row of requests went.
struct Report {
    answered: usize,
    failed: usize,
    took: Duration,
    latency: Spread,
    /// One of the failures.
    why: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, failed, took, latency, why } = self;
        write!(f, "{answered} answered, {failed} failed in {:.1} s, {latency} {why}", took.as_secs_f64())
    }
}

/// As [`generator`] prints it.
impl FromStr for Report {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.splitn(7, ' ');
        let mut number = || words.next().unwrap_or_default().parse::<u64>();
        let (answered, failed) = (usize::try_from(number()?).unwrap(), usize::try_from(number()?).unwrap());
        let mut time = || number().map(Duration::from_micros);
        let (took, latency) = (time()?, Spread { middle: time()?, p99: time()?, longest: time()? });
        Ok(Self { answered, failed, took, latency, why: words.next().unwrap_or_default().to_owned() })
    }
}

/// A row of durations.
struct Spread {
    middle: Duration,
    p99: Duration,
    longest: Duration,
}

impl Spread {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        let at = |part: usize| all.get(all.len().saturating_sub(1) * part / 100).copied();
        let [middle, p99, longest] = [50, 99, 100].map(|part| at(part).unwrap_or_default());
        Self { middle, p99, longest }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1?} p99 {:.1?} max {:.1?}", self.middle, self.p99, self.longest)
    }
}

/// What a process uses.
struct Vitals {
    /// In KiB.
    resident: usize,
    threads: usize,
    descriptors: usize,
}

impl Vitals {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self { resident: number("VmRSS:"), threads: number("Threads:"), descriptors }
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident, threads, descriptors } = self;
        write!(f, "{resident} KiB resident, {threads} threads, {descriptors} descriptors")
    }
}

/// No test of its own: the part of others that runs as a user of the host.
#[test]
#[ignore = "other tests start it"]
fn generator() {
    let Ok(load) = std::env::var("LOAD") else { return };
    let port = std::env::var("PORT").unwrap().parse().unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n",
        std::env::var("TOKEN").unwrap()
    );
    let mut words = load.split(' ');
    let (kind, mut number) = (words.next().unwrap(), || words.next().unwrap().parse::<usize>().unwrap());
    match kind {
        "get" => generate(port, &request, number(), number()),
        kind => hold(port, &request, kind, number()),
    }
}

/// Makes requests, each on a connection of its own, and prints a [`Report`].
fn generate(port: u16, request: &str, requests: usize, at_once: usize) {
    let left = AtomicUsize::new(requests);
    let (good, bad) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let asked = Instant::now();
                    match get(port, request) {
                        Ok(()) => good.lock().unwrap().push(asked.elapsed()),
                        Err(why) => bad.lock().unwrap().push(why),
                    }
                }
            });
        }
    });
    let (took, good, mut bad) = (started.elapsed(), good.into_inner().unwrap(), bad.into_inner().unwrap());
    let (answered, failed, latency) = (good.len(), bad.len(), Spread::of(good));
    let [took, middle, p99, longest] =
        [took, latency.middle, latency.p99, latency.longest].map(|time| time.as_micros());
    let why = bad.pop().unwrap_or_default().replace(['\r', '\n'], " ");
    println!("report {answered} {failed} {took} {middle} {p99} {longest} {why}");
}

/// One request, whose answer has to be credentials.
fn get(port: u16, request: &str) -> Result<(), String> {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = ask().map_err(|e| e.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let right = answer.starts_with("HTTP/1.1 200 ")
        && serde_json::from_str::<serde_json::Value>(body)
            .is_ok_and(|body| body["AccessKeyId"].is_string() && body["SecretAccessKey"].is_string());
    // What is not an answer of ours holds no secret.
    if right { Ok(()) } else { Err(answer.lines().next().unwrap_or("no answer").to_owned()) }
}

/// Holds connections in some idle way until stdin ends.
fn hold(port: u16, request: &str, kind: &str, connections: usize) {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        stream.set_nonblocking(true).unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        // Whoever is cut off stays idle.
        let _cut = match kind {
            "deaf" => stream.write(request.as_bytes()),
            "drip" => stream.write(b"GET / HTTP/1.1\r\n"),
            "pipeline" => stream.write(request.repeat(64).as_bytes()),
            _ => Ok(0),
        };
    }
    let (ended, end) = mpsc::channel::<()>();
    // Idle means that they are so for a moment; a burst is what `get` makes.
    assert_eq!(end.recv_timeout(Duration::from_millis(300)), Err(mpsc::RecvTimeoutError::Timeout));
    thread::spawn(move || {
        println!("holding");
        let _end = std::io::stdin().read_to_end(&mut Vec::new());
        drop(ended);
    });
    // A slow client needs a pace; the end of stdin is what it waits for.
    while end.recv_timeout(Duration::from_millis(100)) == Err(mpsc::RecvTimeoutError::Timeout) {
        for stream in &mut streams {
            let _cut = match kind {
                "drip" => stream.write(b"x"),
                "pipeline" => stream.write(request.as_bytes()),
                _ => Ok(0),
            };
        }
    }
}
