use std::{fs, process::Command};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A directory in which `ssh-keygen` has made keys, certificates and lists.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, kind) in [
            ("a", "ed25519"),
            ("b", "ed25519"),
            ("e", "ecdsa"),
            ("r", "rsa"),
            ("ca", "ed25519"),
            ("other", "ed25519"),
        ] {
            place.keygen(&["-q", "-t", kind, "-N", "", "-C", name, "-f", name]);
        }
        place
    }

    fn keygen(&self, arguments: &[&str]) -> bool {
        let ran = Command::new("ssh-keygen").args(arguments).current_dir(self.0.path()).output();
        ran.expect("these tests use `ssh-keygen`: install openssh-client").status.success()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        private_fs::write(&path, bytes).unwrap();
        path
    }

    fn key(&self, name: &str) -> PublicKey {
        PublicKey::from_openssh(self.read(&format!("{name}.pub")).trim()).unwrap()
    }

    /// A certificate of the host `name`, signed by `ca`.
    fn certificate(&self, name: &str, ca: &str, serial: u64, id: &str) -> Certificate {
        let (serial, public) = (serial.to_string(), format!("{name}.pub"));
        assert!(self.keygen(&["-q", "-s", ca, "-h", "-I", id, "-n", "h", "-z", &serial, &public]));
        let text = self.read(&format!("{name}-cert.pub"));
        let kept = format!("{name}-{ca}-{serial}-{id}.pub");
        self.write(&kept, text.as_bytes());
        Certificate::from_openssh(text.trim()).unwrap()
    }

    /// Has `ssh-keygen -k` make a list out of a specification, or out of keys.
    fn list(&self, specification: &str, further: &[&str]) -> PathBuf {
        self.write("spec", specification.as_bytes());
        let arguments = [&["-q", "-k", "-f", "krl"][..], further, &["spec"]].concat();
        assert!(self.keygen(&arguments), "{specification}");
        self.0.path().join("krl")
    }

    /// Whether `ssh-keygen -Q` says that the key or certificate in a file is revoked by `krl`.
    fn says(&self, file: &str) -> bool {
        let krl = self.0.path().join("krl");
        !self.keygen(&["-Q", "-f", krl.to_str().unwrap(), file])
    }
}

fn revokes(path: &Path, key: &PublicKey, certificate: Option<&Certificate>) -> bool {
    Revoked::load(&[path.to_owned()]).unwrap().by(key, certificate).is_some()
}

#[test]
fn lists_of_ssh_keygen_revoke_what_ssh_keygen_says_they_revoke() {
    let place = Place::new();
    let keys = ["a", "b", "e", "r", "ca"];
    let certificates = [
        ("a", "ca", 0, "zero"),
        ("a", "ca", 1, "one"),
        ("a", "ca", 7, "seven"),
        ("a", "ca", 8, "eight"),
        ("a", "ca", 100, "hundred"),
        ("a", "ca", 163, "late"),
        ("a", "ca", u64::MAX, "last"),
        ("b", "ca", 7, "b7"),
        ("e", "other", 7, "seven"),
        ("r", "other", 1000, "host 1"),
    ]
    .map(|(name, ca, serial, id)| {
        (name, format!("{name}-{ca}-{serial}-{id}.pub"), place.certificate(name, ca, serial, id))
    });
    let line = |name: &str| place.read(&format!("{name}.pub"));
    let sha256 = |name: &str| place.key(name).fingerprint(russh::keys::HashAlg::Sha256).to_string();
    let with_ca: &[&str] = &["-s", "ca.pub"];
    let mut revoked = 0;
    for (specification, further) in [
        (String::new(), with_ca),
        ("serial: 7\n".to_owned(), with_ca),
        ("serial: 7\n".to_owned(), &["-s", "other.pub"]),
        ("serial: 5-8\n".to_owned(), with_ca),
        ("serial: 1-18446744073709551615\n".to_owned(), with_ca),
        ("serial: 18446744073709551615\n".to_owned(), with_ca),
        // Many numbers near each other become a bitmap, far ones a list.
        ((1..=200).step_by(3).map(|n| format!("serial: {n}\n")).collect(), with_ca),
        ("serial: 7\nserial: 100000\nserial: 90000000\n".to_owned(), with_ca),
        ("id: seven\n".to_owned(), with_ca),
        ("id: host 1\nid: zero\n".to_owned(), &["-s", "other.pub"]),
        (format!("key: {}", line("a")), &[]),
        (format!("key: {}key: {}", line("e"), line("r")), &[]),
        (format!("key: {}", line("ca")), &[]),
        (format!("sha1: {}", line("b")), &[]),
        (format!("sha256: {}", line("r")), &[]),
        (format!("hash: {}\nhash: {}\n", sha256("e"), sha256("ca")), &[]),
        (format!("serial: 100\nid: late\nsha1: {}sha256: {}", line("b"), line("e")), with_ca),
    ] {
        let list = place.list(&specification, further);
        for name in keys {
            let expected = place.says(&format!("{name}.pub"));
            assert_eq!(
                revokes(&list, &place.key(name), None),
                expected,
                "{specification}{further:?}: {name}"
            );
            revoked += usize::from(expected);
        }
        for (name, file, certificate) in &certificates {
            let expected = place.says(file);
            let found = revokes(&list, &place.key(name), Some(certificate));
            assert_eq!(found, expected, "{specification}{further:?}: {file}");
            revoked += usize::from(expected);
        }
    }
    assert!(revoked > 40, "{revoked}");
    // Every authority at once, which `ssh-keygen` writes for `-s none`.
    let list = place.list("id: seven\n", &["-s", "none"]);
    for (name, file, certificate) in &certificates {
        assert_eq!(revokes(&list, &place.key(name), Some(certificate)), place.says(file), "{file}");
    }
}

#[test]
fn a_file_of_keys_revokes_them_and_what_they_signed() {
    let place = Place::new();
    let (one, two) = (place.certificate("a", "ca", 1, "x"), place.certificate("b", "other", 1, "x"));
    let certified = place.read("b-cert.pub");
    let text = format!("# gone\n\n  {}\t{}\r\n", place.read("e.pub"), place.read("ca.pub").trim());
    let list = place.write("revoked", text.as_bytes());
    for (name, certificate, expected) in [
        ("a", None, false),
        ("e", None, true),
        ("ca", None, true),
        ("a", Some(&one), true),
        ("b", Some(&two), false),
    ] {
        assert_eq!(
            revokes(&list, &place.key(name), certificate),
            expected,
            "{name} {}",
            certificate.is_some()
        );
    }
    // In a list, a certificate means the key in it.
    let list = place.write("revoked", certified.as_bytes());
    assert!(revokes(&list, &place.key("b"), None));
    assert!(!revokes(&place.write("revoked", b""), &place.key("b"), None));
    assert!(!revokes(Path::new("/dev/null"), &place.key("b"), None));
    // Any of several files is enough, and it is the one that is named.
    let both = [place.write("none", b"# nothing\n"), place.write("some", certified.as_bytes())];
    assert_eq!(Revoked::load(&both).unwrap().by(&place.key("b"), None), Some(both[1].as_path()));
}

#[test]
fn what_cannot_be_read_or_understood_is_an_error() {
    let place = Place::new();
    let error = |path: &Path| Revoked::load(&[path.to_owned()]).unwrap_err();
    assert!(matches!(error(&place.0.path().join("missing")), Error::Missing { .. }));
    assert!(matches!(error(place.0.path()), Error::File { .. }));
    let bad = place.write("bad", format!("{}no key\n", place.read("a.pub")).as_bytes());
    assert_eq!(
        error(&bad).to_string(),
        format!(
            "`{}` line 2 is no public key, so that nothing in it can be trusted to be all",
            bad.display()
        )
    );
    let list = place.list(&format!("serial: 7\nid: x\nkey: {}", place.read("a.pub")), &["-s", "ca.pub"]);
    let good = fs::read(list).unwrap();
    Krl::parse(&good).unwrap();
    for length in 0..good.len() {
        // A list that ends where a section does is a shorter list; `ssh-keygen` agrees, the header apart.
        let cut = place.write("krl", &good[..length]);
        let theirs = place.keygen(&["-Q", "-f", cut.to_str().unwrap()]);
        let krl = krl::is_krl(&good[..length]);
        assert_eq!(krl && Revoked::load(&[cut]).is_ok(), theirs && krl, "{length} of {}", good.len());
    }
    let section = |kind: u8, data: &[u8]| {
        let mut list = good.clone();
        list.push(kind);
        list.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        list.extend(data);
        Krl::parse(&list)
    };
    let extension = |critical: u8| [&[0, 0, 0, 1, b'x', critical, 0, 0, 0, 1, b'y'][..]].concat();
    assert_eq!(section(255, &extension(0)).err(), None);
    assert_eq!(section(255, &extension(1)).err(), Some("it wants an extension that is not known here"));
    assert_eq!(section(9, b"").err(), Some("it has a section of a kind that is not known here"));
    assert_eq!(section(3, &[0, 0, 0, 1, 0]).err(), Some("it has a hash of the wrong length"));
    let mut newer = good.clone();
    newer[11] = 2;
    assert_eq!(Krl::parse(&newer).err(), Some("its format is newer than what is known here"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_list_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut list = b"SSHKRL\n\0\0\0\0\x01".to_vec();
        list.extend([0; 32]);
        list.extend(bytes);
        drop(Krl::parse(&list));
        drop(keys(&list));
    }
}
