//! Hosts that are known by a certificate: a real sshd shows it, and `broker` and `ssh` come to the same end.

use std::os::unix::fs::PermissionsExt as _;

use sandbox::home::Output;
use tempfile::TempDir;

use crate::support::{BASTION, World};

/// An authority, and where it puts what sshd reads.
struct Authority {
    directory: TempDir,
    public: String,
}

impl Authority {
    fn new(world: &World, kind: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("sshd-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let authority = Self { directory, public: String::new() };
        authority.keygen(world, &["-q", "-t", kind, "-N", "", "-C", "", "-f", "ca"]);
        let public = std::fs::read_to_string(authority.directory.path().join("ca.pub")).unwrap();
        Self { public: public.trim().to_owned(), ..authority }
    }

    fn keygen(&self, world: &World, arguments: &[&str]) {
        let mut keygen = std::process::Command::new("ssh-keygen");
        keygen.args(arguments).current_dir(self.directory.path());
        world.laptop.run(keygen).success();
    }

    /// Certifies the key of the host and has its sshd show that.
    fn certify(&self, world: &World, how: &[&str]) {
        let key = world.sshd.known_hosts_line("h").split_once(' ').unwrap().1.to_owned();
        std::fs::write(self.directory.path().join("host.pub"), key).unwrap();
        self.keygen(world, &[&["-q", "-s", "ca", "-I", "id"][..], how, &["host.pub"]].concat());
        let certificate = self.directory.path().join("host-cert.pub");
        let aws: Vec<_> = world.aws.environment().iter().map(|(n, v)| format!("{n}={v}")).collect();
        world.sshd.configure(&[
            format!("SetEnv {}", aws.join(" ")),
            format!("HostCertificate {}", certificate.display()),
        ]);
    }
}

/// What `ssh` makes of the same server with the same files.
fn ssh(world: &mut World, options: &[&str]) -> Output {
    let config = world.laptop.join(".ssh/config");
    let known_hosts = format!("UserKnownHostsFile={}", world.laptop.join(".ssh/known_hosts").display());
    let mut ssh = world.laptop.command("ssh");
    ssh.arg("-F").arg(config).args(["-o", "BatchMode=yes", "-o", "GlobalKnownHostsFile=/dev/null", "-o"]);
    ssh.arg(known_hosts);
    for option in options {
        ssh.args(["-o", option]);
    }
    ssh.args([BASTION, "true"]);
    world.run(ssh)
}

#[test]
fn certificates_of_hosts_are_taken_and_refused_as_ssh_does() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let plain = world.laptop.read(".ssh/known_hosts");
    let (name, key) =
        plain.trim().split_once(' ').map(|(name, key)| (name.to_owned(), key.to_owned())).unwrap();
    let (ed25519, rsa) = (Authority::new(&world, "ed25519"), Authority::new(&world, "rsa"));
    let good = ["-h", "-n", "127.0.0.1"];
    let trusted = "@cert-authority 127.0.0.1 {ca}\n";
    for (what, authority, how, known_hosts, options, code, words) in [
        ("good", &ed25519, &good[..], trusted, &[][..], 0, ""),
        ("of an RSA authority", &rsa, &good, trusted, &[], 0, ""),
        ("by pattern and port", &ed25519, &good, "@cert-authority [127.*]:* {ca}\n", &[], 0, ""),
        (
            "of an alias",
            &ed25519,
            &["-h", "-n", "h.corp"],
            "@cert-authority *.corp {ca}\n",
            &["HostKeyAlias=H.corp"],
            0,
            "",
        ),
        (
            "of another authority",
            &ed25519,
            &good,
            "@cert-authority 127.0.0.1 {key}\n",
            &[],
            255,
            "is not known",
        ),
        (
            "for another host's names",
            &ed25519,
            &good,
            "@cert-authority *.corp {ca}\n",
            &[],
            255,
            "is not known",
        ),
        (
            "expired",
            &ed25519,
            &["-h", "-n", "127.0.0.1", "-V", "-2d:-1d"],
            trusted,
            &[],
            255,
            "it has expired",
        ),
        (
            "not yet valid",
            &ed25519,
            &["-h", "-n", "127.0.0.1", "-V", "+1d:+2d"],
            trusted,
            &[],
            255,
            "not valid yet",
        ),
        ("of another name", &ed25519, &["-h", "-n", "localhost"], trusted, &[], 255, "among the names"),
        ("signed with SHA-1", &rsa, &["-h", "-n", "127.0.0.1", "-t", "ssh-rsa"], trusted, &[], 255, "SHA-1"),
        (
            "expired, and its key on file",
            &ed25519,
            &["-h", "-n", "127.0.0.1", "-V", "-2d:-1d"],
            "@cert-authority 127.0.0.1 {ca}\n{name} {key}\n",
            &[],
            0,
            "it has expired",
        ),
        ("unwanted, and its key on file", &ed25519, &good, "{name} {key}\n", &[], 0, ""),
        (
            "of a revoked authority",
            &ed25519,
            &good,
            "@cert-authority 127.0.0.1 {ca}\n@revoked * {ca}\n{name} {key}\n",
            &[],
            255,
            "revoked",
        ),
        (
            "of a revoked key",
            &ed25519,
            &good,
            "@revoked {name} {key}\n@cert-authority 127.0.0.1 {ca}\n",
            &[],
            255,
            "revoked",
        ),
    ] {
        authority.certify(&world, how);
        let text =
            known_hosts.replace("{ca}", &authority.public).replace("{key}", &key).replace("{name}", &name);
        world.laptop.write(".ssh/known_hosts", &text, 0o600);
        let mut connect = vec!["-p", "dev"];
        for option in options {
            connect.extend(["-o", option]);
        }
        connect.extend(["--", "true"]);
        let output = world.run(world.connect(&connect));
        assert_eq!(output.code, Some(code), "{what}: {output}");
        assert!(output.stderr().contains(words), "{what}: {output}");
        assert_eq!(world.laptop.read(".ssh/known_hosts"), text, "{what}: nothing is written");
        // With 9.2; what differs is said where it does.
        let theirs = ssh(&mut world, options);
        assert_eq!(theirs.code == Some(0), code == 0, "{what}: {theirs}");
    }
    world.assert_clean();
}

#[test]
fn a_certificate_that_is_not_one_is_not_used() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let authority = Authority::new(&world, "ed25519");
    let trusted = format!("@cert-authority 127.0.0.1 {}\n", authority.public);
    world.laptop.write(".ssh/known_hosts", &trusted, 0o600);
    // Before 10.3 `ssh` took a certificate without names, and no pattern in one: these are ours alone here.
    authority.certify(&world, &["-h", "-n", "127.0.*"]);
    let output = world.run(world.connect(&["-p", "dev", "--", "true"]));
    assert_eq!(output.code, Some(0), "{output}");
    authority.certify(&world, &["-h"]);
    let output = world.run(world.connect(&["-p", "dev", "--", "true"]));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(output.stderr().contains("for no name at all"), "{output}");
    // A host that should have a certificate is not new: `accept-new` is not for it.
    let accepting = ["-p", "dev", "-o", "StrictHostKeyChecking=accept-new", "--", "true"];
    let output = world.run(world.connect(&accepting));
    assert_eq!(output.code, Some(255), "{output}");
    assert!(output.stderr().contains("no certificate of its authority"), "{output}");
    assert_eq!(world.laptop.read(".ssh/known_hosts"), trusted);
    world.assert_clean();
}

#[test]
fn revoked_keys_and_what_a_program_says_of_hosts_count_as_with_ssh() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let line = world.sshd.known_hosts_line("127.0.0.1");
    let key = line.split_once(' ').unwrap().1.to_owned();
    let authority = Authority::new(&world, "ed25519");
    authority.certify(&world, &["-h", "-n", "127.0.0.1", "-z", "7"]);
    let place = authority.directory.path().to_owned();
    let list = |name: &str, specification: &str, further: &[&str]| {
        std::fs::write(place.join("spec"), specification).unwrap();
        authority.keygen(&world, &[&["-q", "-k", "-f", name][..], further, &["spec"]].concat());
    };
    list("key.krl", &format!("key: {key}\n"), &[]);
    list("sha256.krl", &format!("sha256: {key}\n"), &[]);
    list("serial.krl", "serial: 7\n", &["-s", "ca.pub"]);
    list("other.krl", "serial: 8\nid: other\n", &["-s", "ca.pub"]);
    let bytes = std::fs::read(place.join("key.krl")).unwrap();
    std::fs::write(place.join("damaged.krl"), &bytes[..bytes.len() - 1]).unwrap();
    std::fs::write(place.join("keys"), format!("# lost\n{key}\n")).unwrap();
    std::fs::write(place.join("authorities"), format!("{}\n", authority.public)).unwrap();
    std::fs::write(place.join("words"), "these are no keys\n").unwrap();
    let program = |name: &str, script: &str| {
        let path = place.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("knows", &format!("echo \"$1 {key}\""));
    program("vouches", &format!("echo \"@cert-authority 127.0.0.1,$1 {}\"", authority.public));
    program("another", &format!("echo \"$1 {}\"", authority.public));
    program("nothing", "exit 0");
    program("fails", &format!("echo \"$1 {key}\"; echo broken >&2; exit 1"));
    let certified = format!("@cert-authority 127.0.0.1 {}\n", authority.public);
    let (plain, nobody) = (format!("{line}\n"), String::new());
    let marked = format!("{line}\n@revoked * {}\n", authority.public);
    let revoked = |name: &str| format!("RevokedHostKeys={}", place.join(name).display());
    let command = |name: &str| format!("KnownHostsCommand={} %H %I %t", place.join(name).display());
    for (known_hosts, option, taken, words) in [
        (&plain, revoked("keys"), false, "is revoked"),
        (&plain, revoked("key.krl"), false, "is revoked"),
        (&plain, revoked("sha256.krl"), false, "is revoked"),
        (&certified, revoked("serial.krl"), false, "is revoked"),
        // Nobody vouches for this host, and it is asked for its certificate all the same.
        (&plain, revoked("serial.krl"), false, "is revoked"),
        (&plain, revoked("other.krl"), true, ""),
        (&marked, "HashKnownHosts=no".to_owned(), false, "is marked as revoked"),
        (&certified, revoked("authorities"), false, "is revoked"),
        (&certified, revoked("key.krl"), false, "is revoked"),
        (&certified, revoked("other.krl"), true, ""),
        (&plain, revoked("missing"), false, "there are no `RevokedHostKeys` at"),
        (&plain, revoked("damaged.krl"), false, "could not read the revocation list"),
        (&plain, revoked("words"), false, "line 1 is no public key"),
        (&plain, "RevokedHostKeys=none".to_owned(), true, ""),
        (&nobody, command("knows"), true, ""),
        (&nobody, command("vouches"), true, ""),
        (&nobody, command("nothing"), false, "is not known"),
        (&plain, command("nothing"), true, ""),
        (&nobody, command("another"), false, "HAS CHANGED"),
        (&plain, command("fails"), false, "ended with exit status 1"),
    ] {
        world.laptop.write(".ssh/known_hosts", known_hosts, 0o600);
        let output = world.run(world.connect(&["-p", "dev", "-o", &option, "--", "true"]));
        assert_eq!(output.code, Some(if taken { 0 } else { 255 }), "{option}: {output}");
        assert!(output.stderr().contains(words), "{option}: {output}");
        assert_eq!(&world.laptop.read(".ssh/known_hosts"), known_hosts, "{option}: nothing is written");
        let theirs = ssh(&mut world, &[&option]);
        assert_eq!(theirs.code == Some(0), taken, "{option}: {theirs}");
    }
    world.assert_clean();
}

#[test]
fn short_keys_of_rsa_are_neither_believed_nor_used() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let authority = Authority::new(&world, "ed25519");
    let place = authority.directory.path().to_owned();
    for (name, bits) in [("host", "2048"), ("user", "2048")] {
        authority.keygen(&world, &["-q", "-t", "rsa", "-b", bits, "-N", "", "-C", name, "-f", name]);
    }
    let public = |name: &str| std::fs::read_to_string(place.join(format!("{name}.pub"))).unwrap();
    let ed25519 = world.laptop.read(".ssh/known_hosts");
    let rsa = format!("[127.0.0.1]:{} {}", world.sshd.port(), public("host"));
    let aws: Vec<_> = world.aws.environment().iter().map(|(n, v)| format!("{n}={v}")).collect();
    world.sshd.configure(&[
        format!("SetEnv {}", aws.join(" ")),
        format!("HostKey {}", place.join("host").display()),
    ]);
    let user = world.sshd.user().clone();
    world.sshd.authorize(&user, "", public("user").trim());
    let private = std::fs::read_to_string(place.join("user")).unwrap();
    world.laptop.write(".ssh/rsa", private, 0o600);
    let identity = format!("IdentityFile={}", world.laptop.join(".ssh/rsa").display());
    for (known_hosts, options, taken, words) in [
        (&rsa, &["RequiredRSASize=2048"][..], true, ""),
        (&rsa, &["RequiredRSASize=2049"], false, "only 2048 bits, and 2049 are required"),
        (&ed25519, &["RequiredRSASize=4096"], true, ""),
    ] {
        world.laptop.write(".ssh/known_hosts", known_hosts, 0o600);
        let mut arguments = vec!["-p", "dev"];
        options.iter().for_each(|option| arguments.extend(["-o", option]));
        arguments.extend(["--", "true"]);
        let output = world.run(world.connect(&arguments));
        assert_eq!(output.code, Some(if taken { 0 } else { 255 }), "{options:?}: {output}");
        assert!(output.stderr().contains(words), "{options:?}: {output}");
        let theirs = ssh(&mut world, options);
        assert_eq!(theirs.code == Some(0), taken, "{options:?}: {theirs}");
    }
    // The user's own key; the other one that opens the door is not there.
    let config = world.laptop.read(".ssh/config");
    let without: String = config
        .lines()
        .filter(|line| !line.contains("IdentityFile"))
        .map(|line| format!("{line}\n"))
        .collect();
    world.laptop.write(".ssh/config", without, 0o600);
    for (size, taken) in [("2048", true), ("2049", false)] {
        let size = format!("RequiredRSASize={size}");
        let output = world.run(world.connect(&["-p", "dev", "-o", &identity, "-o", &size, "--", "true"]));
        assert_eq!(output.code, Some(if taken { 0 } else { 255 }), "{size}: {output}");
        assert_eq!(output.stderr().contains("rsa` not (`RequiredRSASize`)"), !taken, "{output}");
        let theirs = ssh(&mut world, &[&identity, &size]);
        assert_eq!(theirs.code == Some(0), taken, "{size}: {theirs}");
    }
    world.assert_clean();
}
