use std::{path::Path, sync::Arc, time::Duration};

use rustix::process::{Pid, test_kill_process_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;
use crate::ssh::{
    peer::{PATIENCE, Person, Trusting, target},
    session::Unauthenticated,
    target::ProxyCommand,
};

fn through(line: &str) -> Target {
    let proxy = ProxyCommand { shell: "/bin/sh".into(), line: line.into() };
    Target { way: Way::Command(proxy), connect_timeout: Duration::from_secs(2), ..target() }
}

async fn start(line: &str, person: &Arc<Person>) -> Dialled {
    let keys = Arc::new(Trusting::default()) as Arc<dyn HostKeys>;
    let human = Arc::clone(person) as Arc<dyn Human>;
    dial(&through(line), None, &keys, &human).await.unwrap()
}

async fn read_all(dialled: &mut Dialled) -> (String, io::Result<usize>) {
    let mut text = Vec::new();
    let end = timeout(PATIENCE, dialled.read_to_end(&mut text)).await.expect("an end in time");
    (String::from_utf8(text).unwrap(), end)
}

#[tokio::test]
async fn a_command_is_a_stream_in_both_directions() {
    let mut dialled = start("cat", &Person::who_says(&[])).await;
    assert_eq!(dialled.peer(), None);
    dialled.write_all(b"there and back").await.unwrap();
    dialled.shutdown().await.unwrap();
    let (text, end) = read_all(&mut dialled).await;
    assert_eq!(text, "there and back");
    assert_eq!(end.unwrap_err().to_string(), "the ProxyCommand (`cat`) ended with exit status 0");
}

#[tokio::test]
async fn the_end_of_a_command_is_told_with_its_last_words_made_safe() {
    for (line, how) in [
        ("sh -c 'printf \"no \\033[31mroute\\007\\n\" >&2; exit 3'", "(`sh`) ended with exit status 3"),
        ("sh -c 'kill -9 $$'", "(`sh`) was ended by signal 9"),
        ("not-there-at-all", "(`not-there-at-all`) was not found (exit status 127)"),
        ("sh -c 'exec >&-; sleep 1000'", "(`sh`) closed its output"),
    ] {
        let person = Person::who_says(&[]);
        let mut dialled = start(line, &person).await;
        let (_, end) = read_all(&mut dialled).await;
        assert!(end.unwrap_err().to_string().contains(how), "{line}");
        let heard = person.heard();
        assert!(!heard.chars().any(|c| c.is_control() && c != '\n'), "{heard:?}");
        if line.contains("route") {
            assert!(heard.contains("no \u{fffd}[31mroute"), "{heard:?}");
        }
    }
}

#[tokio::test]
async fn a_command_that_babbles_is_cut_short_and_does_not_stop() {
    let person = Person::who_says(&[]);
    let mut dialled = start("sh -c 'yes 0123456789 | head -c 4000000 >&2; echo done'", &person).await;
    let (text, _) = read_all(&mut dialled).await;
    assert_eq!(text, "done\n", "its standard error is emptied whatever is shown of it");
    let heard = person.heard();
    assert!(heard.len() < 128 * 1024, "{}", heard.len());
    assert!(heard.contains("more than is shown"));
}

/// The process groups of what `line` started, as it wrote them to `pids`.
async fn pids(file: &Path, count: usize) -> Vec<i32> {
    timeout(PATIENCE, async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() == count {
                return text.lines().map(|line| line.trim().parse().unwrap()).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("they run")
}

#[tokio::test]
async fn everything_that_a_command_started_ends_with_the_stream_also_what_does_not_want_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let stubborn = "trap \"\" TERM HUP INT; echo $$ >>F; while :; do sleep 1; done";
    let line = format!("sh -c '({stubborn}) & {stubborn}'").replace('F', file.to_str().unwrap());
    let dialled = start(&line, &Person::who_says(&[])).await;
    let running = pids(&file, 2).await;
    let group = rustix::process::getpgid(Pid::from_raw(running[0])).unwrap();
    assert_ne!(group, rustix::process::getpgid(None).unwrap(), "Ctrl-C at the terminal is not for it");
    drop(dialled);
    timeout(PATIENCE, async {
        while test_kill_process_group(group).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the group is gone");
}

#[tokio::test]
async fn a_login_through_a_command_that_fails_or_hangs_says_so() {
    for (line, told, cause) in [
        ("false", "could not reach `bastion`", Some("the ProxyCommand (`false`) ended with exit status 1")),
        ("sleep 1000", "`bastion` did not answer within 2 s (key exchange, through its ProxyCommand)", None),
    ] {
        let target = through(line);
        let dialled = start(line, &Person::who_says(&[])).await;
        let opening = Unauthenticated::open(
            dialled,
            None,
            &target,
            Arc::new(Trusting::default()),
            Person::who_says(&[]),
        );
        let error = timeout(PATIENCE, opening).await.unwrap().err().unwrap();
        assert_eq!(error.to_string(), told);
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(source.as_deref(), cause);
        assert!(
            error.hint().unwrap().contains("ProxyCommand") || error.hint().unwrap().contains("by itself")
        );
    }
}
