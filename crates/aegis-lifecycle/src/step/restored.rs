//! Where an instance stands when a daemon starts.

use std::collections::BTreeSet;
use std::time::Duration;

use aegis_proto::worker::{ExitReason, Exited, Phase as WorkerPhase};
use aegis_types::{InstanceState, StopReason, VmId};

use super::outcome::cause_of;
use super::transition::{STOP_GRACE, Transition};
use super::{AfterStop, Effect, Phase, Rules, State, StopCause, Users};

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

/// What else is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Past {
    /// It may be woken.
    pub enabled: bool,
    /// A complete saved VM is on disk.
    pub saved: bool,
    /// Time that is left of its longest life, if that has an end.
    pub life_left: Option<Duration>,
    /// Crashes in a row.
    pub crashes: u8,
}

fn first(rules: Rules, enabled: bool, phase: Phase) -> Transition {
    Transition::from(&State {
        enabled,
        closing: false,
        saves_on_close: false,
        phase,
        waiting: Vec::new(),
        rules,
        users: Users::default(),
        leased: false,
        orphaned: false,
        crashes: 0,
        timers: BTreeSet::new(),
    })
}

/// The first state of a new instance, whose record says already that it may have a VM, and what to do at once.
pub fn created(rules: Rules, vm: VmId) -> (State, Vec<Effect>) {
    let phase = Phase::Stopped { cause: StopCause::plain(StopReason::NeverStarted) };
    let mut next = first(rules, true, phase);
    next.boot(vm);
    next.finish()
}

/// The first state of an instance of an earlier daemon, and what to do at once.
pub fn restored(rules: Rules, past: Past, found: Found) -> (State, Vec<Effect>) {
    let Past { enabled, saved, life_left, crashes } = past;
    let stopped = |cause| Phase::Stopped { cause };
    let phase = match &found {
        Found::Recorded(cause) if cause.reason == StopReason::Hibernated && !saved => {
            stopped(StopCause::failed(StopReason::DaemonStopped, "its saved memory is gone"))
        }
        Found::Recorded(cause) => stopped(cause.clone()),
        // However far it came with the rest: a complete saved VM is as good as one that was recorded.
        Found::Gone(_) if saved && enabled => stopped(StopCause::plain(StopReason::Hibernated)),
        Found::Gone(exited) => stopped(cause_of_absence(exited.as_ref())),
        Found::Alive { vm, phase: Ok(WorkerPhase::Paused) } => Phase::Paused { vm: vm.clone() },
        Found::Alive { vm, phase: Ok(WorkerPhase::Hibernating) } => {
            Phase::Hibernating { vm: vm.clone(), shown: InstanceState::Running, then: None }
        }
        // It is `starting` until the guest was asked how far it is.
        Found::Alive { vm, phase: Ok(WorkerPhase::Booting | WorkerPhase::Running) } if enabled => {
            let from = StopCause::plain(StopReason::DaemonStopped);
            Phase::Booting { vm: vm.clone(), launched: true, from }
        }
        // It is stopped below, and its command may run.
        Found::Alive { vm, .. } => Phase::Running { vm: vm.clone() },
    };
    let mut next = first(rules, enabled, phase.clone());
    next.recall_crashes(crashes);
    if next.state.is_hibernated() || next.state.vm().is_some() {
        next.begin_life(life_left);
    } else if saved {
        // Its disk has changed since, or somebody wanted it stopped.
        next.effect(Effect::Discard);
    }
    match (found, phase) {
        (Found::Recorded(recorded), Phase::Stopped { cause }) if recorded != cause => {
            next.error("the saved memory is gone: the next start boots from the disk");
            next.effect(Effect::RecordEnd(cause));
        }
        (Found::Recorded(_), Phase::Stopped { cause }) if next.after_end(&cause) == AfterStop::Again => {
            next.start_again_later();
        }
        (Found::Gone(_), Phase::Stopped { cause }) if cause.reason == StopReason::Hibernated => {
            next.effect(Effect::RecordEnd(cause));
        }
        (Found::Gone(exited), Phase::Stopped { cause }) => {
            let how = exited.map_or_else(|| "its end was not seen".to_owned(), |e| e.message);
            next.error(format!("the VM ended while the daemon was not there: {how}"));
            next.effect(Effect::RecordEnd(cause.clone()));
            if next.after_end(&cause) == AfterStop::Again {
                next.start_again_later();
            }
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
        // Joins what is under way.
        (Found::Alive { vm, phase: Ok(WorkerPhase::Hibernating) }, _) => {
            next.effect(Effect::Hibernate { vm })
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
        // It was saved, and that was used or given up since.
        Some(Exited { reason: ExitReason::Stopped | ExitReason::Hibernated, .. }) => {
            StopCause::plain(StopReason::DaemonStopped)
        }
        Some(exited) => cause_of(exited, false),
    }
}
