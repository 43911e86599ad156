//! The images that instances can have: those of the store and the built-in `base`. Everything here blocks.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use aegis_api::ImageSummary;
use aegis_config::{Asset, NotFound};
use aegis_image::{ImageError, ImageInfo, Store};
use aegis_types::ImageName;
use sha2::{Digest as _, Sha256};

use crate::assets::Assets;

/// Name of the image that comes with the installation. An imported image of this name takes its place.
const BUILT_IN: &str = "base";
const READ_BYTES: usize = 256 << 10;

/// Finds images by name.
#[derive(Debug)]
pub(crate) struct Images {
    store: Store,
    assets: Arc<Assets>,
    /// Digest of the built-in image: reading all of it takes a while.
    built_in: Mutex<Option<(FileStamp, String)>>,
}

/// Tells a file from its replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileStamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
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
}

impl Images {
    /// Opens the store in this directory.
    pub(crate) fn open(dir: &Path, assets: Arc<Assets>) -> Result<Images, ImageError> {
        Ok(Images { store: Store::open(dir)?, assets, built_in: Mutex::default() })
    }

    /// The root image of this name.
    pub(crate) fn find(&self, name: &ImageName) -> Result<PathBuf, FindError> {
        match self.store.resolve(name)? {
            Some(image) => Ok(image.path),
            None if name.as_str() == BUILT_IN => Ok(self.assets.path(Asset::BaseImage)?),
            None => Err(FindError::Unknown(name.clone())),
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
        match self.digest(&path) {
            Ok((digest, size_bytes)) => {
                Some(ImageSummary { name, digest, size_bytes, created_at: None, builtin: true })
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read the built-in image");
                None
            }
        }
    }

    fn digest(&self, path: &Path) -> io::Result<(String, u64)> {
        let meta = fs::metadata(path)?;
        let stamp = FileStamp {
            path: path.to_owned(),
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        let mut known = self.built_in.lock().expect("no code panics while it holds this");
        match &*known {
            Some((of, digest)) if *of == stamp => Ok((digest.clone(), stamp.size)),
            _ => {
                let (digest, size) = (sha256(path)?, stamp.size);
                *known = Some((stamp, digest.clone()));
                Ok((digest, size))
            }
        }
    }
}

/// `sha256:` and the hexadecimal digest of a file.
fn sha256(path: &Path) -> io::Result<String> {
    let mut reader = BufReader::with_capacity(READ_BYTES, File::open(path)?);
    let mut hasher = Sha256::new();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let count = bytes.len();
        reader.consume(count);
    }
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}
