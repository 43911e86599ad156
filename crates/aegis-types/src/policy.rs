//! What an instance does by itself: rest, end, start again.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The text names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} `{text}`: it is {choices}")]
pub struct UnknownPolicy {
    what: &'static str,
    text: String,
    choices: &'static str,
}

impl UnknownPolicy {
    pub(crate) fn new(what: &'static str, text: &str, choices: &'static str) -> Self {
        Self { what, text: text.to_owned(), choices }
    }
}

/// What happens when the command of an instance, or its VM, ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays stopped.
    #[default]
    No,
    /// It is started again unless the command ended with exit code 0.
    OnFailure,
    /// It is started again.
    Always,
}

impl RestartPolicy {
    /// The policy as users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RestartPolicy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let all = [Self::No, Self::OnFailure, Self::Always];
        all.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| UnknownPolicy {
            what: "restart policy",
            text: text.to_owned(),
            choices: "no, on-failure or always",
        })
    }
}

/// What keeps an instance from being idle, beside connections, execs and leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdlePolicy {
    /// Work that the guest does by itself.
    #[default]
    Default,
    /// Nothing.
    LeasesOnly,
}

impl IdlePolicy {
    /// The policy as it is written in the API and the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::LeasesOnly => "leases_only",
        }
    }
}

impl fmt::Display for IdlePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for IdlePolicy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let all = [Self::Default, Self::LeasesOnly];
        all.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| UnknownPolicy {
            what: "idle policy",
            text: text.to_owned(),
            choices: "default or leases_only",
        })
    }
}

/// What an instance does by itself, as its user asked for; absent times are the daemon's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Idle time before the CPUs are halted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<Duration>,
    /// Paused time before the memory is saved and the VM ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_after: Option<Duration>,
    /// Idleness never pauses it. Only requests do.
    #[serde(default)]
    pub never_pause: bool,
    /// Its memory is never written to disk.
    #[serde(default)]
    pub no_hibernate: bool,
    /// Time from a start to a stop, counted also while it rests. It is not woken after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<Duration>,
    /// What follows the end of its command.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// What keeps it awake.
    #[serde(default)]
    pub idle: IdlePolicy,
    /// Its creator deletes it when its command has ended: it gets a private view of a template and is never hibernated.
    #[serde(default)]
    pub ephemeral: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for policy in [RestartPolicy::No, RestartPolicy::OnFailure, RestartPolicy::Always] {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        for policy in [IdlePolicy::Default, IdlePolicy::LeasesOnly] {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
        let text = "sometimes".parse::<RestartPolicy>().unwrap_err().to_string();
        assert_eq!(text, "unknown restart policy `sometimes`: it is no, on-failure or always");
    }
}
