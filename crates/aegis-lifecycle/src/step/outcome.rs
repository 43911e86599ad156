//! What became of effects, and what happens by itself.

use std::time::Duration;

use aegis_proto::control::StartFailure;
use aegis_proto::worker::{ExitReason, Exited};
use aegis_types::{ExitStatus, StopReason, VmId};

use super::transition::{EXIT_GRACE, Transition};
use super::{AfterStop, BootProblem, Effect, Event, Goal, Phase, Stage, StopCause, Stopping};
use crate::error::Denied;

impl Transition {
    pub(super) fn outcome(&mut self, event: Event) {
        match event {
            Event::Shutdown { grace } => self.shutdown(grace),
            Event::Removed(outcome) => self.removed(outcome),
            Event::Launched { vm } => self.of_vm(&vm, Self::launched),
            Event::Booted { vm } => self.of_vm(&vm, Self::booted),
            Event::BootFailed { vm, failure } => self.of_vm(&vm, |t| t.boot_failed(failure)),
            Event::StartFailed { vm, failure } => self.of_vm(&vm, |t| t.start_failed(failure)),
            Event::ProcessExited { vm, status } => self.of_vm(&vm, |t| t.process_exited(status)),
            Event::GuestFault { vm, message } => self.of_vm(&vm, |t| t.guest_fault(&message)),
            Event::PauseDone { vm, outcome } => self.of_vm(&vm, |t| t.pause_done(outcome)),
            Event::ResumeDone { vm, outcome } => self.of_vm(&vm, |t| t.resume_done(outcome)),
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
        if let Phase::Booting { vm, launched: true } = self.state.phase.clone() {
            self.arrive_running(vm);
        }
    }

    fn boot_failed(&mut self, failure: BootProblem) {
        match &mut self.state.phase {
            Phase::Booting { launched, .. } => {
                let launched = *launched;
                self.error(format!("boot failed: {}", failure.message));
                for line in failure.details {
                    self.error(line);
                }
                let cause = StopCause::failed(StopReason::BootFailed, failure.message);
                if launched {
                    self.stop(cause, AfterStop::Stay, Duration::ZERO);
                } else {
                    self.gone(cause);
                }
            }
            Phase::Stopping(Stopping { vm, stage: stage @ Stage::Launching, .. }) => {
                *stage = Stage::Cleaning;
                let vm = vm.clone();
                self.effect(Effect::CleanUp { vm });
            }
            _ => {}
        }
    }

    fn start_failed(&mut self, failure: StartFailure) {
        if self.stopping().is_some() {
            return;
        }
        let status = ExitStatus::exited(failure.kind.exit_code());
        self.error(failure.message.clone());
        self.command_ended(status, Some(failure.message));
    }

    fn process_exited(&mut self, status: ExitStatus) {
        match self.stopping() {
            None => self.command_ended(status, None),
            Some(Stopping { exit: None, .. }) => {
                self.exit_line(status);
                self.note_exit(status);
            }
            Some(_) => {}
        }
    }

    fn command_ended(&mut self, status: ExitStatus, error: Option<String>) {
        self.exit_line(status);
        let cause = StopCause { reason: StopReason::Exited, exit_code: Some(status.code), error };
        self.stop(cause, AfterStop::Stay, EXIT_GRACE);
        self.note_exit(status);
    }

    fn exit_line(&mut self, status: ExitStatus) {
        self.info(format!("process exited (code={})", status.code));
    }

    fn guest_fault(&mut self, message: &str) {
        if self.stopping().is_none() {
            self.error(format!("the VM is stopped because of a guest fault: {message}"));
            self.stop(StopCause::failed(StopReason::GuestFault, message), AfterStop::Stay, Duration::ZERO);
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
                self.effect(Effect::CleanUp { vm });
            }
            phase => {
                let booting = matches!(phase, Phase::Booting { .. });
                let cause = cause_of(exited, booting);
                let what = if booting { "boot failed" } else { "the VM ended" };
                self.error(format!("{what}: {}", exited.message));
                self.gone(cause);
            }
        }
    }

    fn stop_stuck(&mut self, message: String) {
        if let Phase::Stopping(Stopping { vm, stage: Stage::Ending, .. }) = &self.state.phase {
            let vm = vm.clone();
            // Whoever waits is told; the VM is not given up, because another one must not use its disk.
            let goals = [Goal::VmGone, Goal::Deleted, Goal::Running, Goal::Paused];
            self.settle(&goals, &Err(Denied::Worker(message)));
            self.effect(Effect::Stop { vm, grace: Duration::ZERO });
        }
    }

    fn cleaned(&mut self) {
        let Phase::Stopping(Stopping { stage: Stage::Cleaning, cause, then, .. }) = self.state.phase.clone()
        else {
            return;
        };
        match then {
            AfterStop::Delete => self.remove(cause),
            AfterStop::Stay => {
                self.effect(Effect::RecordEnd(cause.clone()));
                self.state.phase = Phase::Stopped { cause };
            }
            AfterStop::Boot(next) => {
                self.effect(Effect::RecordEnd(cause));
                self.boot(next);
            }
        }
        self.settle(&[Goal::VmGone], &Ok(()));
    }

    fn removed(&mut self, outcome: Result<(), Denied>) {
        if let Phase::Removing { cause } = self.state.phase.clone() {
            self.state.phase = if outcome.is_ok() { Phase::Deleted } else { Phase::Stopped { cause } };
            self.settle(&[Goal::Deleted], &outcome);
        }
    }

    fn shutdown(&mut self, grace: Duration) {
        self.state.closing = true;
        match &mut self.state.phase {
            Phase::Stopped { .. } | Phase::Removing { .. } | Phase::Deleted => {}
            Phase::Stopping(stopping) => {
                if matches!(stopping.then, AfterStop::Boot(_)) {
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
