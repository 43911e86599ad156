//! Names: finding them, making them, changing them.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{Entry, OpenOptions};
use rustix::fs::{
    AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, RenameFlags, Statx, chmodat, linkat, mkdirat,
    mknodat, openat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::beneath::is_component;
use crate::content::host_flags;
use crate::locate::{PERMISSIONS, checked, key, path_of, stat_at, stat_fd};
use crate::table::{Handle, NodeId};
use crate::watch::Notice;
use crate::{Directory, error};

/// Stands for a file without a name in a request to create one.
pub(crate) const UNNAMED: &CStr = c"/";

impl Directory {
    pub(crate) fn look_up(&self, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        checked(name)?;
        // Before looking: what changes afterwards is reported.
        self.watch(parent);
        let directory = self.directory(parent)?;
        match stat_at(&directory, name) {
            Ok(found) => self.enter(parent, name, &found),
            Err(Errno::NOENT) => {
                // The kernel remembers that there is none.
                let forgotten = {
                    let mut table = self.table();
                    table.unname(parent, name);
                    table.absent.add(parent, name)
                };
                if let Some((parent, name)) = forgotten {
                    self.notify(Notice::Name(parent, name));
                }
                Ok(Entry { entry_timeout: self.validity(parent), ..Entry::default() })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Makes a name by `make`, which leaves something that only we can use, and answers for what is there then.
    fn make(
        &self,
        parent: NodeId,
        name: &CStr,
        mode: Option<u32>,
        make: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> io::Result<Entry> {
        self.writable()?;
        checked(name)?;
        self.watch(parent);
        let directory = self.directory(parent)?;
        let _busy = self.begin(parent)?;
        make(&directory)?;
        if let Some(mode) = mode {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(&directory, name, flags, Mode::empty())?;
            set_mode(&made, mode)?;
        }
        let found = stat_at(&directory, name)?;
        let entry = self.enter(parent, name, &found)?;
        self.own(entry.inode, &found);
        self.own_directory(parent, &directory);
        Ok(entry)
    }

    pub(crate) fn make_directory(&self, parent: NodeId, name: &CStr, mode: u32) -> io::Result<Entry> {
        let mut entry =
            self.make(parent, name, Some(mode), |directory| mkdirat(directory, name, Mode::RWXU))?;
        // So that the guest may know that it is empty: what others put there from now on is told.
        self.watch(entry.inode);
        if self.is_empty(entry.inode) {
            entry.attr_timeout = self.validity(entry.inode);
        }
        Ok(entry)
    }

    fn is_empty(&self, id: NodeId) -> bool {
        let listed = self.directory(id).and_then(|directory| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(Dir::new(openat(&directory, c".", flags, Mode::empty())?)?)
        });
        let is_name = |entry: DirEntry| is_component(entry.file_name().to_bytes());
        listed.is_ok_and(|mut entries| !entries.any(|entry| entry.map_or(true, is_name)))
    }

    /// A file, a pipe or a socket, which are the guest's own affair; never a device.
    pub(crate) fn make_node(&self, parent: NodeId, name: &CStr, mode: u32) -> io::Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(error(libc::EPERM));
        }
        let private = Mode::RUSR | Mode::WUSR;
        self.make(parent, name, Some(mode), |directory| mknodat(directory, name, kind, private, 0))
    }

    pub(crate) fn make_symlink(&self, target: &CStr, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        self.make(parent, name, None, |directory| symlinkat(target, directory, name))
    }

    pub(crate) fn make_link(&self, id: NodeId, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        self.writable()?;
        checked(name)?;
        // Not by a name of it, which may lead to something else by then; and it may have none yet.
        self.with_path(id, |path| {
            self.make(parent, name, None, |directory| {
                linkat(CWD, path, directory, name, AtFlags::SYMLINK_FOLLOW)
            })
        })
    }

    pub(crate) fn create_file(
        &self,
        parent: NodeId,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, u64, OpenOptions)> {
        self.writable()?;
        if name == UNNAMED {
            return self.create_unnamed(parent, args);
        }
        checked(name)?;
        self.watch(parent);
        let directory = self.directory(parent)?;
        let _busy = self.begin(parent)?;
        let (flags, wanted) = (host_flags(args.flags), args.flags.cast_signed());
        let private = Mode::RUSR | Mode::WUSR;
        let fresh = flags.difference(OFlags::TRUNC) | OFlags::CREATE | OFlags::EXCL;
        let file = match openat(&directory, name, fresh, private) {
            Ok(file) => {
                set_mode(&file, args.mode)?;
                file
            }
            // Somebody on the host was faster, or the guest does not mind.
            Err(Errno::EXIST) if wanted & libc::O_EXCL == 0 => {
                openat(&directory, name, flags, Mode::empty()).map_err(crate::beneath::stale)?
            }
            Err(e) => return Err(e.into()),
        };
        let found = stat_fd(&file)?;
        if !FileType::from_raw_mode(found.stx_mode.into()).is_file() {
            return Err(error(libc::EINVAL));
        }
        let entry = self.enter(parent, name, &found)?;
        self.own(entry.inode, &found);
        self.own_directory(parent, &directory);
        let handle = Handle { node: entry.inode, file: file.into(), flags: flags.difference(OFlags::TRUNC) };
        let added = self.table().add_handle(handle);
        match added {
            Ok(number) => Ok((entry, number, self.open_options(entry.inode))),
            Err(e) => {
                self.forget_node(entry.inode, 1);
                Err(e)
            }
        }
    }

    /// A file that may get a name later, by a link.
    fn create_unnamed(&self, parent: NodeId, args: CreateIn) -> io::Result<(Entry, u64, OpenOptions)> {
        let directory = self.directory(parent)?;
        let flags = host_flags(args.flags).difference(OFlags::TRUNC | OFlags::NOFOLLOW);
        let file = openat(&directory, c".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR)?;
        set_mode(&file, args.mode)?;
        let found = stat_fd(&file)?;
        let node = self.table().refer_unnamed(&found)?;
        let entry = self.entry(node, parent, &found);
        let handle = Handle { node, file: file.into(), flags };
        let added = self.table().add_handle(handle);
        match added {
            Ok(number) => Ok((entry, number, self.open_options(node))),
            Err(e) => {
                self.forget_node(node, 1);
                Err(e)
            }
        }
    }

    pub(crate) fn remove(&self, parent: NodeId, name: &CStr, flags: AtFlags) -> io::Result<()> {
        self.writable()?;
        checked(name)?;
        let directory = self.directory(parent)?;
        // A directory in which somebody still is stays known by its descriptor.
        let child = self.table().child(parent, name);
        if let Some(child) = child.filter(|_| flags.contains(AtFlags::REMOVEDIR)) {
            let _ = self.directory(child);
        }
        let _busy = self.begin(parent)?;
        unlinkat(&directory, name, flags)?;
        let gone = self.table().unname(parent, name);
        if let Some(id) = gone
            && let Ok(found) = self.stat(id)
        {
            // The number of its names has changed, which the guest knows.
            self.own(id, &found);
        }
        self.own_directory(parent, &directory);
        Ok(())
    }

    pub(crate) fn rename_entry(
        &self,
        from: (NodeId, &CStr),
        to: (NodeId, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        checked(from.1)?;
        checked(to.1)?;
        let flags = RenameFlags::from_bits(flags).ok_or_else(|| error(libc::EINVAL))?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(error(libc::EINVAL));
        }
        self.watch(to.0);
        let (old, new) = (self.directory(from.0)?, self.directory(to.0)?);
        let _busy = (self.begin(from.0)?, self.begin(to.0)?);
        renameat_with(&old, from.1, &new, to.1, flags)?;
        {
            let mut table = self.table();
            let moved = table.unname(from.0, from.1);
            let replaced = table.unname(to.0, to.1);
            if let Some(id) = moved {
                table.name(id, to.0, to.1);
            }
            if let Some(id) = replaced
                && flags.contains(RenameFlags::EXCHANGE)
            {
                table.name(id, from.0, from.1);
            }
        }
        // The time of the change of what was moved is another one now.
        for (directory, name) in [(&new, to), (&old, from)] {
            let child = self.table().child(name.0, name.1);
            if let (Some(id), Ok(found)) = (child, stat_at(directory, name.1)) {
                self.own(id, &found);
            }
        }
        self.own_directory(from.0, &old);
        self.own_directory(to.0, &new);
        Ok(())
    }

    pub(crate) fn read_symlink(&self, id: NodeId) -> io::Result<Vec<u8>> {
        let (place, found) = self.place(id)?;
        let target = rustix::fs::readlinkat(&place.parent, &*place.name, Vec::new())?;
        same(&stat_at(&place.parent, &place.name)?, &found)?;
        Ok(target.into_bytes())
    }

    /// Takes references of the guest's kernel back.
    pub(crate) fn forget_node(&self, id: NodeId, count: u64) {
        let unused = self.table().forget(id, count);
        if let Some(watch) = unused {
            self.watcher.remove(watch);
        }
    }
}

fn same(now: &Statx, then: &Statx) -> io::Result<()> {
    if key(now) == key(then) { Ok(()) } else { Err(error(libc::ESTALE)) }
}

/// Sets permissions of what is open here, which the mask of this process had narrowed.
pub(crate) fn set_mode(fd: &OwnedFd, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & PERMISSIONS);
    Ok(chmodat(CWD, path_of(fd).as_c_str(), mode, AtFlags::empty())?)
}
