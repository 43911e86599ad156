//! Host-side readers of a directory that a guest writes to: nothing of it is followed or believed.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, chmodat, openat, openat2, renameat,
    unlinkat,
};
use rustix::io::Errno;

use crate::locate::{path_of, stat_at, stat_fd};

/// Directories below each other that are visited; a guest can make more than anybody can open.
const DEPTH_MAX: usize = 512;
/// The same for removing them, which is done in several rounds.
const REMOVAL_DEPTH: usize = 128;

/// Opens a directory with no symbolic link on the way to it: whoever could put one there would choose what is opened.
///
/// # Errors
/// As for openat2(2); `ELOOP` for a symbolic link.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS)?)
}

/// What a directory takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blocks on the disk, in bytes. Files with several names count once.
    pub bytes: u64,
    /// Entries at any depth.
    pub entries: u64,
}

/// Counts what a directory takes up. Symbolic links are counted, never followed; what cannot be read is left out.
///
/// # Errors
/// The directory itself cannot be opened.
pub fn usage(path: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    walk(&open_root(path)?, |_, _, found| {
        usage.entries += 1;
        let inode = (found.stx_dev_major, found.stx_dev_minor, found.stx_ino);
        if is_directory(found) || found.stx_nlink < 2 || seen.insert(inode) {
            usage.bytes += found.stx_blocks * 512;
        }
        ControlFlow::Continue(())
    })?;
    Ok(usage)
}

/// A directory on the way from the root of a walk to what is visited, both included.
pub(crate) struct Step {
    /// In the directory before.
    pub(crate) name: Box<CStr>,
    pub(crate) found: Statx,
    /// Those that are left.
    entries: Dir,
}

impl Step {
    fn open(parent: impl AsFd, name: &CStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())?;
        Ok(Self { name: name.into(), found: stat_fd(&fd)?, entries: Dir::new(fd)? })
    }
}

/// Visits everything below a directory, with the way to the directory that it is in, until the visitor has enough. Symbolic
/// links are visited, never followed; what cannot be read is left out.
pub(crate) fn walk(
    root: &OwnedFd,
    mut visit: impl FnMut(&[Step], &CStr, &Statx) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut way = vec![Step::open(root, c".")?];
    while let Some(Step { entries, .. }) = way.last_mut() {
        let Some(entry) = entries.read() else {
            way.pop();
            continue;
        };
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(fd) = entries.fd() else { continue };
        let Ok(found) = stat_at(fd, name) else { continue };
        let below = if is_directory(&found) { Step::open(fd, name).ok() } else { None };
        if visit(&way, name, &found).is_break() {
            break;
        }
        way.extend(below.filter(|_| way.len() < DEPTH_MAX));
    }
    Ok(())
}

fn is_directory(found: &Statx) -> bool {
    FileType::from_raw_mode(found.stx_mode.into()).is_dir()
}

/// Bytes for entries that are read at once.
pub(crate) const ENTRIES_BYTES: usize = 32 * 1024;

/// A buffer for [`rustix::fs::RawDir`].
pub(crate) fn entries_buffer() -> Vec<MaybeUninit<u8>> {
    vec![MaybeUninit::uninit(); ENTRIES_BYTES]
}

/// Whether a name is one component that is neither the directory itself nor the one above.
pub(crate) fn is_component(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b".."
}

/// The error of a file that is not what was asked for: a link where none was expected counts as gone.
pub(crate) fn stale(errno: Errno) -> io::Error {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE.into(),
        other => other.into(),
    }
}

/// Removes a directory with everything in it, also what its own permissions protect. Symbolic links are removed, never
/// followed. It is fine if there is none.
///
/// # Errors
/// Something cannot be removed, or is no directory.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    let parent = open_root(parent)?;
    let root = match open_to_empty(&parent, &CString::new(name.as_encoded_bytes())?) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    // Whatever is nested too deeply is moved up here, where it is found again.
    let mut moved = 0_u64;
    while empty(&root, &root, 0, &mut moved)? {}
    drop(root);
    Ok(unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

/// Opens a directory so that everything in it can be removed.
fn open_to_empty(parent: &OwnedFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(
        parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        chmodat(CWD, path_of(&found).as_c_str(), Mode::RWXU, AtFlags::empty())?;
    }
    openat(&found, c".", flags, Mode::empty())
}

/// Removes what is in a directory. True if something was moved to the root, which is to be emptied again.
fn empty(root: &OwnedFd, directory: &OwnedFd, depth: usize, moved: &mut u64) -> io::Result<bool> {
    let mut again = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        // First, because moving it needs its permissions as well.
        let below = open_to_empty(directory, name)?;
        if depth == REMOVAL_DEPTH {
            *moved += 1;
            renameat(directory, name, root, format!(".removed-{}-{moved}", std::process::id()))?;
            again = true;
            continue;
        }
        again |= empty(root, &below, depth + 1, moved)?;
        drop(below);
        unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    }
    Ok(again)
}
