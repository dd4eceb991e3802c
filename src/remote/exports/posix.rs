//! For sh and the shells that speak its language.

use zeroize::Zeroizing;

use super::{Environment, OURS, Page, Value, line, page};
use crate::remote::quoted;

pub(super) fn render(environment: &Environment) -> Page {
    let mut text = page();
    for name in &environment.unset {
        line(&mut text, format_args!("unset {name}"));
    }
    for (name, value) in &environment.set {
        match value {
            Value::Text(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(&mut text, format_args!("export {name}={}", *value));
            }
            Value::Offered(value) => {
                let value = Zeroizing::new(quoted(value.expose()));
                line(
                    &mut text,
                    format_args!(
                        "case \"${{{name}-}}\" in\n  (''|*{OURS}*) export {name}={} ;;\nesac",
                        *value
                    ),
                );
            }
            // `*` alone means no proxy at all, and would not any more with company. The default is for `set -u`.
            Value::Added { items, sibling } => {
                line(
                    &mut text,
                    format_args!(
                        "{name}=\"${{{name}:-${{{sibling}-}}}}\"\n\
                         case \",${name},\" in\n  \
                           (*,'{first}',*|',*,') ;;\n  \
                           (*) {name}=\"${{{name}:+${name},}}\"'{items}' ;;\n\
                         esac\n\
                         export {name}",
                        first = items.first(),
                        items = items.0,
                    ),
                );
            }
        }
    }
    text
}
