//! Credentials of SSO roles that somebody on this machine fetched a moment ago, so that a program that is started for
//! each of them (`credential_process`) need not ask AWS each time.
//!
//! There are two places. What `broker credentials` fetched lies in a file system in memory that only its user can look
//! into (`$XDG_RUNTIME_DIR`), because credentials of a role outlive the sign-in and have no business on a disk. What the
//! AWS CLI fetched lies in `~/.aws/cli/cache`; that is read, and never written. Both are as good as gone when there is
//! no token of the session any more: whoever signed out, with whichever tool, gets nothing from here.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{
    client::Endpoints,
    credentials::Credentials,
    profile::{SessionKey, SsoRole, SsoSession},
    time,
    token::{self, TokenFile},
};
use crate::{creds::secret::RoleCredentials, names::AccountId, private_fs};

/// How the AWS CLI tells the credentials of SSO roles from others in its directory.
const PROVIDER: &str = "sso";

/// Where kept credentials lie.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    home: PathBuf,
    /// A directory in memory of this user alone; `None` where there is none, and then nothing is kept.
    memory: Option<PathBuf>,
}

impl Kept {
    /// Looks for a place in memory among `runtime`, which need not exist.
    pub(crate) fn new(home: &Path, runtime: &[PathBuf]) -> Self {
        let memory = runtime.iter().find(|directory| is_private_memory(directory));
        Self { home: home.to_owned(), memory: memory.map(|directory| directory.join("broker/roles")) }
    }

    /// Returns the credentials of `role` that live longest. Blocks for three small reads.
    pub(crate) fn find(
        &self,
        role: &SsoRole,
        endpoints: &Endpoints,
        now: SystemTime,
    ) -> Option<RoleCredentials> {
        TokenFile::new(&self.home, &role.session).stamp()?;
        let paths = [self.ours(role, endpoints), Some(self.of_the_aws_cli(role))];
        let found = paths.into_iter().flatten().filter_map(|path| read(&path, role, now));
        found.max_by_key(|credentials| credentials.expires_at)
    }

    /// Keeps credentials for the next process. Blocks for one small write.
    pub(crate) fn keep(
        &self,
        role: &SsoRole,
        endpoints: &Endpoints,
        credentials: &RoleCredentials,
    ) -> Result<(), private_fs::Error> {
        let Some(path) = self.ours(role, endpoints) else { return Ok(()) };
        private_fs::write(&path, &to_json(credentials))
    }

    /// Removes what is kept for a session: all of ours, and what the AWS CLI has for `roles`.
    pub(crate) fn forget(&self, session: &SsoSession, roles: &[SsoRole]) -> Result<(), private_fs::Error> {
        if let Some(directory) = self.of_session(session)
            && let Err(source) = fs::remove_dir_all(&directory)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(private_fs::Error::Io { verb: "remove", path: directory, source });
        }
        roles.iter().try_for_each(|role| private_fs::remove(&self.of_the_aws_cli(role)))
    }

    fn of_session(&self, session: &SsoSession) -> Option<PathBuf> {
        let key = format!("{}\n{}", self.home.display(), session.cache_key());
        Some(self.memory.as_ref()?.join(token::file_stem(&key)))
    }

    fn ours(&self, role: &SsoRole, endpoints: &Endpoints) -> Option<PathBuf> {
        let SsoRole { session, role: name } = role;
        // A session that was pointed at another Identity Center has other roles of the same name.
        let portal = endpoints.portal(&session.region);
        let key = format!("{name}\n{}\n{portal}", session.start_url.as_str());
        Some(self.of_session(session)?.join(token::file_stem(&key)).with_extension("json"))
    }

    fn of_the_aws_cli(&self, role: &SsoRole) -> PathBuf {
        let stem = token::file_stem(&aws_cli_key(role));
        self.home.join(".aws/cli/cache").join(stem).with_extension("json")
    }
}

/// The text whose SHA-1 names the AWS CLI's file: JSON as Python writes it, without spaces and in the order of names.
fn aws_cli_key(role: &SsoRole) -> String {
    let SsoRole { session, role } = role;
    let (kind, text) = match &session.name {
        SessionKey::Session(name) => ("sessionName", name.as_str()),
        SessionKey::StartUrl => ("startUrl", session.start_url.as_str()),
    };
    let text = token::python_json(text);
    format!(r#"{{"accountId":"{}","roleName":"{}","{kind}":{text}}}"#, role.account, role.name)
}

fn read(path: &Path, role: &SsoRole, now: SystemTime) -> Option<RoleCredentials> {
    let bytes = match private_fs::read(path) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::debug!(%error, "ignored kept role credentials");
            return None;
        }
    };
    let found = parse(&bytes, now);
    // The AWS CLI writes in place, so that half a file is nothing to wonder at.
    found.filter(|found| found.account.as_ref().is_none_or(|account| *account == role.role.account))
}

fn parse(bytes: &[u8], now: SystemTime) -> Option<RoleCredentials> {
    let mut map: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    if map.get("ProviderType")?.as_str()? != PROVIDER {
        return None;
    }
    let Value::Object(mut credentials) = map.remove("Credentials")? else { return None };
    let credentials = Credentials::from_json(&mut credentials, "SessionToken", now).ok()?;
    credentials.expires_at?;
    credentials.into_role()
}

/// The AWS CLI's form, so that there is one to read.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct File<'a> {
    provider_type: &'static str,
    credentials: Written<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Written<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    session_token: &'a str,
    expiration: String,
    account_id: Option<&'a str>,
}

fn to_json(credentials: &RoleCredentials) -> Zeroizing<Vec<u8>> {
    let secret = credentials.secret_access_key.expose_secret();
    let token = credentials.session_token.expose_secret();
    // Large enough to not grow, because growing leaves unwiped copies behind; no character of a key is escaped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024 + secret.len() + token.len()));
    let file = File {
        provider_type: PROVIDER,
        credentials: Written {
            access_key_id: &credentials.access_key_id,
            secret_access_key: secret,
            session_token: token,
            expiration: time::format(credentials.expires_at),
            account_id: credentials.account.as_ref().map(AccountId::as_str),
        },
    };
    // Writing to memory cannot fail.
    drop(serde_json::to_writer(&mut *bytes, &file));
    bytes
}

/// Whether it is a directory that nobody else can look into, on a file system in memory.
#[cfg(target_os = "linux")]
fn is_private_memory(directory: &Path) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let Ok(metadata) = fs::symlink_metadata(directory) else { return false };
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let private = metadata.is_dir() && ours && metadata.mode() & 0o077 == 0;
    private
        && rustix::fs::statfs(directory)
            .is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

/// Elsewhere no directory is known to lie in memory.
#[cfg(not(target_os = "linux"))]
fn is_private_memory(_directory: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use super::*;
    use crate::names::Role;

    const NOW: u64 = 1_800_000_000;

    fn role(name: &str) -> SsoRole {
        let session = token::tests::session();
        let role = Role { account: "111122223333".parse().unwrap(), name: name.parse().unwrap() };
        SsoRole { session, role }
    }

    fn credentials(key: &str, life: u64) -> RoleCredentials {
        RoleCredentials {
            access_key_id: key.into(),
            secret_access_key: "canary-secret".to_owned().into(),
            session_token: "canary-session".to_owned().into(),
            issued_at: time::from_epoch(NOW),
            expires_at: time::from_epoch(NOW + life),
            account: Some("111122223333".parse().unwrap()),
            role_arn: None,
        }
    }

    /// A home with a token, and a place for what is kept, wherever the tests run.
    struct Place {
        home: tempfile::TempDir,
        kept: Kept,
        endpoints: Endpoints,
    }

    impl Place {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let kept = Kept { home: home.path().to_owned(), memory: Some(home.path().join("memory")) };
            let place = Self { home, kept, endpoints: Endpoints::default() };
            place.sign_in();
            place
        }

        fn sign_in(&self) {
            let stem = token::file_stem(token::tests::session().cache_key());
            let path = token::directory(self.home.path()).join(stem).with_extension("json");
            private_fs::write(&path, b"{}").unwrap();
        }

        fn find(&self, role: &SsoRole) -> Option<String> {
            let found = self.kept.find(role, &self.endpoints, time::from_epoch(NOW))?;
            assert!(found.expires_at > time::from_epoch(NOW));
            Some(found.access_key_id)
        }

        fn keep(&self, role: &SsoRole, key: &str, life: u64) {
            self.kept.keep(role, &self.endpoints, &credentials(key, life)).unwrap();
        }

        fn write_as_the_aws_cli(&self, role: &SsoRole, text: &str) {
            private_fs::write(&self.kept.of_the_aws_cli(role), text.as_bytes()).unwrap();
        }
    }

    #[test]
    fn the_aws_clis_file_is_named_as_it_names_it() {
        // hashlib.sha1(json.dumps({...}, sort_keys=True, separators=(',', ':')).encode()).hexdigest()
        let kept = Kept { home: "/h".into(), memory: None };
        let mut role = role("Dev");
        assert_eq!(
            aws_cli_key(&role),
            r#"{"accountId":"111122223333","roleName":"Dev","sessionName":"corp"}"#
        );
        let path = "/h/.aws/cli/cache/20985b56d713cfd135648cadc68a6115ca80d9a5.json";
        assert_eq!(kept.of_the_aws_cli(&role), Path::new(path));
        role.session.name = SessionKey::StartUrl;
        let key =
            r#"{"accountId":"111122223333","roleName":"Dev","startUrl":"https://corp.awsapps.com/start"}"#;
        assert_eq!(aws_cli_key(&role), key);
        assert_eq!(
            kept.of_the_aws_cli(&role),
            Path::new("/h/.aws/cli/cache/ed0df17d2171efb64e41540b485b3004238a633e.json")
        );
    }

    #[test]
    fn what_is_kept_is_found_by_its_role_until_it_ends_or_somebody_signs_out() {
        let place = Place::new();
        let (dev, audit) = (role("Dev"), role("Audit"));
        assert_eq!(place.find(&dev), None);
        place.keep(&dev, "ASIADEV", 3600);
        assert_eq!(place.find(&dev).as_deref(), Some("ASIADEV"));
        assert_eq!(place.find(&audit), None);
        place.keep(&dev, "ASIAENDED", 0);
        assert_eq!(place.find(&dev), None);
        place.keep(&dev, "ASIADEV", 3600);

        let file = place.kept.ours(&dev, &place.endpoints).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().mode() & 0o777, 0o700);

        // Another Identity Center, and an emulator of it, have other roles of the same name.
        let mut elsewhere = dev.clone();
        elsewhere.session.start_url = "https://other.awsapps.com/start".parse().unwrap();
        assert_eq!(place.find(&elsewhere), None);
        let emulator =
            Endpoints::new(|name| (name == "AWS_ENDPOINT_URL_SSO").then(|| "http://127.0.0.1:9".to_owned()));
        assert!(place.kept.find(&dev, &emulator.unwrap(), time::from_epoch(NOW)).is_none());

        // Whoever signs out with another tool removes the token.
        TokenFile::new(place.home.path(), &dev.session).remove().unwrap();
        assert_eq!(place.find(&dev), None);
        place.sign_in();
        assert_eq!(place.find(&dev).as_deref(), Some("ASIADEV"));
    }

    #[test]
    fn what_the_aws_cli_has_is_used_if_it_lives_longer() {
        let place = Place::new();
        let dev = role("Dev");
        let text = |key: &str, until: &str| {
            format!(
                r#"{{"ProviderType": "sso", "Credentials": {{"AccessKeyId": "{key}", "SecretAccessKey": "s",
                "SessionToken": "t", "Expiration": "{until}", "AccountId": "111122223333"}}}}"#
            )
        };
        place.write_as_the_aws_cli(&dev, &text("ASIACLI", "2027-01-15T09:00:00Z"));
        assert_eq!(place.find(&dev).as_deref(), Some("ASIACLI"));
        place.keep(&dev, "ASIAOURS", 3601);
        assert_eq!(place.find(&dev).as_deref(), Some("ASIAOURS"));
        place.keep(&dev, "ASIAOURS", 3599);
        assert_eq!(place.find(&dev).as_deref(), Some("ASIACLI"));

        for bad in [
            String::new(),
            text("ASIACLI", "2027-01-15T09:00:00Z")[..80].to_owned(),
            text("ASIACLI", "2027-01-15T07:59:59Z"),
            text("ASIACLI", "tomorrow"),
            text("ASIA\\nCLI", "2027-01-15T09:00:00Z"),
            text("ASIACLI", "2027-01-15T09:00:00Z").replace("111122223333", "444455556666"),
            text("ASIACLI", "2027-01-15T09:00:00Z").replace("\"sso\"", "\"assume-role\""),
            text("ASIACLI", "2027-01-15T09:00:00Z").replace("\"t\"", "null"),
            text("ASIACLI", "2027-01-15T09:00:00Z").replace("\"Expiration\"", "\"Ends\""),
            "[]".to_owned(),
            r#"{"ProviderType": "sso", "Credentials": []}"#.to_owned(),
        ] {
            place.write_as_the_aws_cli(&dev, &bad);
            assert_eq!(place.find(&dev).as_deref(), Some("ASIAOURS"), "{bad}");
        }
        place.write_as_the_aws_cli(&dev, &text("ASIACLI", "2027-01-15T09:00:00Z"));
        let path = place.kept.of_the_aws_cli(&dev);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(place.find(&dev).as_deref(), Some("ASIAOURS"), "others can read it");
    }

    #[test]
    fn a_session_is_forgotten_whole_and_alone() {
        let place = Place::new();
        let (dev, audit) = (role("Dev"), role("Audit"));
        let mut other = role("Dev");
        other.session.name = SessionKey::Session("other".into());
        for role in [&dev, &audit, &other] {
            place.keep(role, "ASIAKEPT", 3600);
            place.write_as_the_aws_cli(role, "{}");
        }
        place.kept.forget(&dev.session, &[dev.clone(), audit.clone()]).unwrap();
        for (role, there) in [(&dev, false), (&audit, false), (&other, true)] {
            assert_eq!(place.kept.ours(role, &place.endpoints).unwrap().exists(), there);
            assert_eq!(place.kept.of_the_aws_cli(role).exists(), there);
        }
        place.kept.forget(&token::tests::session(), &[dev, audit]).unwrap();
    }

    #[test]
    fn nothing_is_kept_on_a_disk_or_where_others_can_look() {
        let place = Place::new();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mode = |mode| fs::set_permissions(memory.path(), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o700);
        let fine = |directory: &Path| Kept::new(place.home.path(), &[directory.to_owned()]).memory.is_some();
        assert!(fine(memory.path()));
        assert!(!fine(&memory.path().join("missing")));
        // Ours alone, but not in memory as files are.
        assert!(!fine(Path::new("/proc/self/fd")));
        let link = memory.path().join("link");
        std::os::unix::fs::symlink(memory.path(), &link).unwrap();
        assert!(!fine(&link));
        mode(0o750);
        assert!(!fine(memory.path()));

        let nowhere = Kept::new(place.home.path(), &[]);
        nowhere.keep(&role("Dev"), &place.endpoints, &credentials("ASIADEV", 3600)).unwrap();
        assert!(nowhere.find(&role("Dev"), &place.endpoints, time::from_epoch(NOW)).is_none());
        nowhere.forget(&token::tests::session(), &[]).unwrap();
    }

    #[test]
    fn what_is_kept_lives_to_the_second_and_not_longer() {
        let place = Place::new();
        let dev = role("Dev");
        place.keep(&dev, "ASIADEV", 60);
        let at = |seconds| time::from_epoch(NOW) + Duration::from_secs(seconds);
        assert!(place.kept.find(&dev, &place.endpoints, at(59)).is_some());
        assert!(place.kept.find(&dev, &place.endpoints, at(60)).is_none());
    }
}
