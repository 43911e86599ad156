//! The network of an instance.

use aegis_types::{GuestPort, NetPolicy, NetRule};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an instance may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct NetStatus {
    /// The policy in force, which is also that of the next start.
    pub policy: NetPolicy,
    /// Ports of the host's loopback interface that the guest reaches at `host.aegis.internal`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<GuestPort>,
}

/// Adds a rule to the policy, or moves it to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetRuleRequest {
    /// Allowed, or denied.
    pub allow: bool,
    /// The rule.
    pub rule: NetRule,
}
