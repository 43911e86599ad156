//! Ends by themselves: which count as crashes, and which are followed by a start.

use std::time::Duration;

use aegis_types::StopReason;

use super::transition::Transition;
use super::{AfterStop, StopCause, Timer};
use crate::error::Denied;

/// A command that fails within this time of its start has crashed.
const CRASH_WITHIN: Duration = Duration::from_secs(10);
/// So many crashes in a row are a loop: only an explicit start is tried after them.
pub(super) const CRASHES_MAX: u8 = 5;
/// The last crash counts for this time.
const FORGIVE_AFTER: Duration = Duration::from_secs(120);
/// Time before a restart; doubled with each crash in a row.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

impl Transition {
    /// Counts the end of a command, or of a VM under it; `ran`: how long it had run, as far as is known.
    pub(super) fn count_end(&mut self, failed: bool, ran: Option<Duration>) {
        if failed && ran.is_none_or(|ran| ran < CRASH_WITHIN) {
            self.state.crashes = self.state.crashes.saturating_add(1);
            self.arm(Timer::Forgive, FORGIVE_AFTER);
        } else {
            self.state.crashes = 0;
            self.disarm(Timer::Forgive);
        }
    }

    /// Crashes that an earlier daemon counted.
    pub(super) fn recall_crashes(&mut self, crashes: u8) {
        self.state.crashes = crashes;
        if crashes > 0 {
            self.arm(Timer::Forgive, FORGIVE_AFTER);
        }
    }

    /// What follows an end for this cause.
    pub(super) fn after_end(&mut self, cause: &StopCause) -> AfterStop {
        let failed = match cause.reason {
            StopReason::Exited => cause.exit_code != Some(0),
            StopReason::BootFailed | StopReason::VmmDied | StopReason::GuestFault => true,
            StopReason::GuestShutdown => false,
            _ => return AfterStop::Stay,
        };
        if !self.state.rules.restarts(failed)
            || !self.state.enabled
            || self.state.orphaned
            || self.state.closing
        {
            return AfterStop::Stay;
        }
        if self.state.crashes >= CRASHES_MAX {
            let count = self.state.crashes;
            self.error(format!(
                "crashed {count} times in a row: not started again until somebody asks for it"
            ));
            return AfterStop::Stay;
        }
        AfterStop::Again
    }

    /// Why nobody but an explicit request may start the instance, if so.
    pub(super) fn crash_loop(&self) -> Option<Denied> {
        let count = self.state.crashes;
        (count >= CRASHES_MAX).then_some(Denied::CrashLoop { count })
    }

    pub(super) fn start_again_later(&mut self) {
        let doublings = u32::from(self.state.crashes.saturating_sub(1)).min(6);
        self.arm(Timer::Restart, (BACKOFF * 2u32.pow(doublings)).min(BACKOFF_MAX));
    }
}
