//! What is remembered of an instance.

use std::collections::BTreeMap;
use std::time::Duration;

use aegis_types::{
    DiskSize, Handle, IdlePolicy, ImageName, InstanceId, Mib, Mount, Policy, StopReason, Vcpus,
};
use jiff::Timestamp;

/// What was asked for. An [`Update`] makes another one of it; id, name, image, command and mounts never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// Id.
    pub id: InstanceId,
    /// Name.
    pub handle: Option<Handle>,
    /// Image of the root file system.
    pub image: ImageName,
    /// Program and arguments; after the image's entry point with [`InstanceSpec::oci_defaults`].
    pub command: Vec<String>,
    /// Environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    pub workdir: Option<String>,
    /// User of the command, as `USER[:GROUP]`.
    pub user: Option<String>,
    /// The command has a terminal.
    pub tty: bool,
    /// The command's standard input is open for those who attach.
    pub stdin: bool,
    /// Entry point, command, working directory and user of the image count where nothing else is asked for.
    pub oci_defaults: bool,
    /// Guest memory.
    pub memory: Mib,
    /// Size of the disk that the guest writes. Never becomes smaller.
    pub disk: DiskSize,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// What it does by itself.
    pub policy: Policy,
    /// The instance that it was made by: it does not run without it and goes with it.
    pub parent: Option<InstanceId>,
    /// Directories of the host that its guest mounts.
    pub mounts: Vec<Mount>,
    /// The first of them was made for this instance and goes with it.
    pub auto_workspace: bool,
    /// Creation.
    pub created_at: Timestamp,
}

/// When idleness has a consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// After so long.
    After(Duration),
    /// Never.
    Never,
}

/// What is to be different from now on; absent is as before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Update {
    /// Guest memory.
    pub memory: Option<Mib>,
    /// Size of the disk: not below what it is.
    pub disk: Option<DiskSize>,
    /// Virtual CPUs.
    pub vcpus: Option<Vcpus>,
    /// Environment variables that are added or get another value.
    pub env: BTreeMap<String, String>,
    /// Environment variables that go.
    pub unset_env: Vec<String>,
    /// When it is paused.
    pub pause: Option<Idle>,
    /// When it is hibernated.
    pub hibernate: Option<Idle>,
    /// What keeps it awake.
    pub idle: Option<IdlePolicy>,
}

impl InstanceSpec {
    /// What is asked for with this update.
    pub fn updated(&self, update: &Update) -> Self {
        let mut spec = self.clone();
        spec.memory = update.memory.unwrap_or(spec.memory);
        spec.disk = update.disk.unwrap_or(spec.disk);
        spec.vcpus = update.vcpus.unwrap_or(spec.vcpus);
        spec.env.retain(|name, _| !update.unset_env.contains(name));
        spec.env.extend(update.env.clone());
        let policy = &mut spec.policy;
        if let Some(pause) = update.pause {
            policy.never_pause = pause == Idle::Never;
            policy.pause_after = pause.time();
        }
        if let Some(hibernate) = update.hibernate {
            policy.no_hibernate = hibernate == Idle::Never;
            policy.hibernate_after = hibernate.time();
        }
        policy.idle = update.idle.unwrap_or(policy.idle);
        spec
    }
}

impl Idle {
    fn time(self) -> Option<Duration> {
        match self {
            Self::After(time) => Some(time),
            Self::Never => None,
        }
    }
}

/// The durable part of an instance: survives every crash of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What was asked for.
    pub spec: InstanceSpec,
    /// It may be woken.
    pub enabled: bool,
    /// A VM was started and its end was not recorded: after a crash there may be a worker to adopt.
    pub live: bool,
    /// Last change of state.
    pub updated_at: Timestamp,
    /// Last time that it was started or used.
    pub last_active_at: Option<Timestamp>,
    /// Start of its life: the last start that was not a restore. For [`Policy::max_lifetime`].
    pub life_began_at: Option<Timestamp>,
    /// Crashes in a row, until [`Record::last_stop`].
    pub crashes: u8,
    /// End of the last VM.
    pub last_stop: Option<LastStop>,
}

/// How the last VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastStop {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: StopReason,
    /// Exit code of the command, for [`StopReason::Exited`].
    pub exit_code: Option<u8>,
    /// What went wrong, when something did.
    pub error: Option<String>,
}
