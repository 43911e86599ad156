//! What an instance can be.

use std::collections::BTreeSet;

use aegis_types::{ExitStatus, InstanceState, StopReason, VmId};

use super::{RequestId, Rules, Timer};
use crate::error::Denied;

/// Everything that decides what may happen to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// It may be woken.
    pub enabled: bool,
    /// The daemon goes down: nothing is booted any more.
    pub closing: bool,
    /// Where it is in its life.
    pub phase: Phase,
    /// … and saves what can be saved, in place of stopping it.
    pub saves_on_close: bool,
    /// Requests that are not answered yet, oldest first.
    pub waiting: Vec<Waiting>,
    /// What it does by itself.
    pub rules: Rules,
    /// Who uses the VM now.
    pub users: Users,
    /// Somebody keeps it awake for a time.
    pub leased: bool,
    /// The instance that it belongs to is stopped: this one must not run.
    pub orphaned: bool,
    /// Crashes in a row, the last one not long ago.
    pub crashes: u8,
    /// Timers that run.
    pub timers: BTreeSet<Timer>,
}

/// Uses of a VM that keep it from being idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Users {
    /// Processes that were started from outside.
    pub execs: u32,
    /// Connections to its ports.
    pub connections: u32,
    /// Runs that follow its command.
    pub attached: u32,
}

/// A kind of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A process that was started from outside.
    Exec,
    /// A connection to a port.
    Connection,
    /// A run that follows the command.
    Attached,
}

impl Users {
    /// Nobody.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn count(&mut self, kind: Use) -> &mut u32 {
        match kind {
            Use::Exec => &mut self.execs,
            Use::Connection => &mut self.connections,
            Use::Attached => &mut self.attached,
        }
    }
}

/// Where an instance is in its life. A phase with a VM names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// No VM.
    Stopped {
        /// How the last one ended.
        cause: StopCause,
    },
    /// A VM is on its way; the command does not run yet.
    Booting {
        /// The VM.
        vm: VmId,
        /// Its worker runs. Before that there is nothing that a stop could be sent to.
        launched: bool,
        /// What it was before: it goes back there if nothing could be tried.
        from: StopCause,
    },
    /// The command runs.
    Running {
        /// The VM.
        vm: VmId,
    },
    /// The CPUs are being halted.
    Pausing {
        /// The VM.
        vm: VmId,
    },
    /// The CPUs are halted, the memory is kept.
    Paused {
        /// The VM.
        vm: VmId,
    },
    /// The CPUs are being set going again.
    Resuming {
        /// The VM.
        vm: VmId,
    },
    /// The VM is being saved; it ends when it is.
    Hibernating {
        /// The VM.
        vm: VmId,
        /// State that is shown until it is gone.
        shown: InstanceState,
        /// The boot that follows, if somebody needs the instance already.
        then: Option<VmId>,
    },
    /// The VM is on its way out.
    Stopping(Stopping),
    /// Files and record are being removed; no VM.
    Removing {
        /// How the last VM ended.
        cause: StopCause,
    },
    /// Nothing is left.
    Deleted,
}

/// A VM on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// The VM.
    pub vm: VmId,
    /// How far it is.
    pub stage: Stage,
    /// State that is shown until it is gone.
    pub shown: InstanceState,
    /// Why it ends.
    pub cause: StopCause,
    /// The end of the command was seen (it is reported once).
    pub exit: Option<ExitStatus>,
    /// What follows.
    pub then: AfterStop,
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The worker is only being started; it is stopped as soon as it is there.
    Launching,
    /// The worker was told to end.
    Ending,
    /// The worker is gone, its leftovers are being removed.
    Cleaning,
}

/// What follows a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterStop {
    /// Nothing.
    Stay,
    /// A boot with this id.
    Boot(VmId),
    /// A boot after a while, because of the restart policy.
    Again,
    /// The end of the instance.
    Delete,
}

/// Why an instance has no VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopCause {
    /// The kind of end.
    pub reason: StopReason,
    /// Exit code of the command, for [`StopReason::Exited`].
    pub exit_code: Option<u8>,
    /// What went wrong, when something did.
    pub error: Option<String>,
}

impl StopCause {
    /// An end without more to say.
    pub fn plain(reason: StopReason) -> Self {
        Self { reason, exit_code: None, error: None }
    }

    /// An end with a reason to tell.
    pub fn failed(reason: StopReason, error: impl Into<String>) -> Self {
        Self { reason, exit_code: None, error: Some(error.into()) }
    }

    /// Why an instance that ended like this is not woken, if it is not.
    pub(super) fn bars_waking(&self) -> Option<Denied> {
        match self.reason {
            StopReason::Exited => Some(Denied::CommandEnded { exit_code: self.exit_code }),
            StopReason::BootFailed => {
                let message = self.error.clone().unwrap_or_else(|| "no reason was given".to_owned());
                Some(Denied::BootFailed { message })
            }
            StopReason::NeverStarted
            | StopReason::Requested
            | StopReason::Disabled
            | StopReason::GuestShutdown
            | StopReason::VmmDied
            | StopReason::GuestFault
            | StopReason::DaemonStopped
            | StopReason::Hibernated => None,
            StopReason::Lifetime => Some(Denied::LifetimeOver),
            // As long as that is so, which is asked before.
            StopReason::ParentStopped => None,
        }
    }

    /// What a request is told that waited for a VM that ended like this.
    pub(super) fn interrupts(&self) -> Denied {
        match self.reason {
            StopReason::Disabled => Denied::Disabled,
            StopReason::ParentStopped => Denied::ParentStopped,
            StopReason::DaemonStopped => Denied::ShuttingDown,
            reason => self.bars_waking().unwrap_or(Denied::Interrupted { reason }),
        }
    }
}

/// A request that waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The request.
    pub id: RequestId,
    /// What it waits for.
    pub goal: Goal,
    /// With the answer it gets the right to use the VM.
    pub grant: Option<Use>,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The command runs.
    Running,
    /// The CPUs are halted.
    Paused,
    /// The memory is on disk.
    Hibernated,
    /// The current VM is gone.
    VmGone,
    /// Nothing is left.
    Deleted,
}

impl State {
    /// The state as users see it.
    pub fn shown(&self) -> InstanceState {
        match &self.phase {
            Phase::Stopped { cause } if cause.reason == StopReason::Hibernated => InstanceState::Hibernated,
            Phase::Stopped { .. } | Phase::Removing { .. } | Phase::Deleted => InstanceState::Stopped,
            Phase::Hibernating { then: Some(_), .. } => InstanceState::Starting,
            Phase::Hibernating { shown, .. } => *shown,
            Phase::Booting { .. } => InstanceState::Starting,
            Phase::Running { .. } | Phase::Pausing { .. } => InstanceState::Running,
            Phase::Paused { .. } | Phase::Resuming { .. } => InstanceState::Paused,
            Phase::Stopping(Stopping { then: AfterStop::Boot(_), .. }) => InstanceState::Starting,
            Phase::Stopping(Stopping { shown, .. }) => *shown,
        }
    }

    /// The VM that exists, is being made or is being ended.
    pub fn vm(&self) -> Option<&VmId> {
        match &self.phase {
            Phase::Booting { vm, .. }
            | Phase::Running { vm }
            | Phase::Pausing { vm }
            | Phase::Paused { vm }
            | Phase::Resuming { vm }
            | Phase::Hibernating { vm, .. }
            | Phase::Stopping(Stopping { vm, .. }) => Some(vm),
            Phase::Stopped { .. } | Phase::Removing { .. } | Phase::Deleted => None,
        }
    }

    /// How the last VM ended, while there is none.
    pub fn stopped(&self) -> Option<&StopCause> {
        match &self.phase {
            Phase::Stopped { cause } | Phase::Removing { cause } => Some(cause),
            _ => None,
        }
    }

    /// Nobody uses it and nobody waits for it.
    pub fn is_idle(&self) -> bool {
        self.users.is_empty() && !self.leased && self.waiting.is_empty()
    }

    /// It has no VM, but one that was saved.
    pub fn is_hibernated(&self) -> bool {
        self.stopped().is_some_and(|cause| cause.reason == StopReason::Hibernated)
    }

    /// A VM is on its way.
    pub fn booting(&self) -> bool {
        matches!(self.phase, Phase::Booting { .. })
    }

    /// The guest can be talked to, as far as this side is concerned.
    pub fn is_reachable(&self) -> bool {
        !matches!(self.phase, Phase::Paused { .. } | Phase::Resuming { .. } | Phase::Hibernating { .. })
    }

    /// Nothing will happen any more.
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Deleted) || (self.closing && matches!(self.phase, Phase::Stopped { .. }))
    }
}
