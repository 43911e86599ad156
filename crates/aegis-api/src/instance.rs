//! Instances.

use std::collections::BTreeMap;

use aegis_types::{Handle, ImageName, InstanceId, InstanceState, Mib, StopReason, Vcpus};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Creates an instance, or starts the stopped one that has this handle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CreateInstance {
    /// Program and arguments, no shell. Required unless the handle exists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Name, unique among instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Image; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<ImageName>,
    /// Environment of the command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute working directory in the guest; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mib>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Vcpus>,
}

/// Answer to [`CreateInstance`]: 201 when created, 200 when an existing one was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedInstance {
    /// Id.
    pub id: InstanceId,
    /// Always `starting`.
    pub state: InstanceState,
    /// Command.
    pub command: Vec<String>,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Image.
    pub image_ref: ImageName,
    /// What the caller should know although the request was carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An instance in a list. Lists are ordered: running, starting, paused, stopped, disabled; then by age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSummary {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// State.
    pub state: InstanceState,
    /// It may be started by others than its owner's explicit request.
    pub enabled: bool,
    /// Command.
    pub command: Vec<String>,
    /// Image.
    pub image_ref: ImageName,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last end of its VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
}

/// Everything about an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// State.
    pub state: InstanceState,
    /// It may be started by others than its owner's explicit request.
    pub enabled: bool,
    /// Command.
    pub command: Vec<String>,
    /// Image.
    pub image_ref: ImageName,
    /// Memory in MiB.
    pub memory_mb: Mib,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Names of the environment variables; values are not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_keys: Vec<String>,
    /// Working directory of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last time that it ran, was started or was used by exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<Timestamp>,
    /// Last end of its VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    /// Why it has no VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Exit code of the command when `stop_reason` is `exited`; 128 + N for signal N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// What went wrong last, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Version of the harness in the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness_version: Option<String>,
    /// Accelerator of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<aegis_types::Accelerator>,
    /// From the start of the VMM to the guest's first answer, in milliseconds, of this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// How well the worker of the VM shut itself in, such as `landlock (ABI 3), seccomp, no_new_privs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<String>,
    /// Exec commands in flight.
    pub active_execs: u32,
}

/// Answer of the actions: what the instance is now, such as `starting`, `stopped`, `deleted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateReply {
    /// One word.
    pub status: String,
}

/// Answer of prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReply {
    /// Number of deleted instances.
    pub pruned: usize,
    /// Their ids.
    pub ids: Vec<InstanceId>,
}
