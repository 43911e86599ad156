//! What instances cost, and how they start.

use aegis_types::{Handle, InstanceId, InstanceState, StartKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Numbers of the daemon and of every instance, in the order of lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DaemonStats {
    /// Memory that all VMs may have together, in MiB.
    pub ram_budget_mb: u64,
    /// Memory that the live VMs were given, in MiB.
    pub ram_used_mb: u64,
    /// Instances.
    pub instances: Vec<InstanceStats>,
}

/// Numbers of one instance. Counts begin with the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStats {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// State.
    pub state: InstanceState,
    /// How often it was woken.
    pub wakes: u64,
    /// How often it was started, and from what.
    pub starts: StartCounts,
    /// Its last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start: Option<LastStart>,
    /// Processor time of its VM, in milliseconds; 0 without one.
    pub cpu_ms: u64,
    /// Host memory of its VM, in bytes; 0 without one.
    pub rss_bytes: u64,
    /// Host disk space of its root file system, in bytes.
    pub disk_bytes: u64,
    /// Host disk space of its memory, in bytes.
    pub memory_image_bytes: u64,
    /// Open connections to its ports.
    pub active_connections: u32,
    /// Exec commands in flight.
    pub active_execs: u32,
}

/// Starts by what they began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct StartCounts {
    /// A kernel that booted.
    pub cold: u64,
    /// A template.
    pub template: u64,
    /// The instance's own memory.
    pub restore: u64,
}

/// Where the time of a start went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastStart {
    /// What it began with.
    pub kind: StartKind,
    /// From the start of the VMM to the guest's first answer.
    pub total_ms: u64,
    /// Until the VMM was ready.
    pub vmm_ms: u64,
    /// Until saved state was loaded.
    pub load_ms: u64,
    /// Until the guest answered.
    pub guest_ms: u64,
}
