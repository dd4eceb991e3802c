//! What we offer to a server, as those see it who know the attacks: `ssh-audit` in the place of the server.

use std::collections::BTreeMap;

use sandbox::{
    home::{Host, Stream},
    sshd::SshdOptions,
};
use serde_json::Value;

use crate::support::{BASTION, PATIENCE, World, sdk};

/// What `ssh-audit` says of `broker` with these arguments: kind → algorithm, its failures and its warnings.
fn audit(world: &mut World, arguments: &[&str]) -> BTreeMap<String, Vec<(String, Vec<String>)>> {
    let python = sdk("python/bin/python");
    let port = 2222;
    let arguments_of_audit =
        ["-u", "-m", "ssh_audit.ssh_audit", "--client-audit", "--json", "--timeout", "25", "--port", "2222"];
    let mut audit = world.laptop.spawn(world.on_host(python.to_str().unwrap(), &arguments_of_audit));
    world.laptop.add_host(&Host {
        alias: "audit".to_owned(),
        port,
        user: "nobody".to_owned(),
        known_hosts_line: String::new(),
        key: world.sshd.client_key(),
    });
    let listening = format!(":{port:04X} ");
    crate::support::eventually("ssh-audit listens", PATIENCE, || {
        let sockets = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap());
        let listens = |line: &str| line.contains(&listening) && line.contains(" 0A ");
        if sockets.iter().any(|text| text.lines().any(listens)) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let connect = world.broker(&[&["connect", "audit", "--batch", "-p", "dev", "-N"], arguments].concat());
    let output = world.run(connect);
    assert_ne!(output.code, Some(0), "{output}");
    let said = audit.wait(PATIENCE);
    assert!(said.stderr().is_empty(), "{said}");
    let json: Value =
        serde_json::from_str(&audit.text(Stream::Stdout)).unwrap_or_else(|e| panic!("{e}: {said}"));
    let mut found = BTreeMap::new();
    for kind in ["kex", "key", "enc", "mac"] {
        let algorithms = json[kind].as_array().unwrap().iter().map(|algorithm| {
            let notes = algorithm["notes"]["fail"].as_array().cloned().unwrap_or_default();
            let notes = notes.iter().map(|note| note.as_str().unwrap().to_owned()).collect();
            (algorithm["algorithm"].as_str().unwrap().to_owned(), notes)
        });
        found.insert(kind.to_owned(), algorithms.collect());
    }
    found
}

#[test]
fn an_auditor_finds_nothing_broken_but_nists_curves_which_come_last() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let found = audit(&mut world, &[]);
    for (kind, algorithms) in &found {
        println!("{kind}: {algorithms:?}");
        assert!(algorithms.len() > 3, "{kind}: {algorithms:?}");
        let nist = |name: &str| name.contains("nistp");
        for (name, failures) in algorithms {
            assert!(failures.is_empty() || nist(name), "{kind} {name}: {failures:?}");
        }
        let real = algorithms
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !name.starts_with("ext-info") && !name.starts_with("kex-strict"));
        assert!(real.skip_while(|name| !nist(name)).all(nist), "{kind}: {algorithms:?}");
    }
    assert_eq!(found["kex"][0].0, "mlkem768x25519-sha256");

    // What the configuration names is what is offered, and what is broken takes more than a name.
    let lists =
        ["-o", "Ciphers=aes128-ctr,aes128-cbc", "-o", "MACs=+hmac-sha1", "-o", "KexAlgorithms=-*nistp*"];
    let names = |algorithms: &[(String, Vec<String>)]| {
        algorithms.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let found = audit(&mut world, &lists);
    assert_eq!(names(&found["enc"]), ["aes128-ctr"]);
    assert!(!names(&found["mac"]).iter().any(|name| name.contains("sha1")));
    assert!(!names(&found["kex"]).iter().any(|name| name.contains("nistp")));
    let found = audit(&mut world, &[&lists[..], &["--dangerous-legacy-algorithms", "audit"]].concat());
    assert_eq!(names(&found["enc"]), ["aes128-ctr", "aes128-cbc"]);
    assert!(names(&found["mac"]).contains(&"hmac-sha1".to_owned()));
    world.assert_clean();
}

#[test]
fn servers_with_one_old_or_strict_choice_are_reached() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default());
    let aws: Vec<_> = world.aws.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let set_env = format!("SetEnv {}", aws.join(" "));
    let broken = ["--dangerous-legacy-algorithms", BASTION];
    for (server, options, reached) in [
        // In FIPS mode, and with nothing but moduli of 2048 bits.
        (&["KexAlgorithms ecdh-sha2-nistp384", "Ciphers aes256-gcm@openssh.com"][..], &[][..], true),
        (
            &[
                "KexAlgorithms diffie-hellman-group-exchange-sha256",
                "Ciphers aes128-ctr",
                "MACs hmac-sha2-512",
            ],
            &[],
            true,
        ),
        (&["KexAlgorithms diffie-hellman-group14-sha256"], &[], true),
        (&["Ciphers chacha20-poly1305@openssh.com"], &[], true),
        (&["KexAlgorithms diffie-hellman-group14-sha1"], &[], false),
        (
            &["KexAlgorithms diffie-hellman-group14-sha1"],
            &["-o", "KexAlgorithms=+diffie-hellman-group14-sha1"],
            false,
        ),
        (
            &["KexAlgorithms diffie-hellman-group14-sha1"],
            &[&["-o", "KexAlgorithms=+diffie-hellman-group14-sha1"][..], &broken].concat(),
            true,
        ),
        (
            &["Ciphers aes256-cbc", "MACs hmac-sha1"],
            &[&["-o", "Ciphers=+aes256-cbc", "-o", "MACs=+hmac-sha1"][..], &broken].concat(),
            true,
        ),
        // The danger is for the host that it was named for.
        (
            &["KexAlgorithms diffie-hellman-group14-sha1"],
            &["-o", "KexAlgorithms=+diffie-hellman-group14-sha1", "--dangerous-legacy-algorithms", "other"],
            false,
        ),
    ] {
        let lines: Vec<String> =
            server.iter().map(|line| (*line).to_owned()).chain([set_env.clone()]).collect();
        world.sshd.configure(&lines);
        let connect = world.connect(&[&["-p", "dev"][..], options, &["--", "echo", "in"]].concat());
        let output = world.run(connect);
        assert_eq!(output.stdout() == "in\n", reached, "{server:?} {options:?}: {output}");
        if !reached {
            assert_eq!(output.code, Some(255), "{output}");
            let way = "-o KexAlgorithms=+diffie-hellman-group14-sha1 --dangerous-legacy-algorithms HOST";
            assert!(output.stderr().contains(way), "{server:?} {options:?}: {output}");
        }
    }
    world.assert_clean();
}
