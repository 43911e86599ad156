//! Instances.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aegis_types::{
    Digest, DiskSize, GuestPort, Handle, IdlePolicy, ImageName, InstanceId, InstanceState, Mib, Mount,
    NetPolicy, PullPolicy, RestartPolicy, SecretFile, SecretUse, StartKind, StopReason, Vcpus,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Endpoint, ExposeRequest, NetStatus};

/// Creates an instance, or starts the stopped one that has this handle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateInstance {
    /// Program and arguments, no shell. Without it an instance runs what its image says (as with `oci_defaults`), or the
    /// stopped instance of that handle is started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Name, unique among instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Image; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<ImageName>,
    /// Whether its registry is asked first; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Entry point, command, working directory and user of the image count where nothing else is asked for: `command`
    /// is what follows the entry point.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oci_defaults: bool,
    /// Environment of the command, above that of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets as further variables: `KEY`, `K=secret.NAME` or `*`, with a `?` at the end for one that may be missing.
    /// Those in `env` win.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
    /// Secrets as files: `KEY:/run/secrets/NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<SecretFile>,
    /// Absolute working directory in the guest; `/` when absent, or the image's with `oci_defaults`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User and perhaps group of the command in the guest, as `USER[:GROUP]`, names or numbers; root when absent,
    /// or the image's with `oci_defaults`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command has a terminal, see [`crate::Attach`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The command's standard input is open for [`crate::Attach`]; otherwise it is empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mib>,
    /// Size of its disk in MiB: no more can be written in its guest, the workspace aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<DiskSize>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Vcpus>,
    /// Ports that are to be reachable from the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposes: Vec<ExposeRequest>,
    /// Idle time before it is paused, in milliseconds; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_ms: Option<u64>,
    /// Paused time before it is hibernated, in milliseconds; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_after_ms: Option<u64>,
    /// Idleness never pauses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_pause: bool,
    /// Its memory is never written to disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_hibernate: bool,
    /// It is stopped for good so long after its start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime_ms: Option<u64>,
    /// What follows the end of its command.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// What keeps it awake.
    #[serde(default, skip_serializing_if = "is_default")]
    pub idle_policy: IdlePolicy,
    /// Its creator deletes it when its command has ended; it is never hibernated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// What it may reach; the public internet when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetPolicy>,
    /// Ports of the host's loopback interface that it reaches at `host.aegis.internal`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<GuestPort>,
    /// What it has at `/workspace`: the name of a workspace, or the absolute path of a directory of the host; a workspace of
    /// its own when absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// It cannot change what is at `/workspace`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub workspace_read_only: bool,
    /// Further directories of the host, by absolute paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// The instance that it belongs to: it is stopped when that one is and deleted with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<InstanceId>,
}

/// Changes what an instance is asked for; absent is as before. Idle times and policies hold at once, the rest from the next start
/// of the VM on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateInstance {
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mib>,
    /// Size of its disk in MiB, which can only become larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<DiskSize>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Vcpus>,
    /// Environment variables that are added or get another value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Environment variables that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unset_env: Vec<String>,
    /// Idle time before it is paused, in milliseconds; takes `never_pause` back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_ms: Option<u64>,
    /// Idleness never pauses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_pause: bool,
    /// Paused time before it is hibernated, in milliseconds; takes `no_hibernate` back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_after_ms: Option<u64>,
    /// Its memory is never written to disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_hibernate: bool,
    /// What keeps it awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_policy: Option<IdlePolicy>,
}

/// Answer to [`UpdateInstance`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpdatedInstance {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Something of it waits for the next start: a VM runs, or is saved, as it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart_required: bool,
    /// What the caller should know although the request was carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Answer to [`CreateInstance`]: 201 when created, 200 when an existing one was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedInstance {
    /// Id.
    pub id: InstanceId,
    /// Always `starting`.
    pub state: InstanceState,
    /// Command.
    pub command: Vec<String>,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Image.
    pub image_ref: ImageName,
    /// Its ports, where it has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// What the caller should know although the request was carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An instance in a list. Lists are ordered: running, starting, paused, hibernated, stopped, disabled; then by age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceSummary {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// State.
    pub state: InstanceState,
    /// It may be started by others than its owner's explicit request.
    pub enabled: bool,
    /// Command.
    pub command: Vec<String>,
    /// Image.
    pub image_ref: ImageName,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last end of its VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    /// Last time that it ran, was started or was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<Timestamp>,
    /// Open connections to its ports.
    #[serde(default)]
    pub active_connections: u32,
    /// Its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// Everything about an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceInfo {
    /// Id.
    pub id: InstanceId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// State.
    pub state: InstanceState,
    /// It may be started by others than its owner's explicit request.
    pub enabled: bool,
    /// Command.
    pub command: Vec<String>,
    /// Image.
    pub image_ref: ImageName,
    /// `sha256:` and 64 hexadecimal digits of the root image that its disk belongs to, whatever the name means by now.
    /// Absent before its first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// What the registry knew that image by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_manifest: Option<Digest>,
    /// Entry point, command and working directory of the image count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oci_defaults: bool,
    /// Memory in MiB.
    pub memory_mb: Mib,
    /// Size of its disk in MiB; what of it is taken on the host is in the statistics.
    pub disk_mb: DiskSize,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Names of the environment variables; values are not shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_keys: Vec<String>,
    /// Secrets that its boots get as variables: names, never values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_keys: Vec<SecretUse>,
    /// Secrets that its boots get as files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<SecretFile>,
    /// Working directory of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command has a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// The command's standard input is open for clients that attach.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin: bool,
    /// What it may reach.
    #[serde(default)]
    pub net: NetStatus,
    /// Directory of the host that it has at `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub workspace: Option<PathBuf>,
    /// That directory was made for it and is deleted with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_workspace: bool,
    /// All directories of the host that it mounts, `/workspace` first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// The instance that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<InstanceId>,
    /// Creation.
    pub created_at: Timestamp,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last time that it ran, was started or was used by exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_active_at: Option<Timestamp>,
    /// Last end of its VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    /// Why it has no VM, while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Exit code of the command when `stop_reason` is `exited`; 128 + N for signal N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// What went wrong last, when something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Version of the harness in the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub harness_version: Option<String>,
    /// Accelerator of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<aegis_types::Accelerator>,
    /// From the start of the VMM to the guest's first answer, in milliseconds, of this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// How well the worker of the VM shut itself in, such as `landlock (ABI 3), seccomp, no_new_privs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confinement: Option<String>,
    /// What this VM was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_kind: Option<StartKind>,
    /// The same time as `boot_ms`, whatever the VM was started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// Exec commands in flight.
    pub active_execs: u32,
    /// Open connections to its ports.
    #[serde(default)]
    pub active_connections: u32,
    /// Runs that follow it and keep it awake.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attached: u32,
    /// Guest ports that are exposed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose_ports: Vec<GuestPort>,
    /// Its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Idle time before it is paused, in milliseconds, as it applies; absent when idleness never pauses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_after_ms: Option<u64>,
    /// Paused time before it is hibernated, in milliseconds, as it applies; absent when it never is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernate_after_ms: Option<u64>,
    /// Idleness never pauses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_pause: bool,
    /// Its memory is never written to disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_hibernate: bool,
    /// It is stopped for good so long after its start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime_ms: Option<u64>,
    /// What follows the end of its command.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// What keeps it awake.
    #[serde(default)]
    pub idle_policy: IdlePolicy,
    /// Its creator deletes it when its command has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// A lease keeps it awake.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lease_held: bool,
    /// What the lease is for, as its holder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_reason: Option<String>,
    /// When the lease ends unless it is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<Timestamp>,
    /// When it was hibernated, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernated_at: Option<Timestamp>,
    /// How often it was woken since the daemon started.
    #[serde(default)]
    pub wakes: u64,
    /// How often its restart policy started it again since the daemon started.
    #[serde(default, skip_serializing_if = "is_default")]
    pub restarts: u64,
    /// Failures right after a start, one after the other.
    #[serde(default, skip_serializing_if = "is_default")]
    pub crashes: u32,
}

/// Answer of the actions: what the instance is now, such as `starting`, `stopped`, `deleted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateReply {
    /// One word.
    pub status: String,
}

/// Answer of prune.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PruneReply {
    /// Number of deleted instances.
    pub pruned: usize,
    /// Their ids.
    pub ids: Vec<InstanceId>,
}
