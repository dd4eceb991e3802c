//! The figures, the gates that they must hold, and how both are written down.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use serde_json::{Map, Value, json};

use crate::{load::Outcome, measure::median, tunnels::Variant};

/// What the check of the caller's uid may cost a request, beside one round trip to the host.
///
/// The gates were set from a prototype without that check, and `broker` cannot switch it off. So a gate on the time of a
/// request takes this off first; the ratio as measured stands beside it.
const UID_CHECK: Duration = Duration::from_millis(5);

/// A line of the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Row {
    Connect,
    ConnectCpu,
    End,
    /// The median over the requests of so many clients.
    P50(usize),
    P99(usize),
    PerSecond(usize),
    RequestCpu(usize),
    Body,
    Errors,
    Boto3,
    Bare,
    Process,
    IdleMemory,
    IdleShare,
    LaterMemory,
    Growth,
    Threads,
    WakeUps,
    IdleCpu,
    Flooded,
    Crowded,
    StartUp,
    Binary,
}

impl Row {
    fn name(self) -> String {
        match self {
            Self::Connect => "connect: start of the process to ready, ms".to_owned(),
            Self::ConnectCpu => "connect: client's processor time, ms".to_owned(),
            Self::End => "SIGTERM to gone, ms".to_owned(),
            Self::P50(clients) => format!("fetch, new connection, {clients} at once: p50, ms"),
            Self::P99(clients) => format!("fetch, new connection, {clients} at once: p99, ms"),
            Self::PerSecond(clients) => format!("fetch, new connection, {clients} at once: a second"),
            Self::RequestCpu(clients) => {
                format!("fetch, new connection, {clients} at once: processor time of a request, µs")
            }
            Self::Body => "body of an answer, bytes".to_owned(),
            Self::Errors => "failed requests".to_owned(),
            Self::Boto3 => "boto3's own fetch: p50, ms".to_owned(),
            Self::Bare => "bare `curl --unix-socket`, ms".to_owned(),
            Self::Process => "`credential_process` at the socket, ms".to_owned(),
            Self::IdleMemory => "resident when idle, MB".to_owned(),
            Self::IdleShare => "resident when idle, shared pages in parts, MB".to_owned(),
            Self::LaterMemory => "resident after many requests, MB".to_owned(),
            Self::Growth => "growth over them, MB".to_owned(),
            Self::Threads => "threads when idle".to_owned(),
            Self::WakeUps => "wake-ups in 30 s of idleness".to_owned(),
            Self::IdleCpu => "processor time in 30 s of idleness, ms".to_owned(),
            Self::Flooded => "slowest fetch beside a hostile pipeliner, ms".to_owned(),
            Self::Crowded => "fetch, 1 at once, on a host with 10 000 sockets: p50, ms".to_owned(),
            Self::StartUp => "start-up (`broker --help`, `ssh -V`), ms".to_owned(),
            Self::Binary => "release binary, MB".to_owned(),
        }
    }
}

/// Every value, in the order of the rounds.
pub(crate) struct Figures {
    round_trip: Duration,
    values: BTreeMap<(Row, Variant), Vec<f64>>,
}

/// What must be true.
#[derive(Debug)]
pub(crate) struct Gate {
    what: &'static str,
    /// As measured.
    raw: f64,
    /// What is held against the limit.
    judged: f64,
    limit: f64,
    at_least: bool,
    unit: &'static str,
}

impl Gate {
    pub(crate) fn holds(&self) -> bool {
        if self.at_least { self.judged >= self.limit } else { self.judged <= self.limit }
    }
}

impl Figures {
    pub(crate) fn new(round_trip: Duration) -> Self {
        Self { round_trip, values: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, row: Row, variant: Variant, value: f64) {
        self.values.entry((row, variant)).or_default().push(value);
    }

    pub(crate) fn fetched(
        &mut self,
        variant: Variant,
        clients: usize,
        requests: usize,
        found: &Outcome,
        spent: Duration,
    ) {
        self.add(Row::P50(clients), variant, found.p50_us / 1e3);
        self.add(Row::P99(clients), variant, found.p99_us / 1e3);
        self.add(Row::PerSecond(clients), variant, found.per_second);
        self.add(Row::RequestCpu(clients), variant, spent.as_secs_f64() * 1e6 / requests as f64);
        self.add(Row::Body, variant, found.body as f64);
        self.failed(variant, found);
    }

    /// Counts the failures of a load; there is one sum for each way.
    pub(crate) fn failed(&mut self, variant: Variant, found: &Outcome) {
        *self.values.entry((Row::Errors, variant)).or_insert_with(|| vec![0.0]).first_mut().unwrap() +=
            found.errors as f64;
    }

    fn all(&self, row: Row, variant: Variant) -> &[f64] {
        self.values.get(&(row, variant)).map_or(&[], Vec::as_slice)
    }

    fn value(&self, row: Row, variant: Variant) -> f64 {
        median(self.all(row, variant).to_vec())
    }

    /// What is taken off the time of a request before it is judged, in milliseconds.
    fn allowance(&self) -> f64 {
        (self.round_trip + UID_CHECK).as_secs_f64() * 1e3
    }

    /// Returns the median over the rounds of `broker`, less `less`, against another.
    fn ratio(&self, row: Row, other: Variant, less: f64) -> f64 {
        let rounds = self.all(row, Variant::Broker).iter().zip(self.all(row, other));
        median(rounds.map(|(own, other)| (own - less).max(0.0) / other).collect())
    }

    /// Returns the median over the rounds of `broker`'s requests a second against the better `ssh`, had each request
    /// taken `less` milliseconds less; but no request is faster than without a tunnel.
    fn throughput(&self, clients: usize, less: f64) -> f64 {
        let row = Row::PerSecond(clients);
        let peers = self.all(row, Variant::Ssh).iter().zip(self.all(row, Variant::SshSession));
        let rounds = self.all(row, Variant::Broker).iter().zip(self.all(row, Variant::Direct)).zip(peers);
        let took = |per_second: f64| clients as f64 * 1e3 / per_second;
        let of_round = |((own, direct), (ssh, session)): ((&f64, &f64), (&f64, &f64))| {
            let own = (took(*own) - less).max(took(*direct).min(took(*own)));
            took(ssh.max(*session)) / own
        };
        median(rounds.map(of_round).collect())
    }

    /// The gate column of the goals, as far as this benchmark measures them.
    pub(crate) fn gates(&self) -> Vec<Gate> {
        let allowance = self.allowance();
        let at_most =
            |what, value, limit, unit| Gate { what, raw: value, judged: value, limit, at_least: false, unit };
        let ratio = |what, row, other, limit| at_most(what, self.ratio(row, other, 0.0), limit, "x");
        let request = |what, row, other, limit| Gate {
            judged: self.ratio(row, other, allowance),
            ..at_most(what, self.ratio(row, other, 0.0), limit, "x")
        };
        let own = |what, row, limit, unit| at_most(what, self.value(row, Variant::Broker), limit, unit);
        let beyond = |what, row, other, less, limit| {
            let rounds = self.all(row, Variant::Broker).iter().zip(self.all(other, less));
            at_most(what, median(rounds.map(|(own, other)| own - other).collect()), limit, " ms")
        };
        let own_request = |what, row, limit| Gate {
            judged: (self.value(row, Variant::Broker) - allowance).max(0.0),
            ..own(what, row, limit, " ms")
        };
        vec![
            ratio("connect, to `ssh -N -R` with the same key exchange", Row::Connect, Variant::Ssh, 0.55),
            ratio(
                "connect, to `ssh -N -R` with its own key exchange",
                Row::Connect,
                Variant::SshOwnKex,
                0.40,
            ),
            own("processor time of a connect", Row::ConnectCpu, 10.0, " ms"),
            request("fetch, 1 client, p50, to direct", Row::P50(1), Variant::Direct, 6.0),
            request(
                "fetch, 1 client, p50, to `ssh -R` with a session",
                Row::P50(1),
                Variant::SshSession,
                0.9,
            ),
            own_request("fetch, 1 client, p99", Row::P99(1), 5.0),
            request("fetch, 10 clients, p99, to `ssh -N -R`", Row::P99(10), Variant::Ssh, 0.3),
            request("boto3's fetch, p50, to direct", Row::Boto3, Variant::Direct, 2.0),
            request("boto3's fetch, p50, to `ssh -N -R`", Row::Boto3, Variant::Ssh, 0.25),
            Gate {
                what: "fetches a second, 100 clients, to the better `ssh`",
                raw: self.throughput(100, 0.0),
                judged: self.throughput(100, allowance),
                limit: 1.3,
                at_least: true,
                unit: "x",
            },
            ratio(
                "processor time of a request, 100 clients, to `ssh -N -R`",
                Row::RequestCpu(100),
                Variant::Ssh,
                0.6,
            ),
            beyond(
                "uid check, 1 client, p50: beyond the same fetch without it",
                Row::P50(1),
                Row::P50(1),
                Variant::Unchecked,
                allowance,
            ),
            beyond(
                "uid check, 10 clients, p50: beyond the same fetch without it",
                Row::P50(10),
                Row::P50(10),
                Variant::Unchecked,
                allowance,
            ),
            beyond(
                "`credential_process`, beyond a bare `curl --unix-socket`",
                Row::Process,
                Row::Bare,
                Variant::Broker,
                15.0,
            ),
            ratio("resident when idle, to `ssh -N -R`", Row::IdleMemory, Variant::Ssh, 0.85),
            own("resident when idle", Row::IdleMemory, 12.0, " MB"),
            own("failed requests", Row::Errors, 0.0, ""),
            own("growth over many requests", Row::Growth, 3.0, " MB"),
            own("threads when idle", Row::Threads, 4.0, ""),
            own("wake-ups in 30 s", Row::WakeUps, 60.0, ""),
            own("processor time in 30 s", Row::IdleCpu, 20.0, " ms"),
            own_request("slowest fetch beside a hostile pipeliner", Row::Flooded, 100.0),
            own("`--help`", Row::StartUp, 15.0, " ms"),
            own("release binary", Row::Binary, 12.0, " MB"),
        ]
    }

    /// Writes tables and values into `directory`, and returns the tables.
    pub(crate) fn publish(&self, directory: &Path, why_not_judged: Option<&str>, took: Duration) -> String {
        let text = self.markdown(why_not_judged, took);
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("tunnel.md"), &text).unwrap();
        let json = serde_json::to_string_pretty(&self.json(why_not_judged)).unwrap();
        fs::write(directory.join("tunnel.json"), json + "\n").unwrap();
        text
    }

    fn markdown(&self, why_not_judged: Option<&str>, took: Duration) -> String {
        let rounds = self.all(Row::Connect, Variant::Broker).len();
        let mut text = format!(
            "# tunnel: {rounds} rounds in {} s\n\n{}\n\nMedians of the rounds; client, tunnel, sshd and load share this \
             machine. `direct` is a minimal hyper server, which also stands behind every `ssh`. One request a \
             connection, which the client closes after the answer as SDKs do: this is where `ssh -N -R` meets Nagle's \
             algorithm, which sshd before 10.1 turns off only for a session. Every answer proved by a marker that it \
             is of this run.\n\n",
            took.as_secs(),
            machine()
        );
        text += "| |";
        for variant in Variant::ALL {
            write!(text, " {} |", variant.name()).unwrap();
        }
        text += "\n|---|";
        text += &"---:|".repeat(Variant::ALL.len());
        text.push('\n');
        for row in self.rows() {
            write!(text, "| {} |", row.name()).unwrap();
            for variant in Variant::ALL {
                let value = self.value(row, variant);
                write!(text, " {} |", if value.is_nan() { String::new() } else { number(value) }).unwrap();
            }
            text.push('\n');
        }
        write!(
            text,
            "\n`broker` does more than `ssh` until it is ready: it reads and checks the AWS configuration, signs in \
             with the cached token, fetches role credentials (here from a pretend AWS on loopback), starts its helper \
             on the host in a login shell, proves that the listener there is its own, and writes token and environment. \
             `ssh` is ready when sshd has said yes to the forward; the server behind it runs already and is not in \
             its time, but is in its memory and in the processor time of requests.\n\n\
             `broker` proves for every request that the caller is the user of the tunnel, by a question to the helper \
             on the host; nothing that it is compared with does. A gate on the time of a request takes off one round \
             trip ({} ms, measured on plain loopback) and {} ms for that. \"As measured\" is without this.\n\n\
             | gate | as measured | judged | limit | |\n|---|---:|---:|---:|---|\n",
            number(self.round_trip.as_secs_f64() * 1e3),
            UID_CHECK.as_millis()
        )
        .unwrap();
        for gate in self.gates() {
            let sign = if gate.at_least { "≥" } else { "≤" };
            let verdict = match (why_not_judged, gate.holds()) {
                (Some(_), true) => "(holds)",
                (Some(_), false) => "(does not hold)",
                (None, true) => "holds",
                (None, false) => "**DOES NOT HOLD**",
            };
            writeln!(
                text,
                "| {} | {}{u} | {}{u} | {sign} {}{u} | {verdict} |",
                gate.what,
                number(gate.raw),
                number(gate.judged),
                number(gate.limit),
                u = gate.unit
            )
            .unwrap();
        }
        match why_not_judged {
            Some(why) => writeln!(text, "\n{why}.").unwrap(),
            None => {
                let failed = self.gates().iter().filter(|gate| !gate.holds()).count();
                writeln!(text, "\n{} gates hold, {failed} do not.", self.gates().len() - failed).unwrap();
            }
        }
        text
    }

    fn json(&self, why_not_judged: Option<&str>) -> Value {
        let rows: Map<_, _> = self
            .rows()
            .into_iter()
            .map(|row| {
                let of_row = Variant::ALL.into_iter().filter_map(|variant| {
                    let values = self.values.get(&(row, variant))?;
                    Some((variant.name().to_owned(), json!(values)))
                });
                (row.name(), Value::Object(of_row.collect()))
            })
            .collect();
        let gates: Vec<_> = self
            .gates()
            .iter()
            .map(|gate| {
                json!({
                    "gate": gate.what,
                    "as_measured": gate.raw,
                    "judged": gate.judged,
                    "limit": gate.limit,
                    "at_least": gate.at_least,
                    "unit": gate.unit.trim(),
                    "holds": gate.holds(),
                })
            })
            .collect();
        json!({
            "machine": machine(),
            "not_judged": why_not_judged,
            "round_trip_ms": self.round_trip.as_secs_f64() * 1e3,
            "rows": rows,
            "gates": gates,
        })
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<_> = self.values.keys().map(|(row, _)| *row).collect();
        rows.dedup();
        rows
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let ssh = Command::new("ssh").arg("-V").output().map(|output| output.stderr).unwrap_or_default();
    format!("{cores} cores, Linux {}, {}", kernel.trim(), String::from_utf8_lossy(&ssh).trim())
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}
