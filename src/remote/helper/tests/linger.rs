//! What stays when we end, for how long, and what ends it before.

use super::*;

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

/// A link whose roles stay: `a` for `most`, `b` for `b`, and nothing else.
async fn lingering(host: &Host, pace: Pace, most: Duration, b: Duration) -> (Link, Installed, PathBuf) {
    let link = host.link_at(pace).await;
    let files = ["config", "role-a.json", "role-b.json", "role-untold.json", "role-empty.json"];
    let mut files: Vec<_> =
        files.map(|name| text(name, if name == "role-empty.json" { "" } else { "{}" })).into();
    files.extend([secret("token-a", SECRET), secret("s", "")]);
    let installed = link.install("4144", files).await.unwrap();
    let long = SECONDS(3600);
    let told = [(name("role-a.json"), long), (name("role-b.json"), b), (name("role-empty.json"), long)];
    installed.linger(most, &told).await.unwrap();
    let path = PathBuf::from(installed.path());
    (link, installed, path)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What the helper of this directory still runs.
fn running(nonce: &str) -> usize {
    processes(&format!("a={}; b=", &nonce[..16])).len()
}

fn owner(directory: &Path) -> String {
    std::fs::read_to_string(directory.join(".owner")).unwrap().lines().next().unwrap().to_owned()
}

const STAYS: [&str; 5] = [".owner", ".timer", "config", "role-a.json", "role-b.json"];

#[tokio::test]
async fn killed_it_leaves_what_may_stay_until_its_time_and_then_nothing() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let (link, _installed, path) = lingering(&host, PACE, SECONDS(6), SECONDS(1)).await;
        let nonce = owner(&path);
        let since = Instant::now();
        let mut process = link.kill().await;
        until(&format!("{shell}: tokens go"), SECONDS(1), || !path.join("token-a").exists()).await;
        timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
        assert_eq!(names(&path), STAYS, "{shell}");
        let each = format!("{shell}: each at its time");
        let one = || !path.join("role-b.json").exists() && path.join("role-a.json").exists();
        until(&each, PATIENCE, one).await;
        until(&format!("{shell}: all"), PATIENCE, || host.left().is_empty()).await;
        assert!(since.elapsed() >= SECONDS(5), "{shell}: {:?}", since.elapsed());
        until(&format!("{shell}: no process"), PATIENCE, || running(&nonce) == 0).await;
    }
}

#[tokio::test]
async fn at_a_goodbye_it_says_for_how_long_and_a_new_link_takes_over() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let (old, installed, path) = lingering(&host, PACE, SECONDS(3000), SECONDS(60)).await;
        let nonce = owner(&path);
        let stays = old.helper.part().await.unwrap();
        assert!(stays.is_some_and(|stays| stays <= SECONDS(3000) && stays > SECONDS(2900)), "{stays:?}");
        assert_eq!(names(&path), STAYS, "{shell}");
        assert!(installed.write(text("role-a.json", "late")).await.is_err(), "{shell}");
        old.helper.clone().bye().await;
        assert_eq!(names(&path), STAYS, "{shell}");

        let new = host.link().await;
        let installed = new.install("4144", vec![text("config", "new")]).await.unwrap();
        assert_eq!(names(&path), [".owner", "config"], "{shell}");
        until(&format!("{shell}: no process"), PATIENCE, || running(&nonce) == 0).await;
        assert_eq!(std::fs::read_to_string(path.join("config")).unwrap(), "new\n", "{shell}");
        installed.remove().await.unwrap();
        assert_eq!(host.left(), [] as [PathBuf; 0], "{shell}");
    }
}

#[tokio::test]
async fn what_ends_before_our_end_does_not_stay_and_a_removal_leaves_nothing() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let (link, installed, path) = lingering(&host, PACE, SECONDS(600), SECONDS(600)).await;
        // Said anew, only that counts.
        installed.linger(SECONDS(600), &[(name("role-b.json"), SECONDS(0))]).await.unwrap();
        assert_eq!(link.helper.part().await.unwrap(), None, "{shell}");
        assert!(!path.exists() && host.left().is_empty(), "{shell}");

        let (link, installed, _) = lingering(&host, PACE, SECONDS(600), SECONDS(600)).await;
        installed.remove().await.unwrap();
        link.helper.bye().await;
        assert_eq!(host.left(), [] as [PathBuf; 0], "{shell}");
    }
}

#[tokio::test]
async fn it_falls_silent_and_what_may_stay_does() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let pace = Pace { beat: SECONDS(600), silence: 1 };
        let (mut link, _installed, path) = lingering(&host, pace, SECONDS(600), SECONDS(600)).await;
        let nonce = owner(&path);
        until(&format!("{shell}: tokens go"), PATIENCE, || path.join(".timer").exists()).await;
        assert_eq!(names(&path), STAYS, "{shell}");
        timeout(PATIENCE, link.process.wait()).await.unwrap().unwrap();
        // The `sleep` of ksh is a ksh as well.
        until(&format!("{shell}: one process"), PATIENCE, || (1..=2).contains(&running(&nonce))).await;
        // As at the end of the host.
        let timer = std::fs::read_to_string(path.join(".timer")).unwrap();
        let timer = timer.lines().next().unwrap();
        assert!(Command::new("kill").arg(timer).status().await.unwrap().success(), "{shell}");
        until(&format!("{shell}: all"), PATIENCE, || host.left().is_empty()).await;
        until(&format!("{shell}: no process"), PATIENCE, || running(&nonce) == 0).await;
    }
}

#[tokio::test]
async fn at_the_end_of_the_host_nothing_stays() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let (mut link, _installed, _) = lingering(&host, PACE, SECONDS(600), SECONDS(600)).await;
        let pid = link.process.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap().success());
        until(&format!("{shell}: all"), PATIENCE, || host.left().is_empty()).await;
        assert!(link.actor_ends().await.is_err());
    }
}

#[tokio::test]
async fn a_visit_sees_it_and_removes_it_with_what_waits() {
    let host = Host::new("dash");
    let (link, _installed, path) = lingering(&host, PACE, SECONDS(600), SECONDS(600)).await;
    let nonce = owner(&path);
    link.helper.bye().await;
    let visitor = host.visitor().await;
    let state = |found: &[leftovers::Leftover]| {
        found.iter().find(|found| Path::new(&found.path) == path).map(|found| found.state)
    };
    let found = sweep(&visitor.helper, Sweep::Look).await.unwrap();
    assert_eq!(state(&found), Some(State::Lingers), "{found:?}");
    assert_eq!(names(&path), STAYS);
    let found = sweep(&visitor.helper, Sweep::Dead).await.unwrap();
    assert_eq!(state(&found), Some(State::Removed), "{found:?}");
    until("no process", PATIENCE, || running(&nonce) == 0).await;
    assert_eq!(host.left(), [] as [PathBuf; 0]);

    // Another process of that number is left alone.
    let (link, _installed, path) = lingering(&host, PACE, SECONDS(600), SECONDS(600)).await;
    link.helper.bye().await;
    let timer = std::fs::read_to_string(path.join(".timer")).unwrap();
    let timer = timer.lines().next().unwrap().to_owned();
    let mut bystander = Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
    let forged = format!("{}\n9999999999\n", bystander.id().unwrap());
    #[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
    std::fs::write(path.join(".timer"), forged).unwrap();
    let found = sweep(&visitor.helper, Sweep::Look).await.unwrap();
    assert_eq!(state(&found), Some(State::Dead), "{found:?}");
    let found = sweep(&visitor.helper, Sweep::Dead).await.unwrap();
    assert_eq!(state(&found), Some(State::Removed), "{found:?}");
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().await.unwrap();
    assert!(Command::new("kill").arg(timer).status().await.unwrap().success());
    visitor.helper.bye().await;
}

#[tokio::test]
async fn it_lies_where_the_end_of_a_session_does_not_reach() {
    let host = Host::new("dash");
    let logind = "mkdir -p /run/systemd/seats";
    let lasting = "mkdir -p /var/lib/systemd/linger && touch \"/var/lib/systemd/linger/$(id -un)\"";
    for (prepare, stay, place) in [
        ("true", Stay::Outlives, Place::Runtime),
        (logind, Stay::Goes, Place::Runtime),
        (logind, Stay::Outlives, Place::Temporary),
        (&format!("{logind} && {lasting}"), Stay::Outlives, Place::Runtime),
    ] {
        let nonce = Nonce::generate().unwrap();
        let mounts = "for i in /dev/shm /run /var/lib; do mount -t tmpfs none $i; done";
        let script = format!("{mounts} && {prepare} && exec \"$@\"");
        let command = nonce.bootstrap_by(&host.sh());
        let command = host.command(&["unshare", "-m", "sh", "-ec", &script, "sh", "sh", "-c", &command]);
        let link = link(PACE, nonce, command).await.unwrap();
        let key = key(prepare, stay);
        let directory = link.helper.directory(key, stay).await.unwrap();
        assert_eq!(directory.place(), place, "{prepare}");
        link.helper.remove().await.unwrap();
        link.helper.bye().await;
    }
}

/// A name that nothing else on this machine has.
fn key(prepare: &str, stay: Stay) -> Key {
    Key::new(&format!("linger-{}-{}-{stay:?}", std::process::id(), prepare.len())).unwrap()
}
