//! A command line → its words, as the AWS CLI splits `credential_process` (Python's `shlex.split`): no shell, no
//! variables, no globs. Pure.

/// A line that has no words.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NoWords {
    #[error("it is empty")]
    Empty,
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("it ends with a backslash")]
    OpenEscape,
}

/// Returns the words of `line`, at least one.
pub(crate) fn split(line: &str) -> Result<Vec<String>, NoWords> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(NoWords::OpenQuote)? {
                        '\'' => break,
                        c => text.push(c),
                    }
                }
            }
            '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(NoWords::OpenQuote)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or(NoWords::OpenQuote)? {
                            c @ ('"' | '\\') => text.push(c),
                            c => text.extend(['\\', c]),
                        },
                        c => text.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(NoWords::OpenEscape)?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) { Err(NoWords::Empty) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_shlex() {
        for (line, words) in [
            ("a b", &["a", "b"][..]),
            ("  /bin/x  'a b'\t\"c d\" ", &["/bin/x", "a b", "c d"]),
            (r#"x "a\"b\\c\d" 'e\'"#, &["x", r#"a"b\c\d"#, r"e\"]),
            (r"x a\ b ''", &["x", "a b", ""]),
            ("x a'b'\"c\"", &["x", "abc"]),
            ("x $HOME ~ *", &["x", "$HOME", "~", "*"]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        assert_eq!(split(" "), Err(NoWords::Empty));
        assert_eq!(split("''"), Err(NoWords::Empty));
        assert_eq!(split("a 'b"), Err(NoWords::OpenQuote));
        assert_eq!(split("a \"b\\"), Err(NoWords::OpenQuote));
        assert_eq!(split("a\\"), Err(NoWords::OpenEscape));
    }
}
