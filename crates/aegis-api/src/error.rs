//! Errors of the API.

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was attempted and why it failed, for people. The only field that simple clients read.
    pub error: String,
    /// The kind of failure, for programs.
    #[serde(default)]
    pub code: ErrorCode,
    /// The reason behind the reason, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of failure. The HTTP status of each is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense (400).
    InvalidRequest,
    /// No such instance (404).
    InstanceNotFound,
    /// No such image (404).
    ImageNotFound,
    /// No such workspace (404).
    WorkspaceNotFound,
    /// No such secret (404).
    SecretNotFound,
    /// The secrets cannot be decrypted: the master key is missing or another one (503).
    SecretsLocked,
    /// An instance mounts the workspace (409).
    WorkspaceInUse,
    /// The name is taken and its instance is not stopped (409).
    AlreadyExists,
    /// The instance is disabled (409).
    Disabled,
    /// The instance is in a state that does not allow it (409).
    WrongState,
    /// The public port is in use (409).
    PortTaken,
    /// The guest port is not exposed (404).
    NotExposed,
    /// Its command failed too often right after its start, so it is not started by itself (409).
    CrashLoop,
    /// It did not happen within the time that the request gave it (504).
    Timeout,
    /// Its memory does not fit into the budget, even with every idle instance hibernated (503).
    NoMemory,
    /// The instance did not come up (503).
    BootFailed,
    /// The daemon is shutting down (503).
    ShuttingDown,
    /// Something the user cannot change by asking differently (500). Also what an unknown code reads as.
    #[default]
    #[serde(other)]
    Internal,
}

impl ErrorCode {
    /// The HTTP status of this kind.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::InstanceNotFound
            | Self::ImageNotFound
            | Self::NotExposed
            | Self::WorkspaceNotFound
            | Self::SecretNotFound => 404,
            Self::AlreadyExists
            | Self::Disabled
            | Self::WrongState
            | Self::PortTaken
            | Self::CrashLoop
            | Self::WorkspaceInUse => 409,
            Self::Internal => 500,
            Self::BootFailed | Self::ShuttingDown | Self::NoMemory | Self::SecretsLocked => 503,
            Self::Timeout => 504,
        }
    }
}
