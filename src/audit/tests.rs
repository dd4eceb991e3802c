use std::{os::unix::fs::PermissionsExt as _, time::UNIX_EPOCH};

use tokio::sync::oneshot;

use super::*;

fn clock() -> Clock {
    Clock::from_fn(|| UNIX_EPOCH + Duration::from_millis(1_767_225_599_007))
}

fn refused(port: u16) -> Entry {
    Entry {
        decision: Some(Decision::Refused),
        reason: Some("wrong_token"),
        originator_port: Some(port),
        ..Entry::default()
    }
}

/// Writes `ports` in one run of a process, through the task.
async fn one_process(path: &Path, ports: &[u16]) -> Option<String> {
    let (log, audit) = open(path, clock()).unwrap();
    let log = log.for_host("bastion-1");
    for &port in ports {
        log.record(refused(port));
    }
    audit.run(async {}, |error| panic!("{error}")).await
}

#[tokio::test]
async fn a_line_says_who_asked_for_what_and_got_it() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let (log, audit) = open(&path, clock()).unwrap();
    let log = log.for_host("bastion\u{1b}[2J");
    log.note_host_key("SHA256:abc");
    log.record(Entry {
        decision: Some(Decision::Allowed),
        reason: Some("credentials"),
        originator_port: Some(40000),
        uid: Some(1000),
        access_key_id: AccessKeyId::parse("ASIAIOSFODNN7EXAMPLE"),
        expires_at: Some(UNIX_EPOCH),
        user_agent: Some(Text::of_user_agent(b"Boto3\n\x1b[31m\xff")),
        ..Entry::default()
    });
    assert!(audit.run(async {}, |error| panic!("{error}")).await.is_some());
    let text = std::fs::read_to_string(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    for (field, value) in [
        ("event", "request"),
        ("time", "2025-12-31T23:59:59.007Z"),
        ("host", "bastion\u{fffd}[2J"),
        ("host_key", "SHA256:abc"),
        ("decision", "allowed"),
        ("reason", "credentials"),
        ("access_key_id", "ASIAIOSFODNN7EXAMPLE"),
        ("expires_at", "1970-01-01T00:00:00Z"),
        ("user_agent", "Boto3 \u{fffd}[31m\u{fffd}"),
        ("prev", NO_LINE),
    ] {
        assert_eq!(line[field], value, "{field}");
    }
    assert_eq!(line["uid"], 1000);
    assert_eq!(line["session"].as_str().unwrap().len(), 16);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn the_chain_goes_on_across_processes_and_shows_every_change() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    one_process(&path, &[1, 2]).await;
    let head = one_process(&path, &[3, 4]).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let good = verify(text.as_bytes()).unwrap();
    assert_eq!((good.lines, good.torn), (4, 0));
    assert_eq!(Some(good.head), head);

    let lines: Vec<&str> = text.lines().collect();
    let without = |gone: usize| {
        let kept: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, l)| *l).collect();
        kept.join("\n")
    };
    assert_eq!(verify(without(0).as_bytes()), Err(Broken { line: 1 }));
    assert_eq!(verify(without(2).as_bytes()), Err(Broken { line: 3 }));
    let forged = text.replacen("wrong_token", "credentials", 1);
    assert_eq!(verify(forged.as_bytes()), Err(Broken { line: 2 }));
    assert_eq!(verify(b"").unwrap().lines, 0);
}

#[tokio::test]
async fn two_processes_that_write_at_once_make_one_chain() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let mut writers = Vec::new();
    for _ in 0..4 {
        let path = path.clone();
        writers.push(std::thread::spawn(move || {
            let (_log, audit) = open(&path, clock()).unwrap();
            let mut writer = audit.writer;
            for port in 0..50 {
                let line = Queued {
                    time: UNIX_EPOCH,
                    uptime: Duration::ZERO,
                    host: None,
                    host_key: None,
                    entry: refused(port),
                };
                writer.write(&[line]).unwrap();
            }
        }));
    }
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(verify(&std::fs::read(&path).unwrap()).unwrap().lines, 200);
}

#[tokio::test]
async fn a_line_that_was_torn_is_ended_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    one_process(&path, &[1, 2]).await;
    let length = std::fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 30).unwrap();
    one_process(&path, &[3]).await;
    let verified = verify(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((verified.lines, verified.torn), (3, 1));
}

#[tokio::test]
async fn what_could_not_be_written_is_warned_about_once_and_counted() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let (log, audit) = open(&path, clock()).unwrap();
    let exposed = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    exposed(0o644);
    for port in 0..(BATCH as u16 * 2) {
        log.record(refused(port));
    }
    let (warned, mut warnings) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let (head, ()) = tokio::join!(
        audit.run(async { drop(stopped.await) }, |error| warned.send(error.hint()).unwrap()),
        async {
            assert!(warnings.recv().await.unwrap().unwrap().contains("chmod"));
            while log.lost.load(Ordering::Relaxed) < BATCH as u64 * 2 {
                tokio::task::yield_now().await;
            }
            assert!(warnings.try_recv().is_err(), "one warning for a row of failures");
            exposed(0o600);
            log.record(refused(9));
            stop.send(()).unwrap();
        }
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert!(text.lines().next().unwrap().contains(r#""event":"gap","count":512"#), "{text}");
    assert_eq!(Some(verify(text.as_bytes()).unwrap().head), head);
}

#[test]
fn a_full_queue_never_makes_a_request_wait() {
    let (log, mut memory) = Log::to_memory();
    for port in 0..QUEUE as u16 + 5 {
        log.record(refused(port));
    }
    assert_eq!(log.lost.load(Ordering::Relaxed), 5);
    assert_eq!(memory.entries().len(), QUEUE);
}

#[test]
fn a_secret_key_is_no_access_key_id() {
    assert!(AccessKeyId::parse("ASIAIOSFODNN7EXAMPLE").is_some());
    assert!(AccessKeyId::parse("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").is_none());
    assert!(AccessKeyId::parse("ASIA").is_none());
}

#[test]
fn a_log_that_others_could_have_written_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(open(&path, clock()).is_err());
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    assert!(open(&path, clock()).is_err());
}
