//! What a VM is started with: the files of the installation, the image, the instance's disk. Everything here blocks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_config::{Asset, Home, NotFound};
use aegis_lifecycle::ports::LaunchError;
use aegis_lifecycle::record::InstanceSpec;
use aegis_proto::worker::WorkerConfig;
use aegis_types::{Accelerator, Disk, DiskFormat, InstanceId, Ram, VmId, VmSpec};
use sha2::{Digest as _, Sha256};

use super::files;
use crate::assets::Assets;
use crate::images::{FindError, Images};
use crate::text::chain;

const DISK_FILE: &str = "upper.ext4";
/// Serial numbers by which the guest tells its disks apart.
const ROOT_SERIAL: &str = "aegis-root";
const UPPER_SERIAL: &str = "aegis-upper";
/// One retry: a guest kernel may hang while it calibrates its clock on a busy host.
const BOOT_ATTEMPTS: u8 = 2;
/// Time on top of all attempts in which a worker reports their failure.
const BOOT_MARGIN: Duration = Duration::from_secs(30);

/// Knows where everything is.
pub(super) struct Plan {
    pub(super) home: Home,
    pub(super) assets: Arc<Assets>,
    pub(super) images: Arc<Images>,
    /// For one attempt.
    pub(super) boot_timeout: Duration,
}

impl Plan {
    /// Time in which a worker has reported the outcome of a boot.
    pub(super) fn boot_deadline(&self) -> Duration {
        self.boot_timeout * u32::from(BOOT_ATTEMPTS) + BOOT_MARGIN
    }

    /// Makes the disk if need be and says how to run the VM. Blocks.
    pub(super) fn prepare(
        &self,
        spec: &InstanceSpec,
        vm: &VmId,
        accelerator: Accelerator,
    ) -> Result<(PathBuf, WorkerConfig), LaunchError> {
        let asset = |asset| self.assets.path(asset).map_err(missing);
        let worker = asset(Asset::Worker)?;
        let (vmm_path, kernel, initramfs) =
            (asset(Asset::Vmm)?, asset(Asset::Kernel)?, asset(Asset::Initramfs)?);
        let root = self.images.find(&spec.image).map_err(|e| match e {
            FindError::NotInstalled(e) => missing(e),
            FindError::Unknown(_) => LaunchError {
                message: e.to_string(),
                hint: Some("import it again with `aegis image import`".to_owned()),
            },
            FindError::Store(e) => LaunchError { message: chain(&e), hint: None },
        })?;
        let upper = self.disk(&spec.id)?;
        let disk = |path, serial: &str, read_only| Disk {
            path,
            format: DiskFormat::Raw,
            serial: serial.to_owned(),
            read_only,
        };
        let vm = VmSpec {
            vm_id: vm.clone(),
            vmm_path,
            accelerator,
            kernel,
            initramfs,
            memory: spec.memory,
            vcpus: spec.vcpus,
            disks: vec![disk(root, ROOT_SERIAL, true), disk(upper, UPPER_SERIAL, false)],
            ram: Ram::default(),
            runtime_dir: self.home.run_dir(&spec.id),
        };
        let hostname = spec.handle.as_ref().map_or(spec.id.as_str(), |handle| handle.as_str());
        let config = WorkerConfig {
            instance_id: spec.id.clone(),
            vm,
            hostname: hostname.to_owned(),
            machine_id: machine_id(&spec.id),
            boot_timeout_ms: u64::try_from(self.boot_timeout.as_millis()).unwrap_or(u64::MAX),
            boot_attempts: BOOT_ATTEMPTS,
            restore: None,
            machine: String::new(),
            template: false,
        };
        Ok((worker, config))
    }

    fn disk(&self, id: &InstanceId) -> Result<PathBuf, LaunchError> {
        let dir = self.home.instance_dir(id);
        let disk = dir.join(DISK_FILE);
        if !disk.exists() {
            let template = self.assets.path(Asset::DiskTemplate).map_err(missing)?;
            let made = files::make_dir(&dir).and_then(|()| files::copy_sparse(&template, &disk));
            made.map_err(|e| LaunchError {
                message: format!("cannot create the disk {}: {e}", disk.display()),
                hint: Some("`aegis doctor` shows how much space is left".to_owned()),
            })?;
        }
        Ok(disk)
    }
}

pub(super) fn missing(e: NotFound) -> LaunchError {
    LaunchError { message: e.to_string(), hint: Some(e.hint) }
}

/// 32 hexadecimal digits that stay the same for the life of the instance and differ from those of others.
fn machine_id(id: &InstanceId) -> String {
    let digest = Sha256::digest(format!("aegisvm machine-id {id}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_are_stable_and_differ() {
        let id = |n| machine_id(&InstanceId::from_unix_nanos(n));
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
        assert!(id(1).len() == 32 && id(1).bytes().all(|b| b.is_ascii_hexdigit()));
    }
}
