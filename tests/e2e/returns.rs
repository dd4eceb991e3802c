//! What a person at a terminal sees of a lost link: a new shell, the work in tmux, a question before a second login.

use std::{process::Command, time::Duration};

use sandbox::{home::Terminal, sshd::SshdOptions};

use crate::support::{BASTION, PATIENCE, World, eventually, within};

/// An interactive shell with these arguments, at its prompt.
fn shell(world: &World, arguments: &[&str]) -> Terminal {
    let mut terminal = world.laptop.terminal(
        world.broker(&[&["connect", BASTION, "-p", "dev"], arguments].concat()),
        40,
        200,
    );
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    prompt(&mut terminal);
    terminal
}

/// Has the shell show a prompt that nothing else can be taken for.
fn prompt(terminal: &mut Terminal) {
    terminal.send("PS1='pro''mpt> '\n");
    terminal.wait_for_text("prompt> ", PATIENCE);
}

/// The shell has credentials.
#[track_caller]
fn assert_serves(terminal: &mut Terminal) {
    terminal.send(
        "curl -s -o /dev/null -w 'got %{http_code}\\n' -H \"Authorization: $(cat \"$AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE\")\" \
         \"$AWS_CONTAINER_CREDENTIALS_FULL_URI\"\n",
    );
    terminal.wait_for_text("got 200", PATIENCE);
}

#[track_caller]
fn assert_leaves(world: &mut World, mut terminal: Terminal, code: i32) {
    terminal.send(format!("exit {code}\n"));
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(code), "{output}");
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_lost_shell_is_replaced_by_a_new_one_and_its_user_is_told() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut terminal = shell(&world, &[]);
    let raw = terminal.settings();
    for time in 0..2 {
        // What the old shell has not read when it ends is the new one's.
        terminal.send(format!("marked=yes; echo is''set{time}\n"));
        terminal.wait_for_text(&format!("isset{time}"), PATIENCE);
        world.sshd.kill_connections();
        terminal.wait_for_text("the connection to bastion was lost", PATIENCE);
        terminal.wait_for_text("back after", PATIENCE);
        terminal.wait_for_text("this is a new shell", PATIENCE);
        // Everything that is typed from now on is the new shell's, to the last key.
        prompt(&mut terminal);
        assert_eq!(terminal.settings(), raw);
        terminal.send("echo \"marked=<$marked>\"\n");
        terminal.wait_for_text("marked=<>", PATIENCE);
        assert_serves(&mut terminal);
    }
    assert_leaves(&mut world, terminal, 3);
}

/// tmux keeps its sockets in `/tmp`, which every test shares: from here on this test has a place of its own there.
fn own_tmux(world: &World) {
    let user = world.sshd.user();
    let place = format!("/tmp/tmux-{}", user.uid);
    std::fs::create_dir_all(&place).unwrap();
    let options = format!("mode=700,uid={},gid={}", user.uid, user.gid);
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs", &place]).status().unwrap();
    assert!(mount.success());
}

#[test]
fn with_tmux_the_work_survives() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    own_tmux(&world);
    let mut terminal = shell(&world, &["--tmux"]);
    terminal.send("marked=yes; echo is''set\n");
    terminal.wait_for_text("isset", PATIENCE);
    for _ in 0..2 {
        world.sshd.kill_connections();
        terminal.wait_for_text("the connection to bastion was lost", PATIENCE);
        terminal.wait_for_text("back in tmux", PATIENCE);
        terminal.wait_for_text("prompt> ", PATIENCE);
        terminal.send("echo \"marked=<$marked>\"\n");
        terminal.wait_for_text("marked=<yes>", PATIENCE);
        assert_serves(&mut terminal);
    }
    // Another window has the environment too.
    terminal.send("\x02c");
    prompt(&mut terminal);
    assert_serves(&mut terminal);
    terminal.send("exit\n");
    terminal.wait_for_text("prompt> ", PATIENCE);
    terminal.send("exit\n");
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn where_there_is_no_tmux_that_is_said_and_there_is_a_shell() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mount = Command::new("mount").args(["--bind", "/dev/null", "/usr/bin/tmux"]).status().unwrap();
    assert!(mount.success());
    let mut terminal = shell(&world, &["--tmux"]);
    assert!(terminal.screen().contains("there is no tmux on this host"), "{}", terminal.screen());
    assert_serves(&mut terminal);
    assert_leaves(&mut world, terminal, 0);
}

#[test]
fn row_37_where_a_key_is_refused_a_person_is_asked_and_nobody_hammers() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut terminal = shell(&world, &[]);
    world.sshd.configure(&["PubkeyAuthentication no".to_owned(), "PasswordAuthentication yes".to_owned()]);
    let log = |world: &World| world.sshd.knocks();
    let before = log(&world);
    world.sshd.kill_connections();
    terminal.wait_for_text("could not log in", PATIENCE);
    terminal.wait_for_text("press Enter to log in again", PATIENCE);
    assert!(!within(Duration::from_secs(3), || log(&world) != before + 1), "it went on trying");
    world.sshd.configure(&[]);
    terminal.send("\n");
    terminal.wait_for_text("this is a new shell", PATIENCE);
    prompt(&mut terminal);
    terminal.send("exit 0\n");
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_login_with_a_password_is_never_repeated_without_its_person() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().config("PasswordAuthentication yes"));
    world.sshd.set_password("open sesame");
    // The key is there and refused: what was typed is the only way in.
    world.sshd.configure(&["PubkeyAuthentication no".to_owned(), "PasswordAuthentication yes".to_owned()]);
    let connect = world.broker(&["connect", BASTION, "-p", "dev"]);
    let mut terminal = world.laptop.terminal(connect, 40, 200);
    terminal.wait_for_text("Password:", PATIENCE);
    terminal.send("open sesame\n");
    terminal.wait_for_text("AWS SDKs on", PATIENCE);
    let connections = || world.sshd.knocks();
    let before = connections();
    world.sshd.kill_connections();
    terminal.wait_for_text("press Enter to log in again", PATIENCE);
    assert!(!within(Duration::from_secs(4), || connections() != before), "it did not wait");
    terminal.send("\n");
    terminal.wait_for_text("Password:", PATIENCE);
    terminal.send("open sesame\n");
    terminal.wait_for_text("this is a new shell", PATIENCE);
    eventually("two logins", PATIENCE, || {
        let count = world.sshd.logins();
        if count == 2 { Ok(()) } else { Err(format!("{count}")) }
    });
    terminal.send("exit 0\n");
    let output = terminal.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(!output.stdout().contains("sesame"), "a password was shown");
    world.heard("broker on a terminal", &output);
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn a_probe_fails_while_the_tunnel_is_not_in_service() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().relay());
    let tunnel = world.tunnel(&["-p", "dev"]);
    let pid = tunnel.process.pid().to_string();
    let probe = ["env", pid.as_str(), "--print-env", "json"];
    let before = world.run(world.broker(&probe)).success();
    // Nothing answers any more, so that it stays lost.
    world.sshd.pause_network(true);
    world.sshd.kill_connections();
    eventually("the probe fails", PATIENCE, || {
        let output = world.run(world.broker(&probe));
        match output.code {
            Some(1) => Ok(()),
            _ => Err(output.to_string()),
        }
    });
    let output = world.run(world.broker(&probe));
    assert_eq!((output.code, output.stdout().as_str()), (Some(1), ""), "{output}");
    assert!(output.stderr().contains("the tunnel to bastion has no connection now"), "{output}");
    world.sshd.pause_network(false);
    let back = within(PATIENCE, || world.run(world.broker(&probe)).code == Some(0));
    assert!(back, "it is ready again");
    assert_eq!(world.run(world.broker(&probe)).stdout(), before.stdout());
    assert_eq!(tunnel.stop(&mut world).code, Some(130));
    world.wait_for_clean_host();
    world.assert_clean();
}
