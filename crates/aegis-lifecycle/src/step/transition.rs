//! A step in the making: the moves that requests and outcomes have in common.

use std::time::Duration;

use aegis_types::{ExitStatus, StopReason, VmId};

use super::{
    AfterStop, Effect, Goal, Phase, RequestId, Stage, State, StopCause, Stopping, Timer, Use, Waiting, timers,
};
use crate::error::Denied;
use crate::ports::SystemMessage;

/// Time for the guest's processes when somebody stops the instance.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time for what the command left running when it ended.
pub(super) const EXIT_GRACE: Duration = Duration::from_secs(2);
/// Requests of one instance that may wait at the same time.
pub(super) const WAITING_MAX: usize = 256;

pub(super) struct Transition {
    pub(super) state: State,
    record: bool,
    effects: Vec<Effect>,
}

impl Transition {
    pub(super) fn from(state: &State) -> Self {
        Self { state: state.clone(), record: false, effects: Vec::new() }
    }

    pub(super) fn finish(mut self) -> (State, Vec<Effect>) {
        timers::reconcile(&mut self.state, &mut self.effects);
        if self.record {
            self.effects.insert(0, Effect::Record);
        }
        (self.state, self.effects)
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn info(&mut self, line: impl Into<String>) {
        self.effect(Effect::Log(SystemMessage::Info(line.into())));
    }

    pub(super) fn error(&mut self, line: impl Into<String>) {
        self.effect(Effect::Log(SystemMessage::Error(line.into())));
    }

    /// The new state must be recorded before anything is done.
    pub(super) fn record(&mut self) {
        self.record = true;
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        if self.state.enabled != enabled {
            self.state.enabled = enabled;
            self.record();
        }
    }

    pub(super) fn accept(&mut self, id: RequestId) {
        self.answer(id, Ok(()), None);
    }

    /// Answers; a granted use counts from here on.
    pub(super) fn answer(&mut self, id: RequestId, outcome: Result<(), Denied>, grant: Option<Use>) {
        let grant = grant.filter(|_| outcome.is_ok());
        if let Some(kind) = grant {
            *self.state.users.count(kind) += 1;
        }
        self.effect(Effect::Answer { id, outcome, grant });
    }

    pub(super) fn wait(&mut self, id: RequestId, goal: Goal) -> Result<(), Denied> {
        self.wait_for(Waiting { id, goal, grant: None })
    }

    pub(super) fn wait_for(&mut self, waiting: Waiting) -> Result<(), Denied> {
        if self.state.waiting.len() >= WAITING_MAX {
            return Err(Denied::Busy);
        }
        self.state.waiting.push(waiting);
        Ok(())
    }

    pub(super) fn settle(&mut self, goals: &[Goal], outcome: &Result<(), Denied>) {
        let settled: Vec<Waiting> = self.state.waiting.extract_if(.., |w| goals.contains(&w.goal)).collect();
        for Waiting { id, grant, .. } in settled {
            self.answer(id, outcome.clone(), grant);
        }
    }

    pub(super) fn arm(&mut self, timer: Timer, after: Duration) {
        self.state.timers.insert(timer);
        self.effect(Effect::Arm { timer, after });
    }

    pub(super) fn disarm(&mut self, timer: Timer) {
        if self.state.timers.remove(&timer) {
            self.effect(Effect::Disarm { timer });
        }
    }

    pub(super) fn is_wanted(&self, goal: Goal) -> bool {
        self.state.waiting.iter().any(|w| w.goal == goal)
    }

    pub(super) fn boot(&mut self, vm: VmId) {
        let fresh = !self.state.is_hibernated();
        self.disarm(Timer::Restart);
        if fresh {
            self.begin_life(self.state.rules.max_lifetime);
        }
        let from =
            self.state.stopped().cloned().unwrap_or_else(|| StopCause::plain(StopReason::NeverStarted));
        self.state.phase = Phase::Booting { vm: vm.clone(), launched: false, from };
        self.effect(Effect::Launch { vm, fresh });
    }

    /// `left`: time that the instance may live from now on.
    pub(super) fn begin_life(&mut self, left: Option<Duration>) {
        match left {
            Some(left) => self.arm(Timer::Lifetime, left),
            None => self.disarm(Timer::Lifetime),
        }
    }

    /// The saved VM will not be used: from here on the instance is stopped for another reason.
    pub(super) fn give_up_saved(&mut self, cause: StopCause) {
        self.info("the saved memory was discarded");
        self.effect(Effect::Discard);
        self.effect(Effect::RecordEnd(cause.clone()));
        self.end_life();
        self.state.phase = Phase::Stopped { cause };
    }

    pub(super) fn end_life(&mut self) {
        self.disarm(Timer::Lifetime);
        self.disarm(Timer::Lease);
        self.state.leased = false;
    }

    /// Saves a VM whose CPUs run or are halted.
    pub(super) fn hibernate(&mut self, vm: VmId) {
        let shown = self.state.shown();
        self.settle(&[Goal::Paused], &Err(Denied::Hibernating));
        self.state.phase = Phase::Hibernating { vm: vm.clone(), shown, then: None };
        self.effect(Effect::Hibernate { vm });
    }

    pub(super) fn pause(&mut self, vm: VmId) {
        self.state.phase = Phase::Pausing { vm: vm.clone() };
        self.effect(Effect::Pause { vm });
    }

    pub(super) fn resume(&mut self, vm: VmId) {
        self.state.phase = Phase::Resuming { vm: vm.clone() };
        self.effect(Effect::Resume { vm });
    }

    pub(super) fn remove(&mut self, cause: StopCause) {
        self.state.phase = Phase::Removing { cause };
        self.effect(Effect::Remove);
    }

    pub(super) fn arrive_running(&mut self, vm: VmId) {
        self.state.phase = Phase::Running { vm: vm.clone() };
        self.settle(&[Goal::Running], &Ok(()));
        if self.is_wanted(Goal::Hibernated) || self.state.saves_on_close {
            self.hibernate(vm);
        } else if self.is_wanted(Goal::Paused) {
            self.pause(vm);
        }
    }

    pub(super) fn arrive_paused(&mut self, vm: VmId) {
        self.state.phase = Phase::Paused { vm: vm.clone() };
        self.settle(&[Goal::Paused], &Ok(()));
        if self.is_wanted(Goal::Hibernated) || self.state.saves_on_close {
            self.hibernate(vm);
        } else if self.is_wanted(Goal::Running) {
            self.resume(vm);
        }
    }

    /// Ends the VM because of an end by itself; the restart policy says what follows.
    pub(super) fn stop_after_end(&mut self, cause: StopCause, grace: Duration) {
        let then = self.after_end(&cause);
        self.stop(cause, then, grace);
    }

    /// Ends the VM of a phase that has one and is not ending yet. A command that does not run yet gets no grace.
    pub(super) fn stop(&mut self, cause: StopCause, then: AfterStop, grace: Duration) {
        let (stage, grace) = match &self.state.phase {
            Phase::Booting { launched: false, .. } => (Stage::Launching, grace),
            Phase::Booting { launched: true, .. } => (Stage::Ending, Duration::ZERO),
            _ => (Stage::Ending, grace),
        };
        let Some(vm) = self.leave(stage, cause, then) else { return };
        if stage == Stage::Ending {
            self.effect(Effect::Stop { vm, grace });
        }
    }

    /// Goes on from a phase whose worker is gone, or never came.
    pub(super) fn gone(&mut self, cause: StopCause) {
        let then = self.after_end(&cause);
        self.gone_and_then(cause, then);
    }

    pub(super) fn gone_and_then(&mut self, cause: StopCause, then: AfterStop) {
        if let Some(vm) = self.leave(Stage::Cleaning, cause, then) {
            self.effect(Effect::CleanUp { vm });
        }
    }

    /// Remembers that the end of the command was reported.
    pub(super) fn note_exit(&mut self, status: ExitStatus) {
        if let Phase::Stopping(stopping) = &mut self.state.phase {
            stopping.exit = Some(status);
        }
    }

    fn leave(&mut self, stage: Stage, cause: StopCause, then: AfterStop) -> Option<VmId> {
        let vm = self.state.vm()?.clone();
        let shown = self.state.shown();
        let saved = cause.reason == StopReason::Hibernated;
        self.settle(&[Goal::Paused], &Err(cause.interrupts()));
        if !saved {
            self.settle(&[Goal::Hibernated], &Err(cause.interrupts()));
            self.end_life();
        }
        match then {
            AfterStop::Stay => self.settle(&[Goal::Running], &Err(cause.interrupts())),
            AfterStop::Delete => self.settle(&[Goal::Running], &Err(Denied::Deleted)),
            // They get the next VM.
            AfterStop::Boot(_) | AfterStop::Again => {}
        }
        self.state.phase =
            Phase::Stopping(Stopping { vm: vm.clone(), stage, shown, cause, exit: None, then });
        Some(vm)
    }
}
