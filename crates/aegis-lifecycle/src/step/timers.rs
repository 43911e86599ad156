//! Which timers run. Idle timers follow from the state alone, so no transition can forget one; the others are armed
//! where their time begins.

use std::time::Duration;

use super::{Effect, Phase, State};

/// What a timer is for. There is at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The instance has been idle for long enough to be paused.
    Pause,
    /// It has been paused for long enough to be hibernated.
    Hibernate,
    /// Its lease is over.
    Lease,
    /// It has lived for as long as it may.
    Lifetime,
    /// It is started again.
    Restart,
    /// The last crash is so long ago that it does not count any more.
    Forgive,
}

/// Timers that follow from the state: armed as long as there is a time for them here.
fn idle_timers(state: &State) -> [(Timer, Option<Duration>); 2] {
    let idle = state.is_idle() && !state.closing;
    [
        (
            Timer::Pause,
            state.rules.pause_after.filter(|_| idle && matches!(state.phase, Phase::Running { .. })),
        ),
        (
            Timer::Hibernate,
            state.rules.hibernate_after.filter(|_| idle && matches!(state.phase, Phase::Paused { .. })),
        ),
    ]
}

/// Arms and disarms the idle timers after a step.
pub(super) fn reconcile(state: &mut State, effects: &mut Vec<Effect>) {
    for (timer, wanted) in idle_timers(state) {
        match (wanted, state.timers.contains(&timer)) {
            (Some(after), false) => {
                state.timers.insert(timer);
                effects.push(Effect::Arm { timer, after });
            }
            (None, true) => {
                state.timers.remove(&timer);
                effects.push(Effect::Disarm { timer });
            }
            _ => {}
        }
    }
}
