//! The QEMU backend: a `microvm` machine per VM, in a process of its own.
//!
//! [`Qemu::boot`] starts the process with everything it needs inherited (the listening socket of the guest
//! link, one end of a QMP connection, pipes for the console and for error output), so there is nothing to poll
//! for and little that another process could meddle with. One task per VM then owns the process: it moves the
//! console into a bounded log, speaks QMP and reaps.
//!
//! **Invariant:** the VMM may be taken over by its guest. What it writes is bounded and never trusted; a
//! breach of QMP ends it. It dies with the thread that called [`Qemu::boot`], so that a crashed worker leaves
//! no VM behind: call it from a thread that lives as long as the VM.
#![deny(unsafe_code)]

mod args;
mod console;
mod machine;
pub mod probe;
mod qmp;
mod sys;
mod tsc;

use std::fs::File;
use std::path::Path;

use aegis_types::{Accelerator, VmSpec};
use aegis_vmm::{Capabilities, Vm, Vmm, VmmError};
use async_trait::async_trait;

pub use console::CONSOLE_FILE;

/// Starts QEMU VMs.
#[derive(Debug)]
pub struct Qemu {
    capabilities: Capabilities,
    tsc: tsc::Clock,
}

impl Qemu {
    /// The backend. Cheap; make it early, because the clock rate of the host is measured from here to the first boot.
    pub fn new() -> Self {
        Self { capabilities: Capabilities { name: "qemu", pause: true }, tsc: tsc::Clock::start() }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, spec: &VmSpec) -> Result<Box<dyn Vm>, VmmError> {
        check_files(spec)?;
        let tsc_khz = match spec.accelerator {
            Accelerator::Tcg => self.tsc.khz().await,
            // There the guest is told by the hypervisor.
            Accelerator::Kvm | Accelerator::Hvf => None,
        };
        Ok(Box::new(machine::Machine::start(spec, tsc_khz).await?))
    }
}

/// QEMU's own words for a missing file name an internal option; ours name the file and its purpose.
fn check_files(spec: &VmSpec) -> Result<(), VmmError> {
    readable("kernel", &spec.kernel)?;
    readable("initramfs", &spec.initramfs)?;
    spec.disks.iter().try_for_each(|disk| readable("disk", &disk.path))
}

fn readable(what: &str, path: &Path) -> Result<(), VmmError> {
    let check = || {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() { Err(std::io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
    };
    check().map_err(|source| VmmError::Io {
        context: format!("cannot read the {what} `{}`", path.display()),
        source,
    })
}
