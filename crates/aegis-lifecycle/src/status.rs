//! What can be seen of an instance from outside.

use std::sync::Arc;

use aegis_proto::worker::{Confinement, Ready};
use aegis_types::{InstanceState, VmId};
use jiff::Timestamp;

use crate::record::{InstanceSpec, LastStop};
use crate::step::{Rules, Users};

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What is asked for now, which is that of the next start.
    pub spec: Arc<InstanceSpec>,
    /// The rules in force.
    pub rules: Rules,
    /// State. While a VM is being stopped it is still the one before; with a boot to follow it is `starting`.
    pub state: InstanceState,
    /// It may be woken.
    pub enabled: bool,
    /// Last change of state or policy.
    pub updated_at: Timestamp,
    /// Last time that it was started or used.
    pub last_active_at: Option<Timestamp>,
    /// How its last VM ended; present exactly while it is stopped.
    pub stopped: Option<LastStop>,
    /// Its VM, from the decision to boot until it is gone.
    pub vm: Option<VmStatus>,
    /// Who uses the VM.
    pub users: Users,
    /// Somebody keeps it awake.
    pub lease: Option<Lease>,
    /// What happened since the daemon started.
    pub counters: Counters,
    /// Its last start, whether its VM still lives or not.
    pub last_start: Option<Ready>,
    /// The guest can be talked to: its CPUs run and it is not being saved.
    pub reachable: bool,
    /// A boot is under way.
    pub booting: bool,
    /// It may be hibernated at any time: it may be at all, and nobody uses it.
    pub evictable: bool,
    /// Files and record are removed.
    pub deleted: bool,
}

/// A bounded claim that keeps an instance awake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What for, in the holder's words.
    pub reason: Option<String>,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Counts since the daemon started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Times that a use had to wait for a VM to be started or resumed.
    pub wakes: u64,
    /// Boots from the kernel.
    pub cold: u64,
    /// Starts from a template.
    pub template: u64,
    /// Starts from saved memory.
    pub restore: u64,
    /// Times that its CPUs were to be halted or its memory to be saved.
    pub rests: u64,
    /// Starts by the restart policy.
    pub restarts: u64,
    /// Crashes in a row.
    pub crashes: u8,
}

/// What is known of a live VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmStatus {
    /// Which boot it is.
    pub vm_id: VmId,
    /// What the guest said when it first answered.
    pub ready: Option<Ready>,
    /// How well the worker is confined.
    pub confinement: Option<Confinement>,
    /// Process id of the VMM.
    pub vmm_pid: Option<u32>,
}
