//! What may happen to an instance: a pure function from state and event to state and effects.
//!
//! ```text
//!                 start, wake                 command runs
//!   Stopped ────────────────────▶ Booting ───────────────────▶ Running ◀──── Resuming
//!      ▲ │                           │                          │   │           ▲
//!      │ │                           │ stop, disable, delete,   │   │ pause     │ resume, wake
//!      │ │ delete                    │ failure, shutdown        │   ▼           │
//!      │ │                           ▼                          │  Pausing ──▶ Paused
//!      │ │              ┌──────── Stopping ◀────────────────────┴───┴───────────┘
//!      │ │              │ Launching → Ending → Cleaning   (also: command ended, guest fault, worker gone)
//!      │ ▼              │
//!      │ Removing ◀─────┤ then Delete        Removing ──▶ Deleted, or back to Stopped when that failed
//!      └────────────────┤ then Stay
//!         Booting ◀─────┘ then Boot
//! ```
//!
//! The driver performs effects and brings their outcome back as events. Time, ids and everything else that is
//! not decided here arrives in events.
//!
//! Requests are answered when their goal is reached. Waiting requests are also what drives the next transition:
//! a resume that comes in while a pause is under way waits for `Running`, so the arrival at `Paused` goes on to
//! `Resuming`.
//!
//! **Invariants:** a VM is launched only from a state without one · nothing is launched while the instance is
//! disabled or the daemon goes down · an event of another VM than the current one changes nothing · every
//! request is answered exactly once · the end of a command is reported once.

mod event;
mod outcome;
mod request;
mod restored;
mod state;
#[cfg(test)]
mod tests;
mod transition;

pub use event::{Ask, BootProblem, Effect, Event, RequestId};
pub use restored::{Found, created, restored};
pub use state::{AfterStop, Goal, Phase, Stage, State, StopCause, Stopping, Waiting};

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
