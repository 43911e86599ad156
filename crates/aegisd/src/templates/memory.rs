//! The memory of a template as VMs map it: a file in memory that nobody can change any more, not even a VMM that a guest
//! took over. Everything here blocks.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::launcher::files;

/// Copies a memory file into a sealed one in memory. Holes stay holes: they take no memory.
pub(super) fn seal(ram: &Path) -> io::Result<File> {
    let source = File::open(ram)?;
    let copy = File::from(memfd_create("aegis-template", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    files::copy_data(&source, &copy)?;
    // The VMM opens it for reading and writing: without the seals a guest could punch pages out of it, for all.
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    const LENGTH: u64 = 8 << 20;

    #[test]
    fn sealed_memory_has_the_content_and_can_not_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let ram = File::create_new(&path).unwrap();
        ram.set_len(LENGTH).unwrap();
        for (at, byte) in [(0, 1), (3 << 20, 2), (LENGTH - 4096, 3)] {
            ram.write_all_at(&[byte; 4096], at).unwrap();
        }
        let mut sealed = seal(&path).unwrap();
        assert!(sealed.metadata().unwrap().blocks() * 512 < LENGTH, "holes take no memory");

        let again =
            File::options().read(true).write(true).open(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
        let mut again = again.unwrap();
        for file in [&mut sealed, &mut again] {
            assert!(file.write_all_at(b"x", 0).is_err());
            file.rewind().unwrap();
            assert!(file.write_all(b"x").is_err());
            assert!(file.set_len(LENGTH / 2).is_err() && file.set_len(LENGTH * 2).is_err());
            assert!(
                fallocate(&*file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_err()
            );
            assert!(fallocate(&*file, FallocateFlags::ZERO_RANGE, 0, 4096).is_err());
            assert!(fcntl_add_seals(&*file, SealFlags::FUTURE_WRITE).is_err());
        }
        let mut content = Vec::new();
        sealed.rewind().unwrap();
        sealed.read_to_end(&mut content).unwrap();
        assert!(content == std::fs::read(&path).unwrap());
    }

    #[test]
    fn sealed_memory_can_not_be_mapped_for_writing_by_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        std::fs::write(&path, [1; 4096]).unwrap();
        let sealed = seal(&path).unwrap();
        // Unsafe code is forbidden here: another program tries, and shows that a private mapping works.
        let script = "import mmap,sys\n\
            private = mmap.mmap(0, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)\n\
            private[0] = 2\n\
            try:\n mmap.mmap(0, 4096, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)\n\
            except PermissionError:\n print('refused')\n";
        let mut python = std::process::Command::new("python3");
        let output = python.args(["-c", script]).stdin(sealed.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), "refused", "{}", String::from_utf8_lossy(&output.stderr));
        let mut byte = [0];
        sealed.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [1], "a private mapping changes nothing");
    }
}
