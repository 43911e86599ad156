//! Identifiers and user-chosen names. Each has one grammar, enforced by its only constructor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A name that does not follow its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} `{value}`: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidName {
    /// Bounded, so that a hostile name cannot fill a log.
    pub(crate) fn new(kind: &'static str, value: &str, rule: &'static str) -> Self {
        Self { kind, value: value.chars().take(80).collect(), rule }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses the name.
            ///
            /// # Errors
            /// [`InvalidName`] when the text does not follow the grammar.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName::new($kind, text, $rule))
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// A user-chosen instance name, unique among instances. It is also the guest's host name.
    Handle,
    "instance name",
    "use letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 63 characters",
    |s| (1..=63).contains(&s.len())
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        // An instance named like an id could shadow it in every lookup.
        && !s.starts_with("inst-")
);

name_type!(
    /// The permanent id of an instance: `inst-<unix nanoseconds>`.
    InstanceId,
    "instance id",
    "it looks like `inst-1700000000000000000`",
    |s| s.strip_prefix("inst-").is_some_and(|n| {
        (1..=20).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit())
    })
);

name_type!(
    /// The id of one boot of an instance: `vm-<hex>`. A later boot has another id, so late events are recognised.
    VmId,
    "VM id",
    "it looks like `vm-0123456789abcdef`",
    |s| s.strip_prefix("vm-").is_some_and(|n| {
        (1..=32).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_hexdigit())
    })
);

impl InstanceId {
    /// The id of an instance created at this time, in nanoseconds since the Unix epoch.
    pub fn from_unix_nanos(nanos: u64) -> Self {
        Self(format!("inst-{nanos}"))
    }
}

impl VmId {
    /// A VM id from random bits.
    pub fn from_random(bits: u64) -> Self {
        Self(format!("vm-{bits:016x}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn handles_follow_the_grammar() {
        for good in ["a", "web", "Web-1", "a.b_c", "9lives"] {
            assert!(Handle::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "inst-5", long.as_str(), "a\n"] {
            assert!(Handle::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn serde_refuses_what_parse_refuses() {
        assert!(Handle::try_from("a b".to_owned()).is_err());
        assert_eq!(String::from(InstanceId::from_unix_nanos(7)), "inst-7");
        assert!(VmId::parse(VmId::from_random(u64::MAX).as_str()).is_ok());
    }
}
