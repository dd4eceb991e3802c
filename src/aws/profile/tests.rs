use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

const CONFIG: &str = "
# a comment
[default]
region = eu-west-1
[sso-session corp]
sso_start_url = https://corp.awsapps.com/start#/
sso_region = us-east-1
sso_registration_scopes = sso:account:access, codewhisperer:completions
[profile dev]
sso_session = corp
sso_account_id = 111122223333
sso_role_name = Developer
region = eu-central-1
output = json
s3 =
  max_concurrent_requests = 20
[profile legacy]
sso_start_url = https://d-abc123.awsapps.com/start
sso_region = us-west-2
sso_account_id = 444455556666
sso_role_name = ReadOnly
[profile equal]
sso_session = corp
sso_start_url = https://corp.awsapps.com/start#/
sso_region = us-east-1
sso_account_id = 111122223333
sso_role_name = Developer
[profile unequal]
sso_session = corp
sso_region = us-east-2
sso_account_id = 111122223333
sso_role_name = Developer
[profile chained]
role_arn = arn:aws:iam::111122223333:role/x
source_profile = dev
[profile process]
credential_process = /bin/true
[profile lost]
sso_session = crop
sso_account_id = 111122223333
sso_role_name = Developer
[profile norole]
sso_session = corp
sso_account_id = 111122223333
[profile badaccount]
sso_session = corp
sso_account_id = 1111
sso_role_name = Developer
";

fn files() -> ConfigFiles {
    ConfigFiles { config: "/h/.aws/config".into(), credentials: "/h/.aws/credentials".into() }
}

fn profiles(config: &str, credentials: &str) -> Profiles {
    Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes(), Ambient::default()).unwrap()
}

fn resolve(name: &str) -> Result<Profile, Error> {
    profiles(CONFIG, "[keys]\naws_access_key_id = AKIA\n").resolve(&name.parse().unwrap())
}

fn complaint(name: &str) -> (String, Option<String>) {
    let error = resolve(name).unwrap_err();
    (error.to_string(), error.hint())
}

#[test]
fn a_session_profile_is_followed_to_its_session() {
    let profile = resolve("dev").unwrap();
    let Source::Sso(SsoRole { session, role }) = &profile.source else { panic!("{profile:?}") };
    assert_eq!(session.name, SessionKey::Session("corp".into()));
    assert_eq!(session.start_url.as_str(), "https://corp.awsapps.com/start#/");
    assert_eq!(session.region.as_str(), "us-east-1");
    assert_eq!(session.scopes, ["sso:account:access", "codewhisperer:completions"]);
    assert_eq!(role.to_string(), "111122223333/Developer");
    assert_eq!(profile.region.unwrap().as_str(), "eu-central-1");
    assert_eq!(profile.output.as_deref(), Some("json"));
    assert_eq!(session.cache_key(), "corp");
}

#[test]
fn a_legacy_profile_is_its_own_session() {
    let Source::Sso(SsoRole { session, .. }) = resolve("legacy").unwrap().source else { panic!() };
    assert_eq!(session.name, SessionKey::StartUrl);
    assert_eq!(session.cache_key(), "https://d-abc123.awsapps.com/start");
    assert!(session.scopes.is_empty());
}

#[test]
fn session_keys_may_be_repeated_but_not_contradicted() {
    assert_eq!(resolve("equal").unwrap().source, resolve("dev").unwrap().source);
    let (text, hint) = complaint("unequal");
    assert_eq!(
        text,
        "`sso_region` of `[profile unequal]` in `/h/.aws/config` is not that of `[sso-session corp]`"
    );
    assert_eq!(hint.unwrap(), "remove `sso_region` from the profile; `[sso-session corp]` has it");
}

fn ambient(variables: &'static [(&'static str, &'static str)]) -> Ambient {
    let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    Ambient::read(get, "/h".as_ref())
}

fn with(config: &str, credentials: &str, variables: &'static [(&'static str, &'static str)]) -> Profiles {
    Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes(), ambient(variables)).unwrap()
}

/// A source in a few words: `role<from`.
fn words(source: &Source) -> String {
    match source {
        Source::Sso(sso) => format!("sso {}", sso.role),
        Source::Keys(keys) => {
            format!("keys {}{}", keys.access_key_id, keys.mfa_serial.as_ref().map_or("", |_| " with code"))
        }
        Source::Process(process) => format!("process {}", process.words.join("|")),
        Source::WebIdentity(web) => format!("web {} by {}", web.role, web.token),
        Source::Login(login) => format!("login {}", login.name),
        Source::Container(container) => format!("container {}", container.url),
        Source::Instance(instance) => format!("instance {}", instance.endpoint),
        Source::Assumed(assumed) => {
            let name = assumed.role.arn.as_str().rsplit('/').next().unwrap();
            format!(
                "{name}{}<{}",
                assumed.role.mfa_serial.as_ref().map_or("", |_| " with code"),
                words(&assumed.from)
            )
        }
    }
}

fn way(profiles: &Profiles, name: &str) -> String {
    let name = name.parse().unwrap();
    profiles.resolve(&name).map_or_else(|e| format!("! {e}"), |profile| words(&profile.source))
}

#[test]
fn what_a_profile_says_first_counts_as_for_the_aws_cli() {
    let role = "role_arn=arn:aws:iam::111122223333:role/r\n";
    let keys = "aws_access_key_id=AKIACONFIG\naws_secret_access_key=s\n";
    let sso = "sso_start_url=https://x\nsso_region=us-east-1\nsso_account_id=111122223333\nsso_role_name=R\n";
    let all = format!("{keys}credential_process=/bin/p 'a b'\nlogin_session=arn:l\n{sso}");
    let config = format!(
        "[profile web]\n{role}web_identity_token_file=/t\nsource_profile=nobody\n{all}\n\
         [profile sso]\n{all}[profile file]\n{}[profile login]\nlogin_session=arn:l\ncredential_process=/bin/p\n{keys}\
         [profile process]\ncredential_process=/bin/p 'a b'\n{keys}[profile keys]\n{keys}\
         [profile half]\naws_access_key_id=AKIA\n[profile session]\nsso_session=corp\n{keys}\
         [profile bad]\ncredential_process=/bin/p 'a\n",
        "login_session=arn:l\n"
    );
    let all = with(&config, "[file]\naws_access_key_id=AKIAFILE\naws_secret_access_key=s\n", &[]);
    for (name, expected) in [
        ("web", "web arn:aws:iam::111122223333:role/r by the token in `/t`"),
        ("sso", "sso 111122223333/R"),
        ("file", "keys AKIAFILE"),
        ("login", "login arn:l"),
        ("process", "process /bin/p|a b"),
        ("keys", "keys AKIACONFIG"),
        ("session", "keys AKIACONFIG"),
        ("half", "! `[profile half]` in `/h/.aws/config` has no `aws_secret_access_key`"),
        ("bad", "! `credential_process` of `[profile bad]` in `/h/.aws/config` cannot be used"),
    ] {
        assert_eq!(way(&all, name), expected, "{name}");
    }
}

#[test]
fn roles_are_followed_to_their_start() {
    let role = |name: &str, more: &str| {
        format!("[profile {name}]\nrole_arn=arn:aws:iam::111122223333:role/path/{name}\n{more}\n")
    };
    let keys = "aws_access_key_id=AKIAUSER\naws_secret_access_key=s\n";
    let mut config = [
        format!("[profile user]\n{keys}"),
        role("one", "source_profile=user"),
        role("two", "source_profile=one\nduration_seconds=900\nexternal_id=a:b/c\nrole_session_name=me@x"),
        role("self", &format!("source_profile=self\n{keys}")),
        role("selfish", "source_profile=selfish"),
        role("tick", "source_profile=tock"),
        role("tock", "source_profile=tick"),
        role("mfa", "source_profile=user\nmfa_serial=arn:aws:iam::111122223333:mfa/ada"),
        role("mfa2", "source_profile=one\nmfa_serial=arn:aws:iam::111122223333:mfa/ada"),
        // With keys of its own, the role of a source does not count.
        role("both", &format!("source_profile=nobody\n{keys}")),
        role("overboth", "source_profile=both"),
        role("env", "credential_source=Environment"),
        role("ecs", "credential_source=EcsContainer"),
        role("ec2", "credential_source=Ec2InstanceMetadata"),
        role("odd", "credential_source=ec2instancemetadata"),
        role("twice", "source_profile=user\ncredential_source=Environment"),
        role("none", ""),
        role("lost", "source_profile=usr"),
        role("long", "source_profile=user\nduration_seconds=12h"),
        role("name", "source_profile=user\nrole_session_name=a b"),
        "[profile notarole]\nrole_arn=arn:aws:iam::1:role/x\nsource_profile=user\n".to_owned(),
    ]
    .concat();
    for deep in 0..150 {
        config += &role(&format!("deep{deep}"), &format!("source_profile=deep{}", deep + 1));
    }
    let all = with(
        &config,
        "",
        &[
            ("AWS_ACCESS_KEY_ID", "AKIAENV"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x"),
        ],
    );
    for (name, expected) in [
        ("one", "one<keys AKIAUSER"),
        ("two", "two<one<keys AKIAUSER"),
        ("self", "self<keys AKIAUSER"),
        ("mfa", "mfa<keys AKIAUSER with code"),
        ("mfa2", "mfa2 with code<one<keys AKIAUSER"),
        ("overboth", "overboth<keys AKIAUSER"),
        ("env", "env<keys AKIAENV"),
        ("ecs", "ecs<container http://169.254.170.2/v2/x"),
        ("ec2", "ec2<instance http://169.254.169.254"),
        (
            "odd",
            "! `credential_source` of `[profile odd]` in `/h/.aws/config` is `ec2instancemetadata`, which is no source",
        ),
        (
            "twice",
            "! `[profile twice]` in `/h/.aws/config` has both `source_profile` and `credential_source`",
        ),
        ("none", "! `[profile none]` in `/h/.aws/config` has no `source_profile`"),
        (
            "lost",
            "! `source_profile` of `[profile lost]` in `/h/.aws/config` is `usr`, and there is no such profile",
        ),
        (
            "selfish",
            "! `source_profile` of `[profile selfish]` in `/h/.aws/config` leads back to `selfish`: selfish → selfish",
        ),
        (
            "tick",
            "! `source_profile` of `[profile tock]` in `/h/.aws/config` leads back to `tick`: tick → tock → tick",
        ),
        ("long", "! `duration_seconds` of `[profile long]` in `/h/.aws/config` cannot be used"),
        ("name", "! `role_session_name` of `[profile name]` in `/h/.aws/config` cannot be used"),
        ("notarole", "! `role_arn` of `[profile notarole]` in `/h/.aws/config` cannot be used"),
        ("deep0", "! `source_profile` of `[profile deep99]` in `/h/.aws/config` is the 100th in one chain"),
    ] {
        assert_eq!(way(&all, name), expected, "{name}");
    }
    let Source::Assumed(two) = all.resolve(&"two".parse().unwrap()).unwrap().source else { panic!() };
    assert_eq!((two.role.duration, two.role.external_id.as_deref()), (Some(900), Some("a:b/c")));
    assert_eq!(two.role.session_name.as_deref(), Some("me@x"));
    assert!(two.from.is_role(), "so it lasts an hour at most");
}

#[test]
fn the_environment_counts_only_where_nobody_names_a_profile() {
    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKIAENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
    const WEB: [(&str, &str); 2] =
        [("AWS_WEB_IDENTITY_TOKEN_FILE", "~/t"), ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/w")];
    let config = "[default]\ncredential_process=/bin/p\n[profile role]\nrole_arn=arn:aws:iam::111122223333:role/r\nsource_profile=default\n";
    let unnamed = |variables, name: &str| {
        let all = with(config, "", variables);
        all.resolve_unnamed(&name.parse().unwrap()).map_or_else(|e| format!("! {e}"), |p| words(&p.source))
    };
    assert_eq!(way(&with(config, "", &KEYS), "default"), "process /bin/p");
    assert_eq!(unnamed(&KEYS, "default"), "keys AKIAENV");
    assert_eq!(way(&with(config, "", &WEB), "default"), "process /bin/p");
    assert_eq!(unnamed(&WEB, "default"), "web arn:aws:iam::111122223333:role/w by the token in `/h/t`");
    assert_eq!(unnamed(&WEB, "role"), "r<process /bin/p");
    assert_eq!(
        unnamed(&[("AWS_ACCESS_KEY_ID", "A")], "default"),
        "! `AWS_SECRET_ACCESS_KEY` is not set, but `AWS_ACCESS_KEY_ID` is"
    );
    assert_eq!(
        unnamed(&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")], "default"),
        "! `AWS_ROLE_ARN` is not set, but there is the token in `/t`"
    );
    // Tokens of CI systems count where a role is named for them, and only there.
    const CI: [(&str, &str); 3] = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://x"),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "canary"),
        ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/w"),
    ];
    assert_eq!(
        unnamed(&CI, "default"),
        "web arn:aws:iam::111122223333:role/w by the token of GitHub Actions"
    );
    assert_eq!(unnamed(&[CI[0], CI[1]], "default"), "process /bin/p");
    // A container's credentials are the last resort, also of a profile that was named.
    const CONTAINER: [(&str, &str); 1] = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/x")];
    let all = with("[profile plain]\nregion=eu-west-1\n", "", &CONTAINER);
    assert_eq!(way(&all, "plain"), "container http://127.0.0.1:9/x");
    let all = with(
        "[profile plain]\nregion=eu-west-1\n",
        "",
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example/")],
    );
    assert_eq!(
        way(&all, "plain"),
        "! `AWS_CONTAINER_CREDENTIALS_FULL_URI` is `http://evil.example/`, which is plain http to another machine"
    );
    for (name, value) in CI {
        assert!(!format!("{:?}", with(config, "", &CI)).contains("canary"), "{name} {value}");
    }
}

#[test]
fn plain_http_for_a_containers_token_stays_near() {
    for good in [
        "http://127.0.0.1:1/x",
        "http://[::1]/",
        "http://localhost:4144/",
        "http://169.254.170.23/v1",
        "http://[fd00:ec2::23]/v1",
        "https://x.example/",
    ] {
        assert_eq!(container_url(good), Ok(()), "{good}");
    }
    for bad in [
        "http://169.254.170.3/",
        "http://localhost.example/",
        "http://127.0.0.1@evil.example/",
        "ftp://127.0.0.1/",
        "http://localhost@evil/",
        "http://169.254.170.2@evil/",
    ] {
        assert!(container_url(bad).is_err(), "{bad}");
    }
}

#[test]
fn endpoints_are_for_one_service_each() {
    let sso = "sso_start_url=https://x\nsso_region=us-east-1\nsso_account_id=111122223333\nsso_role_name=R\n";
    let config = format!(
        "[profile a]\n{sso}services=local\nendpoint_url=http://127.0.0.1:1\n[profile b]\n{sso}services=local\n\
         ignore_configured_endpoint_urls=true\n[profile c]\n{sso}services=bad\n\
         [services local]\nsts =\n  endpoint_url = https://sts.local/\ns3 =\n  endpoint_url = http://s3.local\n\
         [services bad]\nsso =\n  endpoint_url = http://sso.local\n"
    );
    let all = with(&config, "", &[]);
    let urls = |name: &str| all.resolve(&name.parse().unwrap()).map(|profile| profile.urls);
    assert_eq!(
        urls("a").unwrap(),
        ServiceUrls { sts: Some("https://sts.local".parse().unwrap()), ..ServiceUrls::default() }
    );
    assert_eq!(urls("b").unwrap(), ServiceUrls::default());
    assert_eq!(
        urls("c").unwrap_err().to_string(),
        "`endpoint_url` of `[services bad]` in `/h/.aws/config` cannot be used"
    );
}

#[test]
fn a_mistyped_name_gets_the_near_ones() {
    let (text, hint) = complaint("legasy");
    assert_eq!(text, "there is no profile `legasy` in `/h/.aws/config`");
    assert_eq!(hint.unwrap(), "did you mean `legacy`?");
    assert_eq!(complaint("dve").1.unwrap(), "did you mean `dev`?");
    let (text, hint) = complaint("lost");
    assert_eq!(text, "there is no `[sso-session crop]` in `/h/.aws/config`, but profile `lost` uses it");
    assert_eq!(hint.unwrap(), "did you mean `corp`?");
    assert!(complaint("zzzzzz").1.unwrap().starts_with("there are: badaccount, chained, "));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    assert_eq!(complaint("norole").0, "`[profile norole]` in `/h/.aws/config` has no `sso_role_name`");
    assert_eq!(
        complaint("badaccount").0,
        "`sso_account_id` of `[profile badaccount]` in `/h/.aws/config` cannot be used"
    );
    let error =
        Profiles::parse(&files(), b"[profile x]\nregion eu-west-1\n", b"", Ambient::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not parse `/h/.aws/config`: line 2: Expected an '=' sign defining a property"
    );
    assert!(Profiles::parse(&files(), b"\xff\xfe", b"", Ambient::default()).is_err());
    let plain = CONFIG.replace("https://corp", "http://corp");
    assert!(matches!(
        profiles(&plain, "").resolve(&"dev".parse().unwrap()),
        Err(Error::Invalid { key: "sso_start_url", .. })
    ));
}

#[test]
fn a_name_may_be_whatever_the_aws_cli_takes() {
    let rest = "sso_account_id=111122223333\nsso_role_name=R\n";
    let config = format!(
        "[sso-session 'my corp']\nsso_start_url=https://x\nsso_region=us-east-1\n\
         [profile 'team a'] ; ours\nsso_session=my corp\n{rest}[profile über]\nsso_session=my corp\n{rest}\
         [profile \"a%b\"]\nsso_session=my corp\n{rest}[profile two words]\nsso_session=my corp\n{rest}"
    );
    let profiles = profiles(&config, "[old keys]\naws_access_key_id=AKIA\n");
    let names: Vec<_> = profiles.names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a%b", "old keys", "team a", "über"]);
    for name in ["team a", "über", "a%b"] {
        let Source::Sso(role) = profiles.resolve(&name.parse().unwrap()).unwrap().source else { panic!() };
        assert_eq!(role.session.cache_key(), "my corp");
    }
    assert!(matches!(profiles.resolve(&"old keys".parse().unwrap()), Err(Error::Missing { .. })));
    assert_eq!(profiles.session_names(), ["my corp"]);
}

#[test]
fn the_default_choice_is_a_usable_default_or_the_only_profile() {
    assert_eq!(profiles(CONFIG, "").default_choice(), None, "default has no source");
    let usable = format!(
        "{CONFIG}\n[profile default]\nsso_session=corp\nsso_account_id=111122223333\nsso_role_name=R\n"
    );
    assert_eq!(profiles(&usable, "").default_choice().unwrap().as_str(), "default");
    let one = "[profile one]\nsso_start_url=https://x\nsso_region=us-east-1\nsso_account_id=111122223333\nsso_role_name=R\n";
    assert_eq!(profiles(one, "").default_choice().unwrap().as_str(), "one");
    assert_eq!(profiles("", "").default_choice(), None);
}

#[test]
fn files_are_read_from_disk_and_may_be_absent() {
    let home = tempfile::tempdir().unwrap();
    let files =
        ConfigFiles { config: home.path().join("config"), credentials: home.path().join("credentials") };
    assert!(Profiles::load(&files, Ambient::default()).unwrap().names().is_empty());
    private_fs::write(&files.config, CONFIG.as_bytes()).unwrap();
    private_fs::write(&files.credentials, b"[keys]\naws_access_key_id=AKIA\n").unwrap();
    std::fs::set_permissions(&files.credentials, std::fs::Permissions::from_mode(0o644)).unwrap();
    let profiles = Profiles::load(&files, Ambient::default()).unwrap();
    let names: Vec<_> = profiles.names().iter().map(ToString::to_string).collect();
    assert!(names.contains(&"dev".to_owned()) && names.contains(&"keys".to_owned()), "{names:?}");
    assert_eq!(profiles.session_names(), ["corp"]);
    std::fs::set_permissions(&files.config, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(
        Profiles::load(&files, Ambient::default()),
        Err(Error::File(private_fs::Error::Exposed { .. }))
    ));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(config: String, credentials: String) {
        if let Ok(profiles) = Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes(), Ambient::default()) {
            for name in profiles.names() {
                drop(profiles.resolve(&name));
            }
        }
    }

    #[test]
    fn no_line_of_a_profile_makes_it_panic(lines in proptest::collection::vec("[a-z_\\[\\]= #;\t]{0,24}", 0..12)) {
        let text = format!("[profile x]\n{}", lines.join("\n"));
        if let Ok(profiles) = Profiles::parse(&files(), text.as_bytes(), b"", Ambient::default()) {
            drop(profiles.resolve(&"x".parse().unwrap()));
        }
    }
}
