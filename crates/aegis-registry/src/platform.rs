//! Platforms of images, in the words of Go.

use std::fmt;

use serde::Deserialize;

use crate::text::printable;

/// The only operating system of guests.
const OS: &str = "linux";

/// What an image is for, as an index says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// Linux on this architecture, as Go (`amd64`) or Rust and the kernel (`x86_64`) call it.
    pub(crate) fn linux(architecture: &str) -> Self {
        Self { architecture: go(architecture).to_owned(), os: OS.to_owned(), variant: None }
    }

    /// Whether images for `self` run on `machine`. What an image does not say is taken for granted.
    pub(crate) fn runs_on(&self, machine: &Self) -> bool {
        (self.os.is_empty() || self.os == machine.os)
            && (self.architecture.is_empty() || go(&self.architecture) == machine.architecture)
    }

    /// Less is more compatible: without a variant, an image is for all machines of its architecture, and the numbers of
    /// variants (`v2`) are levels.
    pub(crate) fn level(&self) -> u32 {
        let Some(variant) = self.variant.as_deref().filter(|variant| !variant.is_empty()) else { return 0 };
        variant.strip_prefix('v').and_then(|level| level.parse().ok()).unwrap_or(u32::MAX)
    }

    /// What it is called if it is nothing that runs: attestations and the like are `unknown/unknown`.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| if text.is_empty() { "?".to_owned() } else { printable(text) };
        write!(f, "{}/{}", part(&self.os), part(&self.architecture))?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", printable(variant)),
            _ => Ok(()),
        }
    }
}

fn go(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let variant = variant.map(str::to_owned);
        Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant }
    }

    #[test]
    fn architectures_have_two_names() {
        let machine = Platform::linux("x86_64");
        assert_eq!(machine.to_string(), "linux/amd64");
        assert!(platform("linux", "amd64", None).runs_on(&machine));
        assert!(platform("linux", "x86_64", Some("v2")).runs_on(&machine));
        assert!(platform("", "", None).runs_on(&machine));
        assert!(!platform("windows", "amd64", None).runs_on(&machine));
        assert!(!platform("linux", "arm64", None).runs_on(&machine));
        assert!(platform("linux", "arm64", Some("v8")).runs_on(&Platform::linux("aarch64")));
    }

    #[test]
    fn variants_are_levels() {
        let level = |variant| platform("linux", "amd64", variant).level();
        assert_eq!([level(None), level(Some("")), level(Some("v1")), level(Some("v3"))], [0, 0, 1, 3]);
        assert_eq!(level(Some("fast")), u32::MAX);
        assert_eq!(platform("linux", "arm", Some("v7")).to_string(), "linux/arm/v7");
    }
}
