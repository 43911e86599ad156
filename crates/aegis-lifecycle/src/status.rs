//! What can be seen of an instance from outside.

use aegis_proto::worker::{Confinement, Ready};
use aegis_types::{InstanceState, VmId};
use jiff::Timestamp;

use crate::record::LastStop;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
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
    /// Exec sessions in flight.
    pub active_execs: u32,
    /// Files and record are removed.
    pub deleted: bool,
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
}
