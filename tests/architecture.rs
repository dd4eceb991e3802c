//! Holds the table of who may know whom (`src/lib.rs`), with a reason for each rule.

#![allow(clippy::unwrap_used, reason = "a check of our own text: a panic is its report")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What every room may use: leaves that know no room.
const LEAVES: &[&str] = &[
    "audit",
    "backoff",
    "caller",
    "causes",
    "clock",
    "human",
    "names",
    "printable",
    "private_fs",
    "random",
    "tasks",
    "tls",
];

/// room → the rooms that it may name, and why not more.
const MAY_KNOW: &[(&str, &[&str], &str)] = &[
    ("main", &[], "it only calls the library"),
    ("lib", &["cli"], "it only lists the rooms"),
    (
        "cli",
        &["config", "tunnel", "aws", "creds", "remote", "ssh", "serve", "control"],
        "it is on top, so it may name everything below",
    ),
    (
        "config",
        &["tunnel", "aws", "creds", "remote", "ssh"],
        "it builds the plan out of their types and runs nothing",
    ),
    (
        "tunnel",
        &["remote", "ssh", "serve", "creds", "control"],
        "it owns one host's life; where credentials come from is behind a trait, so it never names aws",
    ),
    ("remote", &["ssh"], "it speaks to the host through a channel; what is served there is not its business"),
    ("ssh", &[], "a client connection knows nothing of AWS or HTTP"),
    ("serve", &["creds"], "HTTP over any byte stream: it must not know that SSH carries it"),
    ("creds", &[], "policy and freshness must be readable without AWS, HTTP or SSH"),
    ("aws", &["creds"], "it implements where credentials come from, and knows no listener"),
    ("control", &["creds"], "a local socket over the same grants"),
];

/// crate (as named in code) → rooms that may name it, and why.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("russh", &["ssh"], "its traps are handled in one room"),
    ("aws_config", &["aws"], "AWS's types stay behind our own"),
    ("aws_runtime", &["aws"], "AWS's types stay behind our own"),
    ("aws_types", &["aws"], "AWS's types stay behind our own"),
    ("aws_sdk_sso", &["aws"], "AWS's types stay behind our own"),
    ("aws_sdk_ssooidc", &["aws"], "AWS's types stay behind our own"),
    ("aws_sdk_sts", &["aws"], "AWS's types stay behind our own"),
    ("aws_smithy_http_client", &["aws"], "AWS's types stay behind our own"),
    ("aws_smithy_runtime_api", &["aws"], "AWS's types stay behind our own"),
    ("aws_smithy_types", &["aws"], "AWS's types stay behind our own"),
    ("libgssapi", &["ssh"], "tickets are for logging in to hosts"),
    ("dbus_secret_service", &["aws"], "only SSO tokens go into a keyring"),
    ("hyper", &["serve", "aws/login"], "only the credential endpoint and the login callback speak HTTP"),
    ("hyper_util", &["serve", "aws/login"], "only the credential endpoint and the login callback speak HTTP"),
    ("rustls", &["tls"], "who trusts whom on the endpoint is decided in one place"),
    ("tokio_rustls", &["tls"], "who trusts whom on the endpoint is decided in one place"),
    ("webpki", &["tls"], "who trusts whom on the endpoint is decided in one place"),
    ("clap", &["cli"], "nothing below sees a flag"),
    ("clap_complete", &["cli"], "nothing below sees a flag"),
    ("clap_mangen", &["cli"], "nothing below sees a flag"),
    (
        "toml",
        &["config"],
        "what stands in a file is text, places and types; only the room of the plan knows the format",
    ),
];

#[test]
fn rooms_know_only_the_rooms_below_them() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let room = room(&file);
        let (_, allowed, why) = MAY_KNOW.iter().find(|(name, ..)| *name == room).copied().unwrap_or((
            "a leaf",
            &[],
            "a leaf knows no room",
        ));
        for (line, named) in named_rooms(&text) {
            let fine = named == room || LEAVES.contains(&named.as_str()) || allowed.contains(&named.as_str());
            // audit is a leaf that everyone may call, but it may call only other leaves.
            if !fine {
                wrong.push(format!("{}:{line}: `{room}` names `{named}`, but {why}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_room_and_leaf_is_in_the_table() {
    for (file, _) in sources() {
        let room = room(&file);
        assert!(
            LEAVES.contains(&room.as_str()) || MAY_KNOW.iter().any(|(name, ..)| *name == room),
            "{} is in no room of the table: give it a line with a reason",
            file.display()
        );
    }
}

#[test]
fn crates_are_named_only_in_their_rooms() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let inside = file.strip_prefix("src").unwrap().to_string_lossy().replace('\\', "/");
        for (name, rooms, why) in ONLY_IN {
            if rooms
                .iter()
                .any(|room| inside.starts_with(&format!("{room}/")) || inside == format!("{room}.rs"))
            {
                continue;
            }
            for (number, line) in code_lines(&text) {
                // A file's name in a message is no crate.
                if line.split('"').step_by(2).flat_map(words).any(|word| word == *name) {
                    wrong.push(format!("{}:{number}: names `{name}`, but {why}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_the_terminal_prints() {
    for (file, text) in sources() {
        if file.starts_with("src/cli") {
            continue;
        }
        for (number, line) in code_lines(&text) {
            for macro_name in ["print!(", "println!(", "eprint!(", "eprintln!(", "dbg!("] {
                assert!(!line.contains(macro_name), "{}:{number}: prints", file.display());
            }
        }
    }
}

#[test]
fn nothing_asks_russh_for_a_reply_that_never_comes() {
    // A global request without want_reply leaves a reply slot behind, and every later reply is taken for
    // another request's (russh 0.65.1, client/session.rs).
    for (file, text) in sources() {
        for (number, line) in code_lines(&text) {
            for call in ["send_keepalive(false)", "no_more_sessions(false)"] {
                assert!(!line.contains(call), "{}:{number}: {call}", file.display());
            }
        }
    }
}

fn room(file: &Path) -> String {
    let inside = file.strip_prefix("src").unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The first segment after every `crate::`, also inside `use crate::{a, b::c}`.
fn named_rooms(text: &str) -> Vec<(usize, String)> {
    let code: String = code_lines(text).map(|(number, line)| format!("{number}\t{line}\n")).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `my_crate::` are other things.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = code[..at].rsplit('\n').next().unwrap().split('\t').next().unwrap().parse().unwrap();
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if depth == 0 && start && (c.is_alphabetic() || c == '_') => word.push(c),
                    ':' | ' ' | '\n' | '\t' if !word.is_empty() && depth == 0 => start = false,
                    _ => {}
                }
                if (!start || c == ',') && !word.is_empty() {
                    found.push((line, std::mem::take(&mut word)));
                }
            }
            if !word.is_empty() {
                found.push((line, word));
            }
        } else {
            found.push((line, rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    found
}

/// Lines of code outside comments and outside `#[cfg(test)] mod tests`, which is last in a file.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

fn sources() -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![PathBuf::from("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
    }
    assert!(found.len() > 10, "run from the root of the repository");
    found
}
