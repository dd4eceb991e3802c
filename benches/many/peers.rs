//! What people run today: a process of `ssh` for each tunnel.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use sandbox::{
    bastion::{Bastion, Options},
    home::Home,
};

use crate::{PATIENCE, REST, field};

/// What runs is ended with us, however we end.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap_or_default();
        }
        for child in &mut self.0 {
            drop(child.wait());
        }
    }
}

/// Returns what so many processes take together in KiB, where a page that several share counts in parts, and how long
/// their start took.
pub(crate) fn processes(count: usize) -> (f64, Duration) {
    let home = Home::temporary();
    let bastion = Bastion::start(Options { home: home.path().to_owned(), ..Options::default() });
    let mut config = String::new();
    write!(
        config,
        "Host *\n  HostName 127.0.0.1\n  Port {}\n  User ada\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  \
         ExitOnForwardFailure yes\n  UserKnownHostsFile {}\n",
        bastion.port(),
        bastion.client_key_path().display(),
        home.join("known_hosts").display()
    )
    .unwrap();
    home.write("config", config, 0o600);
    home.write("known_hosts", bastion.known_hosts_line("127.0.0.1"), 0o600);
    let started = Instant::now();
    let mut running = Running(Vec::new());
    // As many at once as `broker` takes.
    for first in (0..count).step_by(8) {
        let sockets: Vec<_> = (first..count.min(first + 8)).map(|at| home.join(format!("s{at}"))).collect();
        for socket in &sockets {
            let mut command = home.command("ssh");
            command.arg("-F").arg(home.join("config")).arg("-N").arg("-R");
            command.arg(format!("{}:127.0.0.1:9", socket.display())).arg("host");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            running.0.push(command.spawn().unwrap());
        }
        while !sockets.iter().all(|socket| Path::new(socket).exists()) {
            assert!(started.elapsed() < PATIENCE, "`ssh` does not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let took = started.elapsed();
    std::thread::sleep(REST);
    let proportional = running.0.iter().map(|child| field(child.id(), "smaps_rollup", "Pss:")).sum();
    (proportional, took)
}
