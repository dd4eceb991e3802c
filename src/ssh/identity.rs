//! The keys that a login may try, in OpenSSH's order: a key of the environment, which is none of OpenSSH's, then
//! certificates, keys of the agent that the configuration names, the agent's other keys, then files.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use russh::keys::{Algorithm, Certificate, PrivateKey, PublicKey, agent::AgentIdentity};
use rustix::fs::{Mode, OFlags};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::{
    algorithms::{self, Algorithms},
    target::{EnvironmentKey, Identities, Unlocked},
};
use crate::printable::one_line;

/// A private key file is a few KB; 4096-bit RSA is 3.4.
const LARGEST_KEY: u64 = 64 * 1024;

/// One key to try.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) public: Option<PublicKey>,
    pub(super) certificate: Option<Certificate>,
    pub(super) source: Source,
    comment: String,
}

/// Who signs with it.
#[derive(Debug)]
pub(super) enum Source {
    /// The agent; `plain` where it holds the key of the certificate, and the certificate is from a file.
    Agent { plain: bool },
    /// A variable of the environment.
    Environment { name: String, private: Arc<PrivateKey> },
    /// A file; without `private` it is encrypted, and `text` is what a passphrase opens.
    File { path: PathBuf, private: Option<Arc<PrivateKey>>, text: Arc<SecretString> },
}

impl Candidate {
    /// Returns what people call it; safe to print.
    pub(super) fn name(&self) -> String {
        match &self.source {
            Source::Agent { .. } => format!("`{}` of the agent", one_line(&self.comment)),
            Source::Environment { name, .. } => format!("of `${}`", one_line(name)),
            Source::File { path, .. } => format!("`{}`", one_line(&path.display().to_string())),
        }
    }

    /// Returns what people call it when it is tried with its certificate or without.
    pub(super) fn title(&self) -> String {
        format!("{} {}", if self.certificate.is_some() { "certificate" } else { "key" }, self.name())
    }

    /// Whether the configuration lets us log in with keys of this type. One of an unknown type is asked for later.
    pub(super) fn is_taken(&self, algorithms: &Algorithms) -> bool {
        self.public
            .as_ref()
            .is_none_or(|key| algorithms.takes_key(&key.algorithm(), self.certificate.is_some()))
    }

    /// Whether it is of RSA and has fewer bits than are `required`. One of an unknown type is asked for later.
    pub(super) fn is_short(&self, required: u32) -> bool {
        self.public.as_ref().and_then(algorithms::rsa_bits).is_some_and(|bits| bits < required)
    }

    pub(super) fn is_rsa(&self) -> bool {
        self.public.as_ref().is_some_and(|key| key.algorithm().is_rsa())
    }

    /// Whether it is on a token that waits for a person's touch.
    pub(super) fn is_security_key(&self) -> bool {
        self.public.as_ref().is_some_and(|key| key.algorithm().as_str().starts_with("sk-"))
    }

    fn of_agent(identity: AgentIdentity) -> Self {
        let public = Some(identity.public_key().into_owned());
        let comment = identity.comment().to_owned();
        let certificate = match identity {
            AgentIdentity::Certificate { certificate, .. } => Some(certificate),
            AgentIdentity::PublicKey { .. } => None,
        };
        Self { public, certificate, source: Source::Agent { plain: false }, comment }
    }
}

/// Returns the keys to try, and what the person should know about files that cannot be.
pub(super) async fn candidates(
    identities: &Identities,
    agent: Vec<AgentIdentity>,
) -> (Vec<Candidate>, Vec<String>) {
    let Identities { files, explicit, certificates, environment, unlocked, only, .. } = identities.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut notes = Vec::new();
        let read = |path: &PathBuf| KeyFile::read(path, explicit, &unlocked, &mut notes);
        let files = files.iter().map(read).collect::<Vec<_>>();
        let certificates: Vec<_> =
            certificates.iter().filter_map(|path| certificate_file(path, &mut notes)).collect();
        let ordered = in_order(files, certificates, agent, only, &mut notes);
        let first = environment.and_then(|key| environment_key(&key, &mut notes));
        (first.into_iter().chain(ordered).collect(), notes)
    });
    reading.await.unwrap_or_default()
}

/// Reads a key that has no file, and so nobody who could be asked for its passphrase.
fn environment_key(key: &EnvironmentKey, notes: &mut Vec<String>) -> Option<Candidate> {
    use secrecy::ExposeSecret as _;
    let name = key.name.clone();
    match russh::keys::decode_secret_key(key.text.expose_secret(), None) {
        Ok(private) => Some(Candidate {
            public: Some(private.public_key().clone()),
            certificate: None,
            source: Source::Environment { name, private: Arc::new(private) },
            comment: String::new(),
        }),
        Err(_) => {
            let shown = one_line(&name);
            notes.push(format!("the variable `{shown}` holds no private key without a passphrase"));
            None
        }
    }
}

/// Reads a `CertificateFile`.
fn certificate_file(path: &Path, notes: &mut Vec<String>) -> Option<(PathBuf, Certificate)> {
    let shown = one_line(&path.display().to_string());
    match read_small(path) {
        Ok((_, text)) => match Certificate::from_openssh(text.trim()) {
            Ok(certificate) => return Some((path.to_owned(), certificate)),
            Err(_) => notes.push(format!("the file `{shown}` holds no certificate")),
        },
        Err(error) => notes.push(format!("the certificate `{shown}` could not be read: {}", reason(&error))),
    }
    None
}

fn in_order(
    mut files: Vec<KeyFile>,
    certificates: Vec<(PathBuf, Certificate)>,
    agent: Vec<AgentIdentity>,
    only: bool,
    notes: &mut Vec<String>,
) -> Vec<Candidate> {
    let mut agent: Vec<_> = agent.into_iter().map(Candidate::of_agent).collect();
    let beside = files.iter_mut().filter_map(|file| {
        let mut path = file.path.clone().into_os_string();
        path.push("-cert.pub");
        Some((path.into(), file.certificate.take()?))
    });
    let certificates: Vec<(PathBuf, Certificate)> = certificates.into_iter().chain(beside).collect();
    let mut certified: Vec<Candidate> = Vec::new();
    for (path, certificate) in certificates {
        if certified.iter().any(|other| other.certificate.as_ref() == Some(&certificate)) {
            continue;
        }
        let is_its_key = |key: &Option<PublicKey>| {
            key.as_ref().is_some_and(|key| key.key_data() == certificate.public_key())
        };
        let held = agent.iter().find(|key| is_its_key(&key.public));
        let file = files.iter().find(|file| file.text.is_some() && is_its_key(&file.public));
        let candidate = match (held, file) {
            // It is tried with the agent's own copy of it.
            (Some(held), _) if held.certificate.as_ref() == Some(&certificate) => continue,
            (Some(held), _) => Some(Candidate {
                public: held.public.clone(),
                certificate: Some(certificate),
                source: Source::Agent { plain: true },
                comment: path.display().to_string(),
            }),
            (None, Some(file)) => file.candidate(Some(certificate)),
            (None, None) => None,
        };
        if candidate.is_none() {
            let shown = one_line(&path.display().to_string());
            notes.push(format!(
                "the private key of the certificate `{shown}` is neither in a file nor in the agent"
            ));
        }
        certified.extend(candidate);
    }
    // A certificate proves more than the key in it, so it goes first.
    agent.sort_by_key(|key| key.certificate.is_none());
    let mut ordered = certified;
    let mut left = Vec::new();
    for file in files {
        let same = |key: &Candidate| match (&key.public, &file.public) {
            (Some(a), Some(b)) => a.key_data() == b.key_data(),
            _ => false,
        };
        let (held, others): (Vec<_>, Vec<_>) = agent.into_iter().partition(same);
        agent = others;
        if held.is_empty() {
            left.push(file);
        }
        ordered.extend(held);
    }
    if !only {
        ordered.extend(agent);
    }
    ordered.extend(left.iter().filter_map(|file| file.candidate(None)));
    ordered
}

/// Words an error of the operating system without its number.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => one_line(&error.to_string()),
    }
}

/// What is in and beside one `IdentityFile`.
#[derive(Debug, Default)]
struct KeyFile {
    path: PathBuf,
    public: Option<PublicKey>,
    certificate: Option<Certificate>,
    private: Option<Arc<PrivateKey>>,
    /// The text of the private key, where there is one that may be used.
    text: Option<Arc<SecretString>>,
}

impl KeyFile {
    fn read(path: &Path, explicit: bool, unlocked: &Unlocked, notes: &mut Vec<String>) -> Self {
        let beside = |suffix: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            read_small(Path::new(&name)).ok().map(|(_, text)| text)
        };
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        file.public = beside(".pub").and_then(|text| PublicKey::from_openssh(text.trim()).ok());
        file.certificate = beside("-cert.pub").and_then(|text| Certificate::from_openssh(text.trim()).ok());
        let shown = one_line(&path.display().to_string());
        let text = match read_small(path) {
            Ok((mode, text)) if mode & 0o077 == 0 => text,
            Ok((_, text)) if PublicKey::from_openssh(text.trim()).is_ok() => text,
            Ok((mode, _)) => {
                notes.push(format!(
                    "the key `{shown}` is not used, because others can read it (mode {mode:04o}); run `chmod go= '{shown}'`"
                ));
                return file;
            }
            Err(error) => {
                // A default that does not exist is not worth a word, nor is a key that only the agent holds.
                let missing = error.kind() == io::ErrorKind::NotFound;
                if !(missing && (!explicit || file.public.is_some())) {
                    notes.push(format!("the key `{shown}` could not be read: {}", reason(&error)));
                }
                return file;
            }
        };
        if let Ok(public) = PublicKey::from_openssh(text.trim()) {
            file.public = Some(public);
            return file;
        }
        match russh::keys::decode_secret_key(&text, None) {
            Ok(key) => {
                file.public = Some(key.public_key().clone());
                file.private = Some(Arc::new(key));
            }
            Err(_) if is_encrypted_too_old(&text) => {
                notes.push(format!(
                    "the passphrase of the key `{shown}` is in an old format that is not read; \
                     run `ssh-keygen -p -f '{shown}'`, which writes today's"
                ));
                return file;
            }
            Err(_) if is_encrypted(&text) => file.private = unlocked.find(path),
            Err(error) => match PrivateKey::from_openssh(text.as_bytes()) {
                Ok(key) if key.is_encrypted() => {
                    file.public = Some(key.public_key().clone());
                    file.private = unlocked.find(path);
                }
                _ => {
                    notes.push(format!(
                        "the file `{shown}` holds no key that can be used: {}",
                        one_line(&error.to_string())
                    ));
                    return file;
                }
            },
        }
        let needs_device = |key: &PublicKey| {
            matches!(key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256)
        };
        if file.public.as_ref().is_some_and(needs_device) {
            // Only the agent can talk to the device.
            if explicit {
                notes.push(format!(
                    "the key `{shown}` is on a security key: add it to the agent with `ssh-add`"
                ));
            }
            file.private = None;
            return file;
        }
        file.text = Some(Arc::new(SecretString::from(text.as_str())));
        file
    }

    /// Returns the key to try with `certificate`, or as it is.
    fn candidate(&self, certificate: Option<Certificate>) -> Option<Candidate> {
        let text = Arc::clone(self.text.as_ref()?);
        let source = Source::File { path: self.path.clone(), private: self.private.clone(), text };
        Some(Candidate { public: self.public.clone(), certificate, source, comment: String::new() })
    }
}

/// Whether a key that is not in OpenSSH's own format wants a passphrase: PEM, PKCS#8 and PuTTY say so in clear.
fn is_encrypted(text: &str) -> bool {
    let putty = text.trim_start().starts_with("PuTTY-User-Key-File-");
    if putty {
        return text
            .lines()
            .any(|line| line.starts_with("Encryption: ") && line.trim_end() != "Encryption: none");
    }
    // OpenSSH's format says it inside.
    text.contains("ENCRYPTED") && !text.contains("BEGIN OPENSSH PRIVATE KEY")
}

/// Whether it is PEM of an encryption that russh does not read: anything but AES-128 around an RSA key.
fn is_encrypted_too_old(text: &str) -> bool {
    let cipher = text.lines().find_map(|line| line.strip_prefix("DEK-Info: "));
    cipher
        .is_some_and(|cipher| !cipher.starts_with("AES-128-CBC,") || !text.contains("BEGIN RSA PRIVATE KEY"))
}

/// Reads a small regular file; returns its mode too.
fn read_small(path: &Path) -> io::Result<(u32, Zeroizing<String>)> {
    // Non-blocking, or opening a fifo would wait for a writer that may never come.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LARGEST_KEY).read_to_string(&mut text)?;
    // As OpenSSH: who shares somebody else's file with whom is not ours to say, such as a secret mounted for a group.
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    Ok((metadata.mode() & if ours { 0o7777 } else { 0o7700 }, text))
}

#[cfg(test)]
mod tests {
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
        let public =
            |name: &str| PublicKey::from_openssh(&std::fs::read_to_string(path(name)).unwrap()).unwrap();
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
            let key =
                EnvironmentKey { name: "KEY".into(), text: Arc::new(SecretString::from(text.as_str())) };
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
}
