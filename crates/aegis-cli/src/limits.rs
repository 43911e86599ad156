//! What ends a command of ours before what it waits for does.

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{CliError, Kind};
use crate::signals::Signals;
use crate::ui;

/// Signals, and perhaps a time.
pub(crate) struct Limits {
    pub(crate) signals: Signals,
    /// The time, and when it passes.
    deadline: Option<(Duration, Instant)>,
}

impl Limits {
    /// The time begins now.
    pub(crate) fn new(signals: Signals, timeout: Option<Duration>) -> Self {
        Self { signals, deadline: timeout.map(|timeout| (timeout, Instant::now() + timeout)) }
    }

    /// A signal or the end of the time. Cancel safe.
    pub(crate) async fn passed(&mut self) -> CliError {
        let Some((timeout, deadline)) = self.deadline else { return self.signals.next().await };
        tokio::select! {
            biased;
            signal = self.signals.next() => signal,
            () = tokio::time::sleep_until(deadline) => {
                CliError::new(Kind::Timeout, format!("the command did not end within {}", ui::in_words(timeout)))
            }
        }
    }

    /// The result of a future, unless something ends us first.
    pub(crate) async fn during<T>(&mut self, future: impl Future<Output = T>) -> Result<T, CliError> {
        tokio::select! {
            biased;
            end = self.passed() => Err(end),
            result = future => Ok(result),
        }
    }
}
