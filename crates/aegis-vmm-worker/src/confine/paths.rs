//! Landlock: which files can be reached at all, no TCP, no signals and no abstract sockets to the outside.

use std::path::{Path, PathBuf};

use aegis_proto::worker::Restore;
use aegis_types::{Mount, NetSetup, Ram, VmSpec};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope as Isolation, path_beneath_rules,
};

use super::Scope;

/// Newest rules that this program was tested with. Newer kernels know more: what they add stays allowed.
const NEWEST: ABI = ABI::V6;

/// Programs and libraries.
const PROGRAMS: &[&str] = &["/usr", "/lib", "/lib64", "/bin", "/nix/store"];
/// What libraries look at when they start. Not all of `/etc`: it has secrets when we run as root.
const READABLE: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/qemu",
    "/dev/urandom",
    "/proc",
    "/sys/devices/system",
];
const DEVICES: &[&str] = &["/dev/null", "/dev/kvm"];

/// Restricts the calling thread. Returns the ABI in force, 0 if there is none.
pub(super) fn restrict(
    vm: &VmSpec,
    restore: Option<&Restore>,
    net: Option<&NetSetup>,
    mounts: &[Mount],
    scope: Option<&Scope>,
) -> Result<u32, RulesetError> {
    let read = AccessFs::from_read(NEWEST);
    let all = AccessFs::from_all(NEWEST);
    let execute = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let write_file: BitFlags<AccessFs> =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let images = vm.disks.iter().filter(|disk| disk.read_only).map(|disk| disk.path.as_path());
    let boot = [vm.kernel.as_path(), vm.initramfs.as_path()];
    let writable = vm.disks.iter().filter(|disk| !disk.read_only).map(|disk| disk.path.as_path());
    let state = restore.map(|restore| restore.state.as_path());
    // What a saved VM consists of is made there.
    let memory = match &vm.ram {
        Ram::File { path } => path.parent(),
        Ram::Anonymous | Ram::Template => None,
    };
    let log = net.map(|net| net.log_dir.as_path());
    let directories = memory.into_iter().chain(log).chain([vm.runtime_dir.as_path()]);
    let served = all & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev);
    let (read_only, read_write): (Vec<&Mount>, Vec<&Mount>) =
        mounts.iter().partition(|mount| mount.read_only);
    let paths = |mounts: Vec<&Mount>| mounts.into_iter().map(|mount| mount.host.clone()).collect::<Vec<_>>();
    let mut ruleset = Ruleset::default().handle_access(all)?;
    if net.is_none() {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    // Paths that do not exist are left out: what they name cannot be reached either way.
    let status = ruleset
        .scope(Isolation::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(PROGRAMS, execute))?
        .add_rules(path_beneath_rules(installation(&vm.vmm_path), execute))?
        .add_rules(path_beneath_rules(READABLE, read & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(boot.into_iter().chain(images).chain(state), AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(DEVICES.iter().map(Path::new).chain(writable), write_file))?
        .add_rules(path_beneath_rules(directories, all & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(paths(read_only), AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(paths(read_write), served))?
        .add_rules(path_beneath_rules(
            scope.map(Scope::directories).into_iter().flatten(),
            all & !AccessFs::Execute,
        ))?
        .restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        // Numbered as in the kernel.
        (_, LandlockStatus::Available { effective_abi, .. }) => (effective_abi as u32).min(NEWEST as u32),
        _ => 0,
    })
}

/// Takes TCP from the calling thread.
pub(super) fn no_tcp() -> Result<(), RulesetError> {
    Ruleset::default().handle_access(AccessNet::from_all(NEWEST))?.create()?.restrict_self().map(drop)
}

/// Where a VMM outside of the system directories keeps its program and its firmware: `<prefix>/bin/vmm` needs `<prefix>`.
fn installation(vmm: &Path) -> Vec<PathBuf> {
    let program = vmm.canonicalize().unwrap_or_else(|_| vmm.to_owned());
    let directory = program.parent();
    let prefix = directory.filter(|dir| dir.ends_with("bin")).and_then(Path::parent);
    // The root directory is no installation.
    let prefix = prefix.filter(|prefix| prefix.parent().is_some());
    match (prefix, directory) {
        (Some(prefix), _) => {
            vec![prefix.join("bin"), prefix.join("lib"), prefix.join("lib64"), prefix.join("share")]
        }
        (None, _) => vec![program],
    }
}
