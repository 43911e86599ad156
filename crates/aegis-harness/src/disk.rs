//! The writable disk: the file system on it fills it before any process runs.
//!
//! Every disk starts as a copy of a small one, and the host makes it as long as its instance may have it. A guest that boots
//! finds it that long. A copy of a template has the length of the template's disk in its memory until the device tells it
//! another one. The device is the limit whatever happens here.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::Sys;

/// By which the disk is found.
pub(crate) const SERIAL: &str = "aegis-upper";

/// For the device to tell: it does so as soon as the machine runs.
const LENGTH_WAIT: Duration = Duration::from_secs(10);
const LENGTH_POLL: Duration = Duration::from_millis(1);

/// The file system does not fill the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowError {
    #[error("cannot see how long the writable root disk is")]
    Length(#[source] io::Error),
    #[error("the writable root disk has {found} bytes and not {wanted}")]
    Short { found: u64, wanted: u64 },
    #[error("cannot grow the file system of the writable root disk to {bytes} bytes")]
    Grow {
        bytes: u64,
        #[source]
        error: io::Error,
    },
}

/// Fills the disk as long as it is.
pub(crate) fn fill(sys: &dyn Sys) -> Result<(), GrowError> {
    let bytes = sys.disk_bytes(SERIAL).map_err(GrowError::Length)?;
    sys.grow_disk(bytes).map_err(|error| GrowError::Grow { bytes, error })
}

/// Fills so many bytes of the disk as soon as it is that long. Blocks.
pub(crate) fn grow_to(sys: &dyn Sys, wanted: u64) -> Result<(), GrowError> {
    let deadline = Instant::now() + LENGTH_WAIT;
    loop {
        let found = sys.disk_bytes(SERIAL).map_err(GrowError::Length)?;
        if found >= wanted {
            return sys.grow_disk(wanted).map_err(|error| GrowError::Grow { bytes: wanted, error });
        }
        if Instant::now() >= deadline {
            return Err(GrowError::Short { found, wanted });
        }
        thread::sleep(LENGTH_POLL);
    }
}
