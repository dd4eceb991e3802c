//! What a person sees: our shell inside the laptop's tmux, which knows what is on the screen and what the terminal does.

use std::path::PathBuf;

use nix::{sys::signal::Signal, unistd::Pid};

use crate::support::{PATIENCE, World, eventually};

/// A terminal of the laptop's user inside tmux, with a shell of theirs that has job control.
struct Screen {
    socket: PathBuf,
}

impl Screen {
    /// Opens one in which `. ~/connect` would start `broker connect`.
    fn open(world: &mut World) -> Self {
        let connect = world.connect(&["-p", "dev", "--reconnect-for", "0"]);
        let script = "printf '%q ' \"$0\" \"$@\" > ~/connect; tmux -S ~/screen -f /dev/null new-session -d -x 100 -y 30 \
                      'exec bash --norc --noprofile'";
        let opened = world.in_shell("bash", script, &connect);
        drop(world.run(opened).success());
        Self { socket: world.laptop.join("screen") }
    }

    #[track_caller]
    fn tmux(&self, world: &mut World, arguments: &[&str]) -> String {
        let mut command = world.laptop.command("tmux");
        command.arg("-S").arg(&self.socket).args(arguments);
        world.run(command).success().stdout()
    }

    /// Types text as it is.
    fn types(&self, world: &mut World, text: &str) {
        drop(self.tmux(world, &["send-keys", "-l", text]));
    }

    /// Presses keys by their names.
    fn presses(&self, world: &mut World, keys: &[&str]) {
        drop(self.tmux(world, &[&["send-keys"], keys].concat()));
    }

    /// Waits until the lines on the screen, and whether a full-screen program has it, are as they should be.
    #[track_caller]
    fn shows(&self, world: &mut World, what: &str, is: impl Fn(&[&str], bool) -> bool) {
        eventually(what, PATIENCE, || {
            let text = self.tmux(world, &["capture-pane", "-p"]);
            let full = self.tmux(world, &["display", "-p", "#{alternate_on}"]).trim() == "1";
            let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
            if is(&lines, full) { Ok(()) } else { Err(format!("full screen: {full}\n{text}")) }
        });
    }

    #[track_caller]
    fn shows_line(&self, world: &mut World, line: &str) {
        self.shows(world, line, |lines, _| lines.iter().any(|shown| shown.contains(line)));
    }

    /// The settings of the terminal that the shell gives to its programs.
    fn settings(&self, world: &mut World, name: &str) -> String {
        let path = world.laptop.join(name);
        self.types(world, &format!("stty -g > ~/{name}.new; mv ~/{name}.new ~/{name}\r"));
        eventually("the settings", PATIENCE, || {
            std::fs::read_to_string(&path).map_err(|error| error.to_string())
        })
    }

    /// The `broker` that runs here.
    fn broker(&self, world: &mut World) -> Pid {
        let shell = self.tmux(world, &["display", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        Pid::from_raw(children.trim().parse().unwrap())
    }

    fn connects(&self, world: &mut World) {
        self.types(world, "clear; . ~/connect\r");
        self.shows_line(world, "AWS SDKs on");
        self.types(world, "PS1='pro''mpt> '; seq 500 > ~/numbers; clear\r");
        self.shows(world, "the prompt", |lines, _| lines.first() == Some(&"prompt>"));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut kill = std::process::Command::new("tmux");
        kill.arg("-S").arg(&self.socket).arg("kill-server");
        kill.output().unwrap();
    }
}

/// Whether the screen is full of numbers from `first` on, with the prompt of `less` below.
fn is_paged(lines: &[&str], first: usize, rows: usize) -> bool {
    let numbers = (first..first + rows - 1).map(|number| number.to_string());
    let prompts = lines.last().is_some_and(|line| line.parse::<usize>().is_err());
    lines.len() == rows && prompts && numbers.zip(lines).all(|(number, line)| number == *line)
}

#[test]
fn a_full_screen_program_is_drawn_resized_suspended_and_left_behind() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let screen = Screen::open(&mut world);
    let before = screen.settings(&mut world, "before");
    screen.connects(&mut world);

    screen.types(&mut world, "less ~/numbers\r");
    screen.shows(&mut world, "the first page", |lines, full| full && is_paged(lines, 1, 30));
    drop(screen.tmux(&mut world, &["resize-window", "-x", "60", "-y", "20"]));
    // A key that comes together with the news of the size is lost on `less`.
    screen.shows(&mut world, "a smaller first page", |lines, full| full && is_paged(lines, 1, 20));
    screen.presses(&mut world, &["G"]);
    screen.shows(&mut world, "a smaller last page", |lines, full| full && is_paged(lines, 482, 20));

    // Suspended in the middle of it, the terminal is the local shell's; resumed, it goes on where it was.
    screen.presses(&mut world, &["g", "Enter"]);
    screen.shows(&mut world, "one line further", |lines, full| full && is_paged(lines, 2, 20));
    screen.presses(&mut world, &["Enter", "~", "C-z"]);
    screen.shows_line(&mut world, "Stopped");
    assert_eq!(screen.settings(&mut world, "suspended"), before);
    screen.types(&mut world, "fg\r");
    screen.shows_line(&mut world, "connect");
    screen.presses(&mut world, &["G"]);
    screen.shows(&mut world, "the last page", |lines, full| full && is_paged(lines, 482, 20));
    screen.presses(&mut world, &["q"]);
    screen.shows(&mut world, "the screen of before", |lines, full| {
        !full && lines.iter().any(|line| line.starts_with("prompt>"))
    });
    screen.types(&mut world, "exit 0\r");
    screen.shows_line(&mut world, "left there");
    assert_eq!(screen.settings(&mut world, "after"), before);
    world.wait_for_clean_host();

    // A crash in the middle of it.
    screen.connects(&mut world);
    screen.types(&mut world, "less ~/numbers\r");
    screen.shows(&mut world, "the first page", |lines, full| full && is_paged(lines, 1, 20));
    let broker = screen.broker(&mut world);
    nix::sys::signal::kill(broker, Signal::SIGABRT).unwrap();
    screen.shows_line(&mut world, "Aborted");
    assert_eq!(screen.settings(&mut world, "crashed"), before);
    world.wait_for_clean_host();
    world.assert_clean();
}
