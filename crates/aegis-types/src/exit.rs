//! How a guest process ended.

use serde::{Deserialize, Serialize};

/// The end of a guest process, in the convention of shells: a process killed by signal N has code 128 + N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code, 0–255.
    pub code: u8,
    /// The signal that killed the process, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
}

impl ExitStatus {
    /// The process called `exit(code)`.
    pub fn exited(code: u8) -> Self {
        Self { code, signal: None }
    }

    /// The process was killed by a signal (1–64).
    pub fn killed(signal: u8) -> Self {
        Self { code: 128u8.saturating_add(signal), signal: Some(signal) }
    }
}
