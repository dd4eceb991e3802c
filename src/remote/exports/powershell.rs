//! For Windows PowerShell 5.1 and PowerShell 7, on Windows and elsewhere.
//!
//! There is none where we test, so this keeps to a part of the language that leaves nothing to guess: ASCII only
//! (5.1 reads files without a mark in the machine's code page), single quotes with the quote doubled (`about_Quoting_Rules`),
//! and each statement on a line of its own.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{Environment, OURS, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    for name in &environment.unset {
        line(&mut text, format_args!("Remove-Item Env:{name} -ErrorAction Ignore"));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Text(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(&mut text, format_args!("$env:{name} = {}", *value));
            }
            Value::Offered(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(
                    &mut text,
                    format_args!(
                        "if ((-not $env:{name}) -or ($env:{name} -like '*{OURS}*')) {{ $env:{name} = {} }}",
                        *value
                    ),
                );
            }
            // `*` alone means no proxy at all, and would not any more with company. On Windows both names are one
            // variable, which the first of them has settled.
            Value::Added { items, sibling } => {
                line(
                    &mut text,
                    format_args!(
                        "if (-not $env:{name}) {{ $env:{name} = $env:{sibling} }}\n\
                         if (-not $env:{name}) {{ $env:{name} = '{items}' }} \
                         elseif (($env:{name} -ne '*') -and (($env:{name} -split ',') -notcontains '{first}')) \
                         {{ $env:{name} = $env:{name} + ',{items}' }}",
                        first = items.first(),
                        items = items.0,
                    ),
                );
            }
        }
    }
    text
}

/// An expression. Characters beyond ASCII, some of which are quotes to PowerShell too, are written by their number.
fn quoted(text: &str) -> String {
    let mut expression = String::with_capacity(text.len() * 4 + 2);
    expression.push('\'');
    for unit in text.encode_utf16() {
        match u8::try_from(unit).map(char::from) {
            Ok('\'') => expression.push_str("''"),
            Ok(c) if c.is_ascii() => expression.push(c),
            #[expect(clippy::expect_used, reason = "a String takes everything")]
            _ => write!(expression, "' + [char]0x{unit:04X} + '").expect("infallible"),
        }
    }
    expression.push('\'');
    expression
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::exports::tests::environment;

    /// Reads an expression of [`quoted`] by PowerShell's rules.
    fn read(expression: &str) -> String {
        let mut units: Vec<u16> = Vec::new();
        let mut rest = expression;
        loop {
            if let Some(number) = rest.strip_prefix("[char]0x") {
                units.push(u16::from_str_radix(&number[..4], 16).unwrap());
                rest = &number[4..];
            } else {
                rest = rest.strip_prefix('\'').expect(rest);
                loop {
                    let end = rest.find('\'').expect(rest);
                    units.extend(rest[..end].encode_utf16());
                    rest = &rest[end + 1..];
                    let Some(after) = rest.strip_prefix('\'') else { break };
                    units.push(u16::from(b'\''));
                    rest = after;
                }
            }
            if rest.is_empty() {
                return String::from_utf16(&units).unwrap();
            }
            rest = rest.strip_prefix(" + ").expect(rest);
        }
    }

    #[test]
    fn the_text_is_as_documented() {
        let text = render(&environment("it's ‘é’ $x `n"));
        assert!(text.is_ascii());
        assert!(
            text.starts_with("Remove-Item Env:AWS_CONTAINER_CREDENTIALS_RELATIVE_URI -ErrorAction Ignore\n")
        );
        for line in [
            "Remove-Item Env:AWS_PROFILE -ErrorAction Ignore",
            "$env:AWS_CONTAINER_CREDENTIALS_FULL_URI = 'http://127.0.0.1:4144/'",
            "$env:VALUE = 'it''s ' + [char]0x2018 + '' + [char]0x00E9 + '' + [char]0x2019 + ' $x `n'",
            "if (-not $env:NO_PROXY) { $env:NO_PROXY = $env:no_proxy }",
            "if (-not $env:NO_PROXY) { $env:NO_PROXY = '127.0.0.1,localhost,::1' } elseif (($env:NO_PROXY -ne '*') -and \
             (($env:NO_PROXY -split ',') -notcontains '127.0.0.1')) { $env:NO_PROXY = $env:NO_PROXY + \
             ',127.0.0.1,localhost,::1' }",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{}", *text);
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in "\\PC{0,40}") {
            prop_assert_eq!(read(&quoted(&value)), value);
        }
    }
}
