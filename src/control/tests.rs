use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::{
    client::{self, Error},
    message::{Answer, Refusal, RefusalKind, Request},
    server::{Desk, MOST_CLIENTS, Server},
};
use crate::human::BoxFuture;

/// Answers nothing but its state.
struct Canned;

impl Desk for Canned {
    fn answer(&self, _: Option<u32>, request: Request) -> BoxFuture<'_, Result<Answer, Refusal>> {
        Box::pin(async move {
            match request {
                Request::Status => {
                    let board = super::board::Board::new(
                        "bastion".into(),
                        "ada@bastion:22".into(),
                        crate::clock::Clock::system(),
                    );
                    let grants = crate::creds::grant::Grants::new(crate::audit::Log::to_memory().0);
                    Ok(Answer::Status { tunnels: vec![board.report(1, &grants)] })
                }
                _ => Err(Refusal::new(RefusalKind::Usage, "canned")),
            }
        })
    }
}

struct Running {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    #[allow(clippy::disallowed_methods, reason = "a test joins it")]
    fn start(directory: &Path) -> Self {
        let server = Server::open(&[directory.to_owned()]).unwrap();
        let mut entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let path = entries.find(|path| path.extension().is_some_and(|e| e == "sock")).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(Arc::new(Canned), async { drop(stopped.await) }));
        Self { path, stop: Some(stop), task }
    }

    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        // A server that has heard enough may close before we are done.
        drop(stream.write_all(bytes).await);
        drop(stream.shutdown().await);
        let mut said = Vec::new();
        drop(tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await.unwrap());
        String::from_utf8(said).unwrap()
    }

    async fn end(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
        assert!(!self.path.exists(), "the socket goes with its process");
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("run");
    (home, directory)
}

#[tokio::test]
async fn a_tunnel_is_found_and_answers() {
    let (_home, directory) = place();
    let running = Running::start(&directory);
    let found = client::find(&[directory]).await;
    let [(peer, report)] = found.tunnels.as_slice() else { panic!("{found:?}") };
    assert_eq!((report.host.as_str(), report.pid), ("bastion", std::process::id()));
    let refused = peer.ask(1, Request::Refresh).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(refusal) if refusal.message == "canned"), "{refused:?}");
    running.end().await;
}

#[tokio::test]
async fn a_dead_socket_is_removed_and_a_live_one_never() {
    let (_home, directory) = place();
    let running = Running::start(&directory);
    let dead = directory.join("4000000-0000abcd.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    // One whose process is stopped: it takes connections and says nothing.
    let silent = directory.join("4000001-0000abcd.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let found = client::find(&[directory]).await;
    assert_eq!(found.tunnels.len(), 1);
    assert!(!dead.exists() && silent.exists() && running.path.exists());
    let [(4_000_001, Error::Silent { .. })] = found.silent.as_slice() else { panic!("{found:?}") };
    running.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_request_get_a_sentence_and_do_no_harm() {
    let (_home, directory) = place();
    let running = Running::start(&directory);
    let deep = "[".repeat(4000);
    let long = "x".repeat(1 << 20);
    for garbage in [
        "\n",
        "{}\n",
        "null\n",
        "{\"v\":1}\n",
        "{\"v\":2,\"request\":\"status\"}\n",
        "{\"v\":1,\"request\":\"format\"}\n",
        "{\"v\":1,\"request\":\"grant\"}\n",
        "{\"v\":1,\"id\":-1,\"request\":\"status\"}\n",
        "\u{0}\u{1b}[2J\n",
        "{\"v\":1,\"request\":\"status\"}",
        "",
        &deep,
        &long,
    ] {
        let said = running.say(garbage.as_bytes()).await;
        // Who sends more than is read may lose the answer with it.
        assert!(
            said.contains("\"error\"") || (garbage.len() > 4096 && said.is_empty()),
            "{garbage:.40?}: {said:?}"
        );
    }
    assert!(running.say(b"{\"v\":1,\"request\":\"status\"}\nmore").await.contains("\"bastion\""));
    running.end().await;
}

#[tokio::test]
async fn who_holds_connections_holds_up_nobody_for_long() {
    let (_home, directory) = place();
    let running = Running::start(&directory);
    let mut idle = Vec::new();
    for _ in 0..MOST_CLIENTS {
        idle.push(UnixStream::connect(&running.path).await.unwrap());
    }
    // They lose their places when they have said nothing for a while.
    for mut stream in idle {
        let mut said = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await.unwrap().unwrap();
    }
    assert_eq!(client::find(&[directory]).await.tunnels.len(), 1);
    running.end().await;
}

#[tokio::test]
async fn where_nothing_can_be_made_there_is_a_reason_and_elsewhere_is_tried() {
    let (_home, directory) = place();
    let nowhere = PathBuf::from("/proc/nobody/run");
    let error = Server::open(std::slice::from_ref(&nowhere)).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("/proc/nobody/run"));
    drop(Server::open(&[nowhere, directory.clone()]).unwrap());
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0, "removed when dropped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let (_home, directory) = place();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let running = Running::start(&directory);
            let path = running.path.clone();
            tokio::task::spawn_blocking(move || {
                let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
                drop(stream.write_all(&bytes));
                drop(stream.shutdown(std::net::Shutdown::Write));
                drop(stream.read_to_end(&mut Vec::new()));
            })
            .await
            .unwrap();
            // A panic of the server comes up here.
            running.end().await;
        });
    }
}
