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
        let devices: Vec<_> = files.iter().filter(|file| file.on_device).map(KeyFile::half).collect();
        let ordered = in_order(files, certificates, agent, only, &mut notes);
        let first = environment.and_then(|key| environment_key(&key, &mut notes));
        let keys: Vec<_> = first.into_iter().chain(ordered).collect();
        // A default is worth a word where it is all that there is.
        if explicit || keys.is_empty() {
            notes.extend(devices.iter().filter_map(|device| device.note(&keys)));
        }
        (keys, notes)
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
    /// It is the handle of a security key.
    on_device: bool,
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
            // Only the agent can talk to the device; whether it does is seen when its keys are.
            file.private = None;
            file.on_device = true;
            return file;
        }
        file.text = Some(Arc::new(SecretString::from(text.as_str())));
        file
    }

    fn half(&self) -> Device {
        Device { path: self.path.clone(), public: self.public.clone() }
    }

    /// Returns the key to try with `certificate`, or as it is.
    fn candidate(&self, certificate: Option<Certificate>) -> Option<Candidate> {
        let text = Arc::clone(self.text.as_ref()?);
        let source = Source::File { path: self.path.clone(), private: self.private.clone(), text };
        Some(Candidate { public: self.public.clone(), certificate, source, comment: String::new() })
    }
}

/// The file of a key that is on a security key.
struct Device {
    path: PathBuf,
    public: Option<PublicKey>,
}

impl Device {
    /// Says what to do where the key is not among those that will be tried.
    fn note(&self, keys: &[Candidate]) -> Option<String> {
        let same = |key: &Candidate| match (&key.public, &self.public) {
            (Some(a), Some(b)) => a.key_data() == b.key_data(),
            _ => false,
        };
        let shown = one_line(&self.path.display().to_string());
        (!keys.iter().any(same)).then(|| {
            format!(
                "the key `{shown}` is on a security key, which only an agent can use: run `ssh-add '{shown}'`"
            )
        })
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
    // As OpenSSH (`sshkey_perm_ok` in authfile.c looks at the mode of the user's own files only): who shares somebody
    // else's file with whom is not ours to say, such as a secret that a cluster mounts for a group.
    let ours = metadata.uid() == rustix::process::getuid().as_raw();
    Ok((metadata.mode() & if ours { 0o7777 } else { 0o7700 }, text))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
