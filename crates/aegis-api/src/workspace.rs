//! Workspaces: directories in the home that instances mount by name.

use aegis_types::InstanceId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceSummary {
    /// Name.
    pub name: String,
    /// Absolute path on the host.
    #[schema(value_type = String)]
    pub path: std::path::PathBuf,
    /// Instances that mount it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<InstanceId>,
    /// It was made for one instance and is deleted with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto: bool,
}

/// A name in a directory of an instance's workspace. Lists are ordered: directories first, each kind by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceEntry {
    /// Name.
    pub name: String,
    /// It is a directory.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
}

/// What a workspace takes up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkspaceUsage {
    /// Name.
    pub name: String,
    /// Blocks on the disk, in bytes.
    pub bytes: u64,
    /// Files, directories and everything else in it.
    pub entries: u64,
}
