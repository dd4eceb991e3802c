//! The unit for systemd, in a real `systemd --user`: ready when it serves, connects anew, comes back, and ends clean.

use std::{fs, path::PathBuf, process::Command};

use nix::sys::signal::Signal;
use sandbox::home::{Output, Process, run_within};

use crate::support::{ACCOUNT, BASTION, PATIENCE, World, checkout, eventually, program};

/// A service manager of the laptop's user, in a part of the control groups that is its own.
struct Manager {
    process: Option<Process>,
    groups: PathBuf,
    runtime: PathBuf,
}

impl Manager {
    fn start(world: &World) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup");
        let mut mount = Command::new("mount");
        mount.args(["-t", "cgroup2", "none"]).arg(&root);
        assert_eq!(run_within(mount, &[], PATIENCE).code, Some(0), "the mount namespace is ours");
        let groups = root.join(format!("broker-test-{}", std::process::id()));
        fs::create_dir(&groups).unwrap();
        // What is started from here on belongs to it.
        fs::write(groups.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let user = sandbox::users::User::laptop();
        for path in [groups.clone(), groups.join("cgroup.procs"), groups.join("cgroup.subtree_control")] {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
        }
        // A machine that runs systemd; `/run` is ours as well.
        fs::create_dir_all("/run/systemd/system").unwrap();
        let runtime = PathBuf::from(format!("/run/user/{}", user.uid));
        fs::create_dir_all(&runtime).unwrap();
        std::os::unix::fs::chown(&runtime, Some(user.uid), Some(user.gid)).unwrap();
        fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

        let unit = fs::read(checkout("docs/services/broker@.service")).unwrap();
        world.laptop.write(".config/systemd/user/broker@.service", unit, 0o644);
        let path = program().parent().unwrap().display().to_string();
        // Where the program is, which profile, and no ten seconds until it is started again.
        let further =
            format!("[Service]\nEnvironment=PATH={path}:/usr/bin:/bin AWS_PROFILE=dev\nRestartSec=1\n");
        world.laptop.write(".config/systemd/user/broker@.service.d/test.conf", further, 0o644);
        let mut command = world.laptop.command("/lib/systemd/systemd");
        command.args(["--user", "--log-target=console", "--unit=basic.target"]);
        command.envs(world.aws.environment()).env("XDG_RUNTIME_DIR", &runtime);
        let process = Some(world.laptop.spawn(command));
        let manager = Self { process, groups, runtime };
        eventually("the manager is there", PATIENCE, || {
            let output = manager.control(world, &["is-system-running"]);
            if output.stdout().trim() == "running" { Ok(()) } else { Err(output.to_string()) }
        });
        manager
    }

    fn control(&self, world: &World, arguments: &[&str]) -> Output {
        let mut command = world.laptop.command("systemctl");
        command.arg("--user").args(arguments).env("XDG_RUNTIME_DIR", &self.runtime);
        world.laptop.run(command)
    }

    fn property(&self, world: &World, name: &str) -> String {
        self.control(world, &["show", "--value", "--property", name, UNIT])
            .success()
            .stdout()
            .trim()
            .to_owned()
    }

    fn state(&self, world: &World) -> String {
        let mut command = world.broker(&["status", "--json"]);
        command.env("XDG_RUNTIME_DIR", &self.runtime);
        let status: serde_json::Value =
            serde_json::from_str(&world.laptop.run(command).success().stdout()).unwrap();
        status["tunnels"][0]["state"].as_str().unwrap_or("none").to_owned()
    }

    fn end(mut self, world: &mut World) {
        let _asked = self.control(world, &["exit"]);
        let mut process = self.process.take().unwrap();
        world.heard("systemd", &process.wait(PATIENCE));
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _moved = fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string());
        // Where the test failed, there is more than an empty directory.
        let _killed = fs::write(self.groups.join("cgroup.kill"), "1");
        let mut remove = Command::new("find");
        remove.arg(&self.groups).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
        let _removed = run_within(remove, &[], PATIENCE);
    }
}

const UNIT: &str = "broker@bastion";

#[test]
fn systemd_starts_reloads_restarts_and_stops_the_unit() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let manager = Manager::start(&world);
    assert_eq!(UNIT, format!("broker@{BASTION}"));
    // Returns when it is ready, and ready is when somebody is served.
    let output = manager.control(&world, &["start", UNIT]);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(manager.state(&world), "up");
    assert_eq!(manager.property(&world, "StatusText"), "serving AWS credentials to bastion");
    let user = world.sshd.user().clone();
    assert_eq!(world.fetch(&user, "http://127.0.0.1:4144/healthcheck", None).status(), 401);

    let before = world.sshd.connections();
    let output = manager.control(&world, &["reload", UNIT]);
    assert_eq!(output.code, Some(0), "{output}");
    eventually("another connection", PATIENCE, || match world.sshd.connections() {
        now if now.len() == 1 && now != before && manager.state(&world) == "up" => Ok(()),
        now => Err(format!("{now:?}, before {before:?}")),
    });
    assert_eq!(manager.property(&world, "NRestarts"), "0");

    // One that dies is started again.
    let pid = manager.property(&world, "MainPID");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    eventually("another process serves", PATIENCE, || {
        let now = (manager.property(&world, "NRestarts"), manager.property(&world, "ActiveState"));
        if now == ("1".into(), "active".into()) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(manager.state(&world), "up");

    // A clean end is one, by whomever, and nothing starts it again.
    let mut stop = world.broker(&["stop", BASTION]);
    stop.env("XDG_RUNTIME_DIR", &manager.runtime);
    let _stopped = world.run(stop).success();
    eventually("it has ended", PATIENCE, || match manager.property(&world, "ActiveState") {
        state if state == "inactive" => Ok(()),
        state => Err(state),
    });
    let _started = manager.control(&world, &["start", UNIT]).success();
    let _stopped = manager.control(&world, &["stop", UNIT]).success();
    // One that failed would be kept.
    assert_eq!(manager.property(&world, "ActiveState"), "inactive");
    world.wait_for_clean_host();

    // What only a person can help is not tried again and again.
    world.aws.remove_role(ACCOUNT, "Developer");
    let output = manager.control(&world, &["start", UNIT]);
    assert_ne!(output.code, Some(0), "{output}");
    let ended = (manager.property(&world, "ExecMainStatus"), manager.property(&world, "ActiveState"));
    assert_eq!(ended, ("7".into(), "failed".into()));
    manager.end(&mut world);
    world.wait_for_clean_host();
    world.assert_clean();
}
