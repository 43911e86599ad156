//! Scripts of guests.

use serde::{Deserialize, Serialize};

/// How a guest behaves from its boot on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    /// The harness runs on a fake machine with real processes.
    Normal,
    /// The kernel says something on the console and the harness never answers.
    Silent,
    /// The VMM ends right after it was started and leaves these last words.
    Dies(String),
    /// Answers the greeting and sends garbage after it.
    BreaksLink,
    /// Keeps the rules of the link and answers with garbage on the control stream.
    BreaksControl,
    /// Starts the command and sends garbage in place of its output.
    BreaksLogs,
    /// Starts the command and sends garbage in place of the output of other processes.
    BreaksExec,
}
