//! Ways to a host other than TCP: jump hosts, each with a key and known_hosts of its own, and proxy commands.

use std::{fs, process::Command, time::Duration};

use nix::sys::signal::Signal;
use sandbox::{
    home::{Host, Output, Process, Stream, run_within},
    sshd::{Program, Sshd, SshdOptions},
    users::User,
};

use crate::support::{BASTION, ENDS, PATIENCE, TIDY, World, checkout, eventually, sdk};

/// A ProxyCommand of two processes, of which only the second is what ssh talks to.
const BRIDGE: &str = "bash -c 'exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3'";

/// Three real servers in front of the bastion, and a laptop that knows each by a file and a key of its own.
struct Hops(Vec<Sshd>);

impl Hops {
    /// The chain is in ssh_config: `bastion` through `hop3`, that through `hop2`, and that through `hop1`.
    fn chained(world: &World, second: SshdOptions) -> Self {
        let hops = Self::beside(world, second);
        let chain: String = [(BASTION, "hop3"), ("hop3", "hop2"), ("hop2", "hop1")]
            .map(|(host, through)| format!("Host {host}\n  ProxyJump {through}\n"))
            .concat();
        let config = chain + &world.laptop.read(".ssh/config");
        world.laptop.write(".ssh/config", config, 0o600);
        hops
    }

    /// The servers are known, and nothing goes through them unless it is asked for.
    fn beside(world: &World, second: SshdOptions) -> Self {
        let user = || User::ensure("broker-hop", "/bin/bash");
        let options = [SshdOptions::new(user()), second, SshdOptions::new(user())];
        let hops = Self(options.map(Sshd::start).into());
        for (number, sshd) in (1..).zip(&hops.0) {
            let alias = format!("hop{number}");
            // What comes first in ssh_config wins over what `add_host` says.
            let file =
                world.laptop.write(format!(".ssh/known_{alias}"), sshd.known_hosts_line("127.0.0.1"), 0o600);
            let config = world.laptop.read(".ssh/config");
            let own = format!("Host {alias}\n  UserKnownHostsFile {}\n", file.display());
            world.laptop.write(".ssh/config", config + &own, 0o600);
            world.laptop.add_host(&Host {
                alias,
                port: sshd.port(),
                user: sshd.user().name.clone(),
                known_hosts_line: String::new(),
                key: sshd.client_key(),
            });
        }
        hops
    }

    fn connections(&self) -> Vec<usize> {
        self.0.iter().map(|sshd| sshd.connections().len()).collect()
    }

    #[track_caller]
    fn wait_until_left(&self) {
        eventually("nobody is connected to a hop", TIDY, || match self.connections().as_slice() {
            [0, 0, 0] => Ok(()),
            left => Err(format!("{left:?}")),
        });
    }
}

fn hop() -> SshdOptions {
    SshdOptions::new(User::ensure("broker-hop", "/bin/bash"))
}

fn boto3(world: &mut World, environment: impl IntoIterator<Item = (String, String)>) -> String {
    let script = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    let mut python = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", script]);
    python.envs(environment);
    world.run(python).success().stdout().trim().to_owned()
}

#[track_caller]
fn assert_failed(output: &Output, code: i32, told: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    for words in told {
        assert!(output.stderr().contains(words), "`{words}` is not in {output}");
    }
    assert!(!output.stderr().chars().any(|c| c.is_control() && c != '\n'), "{output}");
    assert_eq!(output.stdout(), "");
}

#[test]
fn an_sdk_gets_credentials_through_three_hops_and_every_hop_is_left() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let hops = Hops::chained(&world, hop());
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(hops.connections(), [1, 1, 1]);
    assert_eq!(world.sshd.connections().len(), 1);
    let environment = tunnel.environment.clone();
    assert_eq!(boto3(&mut world, environment), World::arn("Developer"));
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    hops.wait_until_left();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn the_hops_of_the_command_line_are_taken_in_their_order_and_none_means_none() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let hops = Hops::beside(&world, hop());
    let jump = format!("hop1,broker-hop@hop2:{},ssh://hop3", hops.0[1].port());
    let output = world.run(world.connect(&["-p", "dev", "-J", &jump, "--", "echo", "$SSH_CONNECTION"]));
    assert_eq!(output.code, Some(0), "{output}");
    for (number, sshd) in (1..).zip(&hops.0) {
        assert_eq!(sshd.logins(), 1, "hop{number}: {}", sshd.log());
    }
    let output = world.run(world.connect(&["-p", "dev", "-J", "none", "--", "true"]));
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(hops.0[0].logins(), 1);
    world.assert_clean();
}

#[test]
fn bulk_in_both_directions_at_once_comes_through_the_hops_whole() {
    if sandbox::isolated!() {
        return;
    }
    const SIZE: usize = 24 << 20;
    let mut world = World::new();
    let hops = Hops::chained(&world, hop());
    let data: Vec<u8> = (0..SIZE).map(|i| (i / 7 % 251) as u8).collect();
    let output = run_within(world.connect(&["-p", "dev", "--", "cat"]), &data, PATIENCE * 2);
    assert_eq!(output.code, Some(0), "{}", output.stderr());
    assert!(output.stdout == data, "{} of {SIZE} bytes, or others", output.stdout.len());
    hops.wait_until_left();
    world.heard("broker", &Output { stdout: Vec::new(), ..output });
    world.assert_clean();
}

#[test]
fn a_hop_whose_key_changed_stops_us_there_and_is_named() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let hops = Hops::chained(&world, hop());
    hops.0[1].swap_host_key();
    let output = world.run(world.connect(&["-p", "dev", "-N"]));
    assert_failed(&output, 4, &["the jump host `hop2`", "THE HOST KEY OF hop2 HAS CHANGED", "known_hop2"]);
    assert_eq!(hops.0[2].knocks(), 0, "the next hop was not reached");
    assert_eq!(world.sshd.knocks(), 0);
    // A hop that nobody knows is no better, and a pin is for the target alone.
    let pin = format!("SHA256:{}", "x".repeat(43));
    world.laptop.write(".ssh/known_hop1", "", 0o600);
    let output = world.run(world.connect(&["-p", "dev", "-N", "--host-key", &pin]));
    assert_failed(&output, 4, &["the jump host `hop1`", "the host key of hop1 is not known"]);
    hops.wait_until_left();
    world.assert_clean();
}

#[test]
fn a_hop_that_lets_nobody_in_or_further_is_named() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let hops = Hops::chained(&world, hop().config("AllowTcpForwarding remote"));
    let output = world.run(world.connect(&["-p", "dev", "-N"]));
    let refused = format!("the jump host `hop2` did not connect us to `127.0.0.1:{}`", hops.0[2].port());
    assert_failed(&output, 5, &[&refused, "AllowTcpForwarding"]);

    hops.0[1].configure(&["AllowUsers nobody".to_owned()]);
    let output = world.run(world.connect(&["-p", "dev", "-N"]));
    assert_failed(&output, 5, &["the jump host `hop2`", "could not log in to `hop2` as `broker-hop`"]);

    let output = world.run(world.connect(&["-p", "dev", "-N", "-J", "hop1", "-P", "1"]));
    // Why, in the server's words.
    let why = if Program::asked_for() == Program::Openssh { "Connection refused" } else { "" };
    assert_failed(&output, 5, &["the jump host `hop1` did not connect us to `127.0.0.1:1`", why]);

    let output = world.run(world.connect(&["-p", "dev", "-N", "-J", "hop1,bastion,hop1"]));
    assert_failed(&output, 2, &["in a circle"]);
    hops.wait_until_left();
    world.assert_clean();
}

#[test]
fn row_42_a_hop_that_dies_is_named_and_the_way_is_gone_anew() {
    if sandbox::isolated!() {
        return;
    }
    for dead in [0, 1, 2] {
        let mut world = World::new();
        let hops = Hops::chained(&world, hop());
        let mut tunnel = world.tunnel(&["-p", "dev"]);
        assert_eq!(hops.0[dead].kill_connections(), 1);
        let said = tunnel.process.wait_for_line(Stream::Stderr, "connecting again", PATIENCE);
        let told = format!("the connection to the jump host `hop{}` ended", dead + 1);
        assert!(said.contains(&told), "{said}");
        tunnel.process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
        let user = world.sshd.user().clone();
        assert_eq!(world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status(), 200);
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");
        hops.wait_until_left();
        world.wait_for_clean_host();
        world.assert_clean();
    }
}

/// Has `bastion` reached by this command.
fn through(world: &World, command: &str) {
    let config = format!("Host {BASTION}\n  ProxyCommand {command}\n{}", world.laptop.read(".ssh/config"));
    world.laptop.write(".ssh/config", config, 0o600);
}

#[test]
fn a_hub_that_serves_ssh_over_a_websocket_is_a_host_as_any_other() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let script = world.laptop.write("websocket.py", include_str!("servers/websocket.py"), 0o644);
    let python = sdk("python/bin/python").display().to_string();
    let mut hub = Command::new(&python);
    hub.arg(checkout("tests/e2e/servers/websocket.py")).arg("serve").arg(world.sshd.port().to_string());
    let mut hub = world.laptop.spawn(hub);
    let port = hub.wait_for_line(Stream::Stdout, "port ", PATIENCE).split_off("port ".len());
    let url = format!("ws://127.0.0.1:{port}/user/ada/sshd/");
    through(&world, &format!("{python} {} connect {url}", script.display()));

    let mut connect = world.connect(&["-p", "dev", "-N", "--print-env", "sh"]);
    connect.env("HUB_TOKEN", "hub-token");
    let mut process = world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let tunnel = world.attach(process);
    let environment = tunnel.environment.clone();
    assert_eq!(boto3(&mut world, environment), World::arn("Developer"));
    assert_eq!(tunnel.stop(&mut world).code, Some(130));

    let mut connect = world.connect(&["-p", "dev", "-N"]);
    connect.env("HUB_TOKEN", "another");
    let output = world.run(connect);
    assert_failed(&output, 5, &["log in to the hub first", "the ProxyCommand", "ended with exit status 1"]);
    hub.signal(Signal::SIGKILL);
    let said = hub.wait(ENDS);
    world.heard("hub", &said);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_proxy_command_that_fails_or_hangs_is_told_from_the_host() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for (command, told) in [
        ("printf '\\033[2Jno \\007route to %h\\n' >&2; exit 3", "route to 127.0.0.1"),
        ("not-there-at-all %h", "`not-there-at-all`) was not found"),
        ("printf 'HTTP/1.1 403 Forbidden\\r\\n\\r\\n'", "bastion"),
        ("true", "ended with exit status 0"),
    ] {
        let option = format!("ProxyCommand=sh -c \"{command}\"");
        let option = if command.starts_with("not") { format!("ProxyCommand={command}") } else { option };
        let output = world.run(world.connect(&["-p", "dev", "-N", "-o", &option]));
        assert_failed(&output, 5, &[told]);
    }
    let since = std::time::Instant::now();
    let hanging = ["-p", "dev", "-N", "-o", "ConnectTimeout=2", "-o", "ProxyCommand=sleep 4711"];
    let output = world.run(world.connect(&hanging));
    assert_failed(&output, 5, &["did not answer within 2 s", "ProxyCommand"]);
    assert!(since.elapsed() < Duration::from_secs(10));
    eventually("it was ended", TIDY, || match running("sleep 4711") {
        0 => Ok(()),
        n => Err(format!("{n} of it run")),
    });
    assert_eq!(world.sshd.knocks(), 0, "nobody was connected");
    world.assert_clean();
}

/// How many processes run in this test's network whose command line is this.
fn running(line: &str) -> usize {
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let same = processes.filter(|path| fs::read_link(path.join("ns/net")).is_ok_and(|net| net == here));
    same.filter(|path| {
        let words = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        words.replace('\0', " ").trim() == line
    })
    .count()
}

/// The process group of the proxy command that this `broker` runs: the group of its children that is not its own.
fn proxy_group(broker: &Process) -> i32 {
    let pid = broker.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let own = group_of(&pid.to_string()).unwrap();
    let groups: Vec<_> =
        children.split_whitespace().filter_map(group_of).filter(|group| *group != own).collect();
    assert!(!groups.is_empty() && groups.iter().all(|group| *group == groups[0]), "{children}: {groups:?}");
    groups[0]
}

fn group_of(pid: &str) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(2)?.parse().ok()
}

fn members(group: i32) -> usize {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    // One that has ended and was not waited for has no command line.
    let alive = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty());
    pids.filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| group_of(pid) == Some(group) && alive(pid))
        .count()
}

#[test]
fn however_we_end_the_process_group_of_the_proxy_command_ends_too() {
    if sandbox::isolated!() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut world = World::new();
        through(&world, BRIDGE);
        let mut tunnel = world.tunnel(&["-p", "dev"]);
        let group = proxy_group(&tunnel.process);
        assert!(members(group) >= 3, "the guard and two processes");
        let token = fs::read_to_string(tunnel.token_file()).unwrap();
        world.keep_token(&token);
        tunnel.process.signal(signal);
        let output = tunnel.process.wait(ENDS);
        world.heard("broker", &output);
        if signal != Signal::SIGKILL {
            // The way was still there when the host was cleaned.
            assert!(output.stderr().contains("no credentials were left there"), "{output}");
        }
        eventually("the process group is gone", TIDY, || match members(group) {
            0 => Ok(()),
            n => Err(format!("{n} of it run")),
        });
        world.wait_for_clean_host();
        world.assert_clean();
    }
}

#[test]
fn row_42_a_proxy_command_that_dies_is_named_and_started_anew() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    through(&world, BRIDGE);
    let mut tunnel = world.tunnel(&["-p", "dev"]);
    let group = proxy_group(&tunnel.process);
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL).unwrap();
    let said = tunnel.process.wait_for_line(Stream::Stderr, "connecting again", PATIENCE);
    assert!(said.contains("the ProxyCommand (`bash`) was ended by signal 9"), "{said}");
    tunnel.process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
    let user = world.sshd.user().clone();
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status(), 200);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}
