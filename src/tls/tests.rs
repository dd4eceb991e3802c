use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, UNIX_EPOCH},
};

use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::clock::Clock;

fn now() -> SystemTime {
    Clock::system().now()
}

fn identity() -> Identity {
    Identity::new(&Wish::Auto, now()).unwrap().0
}

/// A directory with what the real `openssl` makes.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn openssl(&self, arguments: &str) -> Output {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        for entry in std::fs::read_dir(self.0.path()).unwrap() {
            std::fs::set_permissions(entry.unwrap().path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        output
    }

    /// `NAME.pem` and `NAME.key`, signed by itself.
    fn self_signed(&self, name: &str, san: &str, more: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -subj /CN=x \
             -days 30 -addext subjectAltName={san}{more}"
        ));
    }

    fn read(&self, name: &str) -> Result<(Identity, Vec<String>), Error> {
        self.read_at(name, name, now())
    }

    fn read_at(
        &self,
        certificate: &str,
        key: &str,
        now: SystemTime,
    ) -> Result<(Identity, Vec<String>), Error> {
        let certificate = self.path(&format!("{certificate}.pem"));
        Identity::new(&Wish::Own { certificate, key: self.path(&format!("{key}.key")) }, now)
    }
}

const LEAF: &str = " -addext basicConstraints=critical,CA:FALSE";

#[test]
fn openssl_reads_the_certificates_that_were_made() {
    let files = Files::new();
    let material = made::make(now()).unwrap();
    files.write("ca.pem", &material.anchors);
    files.write("leaf.pem", &made::pem(&material.chain[0]));
    let text =
        |name| String::from_utf8(files.openssl(&format!("x509 -in {name} -noout -text")).stdout).unwrap();
    let (ca, leaf) = (text("ca.pem"), text("leaf.pem"));
    for part in
        ["CA:TRUE, pathlen:0", "Name Constraints: critical", "IP:127.0.0.1/255.255.255.255", "DNS:localhost"]
    {
        assert!(ca.contains(part), "{part}: {ca}");
    }
    for part in ["CA:FALSE", "TLS Web Server Authentication", "IP Address:127.0.0.1, DNS:localhost"] {
        assert!(leaf.contains(part), "{part}: {leaf}");
    }
    files.openssl("verify -x509_strict -purpose sslserver -verify_ip 127.0.0.1 -CAfile ca.pem leaf.pem");
    files
        .openssl("verify -x509_strict -purpose sslserver -verify_hostname localhost -CAfile ca.pem leaf.pem");
    let hash = files.openssl("x509 -in ca.pem -noout -subject_hash").stdout;
    assert_eq!(made::HASHED_NAME, format!("{}.0", String::from_utf8(hash).unwrap().trim()));
    // Two tunnels have nothing in common but the names.
    let other = made::make(now()).unwrap();
    files.write("other.pem", &other.anchors);
    let verified = Command::new("openssl")
        .args(["verify", "-CAfile", "other.pem", "leaf.pem"])
        .current_dir(files.0.path())
        .output()
        .unwrap();
    assert!(!verified.status.success());
}

#[test]
fn times_after_2049_are_written_differently() {
    let files = Files::new();
    for (seconds, year) in [(2_500_000_000, "2050"), (4_200_000_000, "2104")] {
        let material = made::make(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        files.write("ca.pem", &material.anchors);
        let dates = String::from_utf8(files.openssl("x509 -in ca.pem -noout -enddate").stdout).unwrap();
        assert!(dates.contains(year), "{dates}");
    }
}

/// What a client that trusts only `roots` gets from a server of `identity` that says hello.
async fn hello(identity: &Identity, roots: &str, name: &str) -> std::io::Result<String> {
    use rustls::pki_types::pem::PemObject as _;

    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let client = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let (ours, theirs) = tokio::io::duplex(1 << 14);
    let server = async move {
        let mut stream = identity.accept(ours);
        drop(stream.write_all(b"hello").await);
        drop(stream.shutdown().await);
    };
    let client = async {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, theirs).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    };
    tokio::join!(server, client).1
}

#[tokio::test]
async fn only_who_trusts_our_ca_and_asks_for_loopback_hears_us() {
    let (ours, other) = (identity(), identity());
    assert_eq!(hello(&ours, ours.anchors(), "127.0.0.1").await.unwrap(), "hello");
    assert_eq!(hello(&ours, ours.anchors(), "localhost").await.unwrap(), "hello");
    assert_eq!(*ours.refused().borrow(), Refused::default());
    hello(&ours, ours.anchors(), "broker.corp.example").await.unwrap_err();
    assert!(hello(&ours, other.anchors(), "127.0.0.1").await.is_err());
    assert_eq!(*ours.refused().borrow(), Refused { distrust: true, plain: false });
}

#[tokio::test]
async fn our_own_client_speaks_with_nobody_else() {
    let (ours, other) = (identity(), identity());
    for (server, works) in [(&ours, true), (&other, false)] {
        let (near, far) = tokio::io::duplex(1 << 14);
        let serve = async {
            let mut said = Vec::new();
            let mut stream = server.accept(far);
            stream.read_to_end(&mut said).await.map(|_| said)
        };
        let ask = async {
            let mut stream = ours.connect(near).await?;
            stream.write_all(b"nonce").await?;
            stream.shutdown().await
        };
        let (said, asked) = tokio::join!(serve, ask);
        assert_eq!((said.is_ok_and(|said| said == b"nonce"), asked.is_ok()), (works, works));
    }
}

#[tokio::test]
async fn what_is_no_tls_gets_no_word_of_ours() {
    let ours = identity();
    for said in [
        &b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer x\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff",
        &[0; 4096],
    ] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut reader, mut writer) = tokio::io::split(near);
        writer.write_all(said).await.unwrap();
        writer.shutdown().await.unwrap();
        let mut stream = ours.accept(far);
        let mut heard = [0; 16];
        assert!(stream.read(&mut heard).await.is_err());
        assert!(stream.write(b"secret").await.is_err(), "nothing is said in the clear");
        stream.shutdown().await.unwrap();
        drop(stream);
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).await.unwrap();
        // An alert (21) of TLS, or nothing.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{answer:?}");
    }
    assert_eq!(*ours.refused().borrow(), Refused { distrust: false, plain: true });
}

#[tokio::test]
async fn endless_handshakes_are_not_kept_in_memory() {
    let ours = identity();
    let (near, far) = tokio::io::duplex(1 << 14);
    // A hello that announces more than any has, in records as large as they may be.
    let flood = async move {
        let mut near = near;
        let mut sent = 0usize;
        let mut record = vec![22, 3, 1, 0x3f, 0xff];
        record.extend([1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x3fff, 0);
        while near.write_all(&record).await.is_ok() {
            sent += record.len();
        }
        sent
    };
    let refuse = async move {
        let mut stream = ours.accept(far);
        assert!(stream.read(&mut [0; 16]).await.is_err());
    };
    let (sent, ()) = tokio::join!(flood, refuse);
    assert!(sent < 256 * 1024, "{sent} bytes were taken");
}

#[test]
fn a_certificate_of_the_users_gives_the_url_its_name() {
    let files = Files::new();
    for (name, san, host, looked_up) in [
        ("ip", "DNS:broker.corp.example,IP:127.0.0.1", "127.0.0.1", None),
        ("local", "DNS:a.corp.example,DNS:localhost", "localhost", None),
        (
            "named",
            "DNS:*.corp.example,DNS:Broker.corp.example",
            "broker.corp.example",
            Some("broker.corp.example"),
        ),
    ] {
        files.self_signed(name, san, LEAF);
        let (identity, warnings) = files.read(name).unwrap();
        assert_eq!((identity.host(), identity.name()), (host, looked_up), "{name}");
        assert_eq!((warnings, identity.hashed_name()), (Vec::new(), None), "{name}");
    }
    files.self_signed("ca", "IP:127.0.0.1", "");
    let (_, warnings) = files.read("ca").unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("CA certificate"), "{warnings:?}");
    let (_, warnings) = files.read_at("ip", "ip", now() + Duration::from_secs(25 * 24 * 3600)).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("expires on 20"), "{warnings:?}");
}

#[test]
fn what_cannot_work_is_refused_with_the_way_out() {
    let files = Files::new();
    files.self_signed("good", "IP:127.0.0.1", LEAF);
    files.self_signed("wild", "DNS:*.corp.example", LEAF);
    files.self_signed("client", "IP:127.0.0.1", &format!("{LEAF} -addext extendedKeyUsage=clientAuth"));
    files.openssl("ec -in good.key -aes256 -passout pass:x -out traditional.key");
    files.openssl("pkcs8 -topk8 -in good.key -passout pass:x -out locked.key");
    files.write("empty.pem", "nothing\n");
    files.write("empty.key", "nothing\n");
    std::fs::copy(files.path("good.key"), files.path("open.key")).unwrap();
    std::fs::set_permissions(files.path("open.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    for (certificate, key, at, said, hint) in [
        ("good", "wild", now(), "does not belong to the first certificate", "--tls auto"),
        ("good", "good", now() + days(31), "expired on 20", "renew it"),
        ("good", "good", now() - days(2), "is not valid before 20", "clock"),
        ("wild", "wild", now(), "is for *.corp.example, none of which", "subjectAltName"),
        ("client", "client", now(), "not usable for a server", "serverAuth"),
        ("good", "locked", now(), "is encrypted", "openssl pkey"),
        ("good", "traditional", now(), "is encrypted", "openssl pkey"),
        ("empty", "good", now(), "no certificate in PEM form", "--tls CERT,KEY"),
        ("good", "empty", now(), "no private key in PEM form", "--tls CERT,KEY"),
        ("nowhere", "good", now(), "there is no file", "--tls CERT,KEY"),
        ("good", "open", now(), "could not read", "chmod go="),
    ] {
        let error = files.read_at(certificate, key, at).unwrap_err();
        let told = error.to_string();
        assert!(told.contains(said), "{certificate}, {key}: {told}");
        assert!(
            error.hint().is_some_and(|told| told.contains(hint)),
            "{certificate}, {key}: {:?}",
            error.hint()
        );
    }
}

#[test]
fn a_chain_must_lead_from_one_certificate_to_the_next() {
    let files = Files::new();
    files.openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem -subj /CN=root -days 30",
    );
    files.openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf");
    files.write("extensions", "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n");
    files.openssl(
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -out leaf.pem -days 20 -extfile extensions",
    );
    files.self_signed("stranger", "IP:127.0.0.1", "");
    let text = |name: &str| std::fs::read_to_string(files.path(name)).unwrap();
    files.write("chain.pem", &format!("{}{}", text("leaf.pem"), text("root.pem")));
    files.write("broken.pem", &format!("{}{}", text("leaf.pem"), text("stranger.pem")));
    for (certificate, works) in [("leaf", true), ("chain", true), ("broken", false)] {
        let read = files.read_at(certificate, "leaf", now());
        assert_eq!(read.is_ok(), works, "{certificate}: {:?}", read.err());
    }
    // In the wrong order the key is not the first one's.
    files.write("turned.pem", &format!("{}{}", text("root.pem"), text("leaf.pem")));
    files.read_at("turned", "leaf", now()).unwrap_err();
}

#[test]
fn a_symlink_to_a_key_is_followed() {
    let files = Files::new();
    files.self_signed("good", "IP:127.0.0.1", LEAF);
    std::os::unix::fs::symlink("good.key", files.path("link.key")).unwrap();
    files.read_at("good", "link", now()).unwrap();
    assert!(!format!("{:?}", identity()).contains("PRIVATE"));
}
