//! What the file and the command line are together.

use std::path::Path;

use super::*;

/// What an option may be, as it is typed; those without a line take `true`.
const SAMPLES: &[(&str, &str)] = &[
    ("profile", "dev"),
    ("account", "123456789012"),
    ("role", "Auditor"),
    ("sso-session", "corp"),
    ("start-url", "https://corp.awsapps.com/start"),
    ("sso-region", "eu-west-1"),
    ("role-arn", "arn:aws:iam::123456789012:role/less"),
    ("duration", "15m"),
    ("session-policy", "/etc/policy.json"),
    ("source-ip", "192.0.2.1"),
    ("remote-port", "5000"),
    ("transport", "unix"),
    ("print-env", "fish"),
    ("port", "2222"),
    ("login-name", "ada"),
    ("identity", "/keys/one"),
    ("ssh-config", "none"),
    ("ssh-option", "Compression=no"),
    ("jump", "bastion"),
    ("host-key", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ("identity-env", "KEY"),
    ("dangerous-legacy-algorithms", "old"),
    ("token", "env"),
    ("tls", "auto"),
    ("allow-uid", "0"),
    ("remote-config", "keep"),
    ("reconnect-for", "90s"),
    ("linger", "30m"),
    ("allow", "team-*"),
    ("max-lifetime", "8h"),
    ("idle-timeout", "2h"),
    ("log-format", "json"),
    ("color", "never"),
    ("verbose", "2"),
];

/// What cannot stand in the file, and why.
const NOT_THERE: &[(&str, &str)] =
    &[("no-defaults", "it would take itself away"), ("help", "it is asked"), ("version", "it is asked")];

fn environment(text: &str) -> Environment {
    let mut environment = Environment::capture().unwrap();
    let file = File::parse(Path::new("/c.toml"), text.as_bytes(), Path::new("/home/ada")).unwrap();
    check(&file).unwrap();
    environment.take_file(Ok(file));
    environment
}

fn merged(text: &str, line: &str) -> Merged {
    let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    let typed = Typed::read(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
    match typed.merge(&environment(text)) {
        Ok(merged) => merged,
        Err(NotMerged::Words(error)) => panic!("{line}: {error}"),
        Err(NotMerged::Other(failure)) => panic!("{line}: {failure}"),
    }
}

/// Everything that was understood of a line, but for the hosts.
fn seen(text: &str, line: &str) -> String {
    let merged = merged(text, line);
    format!("{:?} {:?}", merged.cli.output, merged.cli.command)
}

fn mistake(text: &str) -> String {
    let file = File::parse(Path::new("/c.toml"), text.as_bytes(), Path::new("/home/ada"));
    let error = file.and_then(|file| check(&file)).expect_err(text);
    format!("{error} ({})", error.hint().unwrap())
}

fn options() -> Vec<(String, Arg)> {
    let mut whole = Cli::command();
    whole.build();
    let connect = whole.find_subcommand("connect").unwrap();
    let named = |arg: &Arg| Some((arg.get_long()?.to_owned(), arg.clone()));
    let options: Vec<_> = connect.get_arguments().filter(|arg| !arg.is_positional()).collect();
    assert!(options.iter().all(|arg| arg.get_long().is_some()), "an option without a long name has no key");
    let known = |name: &str| NOT_THERE.iter().any(|(not, _)| *not == name);
    options.into_iter().filter_map(named).filter(|(name, _)| !known(name)).collect()
}

/// Returns an option as it is in the file and as it is typed.
fn both(name: &str, arg: &Arg) -> (String, String) {
    let sample = SAMPLES.iter().find(|(known, _)| *known == name).map(|(_, sample)| *sample);
    match (arg.get_action(), sample) {
        (ArgAction::SetTrue, None) => (format!("{name} = true"), format!("--{name}")),
        (ArgAction::Count, Some(n)) => {
            (format!("{name} = {n}"), vec![format!("--{name}"); n.parse().unwrap()].join(" "))
        }
        (ArgAction::Append, Some(sample)) => (format!("{name} = [{sample:?}]"), format!("--{name}={sample}")),
        (_, Some(sample)) => (format!("{name} = {sample:?}"), format!("--{name}={sample}")),
        (_, None) => panic!("`--{name}` is new: say in SAMPLES what it may be"),
    }
}

#[test]
fn the_example_of_the_documentation_is_what_it_says() {
    let text = include_str!("../../../docs/config.md");
    let example = text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let expect = |line: &str, same: &str| assert_eq!(seen(example, line), seen("", same), "{line}");
    let defaults = "--idle-timeout 2h --install-profiles -o ServerAliveInterval=10 --color never";
    // Its `~/` is the home of `environment`.
    let defaults = format!("{defaults} -i /home/ada/.ssh/work");
    expect("broker connect x -p y", &format!("broker connect x -p y --max-lifetime 10h {defaults}"));
    expect(
        "broker connect bastion.example",
        &format!(
            "broker connect bastion.example -p deploy -p audit -l ada --transport unix --max-lifetime 10h {defaults}"
        ),
    );
    expect(
        "broker connect a.prod.example -p y",
        &format!("broker connect a.prod.example -p y --confirm --max-lifetime 1h {defaults}"),
    );
    let hosts = merged(example, "broker connect @web -N").hosts;
    let hosts: Vec<&str> = hosts.iter().map(|one| one.host.as_str()).collect();
    assert_eq!(hosts, ["web1", "web2", "ada@web3:2222"]);
    let file = environment(example);
    let permits = |host: &str, profile: &str| {
        file.file().pin(host, host).permits(&profile.parse().unwrap(), host).is_ok()
    };
    assert!(permits("a.prod.example", "prod-readonly") && !permits("a.prod.example", "deploy"));
    assert!(permits("build.prod.example", "dev-1") && !permits("build.prod.example", "prod-readonly"));
}

#[test]
fn every_option_of_connect_can_be_set_in_the_file() {
    let options = options();
    assert!(options.len() > 40, "{}", options.len());
    for (name, arg) in &options {
        // What it needs beside it, so that it counts.
        let mut beside = Vec::new();
        let mut wanted = vec![name.as_str()];
        while let Some(wants) = wanted.pop() {
            for (_, others) in BESIDE.iter().filter(|(key, _)| *key == wants) {
                if !others.iter().any(|other| beside.contains(other) || other == name) {
                    beside.push(others[0]);
                    wanted.push(others[0]);
                }
            }
        }
        let find = |key: &&str| options.iter().find(|(name, _)| name == key).unwrap();
        let (file, typed): (Vec<_>, Vec<_>) =
            beside.iter().map(find).chain([&(name.clone(), arg.clone())]).map(|(n, a)| both(n, a)).unzip();
        let line = format!("broker connect h {}", typed.join(" "));
        let expected = seen("", &line);
        assert_ne!(expected, seen("", "broker connect h"), "{line} says nothing");
        assert_eq!(
            seen(&format!("[defaults]\n{}\n", file.join("\n")), "broker connect h"),
            expected,
            "{name}"
        );
        let section = format!("[hosts.h]\n{}\n", file.join("\n"));
        if arg.is_global_set() || WHOLE_PROCESS.iter().any(|(whole, _)| whole == name) {
            assert!(mistake(&section).contains("cannot differ between hosts"), "{name}");
        } else {
            assert_eq!(seen(&section, "broker connect h"), expected, "{name}");
            assert_eq!(seen(&section, "broker connect other"), seen("", "broker connect other"), "{name}");
        }
        // What was typed is what counts, whatever the file says.
        let other = format!("{line} --no-defaults");
        let without = expected.replace("no_defaults: false", "no_defaults: true");
        assert_eq!(seen(&format!("[defaults]\n{}\n", file.join("\n")), &other), without, "{name}");
    }
}

#[test]
fn what_the_parser_requires_beside_an_option_is_known_here() {
    for (name, arg) in options() {
        let (_, typed) = both(&name, &arg);
        let words: Vec<_> = format!("broker connect h {typed}").split(' ').map(OsString::from).collect();
        let alone = Cli::try_parse_from(&words).map_err(|error| error.kind());
        let waits = BESIDE.iter().any(|(key, _)| *key == name);
        let expected = if waits { Err(ErrorKind::MissingRequiredArgument) } else { Ok(()) };
        assert_eq!(alone.map(|_| ()), expected, "--{name}");
        if waits {
            // Alone in the file, it waits for its occasion.
            let (file, _) = both(&name, &arg);
            let text = format!("[defaults]\n{file}\n");
            assert_eq!(seen(&text, "broker connect h"), seen("", "broker connect h"), "{name}");
        }
    }
}

#[test]
fn what_is_typed_wins_over_the_host_and_the_host_over_the_defaults() {
    let text = "[defaults]\nprofile = [\"a\", \"b\"]\nmax-lifetime = \"1h\"\nconfirm = true\n\
                [hosts.\"web* !web9\"]\nprofile = \"c\"\nconfirm = false\n[hosts.web1]\nprofile = \"d\"\nport = 2222\n";
    let expect = |line: &str, same: &str| assert_eq!(seen(text, line), seen("", same), "{line}");
    expect("broker connect x", "broker connect x -p a -p b --max-lifetime 1h --confirm");
    expect("broker connect web1", "broker connect web1 -p c --max-lifetime 1h --port 2222");
    expect("broker connect ada@WEB1:22", "broker connect ada@WEB1:22 -p c --max-lifetime 1h --port 2222");
    expect("broker connect web9", "broker connect web9 -p a -p b --max-lifetime 1h --confirm");
    expect("broker connect web1 -p z -P 22", "broker connect web1 -p z -P 22 --max-lifetime 1h");
    expect("broker connect x --max-lifetime=2h", "broker connect x --max-lifetime=2h -p a -p b --confirm");
}

#[test]
fn what_cannot_go_with_what_was_typed_gives_way() {
    let text =
        "[defaults]\nno-shell = true\nprint-env = \"fish\"\ntty = true\nprofile = \"dev\"\ninet6 = true\n";
    let expect = |line: &str, same: &str| assert_eq!(seen(text, line), seen("", same), "{line}");
    expect("broker connect h -- ls", "broker connect h -t -p dev -6 -- ls");
    expect("broker connect h -T", "broker connect h -T -N --print-env fish -p dev -6");
    expect("broker connect h -4", "broker connect h -4 -N --print-env fish -t -p dev");
    expect("broker connect h --print-env=sh", "broker connect h --print-env=sh -N -t -p dev -6");
    expect(
        "broker connect h --account 123456789012 --role R",
        "broker connect h --account 123456789012 --role R -N --print-env fish -t -6",
    );
    let tmux = "[defaults]\ntmux = true\n";
    assert_eq!(seen(tmux, "broker connect h -N"), seen("", "broker connect h -N"));
    let host = "[defaults]\ntty = true\n[hosts.h]\nno-tty = true\n";
    assert_eq!(seen(host, "broker connect h"), seen("", "broker connect h -T"));
}

#[test]
fn other_commands_take_what_is_theirs() {
    let text = "[defaults]\nprofile = \"dev\"\nport = 2222\nquiet = true\ndevice-code = true\nprint-env = \"fish\"\n\
                [hosts.h]\nlogin-name = \"ada\"\nmax-lifetime = \"1h\"\n";
    for (line, same) in [
        ("broker doctor h", "broker doctor h -q -P 2222 -l ada"),
        ("broker doctor", "broker doctor -q -P 2222"),
        ("broker clean h", "broker clean h -q -P 2222 -l ada"),
        ("broker ssh-config x", "broker ssh-config x -q -P 2222"),
        ("broker login", "broker login -q --device-code"),
        ("broker credentials", "broker credentials -q --device-code"),
        ("broker status", "broker status -q"),
        ("broker revoke h", "broker revoke h -q"),
        ("broker --color never env h", "broker --color never env h -q"),
    ] {
        assert_eq!(seen(text, line), seen("", same), "{line}");
    }
}

#[test]
fn a_list_is_its_hosts_each_with_its_section() {
    let text =
        "[lists]\nweb = [\"web1\", \"ada@web2:2222\"]\nall = [\"web1\", \"db\"]\n[hosts.db]\nport = 5\n";
    let hosts = |line: &str| -> Vec<(String, bool, bool)> {
        let hosts = merged(text, line).hosts;
        let with_port = |one: &ForHost| format!("{:?}", one.arguments.reach).contains("port: Some(5)");
        hosts.iter().map(|one| (one.host.clone(), one.listed, with_port(one))).collect()
    };
    let list = |name: &str, port| (name.to_owned(), true, port);
    assert_eq!(hosts("broker connect @web -N"), [list("web1", false), list("ada@web2:2222", false)]);
    assert_eq!(
        hosts("broker connect db @web @all -N"),
        [("db".to_owned(), false, true), list("web1", false), list("ada@web2:2222", false)]
    );
    let words = ["broker", "connect", "@x"].map(OsString::from);
    let Err(NotMerged::Other(failure)) = Typed::read(&words).unwrap().merge(&environment(text)) else {
        panic!("there is no such list")
    };
    assert_eq!(failure.to_string(), "`/c.toml` has no list of hosts `x`");
    assert_eq!(failure.hint.as_deref(), Some("it has @all, @web"));
}

#[test]
fn a_mistake_is_told_with_its_line_and_the_way_out() {
    for (text, expected) in [
        (
            "[defaults]\n\nprofil = 'x'\n",
            "`/c.toml` line 3: `profil` in [defaults] is no option of `broker connect` that can be set here (did you mean `profile`?)",
        ),
        ("[defaults]\nno-defaults = true\n", "line 2: `no-defaults` in [defaults] is no option"),
        ("[defaults]\ncommand = 'ls'\n", "line 2: `command` in [defaults] is no option"),
        ("[defaults]\ndetach-when-ready = true\n", "line 2: `detach-when-ready` in [defaults] is no option"),
        ("[defaults]\nconfirm = 'yes'\n", "line 2: `confirm` is true or false"),
        ("[defaults]\nport = true\n", "line 2: `port` takes a value, not true or false"),
        ("[defaults]\nport = [1]\n", "line 2: `port` takes one value"),
        ("[defaults]\nverbose = 10\n", "line 2: `verbose` is a number from 0 to 9"),
        (
            "[defaults]\nport = 22\n\nmax-lifetime = '8'\n",
            "line 4: `max-lifetime` in [defaults]: invalid value '8' for '--max-lifetime <D>': not a time such as",
        ),
        (
            "[hosts.a]\nport = 22\n[hosts.b]\ntransport = 'udp'\n",
            "line 4: `transport` in [hosts.\"b\"]: invalid value 'udp'",
        ),
        (
            "[defaults]\ntty = true\nport = 1\nno-tty = true\n",
            "line 4: `no-tty` in [defaults]: the argument '--tty' cannot be used with '--no-tty'",
        ),
        ("[hosts.a]\ncolor = 'never'\n", "line 2: `color` cannot differ between hosts"),
        ("[hosts.a]\nidentity-env = 'KEY'\n", "line 2: `identity-env` cannot differ between hosts"),
        ("[defaults]\n\"a\\u001b[2J\" = 1\n", "line 2: `a\u{fffd}[2J` in [defaults] is no option"),
    ] {
        let said = mistake(text);
        assert!(said.contains(expected), "{text}\n{said}");
    }
}
