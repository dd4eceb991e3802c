use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, process::Command, sync::OnceLock};

use proptest::prelude::*;

use super::*;

/// Runs the real tool. That it is missing is a failure, not a reason to test less.
fn ssh_keygen(arguments: &[&str], directory: &Path) -> String {
    let output = Command::new("ssh-keygen")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("these tests compare with `ssh-keygen`: install openssh-client");
    String::from_utf8(output.stdout).unwrap()
}

/// Key pairs by type and number, made once.
fn public(name: &str) -> &'static str {
    static KEYS: OnceLock<BTreeMap<&'static str, String>> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &'static str| {
            let (algorithm, _) = name.split_once('-').unwrap();
            ssh_keygen(&["-q", "-t", algorithm, "-N", "", "-C", "", "-f", name], directory.path());
            let text = fs::read_to_string(directory.path().join(format!("{name}.pub"))).unwrap();
            (name, text.trim().to_owned())
        };
        ["ed25519-1", "ed25519-2", "ecdsa-1", "ecdsa-2", "rsa-1"].map(make).into_iter().collect()
    };
    &KEYS.get_or_init(make)[name]
}

fn key(name: &str) -> PublicKey {
    PublicKey::from_openssh(public(name)).unwrap()
}

/// Replaces `{ed25519-1}` and the like by keys.
fn text(template: &str) -> String {
    ["ed25519-1", "ed25519-2", "ecdsa-1", "ecdsa-2", "rsa-1"]
        .iter()
        .fold(template.to_owned(), |text, name| text.replace(&format!("{{{name}}}"), public(name)))
}

fn known(template: &str) -> KnownHosts {
    KnownHosts::parse(&text(template), Path::new("kh"))
}

fn new() -> Verdict {
    Verdict::New { other_types: vec![], same_key_as: vec![] }
}

fn changed(line: usize) -> Verdict {
    Verdict::Changed { path: "kh".into(), line }
}

fn revoked(line: usize) -> Verdict {
    Verdict::Revoked { path: "kh".into(), line }
}

#[test]
fn verdicts() {
    use Verdict::Known;
    for (template, host, port, shown, expected) in [
        ("", "h", 22, "ed25519-1", new()),
        ("h {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("H {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("h {ed25519-1}", "H", 22, "ed25519-1", Known),
        ("h {ed25519-1} a comment # of words", "h", 22, "ed25519-1", Known),
        ("\t h\t{ed25519-1}\r", "h", 22, "ed25519-1", Known),
        ("# x\n\nh {ed25519-2}", "h", 22, "ed25519-1", changed(3)),
        ("h {ed25519-2}\nh {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("h {ecdsa-2}\nh {ed25519-2}", "h", 22, "ed25519-1", changed(2)),
        ("a,h,b {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("*.corp,!bad.corp {ed25519-1}", "good.corp", 22, "ed25519-1", Known),
        ("*.corp,!bad.corp {ed25519-2}", "bad.corp", 22, "ed25519-1", new()),
        ("!bad.corp,*.corp {ed25519-2}", "bad.corp", 22, "ed25519-1", new()),
        ("h? {ed25519-2}", "h1", 22, "ed25519-1", changed(1)),
        // Ports.
        ("[h]:2222 {ed25519-1}", "h", 2222, "ed25519-1", Known),
        ("[h]:2222 {ed25519-2}", "h", 2222, "ed25519-1", changed(1)),
        ("[h]:2222 {ed25519-2}", "h", 22, "ed25519-1", new()),
        ("[h]:2222 {ed25519-2}", "h", 2223, "ed25519-1", new()),
        ("[*]:2222 {ed25519-1}", "h", 2222, "ed25519-1", Known),
        ("* {ed25519-1}", "h", 2222, "ed25519-1", Known),
        ("h {ed25519-1}", "h", 2222, "ed25519-1", Known),
        ("h {ed25519-2}", "h", 2222, "ed25519-1", new()),
        ("h {ed25519-1}\n[h]:2222 {ed25519-2}", "h", 2222, "ed25519-1", changed(2)),
        ("[h]:22 {ed25519-2}", "h", 22, "ed25519-1", new()),
        ("::1 {ed25519-1}", "::1", 22, "ed25519-1", Known),
        ("[::1]:2222 {ed25519-1}", "::1", 2222, "ed25519-1", Known),
        // Markers.
        ("h {ed25519-1}\n@revoked h {ed25519-1}", "h", 22, "ed25519-1", revoked(2)),
        ("@revoked * {ed25519-1}\nh {ed25519-1}", "h", 22, "ed25519-1", revoked(1)),
        ("@revoked\th\t{ed25519-1}", "h", 22, "ed25519-1", revoked(1)),
        ("@revoked h {ed25519-1}\n[h]:2222 {ed25519-1}", "h", 2222, "ed25519-1", revoked(1)),
        ("@revoked other {ed25519-1}\nh {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("@revoked h {ed25519-2}", "h", 22, "ed25519-1", new()),
        ("@cert-authority h {ed25519-1}", "h", 22, "ed25519-1", new()),
        ("@cert-authority * {ed25519-2}\nh {ed25519-1}", "h", 22, "ed25519-1", Known),
        ("@cert-authority h {ed25519-2}", "h", 22, "ed25519-1", new()),
        // Lines that make no sense.
        ("@nonsense h {ed25519-1}", "h", 22, "ed25519-1", new()),
        ("h 1024 35 1234567", "h", 22, "ed25519-1", new()),
        ("h\nh ssh-ed25519\nh ssh-ed25519 AAAA\nh {ed25519-2}", "h", 22, "ed25519-1", changed(4)),
        ("|1|AAAA|BBBB {ed25519-1}", "h", 22, "ed25519-1", new()),
    ] {
        let mut verdict = known(template).verdict(&HostName::new(host, port), &key(shown));
        if let Verdict::New { same_key_as, .. } = &mut verdict {
            same_key_as.clear();
        }
        assert_eq!(verdict, expected, "{host}:{port} and\n{template}");
    }
}

#[test]
fn an_authority_is_looked_up_by_name_and_key_and_can_be_revoked() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        ssh_keygen(&["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", name], directory.path());
        fs::read_to_string(directory.path().join(format!("{name}.pub"))).unwrap().trim().to_owned()
    };
    let (ca, host) = (make("ca"), make("host"));
    ssh_keygen(&["-q", "-s", "ca", "-I", "id", "-h", "-n", "h", "host.pub"], directory.path());
    let text = fs::read_to_string(directory.path().join("host-cert.pub")).unwrap();
    let certificate = Certificate::from_openssh(text.trim()).unwrap();
    let at = |line| Authority::Known { path: "kh".into(), line };
    let revoked = |line| Authority::Revoked { path: "kh".into(), line };
    for (template, name, port, expected) in [
        ("@cert-authority h {ca}", "h", 22, at(1)),
        ("# x\n@cert-authority H {ca}", "h", 22, at(2)),
        ("@cert-authority *.corp,!bad.corp {ca}", "web.corp", 22, at(1)),
        ("@cert-authority *.corp,!bad.corp {ca}", "bad.corp", 22, Authority::Unknown),
        ("@cert-authority h {ca}", "h", 2222, at(1)),
        ("@cert-authority [h]:2222 {ca}", "h", 2222, at(1)),
        ("@cert-authority [h]:2222 {ca}", "h", 22, Authority::Unknown),
        ("@cert-authority h {host}", "h", 22, Authority::Unknown),
        ("h {ca}", "h", 22, Authority::Unknown),
        ("@cert-authority h {ca}\n@revoked h {ca}", "h", 22, revoked(2)),
        ("@revoked * {host}\n@cert-authority h {ca}", "h", 22, revoked(1)),
        ("@revoked h {host}\n@cert-authority [h]:2222 {ca}", "h", 2222, revoked(1)),
        ("@revoked other {ca}\n@cert-authority h {ca}", "h", 22, at(2)),
    ] {
        let known =
            KnownHosts::parse(&template.replace("{ca}", &ca).replace("{host}", &host), Path::new("kh"));
        let name = HostName::new(name, port);
        assert_eq!(known.authority(&name, &certificate), expected, "{name} and\n{template}");
        let asked = matches!(expected, Authority::Known { .. });
        assert!(!asked || known.cert_authority(&name).is_some(), "{name} and\n{template}");
    }
}

#[test]
fn a_key_of_another_type_is_told_apart_from_an_unknown_host() {
    let known = known("h {ecdsa-1}\nh {rsa-1}\nother {ed25519-1}\n|1|AAAA {ecdsa-1}\n");
    let Verdict::New { other_types, same_key_as } = known.verdict(&HostName::new("h", 22), &key("ed25519-1"))
    else {
        panic!("a key of a type that is not on file is new");
    };
    let path = PathBuf::from("kh");
    assert_eq!(other_types, [("ecdsa-sha2-nistp256".into(), path.clone(), 1), ("ssh-rsa".into(), path, 2)]);
    assert_eq!(same_key_as, ["kh:3: other"]);
    assert_eq!(known.bad_lines().len(), 1);
    assert_eq!(known.bad_lines()[0].line, 4);
}

#[test]
fn known_types_are_asked_for_first() {
    let names = |known: &KnownHosts, name| -> Vec<String> {
        known.known_algorithms(&name).iter().map(ToString::to_string).collect()
    };
    let known =
        known("h {ecdsa-1}\nh {rsa-1}\nh {ecdsa-2}\n@revoked h {ed25519-1}\n@cert-authority h {ed25519-2}\n");
    let expected = ["ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"];
    assert_eq!(names(&known, HostName::new("h", 22)), expected);
    assert_eq!(names(&known, HostName::new("h", 2222)), expected);
    assert!(names(&known, HostName::new("x", 22)).is_empty());
    assert_eq!(known.cert_authority(&HostName::new("h", 22)), Some(("kh".into(), 5)));
    assert_eq!(known.cert_authority(&HostName::new("x", 22)), None);
}

#[test]
fn a_host_key_alias_stands_for_every_port() {
    let known = known("alias {ed25519-1}\n");
    assert_eq!(known.verdict(&HostName::alias("Alias"), &key("ed25519-1")), Verdict::Known);
}

/// `ssh-keygen -F` prints the lines that match a name, which is all that a verdict is made of.
#[test]
fn the_lines_that_match_a_name_are_those_that_ssh_keygen_finds() {
    let directory = tempfile::tempdir().unwrap();
    let plain = text(
        "h {ed25519-1}\nH2,other {ed25519-2}\n[h]:2222 {ecdsa-1}\n*.corp,!bad.corp {ecdsa-2}\n?x {rsa-1}\n\
         ::1 {ed25519-1}\n[::1]:2222 {ed25519-1}\n@revoked h {rsa-1}\n@cert-authority *.corp {ed25519-1}\n\
         # comment h\n\n10.0.0.* {ed25519-2}\nh,h3\t{ecdsa-1} comment\n!h4,h* {rsa-1}\n",
    );
    let path = directory.path().join("kh");
    private_fs::write(&path, plain.as_bytes()).unwrap();
    let hashed = directory.path().join("hashed");
    private_fs::write(&hashed, plain.as_bytes()).unwrap();
    ssh_keygen(&["-H", "-f", "hashed"], directory.path());
    let text = fs::read_to_string(&hashed).unwrap();
    assert!(text.matches("|1|").count() >= 6, "ssh-keygen hashed them:\n{text}");

    for file in [&path, &hashed] {
        let read = KnownHosts::parse(&fs::read_to_string(file).unwrap(), file);
        assert_eq!(read.bad_lines(), []);
        for name in [
            "h",
            "H",
            "h2",
            "other",
            "[h]:2222",
            "[h]:22",
            "a.corp",
            "bad.corp",
            "A.CORP",
            "ax",
            "aax",
            "::1",
            "[::1]:2222",
            "10.0.0.7",
            "10.0.1.7",
            "h3",
            "h4",
            "nobody",
            "corp",
        ] {
            // ssh lowers the name before it looks a hash up; ssh-keygen leaves that to its caller.
            let name = if file == &hashed { name.to_lowercase() } else { name.to_owned() };
            // `# Host NAME found: line 7 REVOKED`
            let printed = ssh_keygen(&["-F", &name, "-f", file.to_str().unwrap()], directory.path());
            let theirs: Vec<(usize, &str)> = printed
                .lines()
                .filter_map(|line| line.strip_prefix("# Host ")?.split_once("found: line "))
                .map(|(_, found)| found.split_once(' ').unwrap_or((found, "")))
                .map(|(line, marker)| (line.parse().unwrap(), marker.trim()))
                .collect();
            let name = HostName::alias(&name);
            let ours: Vec<(usize, &str)> = read
                .entries
                .iter()
                .filter(|entry| entry.names.mean(&name.name))
                .map(|entry| {
                    let marker = match entry.marker {
                        Marker::None => "",
                        Marker::CertAuthority => "CA",
                        Marker::Revoked => "REVOKED",
                    };
                    (entry.line, marker)
                })
                .collect();
            assert_eq!(ours, theirs, "{name} in {}", file.display());
        }
    }
}

#[test]
fn a_file_that_cannot_be_trusted_is_an_error_and_not_empty() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("kh");
    let files = |path: &Path| KnownHostsFiles {
        user: vec![path.to_owned()],
        global: vec![],
        hash: false,
        command: None,
    };
    assert_eq!(KnownHosts::load(&files(&file)).unwrap().entries.len(), 0, "there is none");
    private_fs::write(&file, text("h {ed25519-1}\n").as_bytes()).unwrap();
    for mode in [0o660, 0o602] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let error = KnownHosts::load(&files(&file)).unwrap_err();
        assert!(error.hint().unwrap().contains("chmod go-w"));
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(KnownHosts::load(&files(&file)).unwrap().entries.len(), 1);
    assert!(KnownHosts::load(&files(home.path())).is_err(), "a directory");
    assert_eq!(KnownHosts::load(&files(Path::new("/dev/null"))).unwrap().entries.len(), 0);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        assert!(KnownHosts::load(&files(&file)).is_err(), "somebody else's");
    } else {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(KnownHosts::load(&files(&file)).is_err(), "unreadable");
    }
}

#[test]
fn both_kinds_of_files_are_read_and_latin_1_is_no_obstacle() {
    let home = tempfile::tempdir().unwrap();
    let (user, global) = (home.path().join("user"), home.path().join("global"));
    let mut bytes = b"# caf\xe9\n".to_vec();
    bytes.extend(text("h {ed25519-1} caf").into_bytes());
    bytes.extend(b"\xe9\n");
    private_fs::write(&user, &bytes).unwrap();
    private_fs::write(&global, text("@revoked h {ed25519-1}\ng {ecdsa-1}\n").as_bytes()).unwrap();
    let files =
        KnownHostsFiles { user: vec![user], global: vec![global.clone()], hash: false, command: None };
    let known = KnownHosts::load(&files).unwrap();
    assert_eq!(known.bad_lines(), []);
    let expected = Verdict::Revoked { path: global, line: 1 };
    assert_eq!(known.verdict(&HostName::new("h", 22), &key("ed25519-1")), expected);
    assert_eq!(known.verdict(&HostName::new("g", 22), &key("ecdsa-1")), Verdict::Known);
}

#[test]
fn what_is_appended_is_known_to_us_and_to_ssh_keygen() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".ssh/known_hosts");
    let with_comment =
        PublicKey::from_openssh(&format!("{} evil\u{1b}comment", public("ed25519-2"))).unwrap();
    append(&file, &HostName::new("Plain", 22), &key("ed25519-1"), false).unwrap();
    append(&file, &HostName::new("port", 2222), &with_comment, false).unwrap();
    append(&file, &HostName::new("hashed", 22), &key("ecdsa-1"), true).unwrap();
    append(&file, &HostName::new("::1", 2222), &key("rsa-1"), true).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), 4);
    assert!(text.starts_with(&format!("plain {}\n", public("ed25519-1"))) && text.ends_with('\n'));
    assert!(!text.contains("hashed") && !text.contains("evil"));

    let read = KnownHosts::parse(&text, &file);
    for (host, port, shown, name) in [
        ("plain", 22, "ed25519-1", "plain"),
        ("port", 2222, "ed25519-2", "[port]:2222"),
        ("hashed", 22, "ecdsa-1", "hashed"),
        ("::1", 2222, "rsa-1", "[::1]:2222"),
    ] {
        assert_eq!(read.verdict(&HostName::new(host, port), &key(shown)), Verdict::Known, "{host}");
        let found = ssh_keygen(&["-F", name, "-f", file.to_str().unwrap()], home.path());
        assert!(found.contains(public(shown)), "{name}: {found}");
    }
}

#[test]
fn a_line_is_never_glued_to_an_unfinished_one() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("kh");
    private_fs::write(&file, text("h {ed25519-1}").as_bytes()).unwrap();
    let link = home.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    append(&link, &HostName::new("g", 22), &key("ed25519-2"), false).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), text("h {ed25519-1}\ng {ed25519-2}\n"));
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[test]
fn many_writers_write_whole_lines() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("kh");
    key("ed25519-1");
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let file = &file;
            scope.spawn(move || {
                for n in 0..10 {
                    let name = HostName::new(&format!("h{writer}-{n}"), 22);
                    append(file, &name, &key("ed25519-1"), n % 2 == 0).unwrap();
                }
            });
        }
    });
    let read = KnownHosts::parse(&fs::read_to_string(&file).unwrap(), &file);
    assert_eq!((read.entries.len(), read.bad_lines()), (80, &[][..]));
}

#[test]
fn a_name_that_would_mean_more_than_itself_is_not_written() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("kh");
    for name in ["*", "a,b", "!a", "a b", "a\nb", "@revoked", "#a", "|1|a|b", "a?", "", "[h]:22"] {
        let error = append(&file, &HostName::new(name, 22), &key("ed25519-1"), false).unwrap_err();
        assert!(matches!(error, Error::NotRecordable { .. }), "{name:?}");
        assert!(!error.to_string().chars().any(char::is_control));
    }
    assert!(!file.exists());
    append(&file, &HostName::alias("[h]:22"), &key("ed25519-1"), false).unwrap();
    append(Path::new("/dev/null"), &HostName::new("h", 22), &key("ed25519-1"), false).unwrap();
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "[ -~\t\r\n|@,!*?\\[\\]]*", host in "\\PC{0,12}", port in 0u16..) {
        let known = KnownHosts::parse(&text, Path::new("kh"));
        let name = HostName::new(&host, port);
        drop(known.verdict(&name, &key("ed25519-1")));
        drop(known.known_algorithms(&name));
    }

    #[test]
    fn what_is_written_is_read_back(host in "[a-zA-Z0-9.:_-]{1,20}", port in 1u16.., hash in any::<bool>()) {
        let name = HostName::new(&host, port);
        let line = line(&name, &key("ed25519-1"), hash).unwrap();
        let known = KnownHosts::parse(&line, Path::new("kh"));
        prop_assert_eq!(known.verdict(&name, &key("ed25519-1")), Verdict::Known);
        prop_assert_eq!(known.verdict(&name, &key("ed25519-2")), changed(1));
    }
}
