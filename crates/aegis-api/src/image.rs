//! Images.

use aegis_types::ImageName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSummary {
    /// Name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits of the root image.
    pub digest: String,
    /// Size of the root image in bytes.
    pub size_bytes: u64,
    /// When it was imported; absent for the built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// It came with the installation.
    pub builtin: bool,
}

/// Answer of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageImported {
    /// Name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits of the root image.
    pub digest: String,
    /// Size of the root image in bytes.
    pub size_bytes: u64,
}
