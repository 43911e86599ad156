//! What became of effects, and what happens by itself.

use std::time::Duration;

use aegis_proto::control::StartFailure;
use aegis_proto::worker::{ExitReason, Exited};
use aegis_types::{ExitStatus, StopReason, VmId};

use super::transition::{EXIT_GRACE, STOP_GRACE, Transition};
use super::{AfterStop, BootProblem, Effect, Event, Goal, Phase, Stage, StopCause, Stopping, Timer, Use};
use crate::error::Denied;

impl Transition {
    pub(super) fn outcome(&mut self, event: Event) {
        match event {
            Event::Shutdown { grace, save } => self.shutdown(grace, save),
            Event::UseEnded(kind) => self.use_ended(kind),
            Event::Elapsed { timer, next } => self.elapsed(timer, next),
            Event::Activity { vm } => self.of_vm(&vm, Self::activity),
            Event::Removed(outcome) => self.removed(outcome),
            Event::Launched { vm } => self.of_vm(&vm, Self::launched),
            Event::Booted { vm } => self.of_vm(&vm, Self::booted),
            Event::BootFailed { vm, failure } => self.of_vm(&vm, |t| t.boot_failed(failure)),
            Event::StartFailed { vm, failure } => self.of_vm(&vm, |t| t.start_failed(failure)),
            Event::ProcessExited { vm, status, ran } => self.of_vm(&vm, |t| t.process_exited(status, ran)),
            Event::GuestFault { vm, message } => self.of_vm(&vm, |t| t.guest_fault(&message)),
            Event::PauseDone { vm, outcome } => self.of_vm(&vm, |t| t.pause_done(outcome)),
            Event::ResumeDone { vm, outcome } => self.of_vm(&vm, |t| t.resume_done(outcome)),
            Event::HibernateFailed { vm, message } => self.of_vm(&vm, |t| t.hibernate_failed(message)),
            Event::Gone { vm, exited } => self.of_vm(&vm, |t| t.worker_gone(&exited)),
            Event::StopStuck { vm, message } => self.of_vm(&vm, |t| t.stop_stuck(message)),
            Event::Cleaned { vm } => self.of_vm(&vm, Self::cleaned),
            // Not an outcome; `step` takes it elsewhere.
            Event::Request { .. } => {}
        }
    }

    /// A late event of another VM must not touch the current one.
    fn of_vm(&mut self, vm: &VmId, then: impl FnOnce(&mut Self)) {
        if self.state.vm() == Some(vm) {
            then(self);
        }
    }

    fn stopping(&mut self) -> Option<&mut Stopping> {
        match &mut self.state.phase {
            Phase::Stopping(stopping) => Some(stopping),
            _ => None,
        }
    }

    fn launched(&mut self) {
        match &mut self.state.phase {
            Phase::Booting { launched, .. } => *launched = true,
            Phase::Stopping(Stopping { vm, stage: stage @ Stage::Launching, .. }) => {
                *stage = Stage::Ending;
                let vm = vm.clone();
                self.effect(Effect::Stop { vm, grace: Duration::ZERO });
            }
            _ => {}
        }
    }

    fn booted(&mut self) {
        if let Phase::Booting { vm, launched: true, .. } = self.state.phase.clone() {
            self.arrive_running(vm);
        }
    }

    fn boot_failed(&mut self, failure: BootProblem) {
        match &mut self.state.phase {
            Phase::Booting { launched, from, .. } => {
                let (launched, from) = (*launched, from.clone());
                self.error(format!("boot failed: {}", failure.message));
                for line in failure.details {
                    self.error(line);
                }
                let untouched = !launched && from.reason == StopReason::Hibernated;
                if failure.no_memory || untouched {
                    return self.not_tried(from, failure.no_memory, failure.message);
                }
                let cause = StopCause::failed(StopReason::BootFailed, failure.message);
                self.count_end(true, None);
                if launched {
                    self.stop_after_end(cause, Duration::ZERO);
                } else {
                    self.gone(cause);
                }
            }
            Phase::Stopping(Stopping { vm, stage: stage @ Stage::Launching, .. }) => {
                *stage = Stage::Cleaning;
                let vm = vm.clone();
                // What it was to go on from will not be used any more.
                self.effect(Effect::Discard);
                self.effect(Effect::CleanUp { vm });
            }
            _ => {}
        }
    }

    /// No worker was started, and the instance is as good as before: the next wake may have more luck.
    fn not_tried(&mut self, from: StopCause, no_memory: bool, message: String) {
        let denied = if no_memory { Denied::NoMemory { message } } else { Denied::BootFailed { message } };
        self.settle(&[Goal::Running, Goal::Paused], &Err(denied));
        self.gone_and_then(from, AfterStop::Stay);
    }

    fn start_failed(&mut self, failure: StartFailure) {
        if self.stopping().is_some() {
            return;
        }
        let status = ExitStatus::exited(failure.kind.exit_code());
        self.error(failure.message.clone());
        self.command_ended(status, Some(Duration::ZERO), Some(failure.message));
    }

    fn process_exited(&mut self, status: ExitStatus, ran: Option<Duration>) {
        match self.stopping() {
            None => self.command_ended(status, ran, None),
            Some(Stopping { exit: None, .. }) => {
                self.exit_line(status);
                self.note_exit(status);
            }
            Some(_) => {}
        }
    }

    fn command_ended(&mut self, status: ExitStatus, ran: Option<Duration>, error: Option<String>) {
        self.exit_line(status);
        self.count_end(status.code != 0, ran);
        let cause = StopCause { reason: StopReason::Exited, exit_code: Some(status.code), error };
        let grace = if self.state.rules.ephemeral { Duration::ZERO } else { EXIT_GRACE };
        self.stop_after_end(cause, grace);
        self.note_exit(status);
    }

    fn exit_line(&mut self, status: ExitStatus) {
        self.info(format!("process exited (code={})", status.code));
    }

    fn guest_fault(&mut self, message: &str) {
        if self.stopping().is_none() {
            self.error(format!("the VM is stopped because of a guest fault: {message}"));
            self.count_end(true, None);
            self.stop_after_end(StopCause::failed(StopReason::GuestFault, message), Duration::ZERO);
        }
    }

    fn pause_done(&mut self, outcome: Result<(), String>) {
        if let Phase::Pausing { vm } = self.state.phase.clone() {
            match outcome {
                Ok(()) => self.arrive_paused(vm),
                Err(message) => {
                    self.settle(&[Goal::Paused], &Err(Denied::Worker(message)));
                    self.arrive_running(vm);
                }
            }
        }
    }

    fn resume_done(&mut self, outcome: Result<(), String>) {
        if let Phase::Resuming { vm } = self.state.phase.clone() {
            match outcome {
                Ok(()) => self.arrive_running(vm),
                Err(message) => {
                    self.settle(&[Goal::Running], &Err(Denied::Worker(message)));
                    self.arrive_paused(vm);
                }
            }
        }
    }

    fn worker_gone(&mut self, exited: &Exited) {
        match &mut self.state.phase {
            Phase::Stopping(Stopping { stage: Stage::Cleaning, .. }) => {}
            Phase::Stopping(Stopping { vm, stage, .. }) => {
                *stage = Stage::Cleaning;
                let vm = vm.clone();
                if exited.reason == ExitReason::Hibernated {
                    // It was saved in the moment in which somebody wanted it stopped.
                    self.effect(Effect::Discard);
                }
                self.effect(Effect::CleanUp { vm });
            }
            Phase::Hibernating { then, .. } if exited.reason == ExitReason::Hibernated => {
                let then = then.take().map_or(AfterStop::Stay, AfterStop::Boot);
                self.info("hibernated");
                self.gone_and_then(StopCause::plain(StopReason::Hibernated), then);
            }
            // An earlier daemon asked for it, and the worker had not yet begun when this one came.
            _ if exited.reason == ExitReason::Hibernated => {
                self.info("hibernated");
                let wanted = self.state.waiting.iter().any(|waiter| waiter.goal == Goal::Running);
                let then = if wanted { AfterStop::Again } else { AfterStop::Stay };
                self.gone_and_then(StopCause::plain(StopReason::Hibernated), then);
            }
            phase => {
                let booting = matches!(phase, Phase::Booting { .. });
                let cause = cause_of(exited, booting);
                let what = if booting { "boot failed" } else { "the VM ended" };
                self.error(format!("{what}: {}", exited.message));
                self.count_end(cause.reason != StopReason::GuestShutdown, None);
                self.gone(cause);
            }
        }
    }

    fn stop_stuck(&mut self, message: String) {
        if let Phase::Stopping(Stopping { vm, stage: Stage::Ending, .. }) = &self.state.phase {
            let vm = vm.clone();
            // Whoever waits is told; the VM is not given up, because another one must not use its disk.
            let goals = [Goal::VmGone, Goal::Deleted, Goal::Running, Goal::Paused, Goal::Hibernated];
            self.settle(&goals, &Err(Denied::Worker(message)));
            self.effect(Effect::Stop { vm, grace: Duration::ZERO });
        }
    }

    fn cleaned(&mut self) {
        let Phase::Stopping(Stopping { stage: Stage::Cleaning, cause, then, .. }) = self.state.phase.clone()
        else {
            return;
        };
        let saved = cause.reason == StopReason::Hibernated;
        if !saved {
            self.end_life();
        }
        match then {
            AfterStop::Delete => self.remove(cause),
            AfterStop::Stay => {
                self.effect(Effect::RecordEnd(cause.clone()));
                self.state.phase = Phase::Stopped { cause };
            }
            AfterStop::Again => {
                self.effect(Effect::RecordEnd(cause.clone()));
                self.state.phase = Phase::Stopped { cause };
                self.start_again_later();
            }
            AfterStop::Boot(next) => {
                self.effect(Effect::RecordEnd(cause.clone()));
                // The boot looks at where it comes from.
                self.state.phase = Phase::Stopped { cause };
                self.boot(next);
            }
        }
        self.settle(&[Goal::VmGone], &Ok(()));
        if saved {
            // Whatever follows.
            self.settle(&[Goal::Hibernated], &Ok(()));
        }
    }

    fn removed(&mut self, outcome: Result<(), Denied>) {
        if let Phase::Removing { cause } = self.state.phase.clone() {
            self.state.phase = if outcome.is_ok() { Phase::Deleted } else { Phase::Stopped { cause } };
            self.settle(&[Goal::Deleted], &outcome);
        }
    }

    fn use_ended(&mut self, kind: Use) {
        let count = self.state.users.count(kind);
        *count = count.saturating_sub(1);
    }

    /// The idle timer begins anew.
    fn activity(&mut self) {
        if self.state.rules.heeds_activity {
            self.disarm(Timer::Pause);
        }
    }

    fn elapsed(&mut self, timer: Timer, next: VmId) {
        if !self.state.timers.remove(&timer) {
            return;
        }
        match (timer, self.state.phase.clone()) {
            (Timer::Pause, Phase::Running { vm }) if self.state.is_idle() => self.pause(vm),
            (Timer::Hibernate, Phase::Paused { vm }) if self.state.is_idle() => self.hibernate(vm),
            (Timer::Lease, _) => self.state.leased = false,
            (Timer::Forgive, _) => self.state.crashes = 0,
            (Timer::Restart, Phase::Stopped { .. }) if self.state.enabled && !self.state.closing => {
                self.boot(next);
            }
            (Timer::Lifetime, phase) => self.lifetime_over(&phase),
            _ => {}
        }
    }

    fn lifetime_over(&mut self, phase: &Phase) {
        let cause = StopCause::plain(StopReason::Lifetime);
        match phase {
            Phase::Stopped { .. } if self.state.is_hibernated() => {
                self.info("the longest life of the instance is over");
                self.give_up_saved(cause);
            }
            Phase::Stopped { .. } | Phase::Stopping(_) | Phase::Removing { .. } | Phase::Deleted => {}
            _ => {
                self.info("the longest life of the instance is over");
                self.stop(cause, AfterStop::Stay, STOP_GRACE);
            }
        }
    }

    fn hibernate_failed(&mut self, message: String) {
        let Phase::Hibernating { vm, .. } = self.state.phase.clone() else { return };
        self.error(format!("cannot hibernate: {message}"));
        self.settle(&[Goal::Hibernated], &Err(Denied::Worker(message)));
        if std::mem::take(&mut self.state.saves_on_close) {
            self.stop(StopCause::plain(StopReason::DaemonStopped), AfterStop::Stay, STOP_GRACE);
        } else {
            self.arrive_running(vm);
        }
    }

    fn shutdown(&mut self, grace: Duration, save: bool) {
        let first = !std::mem::replace(&mut self.state.closing, true);
        self.state.saves_on_close = save && self.state.rules.may_hibernate().is_ok();
        self.disarm(Timer::Restart);
        if first && matches!(self.state.phase, Phase::Stopped { .. }) {
            self.settle(&[Goal::Running], &Err(Denied::ShuttingDown));
        }
        match &mut self.state.phase {
            Phase::Stopped { .. } | Phase::Removing { .. } | Phase::Deleted => {}
            Phase::Running { vm } | Phase::Paused { vm } if self.state.saves_on_close => {
                let vm = vm.clone();
                self.hibernate(vm);
            }
            // What was saved is not lost by a daemon that goes down while it is restored: on arrival it is saved again.
            Phase::Booting { .. } | Phase::Pausing { .. } | Phase::Resuming { .. }
                if self.state.saves_on_close => {}
            Phase::Hibernating { then, .. } if self.state.saves_on_close => {
                *then = None;
                self.settle(&[Goal::Running], &Err(Denied::ShuttingDown));
            }
            Phase::Stopping(stopping) => {
                if matches!(stopping.then, AfterStop::Boot(_) | AfterStop::Again) {
                    stopping.then = AfterStop::Stay;
                }
                if stopping.stage == Stage::Ending && grace.is_zero() {
                    let vm = stopping.vm.clone();
                    self.effect(Effect::Stop { vm, grace });
                }
                self.settle(&[Goal::Running], &Err(Denied::ShuttingDown));
            }
            _ => self.stop(StopCause::plain(StopReason::DaemonStopped), AfterStop::Stay, grace),
        }
    }
}

/// Why a VM ended that nobody had told to.
pub(super) fn cause_of(exited: &Exited, booting: bool) -> StopCause {
    let reason = match exited.reason {
        ExitReason::LinkViolation => StopReason::GuestFault,
        ExitReason::BootFailed => StopReason::BootFailed,
        _ if booting => StopReason::BootFailed,
        ExitReason::Stopped => StopReason::Requested,
        ExitReason::GuestShutdown => StopReason::GuestShutdown,
        ExitReason::VmmDied => StopReason::VmmDied,
        ExitReason::Hibernated => StopReason::Hibernated,
    };
    StopCause::failed(reason, &exited.message)
}
