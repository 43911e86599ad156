//! Errors of the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $code:ident = $status:literal,)+) => {
        /// Kinds of failure. What a code means and its HTTP status never change; new ones may be added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $code,)+
            /// Something the user cannot change by asking differently. Also what an unknown code reads as.
            #[default]
            #[serde(other)]
            Internal,
        }

        impl ErrorCode {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$code,)+ Self::Internal];

            /// The HTTP status of this kind.
            pub fn http_status(self) -> u16 {
                match self {
                    $(Self::$code => $status,)+
                    Self::Internal => 500,
                }
            }

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$code => concat!($($doc),+).trim_ascii(),)+
                    Self::Internal => "Something the user cannot change by asking differently.",
                }
            }
        }
    };
}

error_codes! {
    /// The request makes no sense.
    InvalidRequest = 400,
    /// No such instance.
    InstanceNotFound = 404,
    /// No such image.
    ImageNotFound = 404,
    /// An instance uses the image.
    ImageInUse = 409,
    /// The image could not be had from its registry, or is none that can be used.
    PullFailed = 502,
    /// The registry does not know the user, or the password is wrong.
    LoginFailed = 403,
    /// No credentials are kept for the registry.
    NotLoggedIn = 404,
    /// No such workspace.
    WorkspaceNotFound = 404,
    /// No such secret.
    SecretNotFound = 404,
    /// The secrets cannot be decrypted: the master key is missing or another one.
    SecretsLocked = 503,
    /// The guest has no such file.
    FileNotFound = 404,
    /// An instance mounts the workspace.
    WorkspaceInUse = 409,
    /// The name is taken and its instance is not stopped.
    AlreadyExists = 409,
    /// The instance is disabled.
    Disabled = 409,
    /// The instance is in a state that does not allow it.
    WrongState = 409,
    /// The public port is in use.
    PortTaken = 409,
    /// The guest port is not exposed.
    NotExposed = 404,
    /// Its command failed too often right after its start, so it is not started by itself.
    CrashLoop = 409,
    /// It did not happen within the time that the request gave it.
    Timeout = 504,
    /// Its memory does not fit into the budget, even with every idle instance hibernated.
    NoMemory = 503,
    /// The instance did not come up.
    BootFailed = 503,
    /// The daemon is shutting down.
    ShuttingDown = 503,
}
