//! Containers of podman on the host, as a user starts them and as root does: without a network, with our directory at its
//! own path and nothing else of the host but programs. Nothing is pulled: what they run in is a directory.

use std::process::Command;

use sandbox::{
    home::{Output, Stream},
    users::User,
};

use crate::{
    nodes::{BOTO3, with_runtime_directory},
    support::{PATIENCE, Tunnel, World, program, sdk},
};

/// What `docs/recipes.md` says, around what a container needs that has no image.
const RUN: &str = r#"
mkdir -p "$ROOT" && cd "$ROOT" && mkdir -p usr etc tmp proc dev sys run mnt && ln -sf usr/bin usr/lib usr/lib64 . || exit
DIR=$(dirname "$AWS_CONFIG_FILE")
[ "$SHOWN" != above ] || DIR=$(dirname "$DIR")
exec podman $PODMAN run --rm --interactive --cgroups=disabled --network none --read-only -v /usr:/usr:ro -v /mnt:/mnt:ro \
  $OPTIONS ${SHOWN:+--mount "type=bind,source=$DIR,target=$DIR,readonly"} \
  $(env | sed -n 's/^\(AWS_[A-Z_]*\)=.*/-e \1/p') --rootfs "$ROOT" "$@"
"#;

/// Says on each line of its input what an SDK finds.
const LOOP: &str = r#"
while read -r line; do "$@" 2> /tmp/err || tail -n 1 /tmp/err; echo "said $line"; done
"#;

/// What a container is given of ours.
#[derive(Clone, Copy)]
enum Shown {
    Nothing,
    Directory,
    /// The directory that ours is in.
    Above,
}

/// A container of `user`, who has our environment.
fn container(user: &User, tunnel: &Tunnel, shown: Shown, options: &str, line: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "sh", "-c", RUN, "sh"]).args(line);
    command.env_clear().envs(&tunnel.environment).env("HOME", &user.home).env("USER", &user.name);
    if user.uid == 0 {
        // What root keeps is for this test alone, and no limit is raised, which needs more than the rest.
        let options = format!("--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 {options}");
        command.env("PODMAN", "--root /run/podman").env("OPTIONS", options).env("ROOT", "/run/rootfs");
    } else {
        command.env("XDG_RUNTIME_DIR", format!("/run/podman-{uid}")).env("OPTIONS", options);
        command.env("ROOT", user.home.join("rootfs"));
    }
    let shown = match shown {
        Shown::Nothing => "",
        Shown::Directory => "directory",
        Shown::Above => "above",
    };
    command.env("SHOWN", shown).current_dir("/");
    command
}

/// The users whose containers are run.
struct Users {
    user: User,
    other: User,
    root: User,
}

impl Drop for Users {
    /// Ends what podman leaves running for a user after their first container.
    fn drop(&mut self) {
        for user in [&self.user, &self.other] {
            let id = std::fs::read_to_string(format!("/run/podman-{}/libpod/tmp/pause.pid", user.uid));
            if let Some(id) = id.ok().and_then(|id| id.trim().parse().ok()) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL)
                    .ok();
            }
        }
    }
}

/// Gives podman what it needs of a host, and this test what podman keeps.
fn prepare() -> Users {
    let _reachable = program();
    let users = Users { user: User::host(), other: User::other(), root: User::find("root").unwrap() };
    // podman's runtimes know no mixture of both kinds of control groups, which this machine may have.
    let mut mounts = vec![("cgroup2", "rw".to_owned(), "/sys/fs/cgroup".into())];
    for user in [&users.user, &users.other] {
        let directory = std::path::PathBuf::from(format!("/run/podman-{}", user.uid));
        std::fs::create_dir(&directory).unwrap();
        let owner = format!("mode=700,uid={},gid={}", user.uid, user.gid);
        mounts.extend([("tmpfs", owner.clone(), directory), ("tmpfs", owner, user.home.clone())]);
    }
    for (kind, options, place) in mounts {
        let status = Command::new("mount").args(["-t", kind, "-o", &options, "none"]).arg(place).status();
        assert!(status.unwrap().success(), "{kind}");
    }
    users
}

#[test]
fn a_container_of_podman_that_is_given_our_directory_has_the_roles() {
    if sandbox::isolated!() {
        return;
    }
    let users = prepare();
    let Users { user, other, root } = &users;
    let mut world = World::new();
    let python = sdk("python/bin/python");
    let boto3 = [python.to_str().unwrap(), "-c", BOTO3];
    let run = |world: &mut World, who: &User, tunnel: &Tunnel, shown: Shown, options: &str| -> Output {
        world.run(container(who, tunnel, shown, options, &boto3))
    };
    let ours = format!("--user {}", user.uid);
    for (runtime, transport) in [(false, "auto"), (false, "file"), (true, "unix")] {
        if runtime {
            with_runtime_directory(user);
        }
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", transport]);
        for (who, options) in [(user, ""), (user, "--userns=keep-id"), (root, &*ours)] {
            let name = format!("{transport}, {} {options}", who.name);
            let output = run(&mut world, who, &tunnel, Shown::Directory, options);
            assert!(output.code == Some(0) && output.stdout().starts_with("ASIA"), "{name}: {output}");
            let line = [&boto3[..], &["audit"]].concat();
            let output = world.run(container(who, &tunnel, Shown::Directory, options, &line));
            assert!(output.code == Some(0) && output.stdout().starts_with("ASIA"), "{name}: {output}");
        }
        // One that is not given it has nothing, nor one whose user is somebody else on the host.
        for (who, options, shown, code) in [
            (user, "", Shown::Nothing, 1),
            (root, &*ours, Shown::Nothing, 1),
            (user, &*ours, Shown::Directory, 1),
            (root, &format!("--user {}", other.uid), Shown::Directory, 1),
            (other, "", Shown::Nothing, 1),
            // Their podman may not look there itself.
            (other, "", Shown::Directory, 125),
            (other, "--userns=keep-id", Shown::Directory, 125),
        ] {
            let output = run(&mut world, who, &tunnel, shown, options);
            let name = format!("{transport}, {} {options}", who.name);
            assert!(output.code == Some(code) && output.stdout.is_empty(), "{name}: {output}");
            let (said, clear) = (output.stderr(), ["Unable to locate credentials", "botocore", "token-dev"]);
            let refused = if code == 125 { &["permission denied"][..] } else { &clear };
            assert!(refused.iter().any(|part| said.contains(part)), "{name}: {output}");
        }
        tunnel.stop(&mut world);
        world.assert_clean();
    }
    drop(users);
    world.wait_for_clean_host();
}

#[test]
fn a_container_that_outlives_a_link_keeps_what_it_was_given() {
    if sandbox::isolated!() {
        return;
    }
    let users = prepare();
    let user = &users.user;
    let mut world = World::new();
    let python = sdk("python/bin/python");
    let line = ["sh", "-c", LOOP, "sh", python.to_str().unwrap(), "-c", BOTO3];
    for runtime in [false, true] {
        if runtime {
            with_runtime_directory(user);
        }
        let mut tunnel = world.tunnel(&["-p", "dev"]);
        let mut containers = [Shown::Directory, Shown::Above]
            .map(|shown| world.laptop.spawn(container(user, &tunnel, shown, "", &line)));
        let mut count = 0;
        let mut ask = || {
            count += 1;
            containers.each_mut().map(|container| {
                let before = container.text(Stream::Stdout).len();
                container.send(format!("{count}\n"));
                container.wait_for_line(Stream::Stdout, &format!("said {count}"), PATIENCE);
                let said = container.text(Stream::Stdout)[before..].to_owned();
                assert!(said.starts_with("ASIA") || said.contains("/token-dev"), "{said}");
                said.starts_with("ASIA")
            })
        };
        assert_eq!(ask(), [true, true]);
        // Our directory is another one then; the one above stays where others could make one of that name.
        world.sshd.kill_connections();
        tunnel.process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
        assert_eq!(ask(), [false, !runtime], "runtime directory: {runtime}");
        // A new container has the new one.
        let output = world.run(container(user, &tunnel, Shown::Directory, "", &line[4..]));
        assert!(output.stdout().starts_with("ASIA"), "{output}");
        tunnel.stop(&mut world);
        assert_eq!(ask(), [false, false]);
        let tunnel = world.tunnel(&["-p", "dev"]);
        assert_eq!(ask(), [false, !runtime], "runtime directory: {runtime}");
        tunnel.stop(&mut world);
        for mut container in containers {
            container.close_stdin();
            let output = container.wait(PATIENCE);
            world.heard("a container", &output);
        }
        world.assert_clean();
    }
    drop(users);
    world.wait_for_clean_host();
}
