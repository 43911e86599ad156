//! Files into a stream.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use aegis_types::{CopyReport, FileKind, FileStat};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::EntryType;

use crate::header::{Head, padding};
use crate::sparse::{self, Segment};
use crate::{BLOCK, CHUNK, DEPTH_MAX, shown};

/// Files with several names of which the first is remembered; the names of others become files of their own.
const LINKS_MAX: usize = 1 << 16;

/// What is at a path.
///
/// # Errors
/// As for stat(2).
pub fn stat(path: &Path, follow: bool) -> io::Result<FileStat> {
    let found = if follow { std::fs::metadata(path)? } else { std::fs::symlink_metadata(path)? };
    let kind = match found.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    Ok(FileStat {
        kind,
        size: found.len(),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mtime: found.mtime(),
    })
}

/// Writes what is at a path, with everything below it, under this name. Symbolic links stay links; `follow` is about the path
/// itself. What cannot be read is in the report.
///
/// # Errors
/// The stream cannot be written.
pub fn pack(path: &Path, name: &[u8], follow: bool, out: &mut dyn Write) -> io::Result<CopyReport> {
    let mut packer =
        Packer { out, report: CopyReport::default(), links: HashMap::new(), buffer: vec![0; CHUNK] };
    let root = rustix::path::Arg::into_c_str(path)?;
    packer.entry(None, &root, name, follow, 0)?;
    packer.out.write_all(&[0; 2 * BLOCK])?;
    packer.out.flush()?;
    Ok(packer.report)
}

struct Packer<'a> {
    out: &'a mut dyn Write,
    report: CopyReport,
    /// Names under which files with several are in the stream.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

/// Why an entry is not in the stream.
enum Fault {
    /// It cannot be read; the others can.
    Entry(io::Error),
    /// The stream cannot be written.
    Stream(io::Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Entry(errno.into())
    }
}

fn broken(error: io::Error) -> Fault {
    Fault::Stream(error)
}

impl Packer<'_> {
    /// Writes an entry and everything below it; only a stream that breaks is an error.
    fn entry(
        &mut self,
        parent: Option<&OwnedFd>,
        file: &CStr,
        path: &[u8],
        follow: bool,
        depth: usize,
    ) -> io::Result<()> {
        match self.try_entry(parent, file, path, follow, depth) {
            Ok(()) => Ok(()),
            Err(Fault::Entry(error)) => {
                self.report.problem(shown(path), error);
                Ok(())
            }
            Err(Fault::Stream(error)) => Err(error),
        }
    }

    fn try_entry(
        &mut self,
        parent: Option<&OwnedFd>,
        file: &CStr,
        path: &[u8],
        follow: bool,
        depth: usize,
    ) -> Result<(), Fault> {
        let at = AtFlags::SYMLINK_NOFOLLOW;
        let flags = if follow { AtFlags::empty() } else { at };
        let found = match parent {
            Some(parent) => statat(parent, file, flags)?,
            None => statat(CWD, file, flags)?,
        };
        let open = |extra: OFlags| {
            // A pipe that took the place of the file must not hold us up, nor a terminal become ours.
            let flags = extra | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
            let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
            match parent {
                Some(parent) => openat(parent, file, flags, Mode::empty()),
                None => openat(CWD, file, flags, Mode::empty()),
            }
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => self.directory(open(OFlags::DIRECTORY)?, &found, path, depth),
            FileType::RegularFile => {
                if let Some(first) = self.other_name(&found, path) {
                    let head = Head { link: &first, ..head(EntryType::Link, path, &found) };
                    return self.bare(&head);
                }
                self.file(File::from(open(OFlags::empty())?), path)
            }
            FileType::Symlink => {
                let target = match parent {
                    Some(parent) => readlinkat(parent, file, Vec::new())?,
                    None => readlinkat(CWD, file, Vec::new())?,
                };
                self.bare(&Head { link: target.as_bytes(), ..head(EntryType::Symlink, path, &found) })
            }
            _ => Err(Fault::Entry(io::Error::other(
                "it is a device, a pipe or a socket, which are not copied",
            ))),
        }
    }

    /// The name under which a file with several is in the stream already.
    fn other_name(&mut self, found: &Stat, path: &[u8]) -> Option<Vec<u8>> {
        if found.st_nlink < 2 {
            return None;
        }
        let key = crate::unpack::identity(found);
        let first = self.links.get(&key).cloned();
        if first.is_none() && self.links.len() < LINKS_MAX {
            self.links.insert(key, path.to_vec());
        }
        first
    }

    /// An entry without content.
    fn bare(&mut self, head: &Head<'_>) -> Result<(), Fault> {
        head.write(self.out).map_err(broken)?;
        self.report.entries += 1;
        Ok(())
    }

    fn directory(&mut self, fd: OwnedFd, found: &Stat, path: &[u8], depth: usize) -> Result<(), Fault> {
        if depth == DEPTH_MAX {
            return Err(Fault::Entry(io::Error::other(format!("it is nested more than {DEPTH_MAX} deep"))));
        }
        let below = [path, b"/"].concat();
        self.bare(&head(EntryType::Directory, &below, found))?;
        let mut entries = Dir::read_from(&fd)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                let path = [&below, name.to_bytes()].concat();
                self.entry(Some(&fd), name, &path, false, depth + 1).map_err(broken)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, file: File, path: &[u8]) -> Result<(), Fault> {
        let found = rustix::fs::fstat(&file)?;
        if !FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(Fault::Entry(io::Error::other("it was replaced while it was copied")));
        }
        let meta = file.metadata().map_err(Fault::Entry)?;
        let size = meta.len();
        let has_holes = meta.blocks().saturating_mul(512) < size;
        let segments =
            if has_holes { sparse::segments(&file, size).map_err(Fault::Entry)? } else { Vec::new() };
        let whole = [Segment { offset: 0, length: size }];
        let is_sparse = has_holes && segments != whole;
        let (map, segments) =
            if is_sparse { (sparse::map(&segments), &segments[..]) } else { (Vec::new(), &whole[..]) };
        let stored = segments.iter().map(|s| s.length).sum::<u64>() + map.len() as u64;
        let head = Head {
            size: stored,
            sparse: is_sparse.then_some(size),
            ..head(EntryType::Regular, path, &found)
        };
        head.write(self.out).map_err(broken)?;
        self.out.write_all(&map).map_err(broken)?;
        let mut problem = None;
        for segment in segments {
            self.content(&file, *segment, &mut problem).map_err(broken)?;
        }
        self.out.write_all(&[0; BLOCK][..padding(stored)]).map_err(broken)?;
        self.report.entries += 1;
        self.report.bytes += size;
        problem.map_or(Ok(()), |problem| Err(Fault::Entry(problem)))
    }

    /// Writes a part of a file; what cannot be read of it is zeros, because its length was announced.
    fn content(&mut self, file: &File, segment: Segment, problem: &mut Option<io::Error>) -> io::Result<()> {
        let (mut at, end) = (segment.offset, segment.offset + segment.length);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK);
            let buffer = &mut self.buffer[..wanted];
            let count = match file.read_at(buffer, at) {
                Ok(0) => {
                    problem.get_or_insert_with(|| io::Error::other("it became shorter while it was copied"));
                    buffer.fill(0);
                    wanted
                }
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    problem.get_or_insert(e);
                    buffer.fill(0);
                    wanted
                }
            };
            self.out.write_all(&self.buffer[..count])?;
            at += count as u64;
        }
        Ok(())
    }
}

#[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
fn head<'a>(kind: EntryType, path: &'a [u8], found: &Stat) -> Head<'a> {
    Head {
        kind,
        path,
        link: b"",
        size: 0,
        mode: u32::from(Mode::from_raw_mode(found.st_mode).bits()) & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        mtime: (found.st_mtime, u32::try_from(found.st_mtime_nsec).unwrap_or(0)),
        sparse: None,
    }
}
