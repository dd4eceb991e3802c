//! Our block in the host's `~/.aws/config`, and what `clean` finds there.

use super::*;

/// One profile for the host's configuration.
fn wanted(profile: &str) -> Wanted {
    let section = format!("[profile {profile}]\ncredential_process = /bin/sh /d/x\n");
    Wanted { profile: profile.to_owned(), section }
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[expect(clippy::disallowed_methods, reason = "no secret of anybody's")]
fn write_config(path: &Path, content: &[u8], mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn our_block_comes_and_goes_and_every_other_byte_and_the_mode_stay() {
    let long = "# a comment of forty characters, or nearly\n".repeat(2000).into_bytes();
    let odd: [&[u8]; 6] = [
        b"",
        b"[default]\r\nregion = x\r\n",
        b"[default]\nregion = x",
        b"# \xe4\xff latin\r[profile \xe9]\n\n\n \t \\n %s -n `x` $(x)\n",
        "\u{feff}[default]\n".as_bytes(),
        &long,
    ];
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        let config = host.path("home/.aws/config");
        for (content, mode) in odd.into_iter().zip([0o644, 0o600, 0o640, 0o600, 0o600, 0o604]) {
            write_config(&config, content, mode);
            let outcome = managed::install(&link.helper, "h", "/d", &[wanted("dev")]).await.expect(shell);
            assert_eq!(outcome.left_out, [], "{shell}");
            let after = std::fs::read(&config).unwrap();
            assert!(after.starts_with(content) && mode_of(&config) == mode, "{shell} {content:?}");
            let block = String::from_utf8(after[content.len()..].to_vec()).unwrap();
            assert!(block.contains(&wanted("dev").section), "{shell} {block}");
            outcome.managed.unwrap().remove().await.expect(shell);
            assert_eq!(std::fs::read(&config).unwrap(), content, "{shell}");
            assert_eq!(mode_of(&config), mode, "{shell}");
        }
        assert_eq!(
            std::fs::read_dir(host.path("home/.aws")).unwrap().count(),
            1,
            "{shell}: no temporary file"
        );

        // Where there is nothing, there is nothing afterwards.
        std::fs::remove_file(&config).unwrap();
        for directory in [true, false] {
            if !directory {
                std::fs::remove_dir(host.path("home/.aws")).unwrap();
            }
            let outcome = managed::install(&link.helper, "h", "/d", &[wanted("dev")]).await.expect(shell);
            assert_eq!((mode_of(&config), host.path("home/.aws").exists()), (0o600, true), "{shell}");
            outcome.managed.unwrap().remove().await.expect(shell);
            assert!(!config.exists(), "{shell}");
            assert_eq!(host.path("home/.aws").exists(), directory, "{shell}");
        }
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn a_configuration_that_is_a_symlink_stays_one() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        let real = host.path("home/dotfiles/aws config");
        write_config(&real, b"[default]\n", 0o640);
        std::fs::create_dir(host.path("home/.aws")).unwrap();
        symlink("../dotfiles/second", host.path("home/.aws/config")).unwrap();
        symlink(&real, host.path("home/dotfiles/second")).unwrap();
        let outcome = managed::install(&link.helper, "h", "/d", &[wanted("dev")]).await.expect(shell);
        assert!(std::fs::read_to_string(&real).unwrap().contains("[profile dev]"), "{shell}");
        assert_eq!(mode_of(&real), 0o640);
        outcome.managed.unwrap().remove().await.expect(shell);
        assert_eq!(std::fs::read(&real).unwrap(), b"[default]\n", "{shell}");
        for link in ["home/.aws/config", "home/dotfiles/second"] {
            assert!(std::fs::symlink_metadata(host.path(link)).unwrap().is_symlink(), "{shell}");
        }
        // A loop is nobody's configuration.
        std::fs::remove_file(host.path("home/dotfiles/second")).unwrap();
        symlink("../.aws/config", host.path("home/dotfiles/second")).unwrap();
        let error = managed::install(&link.helper, "h", "/d", &[wanted("dev")]).await.unwrap_err();
        assert!(matches!(error, home::Error::Unreadable { .. }), "{shell}: {error:?}");
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn what_others_write_meanwhile_is_kept_and_blocks_of_dead_tunnels_are_replaced() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        let config = host.path("home/.aws/config");
        let directory = link.helper.directory(Key::port(4144), Stay::Goes).await.unwrap();
        let node = link.facts.host.clone();
        let install = |path: &str, profile: &str| {
            let (path, helper, node) = (path.to_owned(), link.helper.clone(), node.clone());
            let wanted = [wanted("default"), wanted(profile)];
            async move { managed::install(&helper, &node, &path, &wanted).await.unwrap() }
        };
        // One tunnel of ours that died, one on another host, and then the living one, twice.
        install("/dev/shm/broker-0/dead", "dev").await.managed.unwrap();
        let elsewhere = managed::install(&link.helper, "other", "/x", &[wanted("theirs")]).await.unwrap();
        let live = install(directory.path(), "dev").await;
        assert_eq!(live.left_out, [], "{shell}: the dead one is gone");
        let live = install(directory.path(), "dev").await;
        assert_eq!(live.left_out, [], "{shell}: the earlier one is gone");
        assert_eq!(std::fs::read_to_string(&config).unwrap().matches("[profile dev]").count(), 1, "{shell}");
        // A second living tunnel has what the first left over.
        let second = install("/dev/shm/broker-0/second", "audit").await;
        let left_out: Vec<_> = second.left_out.iter().map(|left_out| left_out.profile.as_str()).collect();
        assert_eq!(left_out, ["default"], "{shell}");

        let mut text = std::fs::read(&config).unwrap();
        text.extend_from_slice(b"[profile mine]\n");
        write_config(&config, &text, 0o600);
        live.managed.unwrap().remove().await.expect(shell);
        second.managed.unwrap().remove().await.expect(shell);
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.ends_with("[profile mine]\n") && text.contains("[profile theirs]"), "{shell}: {text}");
        assert!(!text.contains("[profile dev]") && !text.contains("audit"), "{shell}: {text}");
        elsewhere.managed.unwrap().remove().await.expect(shell);
        assert_eq!(std::fs::read(&config).unwrap(), b"[profile mine]\n", "{shell}");
        link.helper.bye().await;
    }
}

#[tokio::test]
async fn credentials_leave_the_host_without_their_values() {
    for shell in SHELLS {
        let host = Host::new(shell);
        let link = host.link().await;
        let text = "[default]\naws_access_key_id = CANARY\n aws_secret_access_key=CANARY=\n CANARY\n[a:b=c]\nx: CANARY\n";
        write_config(&host.path("home/.aws/credentials"), text.as_bytes(), 0o600);
        let file = HomeFile::credentials(&link.helper).await.expect(shell);
        let seen = String::from_utf8(file.content().unwrap().to_vec()).unwrap();
        assert!(!seen.contains("CANARY") && seen.contains("[a:b=c]"), "{shell}: {seen}");
        let keys = crate::remote::profiles::sections(seen.as_bytes(), &[]);
        assert_eq!(keys[0].keys, ["aws_access_key_id", "aws_secret_access_key"], "{shell}");
        link.helper.bye().await;
    }
}

proptest! {
    #[test]
    fn no_answer_panics(noise in proptest::collection::vec(any::<u8>(), 0..400), rows in "[a-z0-9 \n]{0,80}") {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let nonce = Nonce("f".repeat(32));
        runtime.block_on(async {
            let mut stream = &*noise;
            drop(answer(&mut Lines::new(&mut stream, 1 << 20), &nonce, 1).await);
            let lines: Vec<String> = rows.lines().map(str::to_owned).collect();
            drop(Facts::read(&lines));
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
        });
    }
}
