//! Events on stderr: every line of every run is as `docs/events.schema.json` says.

use sandbox::{
    home::{Stream, run_within},
    sshd::SshdOptions,
    users::User,
};
use serde_json::Value;

use crate::support::{PATIENCE, World, checkout, sdk};

/// Every test that saw events ends here (`World::assert_no_secret`).
#[track_caller]
pub fn assert_documented(runs: &[String]) {
    if runs.is_empty() {
        return;
    }
    let mut python = std::process::Command::new(sdk("checks/bin/python"));
    python.args(["-c", VALIDATE]).arg(checkout("docs/events.schema.json"));
    let output = run_within(python, runs.concat().as_bytes(), PATIENCE);
    assert_eq!(output.code, Some(0), "events that are not documented\n{output}");
}

const VALIDATE: &str = r#"
import json, sys
import jsonschema
schema = json.load(open(sys.argv[1]))
jsonschema.Draft202012Validator.check_schema(schema)
known = {one["title"]: jsonschema.Draft202012Validator({**one, "$defs": schema["$defs"]}) for one in schema["oneOf"]}
wrong = 0
for line in sys.stdin:
    event = json.loads(line)
    validator = known.get(event.get("event"))
    for error in validator.iter_errors(event) if validator else ["no such event"]:
        wrong += 1
        print(line, getattr(error, "message", error), file=sys.stderr)
sys.exit(wrong > 0)
"#;

fn events(stderr: &str) -> Vec<Value> {
    stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn what_is_not_documented_is_found() {
    if sandbox::isolated!() {
        return;
    }
    let time = "\"time\":\"2026-01-01T00:00:00.5Z\"";
    assert_documented(&[format!("{{\"event\":\"notice\",\"message\":\"m\",{time}}}\n")]);
    for wrong in [
        format!("{{\"event\":\"new\",{time}}}"),
        format!("{{\"event\":\"notice\",\"message\":\"m\",\"further\":1,{time}}}"),
        format!("{{\"event\":\"notice\",{time}}}"),
        "{\"event\":\"notice\",\"message\":\"m\",\"timestamp\":\"2026-01-01T00:00:00Z\"}".to_owned(),
        "{\"event\":\"notice\",\"message\":\"m\",\"time\":\"today\"}".to_owned(),
    ] {
        let found = std::panic::catch_unwind(|| assert_documented(&[format!("{wrong}\n")]));
        assert!(found.is_err(), "{wrong}");
    }
}

#[test]
fn a_whole_life_is_told_in_events_and_nothing_else() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let arguments =
        ["-N", "--print-env", "sh", "-p", "dev", "-vv", "--log-format", "json", "--color", "always"];
    let mut process = world.laptop.spawn(world.connect(&arguments));
    process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    let tunnel = world.attach(process);
    let user = world.sshd.user().clone();
    let _stolen = world.fetch(&User::other(), tunnel.url(), Some(&tunnel.token()));
    assert_eq!(world.fetch(&user, tunnel.url(), Some(&tunnel.token())).status(), 200);
    let output = tunnel.stop(&mut world);
    assert!(!output.stderr().contains(['\u{1b}', '\r']), "{output}");
    let told = events(&output.stderr());
    let names: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    for name in ["started", "done", "ready", "log", "warning", "stopped", "error"] {
        assert!(names.contains(&name), "no `{name}` in {names:?}");
    }
    assert_eq!(names.last(), Some(&"error"), "{names:?}");
    assert!(told.iter().all(|event| event["time"].is_string() && event["timestamp"].is_null()), "{output}");
    world.assert_clean();
}

#[test]
fn files_and_a_host_that_stays_dirty_are_told_in_events() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::with(SshdOptions::default().config("DisableForwarding yes"));
    let output = world
        .run(world.connect(&["-p", "dev", "-p", "audit", "--log-format", "json", "--", "true"]))
        .success();
    let ready = events(&output.stderr()).into_iter().find(|event| event["event"] == "ready").unwrap();
    assert_eq!((&ready["files"], &ready["port"]), (&true.into(), &Value::Null), "{ready}");
    assert_eq!(ready["profiles"], serde_json::json!(["dev", "audit"]));
    let output = world.run(world.broker(&["connect", "--nosuch", "--log-format=json"]));
    assert_eq!(events(&output.stderr())[0]["kind"], "usage", "{output}");
    world.assert_clean();
}
