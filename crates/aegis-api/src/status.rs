//! The daemon itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use aegis_types::Accelerator;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The daemon and what it would use for the next VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DaemonStatus {
    /// Always `running`.
    pub status: String,
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Name of the VMM backend.
    pub backend: String,
    /// What the backend can do.
    pub capabilities: BackendCapabilities,
    /// What executes guest instructions; absent until it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Why no faster accelerator is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_reason: Option<String>,
    /// Files that a VM needs.
    pub assets: Vec<AssetStatus>,
    /// Live VMs.
    pub live_vms: u32,
    /// The HTTP router; absent from daemons that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterStatus>,
    /// Memory that all VMs may have together, in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_budget_mb: Option<u64>,
}

/// The HTTP router: one address for every instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouterStatus {
    /// Where it listens, such as `127.0.0.1:8099`; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<SocketAddr>,
    /// Why it does not listen. Ports of instances do not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Ends the daemon, which begins when this is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ShutdownRequest {
    /// What becomes of running instances.
    #[serde(default)]
    pub mode: ShutdownMode,
}

/// What becomes of running instances when the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// They are hibernated, and stopped where that cannot be. SIGTERM means this.
    #[default]
    Hibernate,
    /// They are stopped.
    Stop,
}

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendCapabilities {
    /// CPUs can be halted and go on later.
    pub pause_resume: bool,
    /// An instance can rest without any cost: its memory is on disk, and its processes go on when it wakes.
    pub persistent_pause: bool,
    /// The root file system comes from read-only images.
    pub boot_from_disk_layers: bool,
    /// How guests reach the network.
    pub network_backend: String,
}

/// A file that VMs need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssetStatus {
    /// `vmm`, `kernel`, `initramfs`, `base image`, `disk template` or `worker`.
    pub name: String,
    /// Where it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
