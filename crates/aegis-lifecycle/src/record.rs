//! What is remembered of an instance.

use std::collections::BTreeMap;

use aegis_types::{Handle, ImageName, InstanceId, Mib, Mount, Policy, StopReason, Vcpus};
use jiff::Timestamp;

/// What was asked for; never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// Id.
    pub id: InstanceId,
    /// Name.
    pub handle: Option<Handle>,
    /// Image of the root file system.
    pub image: ImageName,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    pub workdir: Option<String>,
    /// Guest memory.
    pub memory: Mib,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// What it does by itself.
    pub policy: Policy,
    /// The instance that it was made by: it does not run without it and goes with it.
    pub parent: Option<InstanceId>,
    /// Directories of the host that its guest mounts.
    pub mounts: Vec<Mount>,
    /// The first of them was made for this instance and goes with it.
    pub auto_workspace: bool,
    /// Creation.
    pub created_at: Timestamp,
}

/// The durable part of an instance: survives every crash of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What was asked for.
    pub spec: InstanceSpec,
    /// It may be woken.
    pub enabled: bool,
    /// A VM was started and its end was not recorded: after a crash there may be a worker to adopt.
    pub live: bool,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last time that it was started or used.
    pub last_active_at: Option<Timestamp>,
    /// Start of its life: the last start that was not a restore. For [`Policy::max_lifetime`].
    pub life_began_at: Option<Timestamp>,
    /// Crashes in a row, until [`Record::last_stop`].
    pub crashes: u8,
    /// End of the last VM.
    pub last_stop: Option<LastStop>,
}

/// How the last VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastStop {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: StopReason,
    /// Exit code of the command, for [`StopReason::Exited`].
    pub exit_code: Option<u8>,
    /// What went wrong, when something did.
    pub error: Option<String>,
}
