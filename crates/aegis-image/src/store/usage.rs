//! What the store takes on the disk, and for what.

use std::collections::{BTreeMap, BTreeSet};

use aegis_types::{Digest, ImageName};

use super::Store;
use super::blobs::BlobFile;
use super::files;
use crate::error::ImageError;

/// Bytes on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Each name, in order.
    pub images: Vec<ImageUsage>,
    /// All image files, those without a name included.
    pub image_bytes: u64,
    /// Image files that no name means. Some may be in use.
    pub unnamed_bytes: u64,
    /// All layers and configurations.
    pub layer_bytes: u64,
    /// Layers and configurations that no image consists of, named or not.
    pub unneeded_bytes: u64,
    /// Unfinished downloads.
    pub partial_bytes: u64,
}

/// Bytes on the disk that are there because of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUsage {
    /// The name.
    pub name: ImageName,
    /// What it means (`sha256:…`).
    pub digest: String,
    /// The image file.
    pub image_bytes: u64,
    /// Its layers and its configuration.
    pub layer_bytes: u64,
    /// The part of both that other names need as well.
    pub shared_bytes: u64,
    /// The part of both that no other name needs.
    pub unique_bytes: u64,
}

impl Store {
    /// Measures the store. What others add meanwhile may be in it or not.
    ///
    /// # Errors
    /// [`ImageError::File`] if the store cannot be read.
    pub fn disk_usage(&self) -> Result<DiskUsage, ImageError> {
        let mut usage = DiskUsage::default();
        let images: BTreeMap<Digest, u64> = self.images()?.into_iter().collect();
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for entry in files::entries(&self.blobs())? {
            let bytes = files::bytes_on_disk(&entry.path())?;
            match BlobFile::of(&entry.file_name()) {
                BlobFile::Complete(digest) => {
                    blobs.insert(digest, bytes);
                }
                BlobFile::Partial => usage.partial_bytes += bytes,
                BlobFile::Other => {}
            }
        }
        usage.image_bytes = images.values().sum();
        usage.layer_bytes = blobs.values().sum();

        let names = self.all_names()?;
        let manifests: BTreeMap<_, _> =
            self.all_manifests()?.into_iter().map(|record| (record.manifest.clone(), record)).collect();
        let needed: BTreeSet<&Digest> = manifests.values().flat_map(|record| record.blobs()).collect();
        usage.unneeded_bytes =
            blobs.iter().filter(|(digest, _)| !needed.contains(digest)).map(|(_, bytes)| bytes).sum();
        let named: BTreeSet<&Digest> = names.iter().map(|record| &record.digest).collect();
        usage.unnamed_bytes =
            images.iter().filter(|(digest, _)| !named.contains(digest)).map(|(_, bytes)| bytes).sum();

        // What each name needs: its image file and its blobs, each once.
        let parts: Vec<(&Digest, BTreeSet<&Digest>)> = names
            .iter()
            .map(|record| {
                let manifest = record.manifest.as_ref().and_then(|manifest| manifests.get(manifest));
                (&record.digest, manifest.into_iter().flat_map(|record| record.blobs()).collect())
            })
            .collect();
        let mut users: BTreeMap<(bool, &Digest), u64> = BTreeMap::new();
        for (image, blobs) in &parts {
            for part in [(true, *image)].into_iter().chain(blobs.iter().map(|blob| (false, *blob))) {
                *users.entry(part).or_default() += 1;
            }
        }
        for (record, (image, needs)) in names.iter().zip(&parts) {
            let image_bytes = images.get(image).copied().unwrap_or_default();
            let sizes: Vec<((bool, &Digest), u64)> = [((true, *image), image_bytes)]
                .into_iter()
                .chain(needs.iter().map(|b| ((false, *b), blobs.get(b).copied().unwrap_or_default())))
                .collect();
            let all: u64 = sizes.iter().map(|(_, bytes)| bytes).sum();
            let shared = sizes.iter().filter(|(part, _)| users[part] > 1).map(|(_, bytes)| bytes).sum();
            usage.images.push(ImageUsage {
                name: record.name.clone(),
                digest: record.digest.as_str().to_owned(),
                image_bytes,
                layer_bytes: all - image_bytes,
                shared_bytes: shared,
                unique_bytes: all - shared,
            });
        }
        Ok(usage)
    }
}
