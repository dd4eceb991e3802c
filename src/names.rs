//! Names of AWS things, parsed once at the edge.

use std::{fmt, str::FromStr};

/// An AWS account id: exactly twelve ASCII digits.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct AccountId(String);

/// A role or permission-set name: 1 to 64 of `A-Z a-z 0-9 _ + = , . @ -` (IAM CreateRole, `RoleName`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct RoleName(String);

/// An AWS region name such as `eu-west-1`: lower-case letters, digits and dashes, at most 32.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Region(String);

/// The name of a profile in `~/.aws/config`, as the user typed it.
///
/// It ends in URLs (`/slot/<profile>`), in file names on the host and in config sections, so control
/// characters, slashes, quotes, brackets and leading dots or dashes are refused; 1 to 128 bytes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ProfileName(String);

/// One role in one account.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Role {
    pub(crate) account: AccountId,
    pub(crate) name: RoleName,
}

/// A name that is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub(crate) struct BadName {
    text: String,
    what: &'static str,
}

macro_rules! name {
    ($type:ident, $what:literal, $valid:expr) => {
        impl FromStr for $type {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { text: crate::printable::one_line(text), what: $what })
                }
            }
        }

        impl $type {
            /// Returns the name as text.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(AccountId, "an AWS account id (twelve digits)", |text| text.len() == 12
    && text.bytes().all(|b| b.is_ascii_digit()));
name!(RoleName, "a role name (1 to 64 letters, digits or _+=,.@-)", |text| (1..=64).contains(&text.len())
    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)));
name!(Region, "an AWS region (such as `eu-west-1`)", |text| (1..=32).contains(&text.len())
    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
name!(
    ProfileName,
    "a profile name that can be served (no control characters, slashes, quotes or brackets, and no leading dot or dash)",
    |text| (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && !text.starts_with(char::is_whitespace)
        && !text.ends_with(char::is_whitespace)
        && !text.chars().any(|c| c.is_control() || "/\\\"'`[]$".contains(c))
);

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_id_is_twelve_digits() {
        assert!("123456789012".parse::<AccountId>().is_ok());
        for bad in ["", "12345678901", "1234567890123", "12345678901a", "１２３４５６７８９０１２"]
        {
            assert!(bad.parse::<AccountId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_profile_name_cannot_leave_its_file_or_section() {
        for bad in ["", "../x", "a/b", "a]b", "a\nb", "a\"b", "-p", ".x", "$(x)", "a'b"] {
            assert!(bad.parse::<ProfileName>().is_err(), "{bad:?}");
        }
        for good in ["default", "team a", "corp.dev", "über", "a@b+c"] {
            assert!(good.parse::<ProfileName>().is_ok(), "{good:?}");
        }
    }
}
