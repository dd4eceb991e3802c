//! A batch file for `cmd.exe`, to be run by `call`.
//!
//! There is none where we test; these are the rules that `cmd /?`, `set /?` and `if /?` give, and Wine's `cmd` agrees.
//! Three things cannot be helped: pasted instead of called, a doubled `%` stays doubled; where delayed expansion was
//! switched on, `!` is gone; and a host's `NO_PROXY` with quotes in it is a syntax error.

use zeroize::Zeroizing;

use super::{Environment, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    for name in &environment.unset {
        line(&mut text, format_args!("@set \"{name}=\""));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Text(value) => {
                let set = Zeroizing::new(assignment(name, value.expose()));
                line(&mut text, format_args!("@set {}", *set));
            }
            Value::Offered(value) => {
                let set = Zeroizing::new(assignment(name, value.expose()));
                line(&mut text, format_args!("@if not defined {name} set {}", *set));
            }
            // Case means nothing in names, so one of the two is enough.
            Value::Added { .. } if name.contains(|c: char| c.is_ascii_lowercase()) => {}
            // `*` alone means no proxy at all, and would not any more with company.
            Value::Added { items, .. } => {
                line(
                    &mut text,
                    format_args!(
                        "@if not defined {name} set \"{name}={items}\"\n\
                         @if not \"%{name}%\"==\"*\" if \"%{name}:{first}=%\"==\"%{name}%\" \
                         set \"{name}=%{name}%,{items}\"",
                        first = items.first(),
                        items = items.0,
                    ),
                );
            }
        }
    }
    text
}

/// Returns what follows `set`. In quotes nothing but `%` means anything; a value that has quotes itself is written
/// without any, every character of meaning behind a caret.
fn assignment(name: &str, value: &str) -> String {
    let value = value.replace('%', "%%");
    if !value.contains('"') {
        return format!("\"{name}={value}\"");
    }
    let mut escaped = String::with_capacity(value.len() * 2);
    for c in value.chars() {
        if "\"^&|<>()!".contains(c) {
            escaped.push('^');
        }
        escaped.push(c);
    }
    format!("{name}={escaped}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::exports::tests::environment;

    /// Reads an assignment as a batch file's `set` does: percent signs, then carets and quotes, then the last quote.
    fn read(assignment: &str) -> Option<String> {
        let assignment = assignment.replace("%%", "\u{0}");
        if assignment.contains('%') {
            return None;
        }
        let mut line = String::new();
        let mut in_quotes = false;
        let mut characters = assignment.chars();
        while let Some(c) = characters.next() {
            match c {
                '^' if !in_quotes => line.push(characters.next()?),
                '&' | '|' | '<' | '>' if !in_quotes => return None,
                '"' => {
                    in_quotes = !in_quotes;
                    line.push(c);
                }
                c => line.push(c),
            }
        }
        let line = match line.strip_prefix('"') {
            Some(quoted) => quoted.rsplit_once('"')?.0,
            None => &line,
        };
        Some(line.strip_prefix("X=")?.replace('\u{0}', "%"))
    }

    #[test]
    fn the_text_is_as_documented() {
        let text = render(&environment("100% ^&|<> !x! "));
        for line in [
            "@set \"AWS_PROFILE=\"",
            "@set \"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:4144/\"",
            "@set \"VALUE=100%% ^&|<> !x! \"",
            "@if not defined NO_PROXY set \"NO_PROXY=127.0.0.1,localhost,::1\"",
            "@if not \"%NO_PROXY%\"==\"*\" if \"%NO_PROXY:127.0.0.1=%\"==\"%NO_PROXY%\" \
             set \"NO_PROXY=%NO_PROXY%,127.0.0.1,localhost,::1\"",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{}", *text);
        }
        assert!(!text.contains("no_proxy"));
        assert_eq!(assignment("X", "a \"b\" & c%"), "X=a ^\"b^\" ^& c%%");
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in prop_oneof!["\\PC{0,40}", "[-!'\"\\\\&|<>()%^ a=]{0,40}"]) {
            prop_assert_eq!(read(&assignment("X", &value)), Some(value));
        }
    }
}
