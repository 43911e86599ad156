//! Logs of bounded size: a file that is full becomes the first of the older ones, and the last of those goes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aegis_config::Settings;
use rustix::fs::{Stat, fstat};
use rustix::stdio;

/// How much is kept of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Size from which it goes on in a new file, in bytes.
    pub bytes_max: u64,
    /// Older files, at least one.
    pub files: u32,
}

impl From<&Settings> for Rotation {
    fn from(settings: &Settings) -> Self {
        Self { bytes_max: settings.log_max_mib.value << 20, files: settings.log_files.value }
    }
}

impl Rotation {
    /// Names of the older files, the newest first: `NAME.1`, `NAME.2` and so on.
    pub(crate) fn older<'a>(&self, current: &'a Path) -> impl DoubleEndedIterator<Item = PathBuf> + use<'a> {
        (1..=self.files).map(move |number| {
            let mut name = OsString::from(current);
            name.push(format!(".{number}"));
            name.into()
        })
    }

    /// Makes room for a new file. One that is missing is fine.
    pub(crate) fn shift(&self, current: &Path) -> io::Result<()> {
        let mut older: Vec<PathBuf> = self.older(current).collect();
        older.insert(0, current.to_owned());
        for pair in older.windows(2).rev() {
            match fs::rename(&pair[0], &pair[1]) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The log of the daemon itself. Standard output and error follow it where they were the same file, so that nothing is said
/// into a file that nobody reads any more.
#[derive(Debug)]
pub struct DaemonLog {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
}

impl DaemonLog {
    /// Opens the file, or creates it for the owner alone.
    ///
    /// # Errors
    /// As for open(2).
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let file = append_to(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), rotation, file, size })
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.rotation.shift(&self.path)?;
        let file = append_to(&self.path)?;
        let old = fstat(&self.file)?;
        let is_old = |found: rustix::io::Result<Stat>| {
            found.is_ok_and(|found| (found.st_dev, found.st_ino) == (old.st_dev, old.st_ino))
        };
        if is_old(fstat(stdio::stdout())) {
            stdio::dup2_stdout(&file)?;
        }
        if is_old(fstat(stdio::stderr())) {
            stdio::dup2_stderr(&file)?;
        }
        (self.file, self.size) = (file, 0);
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o600).open(path)
}

impl Write for DaemonLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let added = line.len() as u64;
        if self.size > 0 && self.size + added > self.rotation.bytes_max {
            // A log that is too long is better than none.
            let _ = self.rotate();
        }
        // In one piece: programs that share the file write to its end as well.
        self.file.write_all(line)?;
        self.size += added;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_full_log_moves_on_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let rotation = Rotation { bytes_max: 10, files: 2 };
        let mut log = DaemonLog::open(&path, rotation).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "a line that is too long\n", "end\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("log"), read("log.1")),
            ("end\n".to_owned(), "a line that is too long\n".to_owned())
        );
        assert_eq!(read("log.2"), "four\nfive\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        drop(log);
        let mut log = DaemonLog::open(&path, rotation).unwrap();
        log.write_all(b"more\n").unwrap();
        log.write_all(b"more\n").unwrap();
        assert_eq!(read("log.1"), "end\nmore\n", "its size counts over restarts");
    }
}
