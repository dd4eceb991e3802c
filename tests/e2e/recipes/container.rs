//! Containers on the host: without a network of the host, with our directory at its own path and nothing else of it.

use crate::support::{World, offers, sdk};

const BOTO3: &str = "import boto3, os, sys; assert not os.path.exists('/home'), 'in a container'; \
                     p = sys.argv[1] if len(sys.argv) > 1 else None; \
                     found = boto3.Session(profile_name=p).get_credentials() or sys.exit('Unable to locate credentials'); \
                     print(found.get_frozen_credentials().access_key)";

#[test]
fn a_container_that_is_given_our_directory_has_the_roles_through_the_socket() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::fresh_home();
    let python = sdk("python/bin/python");
    let run = |world: &mut World,
               bound: Option<&str>,
               environment: &[(String, String)],
               profile: Option<&str>| {
        let mut bwrap = world
            .on_host("bwrap", &["--unshare-all", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]);
        for path in ["/usr", "/mnt"] {
            bwrap.args(["--ro-bind", path, path]);
        }
        for link in ["bin", "lib", "lib64"] {
            bwrap.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        if let Some(directory) = bound {
            bwrap.args(["--ro-bind", directory, directory]);
        }
        bwrap.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/");
        bwrap.envs(environment.iter().cloned()).current_dir("/");
        bwrap.arg(&python).args(["-c", BOTO3]).args(profile);
        world.run(bwrap)
    };
    for transport in ["auto", "unix", "file"].into_iter().filter(|transport| offers(transport)) {
        let tunnel = world.tunnel(&["-p", "dev", "-p", "audit", "--transport", transport]);
        let directory = tunnel.directory().display().to_string();
        let ours: Vec<(String, String)> =
            tunnel.environment.clone().into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect();
        for profile in [None, Some("dev"), Some("audit")] {
            let output = run(&mut world, Some(&directory), &ours, profile);
            assert!(output.stdout().starts_with("ASIA"), "{transport} {profile:?}: {output}");
        }
        // One that is not given it has nothing.
        let output = run(&mut world, None, &ours, None);
        assert!(output.code != Some(0) && output.stdout.is_empty(), "{transport}: {output}");
        tunnel.stop(&mut world);
        // One whose directory went away while it ran would be the same; a new one cannot begin.
        let output = run(&mut world, Some(&directory), &ours, None);
        assert!(output.code != Some(0) && output.stderr().contains("No such file"), "{transport}: {output}");
        world.assert_clean();
    }
}
