//! Daemon ↔ worker: what a worker is told at its start, and the JSON-RPC on its control socket.
//!
//! The daemon binds both sockets, passes the listening descriptors to the worker and may die; a later daemon
//! finds the worker by its runtime directory, connects and goes on. On `guest.sock` a client sends
//! `CONNECT <service number>\n`, the worker answers `OK\n` or `ERR <text>\n`, and the bytes that follow belong
//! to that guest service.
//!
//! **Invariant:** additive changes only. An old worker with a newer daemon is normal.

use std::path::PathBuf;

use aegis_types::{InstanceId, VmSpec};
use serde::{Deserialize, Serialize};

/// File descriptor of the listening control socket in a new worker.
pub const CONTROL_FD: i32 = 3;
/// File descriptor of the listening stream socket in a new worker.
pub const STREAMS_FD: i32 = 4;

/// Name of the control socket in the runtime directory.
pub const CONTROL_SOCKET: &str = "worker.sock";
/// Name of the stream socket in the runtime directory.
pub const STREAMS_SOCKET: &str = "guest.sock";
/// Name of the identity file ([`WorkerIdentity`]) in the runtime directory, written by the daemon after spawning.
pub const IDENTITY_FILE: &str = "worker.json";
/// Name of the configuration file ([`WorkerConfig`]) in the runtime directory.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the file that a worker leaves when it ends ([`Exited`]) in the runtime directory.
pub const EXIT_FILE: &str = "exit.json";
/// Name of the guest console log in the runtime directory: bounded, the newest part is kept.
pub const CONSOLE_FILE: &str = "console.log";

/// Everything a worker needs to know; a JSON file whose path is its only argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// The instance.
    pub instance_id: InstanceId,
    /// The VM to start. `vm.runtime_dir` is the runtime directory of this worker.
    pub vm: VmSpec,
    /// Host name of the guest.
    pub hostname: String,
    /// 32 hexadecimal digits: machine-id(5).
    pub machine_id: String,
    /// Time for one attempt from the start of the VMM to the guest's answer, in milliseconds.
    pub boot_timeout_ms: u64,
    /// Attempts to boot before giving up.
    pub boot_attempts: u8,
}

/// Which process a worker is, so that a later daemon never trusts a recycled pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub start_ticks: u64,
    /// The VM that the worker runs.
    pub vm_id: aegis_types::VmId,
}

/// No parameters → [`Ready`] once the guest answered, or the boot failure as an error whose `data` is a [`BootFailure`].
/// May be called at any time and by several clients.
pub const WAIT_READY: &str = "wait_ready";
/// No parameters → [`WorkerStatus`].
pub const STATUS: &str = "status";
/// Halts the CPUs of the guest: no parameters → `null`. Idempotent.
pub const PAUSE: &str = "pause";
/// Undoes [`PAUSE`] and sets the guest's clock: no parameters → `null`. Idempotent.
pub const RESUME: &str = "resume";
/// Stops the guest in order, then by force: [`Stop`] → `null` when the VM is gone. The worker ends after it.
pub const STOP: &str = "stop";
/// Notification to every control client before the worker ends: [`Exited`].
pub const EXITED: &str = "exited";

/// Answer of [`WAIT_READY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Version of the harness.
    pub harness_version: String,
    /// Generation that the link speaks.
    pub generation: u32,
    /// From the start of the VMM to the guest's answer, in milliseconds; of the last attempt.
    pub boot_ms: u64,
    /// Attempts that it took.
    pub attempts: u8,
}

/// Why a VM did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// What failed.
    pub message: String,
    /// The last lines of the guest's console, oldest first.
    pub console: Vec<String>,
}

/// Phase of a worker's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not answering yet.
    Booting,
    /// Running.
    Running,
    /// CPUs halted.
    Paused,
    /// Being stopped.
    Stopping,
}

/// How well a worker shut itself in, best effort of the kernel it runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Landlock ABI in force; 0 when the kernel has none.
    pub landlock_abi: u32,
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// prctl(PR_SET_NO_NEW_PRIVS) is in force.
    pub no_new_privs: bool,
    /// A cgroup of its own with limits, if one could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// Answer of [`STATUS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Phase.
    pub phase: Phase,
    /// Process id of the VMM while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_pid: Option<u32>,
    /// Confinement of worker and VMM.
    pub confinement: Confinement,
    /// Version of the worker.
    pub version: String,
}

/// Parameters of [`STOP`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Time for the guest's processes between SIGTERM and SIGKILL, in milliseconds; 0 ends the VMM at once.
    pub grace_ms: u64,
}

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// The kind of end.
    pub reason: ExitReason,
    /// Detail for people.
    pub message: String,
}

/// Kinds of [`Exited`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// [`STOP`] was called.
    Stopped,
    /// The VM did not come up.
    BootFailed,
    /// The guest switched itself off or its kernel died.
    GuestShutdown,
    /// The VMM died.
    VmmDied,
    /// The guest broke the rules of the link.
    LinkViolation,
}
