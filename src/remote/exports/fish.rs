//! For fish.
//!
//! Every line ends with `;`, for `eval (…)`, which joins lines by spaces.

use zeroize::Zeroizing;

use super::{Environment, OURS, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    for name in &environment.unset {
        // Without `-g` it would erase a universal variable where there is no global one: for good, and in every
        // fish of the user.
        line(&mut text, format_args!("set -e -g {name};"));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Text(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(&mut text, format_args!("set -g -x {name} {};", *value));
            }
            Value::Offered(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(
                    &mut text,
                    format_args!(
                        "if test -z \"${name}\"; or string match -q -- '*{OURS}*' \"${name}\";\n\
                         set -g -x {name} {};\n\
                         end;",
                        *value
                    ),
                );
            }
            // `*` alone means no proxy at all, and would not any more with company.
            Value::Added { items, sibling } => {
                line(
                    &mut text,
                    format_args!(
                        "test -n \"${name}\"; or set -g -x {name} \"${sibling}\";\n\
                         if test -z \"${name}\";\n\
                         set -g -x {name} '{items}';\n\
                         else if test \"${name}\" = '*'; or string match -q -- '*,{first},*' \",${name},\";\n\
                         set -g -x {name} \"${name}\";\n\
                         else;\n\
                         set -g -x {name} \"${name}\",'{items}';\n\
                         end;",
                        first = items.first(),
                        items = items.0,
                    ),
                );
            }
        }
    }
    text
}

/// Single quotes, in which a backslash means itself but before a quote or another one.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}
