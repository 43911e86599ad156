//! A stream into a directory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_types::CopyReport;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown, fstat,
    futimens, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::sparse::Segment;
use crate::stream::{Entries, Entry, Kind, StreamError};
use crate::{CHUNK, DEPTH_MAX, shown};

/// Files of a stream that later hard links may lead to.
const LINKABLE_MAX: usize = 1 << 20;
/// Zeros of this length and alignment become holes.
const HOLE: usize = 4096;

/// Whose the files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Who the stream says; only root can do that.
    Keep,
    /// Whoever unpacks.
    Caller,
}

/// How a stream is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Unpacking<'a> {
    /// Whose the files become.
    pub owners: Owners,
    /// Set-id and sticky bits are kept.
    pub special_bits: bool,
    /// Symbolic links to directories that are on the way are followed: whoever made them is trusted.
    pub through_links: bool,
    /// A name in place of the first component of every path; with an empty one it is left out.
    pub root: Option<&'a [u8]>,
}

/// A stream could not be unpacked to its end. What came before stays.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The directory cannot be opened.
    #[error("the directory cannot be opened")]
    Directory(#[source] io::Error),
    /// The stream is at fault.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// There is no use in going on: the disk is full or cannot be written.
    #[error("`{path}` cannot be written")]
    Disk {
        /// What was written.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Unpacks a stream into an existing directory, which may be reached through links. Files replace what has their name;
/// directories are merged.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack(directory: &Path, input: impl Read, how: &Unpacking<'_>) -> Result<CopyReport, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(directory, flags, Mode::empty());
    let root = root.map_err(|e| UnpackError::Directory(e.into()))?;
    let mut unpacker = Unpacker {
        how,
        root,
        levels: Vec::new(),
        made: HashSet::new(),
        report: CopyReport::default(),
        buffer: vec![0; CHUNK],
    };
    let mut entries = Entries::new(input);
    while let Some(entry) = entries.next()? {
        match unpacker.entry(&mut entries, &entry) {
            Ok(()) => {}
            Err(Fault::Stream(error)) => return Err(error.into()),
            Err(Fault::Entry(source)) if is_hopeless(&source) => {
                return Err(UnpackError::Disk { path: shown(&entry.path), source });
            }
            Err(Fault::Entry(error)) => unpacker.report.problem(shown(&entry.path), plain(&error)),
        }
    }
    unpacker.leave(0);
    entries.drain()?;
    Ok(unpacker.report)
}

fn is_hopeless(error: &io::Error) -> bool {
    let hopeless = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS];
    error.raw_os_error().is_some_and(|number| hopeless.iter().any(|e| e.raw_os_error() == number))
}

/// What an error means here.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOTDIR | Errno::LOOP) => "a file or a symbolic link is in the way".to_owned(),
        Some(Errno::ISDIR) => "a directory is in the way".to_owned(),
        _ => error.to_string(),
    }
}

/// What tells a file from all others.
#[allow(clippy::unnecessary_cast, reason = "the types differ between platforms")]
pub(crate) fn identity(found: &Stat) -> (u64, u64) {
    (found.st_dev as u64, found.st_ino as u64)
}

/// A directory that is being filled.
struct Level {
    name: Vec<u8>,
    fd: OwnedFd,
    /// What it gets when everything is in it: its own permissions may forbid that.
    finish: Option<Meta>,
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

impl Meta {
    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.0, tv_nsec: self.mtime.1.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

enum Fault {
    /// This entry cannot be made; the others can.
    Entry(io::Error),
    /// The stream is at fault.
    Stream(StreamError),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Entry(errno.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Entry(error)
    }
}

fn refuse(why: impl Into<String>) -> Fault {
    Fault::Entry(io::Error::other(why.into()))
}

struct Unpacker<'a> {
    how: &'a Unpacking<'a>,
    root: OwnedFd,
    /// From below the root to the directory of the last entry.
    levels: Vec<Level>,
    /// Files that this stream made.
    made: HashSet<(u64, u64)>,
    report: CopyReport,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entries: &mut Entries<R>, entry: &Entry) -> Result<(), Fault> {
        let components = self.components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else {
            // The directory itself, which is not the stream's.
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(refuse("it has no name")),
            };
        };
        let mode = entry.mode & if self.how.special_bits { 0o7777 } else { 0o777 };
        let meta = Meta { mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        match &entry.kind {
            Kind::Directory => {
                self.enter(&components)?;
                if let Some(level) = self.levels.last_mut() {
                    level.finish = Some(meta);
                }
            }
            Kind::File(size, segments) => {
                self.enter(parents)?;
                self.file(entries, name, *size, segments, &meta)?;
                self.report.bytes += size;
            }
            Kind::Symlink(target) => {
                self.enter(parents)?;
                self.symlink(name, target, &meta)?;
            }
            Kind::HardLink(target) => {
                let target = self.components(target)?;
                self.hard_link(&target, parents, name)?;
            }
            Kind::Other => {
                return Err(refuse("it is a device, a pipe or something unknown, which are not copied"));
            }
        }
        self.report.entries += 1;
        Ok(())
    }

    /// The components of a path below the directory; none for the directory itself.
    fn components<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, Fault>
    where
        Self: 'p,
    {
        if path.starts_with(b"/") {
            return Err(refuse("its path is absolute"));
        }
        if path.contains(&0) {
            return Err(refuse("its path has a NUL byte"));
        }
        let parts = path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let mut components: Vec<&[u8]> = parts.collect();
        if components.contains(&&b".."[..]) {
            return Err(refuse("its path has `..` in it"));
        }
        if let Some(name) = self.how.root
            && !components.is_empty()
        {
            components.remove(0);
            if !name.is_empty() {
                components.insert(0, name);
            }
        }
        if components.len() > DEPTH_MAX {
            return Err(refuse(format!("it is nested more than {DEPTH_MAX} deep")));
        }
        Ok(components)
    }

    fn directory(&self) -> &OwnedFd {
        self.levels.last().map_or(&self.root, |level| &level.fd)
    }

    /// Makes this the directory of the moment, and the directories on the way where there are none.
    fn enter(&mut self, path: &[&[u8]]) -> Result<(), Fault> {
        let same = self.levels.iter().zip(path).take_while(|(level, name)| level.name == **name).count();
        self.leave(same);
        for name in &path[same..] {
            let fd = self.open_directory(name)?;
            self.levels.push(Level { name: name.to_vec(), fd, finish: None });
        }
        Ok(())
    }

    fn open_directory(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if self.how.through_links { flags } else { flags | OFlags::NOFOLLOW };
        match openat(self.directory(), name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                // Whoever makes the same one at the same time is as good.
                match mkdirat(self.directory(), name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
                openat(self.directory(), name, flags | OFlags::NOFOLLOW, Mode::empty())
            }
            opened => opened,
        }
    }

    /// Completes the directories below the first so many levels.
    fn leave(&mut self, keep: usize) {
        while self.levels.len() > keep {
            let path = self.levels.iter().map(|level| &level.name[..]).collect::<Vec<_>>().join(&b'/');
            if let Some(level) = self.levels.pop()
                && let Some(meta) = level.finish
                && let Err(error) = self.dress(&level.fd, &meta)
            {
                self.report.problem(shown(&path), error);
            }
        }
    }

    /// Gives an open file its owner, permissions and time, in the order in which one does not undo the other.
    fn dress(&mut self, fd: &OwnedFd, meta: &Meta) -> io::Result<()> {
        if self.how.owners == Owners::Keep {
            let owned = fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
            self.owned(owned)?;
        }
        fchmod(fd, Mode::from_raw_mode(meta.mode as _))?;
        Ok(futimens(fd, &meta.times())?)
    }

    /// Not everybody may give files away, and not every file system knows owners.
    fn owned(&mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) => {
                self.report.owners_lost += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn file<R: Read>(
        &mut self,
        entries: &mut Entries<R>,
        name: &[u8],
        size: u64,
        segments: &[Segment],
        meta: &Meta,
    ) -> Result<(), Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = None;
        let fresh = fresh(|fresh| {
            fd = Some(openat(self.directory(), fresh, flags, Mode::RUSR | Mode::WUSR)?);
            Ok(())
        })?;
        let file = File::from(fd.expect("`fresh` has succeeded"));
        let written = self.fill(entries, &file, size, segments).and_then(|()| {
            let fd = OwnedFd::from(file);
            self.dress(&fd, meta)?;
            let found = fstat(&fd)?;
            self.place(&fresh, name)?;
            if self.made.len() < LINKABLE_MAX {
                self.made.insert(identity(&found));
            }
            Ok(())
        });
        self.or_remove(&fresh, written)
    }

    fn fill<R: Read>(
        &mut self,
        entries: &mut Entries<R>,
        file: &File,
        size: u64,
        segments: &[Segment],
    ) -> Result<(), Fault> {
        for segment in segments {
            let mut done = 0;
            while done < segment.length {
                let length = usize::try_from(segment.length - done).unwrap_or(usize::MAX).min(CHUNK);
                let chunk = &mut self.buffer[..length];
                entries.read_exact(chunk).map_err(Fault::Stream)?;
                write_sparsely(file, segment.offset + done, chunk)?;
                done += length as u64;
            }
        }
        // Zeros at the end are a hole as well.
        Ok(file.set_len(size)?)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], meta: &Meta) -> Result<(), Fault> {
        let fresh = fresh(|fresh| symlinkat(target, self.directory(), fresh))?;
        let made = (|| {
            if self.how.owners == Owners::Keep {
                let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
                let owned = chownat(self.directory(), &*fresh, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
                self.owned(owned)?;
            }
            // Not every file system keeps the times of links.
            let _ = utimensat(self.directory(), &*fresh, &meta.times(), AtFlags::SYMLINK_NOFOLLOW);
            self.place(&fresh, name)
        })();
        self.or_remove(&fresh, made)
    }

    fn hard_link(&mut self, target: &[&[u8]], parents: &[&[u8]], name: &[u8]) -> Result<(), Fault> {
        let elsewhere = || refuse("it is a hard link to something that is not in the stream");
        let Some((target, way)) = target.split_last() else { return Err(elsewhere()) };
        self.enter(way)?;
        let from = rustix::io::dup(self.directory())?;
        let found = statat(&from, *target, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| elsewhere())?;
        if !FileType::from_raw_mode(found.st_mode).is_file() || !self.made.contains(&identity(&found)) {
            return Err(elsewhere());
        }
        self.enter(parents)?;
        let fresh = fresh(|fresh| linkat(&from, *target, self.directory(), fresh, AtFlags::empty()))?;
        // Somebody may have put another file there in between.
        let linked = statat(self.directory(), &*fresh, AtFlags::SYMLINK_NOFOLLOW);
        let made = match linked {
            Ok(linked) if identity(&linked) == identity(&found) => self.place(&fresh, name),
            _ => Err(elsewhere()),
        };
        // Where the name leads to the same file already, nothing is renamed.
        let _ = unlinkat(self.directory(), &*fresh, AtFlags::empty());
        made
    }

    /// Gives a complete file its name; what had it is replaced, unless it is a directory.
    fn place(&self, fresh: &str, name: &[u8]) -> Result<(), Fault> {
        Ok(renameat(self.directory(), fresh, self.directory(), name)?)
    }

    fn or_remove(&self, fresh: &str, made: Result<(), Fault>) -> Result<(), Fault> {
        if made.is_err() {
            // What is left of it is nobody's.
            let _ = unlinkat(self.directory(), fresh, AtFlags::empty());
        }
        made
    }
}

/// Makes something under a name that nobody has.
fn fresh(mut make: impl FnMut(&str) -> Result<(), Errno>) -> Result<String, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!(".aegis-copy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match make(&name) {
            Err(Errno::EXIST) => {}
            made => return made.map(|()| name),
        }
    }
}

/// Writes what is not zero.
fn write_sparsely(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut begin = None;
    let mut at = 0;
    while at < bytes.len() {
        // Up to the next boundary of the file, not of the buffer.
        let to_boundary = HOLE - usize::try_from((offset + at as u64) % HOLE as u64).unwrap_or(0);
        let end = bytes.len().min(at + to_boundary);
        let is_hole = bytes[at..end].iter().all(|&b| b == 0);
        match (is_hole, begin) {
            (true, Some(start)) => {
                file.write_all_at(&bytes[start..at], offset + start as u64)?;
                begin = None;
            }
            (false, None) => begin = Some(at),
            _ => {}
        }
        at = end;
    }
    match begin {
        Some(start) => file.write_all_at(&bytes[start..], offset + start as u64),
        None => Ok(()),
    }
}
