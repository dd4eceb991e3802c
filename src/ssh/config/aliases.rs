//! The hosts that an ssh_config names, for whoever completes a word.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{glob, line};
use crate::private_fs;

/// Files that include each other have an end.
const DEEPEST: usize = 8;

/// Nobody chooses from more.
const MOST: usize = 2000;

/// Returns the names that stand behind `Host` in the user's configuration, without patterns. What cannot be read is left
/// out.
pub(crate) fn aliases(home: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    read(&home.join(".ssh/config"), home, DEEPEST, &mut found);
    found
}

fn read(path: &Path, home: &Path, deeper: usize, found: &mut BTreeSet<String>) {
    let Ok(Some(text)) = private_fs::read_config(path) else { return };
    let Ok(lines) = line::parse(&String::from_utf8_lossy(&text), path) else { return };
    for line in lines {
        match line.keyword.as_str() {
            "host" => {
                let plain = |name: &&String| {
                    !name.starts_with('-')
                        && !name.contains(['*', '?', '!'])
                        && name.chars().all(|c| c.is_ascii_graphic())
                };
                found.extend(line.args.iter().filter(plain).take(MOST.saturating_sub(found.len())).cloned());
            }
            "include" if deeper > 0 => {
                for argument in &line.args {
                    let pattern: PathBuf = match argument.strip_prefix("~/") {
                        Some(rest) => home.join(rest),
                        None => home.join(".ssh").join(argument),
                    };
                    let files = pattern.to_str().and_then(|pattern| glob::paths(pattern).ok());
                    for file in files.unwrap_or_default() {
                        read(&file, home, deeper - 1, found);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_file_and_patterns_are_not_names() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        let write = |name: &str, text: &str| private_fs::write(&ssh.join(name), text.as_bytes()).unwrap();
        write(
            "config",
            "Include d/*.conf\nHost bastion jump *.lan !x\n  User a\nhost=\"quoted\"\nInclude config\n",
        );
        write("d/work.conf", "Host work\nInclude ~/.ssh/d/more\n");
        write("d/more", "Host deep\n");
        let found: Vec<String> = aliases(home.path()).into_iter().collect();
        assert_eq!(found, ["bastion", "deep", "jump", "quoted", "work"]);
        assert!(aliases(&home.path().join("none")).is_empty());
    }
}
