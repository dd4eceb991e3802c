use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::ssh::{
    algorithms::Algorithms,
    target::{Authentication, Bind, KnownHostsFiles, Method, StrictHostKeyChecking, Way, Wishes},
};

/// A temporary HOME with a configuration in it.
pub(super) struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    pub(super) fn new(config: &str) -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap() };
        home.file(".ssh/config", config);
        home
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        io::Write::write_all(&mut fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            home: self.path().to_owned(),
            local_user: "me".to_owned(),
            local_hostname: "laptop.corp".to_owned(),
            ssh_auth_sock: Some("/run/agent".into()),
            user_config: ConfigFile::Default,
            system_config: self.path().join("etc/ssh_config"),
            files: None,
            env: BTreeMap::from([("KEYS".to_owned(), "/keys".to_owned())]),
            find_host: |name| name == "web.corp.example." || name == "rooted.example.",
        }
    }

    pub(super) fn resolve(&self, host: &str) -> Result<(Target, Vec<Warning>), Error> {
        resolve(&request(host), &self.surroundings())
    }

    pub(super) fn target(&self, host: &str) -> Target {
        let (target, warnings) = self.resolve(host).unwrap();
        assert_eq!(warnings, [], "nobody should be warned");
        target
    }

    pub(super) fn warnings(&self, host: &str) -> Vec<String> {
        let strip = |warning: &Warning| warning.to_string().replace(self.path().to_str().unwrap(), "");
        self.resolve(host).unwrap().1.iter().map(strip).collect()
    }

    pub(super) fn error(&self, host: &str) -> String {
        self.resolve(host).unwrap_err().to_string().replace(self.path().to_str().unwrap(), "")
    }
}

pub(super) fn request(host: &str) -> Request {
    Request { host: host.to_owned(), ..Request::default() }
}

#[test]
fn without_a_configuration_the_defaults_are_ours() {
    let home = Home { directory: tempfile::tempdir().unwrap() };
    let ssh = |name: &str| home.path().join(".ssh").join(name);
    let etc = |name: &str| home.path().join("etc").join(name);
    let expected = Target {
        original: "Bastion".into(),
        hostname: "bastion".into(),
        port: 22,
        user: "me".into(),
        host_key_alias: None,
        way: Way::Direct,
        bind: Bind::default(),
        connection_attempts: 1,
        tcp_keep_alive: true,
        session: Wishes::default(),
        address_family: AddressFamily::Any,
        connect_timeout: Duration::from_secs(10),
        identities: Identities {
            files: ["id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"].map(ssh).to_vec(),
            explicit: false,
            only: false,
            agent: Some("/run/agent".into()),
            ..Identities::default()
        },
        authentication: Authentication::default(),
        algorithms: Arc::default(),
        known_hosts: KnownHostsFiles {
            user: vec![ssh("known_hosts"), ssh("known_hosts2")],
            global: vec![etc("ssh_known_hosts"), etc("ssh_known_hosts2")],
            hash: false,
            command: None,
        },
        revoked_host_keys: Vec::new(),
        required_rsa_size: 1024,
        strict_host_key_checking: StrictHostKeyChecking::Ask,
        pinned_host_key: None,
        server_alive_interval: Duration::from_secs(15),
        server_alive_count_max: 3,
        rekey: Rekey::default(),
        quiet: false,
        batch: false,
    };
    assert_eq!(home.target("Bastion"), expected);
}

#[test]
fn everything_honoured_reaches_the_target() {
    let home = Home::new(
        "Host bastion\n HostName %h.example.COM\n User you\n Port 2222\n HostKeyAlias Alias\n IdentitiesOnly yes\n \
         IdentityFile ~/.ssh/%r@%h\n IdentityFile ${KEYS}/%n\n IdentityAgent ~/agent\n UserKnownHostsFile ~/kh_%k /b\n \
         GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n HashKnownHosts yes\n ConnectTimeout 1m\n \
         AddressFamily inet6\n ServerAliveInterval 5\n ServerAliveCountMax 2\n BatchMode yes\n \
         RekeyLimit 512M 10m\n LogLevel ERROR\n",
    );
    let target = home.target("bastion");
    let at = |name: &str| home.path().join(name);
    assert_eq!(target.hostname, "bastion.example.com");
    assert_eq!((target.original.as_str(), target.user.as_str(), target.port), ("bastion", "you", 2222));
    assert_eq!(target.host_key_alias.as_deref(), Some("alias"));
    assert_eq!(
        target.identities,
        Identities {
            files: vec![at(".ssh/you@bastion.example.com"), "/keys/bastion".into()],
            explicit: true,
            only: true,
            agent: Some(at("agent")),
            ..Identities::default()
        }
    );
    assert_eq!(
        target.known_hosts,
        KnownHostsFiles {
            user: vec![at("kh_alias"), "/b".into()],
            global: vec![],
            hash: true,
            command: None
        }
    );
    assert_eq!(target.strict_host_key_checking, StrictHostKeyChecking::Yes);
    assert_eq!(target.connect_timeout, Duration::from_secs(60));
    assert_eq!(target.address_family, AddressFamily::Inet6);
    assert_eq!((target.server_alive_interval, target.server_alive_count_max), (Duration::from_secs(5), 2));
    assert!(target.batch);
    assert_eq!(target.rekey, Rekey { bytes: Some(512 << 20), after: Some(Duration::from_secs(600)) });
    assert!(target.quiet);
}

#[test]
fn the_command_line_wins_and_identity_files_add_up() {
    let home = Home::new("IdentityFile /c\nUser them\nPort 1\nHost *\nIdentityFile /d\n");
    let request = Request {
        user: Some("u%h".into()),
        port: Some(2),
        identity_files: vec!["~/a".into()],
        options: [("IdentityFile", "/b"), ("port", "3"), ("Batchmode", "yes"), ("HostName", "\"%h.x\" # so")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .to_vec(),
        address_family: Some(AddressFamily::Inet),
        pinned_host_key: Some("SHA256:x".into()),
        ..request("h")
    };
    let (target, warnings) = resolve(&request, &home.surroundings()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!((target.user.as_str(), target.port, target.hostname.as_str()), ("u%h", 2, "h.x"));
    let files = [home.path().join("a"), "/b".into(), "/c".into(), "/d".into()];
    assert_eq!(target.identities.files, files);
    assert!(target.batch);
    assert_eq!(target.address_family, AddressFamily::Inet);
    assert_eq!(target.pinned_host_key.as_deref(), Some("SHA256:x"));

    for (keyword, value) in [("Host", "x"), ("Include", "x"), ("Prot", "22"), ("Port", "x"), ("Port", "")] {
        let request = Request { options: vec![(keyword.to_owned(), value.to_owned())], ..self::request("h") };
        let error = resolve(&request, &home.surroundings()).unwrap_err().to_string();
        assert!(error.starts_with("command line: "), "{error}");
    }
}

#[test]
fn the_first_value_wins_over_files_and_blocks() {
    let home = Home::new("Host web !web2\n Port 1\nHost *\n Port 2\n User u\n");
    home.file("etc/ssh_config", "Port 3\nUser s\nHostKeyAlias system\n");
    assert_eq!(home.target("web").port, 1);
    assert_eq!(home.target("web2").port, 2);
    assert_eq!(home.target("db").user, "u");
    assert_eq!(home.target("db").host_key_alias.as_deref(), Some("system"));
}

#[test]
fn a_file_named_on_the_command_line_stands_alone() {
    let home = Home::new("Port 1\n");
    home.file("etc/ssh_config", "Port 2\nUser s\n");
    let other = home.file("other", "Port 3\n");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o666)).unwrap();
    let with = |user_config| {
        let surroundings = Surroundings { user_config, ..home.surroundings() };
        resolve(&request("h"), &surroundings).map(|(target, _)| (target.port, target.user))
    };
    assert_eq!(with(ConfigFile::Path(other)).unwrap(), (3, "me".into()));
    assert_eq!(with(ConfigFile::None).unwrap(), (22, "me".into()));
    assert!(matches!(with(ConfigFile::Path(home.path().join("none"))), Err(Error::Read { .. })));
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    let home = Home::new("Include more\n");
    let config = home.path().join(".ssh/config");
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
        let error = home.resolve("h").unwrap_err();
        assert!(error.to_string().starts_with("bad owner or permissions on"), "{error}");
        assert!(error.hint().unwrap().contains("chmod go-w"));
    }
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    home.target("h");
    let included = home.file(".ssh/more", "Port 1\n");
    fs::set_permissions(&included, fs::Permissions::from_mode(0o660)).unwrap();
    assert!(matches!(home.resolve("h"), Err(Error::Permissions { .. })));
    // Only root can give a file away, so this half runs where root runs the tests.
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(&included, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&included, Some(12345), None).unwrap();
        assert!(matches!(home.resolve("h"), Err(Error::Permissions { .. })));
    }
}

#[test]
fn match_knows_hosts_users_and_the_final_pass() {
    let home = Home::new(
        "Match originalhost alias\n HostName web.example.com\nMatch host *.example.com user you localuser m?\n Port 1\n\
         Match host alias\n Port 2\nMatch !host *.example.com\n Port 3\nMatch all\n HostKeyAlias k\n",
    );
    assert_eq!(home.target("alias").port, 22);
    let as_you = Request { user: Some("you".into()), ..request("alias") };
    assert_eq!(resolve(&as_you, &home.surroundings()).unwrap().0.port, 1);
    assert_eq!(home.target("other").port, 3);
    assert_eq!(home.target("other").host_key_alias.as_deref(), Some("k"));

    let home = Home::new(
        "Match final host *.example.com\n User final\nHost web.example.com\n Port 5\nHost alias\n HostName Web.example.com\n \
         IdentityFile /a\n",
    );
    let target = home.target("alias");
    assert_eq!(
        (target.user.as_str(), target.port),
        ("final", 5),
        "blocks for the final name apply in the second pass"
    );
    assert_eq!(target.identities.files, [PathBuf::from("/a")], "and nothing is there twice");

    for bad in
        ["Match", "Match host", "Match all host x", "Match host x user y all", "Match host \"\"", "Match # x"]
    {
        assert!(Home::new(&format!("{bad}\n")).error("h").starts_with("/.ssh/config:1: "), "{bad}");
    }
}

#[test]
fn files_are_included_where_they_stand_and_under_their_condition() {
    let home = Home::new(
        "Host a\n Include conf.d/*.conf\n Port 9\nInclude ~/else other\nInclude none/*\nHost *\n User end\n",
    );
    home.file(".ssh/conf.d/1.conf", "User one\nHost a b\n Port 1\n");
    home.file(".ssh/conf.d/2.conf", "User two\nHostKeyAlias two\n");
    home.file(".ssh/conf.d/.3.conf", "Port bad\n");
    home.file("else", "Match originalhost b\n IdentityFile /else\n");
    home.file(".ssh/other", "IdentityFile /other\n");
    let a = home.target("a");
    assert_eq!((a.port, a.user.as_str(), a.host_key_alias.as_deref()), (1, "one", Some("two")));
    let b = home.target("b");
    assert_eq!((b.port, b.user.as_str(), b.host_key_alias), (22, "end", None), "not included for b");
    assert_eq!(b.identities.files.len(), 5, "`Include` stands in the block of `a`");

    let home = Home::new("Include else other\n");
    home.file(".ssh/else", "Match originalhost b\n IdentityFile /else\n");
    home.file(".ssh/other", "IdentityFile /other\n");
    assert_eq!(home.target("a").identities.files, [PathBuf::from("/other")]);
    assert_eq!(home.target("b").identities.files, ["/else", "/other"].map(PathBuf::from));
}

#[test]
fn the_system_file_includes_from_its_own_directory() {
    let home = Home::new("");
    home.file("etc/ssh_config", "Include ssh_config.d/*.conf\n");
    home.file("etc/ssh_config.d/10.conf", "IdentityFile /etc/key\nPort 7\n");
    let target = home.target("h");
    assert_eq!(target.port, 7);
    assert!(!target.identities.explicit, "the user did not name it");
    home.file("etc/ssh_config", "Include ~/x\n");
    assert!(home.error("h").starts_with("/etc/ssh_config:1: "));
}

#[test]
fn files_that_include_themselves_are_an_error() {
    let home = Home::new("Include config\n");
    assert_eq!(home.error("h"), "/.ssh/config:1: files include each other more than 16 times");
    let home = Home::new("Include 1\n");
    for n in 1..=16 {
        home.file(&format!(".ssh/{n}"), &format!("Include {}\nHost *\n", n + 1));
    }
    home.target("h");
    home.file(".ssh/17", "Port 1\n");
    assert!(home.error("h").starts_with("/.ssh/16:1: "));
}

#[test]
fn a_connection_that_is_refused_is_an_error_that_names_its_line() {
    // Whichever of the two comes first prevents the other.
    Home::new("ProxyJump none\nProxyCommand nc %h %p\n").target("h");
    Home::new("ProxyCommand none\nProxyJump x\n").target("h");
    let home = Home::new("Host h\nRefuseConnection \"gone since May\"\n");
    assert!(
        home.error("h")
            .ends_with("/.ssh/config:2: the configuration refuses this connection: gone since May")
    );
    home.target("other");
}

#[test]
fn what_will_be_missed_is_said_once_and_the_rest_is_silent() {
    let home = Home::new(
        "LocalForward 1 h:1\nRemoteForward 2 h:2\nLocalForward 3 h:3\nForwardAgent yes\nForwardX11 no\n\
         ForwardX11 yes\nRemoteCommand none\nSendEnv LANG LC_*\nSendEnv FOO\nSetEnv A=b\nStdinNull yes\nControlMaster auto\n\
         ControlPath ~/.ssh/%C\nUseKeychain no\nAddKeysToAgent yes\nCompression yes\nLogLevel ERROR\nMatch final\n",
    );
    let mut warnings = home.warnings("h");
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "/.ssh/config:11: `StdinNull` is ignored for now",
            "/.ssh/config:15: without effect in broker: `AddKeysToAgent`, `Compression`, `ControlPath`",
            "/.ssh/config:1: `LocalForward` is ignored for now",
            "/.ssh/config:2: `RemoteForward` is ignored for now",
            "/.ssh/config:4: `ForwardAgent` is ignored for now",
        ]
    );
    let home = Home::new("");
    home.file(
        "etc/ssh_config",
        "SendEnv LANG LC_* MINE\nGSSAPIAuthentication yes\nCiphers aes256-ctr\nHashKnownHosts yes\n",
    );
    let target = home.target("h");
    assert!(target.known_hosts.hash);
    assert!(!target.authentication.tickets.by_user);
}

#[test]
fn methods_are_those_that_are_preferred_and_not_forbidden() {
    use Method::{Gssapi, KeyboardInteractive, Password, PublicKey};
    for (config, methods, prompts) in [
        ("", &[PublicKey, KeyboardInteractive, Password][..], 3),
        ("NumberOfPasswordPrompts 1\nPasswordAuthentication no\n", &[PublicKey, KeyboardInteractive], 1),
        ("PubkeyAuthentication no\nChallengeResponseAuthentication no\n", &[Password], 3),
        ("PubkeyAuthentication host-bound\n", &[PublicKey, KeyboardInteractive, Password], 3),
        ("PreferredAuthentications password,gssapi-with-mic,publickey,password\n", &[Password, PublicKey], 3),
        ("PreferredAuthentications password,publickey\nPasswordAuthentication no\n", &[PublicKey], 3),
        (
            "PreferredAuthentications password,gssapi-with-mic\nIgnoreUnknown GSSAPIAuth*\nGSSAPIAuthentication YES\n",
            &[Password, Gssapi],
            3,
        ),
        (
            "GSSAPIAuthentication no\nGSSAPIAuthentication yes\nKbdInteractiveAuthentication no\n",
            &[PublicKey, Password],
            3,
        ),
        ("PreferredAuthentications hostbased\nNumberOfPasswordPrompts 0\n", &[], 0),
    ] {
        let authentication = Home::new(config).resolve("h").unwrap().0.authentication;
        assert_eq!((&authentication.methods[..], authentication.prompts), (methods, prompts), "{config}");
    }
    for flag in ["PubkeyAuthentication", "GSSAPIAuthentication", "GSSAPIDelegateCredentials"] {
        assert!(Home::new(&format!("{flag} maybe\n")).error("h").starts_with("/.ssh/config:1: "), "{flag}");
    }
}

#[test]
fn tickets_are_for_who_asks_for_them() {
    use crate::ssh::target::Tickets;
    let tickets = |config: &str, system: &str| {
        let home = Home::new(config);
        home.file("etc/ssh_config", system);
        let target = home.resolve("h").unwrap().0;
        assert!(target.authentication.methods.starts_with(&[Method::Gssapi]), "{config}");
        (target.authentication.tickets, home.warnings("h"))
    };
    let system = tickets("", "GSSAPIAuthentication yes\nGSSAPIDelegateCredentials yes\n");
    assert_eq!(system, (Tickets { delegate: true, by_user: false }, vec![]));
    let own = tickets("GSSAPIAuthentication yes\n", "GSSAPIAuthentication no\n");
    assert_eq!(own.0, Tickets { delegate: false, by_user: true });
    let told = [
        "/.ssh/config:1: `GSSAPIAuthentication` is ignored: this broker was built without it (`--features gssapi`)",
    ];
    assert_eq!(own.1, if cfg!(feature = "gssapi") { &[][..] } else { &told[..] });
}

#[test]
fn algorithms_are_chosen_by_lists_and_broken_ones_by_who_means_it() {
    let config = "Host old\n KexAlgorithms +diffie-hellman-group1-sha1\n Ciphers aes128-cbc,aes128-ctr,blowfish-cbc\n \
                  HostKeyAlgorithms ^ecdsa*\nHost *\n MACs -*etm*\n PubkeyAcceptedKeyTypes ssh-ed25519*\n \
                  CASignatureAlgorithms rsa-sha2-512\n";
    let home = Home::new(config);
    let (target, warnings) = home.resolve("old").unwrap();
    let ours = Algorithms::default();
    assert_eq!(target.algorithms.kex, ours.kex);
    assert_eq!(target.algorithms.ciphers, ["aes128-ctr"]);
    assert_eq!(target.algorithms.macs, ["hmac-sha2-256", "hmac-sha2-512"]);
    assert_eq!(target.algorithms.host_keys[0], "ecdsa-sha2-nistp256-cert-v01@openssh.com");
    assert_eq!(target.algorithms.host_keys.len(), ours.host_keys.len());
    assert!(!target.algorithms.known_first);
    assert_eq!(target.algorithms.public_keys, ["ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519"]);
    assert_eq!(target.algorithms.certificate_signatures, ["rsa-sha2-512"]);
    let said: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].contains("`diffie-hellman-group1-sha1` (`--dangerous-legacy-algorithms old` offers it)"));
    assert!(said[1].ends_with("`Ciphers` names what broker does not have: `blowfish-cbc`"), "{said:?}");
    assert!(said[2].contains("`aes128-cbc`"), "{said:?}");

    // For this host only, wherever it stands on the way.
    let dangerous = |host: &str, names: &str| {
        let request = Request { dangerous_legacy: vec![names.to_owned()], ..request(host) };
        resolve(&request, &home.surroundings()).unwrap().0
    };
    assert!(dangerous("old", "old").algorithms.kex.contains(&"diffie-hellman-group1-sha1"));
    assert_eq!(dangerous("old", "old").algorithms.ciphers, ["aes128-cbc", "aes128-ctr"]);
    assert_eq!(dangerous("old", "other").algorithms.kex, ours.kex);
    assert_eq!(dangerous("web", "web").algorithms.kex, ours.kex, "nobody named them");
    let through = Request { jump: Some("old".to_owned()), ..request("web") };
    let through = Request { dangerous_legacy: vec!["old".to_owned()], ..through };
    let (web, _) = resolve(&through, &home.surroundings()).unwrap();
    let Way::Jump(hop) = &web.way else { panic!("{web:?}") };
    assert!(hop.algorithms.kex.contains(&"diffie-hellman-group1-sha1"));
    assert_eq!(web.algorithms.kex, ours.kex);

    for empty in ["Ciphers aes256-cbc", "MACs umac-64@openssh.com", "KexAlgorithms -*"] {
        let error = Home::new(&format!("{empty}\n")).error("h");
        assert!(error.contains("leaves nothing that broker has"), "{error}");
    }
    // What a distribution ships for OpenSSH's sake is not worth a word.
    let home = Home::new("");
    home.file(
        "etc/ssh_config",
        "KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256,gss-x-\n",
    );
    assert_eq!(home.target("h").algorithms.kex, ["curve25519-sha256"]);
}

#[test]
fn unknown_keywords_are_named_unless_they_are_to_be_ignored() {
    let home = Home::new("Frobnicate yes\nHost other\n Frobnicate no\n");
    assert_eq!(home.warnings("h"), ["/.ssh/config:1: `frobnicate` is unknown and ignored"]);
    let home = Home::new("IgnoreUnknown Frob*,x\nFrobnicate yes\nX 1\nY 1\n");
    assert_eq!(home.warnings("h"), ["/.ssh/config:4: `y` is unknown and ignored"]);
}

#[test]
fn no_host_key_checking_becomes_accept_new_and_is_said() {
    for value in ["no", "off"] {
        let home = Home::new(&format!("StrictHostKeyChecking {value}\n"));
        let (target, warnings) = home.resolve("h").unwrap();
        assert_eq!(target.strict_host_key_checking, StrictHostKeyChecking::AcceptNew);
        assert!(warnings[0].to_string().contains("never go on with a host key that changed"), "{warnings:?}");
    }
}

#[test]
fn a_tunnel_always_notices_a_dead_link() {
    let home = Home::new("ServerAliveInterval 0\nServerAliveCountMax 0\nConnectTimeout none\n");
    let (target, warnings) = home.resolve("h").unwrap();
    assert_eq!((target.server_alive_interval, target.server_alive_count_max), (Duration::from_secs(15), 3));
    assert_eq!(target.connect_timeout, Duration::from_secs(10));
    assert_eq!(warnings.len(), 2);
}

#[test]
fn agents_are_found_or_turned_off() {
    for (value, agent) in [
        ("none", None),
        ("SSH_AUTH_SOCK", Some("/run/agent")),
        ("$KEYS", Some("/keys")),
        ("$NOT_THERE", None),
        ("${KEYS}/%u", Some("/keys/me")),
        ("\"/a b\"", Some("/a b")),
    ] {
        let home = Home::new(&format!("IdentityAgent {value}\n"));
        assert_eq!(home.target("h").identities.agent, agent.map(PathBuf::from), "{value}");
    }
    assert!(Home::new("IdentityAgent ${NOT_THERE}/x\n").error("h").starts_with("/.ssh/config:1: "));
    assert!(Home::new("Host x\nIdentityAgent $NO-NAME\n").error("h").starts_with("/.ssh/config:2: "));
}

#[test]
fn no_identity_file_means_none() {
    let home = Home::new("IdentityFile none\n");
    assert_eq!(home.target("h").identities.files, Vec::<PathBuf>::new());
}

#[test]
fn names_from_the_configuration_are_checked_like_typed_ones() {
    for config in [
        "HostName -oProxyCommand=x",
        "HostName a;b",
        "HostName \"a b\"",
        "User -l",
        "User \"a`b`\"",
        "User ${KEYS}$x",
    ] {
        let error = Home::new(&format!("{config}\n")).resolve("h").unwrap_err();
        assert!(matches!(error, Error::Host { .. } | Error::User { .. }), "{config}: {error}");
    }
    assert!(matches!(Home::new("").resolve("-h"), Err(Error::Host { .. })));
    let request = Request { user: Some("-u".into()), ..request("h") };
    assert!(matches!(resolve(&request, &Home::new("").surroundings()), Err(Error::User { .. })));
}

#[test]
fn bad_values_are_errors_in_blocks_that_do_not_apply_too() {
    for bad in [
        "Port 0",
        "Port 65536",
        "Port a",
        "Port 1 2",
        "User",
        "BatchMode maybe",
        "ConnectTimeout 1x",
        "StrictHostKeyChecking perhaps",
        "AddressFamily ipv4",
        "UserKnownHostsFile none /x",
        "User \"a",
        "ServerAliveCountMax -1",
        "HostName \"\"",
        "Host \"\"",
        "Include \"\"",
    ] {
        let home = Home::new(&format!("Host other\n{bad}\n"));
        assert!(home.error("h").starts_with("/.ssh/config:2: "), "{bad}: {}", home.error("h"));
    }
    assert!(Home::new("HostName %p\n").error("h").starts_with("/.ssh/config:1: "));
}

#[test]
fn addresses_have_one_spelling() {
    assert_eq!(Home::new("HostName 2001:DB8:0::1\n").target("h").hostname, "2001:db8::1");
    assert_eq!(Home::new("HostName FE80::1%%Eth0\n").target("h").hostname, "fe80::1%Eth0");
}

#[test]
fn an_error_shows_no_control_characters() {
    let home = Home::new("Port \u{1b}]0;x\u{7}\n");
    assert!(!home.error("h").chars().any(char::is_control));
    let home = Home::new("\u{1b}[2Jx 1\n");
    assert!(!home.warnings("h").concat().chars().any(char::is_control));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_configuration_is_read_or_refused(lines in prop::collection::vec(
        ("(Host|Match|Port|User|HostName|IdentityFile|Include|ProxyJump|Tag|X)", "[ -~]{0,20}"), 0..8)) {
        let text: String = lines.iter().map(|(keyword, rest)| format!("{keyword} {rest}\n")).collect();
        let home = Home::new(&text);
        drop(home.resolve("h"));
    }
}

#[test]
fn no_attempts_are_refused_only_where_they_would_count() {
    assert_eq!(Home::new("ConnectionAttempts 2\nConnectionAttempts 0\n").target("h").connection_attempts, 2);
    assert_eq!(Home::new("Host other\n ConnectionAttempts 0\n").target("h").connection_attempts, 1);
    let told = "/.ssh/config:1: `connectionattempts`: `0` is no value that it can have";
    assert_eq!(Home::new("ConnectionAttempts 0\n").error("h"), told);
}
