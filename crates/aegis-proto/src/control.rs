//! JSON-RPC between host and harness ([`crate::service::Service::Control`]).
//!
//! The host calls; the guest only answers. Several control streams may be open at once: the worker uses one
//! for the clock and parking, the daemon one for the primary process.

use std::collections::BTreeMap;
use std::fmt;

use aegis_types::{ExitStatus, SecretBytes, SecretPath};
use serde::{Deserialize, Serialize};

/// Starts the primary process: [`Run`] → [`Started`]. A second call fails.
pub const RUN: &str = "run";
/// No parameters → [`Status`].
pub const STATUS: &str = "status";
/// Sets the realtime clock: [`ClockSet`] → `null`.
pub const CLOCK_SET: &str = "clock.set";
/// Ends every process and switches the machine off: [`Shutdown`] → `null`, answered before anything ends.
pub const SHUTDOWN: &str = "shutdown";
/// Makes the guest safe to save: waits until its root file system is ready, writes its disks, → `null`; then the host
/// closes the multiplexer and waits for [`crate::hello::Greeting::Parked`]. No parameters.
pub const PARK: &str = "park";

/// A process to start.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments, no shell. A name without `/` is looked up in the `PATH` of the final environment.
    pub command: Vec<String>,
    /// Added to the environment of the harness; wins over it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `USER[:GROUP]`, names or numbers of the guest. When absent, root for the primary process and the primary's for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

impl fmt::Debug for Process {
    // Values of variables may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("command", &self.command)
            .field("env", &self.env.keys())
            .field("workdir", &self.workdir)
            .field("user", &self.user)
            .finish()
    }
}

/// Parameters of [`RUN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The primary process. Its environment is also the base of every later exec.
    pub process: Process,
    /// Files that are there before it starts. Only for a harness that says [`Status::secret_files`]: an older one does
    /// not look at them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<SecretContent>,
    /// How it is connected. Only for a harness that says [`Status::streams`], unless it is the default.
    #[serde(default, skip_serializing_if = "Streams::is_default")]
    pub streams: Streams,
}

/// How the primary process is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input is open for those who attach; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// It has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Somebody is about to attach: it is not listened to before that, so that they miss nothing, not even its end.
    #[serde(default)]
    pub attach_first: bool,
}

impl Streams {
    /// Output alone, for the log.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A file in memory that root alone can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretContent {
    /// Where.
    pub path: SecretPath,
    /// What is in it.
    pub value: SecretBytes,
}

/// A process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id in the guest.
    pub pid: u32,
}

/// Why a process did not start. It is the `data` of a failed [`RUN`] and the payload of an exec refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// What kind of failure.
    pub kind: StartFailureKind,
    /// For people; names the program.
    pub message: String,
}

/// Kinds of [`StartFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFailureKind {
    /// No such program (shells say 127).
    NotFound,
    /// The program is there and cannot be executed (shells say 126).
    NotExecutable,
    /// The working directory cannot be entered.
    BadWorkdir,
    /// The request itself is wrong: an empty command, a NUL byte.
    Invalid,
    /// No memory, too many processes and the like.
    Resources,
}

impl StartFailureKind {
    /// The exit code that a shell would give, so that callers can treat the failure as an exit.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable | Self::BadWorkdir | Self::Invalid | Self::Resources => 126,
        }
    }
}

/// Answer of [`STATUS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the harness.
    pub version: String,
    /// Pid of the primary process once it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_pid: Option<u32>,
    /// Its end, once it ended. Kept until the VM is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_exit: Option<ExitStatus>,
    /// It knows [`Run::secret_files`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret_files: bool,
    /// It knows [`Run::streams`] and [`Process::user`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
}

/// Parameters of [`CLOCK_SET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSet {
    /// Nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
}

/// Parameters of [`SHUTDOWN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Time between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
}
