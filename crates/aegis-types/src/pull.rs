//! When an image is looked up at its registry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::UnknownPolicy;

/// Whether the registry of an image is asked before an instance has its first boot. Later boots never ask: an instance
/// keeps the image that its disk belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// If no image of that name is there.
    #[default]
    Missing,
    /// In any case, but for the built-in image and for one whose name has its digest.
    Always,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Always, Self::Never];

    /// The policy as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PullPolicy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| UnknownPolicy::new("pull policy", text, "missing, always or never"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for policy in PullPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        let text = "often".parse::<PullPolicy>().unwrap_err().to_string();
        assert_eq!(text, "unknown pull policy `often`: it is missing, always or never");
    }
}
