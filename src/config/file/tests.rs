//! What the file may hold, and what is said of what it may not.

use proptest::prelude::*;

use super::*;

fn parse(text: impl AsRef<[u8]>) -> Result<File, Error> {
    File::parse(Path::new("/c.toml"), text.as_ref(), Path::new("/home/ada"))
}

fn names(file: &File, typed: &str) -> Vec<String> {
    file.sections(typed).map(|section| section.name.clone()).collect()
}

#[test]
fn everything_in_it_keeps_its_place_and_its_order() {
    let file = parse(
        "[hosts.\"z* !zz\"]\nport = 0x16\nidentity = [\"~/.ssh/a\", \"~b\"]\n\n[hosts.b]\nconfirm = true\n\
         [lists]\nweb = [\"one\", \"ada@two:2222\"]\n[defaults]\nallow-uid = [0, \"1\"]\nprofile = '''dev'''\n",
    )
    .unwrap();
    let setting = |key: &str, line, value| Setting { key: key.to_owned(), line, value };
    assert_eq!(
        file.hosts[0].section.settings,
        [
            setting("port", 2, Value::Number(22)),
            setting("identity", 3, Value::Several(vec!["/home/ada/.ssh/a".into(), "~b".into()])),
        ]
    );
    assert_eq!(file.hosts[1].section.settings, [setting("confirm", 6, Value::Truth(true))]);
    assert_eq!(
        file.defaults.settings,
        [
            setting("allow-uid", 10, Value::Several(vec!["0".into(), "1".into()])),
            setting("profile", 11, Value::Text("dev".into())),
        ]
    );
    assert_eq!(file.list("web").unwrap(), ["one", "ada@two:2222"]);
    assert_eq!(file.named_hosts().collect::<Vec<_>>(), ["b"]);
    assert!(parse("").unwrap().is_empty() && parse("# nothing\n[defaults]\n").unwrap().is_empty());
}

#[test]
fn sections_are_for_hosts_as_they_are_typed() {
    let file =
        parse("[hosts.\"web*\"]\n[hosts.\"a b !c\"]\n[hosts.\"*\"]\n[hosts.\"2001:db8::1\"]\n").unwrap();
    let (web, ab, all) = ("[hosts.\"web*\"]", "[hosts.\"a b !c\"]", "[hosts.\"*\"]");
    assert_eq!(names(&file, "ada@WEB1:2222"), [web, all]);
    assert_eq!(names(&file, "ssh://ada@b"), [ab, all]);
    assert_eq!(names(&file, "c"), [all]);
    assert_eq!(names(&file, "2001:db8::1"), [all, "[hosts.\"2001:db8::1\"]"]);
    assert_eq!(names(&file, "a@b@"), Vec::<String>::new());
}

#[test]
fn a_pin_holds_for_the_typed_name_and_for_where_it_leads() {
    let file = parse(
        "[hosts.\"prod*\"]\nonly-profiles = [\"deploy\", \"*-ro\"]\n[hosts.dev]\nonly-profiles = []\n\
         [hosts.\"*\"]\nonly-profiles = \"sand?\"\n",
    )
    .unwrap();
    let permits = |typed: &str, leads_to: &str, profile: &str| {
        file.pin(typed, leads_to)
            .permits(&profile.parse().unwrap(), typed)
            .map_err(|refused| refused.to_string())
    };
    assert_eq!(permits("prod1", "prod1", "deploy"), Ok(()));
    assert_eq!(permits("prod1", "prod1.example", "team-ro"), Ok(()));
    let refused = permits("prod1", "prod1", "admin").unwrap_err();
    assert_eq!(
        refused,
        "profile `admin` is not for prod1: `only-profiles` of [hosts.\"prod*\"] in `/c.toml` line 2 permits deploy, *-ro"
    );
    // An alias is no way around: both names have to permit it.
    assert!(permits("x", "prod1", "deploy").unwrap_err().contains("line 6"));
    assert!(permits("x", "prod1", "sandy").unwrap_err().contains("line 2"));
    assert_eq!(permits("x", "X", "sandy"), Ok(()));
    assert!(permits("dev", "dev", "sandy").unwrap_err().ends_with("line 4 permits none"));
    assert_eq!(
        parse("[hosts.a]\nport = 1\n").unwrap().pin("a", "a").permits(&"x".parse().unwrap(), "a").ok(),
        Some(())
    );
    assert!(
        file.pin("prod1", "prod1").permits(&"Deploy".parse().unwrap(), "prod1").is_err(),
        "names are exact"
    );
}

#[test]
fn what_it_may_not_hold_is_told_with_its_line() {
    for (text, expected) in [
        ("[defaults]\nx = \n", "line 2: this is not TOML: "),
        ("a = 1\na = 2\n", "line 2: this is not TOML: duplicate key"),
        ("[default]\n", "line 1: there is no `default`"),
        ("\nprofile = 'x'\n", "line 2: there is no `profile`"),
        ("hosts = 1\n", "line 1: `hosts` is no table"),
        ("[hosts]\nweb = 'x'\n", "line 2: `web` is no table"),
        ("[hosts.web1.example]\nport = 1\n", "line 1: `example` is a table, and here are options only"),
        ("[hosts.\"!a\"]\n", "line 1: this section is for no host"),
        ("[hosts.\" \"]\n", "line 1: this section is for no host"),
        ("[hosts.\"ada@web\"]\n", "line 1: a section of hosts is named by names alone"),
        ("[hosts.\"web:22\"]\n", "line 1: a section of hosts is named by names alone"),
        ("[defaults]\nonly-profiles = ['x']\n", "line 2: `only-profiles` is for the hosts of a section"),
        ("[hosts.a]\n\nonly-profiles = true\n", "line 3: `only-profiles` takes names of profiles"),
        ("[defaults]\nport = 1.5\n", "line 2: `port` is a float"),
        ("[defaults]\nmax-lifetime = 08:00:00\n", "line 2: `max-lifetime` is a datetime"),
        ("[defaults]\nport = 99999999999999999999\n", "line 2: `port` is too large a number"),
        ("[defaults]\nprofile = [\n'x',\ntrue]\n", "line 4: in `profile` there is a boolean"),
        ("[defaults]\nprofile = [['x']]\n", "line 2: in `profile` there is a array"),
        ("[lists]\nweb = 'x'\n", "line 2: the list `web` is no array"),
        ("[lists]\nweb = []\n", "line 2: the list `web` is empty"),
        ("[lists]\n\"a b\" = ['x']\n", "line 2: `a b` cannot be typed"),
        ("[lists]\nweb = ['-oProxyCommand=x']\n", "line 2: in the list `web`: "),
        ("[lists]\nall = ['@web']\n", "line 2: in the list `all`: "),
    ] {
        let error = parse(text).expect_err(text);
        let said = error.to_string();
        assert!(said.starts_with("`/c.toml` ") && said.contains(expected), "{text}\n{said}");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{said}");
    }
    let latin = parse(b"[defaults]\n# f\xfcr uns\n").unwrap_err().to_string();
    assert_eq!(latin, "`/c.toml` line 2: there is a byte that is no UTF-8");
    let deep = format!("[defaults]\na = {}", "[".repeat(100_000));
    assert!(parse(deep).unwrap_err().to_string().contains("this is not TOML"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(bytes));
    }

    #[test]
    fn anything_like_a_file_is_read_without_a_panic(text in "(\\[(hosts|lists|defaults)?(\\.\"?[a-z*!@ ]{0,4}\"?)?\\]\n|[a-z\"-]{1,14} ?= ?([0-9a-fx.]{1,4}|\"~?/?[a-z@]{0,4}\"|\\[[0-9\", ]{0,8}\\]|true|\\{[a-z]=1\\})\n){0,6}") {
        if let Ok(file) = parse(text) {
            for host in ["a", "ada@b:1", "@", ""] {
                assert!(file.sections(host).count() <= file.hosts.len());
            }
        }
    }
}
