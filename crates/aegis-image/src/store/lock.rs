//! Keeping those who add and those who remove apart.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use super::Store;
use super::files::file_error;
use crate::error::ImageError;

const LOCK: &str = ".lock";

/// As long as this exists, nothing is removed from the store: what has been added for an image that is not complete
/// yet looks like garbage.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

/// Nobody adds anything as long as this exists.
pub(super) struct Alone {
    _lock: File,
}

impl Store {
    /// Keeps garbage collection away until the answer is dropped. Any number of these may exist, in any number of
    /// processes. Waits for a garbage collection that has begun.
    ///
    /// # Errors
    /// [`ImageError::File`] if the lock cannot be used.
    pub fn hold(&self) -> Result<Hold, ImageError> {
        let lock = self.lock_file()?;
        lock.lock_shared().map_err(file_error("lock", &self.dir.join(LOCK)))?;
        Ok(Hold { _lock: lock })
    }

    /// `None` if somebody holds the store.
    pub(super) fn alone(&self) -> Result<Option<Alone>, ImageError> {
        let lock = self.lock_file()?;
        Ok(lock.try_lock().is_ok().then(|| Alone { _lock: lock }))
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        let path = self.dir.join(LOCK);
        let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        opened.map_err(file_error("open", &path))
    }
}
