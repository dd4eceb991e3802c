//! Text from the other side, made safe for a terminal and a log.
//!
//! A server's banner, prompt or failure text may hold escape sequences that retitle the window, clear the
//! screen or reorder what is read. Nothing that a peer said is shown before it has passed here.

/// What is kept of one remote text, in bytes; OpenSSH cuts its banners likewise.
pub(crate) const LONGEST: usize = 4096;

/// Returns `text` with control characters, escape sequences and bidirectional overrides replaced by `\u{fffd}`,
/// cut at [`LONGEST`] bytes. Newline and tab stay.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(LONGEST));
    for c in text.replace("\r\n", "\n").chars() {
        if safe.len() + c.len_utf8() > LONGEST {
            safe.push('…');
            break;
        }
        safe.push(if is_safe(c) { c } else { char::REPLACEMENT_CHARACTER });
    }
    safe
}

/// Returns [`printable`] text on one line: newlines and tabs become spaces, ends are trimmed.
pub(crate) fn one_line(text: &str) -> String {
    printable(text.trim()).replace(['\n', '\t'], " ")
}

fn is_safe(c: char) -> bool {
    matches!(c, '\n' | '\t')
        || !(c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let hostile = "hi\u{1b}]0;OWNED\u{7}\u{1b}[2J\u{9b}31m\rok\u{202e}";
        let safe = printable(hostile);
        assert!(!safe.chars().any(|c| c.is_control()), "{safe:?}");
        assert!(safe.contains("hi") && safe.contains("ok"));
    }

    #[test]
    fn long_texts_are_cut() {
        assert!(printable(&"x".repeat(1 << 20)).len() <= LONGEST + '…'.len_utf8());
    }

    #[test]
    fn lines_and_tabs_of_a_banner_stay() {
        assert_eq!(printable("a\tb\r\nc\n"), "a\tb\nc\n");
        assert_eq!(one_line(" a\nb\t"), "a b");
    }
}
