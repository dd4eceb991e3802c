//! Several hosts in one process: one login, one refresh, and nobody's trouble is another's.

use nix::sys::signal::Signal;
use sandbox::{
    home::{Host, Process, Stream},
    sshd::{Sshd, SshdOptions},
    users::User,
};
use serde_json::Value;

use crate::support::{ENDS, PATIENCE, World, eventually, within};

/// A world with further hosts, which are other accounts and servers on this machine.
struct Fleet {
    world: World,
    _others: Vec<Sshd>,
}

impl Fleet {
    fn new(further: &[(&str, SshdOptions)]) -> Self {
        let world = World::new();
        let mut others = Vec::new();
        for (alias, options) in further {
            let environment: Vec<String> =
                world.aws.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
            let sshd = Sshd::start(options.clone().config(format!("SetEnv {}", environment.join(" "))));
            world.laptop.add_host(&Host {
                alias: (*alias).into(),
                port: sshd.port(),
                user: sshd.user().name.clone(),
                known_hosts_line: sshd.known_hosts_line("127.0.0.1"),
                key: sshd.client_key(),
            });
            others.push(sshd);
        }
        Self { world, _others: others }
    }

    fn connect(&self, arguments: &[&str]) -> std::process::Command {
        self.world.broker(&[&["connect", "--batch", "-p", "dev"], arguments].concat())
    }

    fn fetched(&self) -> usize {
        let calls = self.world.aws.calls();
        calls.iter().filter(|call| call.starts_with("GetRoleCredentials")).count()
    }

    fn status(&mut self) -> Vec<Value> {
        let output = self.world.run(self.world.broker(&["status", "--json"])).success();
        let status: Value = serde_json::from_str(&output.stdout()).unwrap();
        status["tunnels"].as_array().unwrap().clone()
    }

    fn end(&mut self, mut process: Process, code: i32) {
        let output = process.wait(ENDS);
        self.world.heard("broker connect", &output);
        assert_eq!(output.code, Some(code), "{output}");
        self.world.wait_for_clean_host();
        self.world.assert_clean();
    }
}

/// Waits for words, whatever came before and after them.
#[track_caller]
fn says(process: &mut Process, stream: Stream, words: &str) {
    eventually(words, PATIENCE, || match process.text(stream) {
        text if text.contains(words) => Ok(()),
        text => Err(text),
    });
}

fn two() -> Fleet {
    Fleet::new(&[("web", SshdOptions::new(User::other()))])
}

#[test]
fn two_tunnels_of_one_process_are_found_steered_and_stopped_one_by_one() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    let mut process = fleet.world.laptop.spawn(fleet.connect(&["bastion", "web", "-N", "--print-env", "sh"]));
    for host in ["bastion", "web"] {
        says(&mut process, Stream::Stderr, &format!("AWS SDKs on {host} get `dev`"));
        says(&mut process, Stream::Stdout, &format!("# {host}"));
    }
    eventually("both exports are printed", PATIENCE, || {
        let blocks = process.text(Stream::Stdout).matches("export no_proxy").count();
        if blocks == 2 { Ok(()) } else { Err(blocks.to_string()) }
    });
    assert_eq!(fleet.fetched(), 1, "one fetch for both: {:?}", fleet.world.aws.calls());
    let tunnels = fleet.status();
    let hosts: Vec<&str> = tunnels.iter().map(|tunnel| tunnel["host"].as_str().unwrap()).collect();
    assert_eq!(hosts, ["bastion", "web"]);
    assert_eq!(tunnels[0]["pid"], tunnels[1]["pid"]);
    assert!(tunnels.iter().all(|tunnel| tunnel["state"] == "up"), "{tunnels:?}");

    // Each serves the user of its own host, with a token of its own.
    let exports = process.text(Stream::Stdout);
    let mut served = 0;
    for block in exports.split("# ").skip(1) {
        let user = if block.starts_with("web") { User::other() } else { User::host() };
        let value = |name: &str| {
            block.split(&format!("{name}='")).nth(1).unwrap().split('\'').next().unwrap().to_owned()
        };
        let token = std::fs::read_to_string(value("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")).unwrap();
        fleet.world.keep_token(&token);
        let url = value("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        assert_eq!(fleet.world.fetch(&user, &url, Some(&token)).status(), 200, "{block}");
        served += 1;
    }
    assert_eq!(served, 2);

    // A refresh for one host is new credentials for both, with one call.
    let output = fleet.world.run(fleet.world.broker(&["refresh", "web"]));
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(fleet.fetched(), 2);

    let stopped = fleet.world.run(fleet.world.broker(&["stop", "bastion"]));
    assert_eq!(stopped.code, Some(0), "{stopped}");
    let left: Vec<Value> = fleet.status();
    assert_eq!(
        (left.len(), &left[0]["host"], &left[0]["state"]),
        (1, &"web".into(), &"up".into()),
        "{left:?}"
    );
    assert!(!process.has_ended());
    let stopped = fleet.world.run(fleet.world.broker(&["stop", "web"]));
    assert_eq!(stopped.code, Some(0), "{stopped}");
    fleet.end(process, 0);
}

#[test]
fn a_host_that_is_not_reached_at_first_is_tried_again_for_as_long_as_was_said() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = Fleet::new(&[]);
    let (real, key) = (fleet.world.sshd.port(), fleet.world.sshd.client_key());
    // Nobody listens there yet.
    let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = fleet.world.sshd.known_hosts_line("127.0.0.1");
    fleet.world.laptop.add_host(&Host {
        alias: "late".into(),
        port: late.port(),
        user: fleet.world.sshd.user().name.clone(),
        known_hosts_line: line.replace(&real.to_string(), &late.port().to_string()),
        key,
    });
    let arguments = ["bastion", "late", "--print-env", "json", "--log-format", "json"];
    // Without a word about it, and for a command, there is one attempt.
    for more in [&["-N"][..], &["--reconnect-for", "60s", "--", "true"]] {
        let mut process = fleet
            .world
            .laptop
            .spawn(fleet.connect(&[&arguments[..2], &["--log-format", "json"], more].concat()));
        says(&mut process, Stream::Stderr, "\"host\":\"late\",\"kind\":\"unreachable\"");
        assert!(!process.text(Stream::Stderr).contains("retrying"), "{}", process.text(Stream::Stderr));
        process.signal(Signal::SIGTERM);
        fleet.world.heard("broker connect", &process.wait(ENDS));
    }
    fleet.world.wait_for_clean_host();

    // When time is over it has failed, and says as what.
    let output = fleet.world.run(fleet.connect(&[
        "late",
        "late2",
        "-N",
        "--reconnect-for",
        "1s",
        "-o",
        "HostName=127.0.0.1",
        "-P",
        &late.port().to_string(),
    ]));
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("2 of 2 hosts failed: "), "{output}");
    assert!(output.stderr().contains("trying again"), "{output}");

    // The others are there meanwhile, and the background has begun for them.
    let output =
        fleet.world.run(fleet.connect(&[&arguments[..4], &["-f", "--reconnect-for", "5m"]].concat()));
    assert_eq!(output.code, Some(0), "{output}");
    assert!(output.stdout().starts_with("{\"host\":\"bastion\","), "{output}");
    assert!(output.stderr().contains("late: ") && output.stderr().contains("trying again"), "{output}");
    let states = |fleet: &mut Fleet| -> Vec<String> {
        let tunnels = fleet.status();
        tunnels.iter().map(|tunnel| format!("{} {}", tunnel["host"], tunnel["state"])).collect()
    };
    assert_eq!(states(&mut fleet), ["\"bastion\" \"up\"", "\"late\" \"reconnecting\""]);
    let listener = std::net::TcpListener::bind(late).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = std::net::TcpStream::connect(("127.0.0.1", real)).unwrap();
            for (mut from, mut to) in
                [(stream.try_clone().unwrap(), server.try_clone().unwrap()), (server, stream)]
            {
                std::thread::spawn(move || {
                    drop(std::io::copy(&mut from, &mut to));
                    drop(to.shutdown(std::net::Shutdown::Write));
                });
            }
        }
    });
    eventually("it is up as well", PATIENCE, || match states(&mut fleet) {
        states if states.iter().all(|state| state.ends_with("\"up\"")) => Ok(()),
        states => Err(states.join(", ")),
    });
    let stopped = fleet.world.run(fleet.world.broker(&["stop", "--all"]));
    assert_eq!(stopped.code, Some(0), "{stopped}");
    fleet.world.wait_for_clean_host();
    fleet.world.assert_clean();
}

#[test]
fn a_list_of_the_configuration_file_gives_each_host_what_it_says_of_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    let write = |fleet: &Fleet, text: &str| {
        fleet.world.laptop.write(".config/broker/config.toml", text, 0o600);
    };
    write(
        &fleet,
        "[defaults]\nprofile = \"dev\"\nbatch = true\n[lists]\nall = [\"bastion\", \"web\"]\n\
         [hosts.web]\nprofile = \"audit\"\nonly-profiles = [\"audit\"]\nmax-lifetime = \"8h\"\ntransport = \"file\"\n",
    );
    let mut process =
        fleet.world.laptop.spawn(fleet.world.broker(&["connect", "@all", "-N", "--print-env", "json"]));
    says(&mut process, Stream::Stderr, "AWS SDKs on bastion get `dev`");
    says(&mut process, Stream::Stderr, "AWS SDKs on web get `audit`");
    let tunnels = fleet.status();
    let seen: Vec<_> = tunnels
        .iter()
        .map(|tunnel| {
            let profile = tunnel["profiles"][0]["profile"].as_str().unwrap();
            (tunnel["host"].as_str().unwrap(), profile, tunnel["port"].is_null(), tunnel["ends_at"].is_null())
        })
        .collect();
    assert_eq!(seen, [("bastion", "dev", false, true), ("web", "audit", true, false)], "{tunnels:?}");
    process.signal(Signal::SIGTERM);
    let output = process.wait(ENDS);
    fleet.world.heard("broker connect", &output);
    assert_eq!(output.code, Some(130), "{output}");

    let cases: [(&[&str], i32, &str); 4] = [
        (&["@none", "-N"], 2, "has no list of hosts `none`"),
        (&["@all"], 255, "`web` is a second host, and a shell leads to one host"),
        // What one of them may not get, nobody gets.
        (&["@all", "-N", "-p", "dev"], 7, "profile `dev` is not for web"),
        (&["@all", "bastion", "-N", "-p", "audit"], 2, "`bastion` is named twice"),
    ];
    for (arguments, code, words) in cases {
        let output = fleet.world.run(fleet.world.broker(&[&["connect"], arguments].concat()));
        assert_eq!(output.code, Some(code), "{arguments:?} {output}");
        assert!(output.stderr().contains(words), "{arguments:?} {output}");
    }
    write(
        &fleet,
        "[defaults]\nprofile = \"dev\"\n[hosts.web]\nno-shell = true\n[lists]\nall = [\"bastion\", \"web\"]\n",
    );
    let output = fleet.world.run(fleet.connect(&["@all"]));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(
        output.stderr().contains("`no-shell` or `background` holds for bastion and web in different ways"),
        "{output}"
    );
    fleet.world.wait_for_clean_host();
    fleet.world.assert_clean();
}

#[test]
fn one_that_fails_is_named_and_the_others_go_on() {
    if sandbox::isolated!() {
        return;
    }
    let refuses = SshdOptions::new(User::other()).config("AllowTcpForwarding no");
    let mut fleet = Fleet::new(&[("web", refuses)]);
    let config = fleet.world.laptop.read(".ssh/config");
    fleet.world.laptop.write(
        ".ssh/config",
        format!("{config}Host gone\n  HostName 127.0.0.1\n  Port 1\n"),
        0o600,
    );
    for format in ["text", "json"] {
        let arguments = [
            "gone",
            "bastion",
            "web",
            "-N",
            "--transport",
            "tcp",
            "--print-env",
            "json",
            "--log-format",
            format,
        ];
        let mut process = fleet.world.laptop.spawn(fleet.connect(&arguments));
        says(&mut process, Stream::Stdout, "{\"host\":\"bastion\",");
        let said = match format {
            "text" => ["broker: error: gone: ", "broker: error: web: "],
            _ => [
                "\"host\":\"gone\",\"kind\":\"unreachable\"",
                "\"host\":\"web\",\"kind\":\"forward-refused\"",
            ],
        };
        for words in said {
            says(&mut process, Stream::Stderr, words);
        }
        let tunnels = fleet.status();
        assert_eq!((tunnels.len(), &tunnels[0]["host"]), (1, &"bastion".into()), "{tunnels:?}");
        let stopped = fleet.world.run(fleet.world.broker(&["stop", "bastion"]));
        assert_eq!(stopped.code, Some(0), "{stopped}");
        let output = process.wait(ENDS);
        fleet.world.heard("broker connect", &output);
        assert_eq!(output.code, Some(6), "the worst of 5 and 6: {output}");
        assert!(output.stderr().contains("2 of 3 hosts failed: "), "{output}");
    }
    fleet.world.wait_for_clean_host();
    fleet.world.assert_clean();
}

#[test]
fn a_command_runs_on_each_and_its_lines_are_behind_their_hosts() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    let script = "test -r \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\" && echo served; \
                  i=0; while [ $i -lt 500 ]; do echo \"line $i $(id -un) ...........................\"; i=$((i+1)); done; \
                  printf 'no end'; cat; echo problem >&2; [ $(id -un) = broker-host ] || exit 3";
    let output = fleet.world.run(fleet.connect(&["bastion", "web", "-q", "--", script]));
    assert_eq!(output.code, Some(3), "{output}");
    for (host, user) in [("bastion", User::host().name), ("web", User::other().name)] {
        let stdout = output.stdout();
        let lines: Vec<&str> =
            stdout.lines().filter_map(|line| line.strip_prefix(&format!("{host}: "))).collect();
        assert_eq!((lines.len(), lines[0], lines[501]), (502, "served", "no end"), "{stdout}");
        for (number, line) in lines[1..501].iter().enumerate() {
            assert!(line.starts_with(&format!("line {number} {user} ")), "{line}");
        }
        assert!(output.stderr().contains(&format!("{host}: problem\n")), "{output}");
    }
    assert!(output.stderr().contains("web: exit status 3"), "{output}");
    assert_eq!(output.stdout().lines().count(), 1004, "no line is inside another");
    fleet.world.wait_for_clean_host();
    fleet.world.assert_clean();
}

#[test]
fn no_server_meets_more_strangers_at_once_than_it_lets_in() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    // A server that lets everybody wait: what it has accepted has not logged in.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    let names: Vec<String> = (1..=20).map(|number| format!("slow{number}")).collect();
    let mut config = fleet.world.laptop.read(".ssh/config");
    for name in &names {
        config.push_str(&format!("Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User x\n"));
    }
    fleet.world.laptop.write(".ssh/config", config, 0o600);
    let words: Vec<&str> = names.iter().map(String::as_str).chain(["-N"]).collect();
    let mut process = fleet.world.laptop.spawn(fleet.connect(&words));
    let mut came = 0;
    while came < names.len() {
        let (mut waiting, wanted) = (Vec::new(), (names.len() - came).min(8));
        eventually("as many come as may", PATIENCE, || {
            waiting.extend(server.accept());
            if waiting.len() == wanted { Ok(()) } else { Err(format!("{} of {wanted}", waiting.len())) }
        });
        let more = within(std::time::Duration::from_millis(300), || server.accept().is_ok());
        assert!(!more, "one more than {wanted} at once");
        came += waiting.len();
    }
    let output = process.wait(PATIENCE);
    fleet.world.heard("broker connect", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("20 of 20 hosts failed"), "{output}");
    fleet.world.assert_clean();
}

#[test]
fn a_second_word_that_is_no_host_names_the_way_to_run_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    let cases: [(&[&str], &str); 5] = [
        (&["bastion", "ls"], "to run `ls` on bastion, put `--` before it"),
        (&["bastion", "web"], "to run `web` on bastion, put `--` before it; several hosts go with `-N`"),
        (&["bastion", "ls", "-N"], "to run `ls` on bastion, put `--` before it"),
        (&["bastion", "ls", "-f"], "to run `ls` on bastion, put `--` before it"),
        (&["bastion", "web", "bastion", "-N"], "one tunnel serves everything on its host"),
    ];
    for (arguments, hint) in cases {
        let output = fleet.world.run(fleet.connect(arguments));
        let remote = !arguments.iter().any(|word| ["-N", "-f"].contains(word));
        assert_eq!(output.code, Some(if remote { 255 } else { 2 }), "{arguments:?} {output}");
        assert!(output.stderr().contains(hint), "{arguments:?} {output}");
    }
    assert_eq!(fleet.fetched(), 0);
}

#[test]
fn a_signal_ends_all_of_them_and_in_the_background_they_go_on_together() {
    if sandbox::isolated!() {
        return;
    }
    let mut fleet = two();
    let mut process = fleet.world.laptop.spawn(fleet.connect(&["bastion", "web", "-N"]));
    for host in ["bastion", "web"] {
        says(&mut process, Stream::Stderr, &format!("AWS SDKs on {host}"));
    }
    process.signal(Signal::SIGINT);
    fleet.end(process, 130);

    let output = fleet.world.run(fleet.connect(&["bastion", "web", "-f", "--print-env", "json"]));
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(output.stdout().lines().count(), 2, "{output}");
    assert!(output.stderr().contains("the tunnel to bastion-and-1-more goes on"), "{output}");
    let running = fleet.status();
    assert_eq!(running.len(), 2);
    // Without a terminal SIGHUP has all of them connect anew.
    let pid = i32::try_from(running[0]["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    eventually("both are back", PATIENCE, || {
        let log = fleet.world.laptop.read(".local/state/broker/bastion-and-1-more.log");
        let back = ["bastion: back", "web: back"].iter().filter(|words| log.contains(**words)).count();
        if back == 2 { Ok(()) } else { Err(log) }
    });
    let stopped = fleet.world.run(fleet.world.broker(&["stop", "--all"]));
    assert_eq!(stopped.code, Some(0), "{stopped}");
    fleet.world.wait_for_clean_host();
    fleet.world.assert_clean();
}
