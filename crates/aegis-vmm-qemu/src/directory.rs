//! The runtime directory of a VM, by descriptor: paths of sockets are limited to 108 bytes, and this way only their
//! names count. QEMU inherits the descriptor under the same number, so that both sides use the same path.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// An open directory.
pub(crate) struct Directory(OwnedFd);

impl Directory {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// A short path of a name in it.
    pub(crate) fn reach(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()).into()
    }

    /// Listens on a socket in it, in place of whatever has the name.
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        let path = self.reach(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        UnixListener::bind(path)
    }
}
