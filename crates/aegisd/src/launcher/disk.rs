//! The disks of instances. Everything here blocks.
//!
//! **Invariant:** a disk appears complete or not at all. One that could have been damaged by a crash of the host before
//! it was written out is not used: that of an ephemeral instance is not worth the wait for the disk, so that it
//! carries the boot of the host in which it was made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aegis_config::Home;
use aegis_types::{DiskSize, InstanceId};

use super::files::{self, Flush};
use crate::saved::host_boot;

/// Name of the file.
pub(crate) const DISK_FILE: &str = "upper.ext4";
/// Names the boot of the host in which a disk was made that nobody waited for.
const BOOT_FILE: &str = "upper.boot";

/// Where the disk of an instance is.
pub(super) fn path(home: &Home, id: &InstanceId) -> PathBuf {
    home.instance_dir(id).join(DISK_FILE)
}

/// Whether the instance has a disk. One that a crash of the host may have damaged is removed.
pub(super) fn exists(home: &Home, id: &InstanceId) -> bool {
    let disk = path(home, id);
    let Ok(boot) = fs::read(home.instance_dir(id).join(BOOT_FILE)) else { return disk.exists() };
    if boot == host_boot().as_bytes() {
        return disk.exists();
    }
    tracing::info!(instance = %id, "its disk may have been damaged when the host went down: it gets a new one");
    let removed = files::remove_file(&disk);
    if let Err(error) = &removed {
        tracing::warn!(%error, path = %disk.display(), "cannot remove it");
    }
    removed.is_err()
}

/// Makes the disk of an instance, a copy of `from` that has this size. Says whether it is longer than `from`: the guest
/// grows the file system in it.
///
/// # Errors
/// A `from` that is larger is not used: the guest could write more than it may.
pub(super) fn make(
    home: &Home,
    id: &InstanceId,
    from: &Path,
    size: DiskSize,
    ephemeral: bool,
) -> io::Result<bool> {
    let length = fs::metadata(from)?.len();
    if length > size.bytes() {
        return Err(io::Error::other(format!(
            "{}, which it would be a copy of, is larger than {size}",
            from.display()
        )));
    }
    let dir = home.instance_dir(id);
    files::make_dir(&dir)?;
    let flush = if ephemeral {
        files::write_atomically(&dir.join(BOOT_FILE), host_boot().as_bytes())?;
        Flush::Later
    } else {
        Flush::Now
    };
    files::copy_sparse(from, &path(home, id), size.bytes(), flush)?;
    Ok(length < size.bytes())
}

/// Gives the disk of an instance without a VM this size if it is smaller. The guest grows the file system when it boots.
pub(super) fn grow(home: &Home, id: &InstanceId, size: DiskSize) -> io::Result<()> {
    let disk = fs::File::options().write(true).open(path(home, id))?;
    if disk.metadata()?.len() < size.bytes() {
        disk.set_len(size.bytes())?;
        disk.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_ephemeral_disk_does_not_outlive_the_boot_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        let (lasting, fleeting) = (InstanceId::from_unix_nanos(1), InstanceId::from_unix_nanos(2));
        let template = dir.path().join("template");
        fs::write(&template, "empty").unwrap();
        for (id, ephemeral) in [(&lasting, false), (&fleeting, true)] {
            assert!(!exists(&home, id));
            assert!(make(&home, id, &template, DiskSize::MIN, ephemeral).unwrap(), "it is longer");
            assert!(exists(&home, id));
        }
        // What the host would find after a crash.
        fs::write(home.instance_dir(&fleeting).join(BOOT_FILE), "earlier").unwrap();
        assert!(exists(&home, &lasting) && !exists(&home, &fleeting));
        assert!(!path(&home, &fleeting).exists());
        make(&home, &fleeting, &template, DiskSize::MIN, true).unwrap();
        assert!(exists(&home, &fleeting));
    }
}
