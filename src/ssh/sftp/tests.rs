//! The client against OpenSSH's own server, and against one that lies.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use tokio::process::Child;

use super::*;

/// A client of the system's `sftp-server` that runs in `directory` under this umask.
async fn openssh(directory: &Path, umask: &str, arguments: &[&str]) -> (Client, Child) {
    let program =
        ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
    let program =
        program.into_iter().find(|path| Path::new(path).exists()).expect("sftp-server is installed");
    let script = format!("umask {umask}; exec {program} \"$@\"");
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", &script, "sh"])
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let streams = tokio::io::join(child.stdout.take().unwrap(), child.stdin.take().unwrap());
    (Client::start(streams).await.unwrap(), child)
}

#[tokio::test]
async fn a_file_is_private_before_it_is_filled_and_replaces_another() {
    let directory = tempfile::tempdir().unwrap();
    // The last makes files with other permissions than we ask for, as some servers are told to.
    for umask in ["0", "077", "0277"] {
        let (mut client, _child) = openssh(directory.path(), umask, &[]).await;
        let here = client.real_path(".").await.unwrap();
        let (new, old) = (format!("{here}/new"), format!("{here}/old"));
        for content in [&b"first"[..], &vec![b'x'; 100_000]] {
            client.create(&new, 0o600, content).await.unwrap();
            client.replace(&new, &old).await.unwrap();
            assert_eq!(std::fs::read(&old).unwrap(), content);
            assert_eq!(std::fs::metadata(&old).unwrap().permissions().mode() & 0o777, 0o600, "{umask}");
        }
        // Without the extension.
        client.replaces = false;
        client.create(&new, 0o600, b"second").await.unwrap();
        client.replace(&new, &old).await.unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"second");
        assert!(!Path::new(&new).exists());
        client.remove(&[old.clone(), new.clone()]).await.unwrap();
        assert_eq!(client.list(&here).await.unwrap(), [] as [&str; 0]);
    }
}

#[tokio::test]
async fn refusals_have_their_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, _child) = openssh(directory.path(), "022", &[]).await;
    let here = client.real_path(".").await.unwrap();
    let nowhere = format!("{here}/nowhere");
    assert_eq!(client.lstat(&nowhere).await.unwrap_err().status(), Some(&Status::NoSuchFile));
    client.make_directory(&nowhere, 0o700).await.unwrap();
    let again = client.make_directory(&nowhere, 0o700).await.unwrap_err();
    assert!(matches!(again.status(), Some(Status::Failure(_))), "{again}");
    let attributes = client.lstat(&nowhere).await.unwrap();
    assert!(attributes.is_directory() && attributes.permissions() == Some(0o700), "{attributes:?}");
    client.create(&format!("{nowhere}/x"), 0o600, b"").await.unwrap();
    assert_eq!(client.list(&nowhere).await.unwrap().len(), 1);
    client.create(&format!("{nowhere}/x"), 0o600, b"").await.unwrap_err();
    client.remove_directory(&nowhere).await.unwrap_err();

    let (mut client, _child) = openssh(directory.path(), "022", &["-R"]).await;
    let refused = client.make_directory(&format!("{here}/new"), 0o700).await.unwrap_err();
    assert_eq!(refused.status(), Some(&Status::PermissionDenied), "{refused}");
}

#[tokio::test]
async fn a_call_that_is_dropped_at_any_point_leaves_the_client_usable() {
    let directory = tempfile::tempdir().unwrap();
    let (mut client, _child) = openssh(directory.path(), "022", &[]).await;
    let here = client.real_path(".").await.unwrap();
    for polls in 1..40 {
        let path = format!("{here}/{polls}");
        {
            let mut call = std::pin::pin!(client.create(&path, 0o600, &[b'x'; 80_000]));
            let mut left = polls;
            std::future::poll_fn(|cx| {
                left -= 1;
                if left == 0 || call.as_mut().poll(cx).is_ready() {
                    return std::task::Poll::Ready(());
                }
                std::task::Poll::Pending
            })
            .await;
        }
        client.remove(&[path]).await.unwrap();
    }
    // Handles stay open on the server, but no file stays.
    assert_eq!(client.list(&here).await.unwrap(), [] as [&str; 0]);
}

/// A server that says `greeting`, and then `answer` to every request.
async fn lying(greeting: &[u8], answer: &'static [u8]) -> Result<Client, Error> {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    theirs.write_all(greeting).await.unwrap();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let mut init = [0; 9];
            theirs.read_exact(&mut init).await.unwrap();
            let mut request = [0; 4096];
            while theirs.read(&mut request).await.is_ok_and(|read| read > 0) {
                if theirs.write_all(answer).await.is_err() {
                    break;
                }
            }
        });
    });
    drop(server);
    Client::start(ours).await
}

const GREETING: &[u8] = b"\0\0\0\x05\x02\0\0\0\x03";

#[tokio::test]
async fn what_a_login_script_prints_is_told() {
    let Err(error) = lying(b"Welcome to \x1b[31mhost!\r\n", b"").await else { panic!("it is no server") };
    let said = std::error::Error::source(&error).unwrap().to_string();
    assert!(said.contains("Welcome to") && !said.contains('\x1b'), "{said}");
    assert!(error.hint().is_some());
    assert!(matches!(lying(b"\0\0\0\x05\x02\0\0\0\x06", b"").await, Err(Error::Version { version: 6 })));
}

#[tokio::test]
async fn answers_that_nobody_asked_for_end_the_session() {
    for answer in [
        &b"\0\0\0\x09\x65\0\0\x70\0\0\0\0\0"[..],
        b"\0\0\0\x09\x65\0\0\0\x01\0\0\0\0",
        b"\xff\xff\xff\xff\x65\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x09\x68\0\0\0\0\xff\xff\xff\xff",
    ] {
        let mut client = lying(GREETING, answer).await.unwrap();
        let error = client.stat("/x").await.unwrap_err();
        assert!(matches!(error, Error::Garbled { .. }), "{answer:?}: {error}");
        assert!(matches!(client.stat("/x").await, Err(Error::Ended { .. })));
    }
}

#[tokio::test]
async fn an_answer_of_another_kind_is_no_success() {
    // A status of success where attributes were asked for.
    let mut client = lying(GREETING, b"\0\0\0\x09\x65\0\0\0\0\0\0\0\0").await.unwrap();
    assert!(matches!(client.stat("/x").await, Err(Error::Garbled { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(1 << 10);
    assert!(matches!(Client::start(ours).await, Err(Error::Silent)));
}
