//! Single files of a directory that a guest writes to, for programs of the host. Paths are relative, no symbolic link is
//! followed, and only regular files are read and written.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, fchmod, fstat, mkdirat, openat, openat2,
    renameat, statx, unlinkat,
};
use rustix::io::Errno;

use crate::beneath::{is_component, open_root};

/// Names of one directory that are shown; a guest can make more than anybody wants to see.
const LISTED_MAX: usize = 10_000;

/// What cannot be done with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The path is empty, absolute, or has `..` in it.
    #[error("`{0}` is no path below the directory")]
    Path(String),
    /// A symbolic link is on the way.
    #[error("there is a symbolic link in the path")]
    Link,
    /// There is no such file or directory.
    #[error("there is no such file")]
    NotFound,
    /// It is a directory, a pipe or something else.
    #[error("it is not a regular file")]
    NotRegular,
    /// It is longer than was allowed.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// The host refused.
    #[error("the file cannot be used")]
    Io(#[source] io::Error),
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::LOOP | Errno::XDEV => Self::Link,
            Errno::NOENT | Errno::NOTDIR => Self::NotFound,
            // A socket, or a pipe that nobody reads.
            Errno::ISDIR | Errno::NXIO => Self::NotRegular,
            other => Self::Io(other.into()),
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name; what is not UTF-8 in it is replaced.
    pub name: String,
    /// It is a directory.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
}

/// A directory whose content is not trusted.
pub struct Files {
    root: OwnedFd,
}

impl Files {
    /// Opens it.
    ///
    /// # Errors
    /// As for [`open_root`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: open_root(path)? })
    }

    fn beneath(&self, path: &str, flags: OFlags) -> Result<OwnedFd, FileError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // A pipe must not hold us up, nor a terminal become ours.
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    /// The content of a file of at most so many bytes.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let path = below(path)?.join("/");
        let file = self.beneath(if path.is_empty() { "." } else { &path }, OFlags::RDONLY)?;
        let found = fstat(&file)?;
        if !FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(FileError::NotRegular);
        }
        let mut content = Vec::new();
        // It may grow meanwhile.
        File::from(file).take(bytes_max + 1).read_to_end(&mut content).map_err(FileError::Io)?;
        let fits = u64::try_from(content.len()).is_ok_and(|length| length <= bytes_max);
        if fits { Ok(content) } else { Err(FileError::TooLarge(bytes_max)) }
    }

    /// Replaces a file in one step, with mode 0644; directories on the way are made.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn write(&self, path: &str, content: &[u8]) -> Result<(), FileError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let components = below(path)?;
        let Some((name, parents)) = components.split_last() else {
            return Err(FileError::Path(path.to_owned()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = openat(&self.root, c".", flags, Mode::empty())?;
        for parent in parents {
            match mkdirat(&directory, *parent, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            directory = openat(&directory, *parent, flags, Mode::empty()).map_err(|errno| match errno {
                // With these flags a link is "not a directory".
                Errno::NOTDIR => FileError::Link,
                other => other.into(),
            })?;
        }
        let fresh = format!(".aegis-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory, &*fresh, flags, Mode::RUSR | Mode::WUSR)?;
        let written = fchmod(&file, Mode::from_raw_mode(0o644)).map_err(FileError::from).and_then(|()| {
            File::from(file).write_all(content).map_err(FileError::Io)?;
            // A link of that name is replaced, not followed.
            Ok(renameat(&directory, &*fresh, &directory, *name)?)
        });
        if written.is_err() {
            // What is left of it is nobody's.
            let _ = unlinkat(&directory, &*fresh, AtFlags::empty());
        }
        written
    }

    /// What is in a directory: directories first, each kind by name.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn list(&self, path: &str) -> Result<Vec<Listed>, FileError> {
        let path = below(path)?.join("/");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.beneath(if path.is_empty() { "." } else { &path }, flags)?;
        let mut listed = Vec::new();
        for entry in Dir::read_from(&directory)?.take(LISTED_MAX) {
            let entry = entry?;
            let name = entry.file_name();
            if !is_component(name.to_bytes()) {
                continue;
            }
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            // One that was removed meanwhile.
            let Ok(found) = statx(&directory, name, flags, StatxFlags::BASIC_STATS) else { continue };
            let is_dir = FileType::from_raw_mode(found.stx_mode.into()).is_dir();
            listed.push(Listed { name: name.to_string_lossy().into_owned(), is_dir, size: found.stx_size });
        }
        listed.sort_by(|a, b| b.is_dir.cmp(&a.is_dir).then_with(|| a.name.cmp(&b.name)));
        Ok(listed)
    }
}

/// The components of a relative path; none for the directory itself.
fn below(path: &str) -> Result<Vec<&str>, FileError> {
    let bad = || FileError::Path(path.chars().take(200).collect());
    if path.is_empty() || path.starts_with('/') || path.contains('\0') {
        return Err(bad());
    }
    let components: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if components.contains(&"..") { Err(bad()) } else { Ok(components) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_read_written_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        assert_eq!(files.list(".").unwrap(), []);
        files.write("a/b/c.txt", b"content").unwrap();
        files.write("./a/b/c.txt", b"other").unwrap();
        files.write("z", b"").unwrap();
        assert_eq!(files.read("a//b/c.txt", 5).unwrap(), b"other");
        assert!(matches!(files.read("a/b/c.txt", 4), Err(FileError::TooLarge(4))));
        assert!(matches!(files.read("a/b", 9), Err(FileError::NotRegular)));
        assert!(matches!(files.read("a/none", 9), Err(FileError::NotFound)));
        assert!(matches!(files.write("a/b", b""), Err(FileError::NotRegular)));
        let names: Vec<String> = files.list(".").unwrap().into_iter().map(|listed| listed.name).collect();
        assert_eq!(names, ["a", "z"]);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, secret) = (dir.path().join("in"), dir.path().join("secret"));
        fs::create_dir(&inside).unwrap();
        fs::write(&secret, "secret").unwrap();
        symlink("../secret", inside.join("link")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, inside.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .unwrap();
        let files = Files::open(&inside).unwrap();
        for path in ["", "/etc/passwd", "..", "a/../../secret", "../secret"] {
            assert!(matches!(files.read(path, 99), Err(FileError::Path(_))), "{path:?}");
            assert!(matches!(files.write(path, b""), Err(FileError::Path(_))), "{path:?}");
            assert!(matches!(files.list(path), Err(FileError::Path(_))), "{path:?}");
        }
        assert!(matches!(files.read("link", 99), Err(FileError::Link)));
        assert!(matches!(files.read("up/secret", 99), Err(FileError::Link)));
        assert!(matches!(files.write("up/secret", b"x"), Err(FileError::Link)));
        assert!(files.list("up").is_err());
        assert!(matches!(files.read("pipe", 99), Err(FileError::NotRegular)));
        files.write("link", b"mine").unwrap();
        assert_eq!(files.read("link", 9).unwrap(), b"mine");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    }
}
