//! Daemon ↔ worker: what a worker is told at its start, and the JSON-RPC on its control socket.
//!
//! The daemon binds both sockets, passes the listening descriptors to the worker and may die; a later daemon
//! finds the worker by its runtime directory, connects and goes on. On `guest.sock` a client sends
//! `CONNECT <service number>\n`, the worker answers `OK\n` or `ERR <text>\n`, and the bytes that follow belong
//! to that guest service.
//!
//! **Invariant:** additive changes only. An old worker with a newer daemon is normal.

use std::path::PathBuf;

use aegis_types::{InstanceId, Mount, NetSetup, StartKind, VmId, VmSpec};
use serde::{Deserialize, Serialize};

/// File descriptor of the listening control socket in a new worker.
pub const CONTROL_FD: i32 = 3;
/// File descriptor of the listening stream socket in a new worker.
pub const STREAMS_FD: i32 = 4;

/// File descriptor of the sealed memory of a template in a new worker, if its [`WorkerConfig`] says
/// [`aegis_types::Ram::Template`].
pub const TEMPLATE_FD: i32 = 5;

/// Name of the control socket in the runtime directory.
pub const CONTROL_SOCKET: &str = "worker.sock";
/// Name of the stream socket in the runtime directory.
pub const STREAMS_SOCKET: &str = "guest.sock";
/// Name of the identity file ([`WorkerIdentity`]) in the runtime directory, written by the worker before it serves
/// its sockets.
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
    /// Attempts to boot before giving up. They come after the one to restore.
    pub boot_attempts: u8,
    /// Saved state to go on from. If that fails, the VM is booted from empty memory instead, and [`Ready::fallback`]
    /// has the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// Names the VMM's program and the machine that it makes: saved state fits only the same one.
    #[serde(default)]
    pub machine: String,
    /// The guest becomes a template: see [`crate::hello::Hello::template`].
    #[serde(default)]
    pub template: bool,
    /// The guest's network; it has none without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetSetup>,
    /// Directories that the guest mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// What a VM is restored from, beside its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// State of the devices, as the VMM wrote it. Readable when the worker starts; only needed until the VM runs.
    pub state: PathBuf,
    /// [`StartKind::Template`] or [`StartKind::Restore`].
    pub kind: StartKind,
    /// The boot that the memory goes back to, for [`StartKind::Restore`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<VmId>,
}

/// Which process a worker is, so that a later daemon never trusts a recycled pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub start_ticks: u64,
    /// The VM that the worker runs.
    pub vm_id: VmId,
}

impl WorkerIdentity {
    /// Field 22 of the content of `/proc/<pid>/stat`; `None` for another form.
    pub fn start_ticks(stat: &[u8]) -> Option<u64> {
        // The second field is the program's name in parentheses and may contain anything.
        let after_name = stat.get(stat.iter().rposition(|&b| b == b')')? + 1..)?;
        std::str::from_utf8(after_name).ok()?.split_whitespace().nth(19)?.parse().ok()
    }
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
/// Puts another policy in force for the guest's network: [`aegis_types::NetPolicy`] → `null`. A guest that was started
/// without a network has none until its next start.
pub const NET_POLICY: &str = "net_policy";
/// Saves the VM and ends it: no parameters → `null` when everything that [`crate::saved`] names is written and the VMM
/// is gone; the worker ends after it with [`ExitReason::Hibernated`]. Only for a VM whose memory is
/// [`aegis_types::Ram::File`]. A paused VM is let go on for as long as it takes. On an error the VM runs, and nothing
/// is left of the attempt.
pub const HIBERNATE: &str = "hibernate";
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
    /// What the VM was started from.
    #[serde(default = "cold")]
    pub start: StartKind,
    /// Why it was booted although there was saved state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The boot that the guest's memory goes back to, if it is not this VM's own: log lines are counted from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<VmId>,
    /// Where the time went.
    #[serde(default)]
    pub phases: StartPhases,
}

fn cold() -> StartKind {
    StartKind::Cold
}

/// Parts of a start, in microseconds, each counted from the end of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartPhases {
    /// From the start of the VMM to its readiness for commands.
    #[serde(default)]
    pub vmm_us: u64,
    /// Until the saved state was loaded; 0 for a boot.
    #[serde(default)]
    pub load_us: u64,
    /// Until the guest answered the greeting.
    #[serde(default)]
    pub guest_us: u64,
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
    /// Being saved.
    Hibernating,
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
    /// [`HIBERNATE`] was called and the VM is saved.
    Hibernated,
}
