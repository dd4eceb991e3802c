//! What the kernel knows about a process, and the statistics.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Returns the processor time of all living threads. The clock ticks of `/proc/PID/stat` would be 10 ms.
pub(crate) fn processor_time(pids: &[u32]) -> Duration {
    let nanoseconds = tasks(pids, "schedstat")
        .map(|text| text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0))
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Returns how often the threads have gone to sleep, which is how often they were woken.
pub(crate) fn wake_ups(pids: &[u32]) -> u64 {
    tasks(pids, "status").filter_map(|text| field(&text, "voluntary_ctxt_switches:")).sum()
}

pub(crate) fn threads(pids: &[u32]) -> u64 {
    tasks(pids, "comm").count() as u64
}

/// Returns the resident memory in KiB.
pub(crate) fn resident(pids: &[u32]) -> u64 {
    sum(pids, "status", "VmRSS:")
}

/// Returns the resident memory in KiB, where a page that several processes share counts in parts.
pub(crate) fn proportional(pids: &[u32]) -> u64 {
    sum(pids, "smaps_rollup", "Pss:")
}

fn sum(pids: &[u32], file: &str, name: &str) -> u64 {
    pids.iter()
        .map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process lives");
            field(&text, name).expect("the kernel tells it")
        })
        .sum()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().split(' ').next()?.parse().ok())
}

fn tasks<'a>(pids: &'a [u32], file: &'a str) -> impl Iterator<Item = String> + 'a {
    pids.iter().flat_map(move |pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
        // A thread may end while we look.
        tasks.flatten().filter_map(move |task| fs::read_to_string(task.path().join(file)).ok())
    })
}

/// Returns how long a byte takes there and back on loopback: the least that any round trip can be.
pub(crate) fn round_trip() -> Duration {
    const TRIPS: usize = 1000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte).unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut times = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let started = Instant::now();
        stream.write_all(&[1]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        times.push(started.elapsed().as_secs_f64());
    }
    drop(stream);
    echo.join().unwrap();
    Duration::from_secs_f64(median(times))
}

/// Returns the smallest value that `share` of the sorted values do not exceed.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
