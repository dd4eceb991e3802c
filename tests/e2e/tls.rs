//! HTTPS at the port: which SDK trusts what, and that a squatter without the key gets nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use sandbox::{
    home::{Output, Process, Stream},
    users::User,
};

use crate::{
    matrix::optional,
    support::{ENDS, PATIENCE, Tunnel, World, eventually, sdk},
};

const PORT: u16 = 4144;

/// Real clients that print the ARN of who they are, as lines for a shell of the host.
fn boto3() -> String {
    let program = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";
    format!("{} -c \"{program}\"", sdk("python/bin/python").display())
}

fn aws_cli() -> String {
    let python = sdk("python/bin/python");
    format!("{} -m awscli sts get-caller-identity --query Arn --output text", python.display())
}

fn javascript() -> String {
    let module = sdk("node_modules/@aws-sdk/client-sts");
    format!(
        "/usr/bin/env node -e \"const {{STSClient, GetCallerIdentityCommand}} = require('{}'); \
         new STSClient().send(new GetCallerIdentityCommand()).then(who => console.log(who.Arn))\"",
        module.display()
    )
}

/// The container protocol by hand; prints which kind of answer came.
const CURL: &str = "{ printf 'Authorization: '; cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\" 2>/dev/null || \
                    printf %s \"$AWS_CONTAINER_AUTHORIZATION_TOKEN\"; } | \
                    curl -sS --max-time 10 -H @- \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\" | \
                    grep -o -e '\"AccessKeyId\"' -e '\"message\"'";

/// What the default profile of our configuration runs.
fn credential_process(directory: &Path) -> String {
    let config = std::fs::read_to_string(directory.join("config")).unwrap();
    config.lines().find_map(|line| line.strip_prefix("credential_process = ")).unwrap().to_owned()
}

/// Runs `line` on the host with the tunnel's variables, which `with` may change.
fn run_with(
    world: &mut World,
    environment: &BTreeMap<String, String>,
    line: &str,
    with: &[(&str, Option<&str>)],
) -> Output {
    let mut command = world.on_host("/bin/sh", &["-c", line]);
    command.envs(environment);
    for (name, value) in with {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    world.run(command)
}

/// Without our configuration: only the container variables lead to us.
const VARIABLES_ONLY: [(&str, Option<&str>); 2] =
    [("AWS_CONFIG_FILE", None), ("AWS_SHARED_CREDENTIALS_FILE", None)];

fn said(tunnel: &mut Tunnel, what: &str) {
    tunnel.process.wait_for_line(Stream::Stderr, what, PATIENCE);
}

#[test]
fn every_client_has_the_role_over_tls_through_our_configuration() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", "tcp", "--tls", "auto"]);
    assert_eq!(tunnel.url(), "https://127.0.0.1:4144/");
    let (arn, directory) = (World::arn("Developer"), tunnel.directory());
    for program in [boto3(), aws_cli(), javascript()] {
        let output = run_with(&mut world, &tunnel.environment, &program, &[]);
        assert_eq!((output.stdout().trim(), output.code), (&*arn, Some(0)), "{program}: {output}");
    }
    let named = format!("{} --profile audit", aws_cli());
    let output = run_with(&mut world, &tunnel.environment, &named, &[]);
    assert_eq!(output.stdout().trim(), World::arn("Auditor"), "{output}");

    // With python3 in the place of curl, and with neither.
    let path = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(path.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let process = credential_process(&directory);
    let only = path.path().to_str().unwrap().to_owned();
    let output = run_with(&mut world, &tunnel.environment, &process, &[("PATH", Some(&only))]);
    assert!(output.code != Some(0) && output.stderr().contains("neither curl nor python3"), "{output}");
    std::os::unix::fs::symlink("/usr/bin/python3", path.path().join("python3")).unwrap();
    let line = format!("{process} | /usr/bin/grep -o '\"AccessKeyId\"'");
    let output = run_with(&mut world, &tunnel.environment, &line, &[("PATH", Some(&only))]);
    assert_eq!((output.code, output.stderr()), (Some(0), String::new()), "by python3: {output}");
    let keys: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| std::fs::read(path).is_ok_and(|bytes| bytes.windows(11).any(|w| w == b"PRIVATE KEY")))
        .collect();
    assert_eq!(keys, Vec::<PathBuf>::new(), "a private key lies on the host");
    let output = tunnel.stop(&mut world);
    assert!(!output.stderr().contains("does not trust"), "{output}");
    world.assert_clean();
}

/// The matrix of `docs/tls.md`: what each client does at the port itself.
#[test]
fn who_trusts_a_ca_of_the_tunnel_at_the_port() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let arguments = ["-p", "dev", "--transport", "tcp", "--tls", "auto", "--remote-config", "keep"];
    let mut all = vec!["-N", "--print-env", "sh"];
    all.extend(arguments);
    let mut process = world.laptop.spawn(world.connect(&all));
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "public CAs only", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let exports = process.text(Stream::Stdout);
    let directory =
        exports.split("AUTHORIZATION_TOKEN_FILE='").nth(1).unwrap().split("/token-").next().unwrap();
    let directory = directory.to_owned();
    world.keep_token(&std::fs::read_to_string(format!("{directory}/token-dev")).unwrap());
    let arn = World::arn("Developer");
    let none = [("NODE_EXTRA_CA_CERTS", None), ("SSL_CERT_DIR", None)];
    let bundle = format!("{directory}/ca.pem");
    let replaced = [
        ("AWS_CA_BUNDLE", Some(&*bundle)),
        ("REQUESTS_CA_BUNDLE", Some(&*bundle)),
        ("SSL_CERT_FILE", Some(&*bundle)),
    ];
    let path = |path: &str| sdk(path).display().to_string();
    let cli_v2 = format!("{} sts get-caller-identity --query Arn", path("awscli-v2/aws"));
    let mut rows = vec![
        ("JavaScript", javascript(), &[][..], true),
        ("JavaScript", javascript(), &none[..], false),
        ("boto3", boto3(), &[][..], false),
        ("boto3", boto3(), &replaced[..], false),
        ("AWS CLI v1", aws_cli(), &[][..], false),
        ("AWS CLI v1", aws_cli(), &replaced[..], false),
        ("AWS CLI v2", cli_v2.clone(), &[][..], false),
        ("AWS CLI v2", cli_v2, &replaced[..], false),
        ("curl", CURL.to_owned(), &[][..], true),
        ("curl", CURL.to_owned(), &none[..], false),
        ("Rust", path("rust/debug/whoami"), &[][..], true),
        ("Rust", path("rust/debug/whoami"), &none[..], false),
    ];
    match optional("go/whoami", "go") {
        Some(go) => {
            rows.push(("Go", go.display().to_string(), &[][..], true));
            rows.push(("Go", go.display().to_string(), &none[..], false));
        }
        None => println!("absent: Go, so its rows are not tried"),
    }
    match optional("java/whoami.jar", "mvn javac") {
        Some(jar) => {
            let java = format!("java -XX:TieredStopAtLevel=1 -jar {}", jar.display());
            let told = format!(
                "keytool -importcert -noprompt -file {bundle} -keystore ~/tls.p12 -storepass changeit >&2; \
                 JAVA_TOOL_OPTIONS=\"-Djavax.net.ssl.trustStore=$HOME/tls.p12 \
                 -Djavax.net.ssl.trustStorePassword=changeit\" {java}; rm -f ~/tls.p12"
            );
            rows.push(("Java", java, &[][..], false));
            rows.push(("Java with a trust store", told, &[][..], true));
        }
        None => println!("absent: Java, so its rows are not tried"),
    }
    for (client, line, with, works) in rows {
        let mut command = world.on_host("sh", &["-c", &format!("eval \"$EXPORTS\"; {}{line}", unset(with))]);
        command.env("EXPORTS", &exports);
        command.envs(with.iter().filter_map(|(name, value)| Some((name, (*value)?))));
        let output = world.laptop.run(command);
        let has = output.stdout().contains(&arn) || output.stdout().contains("\"AccessKeyId\"");
        assert_eq!(has, works, "{client} {with:?}: {output}");
    }
    process.wait_for_line(Stream::Stderr, "does not trust the certificate", PATIENCE);
    process.signal(nix::sys::signal::Signal::SIGINT);
    let output = process.wait(ENDS);
    world.heard("broker", &output);
    assert_eq!(output.stderr().matches("does not trust the certificate").count(), 1, "said once: {output}");
    world.assert_clean();
}

fn unset(with: &[(&str, Option<&str>)]) -> String {
    with.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| format!("unset {name}; ")).collect()
}

/// Takes the port of a dead broker and writes down what it is told. Argument: a certificate with its key, or `-`.
const SQUATTER: &str = r#"
import socket, ssl, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 4144))
s.listen(16)
c = None
if sys.argv[1] != "-":
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    c.load_cert_chain(sys.argv[1])
print("squatting", flush=True)
while True:
    p, _ = s.accept()
    p.settimeout(5)
    heard = b""
    try:
        if c:
            p = c.wrap_socket(p, server_side=True)
        while b"\r\n\r\n" not in heard:
            more = p.recv(65536)
            if not more:
                break
            heard += more
        p.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    except OSError as e:
        print("failed:", e, flush=True)
    print("heard", heard, flush=True)
    p.close()
"#;

struct Squatter(Process);

impl Squatter {
    fn start(world: &World, certificate: &str) -> Self {
        let squatter = world.as_user(&User::other(), "/usr/bin/python3", &["-c", SQUATTER, certificate]);
        let mut process = world.laptop.spawn(squatter);
        process.wait_for_line(Stream::Stdout, "squatting", PATIENCE);
        Self(process)
    }

    fn has_heard(&self, what: &str) -> bool {
        self.0.text(Stream::Stdout).contains(what)
    }

    fn connections(&self) -> usize {
        self.0.text(Stream::Stdout).matches("\nheard ").count()
    }

    fn stop(mut self) {
        self.0.signal(nix::sys::signal::Signal::SIGKILL);
        drop(self.0.wait(PATIENCE));
    }
}

#[test]
fn a_squatter_without_the_key_gets_neither_token_nor_trust() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--transport", "tcp", "--tls", "auto"]);
    // What a client that is as unlucky as can be still has after the end: every file of ours.
    let kept = world.sshd.user().home.join("kept");
    let directory = tunnel.directory();
    let copy = format!("rm -rf {0}; cp -r {1} {0}", kept.display(), directory.display());
    assert!(run_with(&mut world, &tunnel.environment, &copy, &[]).code == Some(0));
    let token = tunnel.token();
    let environment: BTreeMap<String, String> = tunnel
        .environment
        .iter()
        .map(|(name, value)| {
            (name.clone(), value.replace(directory.to_str().unwrap(), kept.to_str().unwrap()))
        })
        .collect();
    assert!(environment["NODE_EXTRA_CA_CERTS"].starts_with(kept.to_str().unwrap()));
    tunnel.process.signal(nix::sys::signal::Signal::SIGKILL);
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker", &output);
    world.wait_for_clean_host();

    let theirs = User::other().home.join("squatter.pem");
    let make = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {0} -out {0}.crt -subj '/CN=broker \
         tunnel CA' -addext subjectAltName=IP:127.0.0.1 -days 3 2>/dev/null && cat {0}.crt >> {0} && chmod 644 {0}.crt",
        theirs.display()
    );
    let made = world.laptop.run(world.as_user(&User::other(), "sh", &["-c", &make]));
    assert_eq!(made.code, Some(0), "{made}");
    let theirs = theirs.to_str().unwrap();
    let line = credential_process(&kept).replace(directory.to_str().unwrap(), kept.to_str().unwrap());
    for certificate in [theirs, "-"] {
        let squatter = Squatter::start(&world, certificate);
        for (clients, (client, with)) in [
            (javascript(), &VARIABLES_ONLY[..]),
            (boto3(), &VARIABLES_ONLY[..]),
            (CURL.to_owned(), &VARIABLES_ONLY[..]),
            (line.clone(), &[][..]),
            (format!("PATH=/nowhere:{} {line}", python_only(&kept)), &[][..]),
        ]
        .into_iter()
        .enumerate()
        {
            let output = run_with(&mut world, &environment, &client, with);
            assert!(!output.stdout().contains("Arn") && output.code != Some(0), "{client}: {output}");
            eventually("the squatter has looked", PATIENCE, || {
                let seen = squatter.connections();
                if seen > clients { Ok(()) } else { Err(format!("{seen} connections after {client}")) }
            });
            assert!(!squatter.has_heard("Bearer"), "{client} told its token to {certificate}");
        }
        if certificate != "-" {
            // With its own CA trusted it would have heard all: this is what the tunnel's CA is for.
            let trusting = CURL.replace("curl ", &format!("curl --cacert {theirs}.crt "));
            run_with(&mut world, &environment, &trusting, &[]);
            eventually("the squatter hears a fool", PATIENCE, || {
                if squatter.has_heard(&token) { Ok(()) } else { Err(squatter.0.text(Stream::Stdout)) }
            });
        }
        squatter.stop();
    }
    std::fs::remove_dir_all(&kept).unwrap();
    world.assert_clean();
}

/// A directory with python3 and no curl, below one of the host's user.
fn python_only(kept: &Path) -> String {
    let path = kept.join("bin");
    std::fs::create_dir_all(&path).unwrap();
    let link = path.join("python3");
    if !link.exists() {
        std::os::unix::fs::symlink("/usr/bin/python3", link).unwrap();
    }
    path.display().to_string()
}

#[test]
fn plain_http_and_garbage_get_nothing_from_a_tls_port() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "--transport", "tcp", "--tls", "auto"]);
    let plain = CURL.replace("https", "http");
    let url = format!("http://127.0.0.1:{PORT}/");
    let output = run_with(
        &mut world,
        &tunnel.environment,
        &plain,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", Some(&url))],
    );
    assert!(output.code != Some(0) && !output.stdout().contains("AccessKeyId"), "{output}");
    said(&mut tunnel, "without TLS");
    let garbage = format!(
        "import socket\nfor sent in (bytes(range(256)) * 64, b'\\x16\\x03\\x01\\xff\\xff' + b'\\x01' * 70000, b''):\n    s = \
         socket.create_connection(('127.0.0.1', {PORT}))\n    try:\n        s.sendall(sent)\n        \
         s.shutdown(1)\n        heard = s.recv(4096)\n    except OSError:\n        heard = b''\n    \
         print(len(heard))"
    );
    let output = world.run(world.on_host("/usr/bin/python3", &["-c", &garbage]));
    assert!(
        output.stdout().lines().all(|length| length.parse::<usize>().unwrap() <= 7),
        "an alert at most: {output}"
    );
    // Nothing of that did harm.
    let output = run_with(&mut world, &tunnel.environment, CURL, &[]);
    assert!(output.stdout().contains("AccessKeyId"), "{output}");
    // Trust and token in a neighbour's hands are not enough.
    let ca = std::fs::read(tunnel.directory().join("ca.pem")).unwrap();
    let theirs = User::other().home.join("stolen-ca.pem");
    std::fs::write(&theirs, ca).unwrap();
    let mut thief = world.as_user(
        &User::other(),
        "sh",
        &["-c", &CURL.replace("curl ", "curl --cacert ~/stolen-ca.pem ")],
    );
    thief.env("HOME", &User::other().home);
    thief.env("AWS_CONTAINER_AUTHORIZATION_TOKEN", tunnel.token());
    thief
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/nowhere")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", tunnel.url());
    let output = world.laptop.run(thief);
    assert!(!output.stdout().contains("AccessKeyId") && output.stdout().contains("message"), "{output}");
    said(&mut tunnel, "presented a token of yours");
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

/// Makes `NAME.pem` and `NAME.key` on the laptop: a CA of its own, and a certificate for `san` that it signed.
pub(crate) fn own_certificate(world: &World, name: &str, san: &str) {
    let script = format!(
        "set -e; umask 077; cd; new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'\n\
         openssl req -x509 $new -keyout root.key -out root.pem -subj /CN=root -days 3 \
         -addext keyUsage=critical,keyCertSign\n\
         openssl req $new -keyout {name}.key -out {name}.csr -subj /CN=x\n\
         printf 'subjectAltName={san}\\nbasicConstraints=CA:FALSE\\nauthorityKeyIdentifier=keyid\\n' > extensions\n\
         openssl x509 -req -in {name}.csr -CA root.pem -CAkey root.key -out {name}.pem -days 2 -extfile extensions\n\
         chmod 644 root.pem; chmod 755 ."
    );
    let mut command = world.laptop.command("sh");
    command.arg("-c").arg(script);
    let output = world.laptop.run(command);
    assert_eq!(output.code, Some(0), "{output}");
}

/// Lets names of this test's own lead somewhere.
fn hosts(lines: &str) {
    let all = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    std::fs::write(&all, format!("127.0.0.1 localhost\n{lines}")).unwrap();
    std::fs::set_permissions(&all, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let mounted = Command::new("mount").arg("--bind").arg(&all).arg("/etc/hosts").status().unwrap();
    assert!(mounted.success());
}

#[test]
fn with_a_public_certificate_boto3_and_the_aws_cli_trust_the_port_too() {
    if sandbox::isolated!() {
        return;
    }
    hosts("127.0.0.1 broker.corp.example\n");
    let mut world = World::new();
    own_certificate(&world, "own", "DNS:broker.corp.example");
    let tls = format!("{0}.pem,{0}.key", world.laptop.join("own").display());
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "tcp", "--tls", &tls]);
    assert_eq!(tunnel.url(), "https://broker.corp.example:4144/");
    assert!(!tunnel.environment.contains_key("NODE_EXTRA_CA_CERTS"), "nobody is told to trust it");
    assert!(tunnel.environment["NO_PROXY"].contains("broker.corp.example"));
    let arn = World::arn("Developer");
    let output = run_with(&mut world, &tunnel.environment, &boto3(), &[]);
    assert_eq!(output.stdout().trim(), arn, "through our configuration: {output}");
    // What a public CA is to boto3: in the bundle that it comes with.
    let root = world.sshd.user().home.join("root.pem");
    std::fs::copy(world.laptop.join("root.pem"), &root).unwrap();
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    for (bundle, works) in [(Some(&root), true), (None, false)] {
        let public = bundle.map(|root| {
            format!(
                "import botocore.httpsession as h; h.where = lambda: '{0}'; h.DEFAULT_CA_BUNDLE = '{0}'; ",
                root.display()
            )
        });
        let program = format!(
            "{}import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])",
            public.unwrap_or_default()
        );
        let line = format!("{} -c \"{program}\"", sdk("python/bin/python").display());
        let output = run_with(&mut world, &tunnel.environment, &line, &VARIABLES_ONLY);
        assert_eq!(output.stdout().trim() == arn, works, "{output}");
    }
    let with_root = [("NODE_EXTRA_CA_CERTS", root.to_str()), VARIABLES_ONLY[0], VARIABLES_ONLY[1]];
    let output = run_with(&mut world, &tunnel.environment, &javascript(), &with_root);
    assert_eq!(output.stdout().trim(), arn, "{output}");
    let _stopped = tunnel.stop(&mut world);
    std::fs::remove_file(root).unwrap();
    world.assert_clean();
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    if sandbox::isolated!() {
        return;
    }
    hosts("127.0.0.1 broker.corp.example\n192.0.2.7 broker.corp.example\n");
    let mut world = World::new();
    own_certificate(&world, "own", "DNS:broker.corp.example");
    let tls = format!("{0}.pem,{0}.key", world.laptop.join("own").display());
    let output = world.run(world.connect(&["-p", "dev", "-N", "--tls", &tls]));
    assert_eq!(output.code, Some(6), "{output}");
    for word in ["broker.corp.example", "192.0.2.7", "/etc/hosts"] {
        assert!(output.stderr().contains(word), "{word}: {output}");
    }
    world.assert_clean();
}

#[test]
fn what_is_wrong_with_tls_is_said_before_anything_is_done() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    own_certificate(&world, "own", "IP:127.0.0.1");
    own_certificate(&world, "wild", "DNS:*.corp.example");
    let file = |name: &str| world.laptop.join(name).display().to_string();
    let files = |certificate: &str, key: &str| format!("{},{}", file(certificate), file(key));
    let open = files("own.pem", "open.key");
    world.laptop.write("open.key", world.laptop.read("own.key"), 0o644);
    for (arguments, said) in [
        (vec!["--tls", "auto", "--transport", "unix"], "`--transport unix` has none"),
        (vec!["--tls", "auto", "--transport", "file"], "`--transport file` has none"),
        (vec!["--tls", "yes"], "expected `auto`"),
        (vec!["--tls", &files("own.pem", "wild.key")], "does not belong"),
        (vec!["--tls", &files("wild.pem", "wild.key")], "subjectAltName"),
        (vec!["--tls", &files("nowhere.pem", "own.key")], "there is no file"),
        (vec!["--tls", &open], "chmod go="),
    ] {
        let mut all = vec!["-p", "dev", "-N"];
        all.extend(arguments);
        let output = world.run(world.connect(&all));
        assert_eq!(output.code, Some(2), "{all:?}: {output}");
        assert!(output.stderr().contains(said), "{said}: {output}");
    }
    assert!(world.sshd.logins() == 0, "nobody logged in");
    // What a shell would have expanded, had it seen it.
    let tunnel = world.tunnel(&["-p", "dev", "--tls", "~/own.pem,~/own.key"]);
    assert_eq!(tunnel.url(), "https://127.0.0.1:4144/");
    let _stopped = tunnel.stop(&mut world);
    world.assert_clean();
}

#[test]
fn without_a_port_there_is_nothing_to_protect_and_that_is_said() {
    if sandbox::isolated!() {
        return;
    }
    let options = sandbox::sshd::SshdOptions::default().config("PermitListen none");
    let mut world = World::with(options);
    let output = world.run(world.connect(&["-p", "dev", "--tls", "auto", "--", &aws_cli()]));
    assert_eq!((output.stdout().trim(), output.code), (&*World::arn("Developer"), Some(0)), "{output}");
    assert!(output.stderr().contains("there is no port on bastion for `--tls` to protect"), "{output}");
    world.assert_clean();
}
