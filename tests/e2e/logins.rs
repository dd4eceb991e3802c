//! Logging in to a real sshd with whatever a person has: keys of every format, certificates, the agent, a key in a
//! variable, a second factor of PAM. Questions go to a program (`SSH_ASKPASS`), which writes down what it was asked.

use std::{path::PathBuf, process::Command};

use sandbox::{
    home::{Output, Process, Stream},
    sshd::SshdOptions,
};

use crate::support::{BASTION, PATIENCE, World};

/// The laptop, and who answers there.
struct Laptop {
    world: World,
    askpass: PathBuf,
}

impl Laptop {
    fn new(options: SshdOptions) -> Self {
        let world = World::with(options);
        let script = "#!/bin/sh\nprintf '%s\\n' \"$1\" >>\"$HOME/asked\"\ncase $1 in\n*passphrase*) echo opensesame ;;\n\
                      *) cat \"$HOME/answer\" ;;\nesac\n";
        let askpass = world.laptop.write("askpass", script, 0o700);
        Self { world, askpass }
    }

    fn keygen(&mut self, arguments: &[&str]) {
        let mut keygen = self.world.laptop.command("ssh-keygen");
        keygen.args(arguments).current_dir(self.world.laptop.join(".ssh"));
        self.world.run(keygen).success();
    }

    fn path(&self, name: &str) -> String {
        self.world.laptop.join(".ssh").join(name).display().to_string()
    }

    fn connect(&self, arguments: &[&str]) -> Command {
        let all = [&["connect", BASTION, "-p", "dev"][..], arguments, &["--", "echo", "in"]].concat();
        let mut command = self.world.broker(&all);
        command.env("SSH_ASKPASS", &self.askpass).env("SSH_ASKPASS_REQUIRE", "force");
        command
    }

    /// Connects, and returns what was asked meanwhile.
    fn asked(&mut self, command: Command) -> (Output, Vec<String>) {
        self.world.laptop.write("asked", "", 0o600);
        let output = self.world.run(command);
        let asked = self.world.laptop.read("asked").lines().map(str::to_owned).collect();
        (output, asked)
    }

    /// Only this opens the door, and there is no other key to try.
    fn only(&self, lines: &[&str]) {
        let aws: Vec<_> = self.world.aws.environment().iter().map(|(n, v)| format!("{n}={v}")).collect();
        let lines = lines.iter().map(|line| (*line).to_owned());
        self.world.sshd.configure(&lines.chain([format!("SetEnv {}", aws.join(" "))]).collect::<Vec<_>>());
        let config = self.world.laptop.read(".ssh/config");
        let config: Vec<_> = config.lines().filter(|line| !line.contains("Identit")).collect();
        self.world.laptop.write(".ssh/config", config.join("\n") + "\n", 0o600);
    }
}

#[track_caller]
fn assert_in(what: &str, output: &Output) {
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "in\n"), "{what}: {output}");
}

#[test]
fn keys_of_every_format_log_in_and_a_passphrase_is_asked_for_once() {
    if sandbox::isolated!() {
        return;
    }
    let mut laptop = Laptop::new(SshdOptions::default());
    laptop.only(&[]);
    let user = laptop.world.sshd.user().clone();
    for (kind, format, passphrase) in [
        ("ed25519", "RFC4716", ""),
        ("ed25519", "RFC4716", "opensesame"),
        ("ecdsa", "PKCS8", "opensesame"),
        ("ecdsa", "PEM", ""),
        ("rsa", "RFC4716", "opensesame"),
        ("rsa", "PEM", "opensesame"),
        ("rsa", "PKCS8", ""),
    ] {
        let name = format!("{kind}-{format}-{passphrase}");
        laptop.keygen(&["-q", "-t", kind, "-m", format, "-N", passphrase, "-f", &name]);
        let path = laptop.path(&name);
        let public = laptop.world.laptop.read(format!(".ssh/{name}.pub"));

        // A key that the server does not take costs no question.
        let (output, asked) = laptop.asked(laptop.connect(&["-i", &path, "-o", "IdentitiesOnly=yes"]));
        assert_eq!(output.code, Some(255), "{name}: {output}");
        assert_eq!(asked, [""; 0], "{name}");

        laptop.world.sshd.authorize(&user, "", public.trim());
        let (output, asked) = laptop.asked(laptop.connect(&["-i", &path]));
        assert_in(&name, &output);
        let expected = format!("Enter passphrase for key '{path}': ");
        assert_eq!(asked, if passphrase.is_empty() { vec![] } else { vec![expected] }, "{name}");

        // Nor does one that the configuration forbids.
        let (output, asked) =
            laptop.asked(laptop.connect(&["-i", &path, "-o", "PubkeyAcceptedAlgorithms=sk-ssh-ed25519*"]));
        assert_eq!((output.code, asked.len()), (Some(255), 0), "{name}: {output}");
        assert!(output.stderr().contains("`PubkeyAcceptedAlgorithms`"), "{name}: {output}");
    }
    laptop.world.assert_clean();
}

/// An agent of the laptop's user.
fn agent(laptop: &Laptop, askpass: &str) -> (Process, String) {
    let socket = laptop.path("agent");
    let mut agent = laptop.world.laptop.command("ssh-agent");
    agent.args(["-D", "-a", &socket]).env("SSH_ASKPASS", askpass).env("DISPLAY", ":0");
    let mut agent = laptop.world.laptop.spawn(agent);
    agent.wait_for_line(Stream::Stdout, "SSH_AUTH_SOCK=", PATIENCE);
    (agent, socket)
}

fn ssh_add(laptop: &mut Laptop, socket: &str, arguments: &[&str]) {
    let mut add = laptop.world.laptop.command("ssh-add");
    add.args(arguments).env("SSH_AUTH_SOCK", socket).current_dir(laptop.world.laptop.join(".ssh"));
    laptop.world.run(add).success();
}

#[test]
fn certificates_log_in_from_files_and_through_the_agent() {
    if sandbox::isolated!() {
        return;
    }
    let mut laptop = Laptop::new(SshdOptions::default());
    laptop.keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "ca"]);
    let ca = tempfile::Builder::new().prefix("sshd-").tempdir().unwrap();
    std::os::unix::fs::PermissionsExt::set_mode(
        &mut std::fs::metadata(ca.path()).unwrap().permissions(),
        0o755,
    );
    let trusted = ca.path().join("ca.pub");
    std::fs::write(&trusted, laptop.world.laptop.read(".ssh/ca.pub")).unwrap();
    laptop.only(&[&format!("TrustedUserCAKeys {}", trusted.display())]);
    let user = laptop.world.sshd.user().name.clone();
    let (_agent, socket) = agent(&laptop, "/bin/false");
    for (kind, passphrase) in [("ed25519", ""), ("rsa", ""), ("ecdsa", "opensesame"), ("rsa", "opensesame")] {
        let name = format!("{kind}{passphrase}");
        laptop.keygen(&["-q", "-t", kind, "-N", passphrase, "-f", &name]);
        laptop.keygen(&["-q", "-s", "ca", "-I", "id", "-n", &user, &format!("{name}.pub")]);
        let path = laptop.path(&name);
        let questions = usize::from(!passphrase.is_empty());
        let (output, asked) = laptop.asked(laptop.connect(&["-i", &path]));
        assert_in(&name, &output);
        assert_eq!(asked.len(), questions, "{name}: {asked:?}");

        // Where the configuration says that it is.
        let elsewhere = laptop.path(&format!("elsewhere-{name}"));
        std::fs::rename(laptop.path(&format!("{name}-cert.pub")), &elsewhere).unwrap();
        let certificate = format!("CertificateFile={elsewhere}");
        let (output, _) = laptop.asked(laptop.connect(&["-i", &path]));
        assert_eq!(output.code, Some(255), "{name}: the key alone opens nothing: {output}");
        let (output, asked) = laptop.asked(laptop.connect(&["-i", &path, "-o", &certificate]));
        assert_in(&name, &output);
        assert_eq!(asked.len(), questions, "{name}: {asked:?}");

        // The agent holds the key, and knows nothing of the certificate.
        if passphrase.is_empty() {
            ssh_add(&mut laptop, &socket, &["-q", &name]);
            std::fs::remove_file(&path).unwrap();
            let mut connect = laptop.connect(&["-o", &certificate]);
            connect.env("SSH_AUTH_SOCK", &socket);
            let (output, _) = laptop.asked(connect);
            assert_in(&name, &output);
            ssh_add(&mut laptop, &socket, &["-q", "-D"]);
        }
    }
    laptop.world.assert_clean();
}

#[test]
fn the_agents_keys_are_tried_in_order_and_one_that_it_keeps_to_itself_is_passed_over() {
    if sandbox::isolated!() {
        return;
    }
    let mut laptop = Laptop::new(SshdOptions::default());
    laptop.only(&["MaxAuthTries 6"]);
    let user = laptop.world.sshd.user().clone();
    let (_agent, socket) = agent(&laptop, "/bin/false");
    for n in 0..8 {
        let name = format!("wrong-{n}");
        laptop.keygen(&["-q", "-t", "ed25519", "-N", "", "-f", &name]);
        ssh_add(&mut laptop, &socket, &["-q", &name]);
    }
    for name in ["right", "asking", "bound", "foreign"] {
        laptop.keygen(&["-q", "-t", "ed25519", "-N", "", "-f", name]);
        let public = laptop.world.laptop.read(format!(".ssh/{name}.pub"));
        laptop.world.sshd.authorize(&user, "", public.trim());
    }
    let with_agent = |laptop: &Laptop, arguments: &[&str]| {
        let mut connect = laptop.connect(&[&["--batch"][..], arguments].concat());
        connect.env("SSH_AUTH_SOCK", &socket);
        connect
    };
    ssh_add(&mut laptop, &socket, &["-q", "right"]);
    std::fs::remove_file(laptop.path("right")).unwrap();

    // Eight wrong ones come before the right one: the server gives up after the sixth, and we say what to do.
    let (output, _) = laptop.asked(with_agent(&laptop, &[]));
    assert_eq!(output.code, Some(255), "{output}");
    for words in
        ["Too many authentication failures", "name the key with `-i FILE` and `-o IdentitiesOnly=yes`"]
    {
        assert!(output.stderr().contains(words), "{output}");
    }
    let public = laptop.path("right");
    let (output, _) = laptop.asked(with_agent(&laptop, &["-i", &public, "-o", "IdentitiesOnly=yes"]));
    assert_in("IdentitiesOnly", &output);
    let (output, _) = laptop.asked(with_agent(&laptop, &["-i", &public]));
    assert_in("the configured one goes first", &output);
    let (output, _) = laptop.asked(with_agent(&laptop, &["-i", &public, "-o", "IdentityAgent=none"]));
    assert_eq!(output.code, Some(255), "{output}");

    // The agent asks its person, who says no; the next key is in a file.
    ssh_add(&mut laptop, &socket, &["-q", "-D"]);
    ssh_add(&mut laptop, &socket, &["-q", "-c", "asking"]);
    std::fs::remove_file(laptop.path("asking")).unwrap();
    let file = laptop.path("bound");
    let (output, _) = laptop.asked(with_agent(&laptop, &["-i", &file]));
    assert_in("after a refusal", &output);
    let (output, _) = laptop.asked(with_agent(&laptop, &[]));
    assert!(output.stderr().contains("(the agent did not sign)"), "{output}");

    // Bound to this host, and to another: the agent learns through our connection which one it is.
    let known = laptop.world.laptop.read(".ssh/known_hosts");
    let (name, key) = known.trim().split_once(' ').map(|(n, k)| (n.to_owned(), k.to_owned())).unwrap();
    laptop.keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "host"]);
    let other = laptop.world.laptop.read(".ssh/host.pub");
    laptop.world.laptop.write(".ssh/hosts", format!("here {key}\nthere {other}"), 0o600);
    let hosts = laptop.path("hosts");
    for (host, right) in [("here", true), ("there", false)] {
        ssh_add(&mut laptop, &socket, &["-q", "-D"]);
        ssh_add(&mut laptop, &socket, &["-q", "-H", &hosts, "-h", host, "bound"]);
        let (output, _) = laptop.asked(with_agent(&laptop, &[]));
        assert_eq!(output.stdout() == "in\n", right, "{name} {host}: {output}");
    }

    // An agent that is gone is said, once, and is no obstacle.
    let (output, _) = laptop.asked(with_agent(&laptop, &["-i", &file, "-o", "IdentityAgent=/nonexistent"]));
    assert_in("without the agent", &output);
    assert!(output.stderr().contains("the agent at `/nonexistent` is not used"), "{output}");
    laptop.world.assert_clean();
}

#[test]
fn a_key_in_a_variable_logs_in_and_is_in_no_environment_afterwards() {
    if sandbox::isolated!() {
        return;
    }
    let mut laptop = Laptop::new(SshdOptions::default());
    laptop.only(&[]);
    let key = laptop.world.sshd.client_key();
    std::fs::remove_file(laptop.path("key-bastion")).unwrap();
    let port = laptop.world.sshd.port();
    let seen = laptop.path("environment");
    let proxy =
        format!("ProxyCommand=bash -c \"env >{seen}; exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3 & cat >&3\"");
    let mut connect = laptop.world.broker(&[
        "connect",
        BASTION,
        "--batch",
        "-p",
        "dev",
        "-N",
        "--print-env",
        "sh",
        "--identity-env",
        "DEPLOY_KEY",
        "-o",
        &proxy,
    ]);
    connect.env("DEPLOY_KEY", &key);
    let mut process = laptop.world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let environment = std::fs::read(format!("/proc/{}/environ", process.pid())).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let child = std::fs::read_to_string(&seen).unwrap();
    for (whose, text) in [("ours", environment), ("a child's", child)] {
        assert!(text.contains("HOME="), "{whose}: {text}");
        assert!(
            !text.contains("PRIVATE KEY") && !text.contains("DEPLOY_KEY"),
            "{whose} environment has the key"
        );
    }
    process.signal(nix::sys::signal::Signal::SIGINT);
    let output = process.wait(PATIENCE);
    assert_eq!(output.code, Some(130), "{output}");
    assert!(!output.stderr().contains("PRIVATE KEY"));
    laptop.world.heard("with a key in a variable", &output);

    for (value, words) in [(None, "there is no such variable"), (Some("nonsense"), "holds no private key")] {
        let arguments = ["-p", "dev", "--identity-env", "DEPLOY_KEY", "--", "true"];
        let mut connect = laptop.world.connect(&arguments);
        if let Some(value) = value {
            connect.env("DEPLOY_KEY", value);
        }
        let output = laptop.world.run(connect);
        assert_eq!(output.code, Some(255), "{output}");
        assert!(output.stderr().contains(words), "{output}");
    }
    laptop.world.assert_clean();
}

/// Has sshd ask PAM, which tells something, asks for a code, and asks its own program whether that is right.
fn pam(laptop: &Laptop) {
    let place = laptop.world.laptop.write("pam/text", "Look at your telephone.\n", 0o644);
    let directory = place.parent().unwrap().to_owned();
    let mut directories = directory.clone();
    while directories.starts_with(laptop.world.laptop.path()) {
        std::os::unix::fs::chown(&directories, Some(0), Some(0)).unwrap();
        directories = if directories == *laptop.world.laptop.path() {
            break;
        } else {
            directories.parent().unwrap().to_owned()
        };
    }
    std::os::unix::fs::chown(laptop.world.laptop.path(), Some(laptop.world.laptop.user().uid), None).unwrap();
    let check = directory.join("check");
    std::fs::write(&check, "#!/bin/sh\n[ \"$(tr -d '\\000')\" = 123456 ]\n").unwrap();
    std::fs::set_permissions(&check, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let service = directory.join("sshd");
    let rules = format!(
        "auth optional pam_echo.so file={}\nauth requisite pam_exec.so quiet expose_authtok {}\n\
         auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
        place.display(),
        check.display()
    );
    std::fs::write(&service, rules).unwrap();
    let mounted = Command::new("mount").arg("--bind").arg(&service).arg("/etc/pam.d/sshd").status().unwrap();
    assert!(mounted.success());
}

#[test]
fn a_second_factor_of_pam_is_asked_for_after_the_key() {
    if sandbox::isolated!() {
        return;
    }
    let mut laptop = Laptop::new(SshdOptions::default());
    pam(&laptop);
    laptop.only(&[
        "UsePAM yes",
        "KbdInteractiveAuthentication yes",
        "AuthenticationMethods publickey,keyboard-interactive",
    ]);
    let key = laptop.path("key-bastion");
    let user = laptop.world.sshd.user().name.clone();
    // What PAM tells comes with its next question.
    let question =
        ["Look at your telephone.", "Password: "].map(|line| format!("({user}@{BASTION}) {line}")).to_vec();

    laptop.world.laptop.write("answer", "123456\n", 0o600);
    let (output, asked) = laptop.asked(laptop.connect(&["-i", &key]));
    assert_in("both", &output);
    assert_eq!(asked, question);

    laptop.world.laptop.write("answer", "000000\n", 0o600);
    let (output, asked) = laptop.asked(laptop.connect(&["-i", &key, "-o", "NumberOfPasswordPrompts=2"]));
    assert_eq!(output.code, Some(255), "{output}");
    assert_eq!(asked, [question.clone(), question.clone()].concat(), "{output}");

    // The key alone, or the code alone, is not enough, and nobody is asked who could not answer.
    let arguments = ["-i", &key, "-o", "PreferredAuthentications=publickey"];
    let (output, asked) = laptop.asked(laptop.connect(&arguments));
    assert_eq!((output.code, asked.len()), (Some(255), 0), "{output}");
    assert!(output.stderr().contains("accepted so far; the server takes keyboard-interactive"), "{output}");
    let (output, asked) = laptop.asked(laptop.connect(&["--batch", "-i", &key]));
    assert_eq!((output.code, asked.len()), (Some(255), 0), "{output}");
    let arguments = ["-i", &key, "-o", "KbdInteractiveAuthentication=no"];
    let (output, asked) = laptop.asked(laptop.connect(&arguments));
    assert_eq!((output.code, asked.len()), (Some(255), 0), "{output}");

    // Without the key, PAM alone; and not for a host whose key was taken unseen.
    laptop.only(&[
        "UsePAM yes",
        "KbdInteractiveAuthentication yes",
        "AuthenticationMethods keyboard-interactive",
    ]);
    laptop.world.laptop.write("answer", "123456\n", 0o600);
    laptop.world.laptop.write(".ssh/known_hosts", "", 0o600);
    let arguments = ["-o", "StrictHostKeyChecking=accept-new"];
    let (output, asked) = laptop.asked(laptop.connect(&arguments));
    assert_eq!((output.code, asked.len()), (Some(255), 0), "{output}");
    assert!(output.stderr().contains("nothing secret is typed for a host"), "{output}");
    // It is on file now, as after `accept-new` of `ssh`.
    let (output, asked) = laptop.asked(laptop.connect(&arguments));
    assert_in("PAM alone", &output);
    assert_eq!(asked, question);
    laptop.world.assert_clean();
}
