//! Requests, answers and paths of the daemon's HTTP API: HTTP/1.1 with JSON over the unix socket
//! `$AEGIS_HOME/aegisd.sock`. Streams are NDJSON, one object a line.
//!
//! **Invariant:** unknown fields are ignored and absent options are omitted, so that clients and daemons of
//! different age understand each other. Every failure has an [`ErrorBody`].
#![forbid(unsafe_code)]

mod activity;
mod attach;
mod error;
mod exec;
mod expose;
mod image;
mod instance;
mod log;
mod net;
pub mod paths;
mod policy;
mod registry;
mod secret;
mod stats;
mod status;
mod template;
mod workspace;

pub use activity::{KeepaliveRequest, WaitFor, WaitQuery};
pub use attach::{Attach, AttachedExec, ProcessOutput, STREAMS};
pub use error::{ErrorBody, ErrorCode};
pub use exec::{ExecDone, ExecRequest, ExecStarted};
pub use expose::{Endpoint, ExposeReply, ExposeRequest};
pub use image::{
    ImageDeleted, ImageImported, ImageInfo, ImageSummary, ImageUsage, ImageUsageEntry, LayerProgress,
    PruneImages, PrunedImages, PullEvent, PullImage,
};
pub use instance::{
    CreateInstance, CreatedInstance, InstanceInfo, InstanceSummary, PruneReply, StateReply, UpdateInstance,
    UpdatedInstance,
};
pub use log::{LogEntry, LogSource, LogStream};
pub use net::{NetRuleRequest, NetStatus};
pub use policy::InvalidPolicy;
pub use registry::{RegistryLogin, RegistrySummary};
pub use secret::{
    AuditEntry, AuditEvent, InstanceSecrets, InstanceSecretsReply, KeyRotated, RevealedSecret, SecretSummary,
    SetSecret,
};
pub use stats::{DaemonStats, InstanceStats, LastStart, StartCounts};
pub use status::{
    AssetStatus, BackendCapabilities, DaemonStatus, RouterStatus, ShutdownMode, ShutdownRequest,
};
pub use template::{BuildTemplate, PruneTemplates, PrunedTemplates, TemplateState, TemplateSummary};
pub use workspace::{WorkspaceEntry, WorkspaceSummary, WorkspaceUsage};

/// Header with a [`aegis_types::FileStat`] as JSON.
pub const STAT_HEADER: &str = "aegis-stat";
/// Trailer with a [`aegis_types::CopyReport`] as JSON, percent-encoded.
pub const REPORT_TRAILER: &str = "aegis-report";
/// Content type of the streams.
pub const NDJSON: &str = "application/x-ndjson";
