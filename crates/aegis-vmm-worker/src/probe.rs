//! A trial boot: does the accelerator of a configuration really run our kernel?

use std::time::Duration;

use aegis_proto::worker::WorkerConfig;
use aegis_vmm::{Start, Vm, Vmm};
use serde::{Deserialize, Serialize};

use crate::boot::{Attempt, Plan, attempt, reap};
use crate::content;

/// A host on which booting takes longer is not worth the accelerator.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// The outcome of a trial. `aegis-vmm-worker probe` prints it as one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The harness answered.
    pub ok: bool,
    /// Why not; empty on success.
    pub message: String,
    /// From the start of the VMM to the answer, in milliseconds; 0 on failure.
    pub boot_ms: u64,
}

/// Boots a VM once up to the answer of its harness, and ends it. Takes at most 20 s, less if the configuration says so.
/// The configuration names a runtime directory of its own; disks are not needed.
pub async fn probe(config: &WorkerConfig, vmm: &dyn Vmm) -> ProbeReport {
    let limit = PROBE_DEADLINE.min(Duration::from_millis(config.boot_timeout_ms));
    let plan = Plan { vm: &config.vm, start: Start::Boot, limit };
    let started = |vm: &dyn Vm| {
        if let Some(stream) = vm.content() {
            content::serve(stream, Vec::new());
        }
    };
    match attempt(vmm, config, plan, started, std::future::pending::<()>()).await {
        Attempt::Up(up) => {
            reap(up.vm.as_ref()).await;
            let boot_ms = u64::try_from(up.took.as_millis()).unwrap_or(u64::MAX);
            ProbeReport { ok: true, message: String::new(), boot_ms }
        }
        Attempt::Failed { failure, .. } => ProbeReport { ok: false, message: failure.message, boot_ms: 0 },
        Attempt::Interrupted(()) => unreachable!("nothing interrupts it"),
    }
}
