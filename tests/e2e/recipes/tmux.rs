//! Panes of tmux: opened before us, opened by a shell of ours, and what is in them when a tunnel ended and another began.

use crate::support::{PATIENCE, World, eventually, sdk};

const WHO: &str = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])";

/// A server of tmux of the host's user.
struct Tmux {
    socket: String,
    lines: u32,
}

impl Tmux {
    fn run(&self, world: &mut World, arguments: &[&str]) {
        let mut all = vec!["-S", &*self.socket, "-f", "/dev/null"];
        all.extend_from_slice(arguments);
        let command = world.on_host("tmux", &all);
        drop(world.run(command).success());
    }

    /// Types a line into a pane and returns what its command printed and its status.
    #[track_caller]
    fn line(&mut self, world: &mut World, pane: &str, line: &str) -> (String, String) {
        self.lines += 1;
        let (part, whole) = (format!("part.{}", self.lines), format!("whole.{}", self.lines));
        let typed = format!("{line} > ~/{part} 2>&1; echo \"status $?\" >> ~/{part}; mv ~/{part} ~/{whole}");
        self.run(world, &["send-keys", "-t", pane, "-l", &typed]);
        self.run(world, &["send-keys", "-t", pane, "Enter"]);
        let path = world.home_file(&whole);
        let text = eventually("the pane's command", PATIENCE, || {
            std::fs::read_to_string(&path).map_err(|e| e.to_string())
        });
        let (said, status) = text.trim_end().rsplit_once("status ").unwrap();
        (said.trim().to_owned(), status.to_owned())
    }
}

#[test]
fn panes_work_while_there_is_a_tunnel_whenever_they_were_opened() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    world.plant("who.py", WHO, 0o644);
    let who = format!("{} who.py", sdk("python/bin/python").display());
    let mut tmux = Tmux { socket: world.home_file("tmux").display().to_string(), lines: 0 };
    tmux.run(&mut world, &["new-session", "-d", "-s", "before", "-x", "200", "-y", "50"]);
    let bare = "AWS_DEFAULT_REGION=eu-west-1 AWS_EC2_METADATA_DISABLED=true";
    let (said, status) = tmux.line(&mut world, "before", &format!("{bare} {who}"));
    assert!(status != "0" && said.contains("Unable to locate credentials"), "{said}");

    // A shell of ours opens another one, in a server of its own, whose panes have its environment.
    let mut ours = Tmux { socket: world.home_file("ours").display().to_string(), lines: 100 };
    let mut shell =
        world.laptop.terminal(world.connect(&["-p", "dev", "-p", "audit", "--install-profiles"]), 24, 200);
    shell.wait_for_text("AWS SDKs on", PATIENCE);
    shell.send(format!("tmux -S {} -f /dev/null new-session -d -s ours && echo open''ed\r", ours.socket));
    shell.wait_for_text("opened", PATIENCE);
    let developer = (World::arn("Developer"), "0".to_owned());
    assert_eq!(ours.line(&mut world, "ours", &who), developer);
    // The older pane knows the profiles, and whoever reads our file there has the rest.
    assert_eq!(
        tmux.line(&mut world, "before", &format!("AWS_DEFAULT_REGION=eu-west-1 AWS_PROFILE=audit {who}")).0,
        World::arn("Auditor")
    );
    let directory = world.left_on_host()[0].join("4144");
    assert_eq!(
        tmux.line(&mut world, "before", &format!(". {}/env.sh; {who}", directory.display())),
        developer
    );
    shell.send("exit\r");
    let output = shell.wait(PATIENCE);
    world.heard("a shell", &output);
    world.assert_clean();

    // The tunnel is gone, the panes are not: they fail at once, and name the file that is gone or what to do.
    for (tmux, pane) in [(&mut tmux, "before"), (&mut ours, "ours")] {
        let (said, status) = tmux.line(&mut world, pane, &who);
        assert!(
            status != "0" && said.contains(&format!("{}/token-dev", directory.display())),
            "{pane}: {said}"
        );
    }

    // The next one has the same port and directory, so both work again as they are.
    let tunnel = world.tunnel(&["-p", "dev"]);
    assert_eq!(tunnel.directory(), directory);
    assert_eq!(tmux.line(&mut world, "before", &who), developer);
    assert_eq!(ours.line(&mut world, "ours", &who), developer);
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    for tmux in [&tmux, &ours] {
        tmux.run(&mut world, &["kill-server"]);
    }
    world.assert_clean();
}
