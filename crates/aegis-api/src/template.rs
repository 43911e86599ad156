//! Templates: booted VMs without users, of which new instances are copies.

use aegis_types::{ImageName, Mib, Vcpus};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A template in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateSummary {
    /// What it is made of, hashed; a template of anything else has another key.
    pub key: String,
    /// Image that it was made for.
    pub image: ImageName,
    /// Memory in MiB.
    pub memory_mb: Mib,
    /// Virtual CPUs.
    pub vcpus: Vcpus,
    /// Size of its disk in MiB: instances with at least as much are copies of it. 0 if it is not known.
    #[serde(default)]
    pub disk_mb: u64,
    /// What it takes on disk, in bytes.
    pub size_bytes: u64,
    /// When it was made, or when that began.
    pub created_at: Timestamp,
    /// Last start from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
    /// State.
    pub state: TemplateState,
    /// Why it could not be made, or cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its memory is held by the daemon, ready for the next run.
    #[serde(default)]
    pub loaded: bool,
}

/// Whether a template can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateState {
    /// It can.
    Ready,
    /// It is being made.
    Building,
    /// It could not be made.
    Failed,
}

impl TemplateState {
    /// The state as it is written in the API and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Building => "building",
            Self::Failed => "failed",
        }
    }
}

/// Makes a template now, unless it is there. Absent values are the defaults of instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct BuildTemplate {
    /// Image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<ImageName>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<Mib>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<Vcpus>,
}

/// Deletes templates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PruneTemplates {
    /// Only those from which nothing was started for this time, such as `14d`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<String>,
}

/// Answer of [`PruneTemplates`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedTemplates {
    /// Number of deleted templates.
    pub pruned: usize,
    /// Disk space that is free again, in bytes.
    pub freed_bytes: u64,
}
