//! An SSH server to talk to in tests: well-behaved by default, hostile where a test says so.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use russh::{
    Channel, ChannelId, MethodKind, MethodSet,
    keys::{PrivateKey, PublicKey, PublicKeyOrCertificate, ssh_key::private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Handle, Msg, Response, VerifiedPublicKey},
};
use secrecy::SecretString;
use tokio::io::DuplexStream;

use super::{
    error::{Error, HostKeyRefused},
    session::{HostKeys, Session, Trust, Unauthenticated, Wanted},
    target::{
        AddressFamily, Authentication, Bind, Identities, KnownHostsFiles, Rekey, StrictHostKeyChecking,
        Target, Way, Wishes,
    },
};
use crate::human::{BoxFuture, Human, Question};

/// Tests wait for things, and never longer than this.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn key(seed: u8) -> PrivateKey {
    Ed25519Keypair::from_seed(&[seed; 32]).into()
}

pub(super) fn target() -> Target {
    Target {
        original: "bastion".into(),
        hostname: "bastion.example.org".into(),
        port: 22,
        user: "alice".into(),
        host_key_alias: None,
        way: Way::Direct,
        address_family: AddressFamily::Any,
        bind: Bind::default(),
        connection_attempts: 1,
        tcp_keep_alive: true,
        connect_timeout: Duration::from_secs(10),
        identities: Identities::default(),
        authentication: Authentication::default(),
        algorithms: Arc::default(),
        known_hosts: KnownHostsFiles { user: Vec::new(), global: Vec::new(), hash: false, command: None },
        revoked_host_keys: Vec::new(),
        required_rsa_size: 1024,
        strict_host_key_checking: StrictHostKeyChecking::Ask,
        pinned_host_key: None,
        server_alive_interval: Duration::from_secs(15),
        server_alive_count_max: 3,
        rekey: Rekey::default(),
        quiet: false,
        batch: false,
        session: Wishes::default(),
    }
}

/// A person who has some answers ready, and remembers what was said.
#[derive(Default)]
pub(super) struct Person {
    pub(super) answers: Mutex<Vec<&'static str>>,
    pub(super) heard: Mutex<Vec<String>>,
}

impl Person {
    pub(super) fn who_says(answers: &[&'static str]) -> Arc<Self> {
        let answers = answers.iter().rev().copied().collect();
        Arc::new(Self { answers: Mutex::new(answers), heard: Mutex::default() })
    }

    pub(super) fn heard(&self) -> String {
        self.heard.lock().unwrap().join("\n")
    }
}

impl Human for Person {
    fn ask(&self, question: Question) -> BoxFuture<'_, Option<SecretString>> {
        self.heard.lock().unwrap().push(question.text);
        let answer = self.answers.lock().unwrap().pop();
        Box::pin(async move { answer.map(SecretString::from) })
    }

    fn tell(&self, text: &str) {
        self.heard.lock().unwrap().push(text.to_owned());
    }

    fn browse(&self, _: &str) -> bool {
        false
    }
}

/// Accepts every key, after `thinking`.
#[derive(Default)]
pub(super) struct Trusting {
    pub(super) thinking: Duration,
    pub(super) unseen: bool,
}

impl HostKeys for Trusting {
    fn wanted(&self) -> BoxFuture<'_, Result<Wanted, HostKeyRefused>> {
        Box::pin(async { Ok(Wanted::default()) })
    }

    fn check(&self, _: &PublicKeyOrCertificate) -> BoxFuture<'_, Result<Trust, HostKeyRefused>> {
        Box::pin(async move {
            tokio::time::sleep(self.thinking).await;
            Ok(if self.unseen { Trust::Unseen } else { Trust::Known })
        })
    }
}

/// How the server lets people in.
#[derive(Clone, Default)]
pub(super) struct Door {
    /// Let in with nothing.
    pub(super) open: bool,
    pub(super) key: Option<PublicKey>,
    pub(super) password: Option<&'static str>,
    /// Rounds of keyboard-interactive: prompts, and the answers that are right.
    pub(super) rounds: Vec<(&'static [&'static str], &'static [&'static str])>,
    /// After the key, the rounds are wanted too.
    pub(super) both: bool,
    pub(super) banner: Option<&'static str>,
}

/// What happened on the server.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) commands: Vec<(ChannelId, String)>,
    pub(super) stdin: HashMap<ChannelId, Vec<u8>>,
    pub(super) sizes: Vec<(u32, u32)>,
    pub(super) closed: Vec<ChannelId>,
    pub(super) eofs: Vec<ChannelId>,
    pub(super) failures: usize,
}

pub(super) struct Peer {
    door: Door,
    seen: Arc<Mutex<Seen>>,
    keyed: bool,
    round: usize,
}

impl Peer {
    fn methods(&self) -> MethodSet {
        let mut methods = MethodSet::empty();
        if self.door.key.is_some() && !self.keyed {
            methods.push(MethodKind::PublicKey);
        }
        if !self.door.rounds.is_empty() && (self.keyed || !self.door.both) {
            methods.push(MethodKind::KeyboardInteractive);
        }
        if self.door.password.is_some() {
            methods.push(MethodKind::Password);
        }
        methods
    }

    fn no(&self) -> Auth {
        self.seen.lock().unwrap().failures += 1;
        Auth::Reject { proceed_with_methods: Some(self.methods()), partial_success: false }
    }
}

impl server::Handler for Peer {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(self.door.banner.map(Into::into))
    }

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(if self.door.open { Auth::Accept } else { self.no() })
    }

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(if self.door.password == Some(password) { Auth::Accept } else { self.no() })
    }

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        offer: server::PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let right = self.door.key.as_ref().is_some_and(|key| key.key_data() == offer.public_key.key_data());
        Ok(if right { Auth::Accept } else { self.no() })
    }

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        if self.door.both {
            self.keyed = true;
            return Ok(Auth::Reject { proceed_with_methods: Some(self.methods()), partial_success: true });
        }
        Ok(Auth::Accept)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        match response {
            None => self.round = 0,
            Some(answers) => {
                let answers: Vec<_> = answers.map(|answer| answer.to_vec()).collect();
                let right: Vec<_> =
                    self.door.rounds[self.round].1.iter().map(|answer| answer.as_bytes().to_vec()).collect();
                if answers != right {
                    return Ok(self.no());
                }
                self.round += 1;
            }
        }
        let Some((prompts, _)) = self.door.rounds.get(self.round) else { return Ok(Auth::Accept) };
        Ok(Auth::Partial {
            name: "".into(),
            instructions: "".into(),
            prompts: prompts.iter().map(|prompt| ((*prompt).into(), false)).collect::<Vec<_>>().into(),
        })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if host == "reachable" {
            self.seen.lock().unwrap().commands.push((channel.id(), format!("connect {port}")));
            reply.accept().await;
        } else {
            reply.reject(russh::ChannelOpenFailure::ConnectFailed).await;
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.seen.lock().unwrap().sizes.push((columns, rows));
        if term == "refused" { session.channel_failure(id) } else { session.channel_success(id) }
    }

    async fn window_change_request(
        &mut self,
        _: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut server::Session,
    ) -> Result<(), Self::Error> {
        self.seen.lock().unwrap().sizes.push((columns, rows));
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        if command == "refused" {
            return session.channel_failure(id);
        }
        session.channel_success(id)?;
        // Everything but this is steered by the test, through the handle.
        if let Some(("echo", text)) = command.split_once(' ') {
            session.data(id, text.to_owned().into_bytes())?;
            session.extended_data(id, 1, &b"warned"[..])?;
            session.eof(id)?;
            session.exit_status_request(id, 7)?;
            session.close(id)?;
        }
        self.seen.lock().unwrap().commands.push((id, command));
        Ok(())
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        self.seen.lock().unwrap().commands.push((id, String::new()));
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut server::Session) -> Result<(), Self::Error> {
        self.seen.lock().unwrap().stdin.entry(id).or_default().extend(data);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut server::Session) -> Result<(), Self::Error> {
        self.seen.lock().unwrap().eofs.push(id);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut server::Session) -> Result<(), Self::Error> {
        self.seen.lock().unwrap().closed.push(id);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        _: &str,
        port: &mut u32,
        _: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        if *port == 0 {
            *port = 40001;
        }
        Ok(*port != 1)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        _: &str,
        _: u32,
        _: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        Ok(true)
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        _: &mut server::Session,
    ) -> Result<bool, Self::Error> {
        Ok(path.starts_with("/run/"))
    }
}

/// A server that was reached, and how to steer it.
pub(super) struct Server {
    pub(super) handle: Handle,
    pub(super) seen: Arc<Mutex<Seen>>,
}

impl Server {
    /// Waits until `ready` finds what it looks for in what the server saw.
    pub(super) async fn sees<T>(&self, mut ready: impl FnMut(&Seen) -> Option<T>) -> T {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = ready(&self.seen.lock().unwrap()) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the server saw it")
    }

    /// Waits for the command that starts with `name`, and returns its channel.
    pub(super) async fn running(&self, name: &str) -> ChannelId {
        self.sees(|seen| seen.commands.iter().find(|(_, run)| run.starts_with(name)).map(|(id, _)| *id)).await
    }
}

pub(super) fn config() -> server::Config {
    server::Config {
        keys: vec![key(200)],
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 10,
        inactivity_timeout: None,
        ..server::Config::default()
    }
}

/// Runs a server on one end of a pipe; the other end is returned.
pub(super) fn serve(door: Door, config: server::Config) -> (DuplexStream, impl Future<Output = Server>) {
    let (ours, theirs) = tokio::io::duplex(256 * 1024);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let peer = Peer { door, seen: Arc::clone(&seen), keyed: false, round: 0 };
    let running = async move {
        let running = server::run_stream(Arc::new(config), theirs, peer).await.expect("a server");
        // The session runs as a task of its own, of which only the handle is needed.
        Server { handle: running.handle(), seen }
    };
    (ours, running)
}

/// Connects and logs in.
pub(super) async fn login(
    door: Door,
    target: &Target,
    person: Arc<Person>,
) -> (Result<Session, Error>, Server) {
    let (stream, running) = serve(door, config());
    let connecting = async {
        let host_keys = Arc::new(Trusting::default());
        let open = Unauthenticated::open(stream, None, target, host_keys, person).await?;
        open.authenticate(target).await
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(connecting, running) })
        .await
        .expect("a login in time")
}

/// A session with a server that lets everybody in.
pub(super) async fn session() -> (Session, Server) {
    let door = Door { open: true, ..Door::default() };
    let (session, server) = login(door, &target(), Person::who_says(&[])).await;
    (session.expect("an open door"), server)
}

/// A private key whose passphrase is `opensesame`.
pub(super) fn encrypted_key() -> String {
    use russh::keys::ssh_key::{Cipher, Kdf, LineEnding};
    let kdf = Kdf::Bcrypt { salt: vec![7; 16], rounds: 1 };
    let encrypted = key(9).encrypt_with(Cipher::Aes256Ctr, kdf, 1, "opensesame").expect("a cipher");
    encrypted.to_openssh(LineEnding::LF).expect("a key").to_string()
}
