//! Commands in a running instance. The answer is a stream: [`ExecStarted`], then [`crate::LogEntry`] of the
//! output, then [`ExecDone`]. A stream that ends without the last was cut off.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Runs a command beside the instance's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments, no shell.
    pub command: Vec<String>,
    /// Laid over the environment of the instance's command.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute working directory in the guest; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User and perhaps group of the command in the guest, as `USER[:GROUP]`, names or numbers; that of the instance's command when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The command is killed after this time, in milliseconds; exit code 124.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// First object of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecStarted {
    /// Id, repeated in its log entries.
    pub exec_id: String,
    /// When it was started.
    pub started_at: Timestamp,
}

/// Last object of the stream, after all output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecDone {
    /// Id.
    pub exec_id: String,
    /// Exit code as shells give it: 128 + N for signal N, 127 not found, 126 not executable, 124 timed out,
    /// 125 lost with its VM.
    pub exit_code: u8,
    /// Always true: tells this object from a log entry.
    pub done: bool,
    /// Why the command did not run or was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
