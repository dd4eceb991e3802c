//! Kerberos tickets: a real KDC, a real sshd, and `ssh` beside us, which has to get in where we do and nowhere else.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use sandbox::{
    home::{Output, Process, Stream},
    sshd::SshdOptions,
};
use tempfile::TempDir;

use crate::{
    hostile::{self, Server},
    support::{BASTION, ENDS, PATIENCE, World, eventually},
};

const REALM: &str = "EXAMPLE.TEST";
const HOST: &str = "bastion.example.test";
/// The same machine under a name that the KDC does not know.
const STRANGE: &str = "strange.example.test";
const PASSWORD: &str = "open sesame";

/// A KDC of the test's own, which everybody in its namespaces asks.
struct Kdc {
    process: Process,
    directory: TempDir,
}

impl Kdc {
    /// Starts it; the host's user is known to it, and so is the host.
    fn start(world: &World) -> Self {
        let directory = tempfile::Builder::new().prefix("sshd-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let at = directory.path().display();
        let krb5 = format!(
            "[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_lookup_realm = false\n\
             dns_canonicalize_hostname = false\ndefault_keytab_name = FILE:{at}/keytab\n\
             [realms]\n{REALM} = {{\n kdc = 127.0.0.1:88\n}}\n[domain_realm]\n.example.test = {REALM}\n"
        );
        let kdc = format!(
            "[kdcdefaults]\nkdc_listen = 127.0.0.1:88\nkdc_tcp_listen = 127.0.0.1:88\n[realms]\n{REALM} = {{\n \
             database_name = {at}/principal\n key_stash_file = {at}/stash\n}}\n[logging]\nkdc = FILE:{at}/log\n"
        );
        std::fs::write(directory.path().join("kdc.conf"), kdc).unwrap();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
        cover("/etc/krb5.conf", &directory.path().join("krb5.conf"), &krb5);
        let hosts = format!("127.0.0.1 {HOST} {STRANGE}\n{hosts}");
        cover("/etc/hosts", &directory.path().join("hosts"), &hosts);

        let run = |program: &str, arguments: &[&str], input: &str| {
            let mut command = administer(directory.path(), program);
            command.args(arguments);
            sandbox::home::run_within(command, input.as_bytes(), PATIENCE).success()
        };
        run("/usr/sbin/kdb5_util", &["create", "-s", "-W", "-P", "master"], "");
        let user = &world.sshd.user().name;
        let principals = format!(
            "addprinc -pw \"{PASSWORD}\" {user}\naddprinc -pw \"{PASSWORD}\" other\naddprinc -randkey host/{HOST}\n\
             ktadd -k {at}/keytab host/{HOST}\n"
        );
        run("/usr/sbin/kadmin.local", &[], &principals);
        let mut kdc = administer(directory.path(), "/usr/sbin/krb5kdc");
        kdc.arg("-n");
        let process = world.laptop.spawn(kdc);
        eventually("the KDC listens", PATIENCE, || {
            std::net::TcpStream::connect(("127.0.0.1", 88)).map(drop).map_err(|error| error.to_string())
        });
        Self { process, directory }
    }

    /// From now on everybody who starts takes clocks to differ by this at most; five minutes where nothing says so.
    fn clocks_differ(&self, by: &str) {
        let file = self.directory.path().join("krb5.conf");
        let text = std::fs::read_to_string(&file).unwrap();
        let (_, rest) = text.split_once("default_realm").unwrap();
        std::fs::write(&file, format!("[libdefaults]\n{by}default_realm{rest}")).unwrap();
    }

    /// Has the KDC know another key for the host than the host does.
    fn change_key(&self) {
        let mut kadmin = administer(self.directory.path(), "/usr/sbin/kadmin.local");
        kadmin.args(["cpw", "-randkey", &format!("host/{HOST}")]);
        sandbox::home::run_within(kadmin, &[], PATIENCE).success();
    }
}

fn administer(directory: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("KRB5_KDC_PROFILE", directory.join("kdc.conf"));
    command
}

/// Puts a file over one of the system's, in the test's mount namespace.
fn cover(system: &str, file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    let mounted = Command::new("mount").arg("--bind").arg(file).arg(system).status().unwrap();
    assert!(mounted.success(), "{system} can be covered");
}

/// A laptop whose only way in is a ticket, until it gets its key back.
struct Site {
    world: World,
    kdc: Kdc,
}

impl Site {
    fn new(options: SshdOptions) -> Self {
        let options = options.config("GSSAPIAuthentication yes").config("GSSAPIStrictAcceptorCheck no");
        let world = World::with_fresh_home(options);
        let kdc = Kdc::start(&world);
        let (known, strange) = (world.sshd.known_hosts_line(HOST), world.sshd.known_hosts_line(STRANGE));
        let known = known.trim().to_owned() + "\n" + strange.trim() + "\n";
        world.laptop.write(".ssh/known_hosts", known, 0o600);
        let site = Self { world, kdc };
        site.configure("IdentityFile none");
        site
    }

    /// From now on there is a key that opens the door as well.
    fn with_key(&self) {
        self.configure(&format!("IdentityFile {}", self.world.laptop.join(".ssh/key-bastion").display()));
    }

    fn configure(&self, more: &str) {
        let (port, user) = (self.world.sshd.port(), &self.world.sshd.user().name);
        let ssh = self.world.laptop.join(".ssh").display().to_string();
        let config = format!(
            "Host {BASTION}\n  HostName {HOST}\n  Port {port}\n  User {user}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {ssh}/known_hosts\n  {more}\n"
        );
        self.world.laptop.write(".ssh/config", config, 0o600);
    }

    fn cache(&self, name: &str) -> String {
        format!("FILE:{}", self.world.laptop.join(name).display())
    }

    /// Gets a ticket for a principal, in the cache that is named like it.
    fn kinit(&self, principal: &str, options: &[&str]) -> String {
        let cache = self.cache(principal);
        let mut kinit = self.world.laptop.command("kinit");
        kinit.args(options).args(["-c", &cache, principal]);
        let output = self.world.laptop.run_with(kinit, format!("{PASSWORD}\n").as_bytes());
        assert_eq!(output.code, Some(0), "{output}");
        cache
    }

    fn user(&self) -> String {
        self.world.sshd.user().name.clone()
    }

    /// `broker` with a ticket, and without the system's configuration, which `ssh -F` does not read either.
    fn broker(&self, cache: &str, options: &[&str], command: &str) -> Command {
        let config = self.world.laptop.join(".ssh/config").display().to_string();
        let all = [&["-F", &config, "-p", "dev"][..], options, &["--", command]].concat();
        let mut connect = self.world.connect(&all);
        connect.env("KRB5CCNAME", cache);
        connect
    }

    fn ssh(&self, cache: &str, options: &[&str], command: &str) -> Output {
        let mut ssh = self.world.laptop.ssh();
        ssh.args(options).args([BASTION, command]).env("KRB5CCNAME", cache);
        self.world.laptop.run(ssh)
    }

    /// Runs it there, and has `ssh` try the same: both get in or neither does.
    fn both(&mut self, cache: &str, options: &[&str], command: &str) -> Output {
        let connect = self.broker(cache, options, command);
        let ours = self.world.run(connect);
        let theirs = self.ssh(cache, options, command);
        assert_eq!(
            (ours.code, ours.stdout()),
            (theirs.code, theirs.stdout()),
            "{options:?}: {ours}\n{theirs}"
        );
        ours
    }
}

#[track_caller]
fn assert_out(output: &Output, words: &[&str]) {
    assert_eq!(output.code, Some(255), "{output}");
    for word in words {
        assert!(output.stderr().contains(word), "`{word}` is not in {output}");
    }
}

#[track_caller]
fn assert_in(output: &Output) {
    assert_eq!((output.code, output.stdout().as_str()), (Some(0), "in\n"), "{output}");
}

const YES: &str = "-oGSSAPIAuthentication=yes";
const DELEGATE: &str = "-oGSSAPIDelegateCredentials=yes";
const IN: &str = "echo in";

/// A host name that leads to the same machine.
const ELSEWHERE: &str = "-oHostName=strange.example.test";

#[test]
fn a_ticket_opens_the_door_where_it_does_for_ssh() {
    if sandbox::isolated!() {
        return;
    }
    let mut site = Site::new(SshdOptions::default());
    let user = site.user();
    let cache = site.kinit(&user, &[]);
    let output = site.both(&cache, &[YES], IN);
    assert_in(&output);
    assert!(!output.stderr().contains("warning"), "{output}");
    assert_eq!(site.world.sshd.log().matches("Accepted gssapi-with-mic").count(), 2);
    assert_in(&site.both(&cache, &[YES, "-oPreferredAuthentications=publickey,gssapi-with-mic"], IN));

    let nothing = "there was nothing to try; the server takes publickey, gssapi-with-mic";
    assert_out(&site.both(&cache, &[], IN), &[nothing]);
    assert_out(&site.both(&cache, &[YES, "-oPreferredAuthentications=publickey"], IN), &[nothing]);
    let output = site.both("FILE:/nonexistent", &[YES], IN);
    assert_out(&output, &["tried gssapi-with-mic not (there is no Kerberos ticket, `kinit` gets one: "]);
    assert!(!output.stderr().contains("warning"), "{output}");

    // It is the name of the machine that counts, whatever its key is filed under.
    let words = "Server host/strange.example.test@EXAMPLE.TEST not found";
    assert_out(
        &site.both(&cache, &[YES, ELSEWHERE], IN),
        &["warning: no login with a Kerberos ticket", words],
    );
    let alias = format!("-oHostKeyAlias=[{HOST}]:{}", site.world.sshd.port());
    assert_out(&site.both(&cache, &[YES, ELSEWHERE, &alias], IN), &[words]);

    let other = site.kinit("other", &[]);
    let words = ["tried gssapi-with-mic as other@EXAMPLE.TEST; ", "may other@EXAMPLE.TEST log in as `"];
    assert_out(&site.both(&other, &[YES], IN), &words);

    // The ticket and something else, in either order.
    let aws = site.world.aws.environment();
    let environment: Vec<_> = aws.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let lines = [
        "GSSAPIAuthentication yes".to_owned(),
        "GSSAPIStrictAcceptorCheck no".to_owned(),
        format!("SetEnv {}", environment.join(" ")),
        "AuthenticationMethods gssapi-with-mic,publickey".to_owned(),
    ];
    site.world.sshd.configure(&lines);
    assert_out(&site.both(&cache, &[YES], IN), &[", accepted so far; the server takes publickey"]);
    site.with_key();
    assert_in(&site.both(&cache, &[YES], IN));
    assert_out(&site.both(&cache, &[], IN), &[]);
    site.world.sshd.configure(&[&lines[..3], &["PubkeyAuthentication no".to_owned()]].concat());
    assert_out(
        &site.both(&cache, &[], IN),
        &["takes Kerberos tickets alone", "`-o GSSAPIAuthentication=yes`\n"],
    );
    assert_in(&site.both(&cache, &[YES], IN));
    site.world.assert_clean();
}

#[test]
fn without_a_good_ticket_the_key_has_its_turn() {
    if sandbox::isolated!() {
        return;
    }
    let mut site = Site::new(SshdOptions::default());
    site.with_key();
    let user = site.user();
    let told = "warning: no login with a Kerberos ticket: ";
    let falls_back = |site: &mut Site, cache: &str, options: &[&str], word: &str| {
        let output = site.both(cache, options, IN);
        assert_in(&output);
        let said = output.stderr().contains(&format!("{told}{word}"));
        assert_eq!(said, !word.is_empty(), "{options:?}: {output}");
    };
    falls_back(&mut site, "FILE:/nonexistent", &[YES], "");
    let connect = site.broker("FILE:/nonexistent", &[YES, "-v"], IN);
    let output = site.world.run(connect);
    assert!(output.stderr().contains("No Kerberos credentials available"), "{output}");

    let short = site.kinit(&user, &["-l", "1s"]);
    // For so long the host would still take it.
    site.kdc.clocks_differ("clockskew = 1\n");
    eventually("it expires", PATIENCE, || {
        let output = site.ssh(&short, &[YES, "-oPreferredAuthentications=gssapi-with-mic"], IN);
        if output.code == Some(255) { Ok(()) } else { Err(output.to_string()) }
    });
    falls_back(&mut site, &short, &[YES], "the Kerberos ticket has expired, `kinit` gets a new one");
    site.kdc.clocks_differ("");

    let cache = site.kinit(&user, &[]);
    falls_back(&mut site, &cache, &[YES, ELSEWHERE], "host@strange.example.test: Server host/");
    // Nobody who has a key wants to hear of what only the system's configuration asks for.
    let system = site.world.laptop.write("ssh_config", "GSSAPIAuthentication yes\n", 0o644);
    cover("/etc/ssh/ssh_config", &system, "GSSAPIAuthentication yes\n");
    let mut connect = site.world.connect(&["-p", "dev", ELSEWHERE, "--", IN]);
    connect.env("KRB5CCNAME", &cache);
    let output = site.world.run(connect);
    assert_in(&output);
    assert!(!output.stderr().contains("Kerberos"), "{output}");

    // The host has another key than the KDC thinks.
    site.kdc.change_key();
    let cache = site.kinit(&user, &[]);
    falls_back(&mut site, &cache, &[YES], "");

    // A KDC that hangs, and one that is gone.
    let fresh = site.kinit(&user, &[]);
    site.kdc.process.signal(Signal::SIGSTOP);
    let connect = site.broker(&fresh, &[YES], IN);
    let output = site.world.run(connect);
    assert_in(&output);
    let words = format!("{told}Kerberos did not answer within 10 s: is the KDC to be reached from here?");
    assert!(output.stderr().contains(&words), "{output}");
    site.kdc.process.signal(Signal::SIGKILL);
    site.kdc.process.wait(PATIENCE);
    falls_back(&mut site, &fresh, &[YES], "host@bastion.example.test: Cannot contact any KDC");
    site.world.assert_clean();
}

#[test]
fn the_host_has_a_ticket_only_where_it_is_given_one() {
    if sandbox::isolated!() {
        return;
    }
    let mut site = Site::new(SshdOptions::default());
    let user = site.user();
    let plain = site.kinit(&user, &[]);
    let given = "klist | sed -n 's/^Default principal: //p'; echo $KRB5CCNAME >>tickets";
    let output = site.both(&plain, &[YES, DELEGATE], given).success();
    assert!(output.stderr().contains("cannot be forwarded (`kinit -f` gets one that can)"), "{output}");
    assert_eq!(output.stdout(), "");

    let forwardable = site.kinit(&user, &["-f"]);
    let output = site.both(&forwardable, &[YES], given).success();
    assert!(!output.stderr().contains("ticket"), "{output}");
    assert_eq!(output.stdout(), "");
    let output = site.both(&forwardable, &[YES, DELEGATE], given).success();
    let words =
        format!("warning: {BASTION} has a Kerberos ticket of yours now (`GSSAPIDelegateCredentials`)");
    assert!(output.stderr().contains(&words), "{output}");
    assert_eq!(output.stdout(), format!("{user}@{REALM}\n"));

    let tickets = std::fs::read_to_string(site.world.home_file("tickets")).unwrap();
    let tickets: Vec<_> = tickets.lines().filter_map(|line| line.strip_prefix("FILE:")).collect();
    assert_eq!(tickets.len(), 2, "ours and that of `ssh`: {tickets:?}");
    eventually("sshd takes them back", ENDS, || {
        let left: Vec<_> = tickets.iter().filter(|path| Path::new(path).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    site.world.assert_clean();
}

#[test]
fn a_tunnel_comes_back_with_the_ticket() {
    if sandbox::isolated!() {
        return;
    }
    let mut site = Site::new(SshdOptions::default());
    let cache = site.kinit(&site.user(), &[]);
    let mut connect = site.world.connect(&["-p", "dev", "-N", "--print-env", "sh", YES]);
    connect.env("KRB5CCNAME", &cache);
    let mut process = site.world.laptop.spawn(connect);
    process.wait_for_line(Stream::Stdout, "export no_proxy", PATIENCE);
    process.wait_for_line(Stream::Stderr, "AWS SDKs on", PATIENCE);
    let mut tunnel = site.world.attach(process);
    site.world.sshd.kill_connections();
    tunnel.process.wait_for_line(Stream::Stderr, "back after", PATIENCE);
    let (user, url, token) = (site.world.sshd.user().clone(), tunnel.url().to_owned(), tunnel.token());
    assert_eq!(site.world.fetch(&user, &url, Some(&token)).status(), 200);
    assert_eq!(site.world.sshd.log().matches("Accepted gssapi-with-mic").count(), 2);
    tunnel.stop(&mut site.world);
    site.world.assert_clean();
}

#[test]
fn a_server_that_makes_something_else_of_it_is_left_in_words() {
    if sandbox::isolated!() {
        return;
    }
    let site = Site::new(SshdOptions::default());
    let cache = site.kinit(&site.user(), &[]);
    let server = Server::run(&site.world, include_str!("servers/gssapi.py"), "gssapi");
    for (mode, words) in [
        ("garbage", "tried gssapi-with-mic (host@bastion.example.test: "),
        ("mechanism", "broke the rules: gssapi-with-mic: it chose what was not offered"),
        ("early", "broke the rules: gssapi-with-mic: it sent a token before it chose a mechanism"),
        ("again", "broke the rules: gssapi-with-mic: it chose what was not offered"),
        ("huge", "broke the rules: gssapi-with-mic: it sent a token that is too large"),
        ("flood", "broke the rules: gssapi-with-mic: it sent a token before it chose a mechanism"),
        ("complains", "broke the rules: gssapi-with-mic: it does not stop complaining"),
        ("refuses", "tried gssapi-with-mic (the server says: "),
    ] {
        let host = format!("-oHostName={HOST}");
        let options = [&host, YES, "-oStrictHostKeyChecking=accept-new", "-oIdentityFile=none", "-l", mode];
        let mut connect =
            site.world.broker(&[&["connect", "gssapi", "--batch", "-p", "dev"], &options[..]].concat());
        connect.args(["--", "true"]).env("KRB5CCNAME", &cache);
        let (output, took) = hostile::run(&site.world.laptop, hostile::bounded(&connect));
        println!("{mode}: {:?} in {took:.1?}: {}", output.code, output.stderr().replace('\n', " | "));
        assert_out(&output, &[words]);
        hostile::assert_printable(&output);
        assert!(took < Duration::from_secs(15), "{mode} took {took:?}");
        server.assert_told_nothing(&site.world);
    }
    site.world.assert_clean();
}
