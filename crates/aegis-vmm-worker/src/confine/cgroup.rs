//! A cgroup (v2) for one VM, where cgroups are delegated to us: bounded memory and processes.
//!
//! Two places can hold it: below our own cgroup, when that is the root of its hierarchy (a container), and
//! beside it, when the one above was delegated to our user (a service with `Delegate=yes` and its daemon in a
//! subgroup). Anywhere else the kernel forbids it, and the VM runs without.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aegis_types::VmSpec;

/// Beside the guest's memory: the VMM itself, its translation buffers, and the worker.
const OVERHEAD_BYTES: u64 = 256 << 20;
const PROCESSES_MAX: u32 = 512;
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Where systems mount the v2 hierarchy: alone, or beside v1.
const MOUNTS: &[&str] = &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A cgroup with us in it. Dropping it moves us back and removes it.
#[derive(Debug)]
pub struct Scope {
    path: PathBuf,
    home: PathBuf,
    /// Moving a process takes the kernel 15 ms, also to where it is.
    entered: bool,
}

impl Scope {
    /// Makes the cgroup and moves the calling process into it. `None` where that is not possible.
    pub(super) fn enter(vm: &VmSpec) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let mount = MOUNTS.iter().map(Path::new).find(|mount| mount.join("cgroup.controllers").exists())?;
        let home = mount.join(&own);
        let parent = if own.is_empty() { home.clone() } else { home.parent()?.to_owned() };
        if !own.is_empty() && !delegated(&parent) || !has_controllers(&parent) {
            return None;
        }
        Self::make(&parent, home, vm)
            .inspect_err(|e| tracing::debug!("no cgroup below {}: {e}", parent.display()))
            .ok()
    }

    fn make(parent: &Path, home: PathBuf, vm: &VmSpec) -> io::Result<Self> {
        let path = parent.join(format!("aegis-{}", vm.vm_id));
        fs::create_dir(&path)?;
        // From here on an error removes it again.
        let mut scope = Self { path, home, entered: false };
        // Enabled already, or refused: writing the limits tells.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +pids");
        let memory = (u64::from(vm.memory.get()) << 20) + OVERHEAD_BYTES;
        fs::write(scope.path.join("memory.max"), memory.to_string())?;
        fs::write(scope.path.join("pids.max"), PROCESSES_MAX.to_string())?;
        fs::write(scope.path.join("cgroup.procs"), "0")?;
        scope.entered = true;
        Ok(scope)
    }

    /// The directory of the cgroup.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has to stay reachable to leave and remove the cgroup.
    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let parent = self.path.parent().map(Path::to_owned);
        parent.into_iter().chain([self.home.clone()]).collect()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let left = if self.entered { fs::write(self.home.join("cgroup.procs"), "0") } else { Ok(()) };
        if let Err(e) = left.and_then(|()| fs::remove_dir(&self.path)) {
            tracing::debug!("the cgroup {} stays: {e}", self.path.display());
        }
    }
}

/// Whether groups below it can have limits: on a host with the first version, all controllers may be there.
fn has_controllers(cgroup: &Path) -> bool {
    let found = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    CONTROLLERS.iter().all(|wanted| found.split_whitespace().any(|name| name == *wanted))
}

/// systemd marks what it gives away.
fn delegated(cgroup: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 8];
        matches!(rustix::fs::getxattr(cgroup, *name, &mut value), Ok(length) if value[..length] == *b"1")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use aegis_types::{Accelerator, Mib, Ram, Vcpus, VmId};

    #[test]
    fn the_limits_follow_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmSpec {
            vm_id: VmId::from_random(1),
            vmm_path: "/fake".into(),
            accelerator: Accelerator::Tcg,
            kernel: "/fake".into(),
            initramfs: "/fake".into(),
            memory: Mib::new(512).unwrap(),
            vcpus: Vcpus::DEFAULT,
            disks: Vec::new(),
            ram: Ram::default(),
            runtime_dir: "/fake".into(),
        };
        let scope = Scope::make(dir.path(), dir.path().to_owned(), &vm).unwrap();
        assert_eq!(scope.path(), dir.path().join("aegis-vm-0000000000000001"));
        let limit = |name| fs::read_to_string(scope.path().join(name)).unwrap();
        assert_eq!((limit("memory.max"), limit("pids.max")), ((768u64 << 20).to_string(), "512".to_owned()));
        assert_eq!(limit("cgroup.procs"), "0");
    }
}
