//! One daemon per home, enforced by the kernel: the lock ends with the process, however that ends.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use aegis_config::Home;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Holds the lock until its last clone is dropped. Whatever writes in the home by itself has one.
#[derive(Debug, Clone)]
pub(crate) struct HomeLock {
    _file: Arc<File>,
}

/// The home cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("another aegisd{} already uses {}", pid.map(|p| format!(" (pid {p})")).unwrap_or_default(), home.display())]
    Taken {
        /// Its process id, when it could be read.
        pid: Option<u32>,
        /// The home.
        home: PathBuf,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl HomeLock {
    /// Locks a home that exists, and leaves our pid in the lock file for the message to the next one.
    pub(crate) fn take(home: &Home) -> Result<HomeLock, LockError> {
        let path = home.lock_file();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Taken { pid, home: home.root().to_owned() });
            }
            Err(e) => return Err(failed(e.into())),
        }
        let mut sign = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        sign().map_err(failed)?;
        Ok(HomeLock { _file: Arc::new(file) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_home_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        home.ensure().unwrap();
        let lock = HomeLock::take(&home).unwrap();
        let message = HomeLock::take(&home).unwrap_err().to_string();
        let expected =
            format!("another aegisd (pid {}) already uses {}", std::process::id(), home.root().display());
        assert_eq!(message, expected);
        drop(lock);
        HomeLock::take(&home).unwrap();
    }
}
