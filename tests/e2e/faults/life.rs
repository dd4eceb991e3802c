//! A day in a minute: as many renewals and cuts as in a day, and nothing grows. And what a tunnel costs that nobody uses.

use std::{
    fs,
    time::{Duration, Instant},
};

use sandbox::home::Stream;

use super::{assert_stops_clean, long};
use crate::support::{ACCOUNT, PATIENCE, REGION, Tunnel, World, eventually};

/// What the kernel knows of a process.
#[derive(Clone, Copy, Debug)]
struct Vitals {
    resident_kib: u64,
    threads: u64,
    descriptors: usize,
    /// How often its threads went to sleep.
    slept: u64,
    /// Processor time.
    ran: Duration,
}

impl Vitals {
    fn of(tunnel: &Tunnel) -> Self {
        let process = format!("/proc/{}", tunnel.process.pid());
        let field = |path: &str, name: &str| -> u64 {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let status = format!("{process}/status");
        let tasks: Vec<_> =
            fs::read_dir(format!("{process}/task")).unwrap().flatten().map(|task| task.path()).collect();
        let slept =
            tasks.iter().map(|task| field(&format!("{}/status", task.display()), "voluntary_ctxt_switches:"));
        let ran = tasks.iter().map(|task| field(&format!("{}/schedstat", task.display()), ""));
        Self {
            resident_kib: field(&status, "VmRSS:"),
            threads: field(&status, "Threads:"),
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
            slept: slept.sum(),
            ran: Duration::from_nanos(ran.sum()),
        }
    }
}

#[test]
fn row_45_a_day_of_renewals_and_cuts_leaves_nothing_behind() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let roles: Vec<String> = (0..8).map(|number| format!("Role{number}")).collect();
    for role in &roles {
        world.aws.add_role(ACCOUNT, "Development", role);
    }
    let profiles: Vec<(&str, &str, &str)> = roles.iter().map(|role| (&**role, ACCOUNT, &**role)).collect();
    world.aws.set_role_life(Duration::from_secs(14));
    // A sign-in of an hour is renewed about 29 times a day; this one whenever a role is asked for.
    world.aws.set_access_token_life(Duration::from_secs(30));
    world.aws.seed_home(world.laptop.path(), "corp", &profiles, REGION);
    world.aws.seed_token(world.laptop.path(), "corp");
    world.own_aws_files();
    let mut arguments: Vec<&str> = roles.iter().flat_map(|role| ["-p", role]).collect();
    arguments.push("-vv");
    let mut tunnel = world.tunnel(&arguments);
    let (user, token) = (world.sshd.user().clone(), tunnel.token());
    let day = Duration::from_secs(if long() { 24 * 60 } else { 58 });
    let (began, mut cuts, mut requests, mut first) = (Instant::now(), 0u32, 0u32, None);
    let mut highest: Option<Vitals> = None;
    while began.elapsed() < day {
        // A day has some four of them.
        if began.elapsed() >= day / 6 * (cuts + 1) {
            world.sshd.kill_connections();
            tunnel.wait_until_lost(PATIENCE);
            tunnel.wait_until_back(PATIENCE);
            cuts += 1;
        }
        let answer = world.fetch(&user, tunnel.url(), Some(&token));
        assert_eq!(answer.status(), 200, "{:?}", answer.json()["message"]);
        let left = answer.json()["Expiration"].as_str().unwrap().to_owned();
        assert!(left > now(), "expired credentials were served: {left}");
        requests += 1;
        let vitals = Vitals::of(&tunnel);
        // All kinds of things have happened once by then.
        if cuts >= 2 && first.is_none() {
            first = Some(vitals);
        }
        highest = Some(vitals);
        std::thread::sleep(Duration::from_millis(50));
    }
    let (first, last) = (first.unwrap(), highest.unwrap());
    let tasks = tasks(&tunnel);
    let calls = world.aws.calls();
    let count = |name: &str| calls.iter().filter(|call| call.starts_with(name)).count();
    let (renewed, signed_in) = (count("GetRoleCredentials"), count("CreateToken(refresh_token)"));
    let said = format!(
        "{requests} requests, {renewed} role credentials, {signed_in} sign-ins renewed, {cuts} cuts; memory {} KiB and then {}, \
         threads {} and {}, descriptors {} and {}, tasks {tasks:?}",
        first.resident_kib,
        last.resident_kib,
        first.threads,
        last.threads,
        first.descriptors,
        last.descriptors
    );
    super::seen(45, &said);
    assert!(renewed >= 36 && signed_in >= 4 && cuts >= 5, "{renewed}, {signed_in}, {cuts}");
    assert!(last.resident_kib < first.resident_kib + 1024, "{first:?}, at last {last:?}");
    assert_eq!(tasks.len(), cuts as usize);
    // One that every cut left would make three. A renewal may be under way while they are counted.
    let (early, late) = (tasks[..2].iter().max().unwrap(), tasks[tasks.len() - 2..].iter().min().unwrap());
    assert!(*late <= early + 1, "{tasks:?}");
    // Those that read files come and go; one that every cut left would make five.
    assert!(last.threads <= first.threads + 2, "{first:?}, at last {last:?}");
    eventually("no descriptor is left open", PATIENCE, || match Vitals::of(&tunnel).descriptors {
        now if now <= first.descriptors => Ok(()),
        now => Err(format!("{now}, at first {first:?}")),
    });
    assert_stops_clean(&mut world, tunnel);
    let verify = world.broker(&["audit", "verify"]);
    let _whole = world.run(verify).success();
}

/// How many tasks there were after each cut.
fn tasks(tunnel: &Tunnel) -> Vec<usize> {
    let said = tunnel.process.text(Stream::Stderr);
    let told = said.lines().filter(|line| line.contains("back in service"));
    told.map(|line| line.split("tasks=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap())
        .collect()
}

/// The time as an expiry is written.
fn now() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_tunnel_that_nobody_uses_wakes_less_than_once_a_second() {
    if sandbox::isolated!(alone) {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev"]);
    // Whatever the start left to do is done.
    assert!(!crate::support::within(Duration::from_secs(3), || tunnel.process.has_ended()));
    let (before, began) = (Vitals::of(&tunnel), Instant::now());
    let time = Duration::from_secs(if long() { 120 } else { 20 });
    assert!(!crate::support::within(time, || tunnel.process.has_ended()));
    let (after, took) = (Vitals::of(&tunnel), began.elapsed().as_secs_f64());
    let a_second = (after.slept - before.slept) as f64 / took;
    let core = (after.ran - before.ran).as_secs_f64() / took;
    println!("idle: {a_second:.2} wake-ups a second, {:.3} % of a core", core * 100.0);
    assert!(a_second <= 1.0, "{a_second:.2} wake-ups a second");
    // Of a debug build: the benchmark holds the release to 0.1 %.
    assert!(core <= 0.003, "{:.3} % of a core", core * 100.0);
    assert_stops_clean(&mut world, tunnel);
}
