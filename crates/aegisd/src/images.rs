//! The images that instances can have: those of the store and the built-in `base`. Everything here blocks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_api::ImageSummary;
use aegis_config::{Asset, NotFound};
use aegis_image::{ImageError, ImageInfo, Store};
use aegis_types::ImageName;

use crate::assets::Assets;
use crate::digests::Digests;

/// Name of the image that comes with the installation. An imported image of this name takes its place.
const BUILT_IN: &str = "base";

/// Finds images by name.
#[derive(Debug)]
pub(crate) struct Images {
    store: Store,
    assets: Arc<Assets>,
    digests: Arc<Digests>,
}

/// An image could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    /// There is none of this name.
    #[error("no image named `{0}`")]
    Unknown(ImageName),
    /// The installation lacks the built-in image.
    #[error("{0}")]
    NotInstalled(#[from] NotFound),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// The built-in image cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The file of an image, and what tells it from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootImage {
    /// Read-only root file system.
    pub(crate) path: PathBuf,
    /// `sha256:` and the hexadecimal digest of the file.
    pub(crate) digest: String,
}

impl Images {
    /// Opens the store in this directory.
    pub(crate) fn open(dir: &Path, assets: Arc<Assets>, digests: Arc<Digests>) -> Result<Images, ImageError> {
        Ok(Images { store: Store::open(dir)?, assets, digests })
    }

    /// The root image of this name.
    pub(crate) fn find(&self, name: &ImageName) -> Result<PathBuf, FindError> {
        match self.store.resolve(name)? {
            Some(image) => Ok(image.path),
            None => self.built_in_path(name),
        }
    }

    fn built_in_path(&self, name: &ImageName) -> Result<PathBuf, FindError> {
        match name.as_str() {
            BUILT_IN => Ok(self.assets.path(Asset::BaseImage)?),
            _ => Err(FindError::Unknown(name.clone())),
        }
    }

    /// The root image of this name and its digest. That of the built-in image is computed once for each version of it.
    pub(crate) fn identify(&self, name: &ImageName) -> Result<RootImage, FindError> {
        if let Some(image) = self.store.resolve(name)? {
            return Ok(RootImage { path: image.path, digest: image.digest });
        }
        let path = self.built_in_path(name)?;
        match self.digests.of(&path) {
            Ok(digest) => Ok(RootImage { path, digest }),
            Err(source) => Err(FindError::Unreadable { path, source }),
        }
    }

    /// All images by name.
    pub(crate) fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let stored = self.store.list()?.into_iter().map(|image| ImageSummary {
            name: image.name,
            digest: image.digest,
            size_bytes: image.size_bytes,
            created_at: Some(image.created_at),
            builtin: false,
        });
        let mut all: Vec<ImageSummary> = stored.collect();
        if !all.iter().any(|image| image.name.as_str() == BUILT_IN) {
            all.extend(self.built_in());
            all.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(all)
    }

    /// Builds an image from a tar archive.
    pub(crate) fn import(&self, name: &ImageName, tar: impl io::Read) -> Result<ImageInfo, ImageError> {
        self.store.import(name, tar)
    }

    /// The built-in image, if the installation has it and it can be read.
    fn built_in(&self) -> Option<ImageSummary> {
        let path = self.assets.path(Asset::BaseImage).ok()?;
        let name = ImageName::parse(BUILT_IN).expect("a valid name");
        let measured = self.digests.of(&path).and_then(|digest| Ok((digest, fs::metadata(&path)?.len())));
        match measured {
            Ok((digest, size_bytes)) => {
                Some(ImageSummary { name, digest, size_bytes, created_at: None, builtin: true })
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read the built-in image");
                None
            }
        }
    }
}
