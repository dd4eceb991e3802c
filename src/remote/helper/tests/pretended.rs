//! A helper that a test plays: lies, silence, and how often it is heard.

use super::*;

type Theirs = (
    tokio::io::Lines<BufReader<tokio::io::ReadHalf<tokio::io::DuplexStream>>>,
    tokio::io::WriteHalf<tokio::io::DuplexStream>,
);

/// A helper that a test plays, after the handshake.
async fn pretend(nonce: &Nonce) -> (Helper, Theirs, JoinSet<Result<(), Error>>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (stdout, stdin) = tokio::io::split(ours);
    let (read, mut write) = tokio::io::split(theirs);
    let mut read = BufReader::new(read).lines();
    let nonce = nonce.clone();
    let n = nonce.as_str().to_owned();
    let handshake = async {
        write.write_all(format!("broker-{n} ready\n").as_bytes()).await.unwrap();
        read.next_line().await.unwrap().unwrap();
        let facts = format!("{n} 0 row uid 1000\n{n} 0 row system Linux\n{n} 0 row parent 7 8\n{n} 0 ok\n");
        write.write_all(facts.as_bytes()).await.unwrap();
    };
    let (started, ()) = tokio::join!(start(stdin, stdout, nonce), handshake);
    let (helper, future, _) = started.unwrap();
    let mut actor = JoinSet::new();
    actor.spawn(future);
    (helper, (read, write), actor)
}

/// What comes of a helper that answers the first command, `listen`, with this.
async fn after_the_answer(answer: impl Fn(&str) -> Vec<u8>) -> (Result<Listening, Error>, Result<(), Error>) {
    let nonce = Nonce::generate().unwrap();
    let (helper, mut theirs, mut actor) = pretend(&nonce).await;
    let lie = async {
        theirs.0.next_line().await.unwrap().unwrap();
        // It may stop to listen in the middle.
        drop(theirs.1.write_all(&answer(nonce.as_str())).await);
        drop(theirs);
    };
    let (listening, ()) = tokio::join!(helper.listeners(4144), lie);
    (listening, timeout(PATIENCE, actor.join_next()).await.unwrap().unwrap().unwrap())
}

#[tokio::test]
async fn a_helper_that_lies_is_left() {
    type Lie = fn(&str) -> Vec<u8>;
    let lies: [(&str, Lie); 9] = [
        ("garbage", |_| b"\xff\xfe garbage\n".to_vec()),
        ("another nonce", |_| format!("{} 1 ok\n", "0".repeat(32)).into()),
        ("another number", |n| format!("{n} 2 ok\n").into()),
        ("no grammar", |n| format!("{n} 1 okay\n").into()),
        ("an odd row", |n| format!("{n} 1 row 0100007F:1030 -1\n{n} 1 ok\n").into()),
        ("another port", |n| format!("{n} 1 row 0100007F:1031 1000\n{n} 1 ok\n").into()),
        ("a line without end", |_| vec![b'x'; 1 << 20]),
        ("a long answer", |n| format!("{n} 1 row 0100007F:1030 1000\n").repeat(2000).into()),
        ("nothing", |_| vec![]),
    ];
    for (what, lie) in lies {
        let (listening, actor) = after_the_answer(lie).await;
        assert!(listening.is_err(), "{what}");
        assert!(matches!(actor, Err(Error::Garbled { .. } | Error::Ended { .. })), "{what}: {actor:?}");
    }
    // And the same grammar spoken truly is taken.
    let (listening, _) =
        after_the_answer(|n| format!("{n} 1 row 0100007F:1030 1000\n{n} 1 ok\n").into()).await;
    assert_eq!(listening.unwrap().listeners.len(), 1);
    let (listening, actor) = after_the_answer(|n| format!("{n} 1 ok\n{n} 1 ok\n").into()).await;
    assert!(listening.is_ok() && matches!(actor, Err(Error::Garbled { .. })), "{actor:?}");
}

#[tokio::test(start_paused = true)]
async fn a_helper_that_hangs_costs_a_caller_less_than_a_second() {
    let (helper, _theirs, mut actor) = pretend(&Nonce::generate().unwrap()).await;
    let before = Instant::now();
    let from = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 50_000);
    assert_eq!(helper.caller(from, 4144).await, Err(Unproven::Late));
    assert!(before.elapsed() <= Duration::from_millis(801));
    let ended = actor.join_next().await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::Silent)), "{ended:?}");
    assert_eq!(helper.caller(from, 4144).await, Err(Unproven::NoHelper));
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_is_heard_every_ten_seconds() {
    let nonce = Nonce::generate().unwrap();
    let (helper, mut theirs, mut actor) = pretend(&nonce).await;
    let before = Instant::now();
    for number in 1..4 {
        assert_eq!(theirs.0.next_line().await.unwrap().unwrap(), format!("{number} beat"));
        assert_eq!(before.elapsed().as_secs(), 10 * number);
        theirs.1.write_all(format!("{} {number} ok\n", nonce.as_str()).as_bytes()).await.unwrap();
    }
    drop(helper);
    assert_eq!(theirs.0.next_line().await.unwrap().unwrap(), "4 bye");
    theirs.1.write_all(format!("{} 4 ok\n", nonce.as_str()).as_bytes()).await.unwrap();
    assert!(actor.join_next().await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn callers_who_come_together_are_asked_for_in_one_command() {
    let nonce = Nonce::generate().unwrap();
    let (helper, mut theirs, _actor) = pretend(&nonce).await;
    let calls = (0..40).map(|i| SocketAddrV4::new(Ipv4Addr::LOCALHOST, 50_000 + i));
    let mut asked = JoinSet::new();
    for call in calls {
        let helper = helper.clone();
        asked.spawn(async move { helper.caller(call, 4144).await });
    }
    let mut commands = 0;
    let serve = async {
        while let Some(line) = theirs.0.next_line().await.unwrap() {
            commands += 1;
            let number = line.split(' ').next().unwrap();
            let mut answer = String::new();
            for from in line.split(' ').skip(4) {
                answer += &format!("{} {number} row {from} 0100007F:1030 01 1000 7\n", nonce.as_str());
            }
            theirs.1.write_all(format!("{answer}{} {number} ok\n", nonce.as_str()).as_bytes()).await.unwrap();
        }
    };
    let all_answered = async {
        while let Some(uid) = asked.join_next().await {
            assert_eq!(uid.unwrap(), Ok(Uid(1000)));
        }
    };
    tokio::select! {
        () = all_answered => {}
        () = serve => unreachable!("the helper's streams stay open"),
    }
    assert!(commands <= 2, "{commands}");
}
