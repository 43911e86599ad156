//! Keeping an instance awake, and waiting for what it does.

use std::time::Duration;

use aegis_types::{GuestPort, InstanceState};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::policy::{InvalidPolicy, time};

/// Takes the lease of an instance, or renews it: no idleness until it ends. There is one lease; the last one who
/// asks has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeepaliveRequest {
    /// How long, in milliseconds; more than 0.
    pub ttl_ms: u64,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl KeepaliveRequest {
    /// How long.
    ///
    /// # Errors
    /// [`InvalidPolicy`] for no time and for one beyond any use.
    pub fn ttl(&self) -> Result<Duration, InvalidPolicy> {
        match time("ttl_ms", self.ttl_ms)? {
            Duration::ZERO => Err(InvalidPolicy::Zero("ttl_ms")),
            ttl => Ok(ttl),
        }
    }
}

/// What a wait is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// It runs its command.
    Running,
    /// It has no VM and no saved memory.
    Stopped,
    /// Its CPUs are halted.
    Paused,
    /// Its memory is on disk.
    Hibernated,
    /// Something listens on a guest port. The instance is woken for that.
    Port,
}

impl WaitFor {
    /// The goal as it is written in the API.
    pub fn as_str(self) -> &'static str {
        match self.state() {
            Some(state) => state.as_str(),
            None => "port",
        }
    }

    /// The state that is waited for, unless it is a port.
    pub fn state(self) -> Option<InstanceState> {
        match self {
            Self::Running => Some(InstanceState::Running),
            Self::Stopped => Some(InstanceState::Stopped),
            Self::Paused => Some(InstanceState::Paused),
            Self::Hibernated => Some(InstanceState::Hibernated),
            Self::Port => None,
        }
    }
}

/// The query of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// What for.
    #[serde(rename = "for")]
    pub goal: WaitFor,
    /// The guest port, for [`WaitFor::Port`]; the first exposed one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<GuestPort>,
    /// How long, in milliseconds; as long as the daemon allows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn goals_are_written_as_they_are_read() {
        for goal in [WaitFor::Running, WaitFor::Stopped, WaitFor::Paused, WaitFor::Hibernated, WaitFor::Port]
        {
            assert_eq!(serde_json::to_value(goal).unwrap(), goal.as_str());
        }
    }

    #[test]
    fn a_lease_has_an_end_and_some_length() {
        let ttl = |ttl_ms| KeepaliveRequest { ttl_ms, reason: None }.ttl();
        assert_eq!(ttl(1500), Ok(Duration::from_millis(1500)));
        assert!(ttl(0).is_err() && ttl(u64::MAX).is_err());
    }
}
