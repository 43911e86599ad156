//! What the store remembers: which image a name means, and what a manifest came to.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use aegis_types::{Digest, ImageConfig, ImageName};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Store;
use super::files::{self, file_error};
use crate::error::ImageError;
use crate::layer::Layer;
use crate::manifest;

const SUFFIX: &str = ".json";
/// No record comes near this; the directory could hold anything.
const RECORD_BYTES_MAX: u64 = 16 << 20;

/// Which image a name means. Its modification time is when the image was last used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub name: ImageName,
    /// Of the image file.
    pub digest: Digest,
    pub size_bytes: u64,
    pub created_at: Timestamp,
    /// Absent in records from before there were manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
}

/// What was built of a manifest, whether it has a name or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ManifestRecord {
    pub manifest: Digest,
    /// The name that it was built for.
    pub name: ImageName,
    /// Of the image file.
    pub digest: Digest,
    pub size_bytes: u64,
    /// The raw configuration, which is a blob.
    pub config_blob: Digest,
    pub config: ImageConfig,
    pub layers: Vec<Layer>,
}

impl ManifestRecord {
    /// The blobs that the image consists of.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|layer| &layer.digest).chain([&self.config_blob])
    }
}

impl Store {
    pub(super) fn name_path(&self, name: &ImageName) -> PathBuf {
        // Names never hold `+` and never start with a dot, so this is one plain file per name.
        self.names().join(name.as_str().replace('/', "+") + SUFFIX)
    }

    fn manifest_path(&self, manifest: &Digest) -> PathBuf {
        self.manifests().join(format!("sha256_{}{SUFFIX}", manifest.hex()))
    }

    pub(super) fn write_name(&self, record: &NameRecord) -> Result<(), ImageError> {
        files::replace(&self.name_path(&record.name), &manifest::json(record))
    }

    pub(super) fn read_name(&self, name: &ImageName) -> Result<Option<NameRecord>, ImageError> {
        let path = self.name_path(name);
        match read::<NameRecord>(&path)? {
            Some(record) if record.name == *name => Ok(Some(record)),
            Some(_) => Err(ImageError::DamagedRecord { path, source: None }),
            None => Ok(None),
        }
    }

    /// All names. Damaged records are left out, with a warning in the log.
    pub(super) fn all_names(&self) -> Result<Vec<NameRecord>, ImageError> {
        let mut records: Vec<NameRecord> = read_all(&self.names())?;
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    pub(super) fn write_manifest(&self, record: &ManifestRecord) -> Result<(), ImageError> {
        files::replace(&self.manifest_path(&record.manifest), &manifest::json(record))
    }

    pub(super) fn read_manifest(&self, manifest: &Digest) -> Result<Option<ManifestRecord>, ImageError> {
        let path = self.manifest_path(manifest);
        match read::<ManifestRecord>(&path)? {
            Some(record) if record.manifest == *manifest => Ok(Some(record)),
            Some(_) => Err(ImageError::DamagedRecord { path, source: None }),
            None => Ok(None),
        }
    }

    /// The manifest that a name refers to, which must be there.
    pub(super) fn needed_manifest(&self, manifest: &Digest) -> Result<ManifestRecord, ImageError> {
        let missing = || ImageError::DamagedRecord { path: self.manifest_path(manifest), source: None };
        self.read_manifest(manifest)?.ok_or_else(missing)
    }

    /// All manifests. Damaged records are left out, with a warning in the log.
    pub(super) fn all_manifests(&self) -> Result<Vec<ManifestRecord>, ImageError> {
        read_all(&self.manifests())
    }

    pub(super) fn remove_manifest(&self, manifest: &Digest) -> Result<(), ImageError> {
        files::remove(&self.manifest_path(manifest))
    }

    /// Names have been written with `:latest` that are now written without. Where both exist, the shorter one was what
    /// everybody meant.
    pub(super) fn rename_old_records(&self) -> Result<(), ImageError> {
        for entry in files::entries(&self.names())? {
            let path = entry.path();
            let Ok(Some(record)) = read::<NameRecord>(&path) else { continue };
            let target = self.name_path(&record.name);
            if target == path {
                continue;
            }
            if target.exists() {
                tracing::warn!(name = %record.name, "removing a second record of one image name");
                files::remove(&path)?;
            } else {
                fs::rename(&path, &target).map_err(file_error("rename", &path))?;
            }
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes));
    match opened {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(file_error("read", path)(e)),
    }
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| ImageError::DamagedRecord { path: path.to_owned(), source: Some(e) })
}

fn read_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, ImageError> {
    let mut records = Vec::new();
    for entry in files::entries(dir)? {
        let path = entry.path();
        if !path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            continue; // being written
        }
        match read(&path) {
            Ok(record) => records.extend(record), // none if it was removed since the listing
            Err(error @ ImageError::File { .. }) => return Err(error),
            Err(error) => tracing::warn!(%error, "image record left out"),
        }
    }
    Ok(records)
}

/// When a name was last used, as its record says.
pub(super) fn last_used(path: &Path) -> Result<Timestamp, ImageError> {
    let modified = || -> io::Result<Timestamp> {
        let time = fs::metadata(path)?.modified()?;
        Timestamp::try_from(time).map_err(io::Error::other)
    };
    modified().map_err(file_error("read", path))
}
