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
    Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes()).unwrap()
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
    let Source::Sso(SsoRole { session, role }) = &profile.source;
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
    let Source::Sso(SsoRole { session, .. }) = resolve("legacy").unwrap().source;
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

#[test]
fn other_kinds_of_profiles_are_named_by_their_key() {
    assert_eq!(
        complaint("chained").0,
        "profile `chained` uses `role_arn` (in `/h/.aws/config`), which this version does not support yet"
    );
    assert!(complaint("process").0.contains("`credential_process`"));
    assert!(complaint("keys").0.contains("`aws_access_key_id` (in `/h/.aws/credentials`)"));
    assert!(matches!(resolve("default"), Err(Error::NoSource { .. })));
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
    let error = Profiles::parse(&files(), b"[profile x]\nregion eu-west-1\n", b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not parse `/h/.aws/config`: line 2: Expected an '=' sign defining a property"
    );
    assert!(Profiles::parse(&files(), b"\xff\xfe", b"").is_err());
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
        let Source::Sso(role) = profiles.resolve(&name.parse().unwrap()).unwrap().source;
        assert_eq!(role.session.cache_key(), "my corp");
    }
    assert!(matches!(profiles.resolve(&"old keys".parse().unwrap()), Err(Error::Unsupported { .. })));
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
    assert!(Profiles::load(&files).unwrap().names().is_empty());
    private_fs::write(&files.config, CONFIG.as_bytes()).unwrap();
    private_fs::write(&files.credentials, b"[keys]\naws_access_key_id=AKIA\n").unwrap();
    std::fs::set_permissions(&files.credentials, std::fs::Permissions::from_mode(0o644)).unwrap();
    let profiles = Profiles::load(&files).unwrap();
    let names: Vec<_> = profiles.names().iter().map(ToString::to_string).collect();
    assert!(names.contains(&"dev".to_owned()) && names.contains(&"keys".to_owned()), "{names:?}");
    assert_eq!(profiles.session_names(), ["corp"]);
    std::fs::set_permissions(&files.config, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(Profiles::load(&files), Err(Error::File(private_fs::Error::Exposed { .. }))));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(config: String, credentials: String) {
        if let Ok(profiles) = Profiles::parse(&files(), config.as_bytes(), credentials.as_bytes()) {
            for name in profiles.names() {
                drop(profiles.resolve(&name));
            }
        }
    }

    #[test]
    fn no_line_of_a_profile_makes_it_panic(lines in proptest::collection::vec("[a-z_\\[\\]= #;\t]{0,24}", 0..12)) {
        let text = format!("[profile x]\n{}", lines.join("\n"));
        if let Ok(profiles) = Profiles::parse(&files(), text.as_bytes(), b"") {
            drop(profiles.resolve(&"x".parse().unwrap()));
        }
    }
}
