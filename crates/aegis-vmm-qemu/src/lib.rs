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
mod directory;
mod machine;
pub mod probe;
mod qmp;
mod save;
mod sys;
mod tsc;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use aegis_types::{Accelerator, Ram, VmSpec};
use aegis_vmm::{Capabilities, Start, Vm, Vmm, VmmError};
use async_trait::async_trait;

use machine::{Begin, Machine};

pub use console::CONSOLE_FILE;

const BACKEND: &str = "qemu";

/// Starts QEMU VMs.
#[derive(Debug)]
pub struct Qemu {
    capabilities: Capabilities,
    tsc: tsc::Clock,
    template: Option<OwnedFd>,
}

impl Qemu {
    /// The backend. Cheap; make it early, because the clock rate of the host is measured from here to the first boot.
    pub fn new() -> Self {
        Self {
            capabilities: Capabilities { name: BACKEND, pause: true, save: true },
            tsc: tsc::Clock::start(),
            template: None,
        }
    }

    /// The same with memory for VMs whose specification says [`Ram::Template`]: a sealed memory file, which QEMU
    /// could otherwise change.
    #[must_use]
    pub fn with_template(self, memory: OwnedFd) -> Self {
        Self { template: Some(memory), ..self }
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

    async fn boot(&self, spec: &VmSpec, start: Start<'_>) -> Result<Box<dyn Vm>, VmmError> {
        check_files(spec)?;
        let begin = match start {
            Start::Boot if spec.ram == Ram::Template => {
                return Err(VmmError::Unsupported {
                    backend: BACKEND,
                    what: "boot on the memory of a template",
                });
            }
            Start::Boot => Begin::Boot { tsc_khz: self.tsc_khz(spec.accelerator).await },
            Start::Restore { state } => Begin::Restore { state: open("saved state", state)?.into() },
        };
        let template = match (&spec.ram, &self.template) {
            (Ram::Template, None) => {
                let context = "cannot use the memory of the template".to_owned();
                let source = io::Error::new(io::ErrorKind::NotFound, "it was not handed over");
                return Err(VmmError::Io { context, source });
            }
            (Ram::Template, template) => template.as_ref(),
            (Ram::Anonymous | Ram::File { .. }, _) => None,
        };
        Ok(Box::new(Machine::start(spec, template, begin)?))
    }
}

impl Qemu {
    /// The rate that the guest has to be told.
    async fn tsc_khz(&self, accelerator: Accelerator) -> Option<u64> {
        match accelerator {
            Accelerator::Tcg => self.tsc.khz().await,
            // There the guest is told by the hypervisor.
            Accelerator::Kvm | Accelerator::Hvf => None,
        }
    }
}

/// QEMU's own words for a missing file name an internal option; ours name the file and its purpose.
fn check_files(spec: &VmSpec) -> Result<(), VmmError> {
    open("kernel", &spec.kernel)?;
    open("initramfs", &spec.initramfs)?;
    spec.disks.iter().try_for_each(|disk| open("disk", &disk.path).map(drop))
}

fn open(what: &str, path: &Path) -> Result<File, VmmError> {
    let opened = || {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
    };
    opened().map_err(|source| VmmError::Io {
        context: format!("cannot read the {what} `{}`", path.display()),
        source,
    })
}
