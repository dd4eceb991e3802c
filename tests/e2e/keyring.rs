//! SSO tokens in the keyring of the desktop: a real GNOME Keyring on a real session bus of the laptop's user.

use std::process::Command;

use sandbox::home::{Output, Process, Stream};

use crate::support::{PATIENCE, World, eventually, sdk};

/// The session of the laptop's user.
struct Desktop {
    address: String,
    runtime: String,
    _bus: Process,
    _keyring: Process,
}

const LOGIN: &str = "/org/freedesktop/secrets/collection/login";

impl Desktop {
    fn start(world: &World) -> Self {
        let runtime = world.laptop.mkdir("run", 0o700).display().to_string();
        let mut bus = world.laptop.command("dbus-daemon");
        bus.args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .env("XDG_RUNTIME_DIR", &runtime);
        let mut bus = world.laptop.spawn(bus);
        let address = bus.wait_for_line(Stream::Stdout, "unix:", PATIENCE).trim().to_owned();
        let mut keyring = world.laptop.command("sh");
        keyring.args([
            "-c",
            "printf password | exec gnome-keyring-daemon --foreground --unlock --components=secrets",
        ]);
        keyring.env("XDG_RUNTIME_DIR", &runtime).env("DBUS_SESSION_BUS_ADDRESS", &address);
        let keyring = world.laptop.spawn(keyring);
        let desktop = Self { address, runtime, _bus: bus, _keyring: keyring };
        // Asking for it would have the bus start another one.
        let bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        eventually("the keyring is there", PATIENCE, || {
            let said = desktop.call(
                world,
                bus,
                "org.freedesktop.DBus.NameHasOwner",
                "string:org.freedesktop.secrets",
            );
            if said.contains("boolean true") { Ok(()) } else { Err(said) }
        });
        desktop
    }

    fn call(&self, world: &World, (name, path): (&str, &str), method: &str, argument: &str) -> String {
        let mut send = world.laptop.command("dbus-send");
        send.args(["--session", "--print-reply", &format!("--dest={name}"), path, method, argument]);
        self.inside(&mut send);
        world.laptop.run(send).to_string()
    }

    fn lock(&self, world: &World) {
        let secrets = ("org.freedesktop.secrets", "/org/freedesktop/secrets");
        let collection = format!("array:objpath:{LOGIN}");
        let said = self.call(world, secrets, "org.freedesktop.Secret.Service.Lock", &collection);
        assert!(said.contains("method return"), "{said}");
    }

    fn inside<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.address).env("XDG_RUNTIME_DIR", &self.runtime)
    }

    fn run(&self, world: &mut World, arguments: &[&str]) -> Output {
        let mut command = world.broker(arguments);
        self.inside(&mut command);
        heard(world, command)
    }
}

/// Runs it, and keeps what it said to people; what it prints is for programs.
fn heard(world: &mut World, command: Command) -> Output {
    let mut output = world.laptop.run(command);
    output.stdout.clear();
    world.heard("broker", &output);
    output
}

const ASK: [&str; 4] = ["credentials", "--batch", "-p", "dev"];
const LOG_IN: [&str; 4] = ["login", "-p", "dev", "--device-code"];
const INTO_KEYRING: [&str; 5] = ["login", "-p", "dev", "--device-code", "--keyring"];

/// The names of the files in the cache that hold a token.
fn tokens(world: &World) -> usize {
    let files = std::fs::read_dir(world.laptop.join(".aws/sso/cache")).unwrap();
    let texts = files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
    texts.filter(|text| text.contains("accessToken") || text.contains("refreshToken")).count()
}

fn refreshes(world: &World) -> usize {
    world.aws.calls().iter().filter(|call| *call == "CreateToken(refresh_token)").count()
}

#[track_caller]
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output}");
    for word in words {
        assert!(output.stderr().contains(word), "{word}: {output}");
    }
}

#[test]
fn a_token_goes_into_the_keyring_and_every_command_finds_it_there() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let desktop = Desktop::start(&world);
    assert_eq!(tokens(&world), 1);
    assert_says(&desktop.run(&mut world, &INTO_KEYRING), 0, &["the token of `corp` is in the keyring"]);
    assert_eq!(tokens(&world), 0, "the file is gone");
    assert_says(&desktop.run(&mut world, &ASK), 0, &[]);

    // Refreshed by one of several, and back in the keyring for the next.
    world.aws.expire_access_tokens();
    let mut brokers: Vec<_> = (0..4)
        .map(|_| {
            let mut command = world.broker(&[&ASK[..], &["--min-life", "1h"]].concat());
            desktop.inside(&mut command);
            world.laptop.spawn(command)
        })
        .collect();
    for broker in &mut brokers {
        // An hour is what they have, less a moment: each of them asked AWS.
        assert_says(&broker.wait(PATIENCE), 1, &["which is less than 3600 s"]);
    }
    assert_eq!(refreshes(&world), 1, "{:?}", world.aws.calls());
    assert_says(&desktop.run(&mut world, &ASK), 0, &[]);
    assert_eq!((refreshes(&world), tokens(&world)), (1, 0));

    // Where the keyring cannot be reached, the token is as good as none, and a login falls back to the file.
    let output = world.run(world.broker(&ASK));
    let words = ["the saved token of the SSO session `corp` cannot be used", "there is no keyring here"];
    assert_says(&output, 3, &words);
    let output = world.run(world.broker(&LOG_IN));
    assert_says(&output, 0, &["is in `", ".json`, as without a keyring: there is no keyring here"]);
    assert_eq!(tokens(&world), 1);
    for inside in [true, false] {
        let mut command = world.broker(&ASK);
        if inside {
            desktop.inside(&mut command);
        }
        assert_says(&heard(&mut world, command), 0, &[]);
    }

    // The next login is where the last one was meant to be, until the AWS CLI has one that is newer.
    assert_says(&desktop.run(&mut world, &LOG_IN), 0, &["is in the keyring"]);
    assert_eq!(tokens(&world), 0);
    let mut aws = world.laptop.command(sdk("awscli-v2/aws"));
    aws.args(["sso", "login", "--profile", "dev", "--use-device-code"]).envs(world.aws.environment());
    world.laptop.run(aws).success();
    assert_eq!(tokens(&world), 1);
    let command = world.broker(&ASK);
    assert_says(&heard(&mut world, command), 0, &[]);

    // And a logout is the end of both.
    assert_says(&desktop.run(&mut world, &["logout", "-p", "dev"]), 0, &["signed out of corp"]);
    assert_says(&desktop.run(&mut world, &ASK), 3, &["nobody is logged in to the SSO session `corp`"]);
    assert_says(&desktop.run(&mut world, &LOG_IN), 0, &[]);
    assert_eq!(tokens(&world), 1, "nobody wants the keyring any more");
    world.assert_no_secret();
}

#[test]
fn a_locked_keyring_is_said_to_be_locked_and_nobody_waits_for_it() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let desktop = Desktop::start(&world);
    assert_says(&desktop.run(&mut world, &INTO_KEYRING), 0, &["is in the keyring"]);
    desktop.lock(&world);
    assert_says(
        &desktop.run(&mut world, &["logout", "-p", "dev"]),
        1,
        &["the keyring is locked", "unlock it"],
    );
    assert_says(&desktop.run(&mut world, &ASK), 3, &["cannot be used (the keyring is locked)"]);
    // Nobody can be asked for the password without a display.
    assert_says(&desktop.run(&mut world, &LOG_IN), 0, &["as without a keyring: the keyring is locked"]);
    assert_eq!(tokens(&world), 1);
    assert_says(&desktop.run(&mut world, &ASK), 0, &[]);
    world.assert_no_secret();
}

#[test]
fn what_pretends_to_be_a_keyring_is_given_up() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    // A bus on which nobody answers, one that is none, and an address that is nonsense.
    let silent = world.laptop.join("silent");
    let mut netcat = world.laptop.command("nc");
    netcat.args(["-lkU", &silent.display().to_string()]);
    let _netcat = world.laptop.spawn(netcat);
    eventually("it listens", PATIENCE, || if silent.exists() { Ok(()) } else { Err(String::new()) });
    for address in
        [format!("unix:path={}", silent.display()), "unix:path=/nonexistent".into(), "nonsense".into()]
    {
        let mut login = world.broker(&INTO_KEYRING);
        login.env("DBUS_SESSION_BUS_ADDRESS", &address);
        let output = world.run(login);
        assert_says(&output, 0, &["as without a keyring: "]);
        assert_eq!(tokens(&world), 1);
    }
    world.assert_no_secret();
}
