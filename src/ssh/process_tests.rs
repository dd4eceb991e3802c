//! What becomes of output that nobody has read yet.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{io::AsyncWriteExt as _, time::sleep};

use super::*;
use crate::ssh::{
    inbox::Verdict,
    peer::{PATIENCE, session},
    transport::Transport,
};

fn output(inbox: &Arc<Inbox>) -> Events {
    Events { inbox: Arc::clone(inbox), returned: VecDeque::new(), over: false }
}

fn numbered(n: usize) -> Vec<u8> {
    let mut chunk = vec![u8::try_from(n % 251).unwrap(); 32 * 1024];
    chunk[..8].copy_from_slice(&(n as u64).to_be_bytes());
    chunk
}

#[tokio::test]
async fn output_beyond_memory_waits_in_a_file_and_comes_back_in_order() {
    let inbox = Arc::new(Inbox::new(Keep::All.limit()));
    let mut events = output(&inbox);
    let mut next = 0;
    // Three rounds of unlike size, so that the file is read while it grows, emptied, and begun anew.
    let mut read = 0;
    for (write, take) in [(200, 150), (90, 100), (70, 110)] {
        for _ in 0..write {
            let kind = if next % 3 == 0 { Kind::Extended } else { Kind::Data };
            assert_eq!(inbox.push(kind, &numbered(next)), Verdict::Keep);
            next += 1;
            if inbox.state().waiting > IN_MEMORY {
                let batch = overflowing(&mut inbox.state());
                keep_in_file(&inbox, batch).await;
            }
            assert!(inbox.state().waiting <= IN_MEMORY);
        }
        let upto = read + take;
        while read < upto.min(next) {
            // Those that wait in memory on one stream come as one.
            let (kind, mut bytes) = match events.next().await.unwrap() {
                Event::Stderr(bytes) => (0, bytes),
                Event::Stdout(bytes) => (1, bytes),
                Event::Exit(exit) => panic!("{exit:?}"),
            };
            while !bytes.is_empty() {
                assert_eq!((read % 3).min(1), kind, "chunk {read} is on the other stream");
                assert!(bytes.split_to(32 * 1024) == numbered(read), "chunk {read} is out of order");
                read += 1;
            }
        }
    }
    assert_eq!(read, next);
    inbox.exit(Exit::Status(3));
    inbox.end(End::Closed);
    assert_eq!(events.next().await, Some(Event::Exit(Exit::Status(3))));
    assert_eq!(events.next().await, None);
}

/// A connection of which a channel has a little more than may wait, and its transport.
fn flooded() -> (Arc<Inbox>, Events, Kill, Transport<tokio::io::DuplexStream>) {
    let (transport, kill) = Transport::new(tokio::io::duplex(1).0);
    let inbox = Arc::new(Inbox::new(Keep::All.limit()));
    let events = output(&inbox);
    let mut next = 0;
    while inbox.state().waiting <= IN_MEMORY {
        assert_eq!(inbox.push(Kind::Data, &numbered(next)), Verdict::Keep);
        next += 1;
    }
    (inbox, events, kill, transport)
}

#[tokio::test(start_paused = true)]
async fn a_quick_reader_is_waited_for_and_nothing_goes_to_a_file() {
    let mut nobody = None::<fn()>;
    let (inbox, mut events, kill, _transport) = flooded();
    let reading = async {
        let mut read = 0;
        while read <= IN_MEMORY {
            assert!(kill.is_held() || read > IN_MEMORY / 2, "others wait after {read} bytes");
            let Some(Event::Stdout(bytes)) = events.next().await else { panic!() };
            read += bytes.len();
            sleep(GRACE / 16).await;
        }
    };
    tokio::join!(relieve(&inbox, &kill, &mut nobody), reading);
    assert!(inbox.state().overflow.files.is_empty() && !kill.is_held());
}

#[tokio::test]
async fn a_slow_reader_has_a_file_and_holds_up_nobody() {
    let mut nobody = None::<fn()>;
    let (inbox, mut events, kill, _transport) = flooded();
    let waiting = inbox.state().waiting;
    relieve(&inbox, &kill, &mut nobody).await;
    assert!(inbox.state().overflow.files.len() == 1 && inbox.state().waiting == 0 && !kill.is_held());
    let mut read = 0;
    while read < waiting {
        let Some(Event::Stdout(bytes)) = events.next().await else { panic!() };
        read += bytes.len();
    }
    assert_eq!(read, waiting);
    // Nobody reads at all any more: neither is there a file, nor does anybody wait.
    let (inbox, events, kill, _transport) = flooded();
    let leaving = async {
        tokio::task::yield_now().await;
        drop(events);
    };
    tokio::join!(relieve(&inbox, &kill, &mut nobody), leaving);
    assert!(inbox.state().overflow.files.is_empty() && !kill.is_held());
}

#[tokio::test]
async fn what_waits_on_one_stream_is_one_piece() {
    let inbox = Arc::new(Inbox::new(Keep::All.limit()));
    let mut events = output(&inbox);
    for (kind, bytes) in [(Kind::Data, "a"), (Kind::Data, "b"), (Kind::Extended, "c"), (Kind::Data, "d")] {
        assert_eq!(inbox.push(kind, bytes.as_bytes()), Verdict::Keep);
    }
    for n in 0..9 {
        assert_eq!(inbox.push(Kind::Data, &numbered(n)), Verdict::Keep);
    }
    assert_eq!(events.next().await, Some(Event::Stdout("ab".into())));
    assert_eq!(events.next().await, Some(Event::Stderr("c".into())));
    for length in [1 + 32 * 1024, 64 * 1024, 64 * 1024, 64 * 1024, 64 * 1024] {
        let Some(Event::Stdout(piece)) = events.next().await else { panic!() };
        assert_eq!(piece.len(), length, "no more than a piece");
    }
    assert_eq!(inbox.state().waiting, 0);
}

#[tokio::test]
async fn a_helper_that_says_too_much_is_cut() {
    let inbox = Arc::new(Inbox::new(Keep::AtMost(100).limit()));
    assert_eq!(inbox.push(Kind::Data, &[0; 100]), Verdict::Keep);
    assert_eq!(inbox.push(Kind::Data, &[0; 1]), Verdict::Cut);
    let mut events = output(&inbox);
    assert_eq!(events.next().await, Some(Event::Exit(Exit::TooMuchOutput(None))));
}

#[test]
fn the_file_has_no_name() {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = nameless_file().unwrap().metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (0, 0o600));
}

#[tokio::test]
async fn far_behind_its_server_a_reader_is_waited_for_and_everything_comes() {
    const ALL: usize = 24 << 20;
    const PACKET: usize = 32_000;
    let (session, server) = session().await;
    let (process, pump) = session.exec("helper", Keep::All).await.unwrap();
    let Process { mut stdin, mut events, .. } = process;
    let id = server.running("helper").await;
    let inbox = Arc::clone(&events.inbox);
    let sending = async {
        for n in 0..ALL / PACKET {
            server.handle.data(id, vec![n.to_le_bytes()[0]; PACKET]).await.map_err(drop).unwrap();
        }
        server.handle.exit_status_request(id, 3).await.unwrap();
        server.handle.close(id).await.unwrap();
    };
    let reading = async {
        let kept = || {
            let state = inbox.state();
            state.overflow.waiting() + state.waiting as u64
        };
        while kept() < MUCH_IN_FILES {
            sleep(Duration::from_millis(1)).await;
        }
        // What is on its way, and then a little every second.
        sleep(2 * SIP_EVERY).await;
        let (much, most) = (MUCH_IN_FILES, MUCH_IN_FILES + (IN_MEMORY + (1 << 20)) as u64);
        assert!((much..most).contains(&kept()), "{} wait", kept());
        // Others are served, if late, and what is typed arrives.
        assert!(session.answers(PATIENCE).await);
        stdin.write_all(b"more?").await.unwrap();
        server.sees(|seen| (seen.stdin.get(&id)? == b"more?").then_some(())).await;
        let mut read = 0;
        loop {
            match timeout(PATIENCE, events.next()).await.expect("it goes on") {
                Some(Event::Stdout(bytes)) => {
                    let expected = |at: usize| (at / PACKET).to_le_bytes()[0];
                    assert!(
                        bytes.iter().enumerate().all(|(at, byte)| *byte == expected(read + at)),
                        "{read}"
                    );
                    read += bytes.len();
                    assert!(inbox.state().overflow.files.len() <= 10, "what was read is given back");
                }
                Some(Event::Exit(exit)) => break (read, exit),
                other => panic!("{other:?}"),
            }
        }
    };
    let (_, (read, exit), _) = tokio::join!(sending, reading, pump);
    assert_eq!((read, exit), (ALL / PACKET * PACKET, Exit::Status(3)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_far_behind_is_told_of_once() {
    let (inbox, _events, kill, _transport) = flooded();
    let told = AtomicUsize::new(0);
    let mut file = nameless_file().unwrap();
    io::Write::write_all(&mut file, b"x").unwrap();
    let kept = Kept { file: Arc::new(file), read: 0, written: MUCH_IN_FILES };
    inbox.state().overflow.files.push_back(kept);
    let mut behind = Some(|| {
        told.fetch_add(1, Ordering::Relaxed);
    });
    for _ in 0..3 {
        let before = Instant::now();
        relieve(&inbox, &kill, &mut behind).await;
        assert!(before.elapsed() >= SIP_EVERY && !kill.is_held());
        assert_eq!(inbox.push(Kind::Data, &numbered(0)), Verdict::Keep);
    }
    assert_eq!(told.load(Ordering::Relaxed), 1);
    // Where nobody reads it for a day it is too much.
    inbox.state().overflow.files.front_mut().unwrap().written = MOST_IN_FILES;
    relieve(&inbox, &kill, &mut behind).await;
    assert_eq!(inbox.state().end, Some(End::TooMuch));
}
