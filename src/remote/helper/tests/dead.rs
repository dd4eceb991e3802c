//! What dead helpers left on the host.

use super::*;

#[tokio::test]
async fn what_dead_helpers_left_goes_and_what_live_ones_use_stays() {
    use State::{Dead, Elsewhere, Live, Removed};
    for shell in SHELLS {
        let host = Host::new(shell);
        let uid = rustix::process::getuid().as_raw();
        let live = host.link().await;
        live.install("live", vec![secret("token", SECRET)]).await.unwrap();
        let mut killed = host.link_at(Pace { beat: Duration::from_secs(3600), silence: 120 }).await;
        killed.install("dead", vec![secret("token", SECRET)]).await.unwrap();
        killed.process.kill().await.unwrap();
        let node = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        for path in [
            format!("run/broker-{uid}.AbCdEf/4144"),
            format!("run/broker-{uid}/4144.gone.77"),
            format!("home/.cache/broker-{uid}-{node}-0badf00d/1"),
            format!("home/.cache/broker-{uid}-other-0badf00d/1"),
            "home/.cache/broker-theirs".to_owned(),
        ] {
            std::fs::create_dir_all(host.path(&path)).unwrap();
        }
        std::fs::create_dir(host.path("keep")).unwrap();
        std::fs::create_dir(host.path("keep/inside")).unwrap();
        symlink("live", host.path(&format!("run/broker-{uid}/link"))).unwrap();
        symlink(host.path("keep"), host.path(&format!("run/broker-{uid}.SymLnk"))).unwrap();

        let at = |state| {
            let mut at = vec![
                (state, format!("/home/.cache/broker-{uid}-{node}-0badf00d/1")),
                (Elsewhere, format!("/home/.cache/broker-{uid}-other-0badf00d")),
                (state, format!("/run/broker-{uid}.AbCdEf/4144")),
                (state, format!("/run/broker-{uid}/4144.gone.77")),
                (state, format!("/run/broker-{uid}/dead")),
                (state, format!("/run/broker-{uid}/link")),
                (Live, format!("/run/broker-{uid}/live")),
            ];
            at.sort_by(|a: &(_, String), b| a.1.cmp(&b.1));
            at
        };
        let visitor = host.visitor().await;
        let before = host.left();
        assert_eq!(swept(&host, &visitor, Sweep::Look).await, at(Dead), "{shell}");
        assert_eq!(host.left(), before, "{shell}: a look removes nothing");
        assert_eq!(swept(&host, &visitor, Sweep::Dead).await, at(Removed), "{shell}");
        let token = host.path(&format!("run/broker-{uid}/live/token"));
        assert!(token.exists() && !host.path(&format!("run/broker-{uid}.AbCdEf")).exists(), "{shell}");
        assert!(host.path("keep/inside").exists(), "{shell}: no symlink was followed");
        let rest = [
            (Removed, format!("/home/.cache/broker-{uid}-other-0badf00d/1")),
            (Removed, format!("/run/broker-{uid}/live")),
        ];
        assert_eq!(swept(&host, &visitor, Sweep::Force).await, rest, "{shell}");
        assert!(!token.exists() && host.path("home/.cache/broker-theirs").exists(), "{shell}");
        assert_eq!(swept(&host, &visitor, Sweep::Dead).await, [], "{shell}: safe to run again");
        visitor.helper.bye().await;
        live.helper.bye().await;
    }
}
