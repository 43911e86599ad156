//! Layers and configurations, named by their digests and shared by all images that have them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aegis_types::Digest;

use super::Store;
use super::files::{self, file_error, sync_dir};
use crate::error::ImageError;
use crate::hash;

pub(super) const PARTIAL_SUFFIX: &str = ".part";

impl Store {
    /// Where a blob is or will be. A file of this name is always complete and verified: it gets there by renaming.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(format!("sha256_{}", digest.hex()))
    }

    /// Where an unfinished download is kept to be resumed.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(format!("sha256_{}{PARTIAL_SUFFIX}", digest.hex()))
    }

    /// A blob that must be there.
    pub(super) fn existing_blob(&self, digest: &Digest) -> Result<PathBuf, ImageError> {
        let path = self.blob_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(path),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("read", &path)(error)),
            _ => Err(ImageError::MissingBlob { digest: digest.clone(), path }),
        }
    }

    pub(super) fn put_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = hash::of_bytes(bytes);
        files::replace(&self.blob_path(&digest), bytes)?;
        Ok(digest)
    }

    /// Moves a complete, synced file whose digest was computed to its place among the blobs.
    pub(super) fn adopt_blob(&self, file: &Path, digest: &Digest) -> Result<(), ImageError> {
        let target = self.blob_path(digest);
        // Over one that is there: the same bytes, or better ones.
        fs::rename(file, &target).map_err(file_error("create", &target))?;
        sync_dir(&self.blobs())
    }
}

/// What a file among the blobs is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BlobFile {
    Complete(Digest),
    Partial,
    /// Not one of ours.
    Other,
}

impl BlobFile {
    pub(super) fn of(name: &std::ffi::OsStr) -> BlobFile {
        let digest = |name: &str| Digest::parse(&name.replacen('_', ":", 1)).ok();
        let Some(name) = name.to_str() else { return BlobFile::Other };
        match name.strip_suffix(PARTIAL_SUFFIX) {
            Some(rest) if digest(rest).is_some() => BlobFile::Partial,
            _ => digest(name).map_or(BlobFile::Other, BlobFile::Complete),
        }
    }
}
