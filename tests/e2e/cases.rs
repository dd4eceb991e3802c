//! Bad files on the laptop, one directory each below `fixtures/cases/`:
//!
//! - `why`: one line, what a person did to get there,
//! - `setup`: a script that does it, as root in the laptop's home, with `$USER`, `$CONFIG`, `$OURS` and `$TOKEN`,
//! - `arguments` (optional): what follows `broker connect bastion --batch -N`; `-p dev` if there is no such file,
//! - `expected`: exit code, error and files as they must be; `BLESS=1` rewrites it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use sandbox::aws::FakeAws;

use crate::{
    refusals::{all, assert_reads_well, json_error},
    support::{self, BASTION, World},
};

/// Walks one area, and runs every case in it.
fn walk(area: &str) {
    let directory = support::checkout("fixtures/cases").join(area);
    let mut cases: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "there are no cases in {}", directory.display());
    let mut world = World::new();
    // Each case starts from the same home.
    let pristine = tempfile::tempdir().unwrap();
    copy(world.laptop.path(), pristine.path());
    all(cases, |case| {
        let why = std::fs::read_to_string(case.join("why")).unwrap();
        println!("{area}/{}: {}", case.file_name().unwrap().to_string_lossy(), why.trim());
        run(&mut world, &pristine, &case);
    });
    copy(pristine.path(), world.laptop.path());
    world.assert_clean();
}

/// Makes `to` a copy of `from`, with owners and modes.
fn copy(from: &Path, to: &Path) {
    const COPY: &str = "find \"$2\" -mindepth 1 -delete; cp -a \"$1/.\" \"$2\"";
    let copied = Command::new("sh").args(["-ec", COPY, "sh"]).args([from, to]).status().unwrap();
    assert!(copied.success(), "could not copy {}", from.display());
}

fn run(world: &mut World, pristine: &tempfile::TempDir, case: &Path) {
    let name = case.file_name().unwrap().to_string_lossy();
    let home = world.laptop.path().to_owned();
    copy(pristine.path(), &home);
    let setup = Command::new("sh")
        .arg("-eu")
        .arg(case.join("setup"))
        .current_dir(&home)
        .env("HOME", &home)
        .env("USER", &world.laptop.user().name)
        .env("CONFIG", home.join(".aws/config"))
        .env("OURS", home.join(".config/broker/config.toml"))
        .env("TOKEN", FakeAws::token_path(&home, "corp"))
        .output()
        .unwrap();
    assert!(setup.status.success(), "{name}: {}", String::from_utf8_lossy(&setup.stderr));

    let arguments = std::fs::read_to_string(case.join("arguments")).unwrap_or_else(|_| "-p dev".to_owned());
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let with = |more: &[&str]| world.connect(&[&arguments[..], more].concat());
    let (text, json, command) =
        (with(&["-N"]), with(&["-N", "--log-format", "json"]), with(&["--", "echo", "ran"]));
    let [text, json, command] = [text, json, command].map(|command| world.laptop.run(command));

    let mut seen = format!("exit {}\n", text.code.unwrap());
    let said = text.stderr().replace(&home.display().to_string(), "$HOME");
    write!(seen, "{}", said.replace(&world.sshd.port().to_string(), "$PORT")).unwrap();
    let token = FakeAws::token_path(Path::new(""), "corp");
    let seen = seen.replace(&*token.file_name().unwrap().to_string_lossy(), "$TOKEN");
    support::snapshot(&case.join("expected"), &seen);
    assert_reads_well(&name, &said);
    assert!(said.contains("broker: hint: "), "{name}: no way out is named\n{said}");

    assert_eq!((json.code, text.code != Some(0)), (text.code, true), "{name}\n{json}");
    let error = json_error(&name, &json.stderr());
    assert_eq!(error["code"].as_i64(), text.code.map(Into::into), "{name}\n{json}");
    assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{name}\n{json}");
    assert_eq!(command.code, Some(255), "{name}\n{command}");
    let last = format!("broker: failed: {} ({})", error["kind"].as_str().unwrap(), error["code"]);
    assert_eq!(command.stderr().lines().last(), Some(last.as_str()), "{name}\n{command}");
    for output in [&text, &json, &command] {
        assert_eq!(output.stdout(), "", "{name}: something was published\n{output}");
        world.heard(&name, output);
    }
    assert_eq!(world.sshd.knocks(), 0, "{name}: {BASTION} was reached");
    assert_eq!(world.left_on_host(), Vec::<PathBuf>::new(), "{name}: left on the host");
}

#[test]
fn aws_configuration_that_cannot_be_used() {
    if sandbox::isolated!() {
        return;
    }
    walk("aws-config");
}

#[test]
fn configuration_of_ours_that_cannot_be_used() {
    if sandbox::isolated!() {
        return;
    }
    walk("broker-config");
}

#[test]
fn token_files_that_cannot_be_used() {
    if sandbox::isolated!() {
        return;
    }
    walk("sso-cache");
}

#[test]
fn what_ssh_configuration_says_in_vain_is_said_once_and_does_no_harm() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let config = world.laptop.read(".ssh/config");
    for (line, warned) in [
        ("HostNme x", true),
        ("ForwardX11Trusted maybe", false),
        ("ForwardAgent yes", true),
        ("# a comment in Latin-1: f\u{fc}r", false),
    ] {
        world.laptop.write(".ssh/config", format!("{config}  {line}\n"), 0o600);
        let output = world.run(world.connect(&["-p", "dev", "--", "echo", "works"]));
        assert_eq!((output.code, output.stdout().as_str()), (Some(0), "works\n"), "{line}\n{output}");
        let keyword = line.split(' ').next().unwrap();
        let said = output.stderr();
        let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("broker: warning: ")).collect();
        println!("== {line}\n{said}");
        assert_eq!(warnings.len(), usize::from(warned), "{line}\n{output}");
        assert!(warnings.iter().all(|warning| warning.to_lowercase().contains(&keyword.to_lowercase())
            && warning.contains(".ssh/config:")));
    }
    world.assert_clean();
}

#[test]
fn ssh_configuration_that_cannot_be_used() {
    if sandbox::isolated!() {
        return;
    }
    walk("ssh-config");
}
