//! Plain archives of root file systems.
//!
//! The archive is kept as it came, as the one layer of an image, so that what was imported can be saved like any other
//! image.

use std::fs::File;
use std::io::{self, Read, Write};

use aegis_types::{Digest, ImageConfig, ImageName};

use super::files::{self, file_error};
use super::records::ManifestRecord;
use super::{IMAGE_FILE, ImageInfo, Store};
use crate::archive::End;
use crate::build::Builder;
use crate::compression::{Compression, decompressed};
use crate::config;
use crate::error::ImageError;
use crate::hash::{self, Hashing};
use crate::layer::Layer;
use crate::manifest;

impl Store {
    /// Builds an image from `tar` (plain, gzip or zstd) and gives it `name`, which may have meant another image before.
    /// An archive that gives an image already stored only adds the name.
    ///
    /// # Errors
    /// As [`build_erofs`](crate::build_erofs); [`ImageError::File`] if the store cannot be written. On error the store
    /// has the images and names that it had.
    pub fn import(&self, name: &ImageName, tar: impl Read) -> Result<ImageInfo, ImageError> {
        let _hold = self.hold()?;
        let temp = files::temp_dir(&self.dir)?;
        let built = temp.path().join(IMAGE_FILE);
        let blob = files::temp_file(&self.blobs())?;
        let mut builder = Builder::create(&built, &self.limits)?;
        let mut copy = Copying { input: Hashing::new(tar), out: blob.as_file(), bytes: 0, failed: None };
        let applied = apply(&mut builder, &mut copy);
        let Copying { input, bytes, failed, .. } = copy;
        if let Some(error) = failed {
            return Err(file_error("write", blob.path())(error));
        }
        let (compression, diff_id) = applied?;
        let size_bytes = builder.finish()?.size_bytes;
        blob.as_file().sync_all().map_err(file_error("write", blob.path()))?;
        let layer = Layer { digest: input.digest(), diff_id, size_bytes: bytes, compression };
        let digest = self.adopt(temp.path())?;
        self.adopt_blob(&blob.into_temp_path(), &layer.digest)?;
        let raw = config::of_plain_archive(&layer.diff_id);
        let config_blob = self.put_blob(&raw)?;
        let layers = vec![layer];
        self.remember(ManifestRecord {
            manifest: hash::of_bytes(&manifest::manifest(&raw, &layers)),
            name: name.clone(),
            digest,
            size_bytes,
            config_blob,
            config: ImageConfig::default(),
            layers,
        })
    }
}

fn apply(builder: &mut Builder<'_>, tar: impl Read) -> Result<(Compression, Digest), ImageError> {
    let (compression, tar) = decompressed(Box::new(tar))?;
    let mut tar = Hashing::new(tar);
    builder.apply(&mut tar, End::Marker)?;
    Ok((compression, tar.digest()))
}

/// Keeps what is read through it. If that fails, reading fails, and the reason is here rather than in the error that the
/// reader sees: it is no fault of the archive.
struct Copying<'f, R> {
    input: R,
    out: &'f File,
    bytes: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Copying<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Err(error) = self.out.write_all(&buffer[..count]) {
            self.failed = Some(error);
            return Err(io::Error::other("the archive cannot be kept"));
        }
        self.bytes += count as u64;
        Ok(count)
    }
}
