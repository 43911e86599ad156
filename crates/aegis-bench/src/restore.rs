//! The floor of a start from a template: the same template, restored by a bare VMM.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use aegis_config::{Asset, Home, locate};
use aegis_proto::saved::{RAM_FILE, STATE_FILE};
use aegis_types::{Disk, DiskFormat, Ram, VmSpec};
use aegis_vmm::Start;
use aegis_vmm_qemu::Qemu;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, seek};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::BenchError;
use crate::bare::{self, Answers, Until};

/// Disk of a template, and of an instance.
const DISK_FILE: &str = "upper.ext4";

/// A template outside of the product.
pub(crate) struct BareTemplate {
    qemu: Qemu,
    spec: VmSpec,
    state: PathBuf,
    disk: PathBuf,
    scratch: TempDir,
}

impl BareTemplate {
    /// Takes a template of a daemon: its files, its memory sealed as the daemon seals it.
    pub(crate) fn open(dir: &Path, machine: VmSpec, home: &Home) -> Result<Self, BenchError> {
        let memory = seal(&dir.join(RAM_FILE)).map_err(BenchError::io("read the memory of a template"))?;
        let scratch = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
        let disk = |path: PathBuf, serial: &str, read_only| Disk {
            path,
            format: DiskFormat::Raw,
            serial: serial.to_owned(),
            read_only,
            grown_to: None,
        };
        let root = locate(Asset::BaseImage, None, home)?.path;
        // In the order and under the names that the template was saved with.
        let disks =
            vec![disk(root, "aegis-root", true), disk(scratch.path().join(DISK_FILE), "aegis-upper", false)];
        let spec = VmSpec { disks, ram: Ram::Template, runtime_dir: scratch.path().to_owned(), ..machine };
        let qemu = Qemu::new().with_template(memory.into());
        Ok(Self { qemu, spec, state: dir.join(STATE_FILE), disk: dir.join(DISK_FILE), scratch })
    }

    /// Restores it once, with a fresh copy of its disk that is not part of the time.
    pub(crate) async fn start(&self, until: Until) -> Result<Answers, BenchError> {
        let copy = self.scratch.path().join(DISK_FILE);
        copy_sparse(&self.disk, &copy).map_err(BenchError::io("copy the disk of a template"))?;
        bare::start(&self.qemu, &self.spec, Start::Restore { state: &self.state }, until).await
    }
}

fn seal(ram: &Path) -> io::Result<File> {
    let memory = File::from(memfd_create("aegis-bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    copy_data(&mut File::open(ram)?, &mut &memory)?;
    fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(memory)
}

pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    copy_data(&mut File::open(from)?, &mut &File::create(to)?)
}

/// Copies what is no hole.
fn copy_data(source: &mut File, copy: &mut &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = seek(&*source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        copy.seek(SeekFrom::Start(data))?;
        let part = io::Read::take(&mut *source, at - data);
        io::copy(&mut { part }, copy)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_sealed_copy_is_the_same_and_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let ram = File::create(&path).unwrap();
        ram.set_len(4 << 20).unwrap();
        ram.write_all_at(b"abc", 1 << 20).unwrap();
        let mut sealed = seal(&path).unwrap();
        assert!(sealed.write_all_at(b"x", 0).is_err());
        let mut content = Vec::new();
        sealed.rewind().unwrap();
        io::Read::read_to_end(&mut sealed, &mut content).unwrap();
        assert!(content == std::fs::read(&path).unwrap());
    }
}
