//! A session against a server of our own, which tests steer; hostile ones included.

use std::sync::Mutex;

use russh::{Channel, server};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
    time::sleep,
};

use super::*;
use crate::ssh::{
    forward::Arrival,
    inbox::Exit,
    peer::{self, Door, PATIENCE, Person, Server, Trusting, key, login, session, target},
    process::{Event, Events},
    terminal::{Local, Outcome, bridge},
};

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it happens in time")
}

async fn rest(events: &mut Events) -> (Vec<u8>, Vec<u8>, Exit) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match soon(events.next()).await {
            Some(Event::Stdout(bytes)) => stdout.extend(bytes),
            Some(Event::Stderr(bytes)) => stderr.extend(bytes),
            Some(Event::Exit(exit)) => return (stdout, stderr, exit),
            None => panic!("no exit"),
        }
    }
}

async fn run(session: &Session, command: &str) -> (Vec<u8>, Vec<u8>, Exit) {
    let (mut process, pump) = session.exec(command, Keep::All).await.unwrap();
    let (said, _) = tokio::join!(rest(&mut process.events), pump);
    said
}

async fn connects(server: &Server, port: u32, from: &str) -> Result<Channel<server::Msg>, russh::Error> {
    soon(server.handle.channel_open_forwarded_tcpip("127.0.0.1", port, from, 50000)).await
}

#[tokio::test]
async fn a_commands_streams_stay_apart_and_its_status_arrives() {
    let (session, _server) = session().await;
    let (stdout, stderr, exit) = run(&session, "echo hello").await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"hello"[..], &b"warned"[..]));
    assert_eq!(exit, Exit::Status(7));
    assert_eq!(session.channels(), (0, 0), "nothing is left, and the server closed first");
}

#[tokio::test]
async fn facts_name_the_key_the_algorithms_and_the_server() {
    let (session, _server) = session().await;
    let facts = session.facts();
    assert_eq!(facts.fingerprint, key(200).fingerprint(russh::keys::HashAlg::Sha256).to_string());
    assert_eq!((facts.key_type.as_str(), facts.kex.as_str()), ("ssh-ed25519", "mlkem768x25519-sha256"));
    assert_eq!(facts.cipher, "aes256-gcm@openssh.com");
    assert!(facts.server.starts_with("SSH-2.0-russh"), "{facts:?}");
}

#[tokio::test]
async fn more_commands_than_a_server_allows_at_once_can_run_one_after_another() {
    let (session, server) = session().await;
    for _ in 0..30 {
        drop(session.exec("refused", Keep::All).await.err().expect("refused"));
    }
    // Each refused channel was closed: none keeps a place among the server's few.
    server.sees(|seen| (seen.closed.len() == 30).then_some(())).await;
}

#[tokio::test]
async fn every_kind_of_channel_that_was_not_asked_for_is_refused_and_then_the_server() {
    let (session, server) = session().await;
    let (_forward, port) = session.forward_tcp(4144).await.unwrap();
    assert_eq!(port, 4144);
    let handle = &server.handle;
    let refused = |opened: Result<Channel<server::Msg>, russh::Error>| {
        assert!(opened.is_err(), "a channel that nobody asked for was accepted");
    };
    refused(soon(handle.channel_open_session()).await);
    refused(soon(handle.channel_open_direct_tcpip("169.254.169.254", 80, "127.0.0.1", 1)).await);
    refused(soon(handle.channel_open_direct_streamlocal("/run/docker.sock")).await);
    assert!(session.shared.ended_already().is_none(), "three may be a misunderstanding");
    refused(soon(handle.channel_open_agent()).await);
    let ended = soon(session.ended()).await;
    assert!(matches!(ended, Ended::Killed(Killed::Violation(_))), "{ended:?}");
}

#[tokio::test]
async fn the_other_kinds_are_refused_too() {
    let (session, server) = session().await;
    let handle = &server.handle;
    assert!(soon(handle.channel_open_x11("127.0.0.1", 6000)).await.is_err());
    assert!(connects(&server, 22, "127.0.0.1").await.is_err());
    assert!(soon(handle.channel_open_forwarded_streamlocal("/tmp/x")).await.is_err());
    assert!(session.answers(PATIENCE).await);
    assert!(connects(&server, 23, "127.0.0.1").await.is_err());
    soon(session.ended()).await;
}

#[tokio::test]
async fn a_forward_is_refused_in_words_and_a_chosen_port_is_told() {
    let (session, server) = session().await;
    let refused = session.forward_tcp(1).await.unwrap_err();
    assert_eq!(refused.to_string(), "the server refused to forward port 1");
    assert!(session.forward_streamlocal("/nowhere/s").await.is_err());
    let (mut forward, port) = session.forward_tcp(0).await.unwrap();
    assert_eq!(port, 40001);
    let mut channel = connects(&server, 40001, "::ffff:127.0.0.1").await.unwrap();
    let arrival = *soon(forward.arrivals.recv()).await.unwrap();
    assert_eq!(arrival.originator, Some("127.0.0.1:50000".parse().unwrap()));
    assert!(session.cancel(forward).await);
    assert!(connects(&server, 40001, "127.0.0.1").await.is_err(), "cancelled");
    drop(arrival);
    while !matches!(soon(channel.wait()).await, Some(russh::ChannelMsg::Close) | None) {}
}

#[tokio::test]
async fn connections_from_other_machines_are_refused_without_blaming_the_server() {
    let (session, server) = session().await;
    let (_forward, _) = session.forward_tcp(4144).await.unwrap();
    for _ in 0..10 {
        assert!(connects(&server, 4144, "192.0.2.7").await.is_err());
    }
    assert!(session.answers(PATIENCE).await);
}

async fn echo(arrival: Box<Arrival>) {
    let Arrival { mut stream, pump, .. } = *arrival;
    let serve = async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        stream.write_all(&request).await.unwrap();
    };
    tokio::join!(pump, serve);
}

#[tokio::test]
async fn a_client_that_closes_its_writing_half_first_gets_its_answer() {
    let (session, server) = session().await;
    let mut forward = session.forward_streamlocal("/run/user/1/s").await.unwrap();
    let mut channel = soon(server.handle.channel_open_forwarded_streamlocal("/run/user/1/s")).await.unwrap();
    let arrival = *soon(forward.arrivals.recv()).await.unwrap();
    assert_eq!(arrival.originator, None);
    let asks = async {
        channel.data_bytes(vec![b'x'; 100_000]).await.unwrap();
        channel.eof().await.unwrap();
        let mut answer = 0;
        loop {
            match soon(channel.wait()).await {
                Some(russh::ChannelMsg::Data { data }) => answer += data.len(),
                Some(russh::ChannelMsg::Eof) => break channel.close().await.unwrap(),
                None => panic!("no end"),
                _ => {}
            }
        }
        assert_eq!(answer, 100_000);
    };
    tokio::join!(asks, echo(Box::new(arrival)));
    assert_eq!(session.channels(), (0, 0));
}

#[tokio::test]
async fn ten_thousand_connections_leave_nothing_behind() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let mut serving = JoinSet::new();
    let mut asking = JoinSet::new();
    for _ in 0..10_000 {
        let mut channel = connects(&server, 4144, "127.0.0.1").await.unwrap();
        asking.spawn(async move {
            channel.data_bytes(&b"GET"[..]).await.unwrap();
            channel.eof().await.unwrap();
            while !matches!(channel.wait().await, Some(russh::ChannelMsg::Eof) | None) {}
            channel.close().await.unwrap();
        });
        serving.spawn(echo(soon(forward.arrivals.recv()).await.unwrap()));
        while serving.len() > 100 {
            soon(asking.join_next()).await.unwrap().unwrap();
            soon(serving.join_next()).await.unwrap().unwrap();
        }
    }
    soon(asking.join_all()).await;
    soon(serving.join_all()).await;
    assert_eq!(session.shared.forwards.room.taken(), (0, 0));
    // russh leaks a channel that we close before the server does: there must be none.
    assert_eq!(session.channels(), (0, 0));
}

#[tokio::test]
async fn a_flood_of_connections_is_bounded_and_hurts_nothing_else() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let mut held = Vec::new();
    let mut pumps = JoinSet::new();
    let mut refused = 0;
    let mut theirs = Vec::new();
    for _ in 0..2000 {
        match connects(&server, 4144, "127.0.0.1").await {
            Ok(channel) => theirs.push(channel),
            Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if let Ok(arrival) = forward.arrivals.try_recv() {
            let Arrival { stream, pump, .. } = *arrival;
            held.push(stream);
            pumps.spawn(pump);
        }
        assert!(session.shared.forwards.room.taken().0 <= crate::ssh::forward::MOST_CHANNELS);
    }
    // Those who said nothing for a while left for others.
    assert_eq!(theirs.len() + refused, 2000);
    assert_eq!(run(&session, "echo still here").await.2, Exit::Status(7));
    pumps.shutdown().await;
    drop(forward);
    assert_eq!(session.shared.forwards.room.taken(), (0, 0));
}

#[tokio::test]
async fn neighbours_who_never_close_their_end_keep_no_place() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let mut lingering = JoinSet::new();
    let mut theirs = Vec::new();
    for _ in 0..300 {
        theirs.push(connects(&server, 4144, "127.0.0.1").await.unwrap());
        let Arrival { stream, pump, .. } = *soon(forward.arrivals.recv()).await.unwrap();
        drop(stream);
        lingering.spawn(pump);
        tokio::task::yield_now().await;
    }
    assert_eq!(lingering.len(), 300, "nobody was cut off yet");
    let taken = session.shared.forwards.room.taken();
    assert_eq!(taken, (0, 300), "they are counted all the same");
}

#[tokio::test]
async fn a_channel_that_nobody_reads_stops_nothing() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let untaken = connects(&server, 4144, "127.0.0.1").await.unwrap();
    let unread = connects(&server, 4144, "127.0.0.1").await.unwrap();
    let _first = *forward.arrivals.recv().await.unwrap();
    for channel in [&untaken, &unread] {
        for _ in 0..300 {
            soon(channel.data_bytes(&b"x"[..])).await.unwrap();
        }
    }
    let started = Instant::now();
    assert_eq!(run(&session, "echo alive").await.0, b"alive");
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_credential_channel_is_cut_beyond_its_cap() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let mut channel = connects(&server, 4144, "127.0.0.1").await.unwrap();
    let Arrival { mut stream, pump, .. } = *soon(forward.arrivals.recv()).await.unwrap();
    let floods = async {
        let (mut messages, write) = channel.split();
        tokio::select! {
            sent = write.data_bytes(vec![0; 16 << 20]) => panic!("all of it went out: {sent:?}"),
            () = async { while !matches!(messages.wait().await, Some(russh::ChannelMsg::Close) | None) {} } => {}
        }
    };
    let (finished, ()) = soon(async { tokio::join!(pump, floods) }).await;
    assert_eq!(finished, crate::ssh::pump::Finished::Cut);
    assert!(stream.read(&mut [0; 1]).await.is_err(), "half a request must not look like a whole one");
    assert_eq!(session.channels(), (0, 1));
    assert!(session.answers(PATIENCE).await, "the others are not hurt");
    channel = connects(&server, 4144, "127.0.0.1").await.unwrap();
    drop(channel);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_loses_its_place_after_a_while() {
    let (session, server) = session().await;
    let (mut forward, _) = session.forward_tcp(4144).await.unwrap();
    let _channel = connects(&server, 4144, "127.0.0.1").await.unwrap();
    let Arrival { stream, pump, .. } = *forward.arrivals.recv().await.unwrap();
    drop(stream);
    assert_eq!(soon(pump).await, crate::ssh::pump::Finished::Lingered);
    assert_eq!(session.shared.forwards.room.taken(), (0, 0));
    assert_eq!(session.channels(), (0, 1));
}

#[tokio::test]
async fn what_a_server_refuses_to_open_is_told_in_its_words() {
    let (session, _server) = session().await;
    let refused = session.direct_tcpip("127.0.0.1", 4144).await.err().unwrap();
    assert_eq!(refused.to_string(), "`bastion` refused a connection: Connect failed");
    let refused = session.exec("refused", Keep::All).await.err().unwrap();
    assert_eq!(refused.to_string(), "`bastion` refused to run a command");
}

#[tokio::test]
async fn what_is_carried_waits_for_a_slow_reader_and_holds_a_bounded_amount() {
    const ALL: usize = 16 << 20;
    let (session, server) = session().await;
    let (mut stream, pump) = session.carry("reachable", 22).await.unwrap();
    let id = server.running("connect 22").await;
    let sending = async {
        for n in 0..ALL / 32_000 {
            server.handle.data(id, vec![n as u8; 32_000]).await.map_err(drop).unwrap();
        }
        server.handle.eof(id).await.unwrap();
        server.handle.close(id).await.unwrap();
    };
    let inbox = session.shared.channels.find(id.into()).unwrap();
    let reading = async {
        // Nobody reads until as much waits as may.
        let waiting = async {
            while inbox.state().waiting < 2 << 20 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        soon(waiting).await;
        let (mut read, mut most, mut chunk) = (0, 0, vec![0; 64 * 1024]);
        loop {
            most = most.max(inbox.state().waiting);
            let n = soon(stream.read(&mut chunk)).await.unwrap();
            if n == 0 {
                break (read, most);
            }
            assert!(chunk[..n].iter().enumerate().all(|(i, byte)| *byte == ((read + i) / 32_000) as u8));
            read += n;
        }
    };
    let ((), (read, most), _) = tokio::join!(sending, reading, pump);
    assert_eq!(read, ALL / 32_000 * 32_000);
    // One packet more, because what was read from the transport is delivered.
    assert!(most <= (2 << 20) + (64 << 10), "{most}");
}

#[tokio::test]
async fn a_reader_that_leaves_holds_nothing_up() {
    let (session, server) = session().await;
    let (stream, _pump) = session.carry("reachable", 22).await.unwrap();
    let id = server.running("connect 22").await;
    let inbox = session.shared.channels.find(id.into()).unwrap();
    let sending = async {
        for _ in 0..128 {
            server.handle.data(id, vec![0; 32_000]).await.map_err(drop).unwrap();
        }
    };
    let leaving = async {
        while inbox.state().waiting < 2 << 20 {
            sleep(Duration::from_millis(1)).await;
        }
        drop(stream);
    };
    soon(async { tokio::join!(sending, leaving) }).await;
    assert!(session.answers(PATIENCE).await);
}

#[tokio::test]
async fn a_helper_can_be_talked_to_and_told_the_end() {
    let (session, server) = session().await;
    let (process, pump) = session.exec("helper", Keep::AtMost(1000)).await.unwrap();
    let Process { mut stdin, mut events, .. } = process;
    let talk = async {
        let id = server.running("helper").await;
        stdin.write_all(b"question\n").await.unwrap();
        server.sees(|seen| (seen.stdin.get(&id)? == b"question\n").then_some(())).await;
        server.handle.data(id, &b"answer\n"[..]).await.unwrap();
        assert_eq!(soon(events.next()).await, Some(Event::Stdout("answer\n".into())));
        drop(stdin);
        server.sees(|seen| seen.eofs.contains(&id).then_some(())).await;
        server.handle.data(id, vec![b'x'; 1001]).await.unwrap();
        assert_eq!(rest(&mut events).await.2, Exit::TooMuchOutput(None));
        server.sees(|seen| seen.closed.contains(&id).then_some(())).await;
    };
    tokio::join!(talk, pump);
}

fn pty(term: &str) -> Pty {
    Pty { term: term.into(), size: Size { columns: 80, rows: 24, width: 0, height: 0 }, modes: Vec::new() }
}

#[tokio::test]
async fn a_terminal_is_bridged_resized_and_left_with_an_escape() {
    let (session, server) = session().await;
    let (process, pump) = session.exec_pty(None, &pty("xterm")).await.unwrap();
    assert!(process.has_pty);
    let (mut keyboard, stdin) = tokio::io::duplex(100);
    let (mut screen, stdout) = tokio::io::duplex(100);
    let (sizes, resized) = tokio::sync::mpsc::channel(1);
    let suspended = Mutex::new(0);
    let mut suspend = || *suspended.lock().unwrap() += 1;
    let local = Local {
        stdin,
        stdout,
        stderr: tokio::io::sink(),
        sizes: resized,
        escape: Some(b'~'),
        suspend: &mut suspend,
    };
    let person = async {
        let id = server.running("").await;
        server.handle.data(id, &b"$ "[..]).await.unwrap();
        let mut prompt = [0; 2];
        soon(screen.read_exact(&mut prompt)).await.unwrap();
        assert_eq!(&prompt, b"$ ");
        sizes.send(Size { columns: 100, rows: 50, ..Size::default() }).await.unwrap();
        keyboard.write_all(b"ls\r~\x1a").await.unwrap();
        server.sees(|seen| (seen.stdin.get(&id)? == b"ls\r").then_some(())).await;
        server.sees(|seen| (seen.sizes == [(80, 24), (100, 50)]).then_some(())).await;
        keyboard.write_all(b"~.").await.unwrap();
        id
    };
    let (id, outcome) = soon(async { tokio::join!(person, bridge(process, pump, local)) }).await;
    assert_eq!(outcome, Outcome::Left);
    assert_eq!(*suspended.lock().unwrap(), 1);
    server.sees(|seen| seen.closed.contains(&id).then_some(())).await;
}

#[tokio::test]
async fn a_server_without_terminals_runs_the_command_all_the_same() {
    let (session, _server) = session().await;
    let (mut process, pump) = session.exec_pty(Some("echo plain"), &pty("refused")).await.unwrap();
    assert!(!process.has_pty);
    let (said, _) = tokio::join!(rest(&mut process.events), pump);
    assert_eq!(said.0, b"plain");
}

#[tokio::test]
async fn a_reader_in_a_pager_does_not_stop_the_connection() {
    let (session, server) = session().await;
    let (process, pump) = session.exec("flood", Keep::All).await.unwrap();
    let Process { stdin: _stdin, mut events, .. } = process;
    let reads = async {
        let id = server.running("flood").await;
        for n in 0..200u8 {
            server.handle.data(id, vec![n; 32 * 1024]).await.unwrap();
        }
        // 6.4 MB wait for a reader; others are served.
        assert_eq!(run(&session, "echo alive").await.0, b"alive");
        server.handle.exit_status_request(id, 0).await.unwrap();
        server.handle.close(id).await.unwrap();
        rest(&mut events).await
    };
    let ((stdout, _, exit), _) = soon(async { tokio::join!(reads, pump) }).await;
    assert_eq!(exit, Exit::Status(0));
    assert!(stdout.chunks(32 * 1024).zip(0..200u8).all(|(chunk, n)| chunk.iter().all(|byte| *byte == n)));
    assert_eq!(stdout.len(), 200 * 32 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_person_may_think_about_the_host_key_for_as_long_as_it_takes() {
    let (stream, running) = peer::serve(Door { open: true, ..Door::default() }, peer::config());
    let host_keys = Arc::new(Trusting { thinking: Duration::from_secs(600), ..Trusting::default() });
    let target = target();
    let opening = Unauthenticated::open(stream, None, &target, host_keys, Person::who_says(&[]));
    let (opened, _server) = tokio::join!(opening, running);
    assert!(opened.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let (stream, _silent) = tokio::io::duplex(1 << 16);
    let started = Instant::now();
    let host_keys = Arc::new(Trusting::default());
    let error = Unauthenticated::open(stream, None, &target(), host_keys, Person::who_says(&[])).await;
    let error = error.err().unwrap();
    assert_eq!(error.to_string(), "`bastion` did not answer within 20 s (key exchange)");
    assert_eq!(started.elapsed(), KEX_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_dead_link_is_noticed_within_interval_times_count() {
    let door = Door { open: true, ..Door::default() };
    let (stream, running) = peer::serve(door, peer::config());
    // Everything passes through here until the link is cut without a word.
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let mut stream = stream;
    let (cut, is_cut) = tokio::sync::oneshot::channel::<()>();
    let link = async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut far, &mut stream) => {}
            _ = is_cut => {}
        }
        (far, stream)
    };
    let mut links = JoinSet::new();
    links.spawn(link);
    let target = target();
    let opening = async {
        let host_keys = Arc::new(Trusting::default());
        let open = Unauthenticated::open(near, None, &target, host_keys, Person::who_says(&[])).await?;
        open.authenticate(&target).await
    };
    let (session, _server) = tokio::join!(opening, running);
    let session = session.unwrap();
    cut.send(()).unwrap();
    let _held = links.join_next().await;
    let started = Instant::now();
    let ended = session.ended().await;
    assert!(matches!(ended, Ended::KeepaliveTimeout), "{ended:?}");
    assert!(started.elapsed() <= Duration::from_secs(45), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_bounded_and_a_server_hears_it() {
    let (session, server) = session().await;
    let started = Instant::now();
    session.disconnect().await;
    assert!(started.elapsed() <= Duration::from_millis(500));
    assert!(matches!(session.ended().await, Ended::Ours));
    soon(async {
        while server.handle.exit_status_request(server_channel(), 0).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(session.exec("echo", Keep::All).await.is_err());
}

/// Any channel: what counts is whether the server's session still listens.
fn server_channel() -> russh::ChannelId {
    use russh::keys::ssh_encoding::Decode as _;
    russh::ChannelId::decode(&mut &[0, 0, 0, 9][..]).unwrap()
}

#[tokio::test]
async fn dropping_a_session_ends_its_processes_and_streams() {
    let (session, _server) = session().await;
    let (process, pump) = session.exec("long", Keep::All).await.unwrap();
    let Process { stdin: _stdin, mut events, .. } = process;
    drop(session);
    let (said, finished) = tokio::join!(rest(&mut events), pump);
    assert_eq!((said.2, finished), (Exit::Lost, crate::ssh::pump::Finished::Lost));
}

#[tokio::test]
async fn a_banner_is_shown_without_its_escapes_and_with_who_says_it() {
    let person = Person::who_says(&["secret"]);
    let banner = Some("\u{1b}]0;OWNED\u{7}\u{1b}[2JWelcome\r\n");
    let door = Door { password: Some("secret"), banner, ..Door::default() };
    let (session, _server) = login(door.clone(), &target(), Arc::clone(&person)).await;
    session.unwrap();
    let heard = person.heard();
    assert!(heard.starts_with("bastion says:\n"), "{heard:?}");
    assert!(heard.contains("Welcome") && !heard.contains('\u{1b}') && !heard.contains('\u{7}'));
    assert!(heard.contains("(alice@bastion) Password: "));
    let person = Person::who_says(&["secret"]);
    let quiet = Target { quiet: true, ..target() };
    let (session, _server) = login(door, &quiet, Arc::clone(&person)).await;
    session.unwrap();
    assert_eq!(person.heard(), "(alice@bastion) Password: ");
}

fn write_key(directory: &std::path::Path, name: &str, text: &str) -> std::path::PathBuf {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let path = directory.join(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

fn with_key(directory: &std::path::Path, text: &str) -> Target {
    let mut target = target();
    target.identities.files = vec![write_key(directory, "id", text)];
    target.identities.explicit = true;
    target
}

fn plain(seed: u8) -> String {
    key(seed).to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap().to_string()
}

#[tokio::test]
async fn a_key_file_logs_in_without_a_word() {
    let home = tempfile::tempdir().unwrap();
    let person = Person::who_says(&[]);
    let door = Door { key: Some(key(1).public_key().clone()), ..Door::default() };
    let (session, _server) = login(door, &with_key(home.path(), &plain(1)), Arc::clone(&person)).await;
    session.unwrap();
    assert_eq!(person.heard(), "");
}

#[tokio::test]
async fn a_passphrase_is_asked_for_only_when_the_server_would_take_the_key() {
    let home = tempfile::tempdir().unwrap();
    let target = with_key(home.path(), &peer::encrypted_key());
    let person = Person::who_says(&["wrong", "opensesame"]);
    let door = Door { key: Some(key(9).public_key().clone()), ..Door::default() };
    let (session, _server) = login(door, &target, Arc::clone(&person)).await;
    session.unwrap();
    let question = format!("Enter passphrase for key '{}': ", target.identities.files[0].display());
    assert_eq!(person.heard(), format!("{question}\n{question}"));

    let person = Person::who_says(&["opensesame"]);
    let door = Door { key: Some(key(1).public_key().clone()), ..Door::default() };
    let (session, server) = login(door, &target, Arc::clone(&person)).await;
    assert_eq!(person.heard(), "", "the server does not want this key");
    let error = session.err().unwrap();
    let file = target.identities.files[0].display();
    assert_eq!(
        error.to_string(),
        format!("could not log in to `bastion` as `alice`: tried key `{file}`; the server takes publickey")
    );
    assert_eq!(error.hint().unwrap(), "is the key in `~/.ssh/authorized_keys` of `alice` there?");
    assert_eq!(server.seen.lock().unwrap().failures, 2, "none, and one key");
}

#[tokio::test]
async fn batch_asks_nobody_and_says_what_a_person_could_do() {
    let home = tempfile::tempdir().unwrap();
    let target = Target { batch: true, ..with_key(home.path(), &peer::encrypted_key()) };
    let person = Person::who_says(&["opensesame", "secret"]);
    let door = Door { key: Some(key(9).public_key().clone()), password: Some("secret"), ..Door::default() };
    let (session, _server) = login(door, &target, Arc::clone(&person)).await;
    let error = session.err().unwrap();
    assert_eq!(person.heard(), "");
    assert!(error.to_string().contains("(it has a passphrase, and nobody can be asked)"), "{error}");
    assert!(error.hint().unwrap().contains("--batch"));
}

#[tokio::test]
async fn several_rounds_of_questions_are_answered_also_the_empty_one() {
    let person = Person::who_says(&["pw", "123456", "blue"]);
    let rounds: Vec<(&[&str], &[&str])> =
        vec![(&["Password: "], &["pw"]), (&[], &[]), (&["Code\u{1b}[2J: ", "Colour: "], &["123456", "blue"])];
    let door = Door { rounds, ..Door::default() };
    let (session, _server) = login(door, &target(), Arc::clone(&person)).await;
    session.unwrap();
    let heard = person.heard();
    assert_eq!(
        heard,
        "(alice@bastion) Password: \n(alice@bastion) Code\u{fffd}[2J: \n(alice@bastion) Colour: "
    );
}

#[tokio::test]
async fn after_a_key_that_was_right_the_second_factor_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let person = Person::who_says(&["123456"]);
    let rounds: Vec<(&[&str], &[&str])> = vec![(&["Code: "], &["123456"])];
    let door = Door { key: Some(key(1).public_key().clone()), rounds, both: true, ..Door::default() };
    let (session, _server) = login(door, &with_key(home.path(), &plain(1)), Arc::clone(&person)).await;
    session.unwrap();
    assert_eq!(person.heard(), "(alice@bastion) Code: ");
}

#[tokio::test]
async fn a_password_may_be_mistyped_twice_and_not_for_ever() {
    let door = || Door { password: Some("right"), ..Door::default() };
    let (session, _server) = login(door(), &target(), Person::who_says(&["a", "b", "right"])).await;
    session.unwrap();
    let person = Person::who_says(&["a", "b", "c", "right"]);
    let (session, _server) = login(door(), &target(), Arc::clone(&person)).await;
    let error = session.err().unwrap();
    assert_eq!(
        error.to_string(),
        "could not log in to `bastion` as `alice`: tried password, password, password; the server takes password"
    );
    assert_eq!(person.answers.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn keys_leave_room_for_a_password_before_the_server_gives_up() {
    let home = tempfile::tempdir().unwrap();
    let mut target = target();
    target.identities.files = (1..=8).map(|n| write_key(home.path(), &format!("id{n}"), &plain(n))).collect();
    let door = Door { key: Some(key(100).public_key().clone()), password: Some("right"), ..Door::default() };
    let (session, server) = login(door, &target, Person::who_says(&["right"])).await;
    session.unwrap();
    assert_eq!(server.seen.lock().unwrap().failures, 1 + 5, "none, and five keys");
}

#[tokio::test]
async fn the_servers_last_words_are_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let mut target = target();
    target.batch = true;
    target.identities.files = (1..=5).map(|n| write_key(home.path(), &format!("id{n}"), &plain(n))).collect();
    let door = Door { key: Some(key(100).public_key().clone()), ..Door::default() };
    let config = server::Config { max_auth_attempts: 3, ..peer::config() };
    let (stream, running) = peer::serve(door, config);
    let connecting = async {
        let host_keys = Arc::new(Trusting::default());
        let open = Unauthenticated::open(stream, None, &target, host_keys, Person::who_says(&[])).await?;
        open.authenticate(&target).await
    };
    let (session, _server) = soon(async { tokio::join!(connecting, running) }).await;
    let error = session.err().unwrap();
    let Error::Authentication(refused) = &error else { panic!("{error:?}") };
    assert!(refused.ended.is_some(), "{refused:?}");
    assert!(refused.tried.len() < 5, "{refused:?}");
}

async fn open_error_with(config: server::Config, host_keys: Arc<dyn HostKeys>) -> Error {
    let (stream, running) = peer::serve(Door::default(), config);
    // The server's side does not come to an end of its own when it is refused.
    let mut servers = JoinSet::new();
    servers.spawn(async move { drop(running.await) });
    let target = target();
    let opening = Unauthenticated::open(stream, None, &target, host_keys, Person::who_says(&[]));
    soon(opening).await.err().expect("refused")
}

#[tokio::test]
async fn chacha20_is_refused_when_the_server_lacks_strict_key_exchange() {
    let mut config = peer::config();
    config.preferred.cipher = vec![russh::cipher::CHACHA20_POLY1305].into();
    config.preferred.kex = vec![russh::kex::CURVE25519].into();
    let error = open_error_with(config, Arc::new(Trusting::default())).await;
    assert!(matches!(error, Error::Weak { .. }), "{error:?}");
}

#[tokio::test]
async fn a_host_whose_key_nobody_looked_at_hears_no_password() {
    for unseen in [false, true] {
        let door = Door { password: Some("opensesame"), ..Door::default() };
        let (stream, running) = peer::serve(door, peer::config());
        let person = Person::who_says(&["opensesame"]);
        let connecting = async {
            let host_keys = Arc::new(Trusting { unseen, ..Trusting::default() });
            let target = target();
            let human = Arc::clone(&person) as Arc<dyn Human>;
            Unauthenticated::open(stream, None, &target, host_keys, human).await?.authenticate(&target).await
        };
        let (session, _server) = soon(async { tokio::join!(connecting, running) }).await;
        assert_eq!(session.is_err(), unseen);
        assert_eq!(person.heard().contains("Password:"), !unseen);
        if let Err(error) = session {
            assert!(error.to_string().contains("accepted unseen"), "{error}");
            assert!(error.hint().unwrap().contains("ssh-keygen -lF"));
        }
    }
}

#[tokio::test]
async fn a_refused_host_key_keeps_the_finding_of_whoever_refused_it() {
    #[derive(Debug, thiserror::Error)]
    #[error("the host key of `bastion` changed")]
    struct Changed;
    struct Suspicious;
    impl HostKeys for Suspicious {
        fn wanted(&self) -> BoxFuture<'_, Result<Wanted, HostKeyRefused>> {
            Box::pin(async { Ok(Wanted::default()) })
        }
        fn check(&self, _: &PublicKeyOrCertificate) -> BoxFuture<'_, Result<Trust, HostKeyRefused>> {
            Box::pin(async { Err(HostKeyRefused { error: Box::new(Changed), hint: Some("look".into()) }) })
        }
    }
    let error = open_error_with(peer::config(), Arc::new(Suspicious)).await;
    assert_eq!(error.to_string(), "the host key of `bastion` changed");
    assert_eq!(error.hint().as_deref(), Some("look"));
    let Error::HostKey(refused) = error else { panic!("{error:?}") };
    assert!(refused.error.is::<Changed>());
}

#[tokio::test]
async fn a_question_that_nobody_answers_ends_in_words_and_not_in_silence() {
    let rounds: Vec<(&[&str], &[&str])> = vec![(&["Code: "], &["123456"])];
    let door = Door { rounds, ..Door::default() };
    let (session, _server) = login(door, &target(), Person::who_says(&[])).await;
    let error = session.err().unwrap();
    assert!(error.to_string().contains("tried keyboard-interactive; the server takes keyboard-interactive"));
}
