//! Images: what there is, how it came, what it takes up.

use aegis_types::{Digest, ImageConfig, ImageName, InstanceId, PullPolicy};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorBody;

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSummary {
    /// Name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits of the root image.
    pub digest: String,
    /// Size of the root image in bytes.
    pub size_bytes: u64,
    /// When the name was given to it; absent for the built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// It came with the installation.
    pub builtin: bool,
    /// What a registry knows it by; made up for root file systems that were imported, absent for the built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
}

/// Everything about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// What it says about the process to be started in it. `env` counts always, the rest with `oci_defaults`.
    #[serde(default)]
    pub config: ImageConfig,
    /// Its layers as a registry has them, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Digest>,
    /// Instances whose disks belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_by: Vec<InstanceId>,
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

/// Gets an image from its registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullImage {
    /// Name.
    pub name: ImageName,
    /// `always` when absent: whoever asks for a pull wants to know whether there is something new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PullPolicy>,
}

/// How far the download of a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerProgress {
    /// Layer.
    pub digest: Digest,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes that it has.
    pub size_bytes: u64,
}

/// One line of the answer to [`PullImage`]. The last one is [`PullEvent::Ready`] or [`PullEvent::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PullEvent {
    /// The registry is asked what the name means.
    Resolving,
    /// Layers are on their way.
    Downloading {
        /// Bytes of all layers that are here.
        done_bytes: u64,
        /// Bytes of all layers.
        total_bytes: u64,
        /// Each layer, lowest first.
        layers: Vec<LayerProgress>,
    },
    /// The root image is made of the layers.
    Building {
        /// Bytes of the layers that were unpacked.
        done_bytes: u64,
        /// Bytes to unpack; 0 when that is not known.
        total_bytes: u64,
    },
    /// The image can be used.
    Ready {
        /// The image.
        image: ImageSummary,
        /// The name means another image than before.
        changed: bool,
    },
    /// It could not be had. What was downloaded is kept for the next try.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// Answer to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDeleted {
    /// Name that is gone.
    pub name: ImageName,
    /// Room on the disk that is free again, in bytes: 0 as long as another name or an instance needs the image.
    pub freed_bytes: u64,
}

/// Deletes what nobody needs: images without a name that no instance or template uses, layers of no image, and
/// downloads that were given up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct PruneImages {
    /// Images with a name as well, if nothing uses them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Only names and downloads that were not used for so long, such as `14d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
}

/// Answer to [`PruneImages`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedImages {
    /// Names that are gone.
    pub names: Vec<ImageName>,
    /// Number of root images that are gone.
    pub images: usize,
    /// Room on the disk that is free again, in bytes.
    pub freed_bytes: u64,
}

/// What images take up on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUsage {
    /// Root images, those without a name included, in bytes.
    pub images_bytes: u64,
    /// Root images without a name, which instances or templates use, in bytes.
    pub unnamed_bytes: u64,
    /// Layers and configurations as they came, in bytes.
    pub layers_bytes: u64,
    /// Downloads that were interrupted, in bytes.
    pub partial_bytes: u64,
    /// What a prune would free at least, in bytes.
    pub reclaimable_bytes: u64,
    /// Each name. The built-in image is no part of the store.
    pub images: Vec<ImageUsageEntry>,
}

/// Part of [`ImageUsage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageUsageEntry {
    /// Name.
    pub name: ImageName,
    /// `sha256:` and 64 hexadecimal digits of the root image.
    pub digest: String,
    /// The root image, in bytes.
    pub image_bytes: u64,
    /// Its layers and its configuration, in bytes.
    pub layers_bytes: u64,
    /// The part of both that other names need as well, in bytes.
    pub shared_bytes: u64,
    /// The part of both that goes with this name, in bytes.
    pub unique_bytes: u64,
    /// An instance or a template uses it.
    pub used: bool,
}
