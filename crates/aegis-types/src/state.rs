//! What users see of an instance's life.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The observed state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// No VM.
    Stopped,
    /// A VM is being started and does not run the command yet.
    Starting,
    /// The VM runs.
    Running,
    /// The VM is in memory and its CPUs are halted.
    Paused,
    /// No VM; its memory is on disk, and the next start goes on from there.
    Hibernated,
}

impl InstanceState {
    /// The state as it is written in the API, the registry and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Hibernated => "hibernated",
        }
    }
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an instance has no VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It was created and has never been started.
    NeverStarted,
    /// Its command ended by itself.
    Exited,
    /// Somebody asked for the stop.
    Requested,
    /// Somebody disabled it.
    Disabled,
    /// The VM could not be started.
    BootFailed,
    /// The guest switched itself off or its kernel died.
    GuestShutdown,
    /// The VMM or its worker died under it.
    VmmDied,
    /// The guest broke the rules of the guest link.
    GuestFault,
    /// The daemon shut down, or was not there when the VM ended.
    DaemonStopped,
    /// Its memory was saved to disk. While that is so, the instance is [`InstanceState::Hibernated`].
    Hibernated,
    /// It reached the longest life that it was given.
    Lifetime,
    /// The instance that it belongs to was stopped.
    ParentStopped,
}

impl StopReason {
    const ALL: [StopReason; 12] = [
        Self::NeverStarted,
        Self::Exited,
        Self::Requested,
        Self::Disabled,
        Self::BootFailed,
        Self::GuestShutdown,
        Self::VmmDied,
        Self::GuestFault,
        Self::DaemonStopped,
        Self::Hibernated,
        Self::Lifetime,
        Self::ParentStopped,
    ];

    /// The reason as it is written in the API and the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeverStarted => "never_started",
            Self::Exited => "exited",
            Self::Requested => "requested",
            Self::Disabled => "disabled",
            Self::BootFailed => "boot_failed",
            Self::GuestShutdown => "guest_shutdown",
            Self::VmmDied => "vmm_died",
            Self::GuestFault => "guest_fault",
            Self::DaemonStopped => "daemon_stopped",
            Self::Hibernated => "hibernated",
            Self::Lifetime => "lifetime",
            Self::ParentStopped => "parent_stopped",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a VM was started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// A kernel that booted.
    Cold,
    /// A copy of a template: a VM that was booted and parked before.
    Template,
    /// The instance's own memory, saved when it was hibernated.
    Restore,
}

impl StartKind {
    /// The kind as it is written in the API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Template => "template",
            Self::Restore => "restore",
        }
    }
}

impl fmt::Display for StartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text names no stop reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown stop reason `{0}`")]
pub struct UnknownStopReason(String);

impl FromStr for StopReason {
    type Err = UnknownStopReason;
    fn from_str(text: &str) -> Result<Self, UnknownStopReason> {
        Self::ALL.into_iter().find(|r| r.as_str() == text).ok_or_else(|| UnknownStopReason(text.to_owned()))
    }
}
