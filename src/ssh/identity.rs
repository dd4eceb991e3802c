//! The keys that a login may try, in OpenSSH's order: keys of the agent that the configuration names, the agent's
//! other keys, then files.

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

use super::target::Identities;
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
    Agent,
    /// A file; without `private` it is encrypted, and `text` is what a passphrase opens.
    File {
        path: PathBuf,
        private: Option<Arc<PrivateKey>>,
        text: Arc<SecretString>,
    },
}

impl Candidate {
    /// Returns what people call it; safe to print.
    pub(super) fn name(&self) -> String {
        match &self.source {
            Source::Agent => format!("`{}` of the agent", one_line(&self.comment)),
            Source::File { path, .. } => format!("`{}`", one_line(&path.display().to_string())),
        }
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
        Self { public, certificate, source: Source::Agent, comment }
    }
}

/// Returns the keys to try, and what the person should know about files that cannot be.
pub(super) async fn candidates(
    identities: &Identities,
    agent: Vec<AgentIdentity>,
) -> (Vec<Candidate>, Vec<String>) {
    let Identities { files, explicit, .. } = identities.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut notes = Vec::new();
        let read = files.iter().map(|path| KeyFile::read(path, explicit, &mut notes)).collect::<Vec<_>>();
        (read, notes)
    });
    let (files, notes) = reading.await.unwrap_or_default();
    (in_order(files, agent, identities.only), notes)
}

fn in_order(files: Vec<KeyFile>, agent: Vec<AgentIdentity>, only: bool) -> Vec<Candidate> {
    let mut agent: Vec<_> = agent.into_iter().map(Candidate::of_agent).collect();
    // A certificate proves more than the key in it, so it goes first.
    agent.sort_by_key(|key| key.certificate.is_none());
    let mut ordered = Vec::new();
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
    for file in left {
        ordered.extend(file.into_candidates());
    }
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
    fn read(path: &Path, explicit: bool, notes: &mut Vec<String>) -> Self {
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
            Err(_) if text.contains("ENCRYPTED") => {}
            Err(error) => match PrivateKey::from_openssh(text.as_bytes()) {
                Ok(key) if key.is_encrypted() => file.public = Some(key.public_key().clone()),
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

    fn into_candidates(self) -> Vec<Candidate> {
        let Some(text) = self.text else { return Vec::new() };
        let candidate = |certificate| Candidate {
            public: self.public.clone(),
            certificate,
            source: Source::File {
                path: self.path.clone(),
                private: self.private.clone(),
                text: Arc::clone(&text),
            },
            comment: String::new(),
        };
        // russh names the wrong algorithm for RSA certificates, which sshd refuses; the bare key may still do.
        let usable = |certificate: &Certificate| !certificate.algorithm().is_rsa();
        let with_certificate = self.certificate.clone().filter(usable).map(|one| candidate(Some(one)));
        with_certificate.into_iter().chain([candidate(None)]).collect()
    }
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
    Ok((metadata.mode() & 0o7777, text))
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
            explicit: false,
            only,
            agent: None,
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
        let identities = Identities { files: vec![path.clone()], explicit: true, only: false, agent: None };
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
        let identities =
            Identities { files: vec![missing, broken], explicit: true, only: false, agent: None };
        let (keys, notes) = candidates(&identities, vec![]).await;
        assert!(keys.is_empty());
        assert!(notes[0].contains("there is no such file"), "{notes:?}");
        assert!(notes[1].contains("holds no key"), "{notes:?}");
    }

    #[tokio::test]
    async fn an_encrypted_key_shows_its_public_half_and_keeps_its_secret() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("id");
        let encrypted = crate::ssh::peer::encrypted_key();
        write(&path, &encrypted, 0o600);
        let identities = Identities { files: vec![path], explicit: true, only: false, agent: None };
        let (keys, notes) = candidates(&identities, vec![]).await;
        assert!(notes.is_empty(), "{notes:?}");
        let Source::File { private: None, text, .. } = &keys[0].source else { panic!("{keys:?}") };
        assert!(keys[0].public.is_some());
        assert_eq!(text.expose_secret(), encrypted);
        assert!(!format!("{keys:?}").contains("OPENSSH PRIVATE KEY"));
    }
}
