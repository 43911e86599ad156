//! Removing what nobody needs.

use std::collections::BTreeSet;
use std::fs;

use aegis_types::{Digest, ImageName};
use jiff::{SignedDuration, Timestamp};

use super::blobs::BlobFile;
use super::files::{self, TEMP_PREFIX, file_error, sync_dir};
use super::records::last_used;
use super::{IMAGE_FILE, Store};
use crate::error::ImageError;

/// What may be removed, beside images that have no name and are not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneScope {
    /// Also images that have a name, are not in use and were last used before this. `None`: named images stay.
    pub unused_before: Option<Timestamp>,
    /// Unfinished downloads that were last written before this.
    pub partial_before: Timestamp,
}

impl Default for PruneScope {
    /// Images without a name, and downloads that nobody resumed for a day.
    fn default() -> Self {
        let day = SignedDuration::from_hours(24);
        PruneScope {
            unused_before: None,
            partial_before: Timestamp::now().saturating_sub(day).unwrap_or(Timestamp::MIN),
        }
    }
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of images that were not used, as [`PruneScope::unused_before`] asked for.
    pub names: Vec<ImageName>,
    /// Digests (`sha256:…`) of image files.
    pub images: Vec<String>,
    /// Number of layers and configurations.
    pub blobs: u64,
    /// Number of unfinished downloads.
    pub partials: u64,
    /// Bytes on the disk that all of it took.
    pub freed_bytes: u64,
}

/// What stays.
struct Kept {
    images: BTreeSet<Digest>,
    manifests: BTreeSet<Digest>,
    blobs: BTreeSet<Digest>,
}

impl Store {
    /// Removes images that have no name and for whose digest `in_use` says no; blobs that no remaining image consists
    /// of; old unfinished downloads. An image in use keeps everything, also what its manifest says.
    ///
    /// Between finding an image and being reported by `in_use`, whoever wants to use it has to [hold](Store::hold) the
    /// store.
    ///
    /// # Errors
    /// [`ImageError::Busy`] if somebody holds the store. [`ImageError::File`] if something cannot be removed; what was
    /// removed before is gone, and what is left is consistent.
    pub fn prune(&self, in_use: &dyn Fn(&str) -> bool, scope: &PruneScope) -> Result<Pruned, ImageError> {
        let _alone = self.alone()?.ok_or(ImageError::Busy)?;
        let mut pruned = Pruned::default();
        if let Some(before) = scope.unused_before {
            self.prune_names(in_use, before, &mut pruned)?;
        }
        let kept = self.prune_manifests(in_use)?;
        self.prune_images(in_use, &kept, &mut pruned)?;
        self.prune_blobs(&kept, scope.partial_before, &mut pruned)?;
        Ok(pruned)
    }

    fn prune_names(
        &self,
        in_use: &dyn Fn(&str) -> bool,
        before: Timestamp,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        for record in self.all_names()? {
            let path = self.name_path(&record.name);
            if !in_use(record.digest.as_str()) && last_used(&path)? < before {
                files::remove(&path)?;
                pruned.names.push(record.name);
            }
        }
        sync_dir(&self.names())
    }

    fn prune_manifests(&self, in_use: &dyn Fn(&str) -> bool) -> Result<Kept, ImageError> {
        let names = self.all_names()?;
        let mut kept = Kept {
            images: names.iter().map(|record| record.digest.clone()).collect(),
            manifests: names.into_iter().filter_map(|record| record.manifest).collect(),
            blobs: BTreeSet::new(),
        };
        for record in self.all_manifests()? {
            if kept.manifests.contains(&record.manifest) || in_use(record.digest.as_str()) {
                kept.blobs.extend(record.blobs().cloned());
                kept.images.insert(record.digest);
            } else {
                self.remove_manifest(&record.manifest)?;
            }
        }
        sync_dir(&self.manifests())?;
        Ok(kept)
    }

    fn prune_images(
        &self,
        in_use: &dyn Fn(&str) -> bool,
        kept: &Kept,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        for (digest, _) in self.images()? {
            if kept.images.contains(&digest) || in_use(digest.as_str()) {
                continue;
            }
            let dir = self.image_dir(&digest);
            pruned.freed_bytes += files::bytes_on_disk(&dir.join(IMAGE_FILE))?;
            // A directory of an image appears and disappears as a whole. What is moved is removed now or at the next
            // opening.
            let doomed = self.dir.join(format!("{TEMP_PREFIX}{}", digest.hex()));
            fs::rename(&dir, &doomed).map_err(file_error("remove", &dir))?;
            files::remove(&doomed)?;
            pruned.images.push(digest.into());
        }
        sync_dir(&self.dir)
    }

    fn prune_blobs(
        &self,
        kept: &Kept,
        partial_before: Timestamp,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        for entry in files::entries(&self.blobs())? {
            let path = entry.path();
            let count = match BlobFile::of(&entry.file_name()) {
                BlobFile::Complete(digest) if !kept.blobs.contains(&digest) => &mut pruned.blobs,
                BlobFile::Partial if last_used(&path)? < partial_before => &mut pruned.partials,
                _ => continue,
            };
            *count += 1;
            pruned.freed_bytes += files::bytes_on_disk(&path)?;
            files::remove(&path)?;
        }
        sync_dir(&self.blobs())
    }

    /// Image files that are there, with the bytes they take on the disk.
    pub(super) fn images(&self) -> Result<Vec<(Digest, u64)>, ImageError> {
        let mut images = Vec::new();
        for entry in files::entries(&self.dir)? {
            // The names are those of blobs, one directory up.
            if let BlobFile::Complete(digest) = BlobFile::of(&entry.file_name()) {
                let bytes = files::bytes_on_disk(&entry.path().join(IMAGE_FILE))?;
                images.push((digest, bytes));
            }
        }
        images.sort();
        Ok(images)
    }
}
