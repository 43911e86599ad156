//! Each request of the guest's kernel, by the names of the library that takes the messages apart.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FsOptions, OpenOptions, SetattrValid, WRITE_CACHE};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::AtFlags;

use crate::content::{TRANSFER_MAX, Write};
use crate::{Directory, error};

/// What is asked of the guest's kernel, as far as it can. Not `AUTO_INVAL_DATA`, which throws away what the guest has just
/// written; not `WRITEBACK_CACHE`, which is slower; no locks, which are then the kernel's own.
const WANTED: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::READDIRPLUS_AUTO)
    .union(FsOptions::CACHE_SYMLINKS)
    .union(FsOptions::ZERO_MESSAGE_OPENDIR)
    // Nothing here has such bits, so the kernel need not ask before each write.
    .union(FsOptions::HANDLE_KILLPRIV_V2);

impl FileSystem for Directory {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(WANTED & capable)
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.look_up(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.forget_node(inode, count);
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(libc::stat64, Duration)> {
        self.get_attributes(inode)
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        wanted: libc::stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(libc::stat64, Duration)> {
        self.set_attributes(inode, &wanted, handle, valid)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.read_symlink(inode)
    }

    fn symlink(&self, _: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_symlink(target, parent, name)
    }

    fn mknod(&self, _: &Context, parent: u64, name: &CStr, mode: u32, _: u32, _: u32) -> io::Result<Entry> {
        self.make_node(parent, name, mode)
    }

    fn mkdir(&self, _: &Context, parent: u64, name: &CStr, mode: u32, _: u32) -> io::Result<Entry> {
        self.make_directory(parent, name, mode)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        old: u64,
        old_name: &CStr,
        new: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.rename_entry((old, old_name), (new, new_name), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.make_link(inode, parent, name)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let (handle, options) = self.open_file(inode, flags)?;
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (entry, handle, options) = self.create_file(parent, name, args)?;
        Ok((entry, Some(handle), options, None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let mut buffer = vec![0; size.min(TRANSFER_MAX) as usize];
        let count = self.read_file(inode, handle, &mut buffer, offset)?;
        writer.write_all(&buffer[..count])?;
        Ok(count)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mut reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let append = flags.cast_signed() & libc::O_APPEND != 0 && fuse_flags & WRITE_CACHE == 0;
        self.write_file(inode, &Write { handle, size, offset, append }, &mut reader)
    }

    // `flush` is not there: nothing waits for a close, and the kernel asks only once.

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.synchronise(inode, handle, data_only)
    }

    fn fsyncdir(&self, _: &Context, inode: u64, _: bool, _: u64) -> io::Result<()> {
        self.synchronise_directory(inode)
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.allocate(inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        _: &Context,
        _: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        self.close_file(handle)
    }

    fn statfs(&self, _: &Context, _: u64) -> io::Result<libc::statvfs64> {
        self.statistics()
    }

    fn setxattr(&self, _: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        self.set_xattr(inode, name, value, flags)
    }

    fn getxattr(&self, _: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.get_xattr(inode, name, size)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.list_xattrs(inode, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.remove_xattr(inode, name)
    }

    // `opendir` answers that it is not there, by which the kernel knows that it need not ask: see `listing`.
    fn opendir(&self, _: &Context, _: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Err(error(libc::ENOSYS))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, false, |shown, _| add(shown))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, true, add)
    }

    fn lseek(&self, _: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.seek(inode, handle, offset, whence)
    }
}
