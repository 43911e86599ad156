//! The files that VMs need, looked up each time so that a repaired installation works at once.

use std::path::{Path, PathBuf};

use aegis_api::AssetStatus;
use aegis_config::{Asset, Home, NotFound, locate};

/// Files and programs named on the command line.
#[derive(Debug, Clone, Default)]
pub struct AssetFlags {
    /// Guest kernel.
    pub kernel: Option<PathBuf>,
    /// Guest initramfs.
    pub initramfs: Option<PathBuf>,
    /// Root image of `base`.
    pub base_image: Option<PathBuf>,
    /// Empty file system for the disks of instances.
    pub disk_template: Option<PathBuf>,
    /// QEMU program.
    pub qemu: Option<PathBuf>,
    /// Program `aegis-vmm-worker`.
    pub worker: Option<PathBuf>,
}

/// Finds assets for one home.
#[derive(Debug)]
pub(crate) struct Assets {
    home: Home,
    flags: AssetFlags,
}

const NEEDED: [Asset; 6] =
    [Asset::Vmm, Asset::Kernel, Asset::Initramfs, Asset::BaseImage, Asset::DiskTemplate, Asset::Worker];

impl Assets {
    pub(crate) fn new(home: Home, flags: AssetFlags) -> Self {
        Self { home, flags }
    }

    pub(crate) fn path(&self, asset: Asset) -> Result<PathBuf, NotFound> {
        locate(asset, self.flag(asset), &self.home).map(|located| located.path)
    }

    fn flag(&self, asset: Asset) -> Option<&Path> {
        let flags = &self.flags;
        match asset {
            Asset::Kernel => flags.kernel.as_deref(),
            Asset::Initramfs => flags.initramfs.as_deref(),
            Asset::BaseImage => flags.base_image.as_deref(),
            Asset::DiskTemplate => flags.disk_template.as_deref(),
            Asset::Vmm => flags.qemu.as_deref(),
            Asset::Worker => flags.worker.as_deref(),
            Asset::Daemon | Asset::Bench => None,
        }
    }

    pub(crate) fn report(&self) -> Vec<AssetStatus> {
        let status = |asset: Asset| {
            let (path, problem) = match self.path(asset) {
                Ok(path) => (Some(path), None),
                Err(e) => (None, Some(e.to_string())),
            };
            AssetStatus { name: asset.name().to_owned(), path, problem }
        };
        NEEDED.map(status).into()
    }
}
