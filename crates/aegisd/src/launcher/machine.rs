//! What all VMs of one image, memory and number of CPUs have in common: the files of the installation, the image, and
//! the names under which saved state finds the machine that it fits. Everything here blocks.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aegis_config::{Asset, Home, NotFound};
use aegis_lifecycle::ports::LaunchError;
use aegis_types::{Accelerator, Disk, DiskFormat, DiskSize, ImageName, Mib, Ram, Vcpus, VmId, VmSpec};
use sha2::{Digest as _, Sha256};

use crate::assets::Assets;
use crate::digests::{Digests, hex};
use crate::images::{Images, RootImage};

/// Serial numbers by which the guest tells its disks apart.
const ROOT_SERIAL: &str = "aegis-root";
const UPPER_SERIAL: &str = "aegis-upper";
/// One retry: a guest kernel may hang while it calibrates its clock on a busy host.
pub(crate) const BOOT_ATTEMPTS: u8 = 2;
/// Time on top of all attempts in which a worker reports their failure.
const BOOT_MARGIN: Duration = Duration::from_secs(30);
/// Changes whenever workers give the VMM another machine: saved state of the earlier one is not used any more.
const MACHINE_FORMAT: u32 = 4;

/// Knows where everything is.
pub(crate) struct Machines {
    pub(crate) home: Home,
    pub(crate) assets: Arc<Assets>,
    pub(crate) images: Arc<Images>,
    pub(crate) digests: Arc<Digests>,
    /// Disk of most instances.
    pub(crate) default_disk: DiskSize,
    /// For one attempt.
    pub(crate) boot_timeout: Duration,
}

/// A machine that VMs can be started on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Program of the worker.
    pub(crate) worker: PathBuf,
    vmm: PathBuf,
    pub(crate) accelerator: Accelerator,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory: Mib,
    pub(crate) vcpus: Vcpus,
    /// Disk of the template that a VM of this machine can be a copy of: it is grown from there. No part of the key.
    pub(crate) template_disk: DiskSize,
    pub(crate) image: ImageName,
    pub(crate) image_digest: String,
    root: PathBuf,
    /// [`aegis_proto::worker::WorkerConfig::machine`]: VMM, everything that the guest sees of the machine, and the
    /// content of the image. Kernel and initramfs are no part of it: a saved VM has its own in its memory.
    pub(crate) key: String,
}

impl Machines {
    /// Time in which a worker has reported the outcome of a start.
    pub(crate) fn boot_deadline(&self) -> Duration {
        // One more attempt than there are boots: the one to restore.
        self.boot_timeout * (u32::from(BOOT_ATTEMPTS) + 1) + BOOT_MARGIN
    }

    /// Time for one attempt, as workers are told.
    pub(crate) fn boot_timeout_ms(&self) -> u64 {
        u64::try_from(self.boot_timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// Two templates serve every size. Most instances have the default: their disk need not be grown at all.
    fn template_disk(&self, wanted: DiskSize) -> DiskSize {
        if wanted >= self.default_disk { self.default_disk } else { DiskSize::MIN }
    }

    /// The machine for these wishes, `disk` of which only decides which template serves; `root` is the image of that name.
    pub(crate) fn find(
        &self,
        image: &ImageName,
        root: RootImage,
        memory: Mib,
        vcpus: Vcpus,
        disk: DiskSize,
        accelerator: Accelerator,
    ) -> Result<Machine, LaunchError> {
        let asset = |asset| self.assets.path(asset).map_err(missing);
        let (worker, vmm) = (asset(Asset::Worker)?, asset(Asset::Vmm)?);
        let (kernel, initramfs) = (asset(Asset::Kernel)?, asset(Asset::Initramfs)?);
        let mut machine = Machine {
            worker,
            vmm,
            accelerator,
            kernel,
            initramfs,
            memory,
            vcpus,
            template_disk: self.template_disk(disk),
            image: image.clone(),
            image_digest: root.digest,
            root: root.path,
            key: String::new(),
        };
        machine.key = machine.make_key().map_err(|e| LaunchError {
            message: format!("cannot look at {}: {e}", machine.vmm.display()),
            hint: Some("`aegis doctor` checks the installation".to_owned()),
        })?;
        Ok(machine)
    }
}

impl Machine {
    /// A VM on this machine. `grown_to` as in [`Disk::grown_to`], of `upper`.
    pub(crate) fn vm(
        &self,
        vm: &VmId,
        upper: PathBuf,
        grown_to: Option<u64>,
        ram: Ram,
        runtime_dir: PathBuf,
    ) -> VmSpec {
        VmSpec {
            vm_id: vm.clone(),
            vmm_path: self.vmm.clone(),
            accelerator: self.accelerator,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            memory: self.memory,
            vcpus: self.vcpus,
            disks: self.disks(upper, grown_to),
            ram,
            runtime_dir,
        }
    }

    fn disks(&self, upper: PathBuf, grown_to: Option<u64>) -> Vec<Disk> {
        let disk = |path, serial: &str, read_only, grown_to| Disk {
            path,
            format: DiskFormat::Raw,
            serial: serial.to_owned(),
            read_only,
            grown_to,
        };
        vec![disk(self.root.clone(), ROOT_SERIAL, true, None), disk(upper, UPPER_SERIAL, false, grown_to)]
    }

    fn make_key(&self) -> io::Result<String> {
        let mut parts = Parts::new("machine", MACHINE_FORMAT);
        parts.file("vmm", &self.vmm)?;
        parts.text("accelerator", self.accelerator.as_str());
        if self.accelerator != Accelerator::Tcg {
            parts.text("cpu", host_cpu());
        }
        parts.text("memory", &self.memory.to_string());
        parts.text("vcpus", &self.vcpus.get().to_string());
        for disk in self.disks(PathBuf::new(), None) {
            parts.text(if disk.read_only { "read-only disk" } else { "disk" }, &disk.serial);
        }
        parts.text("image", &self.image_digest);
        Ok(parts.digest())
    }
}

/// Text of which a key is the digest: one line for each part.
pub(crate) struct Parts(String);

impl Parts {
    pub(crate) fn new(what: &str, format: u32) -> Self {
        Self(format!("aegisvm {what} {format}\n"))
    }

    pub(crate) fn text(&mut self, name: &str, value: &str) {
        // Quoted, so that no value looks like two parts.
        let _ = writeln!(self.0, "{name}={value:?}");
    }

    /// A file by its identity: a replaced one counts as another even if its content is the same.
    pub(crate) fn file(&mut self, name: &str, path: &Path) -> io::Result<()> {
        let meta = fs::metadata(path)?;
        let stamp = (meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ino());
        let _ = writeln!(self.0, "{name}={:?} {stamp:?}", path.as_os_str());
        Ok(())
    }

    /// 64 hexadecimal digits.
    pub(crate) fn digest(self) -> String {
        hex(&Sha256::digest(self.0))
    }
}

/// What a guest sees of the host's CPU when it is not emulated: a saved VM may use any feature that it found.
fn host_cpu() -> &'static str {
    static CPU: OnceLock<String> = OnceLock::new();
    CPU.get_or_init(|| cpu_of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
}

fn cpu_of(cpuinfo: &str) -> String {
    let value = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    ["model name", "stepping", "flags", "Features"].map(value).join("; ")
}

/// A missing file of the installation as the outcome of a launch.
pub(crate) fn missing(e: NotFound) -> LaunchError {
    LaunchError { message: e.to_string(), hint: Some(e.hint) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn machine(vmm: &Path) -> Machine {
        Machine {
            worker: "/worker".into(),
            vmm: vmm.to_owned(),
            accelerator: Accelerator::Tcg,
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
            memory: Mib::DEFAULT,
            vcpus: Vcpus::DEFAULT,
            template_disk: DiskSize::DEFAULT,
            image: ImageName::parse("base").unwrap(),
            image_digest: "sha256:1".to_owned(),
            root: "/root".into(),
            key: String::new(),
        }
    }

    #[test]
    fn a_machine_is_another_one_when_anything_that_the_guest_sees_changes() {
        let dir = tempfile::tempdir().unwrap();
        let vmm = dir.path().join("vmm");
        fs::write(&vmm, "1").unwrap();
        let same = machine(&vmm);
        let key = same.make_key().unwrap();
        assert!(key.len() == 64 && key.bytes().all(|b| b.is_ascii_hexdigit()));
        let unseen = Machine {
            template_disk: DiskSize::MIN,
            kernel: "/k".into(),
            worker: "/w".into(),
            root: "/r".into(),
            ..same.clone()
        };
        assert_eq!(unseen.make_key().unwrap(), key);
        let memory = Machine { memory: Mib::new(256).unwrap(), ..same.clone() };
        let vcpus = Machine { vcpus: Vcpus::new(2).unwrap(), ..same.clone() };
        let image = Machine { image_digest: "sha256:2".to_owned(), ..same.clone() };
        let accelerator = Machine { accelerator: Accelerator::Kvm, ..same.clone() };
        for other in [memory, vcpus, image, accelerator] {
            assert_ne!(other.make_key().unwrap(), key, "{other:?}");
        }
        fs::write(&vmm, "12").unwrap();
        assert_ne!(same.make_key().unwrap(), key);
        fs::remove_file(&vmm).unwrap();
        assert!(same.make_key().is_err());
    }

    #[test]
    fn the_cpu_is_named_with_its_features() {
        let x86 = "processor\t: 0\nmodel name\t: X 1\nstepping\t: 2\nflags\t\t: fpu vmx\nprocessor\t: 1\nmodel name\t: Y\n";
        assert_eq!(cpu_of(x86), "X 1; 2; fpu vmx; ");
        assert_eq!(cpu_of("Features\t: fp asimd\n"), "; ; ; fp asimd");
    }
}
