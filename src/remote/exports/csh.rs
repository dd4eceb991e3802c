//! For csh and tcsh.
//!
//! Every statement is one line and ends with `;`, for ``eval "`…`"``, which joins lines by spaces.

use zeroize::Zeroizing;

use super::{Environment, OURS, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    for name in &environment.unset {
        line(&mut text, format_args!("unsetenv {name};"));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Text(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(&mut text, format_args!("setenv {name} {};", *value));
            }
            Value::Offered(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(
                    &mut text,
                    format_args!(
                        "if (! $?{name}) setenv {name} '';\n\
                         if (\"${name}\" == '' || \"${name}\" =~ *{OURS}*) setenv {name} {};",
                        *value
                    ),
                );
            }
            // `*` alone means no proxy at all, and would not any more with company. Variables are looked up even
            // behind an `if` that is false, and one that is not there is an error: so both get a value first. The
            // csh of BSD takes a quoted pattern literally.
            Value::Added { items, sibling } => {
                line(
                    &mut text,
                    format_args!(
                        "if (! $?{name}) setenv {name} '';\n\
                         if (! $?{sibling}) setenv {sibling} '';\n\
                         if (\"${name}\" == '') setenv {name} \"${sibling}\";\n\
                         if (\"${name}\" == '') setenv {name} '{items}';\n\
                         if (\",${{{name}}},\" !~ *,{first},* && \"${name}\" != '*') \
                         setenv {name} \"${{{name}}},{items}\";",
                        first = items.first(),
                        items = items.0,
                    ),
                );
            }
        }
    }
    text
}

/// Single quotes, in which `!` still means history, even in a script; and with `backslash_quote` set a
/// backslash means something too. So those stand outside, each behind a backslash.
fn quoted(text: &str) -> String {
    let mut word = String::with_capacity(text.len() * 4 + 2);
    word.push('\'');
    for c in text.chars() {
        if matches!(c, '\'' | '!' | '\\') {
            word.extend(['\'', '\\', c, '\'']);
        } else {
            word.push(c);
        }
    }
    word.push('\'');
    word
}
