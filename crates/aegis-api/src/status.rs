//! The daemon itself.

use std::path::PathBuf;

use aegis_types::Accelerator;
use serde::{Deserialize, Serialize};

/// The daemon and what it would use for the next VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What a backend can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCapabilities {
    /// CPUs can be halted and go on later.
    pub pause_resume: bool,
    /// A paused VM costs no memory.
    pub persistent_pause: bool,
    /// The root file system comes from read-only images.
    pub boot_from_disk_layers: bool,
    /// How guests reach the network.
    pub network_backend: String,
}

/// A file that VMs need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetStatus {
    /// `vmm`, `kernel`, `initramfs`, `base image`, `disk template` or `worker`.
    pub name: String,
    /// Where it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
