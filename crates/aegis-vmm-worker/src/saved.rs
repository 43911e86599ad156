//! The files of a saved VM (see [`aegis_proto::saved`]), beside its memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aegis_types::MOUNTS_MAX;

use crate::mounts::saved_file;
use aegis_proto::saved::{SAVED_FILE, STATE_FILE, SavedVm, TAKEN_FILE};

const HOST_BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of a memory file.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    directory: PathBuf,
}

impl Saved {
    /// What belongs to the memory in this file.
    pub(crate) fn beside(ram: &Path) -> Self {
        Self { directory: ram.parent().unwrap_or(Path::new("/")).to_owned() }
    }

    /// Where all of them are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file for the state of the devices.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join(STATE_FILE)
    }

    /// Says that the VM is complete, in one step.
    pub(crate) fn complete(&self, saved: &SavedVm) -> io::Result<()> {
        let fresh = self.unfinished();
        let text = serde_json::to_vec(saved)?;
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?.write_all(&text)?;
        fs::rename(&fresh, self.directory.join(SAVED_FILE))
    }

    /// Makes sure that what was saved here is never used again, also after a crash of the host.
    pub(crate) fn use_up(&self) -> io::Result<()> {
        for name in [SAVED_FILE, TAKEN_FILE] {
            let path = self.directory.join(name);
            let description = match fs::read(&path) {
                Ok(description) => description,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            fs::remove_file(&path)?;
            // What is not durable is not trusted after a crash of the host anyway.
            if !matches!(serde_json::from_slice(&description), Ok(SavedVm { durable: false, .. })) {
                File::open(&self.directory)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Removes everything but the memory: a VM that runs or that was given up is not a saved one.
    pub(crate) fn remove(&self) {
        // In this order: without the first one the others mean nothing.
        let mounts = (0..MOUNTS_MAX).map(|number| saved_file(&self.directory, number));
        for path in
            [self.directory.join(SAVED_FILE), self.unfinished(), self.state()].into_iter().chain(mounts)
        {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove {}: {e}", path.display());
                }
                _ => {}
            }
        }
    }

    fn unfinished(&self) -> PathBuf {
        self.directory.join(format!("{SAVED_FILE}.new"))
    }
}

/// Which boot of the host this is.
pub(crate) fn host_boot() -> io::Result<String> {
    Ok(fs::read_to_string(HOST_BOOT)?.trim().to_owned())
}
