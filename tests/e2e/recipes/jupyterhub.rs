//! A kernel that a real JupyterHub started long before us, and that no shell of ours knows, reads a bucket.

use std::path::Path;

use sandbox::{
    home::{Process, Stream},
    users::User,
};
use serde_json::{Value, json};

use crate::support::{ACCOUNT, PATIENCE, World, checkout, sdk};

/// A hub and a notebook server start slowly on a busy machine.
const START: std::time::Duration = PATIENCE.saturating_mul(3);

/// The token of a test's service, which leads nowhere else.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What a person writes into a notebook. A new session each time, as an SDK caches what it was given.
const READ: &str = "import boto3; print(boto3.Session().client('s3').get_object(Bucket='development-123456789012', \
                    Key='table.csv')['Body'].read().decode())";

/// A person at a notebook.
struct Notebook(Process);

impl Notebook {
    /// Runs a cell and returns what it printed, or how it failed.
    #[track_caller]
    fn cell(&mut self, code: &str) -> Result<String, String> {
        self.0.send(format!("{}\n", json!(code)));
        let said = self.0.wait_for_line(Stream::Stdout, "{", PATIENCE);
        let said: Value = serde_json::from_str(&said).expect(&said);
        match (said["printed"].as_str(), said["failed"].as_str()) {
            (Some(printed), _) => Ok(printed.trim().to_owned()),
            (None, Some(failed)) => Err(failed.to_owned()),
            (None, None) => panic!("{said}"),
        }
    }
}

fn start_hub(world: &World, directory: &Path) -> Process {
    let proxy = sdk("node_modules/configurable-http-proxy/bin/configurable-http-proxy");
    // What the old procedure put into an rc file, and where this test's S3 is.
    let mut environment = world.aws.environment();
    environment.push(("AWS_PROFILE", "dev".to_owned()));
    let environment: serde_json::Map<String, Value> =
        environment.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let settings = json!({
        "directory": directory, "user": world.sshd.user().name, "token": TOKEN,
        "proxy": ["node", proxy], "environment": environment,
    });
    // As an administrator starts it: a hub that starts servers of other users is root's.
    let root = User::find("root").unwrap();
    let config = checkout("tests/e2e/recipes/jupyterhub_config.py");
    let mut hub =
        world.as_user(&root, sdk("jupyter/bin/python").to_str().unwrap(), &["-m", "jupyterhub", "-f"]);
    hub.arg(config).env("TEST_HUB", settings.to_string()).current_dir(directory);
    let mut hub = world.laptop.spawn(hub);
    hub.wait_for_line(Stream::Stderr, "JupyterHub is now running", START);
    hub
}

fn open_notebook(world: &World) -> Notebook {
    let user = world.sshd.user();
    let driver = std::fs::read_to_string(checkout("tests/e2e/recipes/kernel.py")).unwrap();
    let mut person = world.laptop.command(sdk("jupyter/bin/python"));
    person.args(["-c", &driver, &user.name]).env("TEST_TOKEN", TOKEN);
    let mut person = world.laptop.spawn(person);
    person.wait_for_line(Stream::Stdout, "ready", START);
    Notebook(person)
}

#[test]
fn a_kernel_of_jupyterhub_reads_a_bucket_while_we_are_connected_and_not_after() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let directory = tempfile::tempdir().unwrap();
    let _reachable = sandbox::reach::reachable(Path::new(env!("CARGO_BIN_EXE_broker")));
    let mut hub = start_hub(&world, directory.path());
    let mut notebook = open_notebook(&world);
    assert_eq!(notebook.cell("import getpass; print(getpass.getuser())"), Ok(world.sshd.user().name.clone()));

    // Before us the profile is nowhere, and the kernel says so.
    let before = notebook.cell(READ).unwrap_err();
    assert!(before.contains("The config profile (dev) could not be found"), "{before}");

    for transport in ["auto", "file"] {
        let tunnel = world.tunnel(&["-p", "dev", "--install-profiles", "--transport", transport]);
        let read = format!("this is table.csv of development-{ACCOUNT}");
        assert_eq!(notebook.cell(READ), Ok(read.clone()), "{transport}");
        // A session that asked once goes on without asking again, and one that another cell made asks anew.
        assert_eq!(notebook.cell(READ), Ok(read), "{transport}");
        let output = tunnel.stop(&mut world);
        assert_eq!(output.code, Some(130), "{output}");

        // The kernel is the same process, and has access no more.
        let after = notebook.cell(READ).unwrap_err();
        assert!(after.contains("The config profile (dev) could not be found"), "{after}");
        world.assert_clean();
    }

    // Killed, we leave a block that leads nowhere, which the error says.
    let mut tunnel = world.tunnel(&["-p", "dev", "--install-profiles"]);
    tunnel.process.signal(nix::sys::signal::Signal::SIGKILL);
    let output = tunnel.process.wait(PATIENCE);
    world.heard("a killed broker", &output);
    crate::support::eventually("the files are gone", PATIENCE, || {
        if world.left_on_host().is_empty() { Ok(()) } else { Err(format!("{:?}", world.left_on_host())) }
    });
    let killed = notebook.cell(READ).unwrap_err();
    assert!(killed.contains("there is no tunnel here; run broker connect"), "{killed}");
    let tunnel = world.tunnel(&["-p", "dev", "--install-profiles"]);
    assert!(notebook.cell(READ).is_ok());
    let output = tunnel.stop(&mut world);
    assert_eq!(output.code, Some(130), "{output}");
    assert!(!world.sshd.user().home.join(".aws/config").exists(), "the file was ours alone");

    notebook.0.close_stdin();
    let output = notebook.0.wait(PATIENCE);
    assert_eq!(output.code, Some(0), "{output}");
    world.heard("a notebook", &output);
    hub.signal(nix::sys::signal::Signal::SIGINT);
    let output = hub.wait(PATIENCE);
    world.heard("the hub", &output);
    world.assert_clean();
}
