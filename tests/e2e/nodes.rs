//! Clusters: homes that machines share, and schedulers that take a user's environment from the login node, where the
//! tunnel ends, to compute nodes, where port 4144 and every name in `/dev/shm` may be another user's.

use std::{
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use sandbox::{
    home::{Host, Output, Process, Stream},
    node::Node,
    sshd::{Sshd, SshdOptions},
    users::User,
};

use crate::{
    support::{PATIENCE, Tunnel, World, eventually, offers, program, sdk},
    users::{assert_nobody_came, squat_with},
};

pub const NODE: &str = "node-b";

/// Prints the id of the key that an SDK found. It asks nobody but where the credentials are, as no AWS is on a node.
pub const BOTO3: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                     found = boto3.Session(profile_name=p).get_credentials() or sys.exit('Unable to locate credentials'); \
                     print(found.get_frozen_credentials().access_key)";

const JAVASCRIPT: &str = "new (require(process.argv[1]).STSClient)({profile: process.argv[2]}).config.credentials()\
                          .then(found => console.log(found.accessKeyId))";

/// What the user has in `~/.aws/config` beforehand.
const THEIRS: &str = "[profile mine]\nregion = us-east-1\n";

/// Makes this machine one with a scheduler, as far as anybody can see who submits nothing.
fn with_scheduler() {
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "none", "/usr/games"]).status();
    assert!(mounted.unwrap().success());
    std::fs::write("/usr/games/sbatch", "#!/bin/sh\n").unwrap();
    std::fs::set_permissions("/usr/games/sbatch", PermissionsExt::from_mode(0o755)).unwrap();
}

/// Gives the user what systemd gives who logs in.
pub fn with_runtime_directory(user: &User) {
    let path = PathBuf::from(format!("/run/user/{}", user.uid));
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    chown(&path, Some(user.uid), Some(user.gid)).unwrap();
}

/// Another user gives everything at the names of `directory` that a process of ours may be told of to things of
/// theirs, where they can. Whatever of it is run as us leaves a trace.
const TRAP: &str = r#"
mkdir -p "$1" && chmod 755 "${1%/*}" "$1" && cd "$1" || { echo cannot; exit; }
line="touch $2/caught"
printf '[default]\ncredential_process = %s\n[profile dev]\ncredential_process = %s\n' "$line" "$line" > config
echo "$line" > run-broker-connect-if-this-is-missing.sh
printf 'Bearer of the other user' > token-dev
chmod 644 *
echo set
"#;

pub fn trap_on(node: Option<&Node>, world: &World, directory: &Path) -> String {
    let home = world.sshd.user().home.display().to_string();
    let arguments = ["-c", TRAP, "sh", directory.to_str().unwrap(), &home];
    let command = match node {
        Some(node) => node.command(&User::other(), "sh", &arguments),
        None => world.as_user(&User::other(), "sh", &arguments),
    };
    world.laptop.run(command).stdout().trim().to_owned()
}

/// A program of the user on the node, with the environment that the scheduler took along.
fn job(world: &mut World, node: &Node, tunnel: &Tunnel, line: &[&str]) -> Output {
    let mut job = node.command(world.sshd.user(), line[0], &line[1..]);
    job.envs(&tunnel.environment).env("NO_PROXY", "*");
    world.run(job)
}

#[track_caller]
fn assert_fails_closed(world: &mut World, node: &Node, tunnel: &Tunnel) {
    let (python, module) = (sdk("python/bin/python"), sdk("node_modules/@aws-sdk/client-sts"));
    let (python, module) = (python.to_str().unwrap(), module.to_str().unwrap());
    for line in [
        &[python, "-c", BOTO3][..],
        &[python, "-c", BOTO3, "dev"],
        &["node", "-e", JAVASCRIPT, module],
        &["node", "-e", JAVASCRIPT, module, "dev"],
    ] {
        let output = job(world, node, tunnel, line);
        assert!(output.code != Some(0) && output.stdout.is_empty(), "{line:?}: {output}");
        let said = output.stderr();
        // The sentence of ours, the file that is not there by its name, or the profile.
        let clear = ["broker", "profile (dev)", "Could not load credentials", "Unable to locate credentials"];
        assert!(clear.iter().any(|part| said.contains(part)), "{line:?}: {output}");
    }
    assert!(!world.home_file("caught").exists(), "what another user left was run as us");
}

#[test]
fn a_job_on_another_node_gets_nothing_and_its_neighbours_there_hear_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let user = User::host();
    with_scheduler();
    for (runtime, transport, install) in [
        (false, "auto", true),
        (false, "tcp", false),
        (false, "unix", false),
        (false, "file", true),
        (true, "auto", false),
        (true, "tcp", true),
        (true, "file", false),
    ] {
        if !offers(transport) {
            continue;
        }
        if runtime && !Path::new(&format!("/run/user/{}", user.uid)).exists() {
            with_runtime_directory(&user);
        }
        let mut world = World::fresh_home();
        world.plant(".aws/config", THEIRS, 0o600);
        let node = Node::start(NODE);
        let neighbour =
            squat_with(&world, |line| node.command(&User::other(), line[0], &line[1..]), "127.0.0.1", 4144);
        let mut flags = vec!["-p", "dev", "--transport", transport];
        if install {
            flags.push("--install-profiles");
        }
        let tunnel = world.tunnel(&flags);
        let name = format!("{transport}, runtime directory: {runtime}, profiles: {install}");
        // Where the login node has no directory that is ours alone, nothing is in one of everybody's.
        let directory = tunnel.directory();
        let place = if runtime { "/run/user/" } else { user.home.to_str().unwrap() };
        assert!(directory.starts_with(place), "{name}: {}", directory.display());
        let usual = format!("/dev/shm/broker-{}/4144", user.uid);
        assert_eq!(trap_on(Some(&node), &world, Path::new(&usual)), "set");

        assert_fails_closed(&mut world, &node, &tunnel);
        assert_nobody_came(&neighbour);

        // Here all of it works.
        let mut here = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", BOTO3]);
        here.envs(&tunnel.environment);
        let output = world.run(here).success();
        assert!(output.stdout().starts_with("ASIA"), "{name}: {output}");
        let output = tunnel.stop(&mut world);
        assert!(!output.stderr().contains("warning"), "{name}: {output}");
        assert_eq!(std::fs::read_to_string(world.home_file(".aws/config")).unwrap(), THEIRS);
        world.assert_clean();
    }
}

#[test]
fn a_token_in_the_environment_of_jobs_is_a_warning_and_refused_where_it_is_all_it_takes() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    with_scheduler();
    with_runtime_directory(&User::host());
    let mut world = World::fresh_home();
    let node = Node::start(NODE);
    let neighbour =
        squat_with(&world, |line| node.command(&User::other(), line[0], &line[1..]), "127.0.0.1", 4144);
    let flags = ["-p", "dev", "--transport", "tcp", "--token", "env"];
    let tunnel = world.tunnel(&flags);
    let said = tunnel.process.text(Stream::Stderr);
    assert!(said.contains("warning") && said.contains("sbatch --export=NONE"), "{said}");
    // What the warning says is so, and what the neighbour hears is worth nothing.
    let output = job(&mut world, &node, &tunnel, &[sdk("python/bin/python").to_str().unwrap(), "-c", BOTO3]);
    assert_ne!(output.code, Some(0), "{output}");
    let heard = neighbour.text(Stream::Stdout);
    assert!(heard.contains(tunnel.token().trim_start_matches("Bearer ")), "{heard}, {output}");
    let stolen = world.fetch(&User::other(), tunnel.url(), Some(&tunnel.token()));
    assert_eq!(stolen.status(), 401);
    tunnel.stop(&mut world);

    // Without `/proc/net/tcp` nothing tells the thief from us.
    crate::no_proc::without_proc(&node);
    let sshd = world.login_node(&node);
    let mut arguments = vec!["connect", NODE, "--batch", "-N", "--trust-host-users"];
    arguments.extend(flags);
    let output = world.run(world.broker(&arguments));
    drop(sshd);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr().contains("`--trust-host-users`") && output.stdout.is_empty(), "{output}");
    // The exports hold the token, as was asked for.
    world.wait_for_clean_host();
}

#[test]
fn what_another_user_puts_where_our_directory_was_is_not_run() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let mut world = World::fresh_home();
    let node = Node::start(NODE);
    let python = sdk("python/bin/python");
    for transport in ["auto", "tcp", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
        let mut tunnel = world.tunnel(&["-p", "dev", "--install-profiles", "--transport", transport]);
        let directory = tunnel.directory();
        assert!(directory.starts_with("/dev/shm"), "{}", directory.display());
        // While we are connected: on another machine, whose user has the same configuration.
        assert_eq!(trap_on(Some(&node), &world, &directory), "set");
        assert_eq!(trap_on(None, &world, &directory), "cannot");
        let kernel = node.command(world.sshd.user(), python.to_str().unwrap(), &["-c", BOTO3, "dev"]);
        let output = world.run(kernel);
        assert!(output.code != Some(0) && output.stderr().contains("run broker connect"), "{output}");
        // After we were killed: on the same.
        tunnel.process.signal(nix::sys::signal::Signal::SIGKILL);
        let output = tunnel.process.wait(PATIENCE);
        world.heard("a killed broker", &output);
        eventually("the files are gone", PATIENCE, || {
            if world.left_on_host().is_empty() { Ok(()) } else { Err(format!("{:?}", world.left_on_host())) }
        });
        // The name is ours still, until the machine starts anew.
        assert_eq!(trap_on(None, &world, &directory), "cannot");
        std::fs::remove_dir(directory.parent().unwrap()).unwrap();
        assert_eq!(trap_on(None, &world, &directory), "set");
        let kernel = world.on_host(python.to_str().unwrap(), &["-c", BOTO3, "dev"]);
        let output = world.run(kernel);
        assert!(output.code != Some(0) && output.stderr().contains("run broker connect"), "{output}");
        assert!(!world.home_file("caught").exists(), "{transport}: what another user left was run as us");
        std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
        let remove =
            node.command(&User::other(), "rm", &["-r", directory.parent().unwrap().to_str().unwrap()]);
        drop(world.run(remove).success());
    }
    let clean = world.broker(&["clean", crate::support::BASTION, "--batch"]);
    drop(world.run(clean).success());
    assert!(!world.home_file(".aws").exists());
    world.assert_clean();
}

impl World {
    /// A second login node, which the laptop knows as [`NODE`].
    pub fn login_node(&self, node: &Node) -> Sshd {
        let environment: Vec<String> =
            self.aws.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let options = SshdOptions::default().on(node).config(format!("SetEnv {}", environment.join(" ")));
        let sshd = Sshd::start(options);
        self.laptop.add_host(&Host {
            alias: NODE.into(),
            port: sshd.port(),
            user: sshd.user().name.clone(),
            known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
            key: sshd.client_key(),
        });
        sshd
    }

    fn start(&self, host: &str, profile: &str) -> Process {
        let arguments =
            ["connect", host, "--batch", "-N", "--print-env", "sh", "-p", profile, "--install-profiles"];
        self.laptop.spawn(self.broker(&arguments))
    }
}

fn wait_until_ready(process: &mut Process) {
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
}

#[test]
fn login_nodes_that_share_a_home_do_not_disturb_each_other() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let mut world = World::fresh_home();
    let config = world.plant(".aws/config", THEIRS, 0o640);
    let node = Node::start(NODE);
    let sshd = world.login_node(&node);
    let python = sdk("python/bin/python");
    let python = python.to_str().unwrap();
    let mut a = world.start(crate::support::BASTION, "dev");
    wait_until_ready(&mut a);
    let mut b = world.start(NODE, "audit");
    wait_until_ready(&mut b);
    // The same port on both, each with what it serves.
    for (process, other) in [(&a, "node"), (&b, "bastion")] {
        let exports = process.text(Stream::Stdout);
        assert!(exports.contains("http://127.0.0.1:4144/"), "{other}: {exports}");
    }
    let said = b.text(Stream::Stderr);
    assert!(said.contains("default"), "what another node's tunnel has is said: {said}");
    let key = |world: &mut World, there: bool, profile: &str| {
        let arguments = ["-c", BOTO3, profile];
        let command = match there {
            true => node.command(world.sshd.user(), python, &arguments),
            false => world.on_host(python, &arguments),
        };
        let output = world.run(command);
        output.stdout().starts_with("ASIA").then_some(()).ok_or(output.stderr())
    };
    assert_eq!(key(&mut world, false, "dev"), Ok(()));
    assert_eq!(key(&mut world, true, "audit"), Ok(()));
    for (there, profile) in [(true, "dev"), (false, "audit")] {
        assert!(key(&mut world, there, profile).is_err(), "{profile} is served on the other node");
    }
    // Cleaning one node leaves the other's block alone.
    let clean = world.broker(&["clean", crate::support::BASTION, "--batch"]);
    drop(world.run(clean).success());
    assert_eq!(key(&mut world, true, "audit"), Ok(()));

    a.signal(nix::sys::signal::Signal::SIGINT);
    let output = a.wait(PATIENCE);
    world.heard("the first tunnel", &output);
    assert_eq!(key(&mut world, true, "audit"), Ok(()));
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(
        text.starts_with(THEIRS) && text.contains("[profile audit]") && !text.contains("[profile dev]"),
        "{text}"
    );
    b.signal(nix::sys::signal::Signal::SIGINT);
    let output = b.wait(PATIENCE);
    world.heard("the second tunnel", &output);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), THEIRS);
    drop(sshd);
    world.assert_clean();
}

struct StopReader<'a>(&'a AtomicBool);

impl Drop for StopReader<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn tunnels_to_two_nodes_that_begin_and_end_at_once_never_tear_the_configuration() {
    if sandbox::isolated!() {
        return;
    }
    let _reachable = program();
    let mut world = World::fresh_home();
    let config = world.plant(".aws/config", THEIRS, 0o640);
    let node = Node::start(NODE);
    let sshd = world.login_node(&node);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A process that reads it all the time sees a whole file each time.
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !stop.load(Ordering::Relaxed) {
                let text = std::fs::read_to_string(&config).unwrap();
                assert!(text.starts_with(THEIRS), "{text}");
                let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
                assert_eq!(count(">>> broker"), count("<<< broker"), "{text}");
                seen += usize::from(count("credential_process") > 0);
            }
            seen
        });
        // A failed assertion ends the reader too.
        let _stop = StopReader(&stop);
        for _ in 0..8 {
            let mut both = [world.start(crate::support::BASTION, "dev"), world.start(NODE, "audit")];
            both.iter_mut().for_each(wait_until_ready);
            let text = std::fs::read_to_string(&config).unwrap();
            assert!(
                text.contains("[profile dev]") && text.contains("[profile audit]"),
                "one was lost: {text}"
            );
            for process in &both {
                process.signal(nix::sys::signal::Signal::SIGINT);
            }
            for mut process in both {
                let output = process.wait(PATIENCE);
                assert!(!output.stderr().contains("still in"), "{output}");
                world.heard("a tunnel", &output);
            }
            assert_eq!(std::fs::read_to_string(&config).unwrap(), THEIRS);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    drop(sshd);
    world.assert_clean();
}
