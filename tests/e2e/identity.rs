//! Every kind of profile leads to the identity that the AWS CLI and SDKs find in it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use sandbox::home::{Output, run_within};
use serde_json::{Value, json};

use crate::support::{ACCOUNT, REGION, World, sdk};

/// Resolves every case with botocore and prints what came of it as one JSON object: a key id or `! error`.
const BOTOCORE: &str = r#"
import json, os, sys
import botocore.loaders, botocore.session
# Reading the models of the services anew for every case would take a minute.
loader = botocore.loaders.create_loader()
clean = dict(os.environ)
found = {}
for case in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(clean)
    os.environ.update(case["environment"])
    try:
        session = botocore.session.Session(profile=case["profile"])
        session.register_component("data_loader", loader)
        credentials = session.get_credentials()
        found[case["name"]] = credentials.get_frozen_credentials().access_key if credentials else "! none"
    except Exception as e:
        found[case["name"]] = "! %s: %s" % (type(e).__name__, e)
json.dump(found, sys.stdout)
"#;

/// Two hundred sessions of botocore, on a busy machine.
const BOTOCORE_PATIENCE: Duration = Duration::from_secs(240);

/// One way to ask for credentials.
struct Case {
    name: String,
    profile: Option<String>,
    environment: BTreeMap<String, String>,
}

/// Random choices that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Configuration in the making.
struct Generated {
    config: String,
    credentials: String,
    cases: Vec<Case>,
    keys: Vec<(String, String, Option<String>)>,
    token_file: String,
}

impl Generated {
    /// Returns new keys that AWS knows.
    fn keys(&mut self, temporary: bool) -> (String, String, Option<String>) {
        let n = self.keys.len();
        let prefix = if temporary { "ASIA" } else { "AKIA" };
        let keys = (
            format!("{prefix}GENERATED{n:07}"),
            format!("generated-secret-{n:04}/canary+"),
            temporary.then(|| format!("generated-session-token-{n:04}/canary+")),
        );
        self.keys.push(keys.clone());
        keys
    }

    fn key_lines(&mut self, temporary: bool) -> String {
        let (id, secret, token) = self.keys(temporary);
        let mut lines = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        if let Some(token) = token {
            writeln!(lines, "aws_session_token = {token}").unwrap();
        }
        lines
    }

    fn process_line(&mut self, dice: &mut Dice) -> String {
        let (id, secret, token) = self.keys(true);
        let mut object =
            json!({"Version": 1, "AccessKeyId": id, "SecretAccessKey": secret, "SessionToken": token});
        if dice.one_in(2) {
            object["Expiration"] = "2099-01-01T00:00:00Z".into();
        }
        format!("credential_process = /bin/echo '{object}'\n")
    }

    /// Writes a profile that has credentials of one kind, and perhaps of others that count less or more.
    fn base(&mut self, name: &str, dice: &mut Dice) {
        let mut lines = String::new();
        let mut in_credentials = String::new();
        for _ in 0..=dice.below(2) {
            match dice.below(7) {
                0 => lines += &self.key_lines(false),
                1 => lines += &self.key_lines(true),
                2 => in_credentials = self.key_lines(false),
                3 => in_credentials = self.key_lines(true),
                4 => lines += &self.process_line(dice),
                5 => {
                    let role = ["Developer", "Auditor"][usize::try_from(dice.below(2)).unwrap()];
                    if dice.one_in(3) {
                        lines +=
                            "sso_start_url = https://sandbox.awsapps.com/start\nsso_region = eu-west-1\n";
                    } else {
                        lines += "sso_session = corp\n";
                    }
                    writeln!(lines, "sso_account_id = {ACCOUNT}\nsso_role_name = {role}").unwrap();
                }
                _ => {
                    writeln!(lines, "web_identity_token_file = {}", self.token_file).unwrap();
                    writeln!(lines, "role_arn = arn:aws:iam::{ACCOUNT}:role/web-{name}").unwrap();
                    if dice.one_in(2) {
                        lines += "role_session_name = web@session\n";
                    }
                }
            }
        }
        // A key twice in one section is an error to some and the last one to others: keep the first.
        let mut seen = Vec::new();
        let kept = |text: &str, seen: &mut Vec<String>| {
            let mut kept = String::new();
            for line in text.lines() {
                let key = line.split(' ').next().unwrap().to_owned();
                if !seen.contains(&key) {
                    seen.push(key);
                    writeln!(kept, "{line}").unwrap();
                }
            }
            kept
        };
        let lines = kept(&lines, &mut seen);
        writeln!(self.config, "[profile {name}]\n{lines}").unwrap();
        if !in_credentials.is_empty() {
            writeln!(self.credentials, "[{name}]\n{in_credentials}").unwrap();
        }
    }

    fn role(&mut self, name: &str, source: &str, dice: &mut Dice) {
        let mut lines = format!("role_arn = arn:aws:iam::{ACCOUNT}:role/team/{name}\n{source}\n");
        if dice.one_in(3) {
            writeln!(lines, "external_id = id:{name}").unwrap();
        }
        if dice.one_in(3) {
            lines += "role_session_name = somebody@example\n";
        }
        if dice.one_in(4) {
            lines += "duration_seconds = 1800\n";
        }
        if dice.one_in(5) {
            lines += "region = us-west-2\n";
        }
        writeln!(self.config, "[profile {name}]\n{lines}").unwrap();
    }

    fn case(&mut self, name: &str, profile: Option<&str>, environment: &[(&str, &str)]) {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.cases.push(Case { name: name.to_owned(), profile: profile.map(str::to_owned), environment });
    }
}

/// Makes the files and the cases.
fn generate(token_file: String, endpoint: &str) -> Generated {
    let mut made = Generated {
        config: String::new(),
        credentials: String::new(),
        cases: Vec::new(),
        keys: Vec::new(),
        token_file,
    };
    let mut dice = Dice(20_260_101);
    let container = format!("{endpoint}/container/a");
    let ecs = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t"),
    ];
    let (id, secret, token) = made.keys(true);
    let environment_keys = [
        ("AWS_ACCESS_KEY_ID", id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", secret.as_str()),
        ("AWS_SESSION_TOKEN", token.as_deref().unwrap()),
    ];
    let web = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", made.token_file.clone()),
        ("AWS_ROLE_ARN", format!("arn:aws:iam::{ACCOUNT}:role/web-environment")),
        ("AWS_ROLE_SESSION_NAME", "from-the-environment".to_owned()),
    ];
    let web: Vec<(&str, &str)> = web.iter().map(|(k, v)| (*k, v.as_str())).collect();
    for n in 0..170 {
        let base = format!("b{n}");
        made.base(&base, &mut dice);
        let mut last = base;
        let mut extra: Vec<(&str, &str)> = Vec::new();
        for depth in 0..dice.below(5) {
            let name = format!("r{n}-{depth}");
            let source = match dice.below(12) {
                0 if depth == 0 => {
                    extra.extend(environment_keys);
                    "credential_source = Environment".to_owned()
                }
                1 if depth == 0 => {
                    extra.extend(ecs);
                    "credential_source = EcsContainer".to_owned()
                }
                2 if depth == 0 => "credential_source = Ec2InstanceMetadata".to_owned(),
                _ => format!("source_profile = {last}"),
            };
            made.role(&name, &source, &mut dice);
            last = name;
        }
        made.case(&format!("{n} named"), Some(&last), &extra);
        // The same without its name on the command line, with more in the environment.
        if dice.one_in(3) {
            let mut extra = extra.clone();
            extra.push(("AWS_PROFILE", &last));
            match dice.below(4) {
                0 => extra.extend(&environment_keys),
                1 => extra.extend(&web),
                2 => extra.extend(&ecs),
                _ => {}
            }
            made.case(&format!("{n} unnamed"), None, &extra);
        }
    }
    // What is special, and what is wrong.
    let own = made.key_lines(false);
    let role = format!("role_arn = arn:aws:iam::{ACCOUNT}:role/special\n");
    let special = format!(
        "[default]\nregion = {REGION}\n\
         [profile self]\n{role}source_profile = self\n{own}\
         [profile selfish]\n{role}source_profile = selfish\n\
         [profile tick]\n{role}source_profile = tock\n[profile tock]\n{role}source_profile = tick\n\
         [profile over-self]\n{role}source_profile = self\n\
         [profile lost]\n{role}source_profile = nobody\n\
         [profile two]\n{role}source_profile = self\ncredential_source = Environment\n\
         [profile none]\n{role}\
         [profile odd]\n{role}credential_source = Moon\n\
         [profile plain]\nregion = {REGION}\n\
         [profile over-plain]\n{role}source_profile = plain\n\
         [profile half]\naws_access_key_id = AKIAHALF\n\
         [profile 'with space']\n{own}\
         [profile lies]\ncredential_process = /bin/echo '{{\"Version\": 2}}'\n\
         [profile fails]\ncredential_process = /bin/false\n\
         [profile gone]\ncredential_process = /nonexistent\n\
         [profile nosession]\nsso_session = nothing\nsso_account_id = {ACCOUNT}\nsso_role_name = Developer\n\
         [profile norole]\nsso_session = corp\nsso_account_id = {ACCOUNT}\n\
         [profile unequal]\nsso_session = corp\nsso_region = us-east-2\nsso_account_id = {ACCOUNT}\nsso_role_name = Developer\n\
         [profile equal]\nsso_session = corp\nsso_region = eu-west-1\nsso_account_id = {ACCOUNT}\nsso_role_name = Developer\n\
         [profile denied]\nsso_session = corp\nsso_account_id = {ACCOUNT}\nsso_role_name = Nobody\n\
         [profile tokenless]\n{role}web_identity_token_file = /nonexistent\n\
         [profile upper]\nAWS_ACCESS_KEY_ID = AKIAGENERATED0000000\nAws_Secret_Access_Key = x\n"
    );
    made.config += &special;
    for name in [
        "self",
        "selfish",
        "tick",
        "over-self",
        "lost",
        "two",
        "none",
        "odd",
        "plain",
        "over-plain",
        "half",
        "with space",
        "lies",
        "fails",
        "gone",
        "nosession",
        "norole",
        "unequal",
        "equal",
        "denied",
        "tokenless",
        "nobody",
    ] {
        made.case(name, Some(name), &[]);
    }
    made.case("plain in a container", Some("plain"), &ecs);
    made.case("default in a container", None, &ecs);
    made.case("default with keys", None, &environment_keys);
    made.case("named with keys", Some("equal"), &environment_keys);
    made.case("default with half keys", None, &environment_keys[..1]);
    made.case("default with web identity", None, &web);
    made.case("role before web identity", None, &[&web[..], &[("AWS_PROFILE", "over-self")]].concat());
    made.case(
        "web identity before keys of a profile",
        None,
        &[&web[..], &[("AWS_PROFILE", "with space")]].concat(),
    );
    made.case("half a web identity", None, &web[..1]);
    made.case("old name of AWS_PROFILE", None, &[("AWS_DEFAULT_PROFILE", "equal")]);
    made.case("profile that is not there", None, &[("AWS_PROFILE", "nobody")]);
    made.case(
        "container that is far away",
        None,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/x")],
    );
    made
}

/// What `broker credentials` says: a key id or `! error`.
fn by_broker(world: &World, case: &Case) -> String {
    let mut arguments = vec!["credentials", "--batch"];
    if let Some(profile) = &case.profile {
        arguments.extend(["-p", profile]);
    }
    let mut command = world.broker(&arguments);
    command.env("AWS_DEFAULT_REGION", REGION).env("AWS_EC2_METADATA_SERVICE_ENDPOINT", world.aws.endpoint());
    command.envs(&case.environment);
    answered(&world.laptop.run(command))
}

fn answered(output: &Output) -> String {
    if output.code == Some(0) {
        let answer: Value = serde_json::from_str(&output.stdout()).unwrap();
        assert_eq!(answer["Version"], 1);
        answer["AccessKeyId"].as_str().unwrap().to_owned()
    } else {
        assert_eq!(output.stdout(), "", "{output}");
        let said = output.stderr();
        assert!(said.contains("broker: error: "), "{output}");
        format!("! {}", said.trim())
    }
}

#[test]
fn botocore_and_broker_find_the_same_identity_in_generated_configurations() {
    if sandbox::isolated!() {
        return;
    }
    let world = World::new();
    world.aws.derive_keys();
    let token_file = world.laptop.write("token", "generated-web-token", 0o600);
    let made = generate(token_file.display().to_string(), &world.aws.endpoint());
    for (id, secret, token) in &made.keys {
        world.aws.add_keys(id, secret, token.as_deref(), ACCOUNT);
    }
    let config = world.laptop.read(".aws/config") + &made.config;
    world.laptop.write(".aws/config", config, 0o600);
    world.laptop.write(".aws/credentials", &made.credentials, 0o600);
    world.aws.seed_token(world.laptop.path(), &world.aws.start_url());
    world.own_aws_files();

    let cases: Vec<Value> = made
        .cases
        .iter()
        .map(|case| json!({"name": case.name, "profile": case.profile, "environment": case.environment}))
        .collect();
    let mut python = world.laptop.command(sdk("python/bin/python"));
    python.args(["-c", BOTOCORE]).envs(world.aws.environment()).env("AWS_DEFAULT_REGION", REGION);
    python.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", world.aws.endpoint());
    let output = run_within(python, Value::from(cases).to_string().as_bytes(), BOTOCORE_PATIENCE).success();
    let expected: BTreeMap<String, String> = serde_json::from_str(&output.stdout()).unwrap();
    assert_eq!(expected.len(), made.cases.len());

    let next = AtomicUsize::new(0);
    let found: BTreeMap<&str, String> = std::thread::scope(|scope| {
        let work = || {
            let mut found = Vec::new();
            while let Some(case) = made.cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.push((case.name.as_str(), by_broker(&world, case)));
            }
            found
        };
        let threads = [(); 2].map(|()| scope.spawn(work));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    let (mut same, mut refused, mut long_lived, mut different) = (0, 0, 0, Vec::new());
    for case in &made.cases {
        let (theirs, ours) = (&expected[&case.name], &found[case.name.as_str()]);
        match (theirs.starts_with('!'), ours.starts_with('!')) {
            (true, true) => refused += 1,
            (false, false) if theirs.starts_with("AKIA") => {
                // Long-lived keys stay here: what leaves is a session of the same keys.
                let way = world.aws.way_to(ours);
                assert!(ours.starts_with("ASIA"), "{}: {ours}", case.name);
                if way.as_deref() == Some(theirs) {
                    long_lived += 1;
                } else {
                    different.push(format!("{}: botocore {theirs}, broker {ours} by {way:?}", case.name));
                }
            }
            (false, false) if theirs == ours => same += 1,
            _ => different.push(format!("{}: botocore {theirs}, broker {ours}", case.name)),
        }
    }
    println!(
        "{same} the same, {long_lived} the same by a session, {refused} refused by both, {} different",
        different.len()
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(same + long_lived >= 200 && refused >= 15 && long_lived >= 10, "the cases prove too little");
    world.assert_no_secret();
}
