//! The memory file of a VM: its size, its blocks on the disk, and what is given back when nobody runs in it.
//!
//! A guest writes to the file through a mapping, where a full disk is no error but the end of the VMM. So every
//! block is reserved before a VM starts, and those that were never written are given back when it is saved.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aegis_types::{Mib, Ram, VmSpec};
use aegis_vmm::VmmError;
use rustix::fs::{FallocateFlags, FsWord, SeekFrom, fallocate, fstatfs, seek};
use rustix::io::Errno;

/// `f_type` of a tmpfs: there, reserving would take the memory at once.
const TMPFS_MAGIC: FsWord = 0x0102_1994;
/// Smaller holes stay reserved: giving back each one costs a transaction of the file system.
const HOLE_MIN: u64 = 256 << 10;

/// Makes the memory of a VM that boots: zero, of the right size, reserved.
///
/// # Errors
/// The file cannot be made, or there is no room for it on the disk.
pub(crate) fn fresh(vm: &VmSpec) -> Result<(), VmmError> {
    let Ram::File { path } = &vm.ram else { return Ok(()) };
    let make = || {
        let file = open(path, true)?;
        // Through zero, so that nothing of an earlier VM is left.
        file.set_len(0)?;
        file.set_len(bytes(vm.memory))?;
        Ok(file)
    };
    let file = make().map_err(|source| VmmError::Io {
        context: format!("cannot make the memory file `{}`", path.display()),
        source,
    })?;
    reserve(&file, vm.memory).map_err(|source| {
        // What was reserved until there was no room any more.
        let _ = fs::remove_file(path);
        let memory = vm.memory.get();
        let context = format!(
            "cannot reserve {memory} MiB for the memory file `{}`, which hibernation needs",
            path.display()
        );
        VmmError::Io { context, source }
    })
}

/// Checks the memory of a VM that is restored, and reserves what is missing of it.
///
/// # Errors
/// The file is not there, or it is not as long as the memory.
pub(crate) fn kept(vm: &VmSpec) -> Result<(), VmmError> {
    let Ram::File { path } = &vm.ram else { return Ok(()) };
    let check = || {
        let file = open(path, false)?;
        let (length, wanted) = (file.metadata()?.len(), bytes(vm.memory));
        if length != wanted {
            let why = format!("it has {length} bytes, the memory {wanted}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(file)
    };
    let file = check().map_err(|source| VmmError::Io {
        context: format!("cannot use the memory file `{}`", path.display()),
        source,
    })?;
    if let Err(e) = reserve(&file, vm.memory) {
        // Better a VM that a full disk may end than none: its memory would be lost for certain.
        tracing::warn!("the memory file is not reserved: {e}");
        let _ = punch(&file);
    }
    Ok(())
}

/// Gives back what was reserved and never written.
///
/// # Errors
/// The file keeps its blocks, and works.
pub(crate) fn trim(path: &Path) -> io::Result<()> {
    let file = open(path, false)?;
    if on_tmpfs(&file)? { Ok(()) } else { punch(&file) }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(create).mode(0o600).open(path)
}

fn bytes(memory: Mib) -> u64 {
    u64::from(memory.get()) << 20
}

fn on_tmpfs(file: &File) -> io::Result<bool> {
    Ok(fstatfs(file)?.f_type == TMPFS_MAGIC)
}

fn reserve(file: &File, memory: Mib) -> io::Result<()> {
    if on_tmpfs(file)? {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, bytes(memory)) {
        // A file system that cannot promise anything.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Makes holes of what reads as one: blocks that are reserved and were never written.
fn punch(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < length {
        // The end of the file counts as a hole, so there always is one.
        let hole = seek(file, SeekFrom::Hole(at))?;
        let data = match seek(file, SeekFrom::Data(hole)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length,
            Err(e) => return Err(e.into()),
        };
        if data.saturating_sub(hole) >= HOLE_MIN {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(file, flags, hole, data - hole) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        at = data.max(hole);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use aegis_types::{Accelerator, Vcpus, VmId};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    fn vm(path: &Path) -> VmSpec {
        VmSpec {
            vm_id: VmId::from_random(1),
            vmm_path: "/fake".into(),
            accelerator: Accelerator::Tcg,
            kernel: "/fake".into(),
            initramfs: "/fake".into(),
            memory: Mib::new(128).unwrap(),
            vcpus: Vcpus::DEFAULT,
            disks: Vec::new(),
            ram: Ram::File { path: path.to_owned() },
            runtime_dir: "/fake".into(),
        }
    }

    #[test]
    fn memory_is_zero_private_and_of_the_right_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        fs::write(&path, "an earlier guest").unwrap();
        fresh(&vm(&path)).unwrap();
        let file = File::open(&path).unwrap();
        let mut start = [1; 16];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!((file.metadata().unwrap().len(), start), (128 << 20, [0; 16]));
        fs::remove_file(&path).unwrap();
        fresh(&vm(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_was_written_survives_trimming_and_the_rest_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        fresh(&vm(&path)).unwrap();
        let file = open(&path, false).unwrap();
        for at in [0, 3 << 20, (128 << 20) - 4096] {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        trim(&path).unwrap();
        let kept = file.metadata().unwrap();
        assert_eq!(kept.len(), 128 << 20);
        assert!(kept.blocks() * 512 < 4 << 20, "{} blocks", kept.blocks());
        kept_again(&path, &file);
    }

    fn kept_again(path: &Path, file: &File) {
        kept(&vm(path)).unwrap();
        for at in [0, 3 << 20, (128 << 20) - 4096] {
            let mut page = [0; 4096];
            file.read_exact_at(&mut page, at).unwrap();
            assert_eq!(page, [7; 4096]);
        }
    }

    #[test]
    fn memory_of_another_size_is_not_restored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        assert!(kept(&vm(&path)).is_err());
        fs::write(&path, "short").unwrap();
        let error = crate::boot::message_of(&kept(&vm(&path)).unwrap_err());
        assert!(error.ends_with("it has 5 bytes, the memory 134217728"), "{error}");
    }
}
