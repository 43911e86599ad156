//! Attributes, ordinary and extended.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::SetattrValid;
use fuse_backend_rs::api::filesystem::{Context, FileSystem, GetxattrReply, ListxattrReply};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, fstatvfs, ftruncate,
    utimensat,
};

use crate::locate::{PERMISSIONS, path_of};
use crate::table::{NodeId, ROOT};
use crate::{Directory, error};

/// Longest value of an extended attribute (`XATTR_SIZE_MAX` of `linux/limits.h`), and of the list of their names.
const XATTR_MAX: usize = 64 * 1024;
/// Everything else is about the host's own security.
const XATTR_PREFIX: &[u8] = b"user.";
const S_ISGID: u32 = 0o2000;

impl Directory {
    pub(crate) fn get_attributes(&self, id: NodeId) -> io::Result<(libc::stat64, Duration)> {
        if self.table().node(id)?.directory {
            // Its time of change is part of what is cached.
            self.watch(id);
        }
        let found = self.stat(id)?;
        self.observe(id, &found);
        Ok((self.attributes(&found), self.validity(id)))
    }

    pub(crate) fn set_attributes(
        &self,
        id: NodeId,
        wanted: &libc::stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(libc::stat64, Duration)> {
        self.writable()?;
        let busy = self.begin(id)?;
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(wanted.st_size).map_err(|_| error(libc::EINVAL))?;
            match handle {
                Some(handle) => ftruncate(&self.handle(handle)?.file, size)?,
                None => ftruncate(self.open_node(id, OFlags::WRONLY)?, size)?,
            }
        }
        if valid.contains(SetattrValid::MODE) {
            self.change_mode(id, wanted.st_mode)?;
        }
        // Owners cannot be changed without privileges: the guest believes that they were, as on file systems without any.
        let times = SetattrValid::ATIME | SetattrValid::MTIME;
        if valid.intersects(times) {
            let time = |set, now, seconds, nanoseconds| match (valid.contains(set), valid.contains(now)) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
                (true, true) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
                (true, false) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
            };
            let (set, now) = (SetattrValid::ATIME, SetattrValid::ATIME_NOW);
            let last_access = time(set, now, wanted.st_atime, wanted.st_atime_nsec);
            let (set, now) = (SetattrValid::MTIME, SetattrValid::MTIME_NOW);
            let last_modification = time(set, now, wanted.st_mtime, wanted.st_mtime_nsec);
            self.change_times(id, &Timestamps { last_access, last_modification })?;
        }
        let found = self.stat(id)?;
        self.own(id, &found);
        drop(busy);
        Ok((self.attributes(&found), self.validity(id)))
    }

    fn change_mode(&self, id: NodeId, mode: u32) -> io::Result<()> {
        let found = self.stat(id)?;
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        if kind.is_symlink() {
            return Err(error(libc::EOPNOTSUPP));
        }
        // What the host has set on a directory for its own groups is kept; the guest does not see it.
        let inherited = if kind.is_dir() { u32::from(found.stx_mode) & S_ISGID } else { 0 };
        let mode = Mode::from_raw_mode((mode & PERMISSIONS) | inherited);
        self.with_path(id, |path| Ok(chmodat(CWD, path, mode, AtFlags::empty())?))
    }

    fn change_times(&self, id: NodeId, times: &Timestamps) -> io::Result<()> {
        let (directory, open) = {
            let table = self.table();
            (table.node(id)?.directory, table.open_file(id))
        };
        match open {
            Some(handle) => rustix::fs::futimens(&handle.file, times)?,
            None if directory => {
                utimensat(CWD, path_of(&self.directory(id)?).as_c_str(), times, AtFlags::empty())?;
            }
            None => {
                let (place, _) = self.place(id)?;
                utimensat(&place.parent, &*place.name, times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    /// A file system with room for what the host has.
    pub(crate) fn statistics(&self) -> io::Result<libc::statvfs64> {
        let host = fstatvfs(self.directory(ROOT)?)?;
        let mut statistics = zeroed_statistics()?;
        statistics.f_bsize = host.f_bsize;
        statistics.f_frsize = host.f_frsize;
        statistics.f_blocks = host.f_blocks;
        statistics.f_bfree = host.f_bfree;
        statistics.f_bavail = host.f_bavail;
        statistics.f_files = host.f_files;
        statistics.f_ffree = host.f_ffree;
        statistics.f_favail = host.f_favail;
        statistics.f_namemax = host.f_namemax;
        Ok(statistics)
    }

    /// Calls with a path that leads to the node and nowhere else. Only regular files and directories have attributes of
    /// users: xattr(7).
    fn on_xattrs<T>(&self, id: NodeId, call: impl FnOnce(&CStr) -> rustix::io::Result<T>) -> io::Result<T> {
        let kind = FileType::from_raw_mode(self.stat(id)?.stx_mode.into());
        if !kind.is_file() && !kind.is_dir() {
            return Err(error(libc::EOPNOTSUPP));
        }
        self.with_path(id, |path| Ok(call(path)?))
    }

    pub(crate) fn get_xattr(&self, id: NodeId, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        if !name.to_bytes().starts_with(XATTR_PREFIX) {
            // The kernel asks for those of its own with every program that it starts.
            return Err(error(libc::ENODATA));
        }
        let mut value = vec![0; XATTR_MAX];
        let length = self.on_xattrs(id, |path| rustix::fs::getxattr(path, name, &mut value[..]))?;
        value.truncate(length);
        match fits(length, size)? {
            true => Ok(GetxattrReply::Value(value)),
            false => Ok(GetxattrReply::Count(u32::try_from(length).unwrap_or(u32::MAX))),
        }
    }

    pub(crate) fn list_xattrs(&self, id: NodeId, size: u32) -> io::Result<ListxattrReply> {
        let mut list = vec![0; XATTR_MAX];
        let length = self.on_xattrs(id, |path| rustix::fs::listxattr(path, &mut list[..]))?;
        list.truncate(length);
        let ours = list.split_inclusive(|&byte| byte == 0).filter(|name| name.starts_with(XATTR_PREFIX));
        let names = ours.flatten().copied().collect::<Vec<_>>();
        match fits(names.len(), size)? {
            true => Ok(ListxattrReply::Names(names)),
            false => Ok(ListxattrReply::Count(u32::try_from(names.len()).unwrap_or(u32::MAX))),
        }
    }

    pub(crate) fn set_xattr(&self, id: NodeId, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        self.writable()?;
        users(name)?;
        let flags = XattrFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        let busy = self.begin(id)?;
        self.on_xattrs(id, |path| rustix::fs::setxattr(path, name, value, flags))?;
        self.own(id, &self.stat(id)?);
        drop(busy);
        Ok(())
    }

    pub(crate) fn remove_xattr(&self, id: NodeId, name: &CStr) -> io::Result<()> {
        self.writable()?;
        users(name)?;
        let busy = self.begin(id)?;
        self.on_xattrs(id, |path| rustix::fs::removexattr(path, name))?;
        self.own(id, &self.stat(id)?);
        drop(busy);
        Ok(())
    }
}

fn users(name: &CStr) -> io::Result<()> {
    if name.to_bytes().starts_with(XATTR_PREFIX) { Ok(()) } else { Err(error(libc::EOPNOTSUPP)) }
}

/// Whether a value is wanted; otherwise only its length is.
fn fits(length: usize, size: u32) -> io::Result<bool> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(false),
        size if size < length => Err(error(libc::ERANGE)),
        _ => Ok(true),
    }
}

/// The library's own default is the only safe way to one with all its padding.
fn zeroed_statistics() -> io::Result<libc::statvfs64> {
    struct Nothing;
    impl FileSystem for Nothing {
        type Inode = u64;
        type Handle = u64;
    }
    Nothing.statfs(&Context::default(), ROOT)
}
