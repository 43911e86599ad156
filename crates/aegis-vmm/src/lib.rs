//! What a virtual machine monitor (VMM) can do for us, whichever it is.
//!
//! A backend implements [`Vmm`] and [`Vm`]; the worker is the only caller. A VM here is a machine with CPUs,
//! disks and one byte stream to its harness; what is said on that stream is none of a backend's business.
//!
//! **Invariant:** platform differences stop at the backends. Callers never downcast: what a backend cannot do
//! is a field of [`Capabilities`] and a method that answers [`VmmError::Unsupported`].
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use aegis_types::VmSpec;
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A reliable byte stream to the harness, before the handshake.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// What a backend offers on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Name of the backend, as users see it.
    pub name: &'static str,
    /// CPUs can be halted and go on later with memory kept.
    pub pause: bool,
    /// A VM whose memory is a file can be saved and restored.
    pub save: bool,
}

/// What a VM begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start<'a> {
    /// The kernel, on empty memory.
    Boot,
    /// Where a saved VM was: its memory is in place, as [`VmSpec::ram`] says.
    Restore {
        /// State of the devices, as [`Vm::save`] wrote it.
        state: &'a Path,
    },
}

/// Where the time of a start went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StartTimes {
    /// From the start of the VMM to its readiness for commands.
    pub vmm: Duration,
    /// From there until the saved state was loaded and the CPUs run; zero for a boot.
    pub load: Duration,
}

/// What [`Vm::save`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// A backend failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The program of the VMM could not be started.
    #[error("cannot start `{program}`")]
    Spawn {
        /// Path of the program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM ended while it was asked for something.
    #[error("the VMM ended: {0}")]
    Ended(String),
    /// The VMM refused a request.
    #[error("the VMM refused `{command}`: {message}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its answer.
        message: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not answer `{command}` within {timeout_ms} ms")]
    Timeout {
        /// What was asked.
        command: String,
        /// How long was waited.
        timeout_ms: u64,
    },
    /// Files or sockets of the VM.
    #[error("{context}")]
    Io {
        /// What was attempted.
        context: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// This backend cannot do it.
    #[error("{backend} cannot {what}")]
    Unsupported {
        /// Name of the backend.
        backend: &'static str,
        /// What was asked.
        what: &'static str,
    },
}

/// Why a VM is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered off, rebooted or panicked.
    GuestShutdown,
    /// [`Vm::kill`] was called.
    Killed,
    /// The VMM died by itself: its status and last error output.
    Died(String),
}

/// Starts VMs.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// What this backend offers.
    fn capabilities(&self) -> &Capabilities;

    /// Starts a VM. Success means that the VMM was started, not that it works: [`Vm::started`] tells. If the future
    /// is dropped, the VMM is killed.
    ///
    /// # Errors
    /// Nothing is left running on an error. [`VmmError::Unsupported`] for a restore without [`Capabilities::save`].
    async fn boot(&self, spec: &VmSpec, start: Start<'_>) -> Result<Box<dyn Vm>, VmmError>;
}

/// A VM whose VMM was started. Dropping it kills the VMM.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Process id of the VMM, where it is a process.
    fn pid(&self) -> Option<u32>;

    /// Waits until the CPUs run: those of a restored VM only after its state was loaded. May be called at any time.
    ///
    /// # Errors
    /// The VMM refused, ended or took too long. It may be alive: kill it.
    async fn started(&self) -> Result<StartTimes, VmmError>;

    /// Opens the byte stream to the harness. At most one at a time; open again after the last one was dropped.
    ///
    /// Works from the beginning: a restored guest whose harness was parked finds the host there when its CPUs start,
    /// and what was sent until then.
    ///
    /// # Errors
    /// The VMM is gone.
    async fn connect(&self) -> Result<Box<dyn Carrier>, VmmError>;

    /// The other end of the VM's network device: Ethernet frames in both directions, each after its length as a
    /// big-endian `u32`. Only the first call gets it. While nobody has it the guest's frames wait.
    fn ethernet(&self) -> Option<UnixStream>;

    /// A second byte stream to the harness, for the messages of mounted directories, from the first instruction of the VM to
    /// its end. Only the first call gets it.
    fn files(&self) -> Option<UnixStream>;

    /// The disk with the content of their files: a client of NBD at the other end reads it, from before the first instruction
    /// of the VM. The VMM does not start before somebody has answered it. Only the first call gets it.
    fn content(&self) -> Option<UnixStream>;

    /// Halts the CPUs. Idempotent.
    ///
    /// # Errors
    /// [`VmmError::Unsupported`] without [`Capabilities::pause`]; otherwise the CPUs may or may not be halted.
    async fn pause(&self) -> Result<(), VmmError>;

    /// Lets the CPUs go on. Idempotent.
    ///
    /// # Errors
    /// As for [`Vm::pause`].
    async fn resume(&self) -> Result<(), VmmError>;

    /// Saves the devices of a running VM to a file, which is new or replaced in one step. Afterwards the CPUs are
    /// halted: memory file and state belong together until [`Vm::resume`], which makes the state worthless. If the
    /// future is dropped the CPUs may run or not, and nothing is left of the file.
    ///
    /// # Errors
    /// [`VmmError::Unsupported`] without [`Capabilities::save`]. On any error the CPUs run as before, unless the VMM
    /// has ended or does not answer, and there is no file.
    async fn save(&self, state: &Path) -> Result<SavedState, VmmError>;

    /// Ends the VMM at once. Idempotent; the guest is not asked.
    fn kill(&self);

    /// Waits until the VMM has ended and was reaped. May be called any number of times and dropped at any time.
    async fn exited(&self) -> VmExit;

    /// The last lines that the guest wrote to its console, oldest first, with control characters removed.
    fn console_tail(&self) -> Vec<String>;
}
