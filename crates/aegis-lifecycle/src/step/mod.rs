//! What may happen to an instance: a pure function from state and event to state and effects.
//!
//! ```text
//!                 start, wake                 command runs
//!   Stopped ────────────────────▶ Booting ───────────────────▶ Running ◀──── Resuming
//!      ▲ │                           │                          │ │ │           ▲
//!      │ │                           │ stop, disable, delete,   │ │ │ pause,    │ resume, wake, connection
//!      │ │ delete                    │ failure, shutdown        │ │ ▼ idle      │
//!      │ │                           ▼                          │ │ Pausing ──▶ Paused
//!      │ │              ┌──────── Stopping ◀────────────────────┤ │             │ hibernate, idle, memory
//!      │ │              │ Launching → Ending → Cleaning         │ └──────────▶ Hibernating  is needed, shutdown
//!      │ │              │     ▲  (also: command ended, guest    │                │
//!      │ │              │     │   fault, worker gone, lifetime) │                │ saved, VM gone
//!      │ │              │     └─────────────────────────────────┴────────────────┘
//!      │ ▼              │
//!      │ Removing ◀─────┤ then Delete        Removing ──▶ Deleted, or back to Stopped when that failed
//!      └────────────────┤ then Stay
//!         Booting ◀─────┘ then Boot
//! ```
//!
//! The driver performs effects and brings their outcome back as events. Time, ids and everything else that is
//! not decided here arrives in events.
//!
//! *Hibernated* is `Stopped` for that reason: there is no VM, but a saved one, from which the next boot goes on. Whoever
//! leaves that state in another way discards what was saved first.
//!
//! Policy lives here as well: idle timers follow from the state ([`timers`]), an end by itself may be followed by a start,
//! crashes are counted, and a life may have an end.
//!
//! Requests are answered when their goal is reached. Waiting requests are also what drives the next transition:
//! a resume that comes in while a pause is under way waits for `Running`, so the arrival at `Paused` goes on to
//! `Resuming`.
//!
//! **Invariants:** a VM is launched only from a state without one · nothing is launched while the instance is
//! disabled or the daemon goes down · an event of another VM than the current one changes nothing · every
//! request is answered exactly once · the end of a command is reported once · idleness never halts or saves a VM that
//! somebody uses · what was saved is used at most once, and never after anything else ran on the disk.

mod crashes;
mod event;
mod outcome;
mod request;
mod restored;
mod rules;
mod state;
#[cfg(test)]
mod tests;
mod timers;
mod transition;

pub use event::{Ask, BootProblem, Effect, Event, RequestId};
pub use restored::{Found, Past, created, restored};
pub use rules::{Defaults, Rules};
pub use state::{AfterStop, Goal, Phase, Stage, State, StopCause, Stopping, Use, Users, Waiting};
pub use timers::Timer;

use crate::error::Denied;
use transition::Transition;

/// Decides what follows from an event. Pure: no clock, no I/O.
///
/// # Errors
/// The event was a request and it was denied: nothing changes.
pub fn step(state: &State, event: Event) -> Result<(State, Vec<Effect>), Denied> {
    let mut next = Transition::from(state);
    match event {
        Event::Request { id, ask } => next.request(id, ask)?,
        outcome => next.outcome(outcome),
    }
    Ok(next.finish())
}
