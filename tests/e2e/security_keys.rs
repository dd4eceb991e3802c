//! FIDO keys: the agent talks to the device, and we to the agent. The agent of these tests is made up, and what it says of a
//! touch is what a test wants; the sshd is real.

use std::{
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::JoinHandle,
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::Engine as _;

use crate::support::World;

const KIND: &str = "sk-ssh-ed25519@openssh.com";
const APPLICATION: &str = "ssh:";

/// What the agent says of the person: touched, or not, or it declines.
const TOUCHED: u8 = 1;
const UNTOUCHED: u8 = 0;
const DECLINED: u8 = 0xff;

/// An agent that holds one key of a device.
struct Agent {
    path: PathBuf,
    public: Vec<u8>,
    person: Arc<AtomicU8>,
    signed: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn new(path: PathBuf) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let mut public = Vec::new();
        for part in [KIND.as_bytes(), pair.public_key().as_ref(), APPLICATION.as_bytes()] {
            put(&mut public, part);
        }
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let person = Arc::new(AtomicU8::new(TOUCHED));
        let (signed, stopping) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (public, person) = (public.clone(), Arc::clone(&person));
            let (signed, stopping) = (Arc::clone(&signed), Arc::clone(&stopping));
            move || {
                for stream in listener.incoming() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    serve(stream.unwrap(), &pair, &public, &person, &signed);
                }
            }
        });
        Self { path, public, person, signed, stopping, thread: Some(thread) }
    }

    fn public_line(&self) -> String {
        format!("{KIND} {}", base64::engine::general_purpose::STANDARD.encode(&self.public))
    }

    fn says(&self, person: u8) {
        self.person.store(person, Ordering::SeqCst);
        self.signed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.path));
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the agent panicked");
    }
}

/// Answers one client until it goes.
fn serve(
    mut stream: UnixStream,
    pair: &Ed25519KeyPair,
    public: &[u8],
    person: &AtomicU8,
    signed: &AtomicBool,
) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).unwrap();
        let mut answer = Vec::new();
        match (request[0], person.load(Ordering::SeqCst)) {
            (11, _) => {
                answer.extend([12, 0, 0, 0, 1]);
                put(&mut answer, public);
                put(&mut answer, b"yellow token");
            }
            (13, flags) if flags != DECLINED => {
                let mut rest = &request[1..];
                assert_eq!(take(&mut rest), public);
                let data = take(&mut rest);
                // As the device signs it: the application, the touch, a counter, the data.
                let counter = 7_u32.to_be_bytes();
                let mut message = digest(&SHA256, APPLICATION.as_bytes()).as_ref().to_vec();
                message.push(flags);
                message.extend(counter);
                message.extend(digest(&SHA256, data).as_ref());
                let mut signature = Vec::new();
                put(&mut signature, KIND.as_bytes());
                put(&mut signature, pair.sign(&message).as_ref());
                signature.push(flags);
                signature.extend(counter);
                answer.push(14);
                put(&mut answer, &signature);
                signed.store(true, Ordering::SeqCst);
            }
            _ => answer.push(5),
        }
        stream.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&answer).unwrap();
    }
}

fn put(into: &mut Vec<u8>, string: &[u8]) {
    into.extend(u32::try_from(string.len()).unwrap().to_be_bytes());
    into.extend(string);
}

fn take<'a>(from: &mut &'a [u8]) -> &'a [u8] {
    let (length, rest) = from.split_at(4);
    let (string, rest) = rest.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize);
    *from = rest;
    string
}

#[test]
fn a_key_on_a_device_logs_in_through_the_agent_and_is_said_to_wait_for_a_touch() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let agent = Agent::new(world.laptop.join(".ssh/agent"));
    let user = world.sshd.user().clone();
    world.sshd.authorize(&user, "", &agent.public_line());
    // There is no other key.
    let config = world.laptop.read(".ssh/config");
    let config: String =
        config.lines().filter(|line| !line.contains("Identit")).map(|line| format!("{line}\n")).collect();
    world.laptop.write(".ssh/config", config, 0o600);
    let connect = |world: &World, options: &[&str]| {
        let arguments = [&["-p", "dev"][..], options, &["--", "echo", "in"]].concat();
        let mut command = world.connect(&arguments);
        command.env("SSH_AUTH_SOCK", &agent.path);
        command
    };
    for (person, options, logs_in, words) in [
        (TOUCHED, &[][..], true, "Confirm user presence for key `yellow token` of the agent"),
        (UNTOUCHED, &[], false, "is the key in `~/.ssh/authorized_keys`"),
        (DECLINED, &[], false, "`yellow token` of the agent (the agent did not sign)"),
        (TOUCHED, &["-o", "PubkeyAcceptedAlgorithms=ssh-ed25519"], false, "(`PubkeyAcceptedAlgorithms`)"),
    ] {
        agent.says(person);
        let output = world.run(connect(&world, options));
        assert_eq!(output.stdout() == "in\n", logs_in, "{person} {options:?}: {output}");
        assert_eq!(output.code, Some(if logs_in { 0 } else { 255 }), "{person} {options:?}: {output}");
        assert!(output.stderr().contains(words), "{person} {options:?}: {output}");
        assert_eq!(agent.signed.load(Ordering::SeqCst), person != DECLINED && options.is_empty());
    }
    world.assert_clean();
}
