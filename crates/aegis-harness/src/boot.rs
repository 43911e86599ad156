//! From the first instruction to a complete root file system.
//!
//! Two halves, so that the host gets an answer early: [`first_steps`] makes the link usable, [`prepare_root`]
//! does the rest on another thread. Until the second half is done no process can be started, so nothing runs on
//! a half-made root.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::disk;
use crate::harness::with_causes;
use crate::sys::{Mount, MountFlags, Sys};

const MODULES: &str = "/modules";
/// The last module that the link needs; those before it in the list are what it depends on.
const LINK_MODULE: &str = "virtio_console";

const ROOT_SERIAL: &str = "aegis-root";
/// Disks of a kernel with built-in drivers are probed before PID 1 starts, those of modules while they load;
/// this is for drivers that probe in the background.
const DISK_WAIT: Duration = Duration::from_secs(2);
const DISK_POLL: Duration = Duration::from_millis(2);

const LOWER: &str = "/aegis/lower";
const UPPER: &str = "/aegis/upper";
const NEW_ROOT: &str = "/aegis/root";
/// The kernel clears the inodes of a file system that grows at once: later it would be busy when nobody else is. The host
/// keeps a hole for what is cleared.
///
/// Reading the bitmaps of the disk before they are needed would be a thread's first work in every clone.
const UPPER_OPTIONS: &str = "noinit_itable,no_prefetch_block_bitmaps";
const OVERLAY_OPTIONS: &str = "lowerdir=/aegis/lower,upperdir=/aegis/upper/upper,workdir=/aegis/upper/work";

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Needed to find the link.
const KERNEL_MOUNTS: &[Mount<'static>] = &[
    mount("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
    mount("proc", "/proc", SAFE, ""),
    mount("sysfs", "/sys", SAFE, ""),
];

/// What programs expect, on the final root.
const ROOT_MOUNTS: &[Mount<'static>] = &[
    mount(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        "newinstance,ptmxmode=666,mode=620,gid=5",
    ),
    mount("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=1777"),
    mount("tmpfs", "/tmp", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=1777"),
    mount("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=0755"),
    mount("cgroup2", "/sys/fs/cgroup", SAFE, ""),
    mount("mqueue", "/dev/mqueue", SAFE, ""),
];

/// devtmpfs does not make them, and shells and programs rely on them.
const DEV_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

const fn mount(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static str,
) -> Mount<'static> {
    Mount { source: kind, target, kind, flags, options }
}

/// The root file system could not be made. The harness lives on: it has to tell the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("no disk has the serial number `{0}`")]
    NoDisk(&'static str),
    #[error("cannot look for disks")]
    Disks(#[source] io::Error),
    #[error("cannot mount {what}")]
    Mount {
        what: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("cannot switch to the root file system")]
    Switch(#[source] io::Error),
}

/// Mounts the file systems of the kernel and loads what the link needs. Returns the modules that are left.
pub(crate) fn first_steps(sys: &dyn Sys) -> Vec<PathBuf> {
    for mount in KERNEL_MOUNTS {
        try_mount(sys, mount);
    }
    let mut modules = module_list(sys);
    let link = modules.iter().position(|path| is_link_module(path)).map_or(0, |at| at + 1);
    let rest = modules.split_off(link);
    load_modules(sys, &modules);
    rest
}

/// A kernel with everything built in comes without a list.
fn module_list(sys: &dyn Sys) -> Vec<PathBuf> {
    let list = sys.read_file(&Path::new(MODULES).join("order")).unwrap_or_default();
    let list = String::from_utf8_lossy(&list);
    list.split_whitespace().map(|name| Path::new(MODULES).join(name)).collect()
}

fn is_link_module(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == LINK_MODULE)
}

fn load_modules(sys: &dyn Sys, modules: &[PathBuf]) {
    for module in modules {
        if let Err(error) = sys.load_module(module) {
            warn!("cannot load {}: {error}", module.display());
        }
    }
}

fn try_mount(sys: &dyn Sys, mount: &Mount<'_>) {
    if let Err(error) = sys.mount(mount) {
        warn!("cannot mount {} on {}: {error}", mount.kind, mount.target);
    }
}

/// Loads the remaining modules, mounts the root and moves to it. Blocks: disks and mounts take their time.
///
/// # Errors
/// [`RootError`]; the initial file system is then still the root.
pub(crate) fn prepare_root(sys: &dyn Sys, modules: &[PathBuf]) -> Result<(), RootError> {
    load_modules(sys, modules);
    let lower = wait_for_disk(sys, ROOT_SERIAL)?;
    let upper = wait_for_disk(sys, disk::SERIAL)?;
    for (what, mount) in [
        (
            "the read-only root disk",
            Mount { source: &lower, ..mount("erofs", LOWER, MountFlags::RDONLY, "") },
        ),
        (
            "the writable root disk",
            Mount { source: &upper, ..mount("ext4", UPPER, MountFlags::NOATIME, UPPER_OPTIONS) },
        ),
        ("the root file system", mount("overlay", NEW_ROOT, MountFlags::NOATIME, OVERLAY_OPTIONS)),
    ] {
        sys.mount(&mount).map_err(|error| RootError::Mount { what, error })?;
    }
    sys.switch_root(NEW_ROOT, &[UPPER]).map_err(RootError::Switch)?;
    // What is on it is worth more than its size: the kernel does not grow a file system in which it has found an error.
    if let Err(error) = disk::fill(sys) {
        warn!("{}", with_causes(&error));
    }
    for mount in ROOT_MOUNTS {
        try_mount(sys, mount);
    }
    // A template must not have to make it again in each of its copies.
    if let Err(error) = sys.make_directory(Path::new(aegis_types::WORKSPACE)) {
        warn!("cannot make {}: {error}", aegis_types::WORKSPACE);
    }
    complete(sys);
    info!("root file system is ready");
    Ok(())
}

fn wait_for_disk(sys: &dyn Sys, serial: &'static str) -> Result<String, RootError> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        if let Some(path) = sys.find_disk(serial).map_err(RootError::Disks)? {
            return Ok(path.to_string_lossy().into_owned());
        }
        if Instant::now() >= deadline {
            return Err(RootError::NoDisk(serial));
        }
        thread::sleep(DISK_POLL);
    }
}

/// The small things without which programs behave oddly. None is worth giving up for.
fn complete(sys: &dyn Sys) {
    for (target, path) in DEV_LINKS {
        if let Err(error) = sys.symlink(target, Path::new(path)) {
            warn!("cannot make {path}: {error}");
        }
    }
    if let Err(error) = sys.loopback_up() {
        warn!("cannot bring up the loopback interface: {error}");
    }
}
