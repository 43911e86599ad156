//! Digests of content: blobs, manifests and configs of OCI images.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::InvalidName;

const ALGORITHM: &str = "sha256:";
const HEX_LEN: usize = 64;

/// `sha256:<64 lower-case hex digits>`. Digests become paths, so nothing else can be in one. (The OCI image
/// specification knows further algorithms; no registry in use serves images by them.)
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Parses a digest.
    ///
    /// # Errors
    /// The text is anything but `sha256:` and 64 lower-case hex digits.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let hex = text.strip_prefix(ALGORITHM).unwrap_or_default();
        if hex.len() == HEX_LEN && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidName::new("digest", text, "it must be `sha256:` and 64 lower-case hex digits"))
    }

    /// The digest of content whose SHA-256 is `hash`.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(ALGORITHM.len() + HEX_LEN);
        text.push_str(ALGORITHM);
        for byte in hash {
            write!(text, "{byte:02x}").expect("a string takes everything");
        }
        Self(text)
    }

    /// The whole text, as in a manifest.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hex digits alone.
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_lower_case_sha256_is_a_digest() {
        let hex = "0123456789abcdef".repeat(4);
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(digest.hex(), hex);
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        for bad in [
            String::new(),
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}0"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:../{}", &hex[3..]),
            format!("sha256:{}\n", &hex[1..]),
            format!("sha256:é{}", &hex[2..]),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_hash_becomes_its_digest() {
        let mut hash = [0; 32];
        hash[0] = 0x0f;
        hash[31] = 0xa0;
        assert_eq!(Digest::from_sha256(&hash).as_str(), format!("sha256:0f{}a0", "00".repeat(30)));
    }
}
