//! Images on disk, by content and by name.
//!
//! ```text
//! <dir>/                      0700
//!   sha256_<hex>/root.erofs   one per distinct image; the directory appears complete or not at all
//!   names/<name>.json         0600, which image a name means; replaced by renaming
//!   manifests/sha256_<hex>.json  what a manifest came to: image, configuration, layers
//!   blobs/sha256_<hex>        layers and raw configurations, complete; `.part` is a download to be resumed
//!   .import-*                 builds under way, here and in the directories below
//!   .lock                     shared while anything is added, exclusive while anything is removed
//! ```
//!
//! Names refer to manifests, manifests to blobs and to the image. They are written in the opposite order and removed in
//! this one, so what refers to something finds it, whenever a process dies.
//!
//! Any number of processes may use one store at a time: everything others see appears by a rename. All calls block; a
//! build takes as long as its layers.

mod blobs;
mod files;
mod import;
mod load;
mod lock;
mod prune;
mod records;
mod save;
mod usage;

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aegis_types::{Digest, ImageConfig, ImageName};
use jiff::Timestamp;

use crate::build::Builder;
use crate::config;
use crate::error::ImageError;
use crate::hash;
use crate::layer::{self, Description, Layer};
use crate::limits::Limits;
use files::{TEMP_PREFIX, file_error, sync_dir};
use records::{ManifestRecord, NameRecord, last_used};

pub use lock::Hold;
pub use prune::{PruneScope, Pruned};
pub use usage::{DiskUsage, ImageUsage};

const IMAGE_FILE: &str = "root.erofs";

/// A directory of images.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    limits: Limits,
}

/// An image as a name finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its name in the store.
    pub name: ImageName,
    /// `sha256:` and the hex digest of the image file.
    pub digest: String,
    /// Length of the image file.
    pub size_bytes: u64,
    /// When the name was given to this image.
    pub created_at: Timestamp,
    /// When [`Store::mark_used`] was last called for the name; before that, when it was given.
    pub last_used: Timestamp,
    /// The image file; valid as long as the store keeps the image.
    pub path: PathBuf,
    /// What a registry knows the image by; made up for what was imported. `None` for what was imported before
    /// manifests were kept.
    pub manifest: Option<Digest>,
    /// What the image says about the process in it. Empty for what was imported.
    pub config: ImageConfig,
    /// The layers that it was built of, lowest first.
    pub layers: Vec<Digest>,
}

/// An image, whether it has a name or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// A name that it has, or else the one that its manifest was last built for.
    pub name: Option<ImageName>,
    /// `sha256:` and the hex digest of the image file.
    pub digest: String,
    /// Length of the image file.
    pub size_bytes: u64,
    /// The image file; valid as long as the store keeps the image.
    pub path: PathBuf,
    /// What a registry knows the image by.
    pub manifest: Option<Digest>,
    /// What the image says about the process in it.
    pub config: ImageConfig,
    /// The layers that it was built of, lowest first.
    pub layers: Vec<Digest>,
}

/// A name that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// The name.
    pub name: ImageName,
    /// What it meant; `None` if its record was damaged.
    pub digest: Option<String>,
    /// Names that still mean the same image. Without any, [`Store::prune`] removes it once nobody uses it.
    pub others: Vec<ImageName>,
}

impl Store {
    /// Opens the store at `dir`, creating it (mode 0700) and removing what interrupted builds left behind.
    ///
    /// # Errors
    /// [`ImageError::File`] if the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<Store, ImageError> {
        Store::open_with(dir, Limits::default())
    }

    /// As [`Store::open`], with other limits on what is built.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Store, ImageError> {
        let store = Store { dir: dir.to_owned(), limits };
        for dir in store.directories() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(file_error("create", &dir))?;
        }
        // If others add images now, a later opening will look again.
        if let Some(_alone) = store.alone()? {
            store.remove_leftovers()?;
            store.rename_old_records()?;
        }
        Ok(store)
    }

    /// Applies the layers, writes the image and gives it `name`, which may have meant another image before. `progress`
    /// hears how many bytes of all layers have been read, and how many there are.
    ///
    /// # Errors
    /// [`ImageError::Layer`] names the layer that is at fault; the configuration and its list of layers have variants of
    /// their own. On error the store has the images and names that it had.
    pub fn build(
        &self,
        _hold: &Hold,
        name: &ImageName,
        image: &Description,
        progress: &dyn Fn(u64, u64),
    ) -> Result<ImageInfo, ImageError> {
        let (config, listed) = config::parse(&image.config)?;
        check_layers(&listed, &image.layers)?;
        let temp = files::temp_dir(&self.dir)?;
        let built = temp.path().join(IMAGE_FILE);
        let mut builder = Builder::create(&built, &self.limits)?;
        let layers = self.apply_layers(&mut builder, &image.layers, progress)?;
        let size_bytes = builder.finish()?.size_bytes;
        let digest = self.adopt(temp.path())?;
        let config_blob = self.put_blob(&image.config)?;
        self.remember(ManifestRecord {
            manifest: image.manifest.clone(),
            name: name.clone(),
            digest,
            size_bytes,
            config_blob,
            config,
            layers,
        })
    }

    /// Gives `name` to an image whose manifest has been built; `None` if there is none.
    ///
    /// # Errors
    /// [`ImageError::File`] or [`ImageError::DamagedRecord`] if the store cannot be used.
    pub fn tag(&self, name: &ImageName, manifest: &Digest) -> Result<Option<ImageInfo>, ImageError> {
        let _hold = self.hold()?;
        match self.read_manifest(manifest)? {
            Some(record) if self.has_image(&record.digest, record.size_bytes)? => {
                self.give_name(name, record).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// All images, by name. Names whose image is gone or whose record is damaged are left out, with a warning in the
    /// log.
    ///
    /// # Errors
    /// [`ImageError::File`] if the store cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut images = Vec::new();
        for record in self.all_names()? {
            match self.checked(record) {
                Ok(image) => images.push(image),
                // Removed since the listing.
                Err(ImageError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error @ ImageError::File { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "image left out of the list"),
            }
        }
        Ok(images)
    }

    /// The image that `name` means, or `None` if there is no such name. A name with a digest also finds an image of the
    /// same repository that has this manifest under another name.
    ///
    /// # Errors
    /// [`ImageError::MissingImage`] or [`ImageError::DamagedRecord`] if the store was tampered with.
    pub fn resolve(&self, name: &ImageName) -> Result<Option<ImageInfo>, ImageError> {
        if let Some(record) = self.read_name(name)? {
            return self.checked(record).map(Some);
        }
        let Some(digest) = name.digest() else { return Ok(None) };
        let same = |other: &ImageName| {
            other.registry() == name.registry() && other.repository() == name.repository()
        };
        let mut records = self.all_names()?.into_iter();
        let pinned = records.find(|record| record.manifest.as_ref() == Some(&digest) && same(&record.name));
        pinned.map(|record| self.checked(record)).transpose()
    }

    /// The image with this digest (that of its file, `sha256:…`), named or not; with `manifest`, as that manifest
    /// describes it. `None` if the store does not have it, or does not know the manifest.
    ///
    /// # Errors
    /// [`ImageError::File`] or [`ImageError::DamagedRecord`] if the store cannot be used.
    pub fn find(&self, digest: &str, manifest: Option<&Digest>) -> Result<Option<StoredImage>, ImageError> {
        let Ok(digest) = Digest::parse(digest) else { return Ok(None) };
        let path = self.image_path(&digest);
        let size_bytes = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error("read", &path)(error)),
        };
        let named = self.all_names()?.into_iter().find(|record| match manifest {
            Some(manifest) => record.manifest.as_ref() == Some(manifest),
            None => record.digest == digest,
        });
        let known = match manifest.or(named.as_ref().and_then(|record| record.manifest.as_ref())) {
            Some(manifest) => match self.read_manifest(manifest)? {
                Some(record) => Some(record),
                None => return Ok(None),
            },
            // It has no name, or one from before there were manifests.
            None => self.all_manifests()?.into_iter().find(|record| record.digest == digest),
        };
        let name =
            named.map(|record| record.name).or_else(|| known.as_ref().map(|record| record.name.clone()));
        let (manifest, config, layers) = known.map(described).unwrap_or_default();
        Ok(Some(StoredImage { name, digest: digest.into(), size_bytes, path, manifest, config, layers }))
    }

    /// Notes that the image is used, for [`PruneScope::unused_before`].
    ///
    /// # Errors
    /// [`ImageError::File`] if the name is gone or its record cannot be touched.
    pub fn mark_used(&self, name: &ImageName) -> Result<(), ImageError> {
        // The time of the record rather than a member of it: a start of an instance need not wait for a disk.
        let path = self.name_path(name);
        let touched = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(file_error("touch", &path))
    }

    /// Takes the name away; `None` if there is no such name. The image itself stays until [`Store::prune`] finds that
    /// nobody needs it.
    ///
    /// # Errors
    /// [`ImageError::File`] if the record cannot be removed.
    pub fn delete(&self, name: &ImageName) -> Result<Option<Deleted>, ImageError> {
        let digest = match self.read_name(name) {
            Ok(Some(record)) => Some(record.digest),
            Ok(None) => return Ok(None),
            Err(ImageError::DamagedRecord { .. }) => None,
            Err(error) => return Err(error),
        };
        files::remove(&self.name_path(name))?;
        sync_dir(&self.names())?;
        let mut others = self.all_names()?;
        others.retain(|record| Some(&record.digest) == digest.as_ref());
        Ok(Some(Deleted {
            name: name.clone(),
            digest: digest.map(Into::into),
            others: others.into_iter().map(|record| record.name).collect(),
        }))
    }

    fn apply_layers(
        &self,
        builder: &mut Builder<'_>,
        layers: &[Layer],
        progress: &dyn Fn(u64, u64),
    ) -> Result<Vec<Layer>, ImageError> {
        let total = layers.iter().map(|layer| layer.size_bytes).sum();
        let mut done = 0;
        progress(done, total);
        let mut applied = Vec::new();
        for (number, layer) in (1..).zip(layers) {
            let mut read = |bytes| {
                done += bytes;
                progress(done, total);
            };
            let compression = self
                .existing_blob(&layer.digest)
                .and_then(|blob| layer::apply(builder, &blob, &layer.diff_id, &mut read))
                .map_err(|source| ImageError::Layer {
                    number,
                    count: layers.len(),
                    digest: layer.digest.clone(),
                    source: Box::new(source),
                })?;
            if compression != layer.compression {
                tracing::debug!(layer = %layer.digest, ?compression, said = ?layer.compression, "mislabelled layer");
            }
            applied.push(Layer { compression, ..layer.clone() });
        }
        Ok(applied)
    }

    /// Moves the finished build in this directory to where its digest says, unless it is there already.
    fn adopt(&self, built: &Path) -> Result<Digest, ImageError> {
        let image = built.join(IMAGE_FILE);
        let digest = hash::of_file(&image).map_err(file_error("read", &image))?;
        let target = self.image_dir(&digest);
        let write = |path: &Path| file_error("create", path);
        match fs::rename(built, &target) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                // The same bytes. Renaming the file over the old one also repairs an image that lost some.
                let old = target.join(IMAGE_FILE);
                fs::rename(&image, &old).map_err(write(&old))?;
            }
            Err(e) => return Err(write(&target)(e)),
        }
        sync_dir(&target)?;
        sync_dir(&self.dir)?;
        Ok(digest)
    }

    /// Records what has been built, and its name.
    fn remember(&self, record: ManifestRecord) -> Result<ImageInfo, ImageError> {
        self.write_manifest(&record)?;
        let name = record.name.clone();
        self.give_name(&name, record)
    }

    fn give_name(&self, name: &ImageName, record: ManifestRecord) -> Result<ImageInfo, ImageError> {
        let named = NameRecord {
            name: name.clone(),
            digest: record.digest.clone(),
            size_bytes: record.size_bytes,
            created_at: Timestamp::now(),
            manifest: Some(record.manifest.clone()),
        };
        self.write_name(&named)?;
        self.info(named, Some(record))
    }

    /// The image of a record, if its file is there and as long as it was.
    fn checked(&self, record: NameRecord) -> Result<ImageInfo, ImageError> {
        if !self.has_image(&record.digest, record.size_bytes)? {
            let path = self.image_path(&record.digest);
            return Err(ImageError::MissingImage { name: record.name, path });
        }
        let manifest = record.manifest.as_ref().map(|manifest| self.needed_manifest(manifest)).transpose()?;
        self.info(record, manifest)
    }

    fn info(&self, record: NameRecord, manifest: Option<ManifestRecord>) -> Result<ImageInfo, ImageError> {
        let last_used = last_used(&self.name_path(&record.name))?;
        let NameRecord { name, digest, size_bytes, created_at, .. } = record;
        let path = self.image_path(&digest);
        let digest = digest.into();
        let (manifest, config, layers) = manifest.map(described).unwrap_or_default();
        Ok(ImageInfo { name, digest, size_bytes, created_at, last_used, path, manifest, config, layers })
    }

    fn has_image(&self, digest: &Digest, size_bytes: u64) -> Result<bool, ImageError> {
        let path = self.image_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(meta.is_file() && meta.len() == size_bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    fn remove_leftovers(&self) -> Result<(), ImageError> {
        for dir in self.directories() {
            for entry in files::entries(&dir)? {
                if entry.file_name().as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
                    files::remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn directories(&self) -> [PathBuf; 4] {
        [self.dir.clone(), self.names(), self.manifests(), self.blobs()]
    }

    fn names(&self) -> PathBuf {
        self.dir.join("names")
    }

    fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    fn image_dir(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("sha256_{}", digest.hex()))
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.image_dir(digest).join(IMAGE_FILE)
    }
}

/// What a manifest says about its image.
fn described(record: ManifestRecord) -> (Option<Digest>, ImageConfig, Vec<Digest>) {
    let layers = record.layers.into_iter().map(|layer| layer.digest).collect();
    (Some(record.manifest), record.config, layers)
}

/// The configuration, whose digest was verified, must list the layers that came with it.
fn check_layers(listed: &[Digest], layers: &[Layer]) -> Result<(), ImageError> {
    if listed.len() != layers.len() {
        return Err(ImageError::LayerCount { layers: layers.len(), listed: listed.len() });
    }
    for (number, (listed, layer)) in (1..).zip(listed.iter().zip(layers)) {
        if *listed != layer.diff_id {
            let (found, listed) = (layer.diff_id.clone(), listed.clone());
            return Err(ImageError::LayerOrder { number, found, listed });
        }
    }
    Ok(())
}
