//! Files of instances: private directories, atomic files, disks. Everything here blocks.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{ioctl_ficlone, seek};
use rustix::io::Errno;

/// The newest part of a console that is kept when its VM is gone, in bytes.
const CONSOLE_MAX: u64 = 1 << 20;

/// Zeros in a row that are worth a hole, in bytes: more pieces would make copies slower.
const PIECE: usize = 64 << 10;

/// Makes a directory for the owner alone, and its parents.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a directory for the owner alone, in place of what is there.
pub(crate) fn make_empty_dir(path: &Path) -> io::Result<()> {
    remove_dir(path)?;
    make_dir(path)
}

/// Removes a directory and everything in it; a missing one is a success.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_dir_all(path))
}

/// Removes a file; a missing one is a success.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes a file for the owner alone that others see completely or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = fresh_name(path);
    create(&fresh)?.write_all(bytes)?;
    fs::rename(fresh, path)
}

/// Whether a copy must survive a crash of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// It is on the disk before it appears. Costs milliseconds.
    Now,
    /// The host writes it when it likes: after a crash of the host it may be anything.
    Later,
}

/// Copies a file without filling its holes, sharing its blocks where the file system can. A hole makes the copy at least
/// `length_min` bytes long. It appears complete, or it does not appear.
pub(crate) fn copy_sparse(from: &Path, to: &Path, length_min: u64, flush: Flush) -> io::Result<()> {
    let source = File::open(from)?;
    let fresh = fresh_name(to);
    let copy = create(&fresh)?;
    let copied = match ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(()),
        // Not on one file system, or not one that shares blocks.
        Err(_) => copy_data(&source, &copy),
    };
    let copied = copied
        .and_then(|()| if copy.metadata()?.len() < length_min { copy.set_len(length_min) } else { Ok(()) });
    let flushed = copied.and_then(|()| if flush == Flush::Now { copy.sync_all() } else { Ok(()) });
    let finished = flushed.and_then(|()| fs::rename(&fresh, to));
    if finished.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    finished
}

/// Copies what is no hole. `copy` is empty, and as long as `source` afterwards.
pub(crate) fn copy_data(mut source: &File, mut copy: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = seek(source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        copy.seek(SeekFrom::Start(data))?;
        io::copy(&mut source.take(hole - data), &mut copy)?;
        at = hole;
    }
    Ok(())
}

/// Makes holes of the zeros in a file, where there are enough of them in a row, by replacing it with a copy.
pub(crate) fn drop_zeros(path: &Path) -> io::Result<()> {
    let source = File::open(path)?;
    let length = source.metadata()?.len();
    let fresh = fresh_name(path);
    let copy = create(&fresh)?;
    copy.set_len(length)?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    let copied = loop {
        match seek(&source, rustix::fs::SeekFrom::Data(at)) {
            // From the start of a piece, so that the holes of the copy are whole blocks.
            Ok(data) => at = data - data % PIECE as u64,
            Err(Errno::NXIO) => break Ok(()),
            Err(e) => break Err(e.into()),
        }
        let size = (length - at).min(PIECE as u64);
        let piece = &mut buffer[..usize::try_from(size).expect("at most a piece")];
        let moved =
            source.read_exact_at(piece, at).and_then(|()| match piece.iter().all(|&byte| byte == 0) {
                true => Ok(()),
                false => copy.write_all_at(piece, at),
            });
        if moved.is_err() {
            break moved;
        }
        at += size;
    };
    let finished = copied.and_then(|()| fs::rename(&fresh, path));
    if finished.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    finished
}

/// Waits until a file, or what a directory lists, is on the disk.
pub(crate) fn flush(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Keeps the newest part of a console after its VM.
pub(crate) fn keep_console(from: &Path, to: &Path) -> io::Result<()> {
    match read_end(from, CONSOLE_MAX) {
        Ok(bytes) => write_atomically(to, &bytes),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The last `max` bytes of a file.
pub(crate) fn read_end(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(max);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn fresh_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_sparse_copy_keeps_bytes_and_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for (at, byte) in [(0, 1), (5 << 20, 2), ((64 << 20) - 4096, 3)] {
            file.write_all_at(&[byte; 4096], at).unwrap();
        }
        file.sync_all().unwrap();
        copy_data(&File::open(&from).unwrap(), &create(&to).unwrap()).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        let blocks = |path| fs::metadata(path).unwrap().blocks();
        // Whether there are holes at all depends on the file system below the tests.
        assert!(blocks(&to) <= blocks(&from).max(64), "{} of {}", blocks(&to), blocks(&from));
        fs::remove_file(&to).unwrap();
        copy_sparse(&from, &to, 1, Flush::Now).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        copy_sparse(&from, &to, 65 << 20, Flush::Now).unwrap();
        let longer = fs::read(&to).unwrap();
        assert!(longer.len() == 65 << 20 && longer.starts_with(&fs::read(&from).unwrap()));
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_hole_at_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.write_all_at(b"x", 10).unwrap();
        file.set_len(1 << 20).unwrap();
        copy_data(&File::open(&from).unwrap(), &create(&to).unwrap()).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
    }

    #[test]
    fn zeros_become_holes_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ram");
        let file = File::create(&path).unwrap();
        file.write_all_at(&vec![0; 4 << 20], 0).unwrap();
        // Odd on purpose, at the border of two pieces, and at an end that is none of a piece.
        for at in [1000, (1 << 20) - 2, (4 << 20) + 100] {
            file.write_all_at(b"abc", at).unwrap();
        }
        file.sync_all().unwrap();
        let (before, blocks) = (fs::read(&path).unwrap(), file.metadata().unwrap().blocks());
        drop_zeros(&path).unwrap();
        assert!(fs::read(&path).unwrap() == before);
        let copy = File::open(&path).unwrap();
        copy.sync_all().unwrap();
        assert!(copy.metadata().unwrap().blocks() <= blocks / 8, "{}", copy.metadata().unwrap().blocks());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        assert!(copy_sparse(dir.path(), &to, 0, Flush::Later).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_newest_part_of_a_console_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        keep_console(&from, &to).unwrap();
        assert!(!to.exists());
        let mut text = vec![b'x'; usize::try_from(CONSOLE_MAX).unwrap()];
        text.extend_from_slice(b"the end");
        fs::write(&from, &text).unwrap();
        keep_console(&from, &to).unwrap();
        let kept = fs::read(&to).unwrap();
        assert!(kept.len() as u64 == CONSOLE_MAX && kept.ends_with(b"the end"));
    }
}
