//! What a backend needs to know to start a VM. Written by the daemon, read by the worker and the backends.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Mib, Vcpus, VmId};

/// What executes guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// Linux KVM.
    Kvm,
    /// Apple's Hypervisor framework.
    Hvf,
    /// QEMU's software emulation: slower, works everywhere.
    Tcg,
}

impl Accelerator {
    /// The name as QEMU and users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Hvf => "hvf",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a disk file is to be read. Never guessed: a guest that writes a qcow2 header to a raw disk must not
/// make the host open the file that the header names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
}

/// A block device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Host file.
    pub path: PathBuf,
    /// Format of the file.
    pub format: DiskFormat,
    /// Serial number by which the guest finds the disk (at most 20 ASCII characters, a virtio limit).
    pub serial: String,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Its length in bytes, if it has grown since the state was saved that a VM is restored from: the guest is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown_to: Option<u64>,
}

/// Where the memory of a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ram {
    /// Nowhere but in the VMM: it ends with the VM.
    #[default]
    Anonymous,
    /// In a file of its own, which always holds what the guest sees. Such a VM can be saved by saving its devices.
    File {
        /// The file, as long as the memory. Its directory is the VM's alone and holds what a saved VM consists of.
        path: PathBuf,
    },
    /// A private copy-on-write view of a sealed memory file that the worker inherits under a fixed descriptor.
    Template,
}

/// Everything that decides how a VM is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Id of this boot.
    pub vm_id: VmId,
    /// Program of the VMM.
    pub vmm_path: PathBuf,
    /// What executes guest instructions.
    pub accelerator: Accelerator,
    /// PVH-bootable kernel.
    pub kernel: PathBuf,
    /// Initramfs with the harness.
    pub initramfs: PathBuf,
    /// Guest memory.
    pub memory: Mib,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Block devices, in order.
    pub disks: Vec<Disk>,
    /// Where the memory is.
    #[serde(default)]
    pub ram: Ram,
    /// Existing private directory for the sockets of this VM.
    pub runtime_dir: PathBuf,
}
