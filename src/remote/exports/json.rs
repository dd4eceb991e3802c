//! For programs: `{"set":{"NAME":"VALUE"},"unset":["NAME"]}`, on one line.
//!
//! Whoever reads it has to see to the host's own `NO_PROXY`.

use zeroize::Zeroizing;

use super::{Environment, Page, Value, line, page};

pub(super) fn render(environment: &Environment) -> Page {
    let mut set = page();
    for (name, value) in &environment.set {
        let value = match value {
            Value::Text(value) | Value::Offered(value) => string(value.expose()),
            Value::Added { items, .. } => string(&items.0),
        };
        if !set.is_empty() {
            set.push(',');
        }
        for piece in [&string(name), ":", &value] {
            set.push_str(piece);
        }
    }
    let unset: Vec<_> = environment.unset.iter().map(|name| format!("\"{name}\"")).collect();
    let mut text = page();
    line(&mut text, format_args!("{{\"set\":{{{}}},\"unset\":[{}]}}", *set, unset.join(",")));
    text
}

fn string(text: &str) -> Zeroizing<String> {
    #[expect(clippy::expect_used, reason = "every text is a JSON string")]
    Zeroizing::new(serde_json::to_string(text).expect("infallible"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::remote::exports::tests::environment;

    #[test]
    fn it_says_what_to_set_and_what_to_unset() {
        let text = render(&environment("x"));
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["set"]["AWS_CONTAINER_CREDENTIALS_FULL_URI"], "http://127.0.0.1:4144/");
        assert_eq!(read["set"]["NO_PROXY"], "127.0.0.1,localhost,::1");
        assert!(read["unset"].as_array().unwrap().contains(&"AWS_PROFILE".into()));
        assert_eq!(text.lines().count(), 1);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in "\\PC{0,40}") {
            let read: serde_json::Value = serde_json::from_str(&render(&environment(&value))).unwrap();
            prop_assert_eq!(&read["set"]["VALUE"], &value);
        }
    }
}
