//! What the driver publishes: everything that servers may know about the VM.

use aegis_link::host::HostLink;
use aegis_proto::worker::{BootFailure, Exited, Phase, Ready};

/// A snapshot of the VM.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    pub(crate) vmm_pid: Option<u32>,
    /// The outcome of the boot, once there is one. Stays.
    pub(crate) boot: Option<Result<Ready, BootFailure>>,
    /// The link while it is up.
    pub(crate) link: Option<HostLink>,
    /// The end: nothing changes any more.
    pub(crate) exited: Option<Exited>,
}

impl View {
    pub(crate) fn booting() -> Self {
        Self { phase: Phase::Booting, vmm_pid: None, boot: None, link: None, exited: None }
    }
}
