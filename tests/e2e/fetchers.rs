//! What `credential_process` asks us with: whatever program the host has, and a sentence where it has none that can.

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::Command,
};

use sandbox::{
    home::{Output, Stream, run_within},
    sshd::SshdOptions,
    users::User,
};

use crate::support::{PATIENCE, Tunnel, World, checkout, offers, sdk};

/// curl before it knew unix sockets; the real one ends in the same way for an option that it does not know.
const OLD_CURL: &str = r#"#!/bin/sh
for argument do
  if [ "$argument" = --unix-socket ]; then
    echo "curl: option --unix-socket: is unknown" >&2
    echo "curl: try 'curl --help' or 'curl --manual' for more information" >&2
    exit 2
  fi
done
exec /usr/bin/curl "$@"
"#;

/// A directory with nothing but these programs.
fn only(programs: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for program in programs {
        let (name, real) = match *program {
            "old curl" => {
                let curl = directory.path().join("curl");
                std::fs::write(&curl, OLD_CURL).unwrap();
                std::fs::set_permissions(curl, std::fs::Permissions::from_mode(0o755)).unwrap();
                continue;
            }
            // Knows unix sockets.
            "OpenBSD's nc" => ("nc", "/bin/nc.openbsd"),
            // Does not.
            "busybox's nc" => ("nc", "/bin/busybox"),
            "curl" => ("curl", "/usr/bin/curl"),
            "python3" => ("python3", "/usr/bin/python3"),
            other => panic!("{other}?"),
        };
        assert!(Path::new(real).exists(), "{real} is missing: tests/run installs it");
        std::os::unix::fs::symlink(real, directory.path().join(name)).unwrap();
    }
    directory
}

/// The `credential_process` of the second profile.
fn line(tunnel: &Tunnel) -> String {
    let config = std::fs::read_to_string(tunnel.directory().join("config")).unwrap();
    let (_, section) = config.split_once("[profile audit]").unwrap();
    let line = section.lines().find_map(|line| line.strip_prefix("credential_process = "));
    line.unwrap().to_owned()
}

fn fetch(world: &World, line: &str, programs: &[&str]) -> Output {
    let path = only(programs);
    let mut process = world.on_host("/bin/sh", &["-c", line]);
    process.env("PATH", path.path()).env("http_proxy", "http://127.0.0.1:9/");
    run_within(process, &[], PATIENCE)
}

#[test]
fn every_program_that_may_be_on_a_host_fetches_credentials() {
    if sandbox::isolated!() {
        return;
    }
    const WORKS: &str = "";
    const NOTHING: &str = "neither curl nor python3 nor nc";
    let unix: &[(&[&str], &str)] = &[
        (&["curl"], WORKS),
        (&["python3"], WORKS),
        (&["OpenBSD's nc"], WORKS),
        (&["old curl", "python3"], WORKS),
        (&["old curl", "OpenBSD's nc"], WORKS),
        (&["old curl"], "(curl cannot"),
        (&["busybox's nc"], "(nc cannot"),
        (&["old curl", "busybox's nc"], "(curl nc cannot"),
        (&[], NOTHING),
    ];
    let tcp: &[(&[&str], &str)] = &[
        (&["curl"], WORKS),
        (&["old curl"], WORKS),
        (&["python3"], WORKS),
        (&["OpenBSD's nc"], WORKS),
        (&["busybox's nc"], WORKS),
        (&[], NOTHING),
    ];
    // The port is there for those who know no sockets.
    let auto: &[(&[&str], &str)] =
        &[(&["curl"], WORKS), (&["old curl"], WORKS), (&["busybox's nc"], WORKS), (&[], NOTHING)];
    for (transport, cases) in [("unix", unix), ("tcp", tcp), ("auto", auto)] {
        if !offers(transport) {
            continue;
        }
        let mut world = World::new();
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", transport]);
        let line = line(&tunnel);
        let token = tunnel.directory().join("token-audit");
        let right = std::fs::read(&token).unwrap();
        for (programs, says) in cases {
            let output = fetch(&world, &line, programs);
            let subject = format!("{transport} {programs:?}: {output}");
            if !says.is_empty() {
                assert!(output.code == Some(1) && output.stdout.is_empty(), "{subject}");
                let stderr = output.stderr();
                assert!(stderr.starts_with("broker: ") && stderr.contains(says), "{subject}");
                assert_eq!(stderr.lines().count(), 1, "{subject}");
                continue;
            }
            assert_eq!(output.code, Some(0), "{subject}");
            // Some SDKs pass it on to the terminal.
            assert_eq!(output.stderr(), "", "{subject}");
            let credentials: serde_json::Value =
                serde_json::from_slice(&output.stdout).expect("one JSON object");
            assert!(credentials["Version"] == 1 && credentials["SecretAccessKey"].is_string(), "{subject}");

            // A token that is refused is an error with its sentence, and no credentials.
            std::fs::write(&token, b"Bearer wrong").unwrap();
            let output = fetch(&world, &line, programs);
            world.heard("credential_process", &output);
            assert!(output.code == Some(1) && output.stdout.is_empty(), "{transport} {programs:?}: {output}");
            assert!(output.stderr().contains("\"message\":"), "{transport} {programs:?}: {output}");
            std::fs::write(&token, &right).unwrap();
        }
        tunnel.stop(&mut world);
        world.assert_clean();
    }
}

#[test]
fn curl_ends_with_2_for_an_option_that_it_does_not_know() {
    let mut curl = Command::new("/usr/bin/curl");
    curl.args(["--no-such-option", "http://127.0.0.1:1/"]);
    let output = run_within(curl, &[], PATIENCE);
    assert_eq!(output.code, Some(2), "the script takes this for a curl that knows no sockets: {output}");
}

/// What answers at a socket in place of us, to the script in a shell; `None` is nobody.
fn at_a_socket(shell: &[&str], answer: Option<Vec<u8>>, programs: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token-x"), "Bearer canary").unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let server = answer.map(|answer| {
        let listener = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _request = stream.read(&mut [0; 4096]);
            // Whoever asked may have had enough.
            let _unread = stream.write_all(&answer);
        })
    });
    drop(listener);
    let path = only(programs);
    let mut process = Command::new(shell[0]);
    process
        .args(&shell[1..])
        .arg(checkout("src/remote/credential-process.sh"))
        .arg(directory.path())
        .args(["x", "/"]);
    process.env("PATH", path.path());
    let output = run_within(process, &[], PATIENCE);
    if let Some(server) = server {
        server.join().unwrap();
    }
    output
}

#[test]
fn whatever_a_host_has_as_sh_reads_the_script() {
    let shells: [&[&str]; 5] = [
        &["/bin/dash"],
        &["/bin/bash", "--posix"],
        &["/bin/busybox", "sh"],
        &["/bin/ksh"],
        &["/bin/zsh", "--emulate", "sh"],
    ];
    let body = r#"{"Version":1,"Token":"\\n%s"}"#;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for shell in shells {
        for program in ["curl", "python3", "OpenBSD's nc"] {
            let output = at_a_socket(shell, Some(answer.clone().into_bytes()), &[program]);
            assert_eq!(
                (output.stdout(), output.stderr()),
                (format!("{body}\n"), String::new()),
                "{shell:?} {program}"
            );
        }
    }
}

#[test]
fn what_is_no_answer_is_a_sentence_and_no_credentials() {
    let nobody = None;
    let garbage = Some(b"\0\x1b[2J 200 garbage".to_vec());
    let cut = Some(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec());
    let endless = Some([b"HTTP/1.1 500 x\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat());
    for program in ["curl", "python3", "OpenBSD's nc"] {
        for answer in [&nobody, &garbage, &cut, &endless] {
            let output = at_a_socket(&["/bin/sh"], answer.clone(), &[program]);
            let told = String::from_utf8_lossy(answer.as_deref().unwrap_or(b"nobody")).into_owned();
            let subject = format!("{program}, {:.40}: {:.400}", told, output.to_string());
            assert!(output.code == Some(1) && output.stdout.is_empty(), "{subject}");
            assert!(!output.stderr.is_empty() && !output.stderr().contains("canary"), "{subject}");
        }
    }
}

/// Everything that is in /usr/bin, but what can ask us.
fn no_fetcher() -> tempfile::TempDir {
    let directory = only(&[]);
    for entry in std::fs::read_dir("/usr/bin").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if !["curl", "python", "nc", "netcat"].iter().any(|fetcher| name.starts_with(fetcher)) {
            std::os::unix::fs::symlink(entry.path(), directory.path().join(name)).unwrap();
        }
    }
    directory
}

const ARN: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

/// The role of a process of the host in this PATH: its ARN, or what it said.
fn role(world: &mut World, tunnel: &Tunnel, path: &Path, profile: Option<&str>) -> Result<String, String> {
    let mut python = world.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
    python.envs(&tunnel.environment).env("PATH", path);
    python.envs(profile.map(|profile| ("AWS_PROFILE", profile)));
    let output = world.run(python);
    let (stdout, stderr) = (output.stdout().trim().to_owned(), output.stderr());
    if output.code == Some(0) { Ok(stdout) } else { Err(stderr) }
}

#[test]
fn a_host_without_any_such_program_still_has_what_needs_none() {
    if sandbox::isolated!() {
        return;
    }
    let path = no_fetcher();
    let with_path = |more: &str| {
        let options = SshdOptions::new(User::host());
        World::with(options.config(format!("SetEnv PATH={}", path.path().display())).config(more))
    };
    let (dev, audit) = (Ok(World::arn("Developer")), Ok(World::arn("Auditor")));
    let flags = ["-p", "dev", "-p", "audit"];

    // The default role needs no program.
    let mut world = with_path("");
    let tunnel = world.tunnel(&flags);
    assert_eq!(role(&mut world, &tunnel, path.path(), None), dev);
    let named = role(&mut world, &tunnel, path.path(), Some("audit")).unwrap_err();
    assert!(named.contains("neither curl nor python3 nor nc"), "{named}");
    let said = tunnel.process.text(Stream::Stderr);
    assert!(said.contains("only the default role is served"), "{said}");
    tunnel.stop(&mut world);
    // With one role nothing is amiss.
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(role(&mut world, &tunnel, path.path(), None), dev);
    let said = tunnel.process.text(Stream::Stderr);
    assert!(!said.contains("warning"), "{said}");
    tunnel.stop(&mut world);
    // Who insists on the socket is told.
    let tunnel = world.tunnel(&["-p", "dev", "--transport", "unix"]);
    let said = tunnel.process.text(Stream::Stderr);
    assert!(said.contains("no process there gets credentials") && said.contains("install curl"), "{said}");
    tunnel.stop(&mut world);
    world.assert_clean();

    // Where there would only be a socket, files serve every role.
    let mut world = with_path("AllowTcpForwarding no\nAllowStreamLocalForwarding yes");
    let tunnel = world.tunnel(&flags);
    assert_eq!(role(&mut world, &tunnel, path.path(), None), dev);
    assert_eq!(role(&mut world, &tunnel, path.path(), Some("audit")), audit);
    let said = tunnel.process.text(Stream::Stderr);
    assert!(said.contains("kept in files"), "{said}");
    tunnel.stop(&mut world);
    world.assert_clean();
}
