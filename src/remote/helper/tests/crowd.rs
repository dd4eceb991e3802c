//! Far more than one answer of the helper can tell of.

use super::*;

#[tokio::test]
async fn hundreds_of_directories_are_told_of_and_go() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let uid = rustix::process::getuid().as_raw();
        let live = host.link().await;
        live.install("m-live", vec![secret("token", SECRET)]).await.unwrap();
        let long = "0123456789".repeat(7);
        for number in 0..400 {
            // On both sides of the one that is in use.
            let side = if number % 3 == 0 { "a" } else { "z" };
            let path = format!("run/broker-{uid}/{side}-{number}-{long}");
            std::fs::create_dir_all(host.path(&path)).unwrap();
        }
        for number in 100_000..100_030 {
            std::fs::create_dir(host.path(&format!("run/broker-{uid}.{number}"))).unwrap();
            std::fs::create_dir(host.path(&format!("run/broker-{uid}.{number}/1"))).unwrap();
        }
        let visitor = host.visitor().await;
        let count = |found: &[(State, String)], state| found.iter().filter(|(is, _)| *is == state).count();
        let found = swept(&host, &visitor, Sweep::Look).await;
        assert_eq!((count(&found, State::Dead), count(&found, State::Live)), (430, 1), "{shell}");
        let found = swept(&host, &visitor, Sweep::Dead).await;
        assert_eq!((count(&found, State::Removed), count(&found, State::Live)), (430, 1), "{shell}");
        assert_eq!(host.left().len(), 4, "{shell}: {:?}", host.left());
        visitor.helper.bye().await;
        live.helper.bye().await;
    }
}
