//! One daemon per home, enforced by the kernel: the lock ends with the process, however that ends.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aegis_config::Home;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Time for what is left of a daemon that was killed to go away.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks at the lock of one that does.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
    /// Locks a home that exists, and leaves our pid in the lock file for the message to the next one. A daemon that was
    /// killed is waited for: it holds its lock until the kernel has taken all of it apart.
    pub(crate) fn take(home: &Home) -> Result<HomeLock, LockError> {
        let path = home.lock_file();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        let deadline = Instant::now() + END_DEADLINE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {}
                Err(e) => return Err(failed(e.into())),
            }
            let mut text = String::new();
            let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
            let pid: Option<u32> = read.ok().and_then(|_| text.trim().parse().ok());
            if !pid.is_some_and(is_ending) || Instant::now() >= deadline {
                return Err(LockError::Taken { pid, home: home.root().to_owned() });
            }
            thread::sleep(LOOK_AGAIN);
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

/// Whether this process has ended or is about to: the kernel takes its memory, and with it its arguments, first.
fn is_ending(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |arguments| arguments.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_lock_of_a_daemon_that_was_killed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        home.ensure().unwrap();
        let lock = HomeLock::take(&home).unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        fs::write(home.lock_file(), format!("{}\n", ended.id())).unwrap();
        let waiting = thread::spawn(move || HomeLock::take(&home).map(drop));
        thread::sleep(LOOK_AGAIN * 2);
        drop(lock);
        waiting.join().unwrap().unwrap();
    }

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
