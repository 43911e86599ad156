//! The images that instances can have: those of the store, the built-in `base`, and what registries have.
//!
//! ```text
//! data/images/                      the store: see `aegis_image`
//! data/instances/<id>/image.json    which of them the disk of an instance belongs to: see `pins`
//! ```
//! `Images` finds, `Pulls` downloads, `Provider` sees to it that an instance has its image before it boots.
//!
//! **Invariants:** an instance keeps the root image of its first boot, whatever its name means later. What an instance, a
//! template or a pull needs is not collected.

mod defaults;
mod pins;
mod provide;
mod pull;
mod pulls;
mod uses;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_api::ImageSummary;
use aegis_config::{Asset, Home, NotFound};
use aegis_image::{ImageError, Store};
use aegis_lifecycle::record::InstanceSpec;
use aegis_types::{Digest, ImageConfig, ImageName, InstanceId};

use crate::assets::Assets;
use crate::digests::Digests;
pub(crate) use defaults::{Defaults, NoCommand, full_command};
pub(crate) use pins::{Kept, Pin};
pub(crate) use provide::{Provider, not_pulled, pulls as pulls_first, unavailable};
pub(crate) use pull::PullState;
pub(crate) use pulls::{Following, Pulls};
pub(crate) use uses::Uses;

/// Name of the image that comes with the installation. An image of this name in the store takes its place.
const BUILT_IN: &str = "base";

/// Finds images by name, and the image of an instance. Everything here blocks.
#[derive(Debug)]
pub(crate) struct Images {
    store: Store,
    home: Home,
    assets: Arc<Assets>,
    digests: Arc<Digests>,
}

/// An image could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// There is none of this name.
    #[error("no image named `{0}`")]
    Unknown(ImageName),
    /// There was one when the instance had its first boot.
    #[error("the image `{name}` that its disk belongs to is gone ({digest})")]
    Gone {
        /// What it was called.
        name: ImageName,
        /// `sha256:` and the hexadecimal digest of the file.
        digest: String,
    },
    /// The installation lacks the built-in image.
    #[error("{0}")]
    NotInstalled(#[from] NotFound),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The built-in image, or which image an instance has, cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file of an image, what tells it from all others, and what it says about processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootImage {
    /// Read-only root file system.
    pub(crate) path: PathBuf,
    /// `sha256:` and the hexadecimal digest of the file.
    pub(crate) digest: String,
    /// What registries know it by. The built-in image has none.
    pub(crate) manifest: Option<Digest>,
    /// Empty for images that came in another way.
    pub(crate) config: ImageConfig,
}

impl From<aegis_image::ImageInfo> for RootImage {
    fn from(image: aegis_image::ImageInfo) -> Self {
        Self { path: image.path, digest: image.digest, manifest: image.manifest, config: image.config }
    }
}

impl From<aegis_image::StoredImage> for RootImage {
    fn from(image: aegis_image::StoredImage) -> Self {
        Self { path: image.path, digest: image.digest, manifest: image.manifest, config: image.config }
    }
}

impl Images {
    /// Opens the store of this home.
    pub(crate) fn open(home: Home, assets: Arc<Assets>, digests: Arc<Digests>) -> Result<Images, ImageError> {
        Ok(Images { store: Store::open(&home.images())?, home, assets, digests })
    }

    /// The store itself.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The image that this name means now.
    pub(crate) fn find(&self, name: &ImageName) -> Result<RootImage, FindError> {
        match self.store.resolve(name)? {
            Some(image) => Ok(image.into()),
            None if is_built_in(name) => self.built_in(),
            None => Err(FindError::Unknown(name.clone())),
        }
    }

    /// The image of an instance: that of its disk, or the one that it would get at its first boot.
    pub(crate) fn of(&self, spec: &InstanceSpec) -> Result<RootImage, FindError> {
        match self.kept(&spec.id)?.pin {
            None => self.find(&spec.image),
            Some(pin) => self
                .pinned(&spec.image, &pin)?
                .ok_or_else(|| FindError::Gone { name: spec.image.clone(), digest: pin.digest }),
        }
    }

    /// The image that an instance called so is pinned to, if it is there.
    fn pinned(&self, name: &ImageName, pin: &Pin) -> Result<Option<RootImage>, FindError> {
        if let Some(image) = self.store.find(&pin.digest, pin.manifest.as_ref())? {
            return Ok(Some(image.into()));
        }
        let built_in = match is_built_in(name) {
            true => Some(self.built_in()?),
            false => None,
        };
        Ok(built_in.filter(|image| image.digest == pin.digest))
    }

    /// Notes that something is started from the image of this name; one that has no name any more needs no note.
    fn mark_used(&self, name: &ImageName) {
        match self.store.mark_used(name) {
            Err(ImageError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, image = %name, "cannot note that an image is used"),
            Ok(()) => {}
        }
    }

    /// What is kept of the image of an instance.
    pub(crate) fn kept(&self, id: &InstanceId) -> Result<Kept, FindError> {
        let path = pins::path(&self.home, id);
        Kept::load(&path).map_err(|source| FindError::Unreadable { path, source })
    }

    /// Keeps something of the image of an instance.
    pub(crate) fn keep(&self, id: &InstanceId, kept: &Kept) -> io::Result<()> {
        kept.save(&pins::path(&self.home, id))
    }

    /// The image of the installation. Its digest is computed once for each version of it.
    fn built_in(&self) -> Result<RootImage, FindError> {
        let path = self.assets.path(Asset::BaseImage)?;
        match self.digests.of(&path) {
            Ok(digest) => Ok(RootImage { path, digest, manifest: None, config: ImageConfig::default() }),
            Err(source) => Err(FindError::Unreadable { path, source }),
        }
    }

    /// All images by name.
    pub(crate) fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let mut all: Vec<ImageSummary> = self.store.list()?.into_iter().map(summary).collect();
        if !all.iter().any(|image| is_built_in(&image.name)) {
            all.extend(self.built_in_summary());
            all.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(all)
    }

    /// The built-in image, if the installation has it and it can be read.
    pub(crate) fn built_in_summary(&self) -> Option<ImageSummary> {
        let image = self.built_in().inspect_err(|error| {
            if !matches!(error, FindError::NotInstalled(_)) {
                tracing::warn!(error = %crate::text::chain(error), "cannot read the built-in image");
            }
        });
        let image = image.ok()?;
        Some(ImageSummary {
            name: ImageName::parse(BUILT_IN).expect("a valid name"),
            size_bytes: length(&image.path)?,
            digest: image.digest,
            created_at: None,
            builtin: true,
            manifest: None,
        })
    }
}

/// Whether an image of this name comes with the installation.
pub(crate) fn is_built_in(name: &ImageName) -> bool {
    name.as_str() == BUILT_IN
}

/// An image of the store as lists show it.
pub(crate) fn summary(image: aegis_image::ImageInfo) -> ImageSummary {
    ImageSummary {
        name: image.name,
        digest: image.digest,
        size_bytes: image.size_bytes,
        created_at: Some(image.created_at),
        builtin: false,
        manifest: image.manifest,
    }
}

fn length(path: &Path) -> Option<u64> {
    let meta = fs::metadata(path);
    meta.inspect_err(|error| tracing::warn!(%error, path = %path.display(), "cannot look at an image"))
        .map(|meta| meta.len())
        .ok()
}
