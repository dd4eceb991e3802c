//! Start URLs as people write them: with and without what comes behind `/start`, in AWS's domains old and new, and in a
//! domain of one's own that redirects there. The files that a login leaves are those of the AWS CLI, by name and content.

use std::collections::BTreeMap;

use sandbox::home::{Process, Stream};
use serde_json::Value;

use crate::{
    support::{ACCOUNT, PATIENCE, REGION, World, sdk},
    tls::own_certificate,
};

const PORTAL: &str = "https://ssoins-sandbox.portal.eu-central-1.app.aws";

/// A browser that goes where it is sent.
const CURL: &str = "#!/bin/sh\ncurl -sSL --noproxy '*' -o /dev/null \"$1\" &\n";

/// A web server as an organization has it: what is asked for and how decides where it leads.
const COMPANY: &str = r#"
import http.server, ssl, sys
PORTAL = sys.argv[3]
class Company(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        status, location = {
            "/aws": (302, PORTAL + ":443/"),
            "/old": (405, None),
            "/again": (301, "/aws"),
            "/evil": (302, "https://portal.example/start"),
            "/plain": (302, "http://sandbox.awsapps.com/start"),
            "/nowhere": (302, None),
            "/page": (200, None),
        }.get(self.path, (404, None))
        if self.command == "GET" and self.path == "/old":
            status, location = 308, PORTAL + "/?from=here"
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_HEAD
    def log_message(self, form, *what):
        print(self.command, self.path, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Company)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("at", server.server_port, flush=True)
server.serve_forever()
"#;

/// An organization's web server, and the certificate that it has of an authority which the laptop trusts.
struct Company {
    process: Process,
    address: String,
    certificate: String,
}

impl Company {
    fn start(world: &World) -> Self {
        own_certificate(world, "company", "IP:127.0.0.1");
        let path = |name: &str| world.laptop.join(name).display().to_string();
        let mut python = world.laptop.command("python3");
        python.args(["-c", COMPANY, &path("company.pem"), &path("company.key"), PORTAL]);
        let mut process = world.laptop.spawn(python);
        let line = process.wait_for_line(Stream::Stdout, "at ", PATIENCE);
        let port = line.trim().rsplit(' ').next().unwrap();
        Self { address: format!("https://127.0.0.1:{port}"), process, certificate: path("root.pem") }
    }

    /// What it was asked so far.
    fn asked(&self) -> Vec<String> {
        self.process.text(Stream::Stdout).lines().skip(1).map(str::to_owned).collect()
    }
}

/// What `~/.aws/config` says: an SSO session `corp`, and a profile `old` that names the portal by itself.
fn configure(world: &World, start_url: &str) {
    let config = format!(
        "[sso-session corp]\nsso_start_url = {start_url}\nsso_region = {REGION}\n\
         sso_registration_scopes = sso:account:access\n\
         [profile dev]\nsso_session = corp\nsso_account_id = {ACCOUNT}\nsso_role_name = Developer\nregion = {REGION}\n\
         [profile old]\nsso_start_url = {start_url}\nsso_region = {REGION}\nsso_account_id = {ACCOUNT}\n\
         sso_role_name = Developer\nregion = {REGION}\n"
    );
    world.laptop.write(".aws/config", config, 0o600);
}

/// Every file that logins left, by name: what stands in it, without what is new each time. They are removed.
fn left(world: &World) -> BTreeMap<String, Value> {
    let cache = world.laptop.join(".aws/sso/cache");
    let mut left = BTreeMap::new();
    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (name, value) in content.as_object_mut().unwrap() {
            if !["startUrl", "region", "scopes", "grantTypes"].contains(&name.as_str()) {
                *value = "…".into();
            }
        }
        left.insert(path.file_name().unwrap().to_string_lossy().into_owned(), content);
    }
    std::fs::remove_dir_all(&cache).unwrap();
    left
}

/// Logs in to both profiles, each with the AWS CLI and with broker, and returns what broker said.
fn log_in_with_both(world: &mut World, start_url: &str, certificate: Option<&str>) -> String {
    let browser = world.laptop.write("browser", CURL, 0o755).display().to_string();
    let mut said = String::new();
    for profile in ["dev", "old"] {
        configure(world, start_url);
        let mut aws = world.laptop.command(sdk("awscli-v2/aws"));
        aws.args(["sso", "login", "--profile", profile]).envs(world.aws.environment());
        aws.env("BROWSER", format!("{browser} %s"));
        aws.envs(certificate.map(|certificate| ("AWS_CA_BUNDLE", certificate)));
        let _theirs = world.laptop.run(aws).success();
        let theirs = left(world);
        assert_eq!(theirs.len(), 2, "a token and a registration: {theirs:?}");

        configure(world, start_url);
        let before = world.laptop.read(".aws/config");
        let mut broker = world.broker(&["login", "-p", profile]);
        broker.env("BROWSER", &browser).envs(certificate.map(|certificate| ("SSL_CERT_FILE", certificate)));
        let output = world.run(broker).success();
        said += &output.stderr();
        assert_eq!(world.laptop.read(".aws/config"), before);
        let credentials = ["credentials", "--batch", "-p", profile];
        let _works = world.laptop.run(world.broker(&credentials)).success();
        assert_eq!(left(world), theirs, "{start_url} of {profile}");
    }
    said
}

#[test]
fn a_login_leaves_the_files_of_the_aws_cli_however_the_start_url_is_written() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    for url in ["https://sandbox.awsapps.com/start/", "https://sandbox.awsapps.com/start/#"] {
        let said = log_in_with_both(&mut world, url, None);
        assert!(!said.contains("sso_region"), "{said}");
    }
    // The name that portals have now tells a region, but the configured one counts.
    world.aws.set_portal(PORTAL);
    let said = log_in_with_both(&mut world, &format!("{PORTAL}/"), None);
    assert!(!said.contains("sso_region"), "{said}");
    world.assert_clean();
}

#[test]
fn a_start_url_in_a_domain_of_ones_own_leads_to_the_portal_that_it_redirects_to() {
    if sandbox::isolated!() {
        return;
    }
    let mut world = World::new();
    let company = Company::start(&world);
    world.aws.set_portal(PORTAL);
    let url = format!("{}/aws", company.address);
    let said = log_in_with_both(&mut world, &url, Some(&company.certificate));
    assert!(
        said.contains("is in eu-central-1, and not in eu-west-1: set `sso_region = eu-central-1`"),
        "{said}"
    );
    assert_eq!(company.asked(), ["HEAD /aws"; 4], "each login asks once, and nothing else does");

    let url = format!("{}/old", company.address);
    configure(&world, &url);
    let mut login = world.broker(&["login", "-p", "old", "--device-code"]);
    login.env("SSL_CERT_FILE", &company.certificate);
    world.run(login).success();
    assert_eq!(company.asked()[4..], ["HEAD /old", "GET /old"]);

    // Whoever is there decides where it leads, and that must be an access portal of AWS.
    for (path, words) in [
        ("/evil", "redirects to `https://portal.example/start`, which is no access portal of AWS"),
        ("/plain", "redirects to `http://sandbox.awsapps.com/start`, which is no"),
        ("/again", "redirects to `/aws`, which is no access portal of AWS"),
        ("/nowhere", "HTTP 302 and redirects nowhere"),
        ("/page", "HTTP 200 and redirects nowhere"),
        ("/missing", "HTTP 404 and redirects nowhere"),
    ] {
        configure(&world, &format!("{}{path}", company.address));
        let calls = world.aws.calls().len();
        let mut login = world.broker(&["login", "-p", "dev", "--no-browser"]);
        login.env("SSL_CERT_FILE", &company.certificate);
        let output = world.run(login);
        assert_eq!(output.code, Some(3), "{path}: {output}");
        let said = output.stderr();
        let named = format!("the start URL `{}{path}` leads to no access portal: it ", company.address);
        assert!(said.contains(&named) && said.contains(words) && said.contains("`sso_start_url`"), "{said}");
        assert_eq!(world.aws.calls().len(), calls, "AWS heard nothing of it");
    }
    // A server that nobody vouches for, and none at all.
    configure(&world, &format!("{}/aws", company.address));
    for word in ["certificate", "Connection refused"] {
        let output = world.run(world.broker(&["login", "-p", "dev", "--no-browser"]));
        assert!(output.code == Some(3) && output.stderr().contains(word), "{word}: {output}");
        configure(&world, "https://127.0.0.1:1/aws");
    }
    world.assert_clean();
}
