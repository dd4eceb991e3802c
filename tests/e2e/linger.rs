//! `--linger`: what was given to the host outlives us there for a while, and not a moment longer.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::{home::Output, sshd::SshdOptions, users::User};

use crate::support::{BASTION, PATIENCE, STOP, World, eventually, offers, sdk, within};

const ARN: &str = "import boto3, sys; p = sys.argv[1] if len(sys.argv) > 1 else None; \
                   print(boto3.Session(profile_name=p).client('sts').get_caller_identity()['Arn'])";

/// What a helper needs at most to notice that we are gone, where the connection says so.
const KILLED: Duration = Duration::from_secs(1);

type Variables = BTreeMap<String, String>;

impl World {
    fn boto3(&self, environment: &Variables, profile: Option<&str>) -> Command {
        let mut python = self.on_host(sdk("python/bin/python").to_str().unwrap(), &["-c", ARN]);
        python.args(profile).envs(environment);
        python
    }

    /// boto3 and the AWS CLI get both roles, in an environment of ours.
    #[track_caller]
    fn assert_served(&mut self, environment: &Variables) {
        for (profile, role) in [(None, "Developer"), (Some("audit"), "Auditor")] {
            let boto3 = self.boto3(environment, profile);
            let output = self.run(boto3);
            assert_eq!(output.stdout().trim(), Self::arn(role), "{profile:?}: {output}");
        }
        let arguments = ["sts", "get-caller-identity", "--query", "Arn", "--output", "text"];
        let mut cli = self.on_host(sdk("awscli-v2/aws").to_str().unwrap(), &arguments);
        cli.envs(environment);
        let output = self.run(cli);
        assert_eq!(output.stdout().trim(), Self::arn("Developer"), "{output}");
    }

    /// boto3 gets nothing, in an environment of ours.
    #[track_caller]
    fn assert_not_served(&mut self, environment: &Variables) {
        let boto3 = self.boto3(environment, None);
        let output = self.run(boto3);
        assert_ne!(output.code, Some(0), "{output}");
    }

    fn clean_up(&mut self) -> Output {
        let command = self.broker(&["clean", BASTION, "--batch"]);
        self.run(command)
    }

    /// What lies there is private, holds role credentials in their files only, and nothing that leads to us.
    #[track_caller]
    fn assert_lingers(&self, directory: &Path) {
        let uid = self.sshd.user().uid;
        assert_eq!(fs::metadata(directory).unwrap().mode() & 0o7777, 0o700);
        let mut roles = Vec::new();
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let (name, metadata) = (entry.file_name().into_string().unwrap(), entry.metadata().unwrap());
            assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, uid), "{name}");
            assert!(!name.starts_with("token-") && name != "s", "{name}");
            if name.starts_with("role-") {
                roles.push(entry.path());
            }
        }
        assert_eq!(roles.len(), 2, "{roles:?}");
        self.assert_no_secret_but(&roles);
        let other = User::other();
        for path in roles.iter().map(PathBuf::as_path).chain([directory]) {
            let path = path.to_str().unwrap();
            let mut cat = self.as_user(&other, "sh", &["-c", "cat \"$0\" || ls \"$0\"", path]);
            let output = cat.output().unwrap();
            assert!(!output.status.success() && output.stdout.is_empty(), "another user reads {path}");
        }
    }
}

/// Waits until nothing is left of what lingered: no file and no process.
#[track_caller]
fn wait_until_over(world: &World, patience: Duration) {
    eventually("all is gone", patience, || {
        let (left, running) = (world.left_on_host(), world.running_on_host());
        if left.is_empty() && running.is_empty() { Ok(()) } else { Err(format!("{left:?}, {running:?}")) }
    });
}

#[test]
fn after_the_end_boto3_and_the_cli_go_on_in_every_transport_until_clean() {
    if sandbox::isolated!() {
        return;
    }
    for (transport, forwards) in [("auto", ""), ("tcp", ""), ("unix", ""), ("file", "DisableForwarding yes")]
    {
        if !offers(transport) {
            continue;
        }
        let mut world = World::with(SshdOptions::default().config(forwards));
        let flags = ["-p", "dev", "-p", "audit", "--transport", transport, "--linger", "2h"];
        let tunnel = world.tunnel(&flags);
        let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
        assert!(!environment.keys().any(|name| name.starts_with("AWS_CONTAINER")), "{}", tunnel.exports);
        world.assert_served(&environment);
        let output = tunnel.stop(&mut world);
        // The sandbox's roles last an hour, and so not two.
        let said = output.stderr();
        assert!(said.contains("role credentials stay there until") && said.contains("(in 60 min)"), "{said}");
        assert!(said.contains("`broker clean bastion` removes them now"), "{said}");
        assert!(said.contains("stay there for 120 min, or until they expire"), "{said}");
        world.assert_lingers(&directory);
        world.assert_served(&environment);

        let doctor = world.broker(&["doctor", BASTION, "--batch"]);
        let output = world.run(doctor);
        let told = format!("`{}` has role credentials that `--linger` left", directory.display());
        assert!(output.stdout().contains(&told), "{output}");
        world.assert_lingers(&directory);
        let output = world.clean_up().success();
        assert_eq!(output.stdout(), format!("removed {}\n", directory.display()), "{output}");
        world.wait_for_clean_host();
        world.assert_not_served(&environment);
        world.assert_clean();
    }
}

#[test]
fn killed_it_lingers_too_and_a_new_tunnel_takes_its_place() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let flags = ["-p", "dev", "-p", "audit", "--linger", "2h"];
    let mut tunnel = world.tunnel(&flags);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    let token = directory.join("token-dev");
    assert!(token.exists());
    tunnel.process.signal(Signal::SIGKILL);
    eventually("the token is gone", KILLED, || if token.exists() { Err(String::new()) } else { Ok(()) });
    let output = tunnel.process.wait(STOP);
    world.heard("broker", &output);
    eventually("what waits is known", PATIENCE, || {
        fs::read_to_string(directory.join(".timer")).map(drop).map_err(|error| error.to_string())
    });
    world.assert_lingers(&directory);
    world.assert_served(&environment);

    // Programs that still have the old environment are served by the new one.
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "1s"]);
    assert_eq!(tunnel.directory(), directory);
    world.assert_served(&environment);
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("(in 1 s)"), "{output}");
    wait_until_over(&world, PATIENCE);
    world.assert_not_served(&environment);
    world.assert_clean();
}

#[test]
fn when_its_time_is_over_nothing_is_left_whichever_comes_first() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // The end of the credentials, and the time that was asked for.
    for (life, linger, least, most) in [(12, "2h", 1, 12), (3600, "6s", 5, 7)] {
        world.aws.set_role_life(Duration::from_secs(life));
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", linger]);
        let directory = tunnel.directory();
        let output = tunnel.stop(&mut world);
        let since = Instant::now();
        let said = output.stderr();
        let told = said.split("(in ").nth(1).and_then(|rest| rest.split(" s)").next()).expect(&said);
        let told: u64 = told.parse().expect(&said);
        assert!((least..=most).contains(&told), "{said}");
        assert!(directory.join("role-dev.json").exists());
        wait_until_over(&world, PATIENCE);
        // Not before what was promised, but for parts of seconds and what the stop took.
        assert!(since.elapsed() + Duration::from_secs(3) >= Duration::from_secs(told), "{said}");
    }
    world.assert_clean();
}

#[test]
fn on_a_silent_link_what_may_linger_does_and_the_rest_goes() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().relay());
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "2h", "--reconnect-for", "0"]);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    world.sshd.pause_network(true);
    eventually("the token is gone", Duration::from_secs(45), || {
        if directory.join("token-dev").exists() { Err("it is there") } else { Ok(()) }.map_err(str::to_owned)
    });
    let output = tunnel.process.wait(PATIENCE);
    assert_eq!(output.code, Some(5), "{output}");
    // It is not known when the host notices, but until when it does not matter any more.
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    world.heard("broker", &output);
    world.assert_served(&environment);
    world.assert_lingers(&directory);
    world.sshd.pause_network(false);
    world.clean_up().success();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn jobs_of_a_command_or_a_shell_go_on_after_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    // It starts when we have ended.
    let job = format!(
        "nohup sh -c 'until [ -e go ]; do sleep 0.1; done; {} -c \"$ARN\" > said.new 2>&1; mv said.new said' \
         >/dev/null 2>&1 & echo started",
        sdk("python/bin/python").display()
    );
    let said = world.home_file("said");
    let line = format!("export ARN=\"{ARN}\"; {job}");
    let output = world.run(world.connect(&["-p", "dev", "--linger", "1h", "--", &line]));
    assert_eq!((output.code, output.stdout().trim()), (Some(0), "started"), "{output}");
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    world.plant("go", "", 0o600);
    let found = eventually("the job ends", PATIENCE, || fs::read_to_string(&said).map_err(|e| e.to_string()));
    assert_eq!(found.trim(), World::arn("Developer"));
    world.clean_up().success();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn what_is_taken_back_does_not_linger() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "2h"]);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    let revoke = world.broker(&["revoke", BASTION, "-p", "dev"]);
    world.run(revoke).success();
    assert_eq!(fs::read_to_string(directory.join("role-dev.json")).unwrap(), "");
    assert_ne!(fs::read_to_string(directory.join("role-audit.json")).unwrap(), "");
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    assert!(!directory.join("role-dev.json").exists());
    let audit = world.boto3(&environment, Some("audit"));
    assert_eq!(world.run(audit).stdout().trim(), World::arn("Auditor"));
    let dev = world.boto3(&environment, Some("dev"));
    assert_ne!(world.run(dev).code, Some(0));
    world.clean_up().success();

    // Who ends it from elsewhere hears of it as well.
    let mut tunnel = world.tunnel(&["-p", "dev", "--linger", "2h"]);
    let stop = world.broker(&["stop", BASTION]);
    let output = world.run(stop).success();
    assert!(output.stderr().contains("stopped; role credentials stay there until 2"), "{output}");
    let output = tunnel.process.wait(STOP);
    world.heard("broker", &output);
    world.clean_up().success();

    // With nothing left to linger, nothing does.
    let tunnel = world.tunnel(&["-p", "dev", "--linger", "2h"]);
    let revoke = world.broker(&["revoke", BASTION]);
    world.run(revoke).success();
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn with_our_profiles_in_the_hosts_own_configuration_those_go_and_the_credentials_stay() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "2h", "--install-profiles"]);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    // A kernel, which no shell of ours starts.
    let kernel = world.boto3(&Variables::new(), Some("audit"));
    assert_eq!(world.run(kernel).stdout().trim(), World::arn("Auditor"));
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    assert!(!world.home_file(".aws").exists());
    world.assert_lingers(&directory);
    world.assert_served(&environment);
    world.clean_up().success();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_lost_link_is_bridged_and_the_next_one_takes_over() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "2h"]);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    for _ in 0..2 {
        assert_eq!(world.sshd.kill_connections(), 1);
        tunnel.process.wait_for_line(sandbox::home::Stream::Stderr, "back after", PATIENCE);
        assert!(directory.join("token-dev").exists() && !directory.join(".timer").exists());
        world.assert_served(&environment);
    }
    // Nobody gets in any more; what lies there serves meanwhile.
    world.sshd.configure(&["PubkeyAuthentication no".to_owned()]);
    world.sshd.kill_connections();
    let output = tunnel.process.wait(PATIENCE);
    world.heard("broker connect -N", &output);
    assert_eq!(output.code, Some(5), "{output}");
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    world.assert_served(&environment);
    world.assert_lingers(&directory);
    world.sshd.configure(&[]);
    world.clean_up().success();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn where_logind_empties_places_it_lies_elsewhere_and_killing_what_waits_does_not_prolong_it() {
    if sandbox::isolated!() {
        return;
    }
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "mode=1777", "none", "/tmp"]).status();
    assert!(mounted.unwrap().success());
    fs::create_dir_all("/run/systemd/seats").unwrap();
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--linger", "4s"]);
    let (directory, environment) = (tunnel.directory(), tunnel.environment.clone());
    assert!(directory.starts_with("/tmp"), "{}", directory.display());
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("role credentials stay there until"), "{output}");
    let running = world.processes_on_host();
    for id in running.keys() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*id), Signal::SIGKILL).unwrap();
    }
    assert!(!running.is_empty() && directory.join("role-dev.json").exists());
    // Whoever asks next finds that the time is over.
    let over = within(PATIENCE, || {
        let boto3 = world.boto3(&environment, None);
        world.laptop.run(boto3).code != Some(0)
    });
    assert!(over && !directory.join("role-dev.json").exists() && !directory.join("role-audit.json").exists());
    world.clean_up().success();
    world.assert_clean();

    // Without `--linger` nothing changes.
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert!(tunnel.directory().starts_with("/dev/shm"));
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    world.assert_clean();
}

#[test]
fn what_cannot_linger_is_refused_with_the_way_out() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for (flags, reason) in [
        (&["--token", "env"][..], "`--linger` leaves nothing to whoever uses a token"),
        (&["--remote-config", "keep"], "`--linger` leaves nothing to whoever uses the host's own"),
        (&["--linger", "soon"], "not a time such as"),
    ] {
        let mut all = vec!["-p", "dev", "-N"];
        if flags[0] != "--linger" {
            all.extend(["--linger", "1h"]);
        }
        all.extend(flags);
        let output = world.run(world.connect(&all));
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr().contains(reason), "{output}");
    }
    assert_eq!(world.sshd.knocks(), 0);

    let mut world = World::with(SshdOptions::default().config("ForceCommand internal-sftp"));
    let output = world.run(world.connect(&["-p", "dev", "-N", "--linger", "1h"]));
    assert_eq!(output.code, Some(6), "{output}");
    let reason = "nothing there could remove what `--linger` would leave";
    assert!(output.stderr().contains(reason) && output.stderr().contains("leave out `--linger`"), "{output}");
    assert_eq!(output.stdout(), "");
    world.assert_clean();
}

#[test]
fn events_say_what_lingers() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let arguments = ["-p", "dev", "--linger", "30m", "--log-format", "json", "--", "true"];
    let output = world.run(world.connect(&arguments));
    assert_eq!(output.code, Some(0), "{output}");
    let stopped = output.stderr();
    let stopped = stopped.lines().find(|line| line.contains("\"stopped\"")).expect(&stopped);
    let stopped: serde_json::Value = serde_json::from_str(stopped).unwrap();
    assert_eq!((&stopped["lingers"], &stopped["host_clean"]), (&true.into(), &false.into()), "{stopped}");
    assert!(stopped["stays_until"].is_string(), "{stopped}");
    world.clean_up().success();
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn with_tls_and_confirmation_only_what_was_allowed_lingers() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let tunnel = world.tunnel(&["-p", "dev", "--linger", "1h", "--confirm", "--tls", "auto"]);
    let directory = tunnel.directory();
    assert_eq!(fs::read_to_string(directory.join("role-dev.json")).unwrap(), "", "nobody said yes");
    let environment = tunnel.environment.clone();
    world.assert_not_served(&environment);
    let output = tunnel.stop(&mut world);
    assert!(output.stderr().contains("no credentials were left there"), "{output}");
    world.wait_for_clean_host();
    world.assert_clean();
}
