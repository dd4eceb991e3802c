use std::os::unix::fs::PermissionsExt as _;

use russh::keys::ssh_key::LineEnding;
use secrecy::ExposeSecret as _;

use super::*;
use crate::ssh::peer::key;

fn write(path: &Path, text: &str, mode: u32) {
    use std::io::Write as _;
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn private(seed: u8) -> Zeroizing<String> {
    key(seed).to_openssh(LineEnding::LF).unwrap()
}

fn held(seed: u8, comment: &str) -> AgentIdentity {
    AgentIdentity::PublicKey { key: key(seed).public_key().clone(), comment: comment.into() }
}

fn names(candidates: &[Candidate]) -> Vec<String> {
    candidates.iter().map(Candidate::name).collect()
}

#[tokio::test]
async fn the_agents_keys_come_first_and_those_that_are_configured_before_the_others() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    write(&path("a"), &private(1), 0o600);
    write(&path("b.pub"), &key(2).public_key().to_openssh().unwrap(), 0o644);
    let identities = |only| Identities {
        files: vec![path("a"), path("b"), path("missing")],
        only,
        ..Identities::default()
    };
    let agent = || vec![held(3, "other"), held(2, "b of mine")];
    let (all, notes) = candidates(&identities(false), agent()).await;
    let a = format!("`{}`", path("a").display());
    assert_eq!(names(&all), ["`b of mine` of the agent", "`other` of the agent", &a]);
    assert!(notes.is_empty(), "{notes:?}");
    let (only, _) = candidates(&identities(true), agent()).await;
    assert_eq!(names(&only), ["`b of mine` of the agent", &a]);
    let (held_by_both, _) = candidates(&identities(true), vec![held(1, "a too")]).await;
    assert_eq!(
        names(&held_by_both),
        ["`a too` of the agent"],
        "a file whose key the agent holds is not tried again"
    );
}

#[tokio::test]
async fn a_key_that_others_can_read_is_ignored_and_said_to_be() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("id");
    write(&path, &private(1), 0o644);
    let identities = Identities { files: vec![path.clone()], explicit: true, ..Identities::default() };
    let (keys, notes) = candidates(&identities, vec![]).await;
    assert!(keys.is_empty());
    assert!(notes[0].contains("others can read it (mode 0644)"), "{notes:?}");
    assert!(notes[0].ends_with(&format!("run `chmod go= '{}'`", path.display())), "{notes:?}");
}

#[tokio::test]
async fn somebody_elses_key_is_used_whatever_its_mode_as_ssh_keygen_does() {
    // Only root can give a file away, so this runs where root runs the tests.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("id");
    for (mode, owner) in [(0o600, 0), (0o640, 0), (0o604, 0), (0o640, 12345), (0o444, 12345)] {
        write(&path, &private(1), mode);
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        let identities = Identities { files: vec![path.clone()], explicit: true, ..Identities::default() };
        let (keys, notes) = candidates(&identities, vec![]).await;
        let read = std::process::Command::new("ssh-keygen").args(["-y", "-P", "", "-f"]).arg(&path).output();
        let read = read.expect("this test uses `ssh-keygen`: install openssh-client").status.success();
        assert_eq!(!keys.is_empty(), read, "{mode:o} of {owner}: {notes:?}");
        assert_eq!(read, owner != 0 || mode == 0o600);
        std::fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn a_key_on_a_device_is_the_agents_or_is_said_to_need_one() {
    use russh::keys::ssh_key::private::{KeypairData, SkEd25519};
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("id_ed25519_sk");
    let half = key(1).public_key().key_data().ed25519().copied().unwrap();
    let handle = SkEd25519::new(russh::keys::ssh_key::public::SkEd25519::from(half), 1, vec![7; 32]);
    let sk = PrivateKey::new(KeypairData::SkEd25519(handle.unwrap()), "touch").unwrap();
    write(&path, &sk.to_openssh(LineEnding::LF).unwrap(), 0o600);
    let identities = |explicit| Identities { files: vec![path.clone()], explicit, ..Identities::default() };
    let in_agent = || AgentIdentity::PublicKey { key: sk.public_key().clone(), comment: "sk".into() };
    for (explicit, agent, found, told) in [
        (true, vec![], 0, true),
        (false, vec![], 0, true),
        (true, vec![held(2, "other")], 1, true),
        (false, vec![held(2, "other")], 1, false),
        (true, vec![held(2, "other"), in_agent()], 2, false),
        (false, vec![in_agent()], 1, false),
    ] {
        let (keys, notes) = candidates(&identities(explicit), agent).await;
        assert_eq!((keys.len(), notes.len()), (found, usize::from(told)), "{explicit} {keys:?} {notes:?}");
        // The one that is configured goes first.
        assert_eq!(
            keys.first().is_some_and(Candidate::is_security_key),
            found > 0 && !names(&keys)[0].contains("other")
        );
        if told {
            let words = format!("only an agent can use: run `ssh-add '{}'`", path.display());
            assert!(notes[0].ends_with(&words), "{notes:?}");
        }
    }
}

#[tokio::test]
async fn a_named_key_that_is_missing_or_broken_is_said() {
    let home = tempfile::tempdir().unwrap();
    let (missing, broken) = (home.path().join("missing"), home.path().join("broken"));
    write(&broken, "no key\n", 0o600);
    let identities = Identities { files: vec![missing, broken], explicit: true, ..Identities::default() };
    let (keys, notes) = candidates(&identities, vec![]).await;
    assert!(keys.is_empty());
    assert!(notes[0].contains("there is no such file"), "{notes:?}");
    assert!(notes[1].contains("holds no key"), "{notes:?}");
}

/// Runs the real tool, in `directory`.
fn ssh_keygen(directory: &Path, arguments: &[&str]) {
    let ran = std::process::Command::new("ssh-keygen").args(arguments).current_dir(directory).output();
    let ran = ran.expect("these tests use `ssh-keygen`: install openssh-client");
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn every_format_that_ssh_keygen_writes_is_read_with_its_passphrase_and_without() {
    let home = tempfile::tempdir().unwrap();
    for (format, kind) in [
        ("RFC4716", "rsa"),
        ("RFC4716", "ecdsa"),
        ("RFC4716", "ed25519"),
        ("PEM", "rsa"),
        ("PEM", "ecdsa"),
        ("PKCS8", "rsa"),
        ("PKCS8", "ecdsa"),
    ] {
        for passphrase in ["", "opensesame"] {
            let name = format!("{format}-{kind}-{passphrase}");
            let make = ["-q", "-t", kind, "-m", format, "-N", passphrase, "-f", &name];
            ssh_keygen(home.path(), &make);
            let path = home.path().join(&name);
            let public = std::fs::read_to_string(home.path().join(format!("{name}.pub"))).unwrap();
            let public = PublicKey::from_openssh(&public).unwrap();
            std::fs::remove_file(home.path().join(format!("{name}.pub"))).unwrap();
            let identities = Identities { files: vec![path], explicit: true, ..Identities::default() };
            let (keys, notes) = candidates(&identities, vec![]).await;
            if name == "PEM-ecdsa-opensesame" {
                assert!(keys.is_empty() && notes[0].contains("ssh-keygen -p -f"), "{notes:?}");
                continue;
            }
            assert!(notes.is_empty(), "{name}: {notes:?}");
            let Source::File { private, text, .. } = &keys[0].source else { panic!("{keys:?}") };
            assert_eq!(private.is_some(), passphrase.is_empty(), "{name}");
            let private = match private {
                Some(private) => private.as_ref().clone(),
                None => russh::keys::decode_secret_key(text.expose_secret(), Some(passphrase))
                    .unwrap_or_else(|error| panic!("{name}: {error}")),
            };
            assert_eq!(private.public_key().key_data(), public.key_data(), "{name}");
        }
    }
}

#[tokio::test]
async fn certificates_go_first_and_find_who_can_sign_with_them() {
    let home = tempfile::tempdir().unwrap();
    let place = home.path();
    for name in ["ca", "file", "held", "other"] {
        ssh_keygen(place, &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name]);
        ssh_keygen(place, &["-q", "-s", "ca", "-I", "id", "-n", "me", &format!("{name}.pub")]);
    }
    std::fs::rename(place.join("held-cert.pub"), place.join("elsewhere.pub")).unwrap();
    let path = |name: &str| place.join(name);
    let public = |name: &str| PublicKey::from_openssh(&std::fs::read_to_string(path(name)).unwrap()).unwrap();
    std::fs::remove_file(path("held")).unwrap();
    let agent = vec![AgentIdentity::PublicKey { key: public("held.pub"), comment: "held".into() }];
    let identities = Identities {
        files: vec![path("file"), path("held")],
        certificates: vec![path("elsewhere.pub"), path("other-cert.pub"), path("missing")],
        explicit: true,
        ..Identities::default()
    };
    let (keys, notes) = candidates(&identities, agent).await;
    let titles: Vec<_> = keys.iter().map(Candidate::title).collect();
    assert_eq!(
        titles,
        [
            format!("certificate `{}` of the agent", path("elsewhere.pub").display()),
            format!("certificate `{}`", path("file").display()),
            "key `held` of the agent".to_owned(),
            format!("key `{}`", path("file").display()),
        ]
    );
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("missing") && notes[1].contains("other-cert.pub"), "{notes:?}");
}

#[tokio::test]
async fn a_key_of_the_environment_goes_first_and_is_never_shown() {
    for (text, found) in
        [(private(3).to_string(), 1), ("nonsense".to_owned(), 0), (crate::ssh::peer::encrypted_key(), 0)]
    {
        let key = EnvironmentKey { name: "KEY".into(), text: Arc::new(SecretString::from(text.as_str())) };
        let identities = Identities { environment: Some(key), ..Identities::default() };
        let (keys, notes) = candidates(&identities, vec![held(1, "a")]).await;
        assert_eq!(keys.len(), found + 1);
        assert_eq!(notes.len(), 1 - found, "{notes:?}");
        assert_eq!(keys[0].name(), if found == 1 { "of `$KEY`" } else { "`a` of the agent" });
        assert!(!format!("{identities:?}{notes:?}").contains(text.trim()));
    }
}

#[tokio::test]
async fn an_encrypted_key_shows_its_public_half_and_keeps_its_secret() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("id");
    let encrypted = crate::ssh::peer::encrypted_key();
    write(&path, &encrypted, 0o600);
    let identities = Identities { files: vec![path], explicit: true, ..Identities::default() };
    let (keys, notes) = candidates(&identities, vec![]).await;
    assert!(notes.is_empty(), "{notes:?}");
    let Source::File { private: None, text, .. } = &keys[0].source else { panic!("{keys:?}") };
    assert!(keys[0].public.is_some());
    assert_eq!(text.expose_secret(), encrypted);
    assert!(!format!("{keys:?}").contains("OPENSSH PRIVATE KEY"));
}
