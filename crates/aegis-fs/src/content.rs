//! The content of files.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::OpenOptions;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom, openat};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::beneath::stale;
use crate::locate::{key, stat_fd};
use crate::table::{Handle, NodeId};
use crate::{Directory, error};

/// Flags of open(2) that mean the same to the host. Not `O_APPEND`: the guest's kernel says where each write goes, and pages
/// of mappings go where they belong; see [`Directory::write_file`].
const PASSED: OFlags = OFlags::RDONLY
    .union(OFlags::WRONLY)
    .union(OFlags::RDWR)
    .union(OFlags::TRUNC)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);
/// A pipe that somebody puts where a file was must not hold us up, nor a terminal become ours.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// Bytes of one write or read; the kernel's limit for us is the same.
pub(crate) const TRANSFER_MAX: u32 = 1 << 20;

/// Flags of open(2) as the guest gives them, for the host.
pub(crate) fn host_flags(flags: u32) -> OFlags {
    (OFlags::from_bits_retain(flags) & PASSED) | SAFE
}

/// While it lives, changes of a node are the guest's.
pub(crate) struct Busy<'a> {
    directory: &'a Directory,
    id: NodeId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Ok(node) = self.directory.table().node_mut(self.id) {
            node.busy -= 1;
        }
    }
}

/// What a write says beside its bytes.
pub(crate) struct Write {
    pub(crate) handle: u64,
    pub(crate) size: u32,
    pub(crate) offset: u64,
    /// The file was opened for appending, and these are bytes of write(2) and not of a mapping.
    pub(crate) append: bool,
}

impl Directory {
    /// Says that the guest changes a node, until the value is dropped.
    pub(crate) fn begin(&self, id: NodeId) -> io::Result<Busy<'_>> {
        self.table().node_mut(id)?.busy += 1;
        Ok(Busy { directory: self, id })
    }

    /// Opens the file of a node, wherever it is now.
    pub(crate) fn open_node(&self, id: NodeId, flags: OFlags) -> io::Result<File> {
        let (place, found) = self.place(id)?;
        if !FileType::from_raw_mode(found.stx_mode.into()).is_file() {
            // The guest's kernel opens directories, pipes and sockets by itself.
            return Err(error(libc::EINVAL));
        }
        // Not before it is known to be the right one.
        let truncate = flags.contains(OFlags::TRUNC);
        let flags = flags.difference(OFlags::TRUNC) | SAFE;
        let file = openat(&place.parent, &*place.name, flags, Mode::empty()).map_err(stale)?;
        if key(&stat_fd(&file)?) != key(&found) {
            return Err(error(libc::ESTALE));
        }
        if truncate {
            rustix::fs::ftruncate(&file, 0)?;
        }
        Ok(file.into())
    }

    pub(crate) fn open_file(&self, id: NodeId, flags: u32) -> io::Result<(u64, OpenOptions)> {
        let flags = host_flags(flags);
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.writable()?;
        }
        let busy = self.begin(id)?;
        let file = self.open_node(id, flags)?;
        if flags.contains(OFlags::TRUNC) {
            self.own(id, &stat_fd(&file)?);
        }
        drop(busy);
        let handle = Handle { node: id, file, flags: flags.difference(OFlags::TRUNC) };
        let number = self.table().add_handle(handle)?;
        Ok((number, self.open_options(id)))
    }

    /// What is cached of a file is kept while changes by others are noticed.
    pub(crate) fn open_options(&self, id: NodeId) -> OpenOptions {
        if self.table().is_watched(id) { OpenOptions::KEEP_CACHE } else { OpenOptions::empty() }
    }

    fn handle_of(&self, id: NodeId, number: u64) -> io::Result<Arc<Handle>> {
        let handle = self.handle(number)?;
        if handle.node == id { Ok(handle) } else { Err(error(libc::EBADF)) }
    }

    /// Reads up to the size of the buffer; fewer bytes only at the end of the file.
    pub(crate) fn read_file(
        &self,
        id: NodeId,
        number: u64,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        read_at(&*self.handle_of(id, number)?, buffer, offset)
    }

    /// The same of whatever node it is.
    pub(crate) fn read_handle(&self, number: u64, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_at(&*self.handle(number)?, buffer, offset)
    }

    /// Writes what `bytes` has, at most as much as was said.
    pub(crate) fn write_file(&self, id: NodeId, write: &Write, bytes: &mut dyn Read) -> io::Result<usize> {
        self.writable()?;
        let handle = self.handle_of(id, write.handle)?;
        let mut buffer = Vec::with_capacity(write.size.min(TRANSFER_MAX) as usize);
        bytes.take(u64::from(write.size.min(TRANSFER_MAX))).read_to_end(&mut buffer)?;
        let busy = self.begin(id)?;
        let mode = if write.append { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        let mut written = 0;
        while written < buffer.len() {
            let at = write.offset.checked_add(written as u64).ok_or_else(|| error(libc::EFBIG))?;
            match pwritev2(&handle.file, &[IoSlice::new(&buffer[written..])], at, mode) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                // What is there already counts.
                Err(_) if written > 0 => break,
                Err(e) => return Err(e.into()),
            }
        }
        self.own(id, &stat_fd(&handle.file)?);
        drop(busy);
        Ok(written)
    }

    pub(crate) fn allocate(
        &self,
        id: NodeId,
        number: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.writable()?;
        let mode = FallocateFlags::from_bits(mode).ok_or_else(|| error(libc::EOPNOTSUPP))?;
        let handle = self.handle_of(id, number)?;
        let busy = self.begin(id)?;
        rustix::fs::fallocate(&handle.file, mode, offset, length)?;
        self.own(id, &stat_fd(&handle.file)?);
        drop(busy);
        Ok(())
    }

    /// Finds data or holes: the guest's kernel does the other kinds of seeking itself.
    pub(crate) fn seek(&self, id: NodeId, number: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let from = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(error(libc::EINVAL)),
        };
        Ok(rustix::fs::seek(&self.handle_of(id, number)?.file, from)?)
    }

    pub(crate) fn synchronise(&self, id: NodeId, number: u64, data_only: bool) -> io::Result<()> {
        let file = &self.handle_of(id, number)?.file;
        if data_only { file.sync_data() } else { file.sync_all() }
    }

    /// Brings the names of a directory to the disk.
    pub(crate) fn synchronise_directory(&self, id: NodeId) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(self.directory(id)?, c".", flags, Mode::empty())?;
        Ok(rustix::fs::fsync(directory)?)
    }

    pub(crate) fn close_file(&self, number: u64) -> io::Result<()> {
        self.table().remove_handle(number)
    }
}

fn read_at(handle: &Handle, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        let at = offset.checked_add(read as u64).ok_or_else(|| error(libc::EINVAL))?;
        match rustix::io::pread(&handle.file, &mut buffer[read..], at) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(read)
}
