//! The program alone: what it needs, the image of it, and the manifest that runs the image.

use std::{path::Path, process::Command};

use nix::sys::signal::Signal;
use sandbox::home::{Stream, run_within};

use crate::{
    refusals::fingerprint_of,
    support::{ACCOUNT, ENDS, PATIENCE, REGION, World, checkout, program, sdk},
};

/// Whom the image runs as.
const USER: &str = "65532";

#[test]
fn the_program_needs_nothing_but_libc() {
    if sandbox::isolated!() {
        return;
    }
    let mut readelf = Command::new("readelf");
    readelf.arg("-d").arg(program());
    let output = run_within(readelf, &[], PATIENCE).success().stdout();
    let needed: Vec<&str> = output
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .map(|line| line.split(['[', ']']).nth(1).unwrap())
        .collect();
    assert!(needed.contains(&"libc.so.6"), "{output}");
    let libc = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];
    assert!(needed.iter().all(|library| libc.contains(library)), "{needed:?}");
}

/// Makes the image of this program, and looks at it as a registry and an engine would: every blob is what its name
/// says, and there is one layer, which is unpacked here.
const UNPACK: &str = r#"
import gzip, hashlib, io, json, os, sys, tarfile
image, root = sys.argv[1:]
tar = tarfile.open(image)
assert json.load(tar.extractfile("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
def blob(about):
    kind, digest = about["digest"].split(":")
    data = tar.extractfile(f"blobs/{kind}/{digest}").read()
    assert hashlib.sha256(data).hexdigest() == digest and len(data) == about["size"], about
    return data
(top,) = json.load(tar.extractfile("index.json"))["manifests"]
manifest = json.loads(blob(top))
config = json.loads(blob(manifest["config"]))
(layer,) = manifest["layers"]
layer = gzip.decompress(blob(layer))
assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
os.umask(0)
tarfile.open(fileobj=io.BytesIO(layer)).extractall(root, numeric_owner=True)
print(json.dumps(config["config"]))
"#;

fn make_image(to: &Path) -> String {
    let mut make = Command::new("python3");
    make.arg(checkout("docs/ci/image.py")).arg(program()).arg(to);
    let said = run_within(make, &[], PATIENCE).success().stdout();
    said.split(": ").nth(1).unwrap().split(',').next().unwrap().to_owned()
}

fn mount(arguments: &[&str], place: &Path) {
    let status = Command::new("mount").args(arguments).arg(place).status().unwrap();
    assert!(status.success(), "mount {arguments:?} {}", place.display());
}

#[test]
fn the_image_runs_as_the_manifest_says() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let (image, root) = (directory.path().join("image.tar"), directory.path().join("root"));
    std::fs::create_dir(&root).unwrap();
    let digest = make_image(&image);
    assert_eq!(digest, make_image(&directory.path().join("again.tar")), "the same image, bit by bit");
    let mut unpack = Command::new("python3");
    unpack.args(["-c", UNPACK]).arg(&image).arg(&root);
    let config: serde_json::Value =
        serde_json::from_str(&run_within(unpack, &[], PATIENCE).success().stdout()).unwrap();
    assert_eq!(config["User"], format!("{USER}:{USER}"));
    assert!(!root.join("bin/sh").exists() && !root.join("usr/bin/sh").exists());

    // What a cluster puts into it: a root that cannot be written, a home and a /tmp in memory, secrets of root's that
    // the group may read, a token of the service account.
    let secrets = root.join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    for device in ["dev", "proc"] {
        std::fs::create_dir(root.join(device)).unwrap();
    }
    mount(&["--bind", root.to_str().unwrap()], &root);
    mount(&["-o", "remount,bind,ro"], &root);
    mount(&["-t", "tmpfs", "-o", "mode=750,gid=65532", "none"], &secrets);
    mount(&["-t", "tmpfs", "-o", "mode=777", "none"], &root.join("home/broker"));
    mount(&["-t", "tmpfs", "-o", "mode=777", "none"], &root.join("tmp"));
    mount(&["--bind", "/proc"], &root.join("proc"));
    mount(&["--rbind", "/dev"], &root.join("dev"));
    let secret = |name: &str, text: &str| {
        let path = secrets.join(name);
        std::fs::write(&path, text).unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(65532)).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    };
    secret("key", &std::fs::read_to_string(world.laptop.join(".ssh/key-bastion")).unwrap());
    secret("token", "jenkins-token");

    let mut read = Command::new(sdk("checks/bin/python"));
    read.args([
        "-c",
        "import json, sys, yaml\n\
         _, deployment = yaml.safe_load_all(sys.stdin)\n\
         container, = deployment['spec']['template']['spec']['containers']\n\
         print(json.dumps([container['args'], container['readinessProbe']['exec']['command'][1:]]))",
    ]);
    let manifest = std::fs::read(checkout("docs/ci/kubernetes.yml")).unwrap();
    let read = run_within(read, &manifest, PATIENCE).success();
    let [arguments, probe]: [Vec<String>; 2] = serde_json::from_str(&read.stdout()).unwrap();
    let host = format!("{}@127.0.0.1:{}", world.sshd.user().name, world.sshd.port());
    let pin = fingerprint_of(&world, &world.sshd.known_hosts_line("127.0.0.1"));
    let filled = |text: &String| text.replace("$(HOST)", &host).replace("$(HOST_KEY)", &pin);

    let aws = world.aws.environment();
    let run = |arguments: &[String]| {
        let mut command = Command::new("chroot");
        command
            .arg(format!("--userspec={USER}:{USER}"))
            .arg("--groups=")
            .arg(&root)
            .args(["/usr/bin/broker"]);
        command.args(arguments).env_clear();
        for variable in config["Env"].as_array().unwrap() {
            let (name, value) = variable.as_str().unwrap().split_once('=').unwrap();
            command.env(name, value);
        }
        command.env("PATH", "/usr/bin:/usr/sbin").envs(aws.clone());
        command.envs([("AWS_REGION", REGION), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/secrets/token")]);
        command.env("AWS_ROLE_ARN", format!("arn:aws:iam::{ACCOUNT}:role/deploy"));
        command
    };
    let arguments: Vec<String> = arguments.iter().map(filled).collect();
    let mut process = sandbox::home::Process::spawn(run(&arguments));
    process.wait_for_line(Stream::Stderr, "\"ready\"", PATIENCE);
    process.wait_for_line(Stream::Stdout, "TOKEN_FILE", PATIENCE);
    // In a container it is process 1.
    let pid = process.pid().to_string();
    let probe: Vec<String> =
        probe.iter().map(|word| if word == "1" { pid.clone() } else { word.clone() }).collect();
    let ready = run_within(run(&probe), &[], PATIENCE);
    assert_eq!(ready.code, Some(0), "{ready}");
    let exports: serde_json::Value = serde_json::from_str(&ready.stdout()).unwrap();
    let token =
        std::fs::read_to_string(exports["set"]["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"].as_str().unwrap())
            .unwrap();
    world.keep_token(&token);
    let user = world.sshd.user().clone();
    let url = exports["set"]["AWS_CONTAINER_CREDENTIALS_FULL_URI"].as_str().unwrap();
    assert_eq!(world.fetch(&user, url, Some(&token)).status(), 200);
    process.signal(Signal::SIGTERM);
    let output = process.wait(ENDS);
    world.heard("broker in its image", &output);
    assert_eq!(output.code, Some(130), "{output}");
    let gone = run_within(run(&probe), &[], PATIENCE);
    assert_ne!(gone.code, Some(0), "not ready any more: {gone}");
    world.wait_for_clean_host();
    world.assert_clean();
}

#[test]
fn the_manifest_is_what_kubernetes_reads() {
    if sandbox::isolated!() {
        return;
    }
    let validate = |text: &str| {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), text).unwrap();
        let mut command = Command::new(sdk("checks/bin/kubernetes-validate"));
        command.arg("--strict").arg(path.path());
        run_within(command, &[], PATIENCE)
    };
    let manifest = std::fs::read_to_string(checkout("docs/ci/kubernetes.yml")).unwrap();
    let output = validate(&manifest);
    assert_eq!(output.code, Some(0), "{output}");
    assert_ne!(validate(&manifest.replace("readinessProbe", "readynessProbe")).code, Some(0));
}
