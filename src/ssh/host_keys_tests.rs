use russh::keys::PrivateKey;

use super::*;
use crate::private_fs;
use crate::ssh::{
    peer::target,
    target::{KnownHostsCommand, Part},
};

struct Nobody;

impl Human for Nobody {
    fn ask(&self, _: Question) -> BoxFuture<'_, Option<secrecy::SecretString>> {
        panic!("nobody is asked about a host key twice");
    }
    fn tell(&self, _: &str) {}
    fn browse(&self, _: &str) -> bool {
        false
    }
}

fn shown(seed: u8) -> PublicKeyOrCertificate {
    PublicKeyOrCertificate::PublicKey { key: key(seed), hash_alg: None }
}

fn key(seed: u8) -> PublicKey {
    let pair = russh::keys::ssh_key::private::Ed25519Keypair::from_seed(&[seed; 32]);
    PrivateKey::from(pair).public_key().clone()
}

#[tokio::test]
async fn hosts_with_the_same_files_share_what_was_read_and_others_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let line = |name: &str, seed| format!("{name} {}\n", key(seed).to_openssh().unwrap());
    private_fs::write(&first, (line("one", 1) + &line("two", 1)).as_bytes()).unwrap();
    private_fs::write(&second, line("one", 2).as_bytes()).unwrap();
    let mut on_file = OnFile::default();
    let mut load = |name: &str, file: &PathBuf, pinned: Option<&str>| {
        let mut target = target();
        target.host_key_alias = Some(name.to_owned());
        target.pinned_host_key = pinned.map(str::to_owned);
        target.known_hosts.user = vec![file.clone()];
        target.known_hosts.global.clear();
        KnownHostKeys::load_beside(&target, Arc::new(Nobody), &mut on_file).unwrap()
    };
    let [one, two] = ["one", "two"].map(|name| load(name, &first, None));
    let other = load("one", &second, None);
    let pinned = load("one", &first, Some("SHA256:none"));
    assert!(Arc::ptr_eq(&one.known, &two.known));
    one.check(&shown(1)).await.unwrap();
    two.check(&shown(1)).await.unwrap();
    other.check(&shown(2)).await.unwrap();
    assert!(other.check(&shown(1)).await.unwrap_err().to_string().contains("HAS CHANGED"));
    assert!(!Arc::ptr_eq(&one.known, &pinned.known), "who has a pin reads nothing");
}

#[tokio::test]
async fn a_new_host_that_was_accepted_shows_the_same_key_ever_after() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("known_hosts");
    let mut target = target();
    target.pinned_host_key = None;
    target.known_hosts.user = vec![file.clone()];
    for checking in [StrictHostKeyChecking::AcceptNew, StrictHostKeyChecking::Ask] {
        target.strict_host_key_checking = checking;
        let keys = KnownHostKeys::load(&target, Arc::new(Nobody)).unwrap();
        if checking == StrictHostKeyChecking::AcceptNew {
            keys.check(&shown(1)).await.unwrap();
        } else {
            *keys.accepted.lock().unwrap() = Some((key(1), Trust::Known));
        }
        keys.check(&shown(1)).await.unwrap();
        let refused = keys.check(&shown(2)).await.unwrap_err();
        assert!(refused.to_string().contains("HAS CHANGED"), "{refused}");
    }
    assert_eq!(
        std::fs::read_to_string(&file).unwrap().lines().count(),
        1,
        "the other key was not written down"
    );
}

/// A target whose known_hosts is empty, and a directory for what its configuration names.
fn strict() -> (tempfile::TempDir, Target) {
    let directory = tempfile::tempdir().unwrap();
    let mut target = target();
    target.pinned_host_key = None;
    target.strict_host_key_checking = StrictHostKeyChecking::Yes;
    target.known_hosts.user = vec![directory.path().join("known_hosts")];
    (directory, target)
}

fn of_program(script: &str, directory: &std::path::Path) -> KnownHostsCommand {
    let path = directory.join("keys");
    private_fs::write(&path, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let parts = [Part::Name, Part::Invocation, Part::KeyType, Part::Fingerprint, Part::Key];
    KnownHostsCommand { program: path, arguments: parts.map(|part| vec![part]).to_vec() }
}

async fn judged(target: &Target, shown: &PublicKeyOrCertificate) -> Result<Wanted, String> {
    let keys = KnownHostKeys::load(target, Arc::new(Nobody)).unwrap();
    let told = |refused: HostKeyRefused| {
        let source = std::error::Error::source(&refused).map(ToString::to_string);
        format!("{refused}: {} ({})", source.unwrap_or_default(), refused.hint.clone().unwrap_or_default())
    };
    let wanted = keys.wanted().await.map_err(told)?;
    keys.check(shown).await.map(|_| wanted).map_err(told)
}

#[tokio::test]
async fn a_program_that_knows_the_hosts_is_asked_twice_and_believed() {
    let (directory, mut target) = strict();
    let name = HostName::of(&target).to_string();
    let key_line = key(1).to_openssh().unwrap();
    let record = directory.path().join("record");
    let script = format!("echo \"$@\" >>{}; echo \"$1 {key_line}\"", record.display());
    target.known_hosts.command = Some(of_program(&script, directory.path()));
    let wanted = judged(&target, &shown(1)).await.unwrap();
    assert_eq!(wanted.keys, [russh::keys::Algorithm::Ed25519]);
    assert_eq!(wanted.certificates, Certificates::None);
    let fingerprint = key(1).fingerprint(HashAlg::Sha256);
    let blob = key_line.split(' ').nth(1).unwrap();
    assert_eq!(
        std::fs::read_to_string(&record).unwrap(),
        format!("{name} ORDER NONE NONE NONE\n{name} HOSTNAME ssh-ed25519 {fingerprint} {blob}\n")
    );
    let told = judged(&target, &shown(2)).await.unwrap_err();
    assert!(told.contains("HAS CHANGED") && told.contains("`KnownHostsCommand-HOSTNAME` line 1"), "{told}");
    assert!(told.contains("what your KnownHostsCommand says"), "{told}");
    // What it prints may revoke, and may name an authority.
    let script = format!("echo \"@revoked * {key_line}\"; echo \"@cert-authority $1 {key_line}\"");
    target.known_hosts.command = Some(of_program(&script, directory.path()));
    let told = judged(&target, &shown(1)).await.unwrap_err();
    assert!(told.contains("marked as revoked"), "{told}");
    let keys = KnownHostKeys::load(&target, Arc::new(Nobody)).unwrap();
    assert_eq!(keys.wanted().await.unwrap().certificates, Certificates::All);
    // A pin asks nobody.
    target.pinned_host_key = Some(fingerprint.to_string());
    target.known_hosts.command = Some(of_program("exit 1", directory.path()));
    judged(&target, &shown(1)).await.unwrap();
}

#[tokio::test]
async fn a_program_that_fails_ends_the_connection_whatever_else_is_known() {
    let (directory, mut target) = strict();
    known_hosts::append(&target.known_hosts.user[0], &HostName::of(&target), &key(1), false).unwrap();
    judged(&target, &shown(1)).await.unwrap();
    for (script, told) in [
        ("exit 3", "ended with exit status 3"),
        ("kill -9 $$", "was ended by signal 9"),
        ("test $2 = ORDER || exit 4", "ended with exit status 4"),
        ("exec cat /dev/zero", "printed more than 32 MiB"),
    ] {
        target.known_hosts.command = Some(of_program(script, directory.path()));
        let refused = judged(&target, &shown(1)).await.unwrap_err();
        assert!(refused.contains(told), "{script}: {refused}");
        assert!(refused.contains("-o KnownHostsCommand=none"), "{refused}");
    }
    target.known_hosts.command =
        Some(KnownHostsCommand { program: "/not/there".into(), arguments: Vec::new() });
    let refused = judged(&target, &shown(1)).await.unwrap_err();
    assert!(refused.contains("could not run the KnownHostsCommand (`/not/there`)"), "{refused}");
    target.known_hosts.command = Some(KnownHostsCommand { program: "sh".into(), arguments: Vec::new() });
    let refused = judged(&target, &shown(1)).await.unwrap_err();
    assert!(refused.contains("it is no absolute path"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_ends_the_connection() {
    let (directory, mut target) = strict();
    target.known_hosts.command = Some(of_program("sleep 1000", directory.path()));
    let refused = judged(&target, &shown(1)).await.unwrap_err();
    assert!(refused.contains("did not end within 30 s"), "{refused}");
}

#[tokio::test]
async fn a_program_ends_with_us_and_with_all_that_it_started() {
    let (directory, mut target) = strict();
    let record = directory.path().join("pids");
    let script = format!("sleep 1000 & echo $$ $! >{}; wait", record.display());
    target.known_hosts.command = Some(of_program(&script, directory.path()));
    let started = async {
        loop {
            let text = std::fs::read_to_string(&record).unwrap_or_default();
            if text.ends_with('\n') {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let key = shown(1);
    let pids = tokio::select! {
        judged = judged(&target, &key) => panic!("{judged:?}"),
        pids = tokio::time::timeout(crate::ssh::peer::PATIENCE, started) => pids.expect("it runs"),
    };
    let runs = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    let until = std::time::Instant::now() + crate::ssh::peer::PATIENCE;
    while pids.split_whitespace().any(runs) {
        assert!(std::time::Instant::now() < until, "{pids} run");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn revoked_keys_are_refused_even_when_they_are_pinned_or_known() {
    let (directory, mut target) = strict();
    known_hosts::append(&target.known_hosts.user[0], &HostName::of(&target), &key(1), false).unwrap();
    let list = directory.path().join("revoked");
    target.revoked_host_keys = vec![list.clone()];
    let told = judged(&target, &shown(1)).await.unwrap_err();
    assert!(told.contains("there are no `RevokedHostKeys` at"), "{told}");
    private_fs::write(&list, b"# nothing\n").unwrap();
    let keys = KnownHostKeys::load(&target, Arc::new(Nobody)).unwrap();
    keys.wanted().await.unwrap();
    keys.check(&shown(1)).await.unwrap();
    private_fs::write(&list, key(1).to_openssh().unwrap().as_bytes()).unwrap();
    // The connection that stands is not asked again when its keys are renewed; the next one is.
    keys.check(&shown(1)).await.unwrap();
    keys.wanted().await.unwrap();
    keys.check(&shown(1)).await.unwrap_err();
    for pinned in [None, Some(key(1).fingerprint(HashAlg::Sha256).to_string())] {
        target.pinned_host_key = pinned;
        let told = judged(&target, &shown(1)).await.unwrap_err();
        assert!(told.contains("is revoked (ssh-ed25519 SHA256:"), "{told}");
    }
}

#[tokio::test]
async fn a_short_key_of_rsa_is_refused_even_when_it_is_pinned() {
    let (directory, mut target) = strict();
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "1100", "-N", "", "-f", "rsa"])
        .current_dir(directory.path())
        .status()
        .expect("this test uses `ssh-keygen`: install openssh-client");
    assert!(made.success());
    let text = std::fs::read_to_string(directory.path().join("rsa.pub")).unwrap();
    let rsa = PublicKey::from_openssh(text.trim()).unwrap();
    target.pinned_host_key = Some(rsa.fingerprint(HashAlg::Sha256).to_string());
    let shown = PublicKeyOrCertificate::PublicKey { key: rsa, hash_alg: None };
    for (required, taken) in [(1024, true), (1100, true), (1101, false), (2048, false)] {
        target.required_rsa_size = required;
        let judged = judged(&target, &shown).await;
        assert_eq!(judged.is_ok(), taken, "{required}: {judged:?}");
        if let Err(told) = judged {
            assert!(told.contains(&format!("has only 1100 bits, and {required} are required")), "{told}");
        }
    }
}
