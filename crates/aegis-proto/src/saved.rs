//! What a saved VM consists of: the files in the directory of its memory.
//!
//! ```text
//! ram          the memory, sparse; in use while the VM runs
//! state        the devices
//! mounts-<n>   what the guest knows of the directory of the host that it has mounted as its n-th
//! saved.json   [`SavedVm`]: written last
//! taken.json   the same, once a VM is to be started from it; removed by the worker before the VMM touches anything
//! ```
//!
//! **Invariant:** memory, devices and disk belong together. Whoever starts a VM from them, or boots from the disk
//! without them, removes both descriptions first: they are used once. A `taken.json` without a worker is a VM that was never
//! started: nothing has changed since it was saved.

use aegis_types::VmId;
use serde::{Deserialize, Serialize};

/// Name of the memory file.
pub const RAM_FILE: &str = "ram";
/// Name of the file with the state of the devices.
pub const STATE_FILE: &str = "state";
/// Beginning of the names of the files for mounted directories; the place in the list of mounts follows.
pub const MOUNT_FILE: &str = "mounts-";
/// Name of the file that says that a saved VM is complete: [`SavedVm`].
pub const SAVED_FILE: &str = "saved.json";
/// Name of [`SAVED_FILE`] from the decision to start a VM from it until a worker does.
pub const TAKEN_FILE: &str = "taken.json";

/// Version of the format of this file.
pub const SAVED_VERSION: u32 = 1;

/// A complete saved VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVm {
    /// [`SAVED_VERSION`].
    pub version: u32,
    /// What must be the same at the restore: [`crate::worker::WorkerConfig::machine`].
    pub machine: String,
    /// The boot that the memory goes back to.
    pub boot_id: VmId,
    /// Length of the memory file in bytes.
    pub ram_bytes: u64,
    /// Length of the device state in bytes.
    pub state_bytes: u64,
    /// SHA-256 of the device state, in hexadecimal.
    pub state_sha256: String,
    /// Boot of the host (`/proc/sys/kernel/random/boot_id`) in which it was saved. Memory that was not yet on the disk
    /// when the host went down must not be used.
    pub host_boot: String,
    /// The memory has reached the disk since.
    #[serde(default)]
    pub durable: bool,
    /// Generation of the guest wire that the harness speaks.
    pub generation: u32,
    /// Nanoseconds since the Unix epoch.
    pub saved_unix_ns: u64,
}
