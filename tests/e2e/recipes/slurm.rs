//! Slurm as Debian has it: a controller on the login node, and a compute node with its own network, name and memory, the
//! same users and the same home. Jobs take the environment of the login node along, or are where the tunnel ends.

use std::{path::Path, process::Command, time::Instant};

use sandbox::{
    home::{Output, Process, Stream},
    node::Node,
    secrets::{Place, assert_no_secret},
    users::User,
};
use tempfile::TempDir;

use crate::{
    nodes::{BOTO3, NODE, trap_on, with_runtime_directory},
    support::{BASTION, PATIENCE, Tunnel, World, eventually, program, sdk},
    users::{assert_nobody_came, squat_with},
};

const CONFIG: &str = "
ClusterName=cluster
SlurmctldHost=LOGIN(10.144.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
KillWait=2
StateSaveLocation=DIRECTORY/state
SlurmdSpoolDir=DIRECTORY/spool
SlurmctldPidFile=DIRECTORY/slurmctld.pid
SlurmdPidFile=DIRECTORY/slurmd.pid
NodeName=node-b NodeAddr=10.144.0.2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
";

/// Shows Slurm's programs and its configuration to this test alone, at the places where they are installed.
const INSTALL: &str = r#"
chmod 755 "$2"
mkdir -m 700 "$2/state" "$2/secrets"
mkdir -m 755 "$2/spool" "$2/etc" "$2/etc/slurm"
echo "$3" > "$2/etc/slurm/slurm.conf"
head -c 128 /dev/urandom > "$2/secrets/munge.key"
chmod 600 "$2/secrets/munge.key"
mount -t overlay -o "lowerdir=$1/usr:/usr" slurm /usr
mount -t overlay -o "lowerdir=$2/etc:/etc" slurm /etc
"#;

const WIRE: &str = r#"
ip link add cluster type veth peer name cluster netns "$1"
ip addr add 10.144.0.1/24 dev cluster
ip link set cluster up
nsenter --target "$1" --net -- ip addr add 10.144.0.2/24 dev cluster
nsenter --target "$1" --net -- ip link set cluster up
"#;

/// The cluster while it lives.
struct Cluster {
    node: Node,
    /// The name of the node that users log in to.
    login: String,
    /// What Slurm's daemons keep.
    directory: TempDir,
    daemons: Vec<Process>,
}

fn as_root(script: &str, arguments: &[&str]) {
    let status = Command::new("sh").args(["-ec", script, "sh"]).args(arguments).status().unwrap();
    assert!(status.success(), "{script}");
}

impl Cluster {
    fn start() -> Self {
        // What the tests share is made, and visible, before other things cover it.
        let _reachable = program();
        let users = [User::host(), User::other(), User::laptop()];
        let directory = tempfile::Builder::new().prefix("slurm-").tempdir().unwrap();
        let place = directory.path().to_str().unwrap();
        let login = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let config = CONFIG.replace("LOGIN", login.split('.').next().unwrap()).replace("DIRECTORY", place);
        as_root(INSTALL, &[sdk("slurm").to_str().unwrap(), place, &config]);
        assert!(users.iter().all(|user| User::find(&user.name).is_some()));

        let node = Node::start(NODE);
        let pid = node.pid().to_string();
        as_root(WIRE, &[&pid]);
        let there = ["nsenter", "--target", &pid, "--net", "--mount", "--uts", "--"];
        let mut daemons = Vec::new();
        for (prefix, address) in [(&there[..], "10.144.0.2"), (&[], "10.144.0.1")] {
            let enter = if prefix.is_empty() { &["env"][..] } else { prefix };
            let start = |line: &str| {
                let mut command = Command::new(enter[0]);
                command.args(&enter[1..]).args(["sh", "-c", line]);
                Process::spawn(command)
            };
            daemons.push(start(&format!(
                "mkdir -m 755 /run/munge && exec munged --foreground --force --origin={address} \
                 --key-file={place}/secrets/munge.key --seed-file={place}/secrets/seed-{address}"
            )));
            daemons.push(start(if prefix.is_empty() {
                "until munge -n >/dev/null 2>&1; do sleep 0.1; done; exec slurmctld -D"
            } else {
                "until munge -n >/dev/null 2>&1; do sleep 0.1; done; exec slurmd -D"
            }));
        }
        let cluster = Self { node, login, directory, daemons };
        eventually("the node is ready for jobs", PATIENCE, || {
            let output = Command::new("sinfo").args(["-h", "-o", "%T"]).output().unwrap();
            let states = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if states == "idle" { Ok(()) } else { Err(format!("{states}, {}", cluster.logs())) }
        });
        cluster
    }

    fn logs(&self) -> String {
        self.daemons
            .iter()
            .map(|daemon| daemon.text(Stream::Stdout) + &daemon.text(Stream::Stderr))
            .collect::<Vec<_>>()
            .join("\n--\n")
    }

    /// No secret is in what the scheduler writes down of jobs and their environment.
    fn assert_told_no_secret(&self, world: &World, tokens: &[String]) {
        let mut secrets = world.aws.secrets();
        secrets.extend(tokens.iter().map(|token| token.trim_start_matches("Bearer ").to_owned()));
        assert_no_secret(&secrets, &[Place::below(self.directory.path())]);
    }
}

/// Keeps what its arguments say and how they end, for who cannot wait as `srun` does.
const JOB: &str = r#"#!/bin/sh
"$@" > job.out 2> job.err
echo $? > job.part
mv job.part job.status
"#;

/// How a user runs a program on the compute node.
const SBATCH: &str = r#"
rm -f job.status
sbatch --quiet --output /dev/null $OPTIONS job.sh "$@" || exit
until [ -e job.status ]; do sleep 0.1; done
cat job.out
cat job.err >&2
exit $(cat job.status)
"#;
const SRUN: &str = r#"exec srun --quiet $OPTIONS "$@""#;

/// Runs a program on the compute node by one of these ways, from a shell of the login node that knows `tunnel`.
fn job(world: &mut World, tunnel: Option<&Tunnel>, way: &str, options: &str, line: &[&str]) -> Output {
    world.plant("job.sh", JOB, 0o755);
    let mut command = world.on_host("sh", &["-c", way, "sh"]);
    command.args(line).envs(tunnel.iter().flat_map(|tunnel| &tunnel.environment)).env("OPTIONS", options);
    world.run(command)
}

#[test]
fn a_job_of_slurm_finds_no_credentials_at_once_and_asks_nobody() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let cluster = Cluster::start();
    let user = User::host();
    let python = sdk("python/bin/python");
    let (boto3, dev) =
        ([python.to_str().unwrap(), "-c", BOTO3], [python.to_str().unwrap(), "-c", BOTO3, "dev"]);
    // Debian's is too old for token files, and would ask our port without one.
    let sts =
        world.aws.environment().into_iter().find(|(name, _)| *name == "AWS_ENDPOINT_URL_STS").unwrap().1;
    let aws = ["aws", "sts", "get-caller-identity", "--endpoint-url", &sts];
    for (runtime, transport) in
        [(false, "auto"), (false, "tcp"), (true, "auto"), (true, "tcp"), (true, "unix"), (true, "file")]
    {
        if runtime && !Path::new(&format!("/run/user/{}", user.uid)).exists() {
            with_runtime_directory(&user);
        }
        let node = &cluster.node;
        let neighbour =
            squat_with(&world, |line| node.command(&User::other(), line[0], &line[1..]), "127.0.0.1", 4144);
        let tunnel = world.tunnel(&["-p", "dev", "--transport", transport]);
        let usual = format!("/dev/shm/broker-{}/4144", user.uid);
        assert_eq!(trap_on(Some(node), &world, Path::new(&usual)), "set");
        for (way, line) in [(SBATCH, &boto3[..]), (SRUN, &boto3), (SRUN, &dev), (SRUN, &aws)] {
            let name = format!("{transport}, runtime directory: {runtime}, {way} {line:?}");
            let started = Instant::now();
            let output = job(&mut world, Some(&tunnel), way, "", line);
            assert!(started.elapsed() < PATIENCE, "{name}: {:?}, {output}", started.elapsed());
            assert!(output.code != Some(0) && output.stdout.is_empty(), "{name}: {output}");
            // Our sentence where our directory is seen; where it is not, what each SDK says who finds nothing.
            let said = output.stderr();
            let clear = match runtime {
                false => said.contains(&format!("the tunnel ends on {}", cluster.login)),
                true => said.contains("Unable to locate credentials") || said.contains("profile (dev)"),
            };
            assert!(clear, "{name}: {output}");
            // Here the same works at the same time.
            let mut here = world.on_host(line[0], &line[1..]);
            here.envs(&tunnel.environment);
            drop(world.run(here).success());
        }
        assert_nobody_came(&neighbour);
        assert!(!world.home_file("caught").exists(), "what another user left was run as us");
        let tokens = tunnel.tokens();
        tunnel.stop(&mut world);
        cluster.assert_told_no_secret(&world, &tokens);
        world.assert_clean();
    }
}

#[test]
fn a_tunnel_to_the_node_of_an_allocation_serves_its_jobs() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let cluster = Cluster::start();
    let sshd = world.login_node(&cluster.node);
    let python = sdk("python/bin/python");
    let python = python.to_str().unwrap();
    let allocate = world.on_host("salloc", &["--quiet", "--no-shell"]);
    drop(world.run(allocate).success());
    let squeue = world.on_host("squeue", &["--noheader", "--format", "%i %N %T"]);
    let output = world.run(squeue).success();
    let (id, place) =
        output.stdout().trim().split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(place, format!("{NODE} RUNNING"));
    let within = format!("--jobid={id} --overlap");

    // Steps of the job, from a shell of ours on its node.
    let step = format!("srun --quiet {within} {python} who.py dev");
    world.plant("who.py", BOTO3, 0o644);
    let arguments = ["connect", NODE, "--batch", "-J", BASTION, "-p", "dev", "--install-profiles"];
    let connect = |world: &World, more: &[&str]| world.broker(&[&arguments, more].concat());
    let output = world.laptop.run(connect(&world, &["--", &step]));
    world.heard("a step", &output);
    assert!(output.code == Some(0) && output.stdout().starts_with("ASIA"), "{output}");

    // And those that know nothing of us but the profile, started on the login node.
    let mut tunnel = world.laptop.spawn(connect(&world, &["-N"]));
    tunnel.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let line = [python, "-c", BOTO3, "dev"];
    let step = job(&mut world, None, SRUN, &format!("{within} --export=ALL,AWS_PROFILE=dev"), &line[..3]);
    assert!(step.code == Some(0) && step.stdout().starts_with("ASIA"), "{step}");
    drop(world.run(world.on_host("scancel", &[&id])).success());
    let batch = job(&mut world, None, SBATCH, "--export=NONE", &line);
    assert!(batch.code == Some(0) && batch.stdout().starts_with("ASIA"), "{batch}");
    let here = world.on_host(line[0], &line[1..]);
    let output = world.run(here);
    let sentence = format!("the tunnel ends on {NODE}, and this is another machine");
    assert!(output.code != Some(0) && output.stderr().contains(&sentence), "{output}");
    tunnel.signal(nix::sys::signal::Signal::SIGINT);
    let output = tunnel.wait(PATIENCE);
    world.heard("a tunnel", &output);
    assert_eq!(output.code, Some(130), "{output}");
    let output = job(&mut world, None, SRUN, "", &line);
    assert!(output.code != Some(0) && output.stderr().contains("profile (dev)"), "{output}");
    drop(sshd);
    cluster.assert_told_no_secret(&world, &[]);
    world.assert_clean();
}
