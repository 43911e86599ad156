//! Secrets: their names, their values, and what an instance wants of them.
//!
//! **Invariant:** a value is never part of a `Debug` or `Display` text, and its memory is wiped when it is dropped.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use zeroize::{Zeroize as _, Zeroizing};

use crate::InvalidName;

/// The directory of the guest in which files of secrets are; it is in memory.
pub const SECRETS_DIR: &str = "/run/secrets";
/// Longest value, in bytes.
pub const SECRET_MAX: usize = 64 << 10;
/// Variables and files of secrets that one instance may ask for.
pub const SECRETS_MAX: usize = 128;
/// Longest name of a file, in bytes.
const FILE_NAME_MAX: usize = 255;

/// Says that these are text on the wire.
macro_rules! text_schema {
    ($($name:ident),+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                String::schema()
            }
        }

        impl ToSchema for $name {}
    )+};
}

text_schema!(SecretBytes, SecretUse, SecretFile);

/// The bytes of a secret. On the wire they are a string, or `{"base64": "…"}` when they are not UTF-8.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes, which are wiped in the end.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<String> for SecretBytes {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.expose_text() {
            Some(text) => serializer.serialize_str(text),
            None => {
                let text = Zeroizing::new(STANDARD.encode(&*self.0));
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", text.as_str())?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Its errors never repeat what was read.
struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an object with the member `base64`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretBytes, E> {
        Ok(SecretBytes::new(text.as_bytes().to_vec()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<SecretBytes, E> {
        Ok(SecretBytes::from(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretBytes, A::Error> {
        let mut bytes = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "base64" {
                return Err(de::Error::custom("a secret has no member but `base64`"));
            }
            let mut text: String = map.next_value()?;
            let decoded = STANDARD.decode(&text);
            text.zeroize();
            let decoded = decoded.map_err(|_| de::Error::custom("a secret is not valid base64"))?;
            bytes = Some(SecretBytes::new(decoded));
        }
        bytes.ok_or_else(|| de::Error::missing_field("base64"))
    }
}

/// Name of a stored secret: letters, digits, `_`, `.` and `-`, not a digit, `.` or `-` first. One without `.` and `-` can
/// be the name of a variable.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// Parses the name.
    ///
    /// # Errors
    /// The text does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if first && rest && text.len() <= 128 {
            return Ok(Self(text.to_owned()));
        }
        let rule = "use at most 128 letters, digits, `_`, `.` and `-`, and begin with a letter or `_`";
        Err(InvalidName::new("secret name", text, rule))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a variable of the environment can have this name.
    pub fn is_variable(&self) -> bool {
        is_variable(&self.0)
    }
}

fn is_variable(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SecretName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl FromStr for SecretName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

/// Text that says nothing about secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecretUse {
    /// The secret has an impossible name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The variable has an impossible name.
    #[error("`{0}` cannot be the name of an environment variable of a secret: use letters, digits and `_`")]
    Variable(String),
    /// There is no secret after `secret.`.
    #[error("`{0}`: the name after `secret.` is empty")]
    Empty(String),
    /// It is neither a name nor a mapping.
    #[error("`{0}`: write KEY, K=secret.NAME or *")]
    Form(String),
    /// A file cannot be there.
    #[error("`{0}` is no file for a secret: write KEY:{SECRETS_DIR}/NAME")]
    File(String),
    /// Two secrets for one variable or one file.
    #[error("`{0}` would have two secrets")]
    Twice(String),
    /// Too many.
    #[error("an instance has at most {SECRETS_MAX} secrets")]
    TooMany,
}

/// Variables of the environment that are secrets: `KEY`, `K=secret.NAME` or `*`, with a `?` at the end if the start goes on
/// without one that is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretUse {
    /// Every stored secret whose name can be that of a variable.
    All,
    /// One secret.
    One {
        /// The variable.
        variable: String,
        /// Whose value it has.
        secret: SecretName,
        /// The start goes on without it.
        optional: bool,
    },
}

impl SecretUse {
    /// A variable of the same name.
    ///
    /// # Errors
    /// The name cannot be that of a variable.
    pub fn same(secret: SecretName, optional: bool) -> Result<Self, InvalidSecretUse> {
        let variable = secret.as_str().to_owned();
        Self::mapped(variable, secret, optional)
    }

    fn mapped(variable: String, secret: SecretName, optional: bool) -> Result<Self, InvalidSecretUse> {
        if !is_variable(&variable) {
            return Err(InvalidSecretUse::Variable(variable));
        }
        Ok(Self::One { variable, secret, optional })
    }
}

impl FromStr for SecretUse {
    type Err = InvalidSecretUse;

    fn from_str(text: &str) -> Result<Self, InvalidSecretUse> {
        let shown = || text.chars().take(80).collect::<String>();
        if text == "*" {
            return Ok(Self::All);
        }
        let (text, optional) = text.strip_suffix('?').map_or((text, false), |text| (text, true));
        match text.split_once('=') {
            None => Self::same(SecretName::parse(text)?, optional),
            Some((variable, value)) => match value.strip_prefix("secret.") {
                None => Err(InvalidSecretUse::Form(shown())),
                Some("") => Err(InvalidSecretUse::Empty(shown())),
                Some(name) => Self::mapped(variable.to_owned(), SecretName::parse(name)?, optional),
            },
        }
    }
}

impl fmt::Display for SecretUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::One { variable, secret, optional } => {
                let mark = if *optional { "?" } else { "" };
                if variable == secret.as_str() {
                    write!(f, "{secret}{mark}")
                } else {
                    write!(f, "{variable}=secret.{secret}{mark}")
                }
            }
        }
    }
}

impl TryFrom<String> for SecretUse {
    type Error = InvalidSecretUse;
    fn try_from(text: String) -> Result<Self, InvalidSecretUse> {
        text.parse()
    }
}

impl From<SecretUse> for String {
    fn from(wanted: SecretUse) -> Self {
        wanted.to_string()
    }
}

/// A secret as a file of the guest: `KEY:/run/secrets/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretFile {
    /// Which.
    pub secret: SecretName,
    /// The file.
    pub path: SecretPath,
}

/// A file right below [`SECRETS_DIR`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretPath(String);

impl SecretPath {
    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretPath {
    type Err = InvalidSecretUse;

    fn from_str(text: &str) -> Result<Self, InvalidSecretUse> {
        let name = text.strip_prefix(SECRETS_DIR).and_then(|rest| rest.strip_prefix('/'));
        let fits = name.is_some_and(|name| {
            !matches!(name, "" | "." | "..")
                && name.len() <= FILE_NAME_MAX
                && !name.contains(|c: char| c == '/' || c.is_control())
        });
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSecretUse::File(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for SecretPath {
    type Error = InvalidSecretUse;
    fn try_from(text: String) -> Result<Self, InvalidSecretUse> {
        text.parse()
    }
}

impl From<SecretPath> for String {
    fn from(path: SecretPath) -> Self {
        path.0
    }
}

impl FromStr for SecretFile {
    type Err = InvalidSecretUse;

    fn from_str(text: &str) -> Result<Self, InvalidSecretUse> {
        let (secret, path) =
            text.split_once(':').ok_or_else(|| InvalidSecretUse::File(text.chars().take(80).collect()))?;
        Ok(Self { secret: SecretName::parse(secret)?, path: path.parse()? })
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.secret, self.path.as_str())
    }
}

impl TryFrom<String> for SecretFile {
    type Error = InvalidSecretUse;
    fn try_from(text: String) -> Result<Self, InvalidSecretUse> {
        text.parse()
    }
}

impl From<SecretFile> for String {
    fn from(file: SecretFile) -> Self {
        file.to_string()
    }
}

/// What an instance wants of the stored secrets: names, never values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WantedSecrets {
    /// In its environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<SecretUse>,
    /// As files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<SecretFile>,
}

impl WantedSecrets {
    /// Checks the parts against each other; what is said twice counts once.
    ///
    /// # Errors
    /// One variable or file would have two secrets, or there are too many.
    pub fn checked(mut self) -> Result<Self, InvalidSecretUse> {
        let mut seen = Vec::new();
        let mut variables: Vec<SecretUse> = Vec::new();
        for wanted in self.variables {
            match &wanted {
                SecretUse::All if variables.contains(&SecretUse::All) => continue,
                SecretUse::All => {}
                SecretUse::One { variable, secret, .. } => {
                    match seen.iter().find(|(other, _): &&(String, SecretName)| other == variable) {
                        Some((_, other)) if other == secret => continue,
                        Some(_) => return Err(InvalidSecretUse::Twice(variable.clone())),
                        None => seen.push((variable.clone(), secret.clone())),
                    }
                }
            }
            variables.push(wanted);
        }
        self.variables = variables;
        let mut files: Vec<SecretFile> = Vec::new();
        for file in self.files {
            match files.iter().find(|other| other.path == file.path) {
                Some(other) if *other == file => continue,
                Some(_) => return Err(InvalidSecretUse::Twice(file.path.into())),
                None => files.push(file),
            }
        }
        self.files = files;
        if self.variables.len() + self.files.len() > SECRETS_MAX {
            return Err(InvalidSecretUse::TooMany);
        }
        Ok(self)
    }

    /// Both together; what `other` says about a variable or a file wins.
    ///
    /// # Errors
    /// As [`WantedSecrets::checked`].
    pub fn merged(self, other: Self) -> Result<Self, InvalidSecretUse> {
        let other = other.checked()?;
        let mut merged = self;
        merged.variables.retain(|old| match old {
            SecretUse::All => true,
            SecretUse::One { variable: old, .. } => !other
                .variables
                .iter()
                .any(|new| matches!(new, SecretUse::One { variable, .. } if variable == old)),
        });
        merged.files.retain(|old| other.files.iter().all(|new| new.path != old.path));
        merged.variables.extend(other.variables);
        merged.files.extend(other.files);
        merged.checked()
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_value_is_not_shown_and_travels_exactly() {
        for bytes in [&b"plain \"text\""[..], b"", b"\xff\x00\n", "ü".as_bytes()] {
            let secret = SecretBytes::new(bytes.to_vec());
            assert_eq!(format!("{secret:?}"), "[redacted]");
            let json = serde_json::to_string(&secret).unwrap();
            assert_eq!(serde_json::from_str::<SecretBytes>(&json).unwrap(), secret);
            assert_eq!(serde_json::from_slice::<SecretBytes>(json.as_bytes()).unwrap(), secret);
        }
        let text = serde_json::from_str::<SecretBytes>(r#"{"base64":"c2Vj*"}"#).unwrap_err().to_string();
        assert!(text.contains("base64") && !text.contains("c2Vj"), "{text}");
        for bad in [r#"{"bytes":"x"}"#, "{}", "5", "null"] {
            assert!(serde_json::from_str::<SecretBytes>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_safe_for_environments_and_paths() {
        for good in ["A", "_x9", "db.password", "a-b"] {
            assert!(SecretName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "9a", ".a", "-a", "a b", "a/b", "a=b", "ü", "a\n", &"x".repeat(129)] {
            assert!(SecretName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(!SecretName::parse("a.b").unwrap().is_variable());
    }

    #[test]
    fn uses_have_one_text() {
        for text in ["KEY", "KEY?", "K=secret.db.password", "K=secret.x?", "*"] {
            assert_eq!(text.parse::<SecretUse>().unwrap().to_string(), text);
        }
        assert_eq!("K=secret.K".parse::<SecretUse>().unwrap().to_string(), "K");
        for bad in
            ["", "?", "a.b", "K=v", "K=secret.", "K=secret.?", "=secret.x", "a-b=secret.x", "K=secret.a b"]
        {
            assert!(bad.parse::<SecretUse>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_stay_in_their_directory() {
        let file: SecretFile = "key:/run/secrets/id_ed25519".parse().unwrap();
        assert_eq!((file.secret.as_str(), file.path.as_str()), ("key", "/run/secrets/id_ed25519"));
        for bad in [
            "key",
            "key:",
            "key:/run/secrets",
            "key:/run/secrets/",
            "key:/run/secrets/..",
            "key:/run/secrets/.",
            "key:/run/secrets/a/b",
            "key:/run/secrets//etc",
            "key:/run/secretsx/a",
            "key:/etc/shadow",
            "key:run/secrets/a",
            "key:/run/secrets/a\0",
            ":/run/secrets/a",
        ] {
            assert!(bad.parse::<SecretFile>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused_and_repetition_is_not() {
        let wanted = |variables: &[&str], files: &[&str]| WantedSecrets {
            variables: variables.iter().map(|text| text.parse().unwrap()).collect(),
            files: files.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let once = wanted(&["A", "*"], &["A:/run/secrets/a"]);
        assert_eq!(
            wanted(&["A", "*", "A", "*"], &["A:/run/secrets/a", "A:/run/secrets/a"]).checked(),
            Ok(once)
        );
        assert!(wanted(&["A", "A=secret.B"], &[]).checked().is_err());
        assert!(wanted(&[], &["A:/run/secrets/a", "B:/run/secrets/a"]).checked().is_err());
        let merged = wanted(&["A?", "B"], &["A:/run/secrets/a"])
            .merged(wanted(&["A=secret.C", "D"], &["B:/run/secrets/a"]));
        assert_eq!(merged, Ok(wanted(&["B", "A=secret.C", "D"], &["B:/run/secrets/a"])));
        let many: Vec<SecretUse> = (0..=SECRETS_MAX).map(|n| format!("K{n}").parse().unwrap()).collect();
        assert_eq!(
            WantedSecrets { variables: many, files: Vec::new() }.checked(),
            Err(InvalidSecretUse::TooMany)
        );
    }
}
