//! Everything a VM boots from, each part made only when it is out of date.

use std::path::PathBuf;

use anyhow::Result;

use crate::repo::Repo;
use crate::{base_image, files, guest, initramfs, kernel, manifest, upper};

/// Held while anything in `lib/aegis` is being made.
pub(crate) fn lock_path(repo: &Repo) -> PathBuf {
    repo.cache().join("lock")
}

/// Makes all assets. With `update`, kernel and base image are made again from the newest packages.
pub(crate) fn build(repo: &Repo, update: bool) -> Result<()> {
    let _lock = files::lock(&lock_path(repo))?;
    kernel::build(repo, update)?;
    upper::build(repo)?;
    base_image::build(repo, update)?;
    let init = guest::build(repo)?;
    initramfs::build(repo, &init)?;
    manifest::write(repo)
}

/// Makes the base image only.
pub(crate) fn base_image(repo: &Repo, update: bool) -> Result<()> {
    let _lock = files::lock(&lock_path(repo))?;
    base_image::build(repo, update)?;
    kernel::build(repo, false)?;
    manifest::write(repo)
}

/// Makes the initramfs, and the kernel that its modules belong to.
pub(crate) fn guest(repo: &Repo) -> Result<()> {
    let _lock = files::lock(&lock_path(repo))?;
    kernel::build(repo, false)?;
    initramfs::build(repo, &guest::build(repo)?)?;
    manifest::write(repo)
}
