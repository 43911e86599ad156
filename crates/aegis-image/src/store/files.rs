//! Writing to the store's directory so that a crash leaves the old or the new, never half.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use crate::error::ImageError;

/// What is under way, or was when a process died.
pub(super) const TEMP_PREFIX: &str = ".import-";

pub(super) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::File { action, path, source }
}

pub(super) fn temp_dir(dir: &Path) -> Result<TempDir, ImageError> {
    tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(dir)
        .map_err(file_error("create a directory in", dir))
}

pub(super) fn temp_file(dir: &Path) -> Result<NamedTempFile, ImageError> {
    tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)
        .map_err(file_error("create a file in", dir))
}

/// Writes a whole file, which others see complete or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let dir = path.parent().expect("files of the store are in directories");
    let mut temp = temp_file(dir)?;
    let write = || -> io::Result<()> {
        temp.write_all(bytes)?;
        temp.as_file().sync_all()?;
        temp.persist(path)?;
        Ok(())
    };
    write().map_err(file_error("write", path))?;
    sync_dir(dir)
}

pub(super) fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(file_error("write", path))
}

/// What is in a directory, in no order.
pub(super) fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, ImageError> {
    let listing = fs::read_dir(dir).map_err(file_error("read", dir))?;
    listing.map(|entry| entry.map_err(file_error("read", dir))).collect()
}

/// Removes a file, or a directory with all that is in it. What is gone already is not missed.
pub(super) fn remove(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Bytes that a file takes on the disk; images have holes. Zero if it is gone.
pub(super) fn bytes_on_disk(path: &Path) -> Result<u64, ImageError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.blocks() * 512),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(file_error("read", path)(error)),
    }
}
