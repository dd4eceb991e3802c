//! Another user of the host, who knows every name and path of ours, against every transport: they get nothing, and
//! whoever is served goes on being served. What is about the port alone is in `users`.

use std::{os::unix::fs::symlink, path::Path, process::Command};

use sandbox::{
    home::{Process, Stream, run_within},
    users::User,
};

use crate::support::{PATIENCE, Tunnel, World, offers, program, sdk};

/// Tries everything that a user can do with the names of what another has, and prints what worked.
///
/// stdin: what a thief already knows, a secret; arguments: `look` or `attack`, the directory, the uid of its owner,
/// the names in it.
const THIEF: &str = r#"
import os, socket, stat, sys
mode, directory, uid, *names = sys.argv[1:]
known = sys.stdin.read()
tries = worked = 0

def attempt(what, does):
    global tries
    tries += 1
    try:
        does()
    except OSError:
        return
    print("worked:", what, flush=True)

def connect():
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(directory + "/s")
        s.sendall(f"GET / HTTP/1.1\r\nHost: broker\r\nAuthorization: {known}\r\n\r\n".encode())
        assert s.recv(4096)

def bind(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)

attempt("list", lambda: os.listdir(directory))
for name in names:
    path = f"{directory}/{name}"
    if name == "s":
        attempt("connect", connect)
    else:
        attempt("read " + name, lambda: open(path).read())
    attempt("stat " + name, lambda: os.stat(path))
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.stat(f"/proc/{pid}").st_uid != int(uid) or pid == str(os.getpid()):
            continue
    except OSError:
        continue
    attempt("environ of a process", lambda: open(f"/proc/{pid}/environ").read())
    attempt("open files of a process", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt("root of a process", lambda: os.listdir(f"/proc/{pid}/root{directory}"))
if mode == "attack":
    parent = os.path.dirname(directory)
    for path in (directory, parent):
        evil = f"/dev/shm/evil-{len(path)}"
        os.mkdir(evil)
        attempt("change the mode", lambda: os.chmod(path, 0o777))
        attempt("rename", lambda: os.rename(path, path + ".stolen"))
        attempt("rename something over it", lambda: os.rename(evil, path))
        attempt("remove", lambda: os.rmdir(path))
        attempt("put a link in its place", lambda: os.symlink("/dev/shm", path))
        attempt("put a file there", lambda: open(path + "/mine", "w"))
        os.rmdir(evil)
    for name in names:
        path = f"{directory}/{name}"
        attempt("overwrite " + name, lambda: open(path, "w"))
        attempt("remove " + name, lambda: os.unlink(path))
        attempt("hard link to " + name, lambda: os.link(path, f"/dev/shm/stolen-{name}"))
        attempt("rename " + name, lambda: os.rename(path, f"/dev/shm/stolen-{name}"))
    attempt("hold the path of the socket", lambda: bind(directory + "/s"))
print("tries:", tries, flush=True)
"#;

const ARN: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

/// boto3 of a user, with the whole environment of the tunnel, which is no secret but for `--token env`.
fn boto3(world: &World, user: &User, tunnel: &Tunnel) -> Command {
    let mut python = world.as_user(user, sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
    python.envs(tunnel.environment.iter().filter(|(name, _)| name.starts_with("AWS_")));
    python.env("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1");
    python
}

#[track_caller]
fn assert_served(world: &mut World, tunnel: &Tunnel, subject: &str) {
    let user = world.sshd.user().clone();
    let command = boto3(world, &user, tunnel);
    let output = world.run(command);
    assert_eq!(output.stdout().trim(), World::arn("Developer"), "{subject}: {output}");
}

/// The names of all that lies in our directory.
fn names(tunnel: &Tunnel) -> Vec<String> {
    let entries = std::fs::read_dir(tunnel.directory()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What of all its tries worked for this user, and how many there were.
fn thief(world: &World, user: &User, mode: &str, tunnel: &Tunnel, secret: &str) -> (Vec<String>, usize) {
    let uid = world.sshd.user().uid.to_string();
    let names = names(tunnel);
    let mut arguments = vec!["-c", THIEF, mode, tunnel.directory().to_str().unwrap().to_owned().leak(), &uid];
    arguments.extend(names.iter().map(String::as_str));
    let output =
        run_within(world.as_user(user, "python3", &arguments), secret.as_bytes(), PATIENCE).success();
    let stdout = output.stdout();
    let worked = stdout.lines().filter_map(|line| line.strip_prefix("worked: ")).map(str::to_owned).collect();
    let tries = stdout.lines().find_map(|line| line.strip_prefix("tries: ")).unwrap().parse().unwrap();
    (worked, tries)
}

#[test]
fn in_every_transport_a_neighbour_who_knows_everything_gets_nothing() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let (host, other) = (world.sshd.user().clone(), User::other());
    for flags in [
        &["--transport", "auto"][..],
        &["--transport", "tcp"],
        &["--transport", "tcp", "--token", "env"],
        &["--transport", "unix"],
        &["--transport", "file"],
    ] {
        if !offers(flags[1]) {
            continue;
        }
        let subject = format!("{flags:?}");
        let tunnel = world.tunnel(&[&["-p", "dev"], flags].concat());
        let file = tunnel.directory().join("token-dev");
        let secret = std::fs::read_to_string(file).unwrap_or_default();
        // A process that has all of it in its environment.
        let mut holder = world.on_host("sleep", &["1000"]);
        holder.envs(&tunnel.environment);
        let holder = world.laptop.spawn(holder);
        assert_served(&mut world, &tunnel, &subject);

        // The tries are real: its owner gets at everything.
        let (worked, tries) = thief(&world, &host, "look", &tunnel, &secret);
        assert!(tries >= 2 * names(&tunnel).len() + 4, "{subject}: {tries}");
        for what in ["list", "read config", "environ of a process", "open files of a process"] {
            assert!(worked.iter().any(|worked| worked == what), "{subject}: {what} is not in {worked:?}");
        }
        let socket = names(&tunnel).contains(&"s".to_owned());
        assert_eq!(worked.contains(&"connect".to_owned()), socket, "{subject}: {worked:?}");

        let (worked, attacks) = thief(&world, &other, "attack", &tunnel, &secret);
        assert_eq!(worked, Vec::<String>::new(), "{subject}");
        assert!(attacks > tries, "{subject}: {attacks}");
        // With our whole environment, and the configuration that it names.
        let command = boto3(&world, &other, &tunnel);
        let output = world.run(command);
        assert!(output.code != Some(0) && !output.stdout().contains("arn:"), "{subject}: {output}");
        // What asks for us, copied from where they may read it.
        let directory = tunnel.directory().display().to_string();
        let mut script = world.as_user(&other, "sh", &["-s", &directory, "dev", "/", "4144"]);
        script.env("PATH", "/usr/bin:/bin");
        let ours = include_str!("../../src/remote/credential-process.sh");
        let output = run_within(script, ours.as_bytes(), PATIENCE);
        assert!(output.code == Some(1) && output.stdout.is_empty(), "{subject}: {output}");

        assert_served(&mut world, &tunnel, &subject);
        drop(holder);
        // With `--token env` it prints the token, as asked.
        let mut process = tunnel.process;
        process.signal(nix::sys::signal::Signal::SIGINT);
        let output = process.wait(PATIENCE);
        assert_eq!(output.code, Some(130), "{subject}");
        let granted = |line: &serde_json::Value| line["decision"] == "allowed" && line["uid"] == other.uid;
        assert!(!world.audit().iter().any(granted), "{subject}");
        world.wait_for_clean_host();
    }
    world.assert_clean();
}

/// Listens at the path of a socket and tells of everything that reaches it.
const SQUATTER: &str = r#"
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("listening", flush=True)
while True:
    listener.accept()
    print("somebody came", flush=True)
"#;

/// What another user puts where our directory usually is.
#[derive(Clone, Copy, Debug)]
enum Trap {
    /// A directory that everybody may write, with a socket where ours would be.
    Directory,
    /// A link to a directory of theirs.
    Link,
    /// A link to the home of the user whom we serve.
    LinkHome,
    /// A file.
    File,
}

/// Sets the trap as the other user, and returns who listens in it.
fn set(world: &World, trap: Trap, usual: &Path) -> Option<Process> {
    let other = User::other();
    let usual = usual.to_str().unwrap();
    let run = |script: &str| {
        let command = world.as_user(&other, "sh", &["-ec", script, "sh", usual]);
        let _done = run_within(command, &[], PATIENCE).success();
    };
    match trap {
        Trap::Directory => run("umask 0; mkdir -p \"$1/4144\""),
        Trap::Link => run("umask 0; mkdir -p /dev/shm/theirs/4144; ln -s /dev/shm/theirs \"$1\""),
        Trap::LinkHome => symlink(&world.sshd.user().home, usual).unwrap(),
        Trap::File => run("echo mine > \"$1\""),
    }
    matches!(trap, Trap::Directory | Trap::Link).then(|| {
        let listener = world.as_user(&other, "python3", &["-c", SQUATTER, &format!("{usual}/4144/s")]);
        let mut squatter = world.laptop.spawn(listener);
        squatter.wait_for_line(Stream::Stdout, "listening", PATIENCE);
        squatter
    })
}

/// Everything below a path, links not followed.
fn everything(path: &Path) -> Vec<String> {
    let output = run_within(
        {
            let mut find = Command::new("find");
            find.arg(path).args(["-printf", "%p %y %U %m %l\\n"]);
            find
        },
        &[],
        PATIENCE,
    );
    let mut lines: Vec<_> = output.stdout().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn in_every_transport_a_trap_where_our_directory_usually_is_catches_nothing() {
    if sandbox::isolated!() {
        return;
    }
    // Tests that run meanwhile must not find our directory where it goes instead, nor change the home.
    let _program = program();
    let host = User::host();
    let home = format!("mode=755,uid={},gid={}", host.uid, host.gid);
    for (place, options) in [(Path::new("/tmp"), "mode=1777"), (&host.home, &home)] {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(place).status().unwrap().success());
    }
    let mut world = World::new();
    let uid = world.sshd.user().uid;
    let usual = Path::new("/dev/shm").join(format!("broker-{uid}"));
    for transport in ["auto", "tcp", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
        for trap in [Trap::Directory, Trap::Link, Trap::LinkHome, Trap::File] {
            let subject = format!("{transport}, {trap:?}");
            let squatter = set(&world, trap, &usual);
            let home = everything(&world.sshd.user().home);
            let before = (everything(&usual), everything(Path::new("/dev/shm/theirs")), home.len());
            let tunnel = world.tunnel(&["-p", "dev", "--transport", transport]);
            assert!(!tunnel.directory().starts_with(&usual), "{subject}: {:?}", tunnel.directory());
            assert_served(&mut world, &tunnel, &subject);
            let (worked, _) = thief(&world, &User::other(), "attack", &tunnel, "");
            assert_eq!(worked, Vec::<String>::new(), "{subject}");
            assert_served(&mut world, &tunnel, &subject);
            let after = |world: &World| {
                let home = everything(&world.sshd.user().home);
                (everything(&usual), everything(Path::new("/dev/shm/theirs")), home.len())
            };
            assert_eq!(after(&world), before, "{subject}");
            let output = tunnel.stop(&mut world);
            assert_eq!(output.code, Some(130), "{subject}: {output}");
            assert_eq!(after(&world), before, "{subject}");
            if let Some(squatter) = squatter {
                assert_eq!(squatter.text(Stream::Stdout), "listening\n", "{subject}");
            }
            // It is theirs, so it stays; the test takes it away.
            let _removed = run_within(
                {
                    let mut rm = Command::new("rm");
                    rm.arg("-rf").args([&usual, Path::new("/dev/shm/theirs")]);
                    rm
                },
                &[],
                PATIENCE,
            )
            .success();
            world.wait_for_clean_host();
        }
    }
    world.assert_clean();
}
