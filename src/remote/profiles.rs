//! Our managed block in the host's `~/.aws/config`: where it begins and ends, how it comes in and how it goes out
//! again without changing a byte of the rest. Pure; [`super::home`] reads and writes the file.
//!
//! The rest may be in any encoding and have any line ends. A block knows what was added with it (a newline, the file,
//! its directory), so that all of it can be taken back in any order of coming and going.

use std::{fmt, ops::Range};

const BEGIN: &str = "# >>> broker ";
const BEGIN_END: &str = " >>>";
const END: &str = "# <<< broker ";
const END_END: &str = " <<<";

/// Which tunnel a block belongs to: the host, because homes are shared between hosts, and our directory there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mark {
    host: String,
    directory: String,
}

impl Mark {
    /// Returns the mark of the tunnel whose files lie in `directory` of the host that calls itself `host`.
    pub(crate) fn new(host: &str, directory: &str) -> Self {
        let plain = |text: &str, more: &str| -> String {
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || more.contains(c) { c } else { '_' })
                .collect()
        };
        Self { host: plain(host, ".-"), directory: plain(directory, "/._=-") }
    }

    fn parse(text: &str) -> Option<Self> {
        let (host, directory) = text.split_once(':')?;
        let mark = Self::new(host, directory);
        (mark.host == host && mark.directory == directory && !directory.is_empty()).then_some(mark)
    }

    /// Whether the block was made on this host.
    pub(crate) fn is_of(&self, host: &str) -> bool {
        self.host == Self::new(host, "").host
    }

    /// Returns what the host called itself.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Returns the directory of the tunnel's files.
    pub(crate) fn directory(&self) -> &str {
        &self.directory
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.directory)
    }
}

/// What else came with a block, and goes with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Added {
    Nothing,
    /// The file did not end with a newline.
    Newline,
    /// There was no file.
    File,
    /// There was not even a directory.
    Directory,
}

impl Added {
    const ALL: [(Self, &str); 4] = [
        (Self::Nothing, ""),
        (Self::Newline, " +newline"),
        (Self::File, " +file"),
        (Self::Directory, " +directory"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(added, _)| *added == self).map_or("", |(_, word)| word)
    }
}

/// A block in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Block {
    pub(crate) mark: Mark,
    /// From the first marker to the end of the line of the second.
    pub(crate) range: Range<usize>,
    added: Added,
    /// The first marker's line.
    begin: Range<usize>,
}

/// A change of a file: these bytes become this text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Splice {
    pub(crate) range: Range<usize>,
    pub(crate) text: String,
    /// Whether the file itself goes if nothing is left in it, and its directory with it.
    pub(crate) empty: Empty,
}

/// What becomes of a file in which nothing is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Empty {
    Stays,
    Goes,
    GoesWithDirectory,
}

/// Returns every block, in order. A marker without its other half is none, so it harms nothing.
pub(crate) fn blocks(config: &[u8]) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(Mark, Added, Range<usize>)> = None;
    for (range, line) in lines(config) {
        if let Some(inner) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(BEGIN_END)) {
            let (inner, added) = Added::ALL
                .iter()
                .rev()
                .find_map(|(added, word)| Some((inner.strip_suffix(word)?, *added)))
                .unwrap_or((inner, Added::Nothing));
            open = Mark::parse(inner).map(|mark| (mark, added, range));
        } else if let Some(inner) = line.strip_prefix(END).and_then(|rest| rest.strip_suffix(END_END))
            && let Some((mark, added, begin)) = open.take()
            && Mark::parse(inner).as_ref() == Some(&mark)
        {
            found.push(Block { mark, range: begin.start..range.end, added, begin });
        }
    }
    found
}

/// Returns the change that puts a block with `body` (whole lines) behind `config`; `None` is a file that is not there.
pub(crate) fn insert(config: Option<&[u8]>, directory_exists: bool, mark: &Mark, body: &str) -> Splice {
    let (end, added) = match config {
        None if directory_exists => (0, Added::File),
        None => (0, Added::Directory),
        Some(config) if config.last().is_some_and(|last| *last != b'\n') => (config.len(), Added::Newline),
        Some(config) => (config.len(), Added::Nothing),
    };
    let newline = if added == Added::Newline { "\n" } else { "" };
    let text = format!("{newline}{}{body}{END}{mark}{END_END}\n", first_line(mark, added));
    Splice { range: end..end, text, empty: Empty::Stays }
}

/// Returns the change that takes a block of `config` out, with what came with it.
pub(crate) fn remove(config: &[u8], block: &Block) -> Splice {
    let Range { start, end } = block.range;
    // What came with this block serves the one behind it from now on.
    let heir =
        blocks(config).into_iter().find(|next| next.range.start == end && next.added == Added::Nothing);
    if let Some(heir) = heir.filter(|_| block.added != Added::Nothing) {
        let text = first_line(&heir.mark, block.added);
        return Splice { range: start..heir.begin.end, text, empty: Empty::Stays };
    }
    let last = end == config.len();
    let newline = block.added == Added::Newline
        && last
        && start.checked_sub(1).and_then(|before| config.get(before)) == Some(&b'\n');
    let empty = match block.added {
        Added::File => Empty::Goes,
        Added::Directory => Empty::GoesWithDirectory,
        Added::Nothing | Added::Newline => Empty::Stays,
    };
    Splice { range: start - usize::from(newline)..end, text: String::new(), empty }
}

/// Returns `config` after the change.
pub(crate) fn apply(config: &[u8], splice: &Splice) -> Vec<u8> {
    let head = config.get(..splice.range.start).unwrap_or(config);
    let tail = config.get(splice.range.end..).unwrap_or_default();
    [head, splice.text.as_bytes(), tail].concat()
}

/// Returns the names of the profiles that have a section outside `except`, and the text of each section.
pub(crate) fn sections(config: &[u8], except: &[&Block]) -> Vec<Section> {
    let mut found: Vec<Section> = Vec::new();
    for (range, line) in lines(config) {
        if except.iter().any(|block| block.range.contains(&range.start)) {
            continue;
        }
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let header = header.split(']').next().unwrap_or(header);
            found.push(Section { profile: profile(header), keys: Vec::new() });
        } else if let (Some((key, _)), Some(section)) = (line.split_once(['=', ':']), found.last_mut()) {
            section.keys.push(key.trim().to_ascii_lowercase());
        }
    }
    found
}

/// A section of `~/.aws/config` or `~/.aws/credentials`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Section {
    /// The profile's name; of any other section its whole header.
    pub(crate) profile: String,
    /// The names of its settings.
    pub(crate) keys: Vec<String>,
}

/// Reads a header as SDKs do: `[default]`, `[profile NAME]`, `[profile "NAME"]`, `[NAME]` (credentials).
fn profile(header: &str) -> String {
    let header = header.trim();
    let name = match header.split_once(char::is_whitespace) {
        Some(("profile", name)) => name,
        _ => header,
    };
    name.trim().trim_matches(['"', '\'']).to_owned()
}

fn first_line(mark: &Mark, added: Added) -> String {
    format!("{BEGIN}{mark}{}{BEGIN_END}\n", added.word())
}

/// Returns every line with where it is; its text without the line end. What is no UTF-8 is nothing to us.
fn lines(config: &[u8]) -> impl Iterator<Item = (Range<usize>, &str)> {
    let mut start = 0;
    config.split_inclusive(|b| *b == b'\n').map(move |line| {
        let range = start..start + line.len();
        start = range.end;
        (range, std::str::from_utf8(line).unwrap_or_default().trim_end_matches(['\n', '\r']))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &str = "[profile dev]\ncredential_process = /bin/sh /d/x /d dev /\n";

    fn mark(n: usize) -> Mark {
        Mark::new("login1", &format!("/dev/shm/broker-1000/{n}"))
    }

    fn inserted(config: &[u8], n: usize) -> Vec<u8> {
        apply(config, &insert(Some(config), true, &mark(n), BODY))
    }

    fn removed(config: &[u8], n: usize) -> Vec<u8> {
        let found = blocks(config);
        let block = found.iter().find(|block| block.mark == mark(n)).expect("the block is found again");
        apply(config, &remove(config, block))
    }

    #[test]
    fn a_block_is_told_from_everything_else() {
        let config = b"[default]\nregion = x\n# >>> broker someone:/left >>>\n[profile a]\n";
        let with = inserted(config, 1);
        assert_eq!(
            String::from_utf8(with.clone()).unwrap(),
            "[default]\nregion = x\n# >>> broker someone:/left >>>\n[profile a]\n\
             # >>> broker login1:/dev/shm/broker-1000/1 >>>\n[profile dev]\n\
             credential_process = /bin/sh /d/x /d dev /\n\
             # <<< broker login1:/dev/shm/broker-1000/1 <<<\n"
        );
        let found = blocks(&with);
        assert_eq!(found.iter().map(|block| &block.mark).collect::<Vec<_>>(), [&mark(1)]);
        assert!(found[0].mark.is_of("login1") && !found[0].mark.is_of("login2"));
        assert_eq!(removed(&with, 1), config);
        for harmless in [
            "# >>> broker >>>\n# <<< broker <<<\n",
            "# >>> broker a:/b >>>\n# <<< broker a:/c <<<\n",
            "# <<< broker a:/b <<<\n# >>> broker a:/b >>>\n",
            "# >>> broker a b:/c >>>\n# <<< broker a b:/c <<<\n",
            " # >>> broker a:/b >>>\n # <<< broker a:/b <<<\n",
        ] {
            assert_eq!(blocks(harmless.as_bytes()), [], "{harmless}");
        }
    }

    #[test]
    fn an_editor_that_changed_the_line_ends_does_not_hide_a_block() {
        let with = String::from_utf8(inserted(b"[default]\n", 1)).unwrap().replace('\n', "\r\n");
        assert_eq!(removed(with.as_bytes(), 1), b"[default]\r\n");
    }

    #[test]
    fn what_was_appended_behind_a_block_stays_a_line_of_its_own() {
        let mut with = inserted(b"region = x", 1);
        with.extend_from_slice(b"[profile later]\n");
        assert_eq!(removed(&with, 1), b"region = x\n[profile later]\n");
    }

    #[test]
    fn a_file_that_came_with_a_block_goes_with_the_last_one() {
        let created = insert(None, false, &mark(1), BODY);
        let one = apply(b"", &created);
        let both = inserted(&one, 2);
        let first = blocks(&both).remove(0);
        let second = apply(&both, &remove(&both, &first));
        let splice = remove(&second, &blocks(&second)[0]);
        assert_eq!((apply(&second, &splice), splice.empty), (vec![], Empty::GoesWithDirectory));
        assert_eq!(remove(&one, &blocks(&one)[0]).empty, Empty::GoesWithDirectory);
        let in_directory = apply(b"", &insert(None, true, &mark(1), BODY));
        assert_eq!(remove(&in_directory, &blocks(&in_directory)[0]).empty, Empty::Goes);
    }

    #[test]
    fn profiles_are_found_however_they_are_written() {
        let config = "\u{feff}[default]\nregion=x\n  [profile a]\r\n[profile \"b c\"]\nSSO_Session = s\ns3 =\n  k = v\n\
                      [profile\td]\n[sso-session e]\n# [profile no]\n;[profile no]\n[f]\nk: v\n[profile default]\n";
        let found = sections(config.as_bytes(), &[]);
        let names: Vec<_> = found.iter().map(|section| &*section.profile).collect();
        assert_eq!(names, ["default", "a", "b c", "d", "sso-session e", "f", "default"]);
        assert_eq!(found[2].keys, ["sso_session", "s3", "k"]);
        let with = inserted(b"[profile a]\n", 1);
        let found = blocks(&with);
        assert_eq!(sections(&with, &[&found[0]]).len(), 1);
        assert_eq!(sections(&with, &[]).len(), 2);
    }

    proptest! {
        #[test]
        fn what_is_inserted_and_removed_leaves_every_byte(
            config in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert_eq!(removed(&inserted(&config, 1), 1), config);
        }

        #[test]
        fn blocks_come_and_go_in_any_order(
            config in "([a-z=\\[\\] #>é]{0,9}(\r\n|\n|\r)?){0,5}",
            order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
            between in proptest::collection::vec(any::<bool>(), 4),
        ) {
            let config = config.into_bytes();
            let mut with = config.clone();
            let mut expected = vec![];
            for (n, again) in between.into_iter().enumerate() {
                with = inserted(&with, n);
                expected.push(n);
                if again {
                    with = inserted(&removed(&with, n), n);
                }
            }
            for n in order {
                with = removed(&with, n);
                expected.retain(|left| *left != n);
                let marks: Vec<_> = blocks(&with).into_iter().map(|block| block.mark).collect();
                let wanted: Vec<_> = expected.iter().map(|n| mark(*n)).collect();
                prop_assert_eq!(marks, wanted);
            }
            prop_assert_eq!(with, config);
        }
    }
}
