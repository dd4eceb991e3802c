//! Text of ssh_config → lines of a keyword and its arguments, with OpenSSH's quoting.

use std::{fmt, path::Path, sync::Arc};

use super::Error;

/// Where a setting was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// On the command line: `-o`, `-i` and the like.
    CommandLine,
    /// In a file; lines count from 1.
    File { path: Arc<Path>, line: usize },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One line that says something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Line {
    /// The keyword, in lower case.
    pub(crate) keyword: String,
    /// The arguments with quotes, escapes and a trailing comment taken off.
    pub(crate) args: Vec<String>,
    /// Everything behind the keyword as it stands: what keywords that take a command use.
    pub(crate) rest: String,
    pub(crate) place: Place,
}

/// What separates tokens; a carriage return only ever ends a line that was written on Windows.
const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// Takes `text` apart. Empty lines and comments are left out.
pub(crate) fn parse(text: &str, source_path: &Path) -> Result<Vec<Line>, Error> {
    let path: Arc<Path> = Arc::from(source_path);
    let mut lines = Vec::new();
    for (index, text) in text.split('\n').enumerate() {
        let place = Place::File { path: Arc::clone(&path), line: index + 1 };
        lines.extend(parse_line(text, &place)?);
    }
    Ok(lines)
}

/// Takes one `-o` option apart, given as its two halves.
pub(crate) fn parse_option(keyword: &str, value: &str) -> Result<Line, Error> {
    let place = Place::CommandLine;
    if keyword.contains('\n') || value.contains('\n') {
        return Err(Error::bad(&place, "an option is one line"));
    }
    match parse_line(&format!("{keyword}={value}"), &place)? {
        Some(line) => Ok(line),
        None => Err(Error::bad(&place, format!("`{keyword}={value}` is not an option"))),
    }
}

/// Takes one line apart; `None` where it says nothing.
fn parse_line(text: &str, place: &Place) -> Result<Option<Line>, Error> {
    let text = text.trim_end_matches([' ', '\t', '\r', '\n', '\u{c}']);
    let indented = text.trim_start_matches(WHITESPACE);
    if indented.is_empty() || indented.starts_with('#') {
        return Ok(None);
    }
    let unbalanced = || Error::bad(place, "a quote is not closed");
    let (mut keyword, mut rest) = delimited(text).ok_or_else(unbalanced)?;
    if keyword.is_empty() {
        (keyword, rest) = delimited(rest).ok_or_else(unbalanced)?;
    }
    if keyword.is_empty() || keyword.starts_with('#') {
        return Ok(None);
    }
    let rest = rest.trim_start_matches(WHITESPACE);
    let keyword = keyword.to_ascii_lowercase();
    if rest.is_empty() {
        return Err(Error::bad(place, format!("`{keyword}` has no argument")));
    }
    let args = split(rest, true).ok_or_else(unbalanced)?;
    // OpenSSH goes by bytes and ends at a NUL: what we would read differently is refused. Comments may be Latin-1.
    let misread = |text: &str| text.contains(['\0', char::REPLACEMENT_CHARACTER]);
    if misread(&keyword) || args.iter().any(|arg| misread(arg)) {
        return Err(Error::bad(place, "the line is not text in UTF-8"));
    }
    Ok(Some(Line { keyword, args, rest: rest.to_owned(), place: place.clone() }))
}

/// Splits the first token off: it ends at white space, at one `=`, or at the end of a quoted part. `None` when a
/// quote is not closed.
fn delimited(text: &str) -> Option<(String, &str)> {
    let Some(end) = text.find([' ', '\t', '\r', '\n', '"', '=']) else {
        return Some((text.to_owned(), ""));
    };
    let (token, rest) = text.split_at(end);
    if let Some(quoted) = rest.strip_prefix('"') {
        let (inner, rest) = quoted.split_once('"')?;
        return Some((format!("{token}{inner}"), rest.trim_start_matches(WHITESPACE)));
    }
    if let Some(rest) = rest.strip_prefix('=') {
        return Some((token.to_owned(), rest.trim_start_matches(WHITESPACE)));
    }
    let rest = rest.trim_start_matches(WHITESPACE);
    let rest = rest.strip_prefix('=').map_or(rest, |rest| rest.trim_start_matches(WHITESPACE));
    Some((token.to_owned(), rest))
}

/// Splits arguments: quotes of both kinds, `\` before a quote, a backslash or (unquoted) a space, and `#` where an
/// argument would begin ends the line where there are `comments`. `None` when a quote is not closed.
pub(super) fn split(text: &str, comments: bool) -> Option<Vec<String>> {
    let mut args = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&first) = chars.peek() {
        if matches!(first, ' ' | '\t') {
            chars.next();
            continue;
        }
        if first == '#' && comments {
            break;
        }
        let mut arg = String::new();
        let mut quote = None;
        while let Some(c) = chars.next() {
            match (c, quote) {
                ('\\', _) => match chars.peek() {
                    Some(&escaped @ ('\'' | '"' | '\\')) => {
                        chars.next();
                        arg.push(escaped);
                    }
                    Some(' ') if quote.is_none() => {
                        chars.next();
                        arg.push(' ');
                    }
                    _ => arg.push('\\'),
                },
                (' ' | '\t', None) => break,
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                (c, _) => arg.push(c),
            }
        }
        if quote.is_some() {
            return None;
        }
        args.push(arg);
    }
    Some(args)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> (String, Vec<String>) {
        let lines = parse(text, Path::new("c")).unwrap();
        assert_eq!(lines.len(), 1, "{text:?}");
        (lines[0].keyword.clone(), lines[0].args.clone())
    }

    #[test]
    fn lines_are_read_as_openssh_reads_them() {
        for (text, keyword, args) in [
            ("Port 22", "port", vec!["22"]),
            ("  PORT=22  ", "port", vec!["22"]),
            ("Port = 22\r", "port", vec!["22"]),
            ("Port\t22 # the usual", "port", vec!["22"]),
            ("\"Port\" 22", "port", vec!["22"]),
            ("Host a b\tc#d", "host", vec!["a", "b", "c#d"]),
            ("IdentityFile \"~/my keys/id\"", "identityfile", vec!["~/my keys/id"]),
            ("IdentityFile '~/my keys/id'", "identityfile", vec!["~/my keys/id"]),
            ("IdentityFile ~/my\\ keys/id", "identityfile", vec!["~/my keys/id"]),
            ("IdentityFile C:\\keys\\id", "identityfile", vec!["C:\\keys\\id"]),
            ("User \"a\\\"b\"", "user", vec!["a\"b"]),
            ("User a\"b c\"d", "user", vec!["ab cd"]),
            ("User \"\"", "user", vec![""]),
            ("Host # nobody", "host", vec![]),
        ] {
            assert_eq!(one(text), (keyword.into(), args.into_iter().map(String::from).collect()), "{text:?}");
        }
        assert!(parse("\n   \n# x\n\t#y\n", Path::new("c")).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_names_its_line() {
        for text in [
            "\nUser \"a",
            "\nPort",
            "\nPort=",
            "\n\"Port 22",
            "\nUser 'a\"",
            "\nUser a\0b",
            "\nUser \u{fffd}",
        ] {
            let error = parse(text, Path::new("/c")).unwrap_err();
            assert!(error.to_string().contains("/c:2"), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_option_of_the_command_line_is_one_line() {
        assert_eq!(parse_option("Port", "22").unwrap().args, ["22"]);
        assert_eq!(parse_option("user", " \"a b\"").unwrap().args, ["a b"]);
        assert!(parse_option("Port", "").is_err());
        assert!(parse_option("", "22").is_err());
        assert!(parse_option("Port", "22\nProxyJump x").is_err());
    }

    proptest! {
        #[test]
        fn quoted_arguments_come_back_as_they_went_in(args in prop::collection::vec("[^\\x00\n\u{fffd}]{0,12}", 1..5)) {
            let quoted: Vec<_> = args.iter()
                .map(|arg| format!("\"{}\"", arg.replace('\\', "\\\\").replace('"', "\\\"")))
                .collect();
            let (keyword, read) = one(&format!("Key {}", quoted.join(" ")));
            prop_assert_eq!(keyword, "key");
            prop_assert_eq!(read, args);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[ -~\t\n\"'\\\\=#]*") {
            if let Ok(lines) = parse(&text, Path::new("c")) {
                for line in lines {
                    prop_assert!(!line.keyword.is_empty() && !line.rest.is_empty());
                }
            }
        }

        #[test]
        fn any_characters_do_not_panic(text in "\\PC*") {
            drop(parse(&text, Path::new("c")));
        }
    }
}
