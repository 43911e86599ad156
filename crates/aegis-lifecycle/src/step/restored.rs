//! Where an instance stands when a daemon starts.

use std::time::Duration;

use aegis_proto::worker::{ExitReason, Exited, Phase as WorkerPhase};
use aegis_types::{StopReason, VmId};

use super::outcome::cause_of;
use super::transition::{STOP_GRACE, Transition};
use super::{AfterStop, Effect, Phase, State, StopCause};

/// What was found of an instance that an earlier daemon knew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its last VM had ended and that is on record.
    Recorded(StopCause),
    /// A VM was on record and is gone; how it ended, if it could say.
    Gone(Option<Exited>),
    /// Its worker lives.
    Alive {
        /// The VM.
        vm: VmId,
        /// What the worker says, or why it could not be asked.
        phase: Result<WorkerPhase, String>,
    },
}

/// The first state of a new instance, whose record says already that it may have a VM, and what to do at once.
pub fn created(vm: VmId) -> (State, Vec<Effect>) {
    let phase = Phase::Stopped { cause: StopCause::plain(StopReason::NeverStarted) };
    let mut next = Transition::from(&State { enabled: true, closing: false, phase, waiting: Vec::new() });
    next.boot(vm);
    next.finish()
}

/// The first state of an instance of an earlier daemon, and what to do at once.
pub fn restored(enabled: bool, found: Found) -> (State, Vec<Effect>) {
    let stopped = |cause| Phase::Stopped { cause };
    let phase = match &found {
        Found::Recorded(cause) => stopped(cause.clone()),
        Found::Gone(exited) => stopped(cause_of_absence(exited.as_ref())),
        Found::Alive { vm, phase: Ok(WorkerPhase::Paused) } => Phase::Paused { vm: vm.clone() },
        // It is `starting` until the guest was asked how far it is.
        Found::Alive { vm, phase: Ok(WorkerPhase::Booting | WorkerPhase::Running) } if enabled => {
            Phase::Booting { vm: vm.clone(), launched: true }
        }
        // It is stopped below, and its command may run.
        Found::Alive { vm, .. } => Phase::Running { vm: vm.clone() },
    };
    let state = State { enabled, closing: false, phase: phase.clone(), waiting: Vec::new() };
    let mut next = Transition::from(&state);
    match (found, phase) {
        (Found::Gone(exited), Phase::Stopped { cause }) => {
            let how = exited.map_or_else(|| "its end was not seen".to_owned(), |e| e.message);
            next.error(format!("the VM ended while the daemon was not there: {how}"));
            next.effect(Effect::RecordEnd(cause));
        }
        // The earlier daemon had recorded that it would be disabled and did not come to stopping it.
        (Found::Alive { .. }, _) if !enabled => {
            next.stop(StopCause::plain(StopReason::Disabled), AfterStop::Stay, STOP_GRACE);
        }
        (Found::Alive { phase: Ok(WorkerPhase::Stopping), .. }, _) => {
            next.stop(StopCause::plain(StopReason::DaemonStopped), AfterStop::Stay, STOP_GRACE);
        }
        (Found::Alive { phase: Err(message), .. }, _) => {
            next.error(format!("the VM is stopped because its worker does not answer: {message}"));
            next.stop(StopCause::failed(StopReason::VmmDied, message), AfterStop::Stay, Duration::ZERO);
        }
        (Found::Alive { vm, phase: Ok(phase) }, _) => {
            next.info("the daemon was restarted; the VM goes on");
            if phase != WorkerPhase::Paused {
                next.effect(Effect::Attach { vm });
            }
        }
        _ => {}
    }
    next.finish()
}

fn cause_of_absence(exited: Option<&Exited>) -> StopCause {
    match exited {
        None => StopCause::plain(StopReason::DaemonStopped),
        Some(Exited { reason: ExitReason::Stopped, .. }) => StopCause::plain(StopReason::DaemonStopped),
        Some(exited) => cause_of(exited, false),
    }
}
