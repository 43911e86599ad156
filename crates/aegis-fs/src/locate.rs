//! From the number of a node to something that system calls take, and what statx(2) says of it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use aegis_proto::fuse::TOLD_SECONDS;
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, openat, statx};

use crate::beneath::{is_component, stale};
use crate::table::{Handle, Key, Name, NodeId, Slot, Stamp};
use crate::watch::Notice;
use crate::{Directory, error};

/// How long the guest may believe what it was told when changes by others are reported to it.
const LONG: Duration = Duration::from_secs(TOLD_SECONDS);
/// The same when they are not.
pub(crate) const SHORT: Duration = Duration::from_secs(1);
/// Directories below each other; the kernel's own limit on paths is 4096 bytes.
const DEPTH_MAX: usize = 2048;
/// Permissions without the bits that give a program somebody else's rights.
pub(crate) const PERMISSIONS: u32 = 0o1777;
/// Whoever is neither the user nor root.
const NOBODY: u32 = 65_534;

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// A checked name in a directory that is open.
pub(crate) struct Place {
    pub(crate) parent: Arc<OwnedFd>,
    pub(crate) name: Box<CStr>,
}

pub(crate) fn stat_fd(fd: impl AsFd) -> io::Result<Statx> {
    Ok(statx(fd, c"", AtFlags::EMPTY_PATH, MASK)?)
}

pub(crate) fn stat_at(directory: impl AsFd, name: &CStr) -> rustix::io::Result<Statx> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, MASK)
}

pub(crate) fn key(found: &Statx) -> Key {
    let dev = (u64::from(found.stx_dev_major) << 32) | u64::from(found.stx_dev_minor);
    Key { dev, ino: found.stx_ino, born: nanoseconds(found.stx_btime) }
}

pub(crate) fn stamp(found: &Statx) -> Stamp {
    Stamp {
        size: found.stx_size,
        modified: nanoseconds(found.stx_mtime),
        changed: nanoseconds(found.stx_ctime),
    }
}

fn nanoseconds(time: StatxTimestamp) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// The path by which the kernel finds what a descriptor is for, whatever its name is now.
pub(crate) fn path_of(fd: &impl AsFd) -> CString {
    let number = fd.as_fd().as_raw_fd();
    CString::new(format!("/proc/self/fd/{number}")).expect("no NUL in digits")
}

/// A name as the guest may give it.
pub(crate) fn checked(name: &CStr) -> io::Result<()> {
    if is_component(name.to_bytes()) { Ok(()) } else { Err(error(libc::EINVAL)) }
}

impl Directory {
    /// An open descriptor of a directory; opened by its names if there is none.
    pub(crate) fn directory(&self, id: NodeId) -> io::Result<Arc<OwnedFd>> {
        self.even_if_moved(id, || self.known_directory(id))
    }

    /// The same by the names that are known.
    pub(crate) fn known_directory(&self, id: NodeId) -> io::Result<Arc<OwnedFd>> {
        let (mut fd, missing) = self.way_to(id)?;
        for (id, name, expected) in missing.into_iter().rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&fd, &*name, flags, Mode::empty()).map_err(stale)?;
            if key(&stat_fd(&opened)?) != expected {
                return Err(error(libc::ESTALE));
            }
            fd = Arc::new(opened);
            self.table().keep(id, &fd);
        }
        Ok(fd)
    }

    /// The next directory above that is open, itself included, and what has to be opened from there, the last one first.
    #[expect(clippy::type_complexity, reason = "a list that one caller walks")]
    fn way_to(&self, id: NodeId) -> io::Result<(Arc<OwnedFd>, Vec<(NodeId, Box<CStr>, Key)>)> {
        let table = self.table();
        let (mut id, mut missing) = (id, Vec::new());
        loop {
            let node = table.node(id)?;
            if !node.directory {
                return Err(error(libc::ENOTDIR));
            }
            if let Some(fd) = &node.fd {
                return Ok((Arc::clone(fd), missing));
            }
            let Name { parent, name } = node.names.last().ok_or_else(|| error(libc::ESTALE))?;
            missing.push((id, name.clone(), node.key));
            if missing.len() > DEPTH_MAX {
                return Err(error(libc::ESTALE));
            }
            id = *parent;
        }
    }

    /// Where a node is now, checked, and what is there.
    pub(crate) fn place(&self, id: NodeId) -> io::Result<(Place, Statx)> {
        self.even_if_moved(id, || self.known_place(id))
    }

    /// The same by the names that are known.
    pub(crate) fn known_place(&self, id: NodeId) -> io::Result<(Place, Statx)> {
        let (expected, names) = {
            let table = self.table();
            let node = table.node(id)?;
            (node.key, node.names.clone())
        };
        for Name { parent, name } in names.into_iter().rev() {
            let Ok(parent) = self.known_directory(parent) else { continue };
            if let Ok(found) = stat_at(&parent, &name)
                && key(&found) == expected
            {
                return Ok((Place { parent, name }, found));
            }
        }
        Err(error(libc::ESTALE))
    }

    /// What a node looks like now.
    pub(crate) fn stat(&self, id: NodeId) -> io::Result<Statx> {
        let (directory, open) = {
            let table = self.table();
            (table.node(id)?.directory, table.open_file(id))
        };
        if directory {
            return stat_fd(&*self.directory(id)?);
        }
        match open {
            Some(handle) => stat_fd(&handle.file),
            None => Ok(self.place(id)?.1),
        }
    }

    /// A descriptor of a node that only names it, for calls that take a path: see [`path_of`].
    pub(crate) fn reference(&self, id: NodeId) -> io::Result<Arc<OwnedFd>> {
        if self.table().node(id)?.directory {
            return self.directory(id);
        }
        let (place, found) = self.place(id)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&place.parent, &*place.name, flags, Mode::empty()).map_err(stale)?;
        if key(&stat_fd(&fd)?) != key(&found) {
            return Err(error(libc::ESTALE));
        }
        Ok(Arc::new(fd))
    }

    /// Calls with a path that leads to the node and nowhere else, whatever its names are.
    pub(crate) fn with_path<T>(
        &self,
        id: NodeId,
        call: impl FnOnce(&CStr) -> io::Result<T>,
    ) -> io::Result<T> {
        let open = self.table().open_file(id);
        match open {
            Some(handle) => call(&path_of(&handle.file)),
            None => call(&path_of(&self.reference(id)?)),
        }
    }

    /// An open file of the guest, opened again if it was saved.
    pub(crate) fn handle(&self, number: u64) -> io::Result<Arc<Handle>> {
        let (node, flags) = match self.table().handles.get(&number) {
            Some(Slot::Open(handle)) => return Ok(Arc::clone(handle)),
            Some(Slot::Saved { node, flags }) => (*node, *flags),
            None => return Err(error(libc::EBADF)),
        };
        let handle = Arc::new(Handle { node, file: self.open_node(node, flags)?, flags });
        self.table().handles.insert(number, Slot::Open(Arc::clone(&handle)));
        Ok(handle)
    }

    /// Notes what the guest is being told of a node that others may have changed. What it has cached of the content is
    /// taken from it if so.
    pub(crate) fn observe(&self, id: NodeId, found: &Statx) {
        let now = stamp(found);
        let mut table = self.table();
        let Ok(node) = table.node_mut(id) else { return };
        // A write of the guest is going on: whoever does it notes the outcome.
        let changed = node.busy == 0 && node.seen != now;
        if changed && (!node.regular || self.notify(Notice::Node(id))) {
            node.seen = now;
        }
    }

    /// Notes the outcome of something that the guest did to a node.
    pub(crate) fn own(&self, id: NodeId, found: &Statx) {
        if let Ok(node) = self.table().node_mut(id) {
            node.seen = stamp(found);
        }
    }

    /// The same for a directory in which the guest has changed a name.
    pub(crate) fn own_directory(&self, id: NodeId, fd: &OwnedFd) {
        if let Ok(found) = stat_fd(fd) {
            self.own(id, &found);
        }
    }

    /// The answer about a node, with one more reference of the kernel's to it.
    pub(crate) fn enter(&self, parent: NodeId, name: &CStr, found: &Statx) -> io::Result<Entry> {
        let id = self.table().refer(parent, name, found)?;
        self.observe(id, found);
        Ok(self.entry(id, parent, found))
    }

    /// The answer about a node in this directory.
    pub(crate) fn entry(&self, id: NodeId, parent: NodeId, found: &Statx) -> Entry {
        Entry {
            inode: id,
            generation: 0,
            attr: self.attributes(found),
            attr_flags: 0,
            attr_timeout: self.validity(id),
            entry_timeout: self.validity(parent),
        }
    }

    /// How long attributes of a node are valid, and names in it if it is a directory.
    pub(crate) fn validity(&self, id: NodeId) -> Duration {
        if self.table().is_watched(id) { LONG } else { SHORT }
    }

    /// As the guest sees it: what belongs to our user is root's, everything else nobody's.
    pub(crate) fn attributes(&self, found: &Statx) -> libc::stat64 {
        // The only safe way to one with all its padding.
        let mut attributes = Entry::default().attr;
        let owner = |id, ours| if id == ours { 0 } else { NOBODY };
        let kind = FileType::from_raw_mode(found.stx_mode.into()).as_raw_mode();
        let dev = key(found).dev;
        // Numbers of another file system that is mounted below must not look like ours.
        let other = if dev == self.root_dev { 0 } else { dev.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 << 63 };
        attributes.st_ino = found.stx_ino ^ other;
        attributes.st_mode = kind | (u32::from(found.stx_mode) & PERMISSIONS);
        attributes.st_nlink = found.stx_nlink.into();
        attributes.st_uid = owner(found.stx_uid, self.owner.0);
        attributes.st_gid = owner(found.stx_gid, self.owner.1);
        attributes.st_size = signed(found.stx_size);
        attributes.st_blksize = i64::from(found.stx_blksize);
        attributes.st_blocks = signed(found.stx_blocks);
        (attributes.st_atime, attributes.st_atime_nsec) = time(found.stx_atime);
        (attributes.st_mtime, attributes.st_mtime_nsec) = time(found.stx_mtime);
        (attributes.st_ctime, attributes.st_ctime_nsec) = time(found.stx_ctime);
        attributes
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn time(time: StatxTimestamp) -> (i64, i64) {
    (time.tv_sec, i64::from(time.tv_nsec))
}
