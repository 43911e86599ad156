//! What somebody wants.

use std::time::Duration;

use aegis_types::{InstanceState, StopReason, VmId};

use super::transition::{STOP_GRACE, Transition};
use super::{
    AfterStop, Ask, Effect, Goal, Phase, RequestId, Rules, Stage, StopCause, Stopping, Timer, Use, Waiting,
};
use crate::error::Denied;

impl Transition {
    pub(super) fn request(&mut self, id: RequestId, ask: Ask) -> Result<(), Denied> {
        let leaving = match &self.state.phase {
            Phase::Deleted => return Err(Denied::Deleted),
            Phase::Removing { .. } | Phase::Stopping(Stopping { then: AfterStop::Delete, .. }) => true,
            _ => false,
        };
        let ends = matches!(ask, Ask::Stop | Ask::Disable | Ask::Delete);
        if leaving && ask != Ask::Delete {
            return Err(Denied::Deleted);
        }
        if self.state.closing && !ends {
            return Err(Denied::ShuttingDown);
        }
        let starts = match ask {
            Ask::Start { .. } | Ask::Restart { .. } | Ask::Resume { .. } => true,
            // One that is disabled as well is told that.
            Ask::Wake { .. } => self.state.enabled,
            _ => false,
        };
        if self.state.orphaned && starts {
            return Err(Denied::ParentStopped);
        }
        match ask {
            Ask::Start { next } => self.ask_start(id, next),
            Ask::Restart { next } => self.ask_restart(id, next),
            Ask::Wake { next, purpose } => self.ask_wake(id, next, purpose),
            Ask::Stop => self.ask_stop(id, StopReason::Requested),
            Ask::Disable => {
                self.set_enabled(false);
                self.ask_stop(id, StopReason::Disabled)
            }
            Ask::Parent { up: true } => {
                self.state.orphaned = false;
                self.accept(id);
                Ok(())
            }
            Ask::Parent { up: false } => {
                self.state.orphaned = true;
                self.ask_stop(id, StopReason::ParentStopped)
            }
            Ask::Pause => self.ask_pause(id),
            Ask::Resume { next } => self.ask_resume(id, next),
            Ask::Hibernate => self.ask_hibernate(id),
            Ask::Evict if self.state.is_idle() => self.ask_hibernate(id),
            Ask::Evict => Err(Denied::InUse),
            Ask::Attach => {
                self.answer(id, Ok(()), Some(Use::Attached));
                Ok(())
            }
            Ask::Lease { ttl } => self.ask_lease(id, ttl),
            Ask::Release => {
                self.state.leased = false;
                self.disarm(Timer::Lease);
                self.accept(id);
                Ok(())
            }
            Ask::Follow { rules } => self.ask_follow(id, *rules),
            Ask::Delete => self.ask_delete(id),
        }
    }

    fn ask_follow(&mut self, id: RequestId, rules: Rules) -> Result<(), Denied> {
        if rules.keeps_memory.is_some() {
            // What is saved would stay where it must not be.
            match self.state.phase {
                Phase::Hibernating { .. } => return Err(Denied::Hibernating),
                _ if self.state.is_hibernated() => {
                    return Err(Denied::KeepsMemory { why: "its memory is on the disk; resume it first" });
                }
                _ => {}
            }
        }
        self.state.rules = rules;
        for timer in [Timer::Pause, Timer::Hibernate] {
            self.disarm(timer);
        }
        self.record();
        self.accept(id);
        Ok(())
    }

    fn ask_start(&mut self, id: RequestId, next: VmId) -> Result<(), Denied> {
        self.forgive();
        match self.state.phase.clone() {
            Phase::Stopped { .. } => self.enable_and_boot(next),
            Phase::Stopping(_) => self.boot_after_stop(next),
            Phase::Hibernating { .. } => self.boot_after_save(next),
            Phase::Pausing { .. } | Phase::Resuming { .. } => return self.wait(id, Goal::Running),
            Phase::Paused { vm } => {
                self.resume(vm);
                return self.wait(id, Goal::Running);
            }
            Phase::Booting { .. } | Phase::Running { .. } | Phase::Removing { .. } | Phase::Deleted => {}
        }
        self.accept(id);
        Ok(())
    }

    fn ask_restart(&mut self, id: RequestId, next: VmId) -> Result<(), Denied> {
        self.forgive();
        match self.state.phase {
            Phase::Stopped { .. } => {
                if self.state.is_hibernated() {
                    self.give_up_saved(StopCause::plain(StopReason::Requested));
                }
                self.enable_and_boot(next);
            }
            Phase::Stopping(_) => {
                self.give_up_saving(StopReason::Requested);
                self.boot_after_stop(next);
            }
            _ => self.stop(StopCause::plain(StopReason::Requested), AfterStop::Boot(next), STOP_GRACE),
        }
        self.accept(id);
        Ok(())
    }

    fn ask_wake(&mut self, id: RequestId, next: VmId, purpose: Use) -> Result<(), Denied> {
        if !self.state.enabled {
            return Err(Denied::Disabled);
        }
        match self.state.phase.clone() {
            Phase::Running { .. } => {
                self.answer(id, Ok(()), Some(purpose));
                return Ok(());
            }
            // It is on its way by itself.
            Phase::Stopped { .. } if self.state.timers.contains(&Timer::Restart) => {}
            Phase::Stopped { cause } => match self.crash_loop().or_else(|| cause.bars_waking()) {
                Some(denied) => return Err(denied),
                None => self.enable_and_boot(next),
            },
            Phase::Stopping(Stopping { then: AfterStop::Again, .. }) => {}
            Phase::Stopping(Stopping { then: AfterStop::Stay, cause, .. }) => match cause.bars_waking() {
                Some(denied) => return Err(denied),
                None => self.boot_after_stop(next),
            },
            Phase::Hibernating { .. } => self.boot_after_save(next),
            Phase::Paused { vm } => self.resume(vm),
            Phase::Booting { .. }
            | Phase::Pausing { .. }
            | Phase::Resuming { .. }
            | Phase::Stopping(_)
            | Phase::Removing { .. }
            | Phase::Deleted => {}
        }
        self.wait_for(Waiting { id, goal: Goal::Running, grant: Some(purpose) })
    }

    fn ask_stop(&mut self, id: RequestId, reason: StopReason) -> Result<(), Denied> {
        if self.state.is_hibernated() {
            self.give_up_saved(StopCause::plain(reason));
        }
        self.give_up_saving(reason);
        match &mut self.state.phase {
            Phase::Stopped { .. } => {
                self.disarm(Timer::Restart);
                self.settle(&[Goal::Running], &Err(StopCause::plain(reason).interrupts()));
                self.accept(id);
                return Ok(());
            }
            Phase::Stopping(stopping) => {
                if stopping.cause.reason == StopReason::Requested {
                    stopping.cause.reason = reason;
                }
                stopping.then = AfterStop::Stay;
                let denied = StopCause::plain(reason).interrupts();
                self.settle(&[Goal::Running], &Err(denied));
            }
            _ => self.stop(StopCause::plain(reason), AfterStop::Stay, STOP_GRACE),
        }
        self.wait(id, Goal::VmGone)
    }

    fn ask_pause(&mut self, id: RequestId) -> Result<(), Denied> {
        match self.state.phase.clone() {
            Phase::Running { vm } => self.pause(vm),
            Phase::Pausing { .. } | Phase::Resuming { .. } => {}
            Phase::Paused { .. } => {
                self.accept(id);
                return Ok(());
            }
            _ => return Err(self.not_running()),
        }
        self.wait(id, Goal::Paused)
    }

    fn ask_resume(&mut self, id: RequestId, next: VmId) -> Result<(), Denied> {
        match self.state.phase.clone() {
            Phase::Paused { vm } => self.resume(vm),
            Phase::Stopped { .. } if self.state.is_hibernated() && self.state.enabled => {
                self.enable_and_boot(next);
            }
            Phase::Hibernating { .. } if self.state.enabled => self.boot_after_save(next),
            Phase::Pausing { .. } | Phase::Resuming { .. } => {}
            Phase::Running { .. } => {
                self.accept(id);
                return Ok(());
            }
            _ => return Err(self.not_running()),
        }
        self.wait(id, Goal::Running)
    }

    fn ask_hibernate(&mut self, id: RequestId) -> Result<(), Denied> {
        self.state.rules.may_hibernate()?;
        match self.state.phase.clone() {
            Phase::Running { vm } | Phase::Paused { vm } => self.hibernate(vm),
            Phase::Pausing { .. } | Phase::Resuming { .. } | Phase::Hibernating { then: None, .. } => {}
            Phase::Hibernating { .. } => return Err(Denied::InUse),
            Phase::Stopped { .. } if self.state.is_hibernated() => {
                self.accept(id);
                return Ok(());
            }
            _ => return Err(self.not_running()),
        }
        self.wait(id, Goal::Hibernated)
    }

    fn ask_lease(&mut self, id: RequestId, ttl: Duration) -> Result<(), Denied> {
        match self.state.phase {
            Phase::Booting { .. }
            | Phase::Running { .. }
            | Phase::Pausing { .. }
            | Phase::Paused { .. }
            | Phase::Resuming { .. } => {
                self.state.leased = true;
                self.arm(Timer::Lease, ttl);
                self.accept(id);
                Ok(())
            }
            _ => Err(self.not_running()),
        }
    }

    fn ask_delete(&mut self, id: RequestId) -> Result<(), Denied> {
        match &mut self.state.phase {
            Phase::Stopped { cause } => {
                let cause = cause.clone();
                self.disarm(Timer::Restart);
                self.settle(&[Goal::Running], &Err(Denied::Deleted));
                self.remove(cause);
            }
            Phase::Stopping(stopping) => {
                stopping.then = AfterStop::Delete;
                if stopping.stage == Stage::Ending {
                    let vm = stopping.vm.clone();
                    // The disk goes away: what a running stop waits for does not matter any more.
                    self.effect(Effect::Stop { vm, grace: Duration::ZERO });
                }
                self.settle(&[Goal::Running, Goal::Hibernated], &Err(Denied::Deleted));
            }
            Phase::Removing { .. } | Phase::Deleted => {}
            _ => self.stop(StopCause::plain(StopReason::Requested), AfterStop::Delete, Duration::ZERO),
        }
        self.wait(id, Goal::Deleted)
    }

    fn enable_and_boot(&mut self, next: VmId) {
        self.state.enabled = true;
        // Also when it was enabled: the record must say that there may be a worker before there is one.
        self.record();
        self.boot(next);
    }

    fn boot_after_stop(&mut self, next: VmId) {
        self.set_enabled(true);
        if let Phase::Stopping(stopping) = &mut self.state.phase
            && matches!(stopping.then, AfterStop::Stay | AfterStop::Again)
        {
            stopping.then = AfterStop::Boot(next);
        }
    }

    /// A VM that was just saved, and whose leftovers are being removed, is not to go on from there.
    fn give_up_saving(&mut self, reason: StopReason) {
        if let Phase::Stopping(stopping) = &mut self.state.phase
            && stopping.cause.reason == StopReason::Hibernated
        {
            stopping.cause.reason = reason;
            self.effect(Effect::Discard);
            self.settle(&[Goal::Hibernated], &Err(StopCause::plain(reason).interrupts()));
        }
    }

    /// The instance goes on from what is being saved.
    fn boot_after_save(&mut self, next: VmId) {
        self.set_enabled(true);
        if let Phase::Hibernating { then: then @ None, .. } = &mut self.state.phase {
            *then = Some(next);
        }
        self.settle(&[Goal::Hibernated], &Err(Denied::InUse));
    }

    /// An explicit start is always tried.
    fn forgive(&mut self) {
        self.state.crashes = 0;
        self.disarm(Timer::Forgive);
    }

    fn not_running(&self) -> Denied {
        match (&self.state.phase, self.state.shown()) {
            (Phase::Hibernating { .. }, _) => Denied::Hibernating,
            (_, state @ InstanceState::Starting) => Denied::NotRunning { state },
            (Phase::Stopping(_), _) => Denied::Stopping,
            (_, state) => Denied::NotRunning { state },
        }
    }
}
