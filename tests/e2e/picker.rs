//! No profile is named, there are several, and somebody is at the terminal.

use nix::sys::signal::Signal;
use sandbox::home::Terminal;

use crate::{
    stops::broker_below,
    support::{BASTION, PATIENCE, World},
};

const NO_PROFILE: &str = "no profile was named";

/// `broker credentials` on a terminal, with the settings that it found there.
fn pick(world: &World, term: &str, arguments: &[&str]) -> (Terminal, String) {
    let mut all = vec!["credentials", "--format", "dotenv"];
    all.extend_from_slice(arguments);
    let broker = world.broker(&all);
    // What it prints is a secret; here only whose it is matters. A shell on the same terminal holds it open.
    let script = "stty -a < /dev/tty > \"$HOME/before\"; \"$0\" \"$@\" > \"$HOME/out\"; code=$?; \
                  stty -a < /dev/tty > \"$HOME/after\"; echo \"ended with $code\"";
    let mut shell = world.in_shell("sh", script, &broker);
    shell.env("TERM", term);
    let terminal = world.laptop.terminal(shell, 24, 100);
    let settings = terminal.settings();
    (terminal, settings)
}

/// The end, with this code; the terminal is as it was, and the cursor is there.
#[track_caller]
fn ends(world: &mut World, (mut terminal, _): (Terminal, String), code: i32) -> String {
    terminal.wait_for_text(&format!("ended with {code}"), PATIENCE);
    let output = terminal.wait(PATIENCE);
    world.heard("broker on a terminal", &output);
    assert_eq!(world.laptop.read("before"), world.laptop.read("after"), "the terminal is as it was");
    let screen = output.stdout();
    assert_eq!(screen.matches("\x1b[?25l").count() > 0, screen.contains("\x1b[?25h"), "{screen:?}");
    assert!(screen.rfind("\x1b[?25h") >= screen.rfind("\x1b[?25l"), "the cursor is hidden: {screen:?}");
    let out = world.laptop.read("out");
    std::fs::remove_file(world.laptop.join("out")).unwrap();
    out
}

#[test]
fn a_person_chooses_a_profile_by_a_few_letters_and_the_last_used_comes_first() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let key = |world: &World, role: &str| world.aws.last_issued(crate::support::ACCOUNT, role).unwrap();
    let discover = world.broker(&["profiles", "--discover", "--batch", "--sso-session", "corp"]);
    let _names = world.run(discover).success();

    let mut terminal = pick(&world, "xterm", &[]);
    terminal.0.wait_for_text("> audit", PATIENCE);
    // As the names go, the other is below; the account has its name, and the sign-in its end.
    let below = terminal.0.wait_for_text("  dev", PATIENCE);
    assert!(below.contains("Development") && below.contains("signed in until"), "{below}");
    terminal.0.wait_for_text("2 of 2", PATIENCE);
    terminal.0.send("DVLPR");
    terminal.0.wait_for_text("1 of 2", PATIENCE);
    terminal.0.send("\r");
    let out = ends(&mut world, terminal, 0);
    assert!(out.contains(&key(&world, "Developer")), "the role that was chosen");

    let mut terminal = pick(&world, "xterm", &[]);
    terminal.0.wait_for_text("> dev", PATIENCE);
    terminal.0.wait_for_text("2 of 2", PATIENCE);
    terminal.0.send("\x1b[B");
    terminal.0.wait_for_text("> audit", PATIENCE);
    terminal.0.send("\r");
    let out = ends(&mut world, terminal, 0);
    assert!(out.contains(&key(&world, "Auditor")));

    // It leads to a tunnel as well.
    let mut shell = world.laptop.terminal(world.broker(&["connect", BASTION]), 24, 100);
    shell.wait_for_text("> audit", PATIENCE);
    shell.wait_for_text("2 of 2", PATIENCE);
    shell.send("\r");
    shell.wait_for_text("get `audit`", PATIENCE);
    shell.send("exit\n");
    let output = shell.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("broker connect", &output);
    world.assert_clean();
}

#[test]
fn every_way_out_of_the_choice_restores_the_terminal() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for leave in ["\x1b", "\x03", "\x04"] {
        let mut terminal = pick(&world, "xterm", &[]);
        terminal.0.wait_for_text("2 of 2", PATIENCE);
        terminal.0.send(leave);
        assert_eq!(ends(&mut world, terminal, 130), "");
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = pick(&world, "xterm", &[]);
        terminal.0.wait_for_text("2 of 2", PATIENCE);
        nix::sys::signal::kill(broker_below(&terminal.0), signal).unwrap();
        assert_eq!(ends(&mut world, terminal, 130), "", "{signal}");
    }
    // The terminal goes away.
    let mut gone = world.laptop.terminal(world.broker(&["credentials"]), 24, 100);
    gone.wait_for_text("2 of 2", PATIENCE);
    gone.signal(Signal::SIGHUP);
    assert_eq!(gone.wait(PATIENCE).code, Some(130));
    world.assert_clean();
}

#[test]
fn a_dumb_terminal_has_a_numbered_list_and_nobody_is_asked_where_nobody_is() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let mut terminal = pick(&world, "dumb", &[]);
    terminal.0.wait_for_text("  2  dev", PATIENCE);
    terminal.0.wait_for_text("number or name", PATIENCE);
    terminal.0.send("7\n");
    terminal.0.wait_for_text("no such profile", PATIENCE);
    // What is typed before the question is thrown away.
    terminal.0.wait_for_text("number or name", PATIENCE);
    terminal.0.send("2\n");
    let out = ends(&mut world, terminal, 0);
    assert!(out.contains(&world.aws.last_issued(crate::support::ACCOUNT, "Developer").unwrap()));

    let mut terminal = pick(&world, "xterm", &["--batch"]);
    terminal.0.wait_for_text(NO_PROFILE, PATIENCE);
    ends(&mut world, terminal, 2);
    let output = world.laptop.run(world.broker(&["credentials"]));
    assert!(output.code == Some(2) && output.stderr().contains(NO_PROFILE), "{output}");
    world.assert_clean();
}
