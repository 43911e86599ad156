//! Directories of the host as file systems of a guest: a FUSE server over any stream.
//!
//! ```text
//! guest kernel ─/dev/fuse─ pump of the harness ══port══ [`serve`] ─► [`Directory`] ─► openat(2) and its kind
//!                                                            ▲            │ tables: node ids, names, handles
//!                                              invalidations └── watch ◄──┘ inotify(7): what others change
//! guest kernel ─ block device ═══════════ [`serve_content`] ─► content of open files, in long pieces
//! ```
//! Messages are those of the kernel (`linux/fuse.h`, protocol 7), raw: each begins with its length. `fuse-backend-rs` takes
//! them apart; what they mean is decided here. The worker of a VM runs one [`Directory`] for each mount.
//!
//! **Invariants.** The guest is hostile. Nothing outside of the directory is reached: a name is one component, it is
//! opened relative to a descriptor of its directory, and no symbolic link is ever followed; the guest resolves its own. What
//! was opened is compared with what the guest has asked for before it is used. Every table has a limit. No device node is
//! made or opened, and no set-user-ID or set-group-ID bit is set.
//!
//! What it deliberately does not do: users of the guest are not told apart (everything is done as the user of the host, and
//! looks as if root owned it), locks are the guest kernel's own, and there is no write-back cache.
#![forbid(unsafe_code)]

mod absent;
mod attributes;
mod beneath;
mod content;
mod disk;
mod exchange;
mod files;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod listing;
mod locate;
mod moved;
mod names;
mod requests;
mod saved;
mod session;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, Once};

pub use beneath::{Usage, open_root, remove_tree, usage};
pub use disk::serve_content;
pub use files::{FileError, Files, Listed};
pub use saved::SavedError;
pub use session::{SessionError, serve};

use listing::Stream;
use session::Listener;
use table::{NodeId, Table};
use watch::{WATCHES_MAX, Watcher};

/// A directory of the host that a guest has mounted.
pub struct Directory {
    read_only: bool,
    /// The user and the group that look like root to the guest.
    owner: (u32, u32),
    root_dev: u64,
    table: Mutex<Table>,
    /// Nodes with smaller numbers were saved with the guest.
    first_unsaved: NodeId,
    /// Those that were moved meanwhile have been looked for.
    searched: Once,
    /// Directories that are being read, with what was read and not yet sent.
    streams: Mutex<VecDeque<(u64, Stream)>>,
    watcher: Watcher,
    /// Where the session of the moment takes invalidations from.
    notices: Mutex<Option<Listener>>,
    /// An invalidation could not be sent: the guest may know something that is not so any more.
    missed: AtomicBool,
}

impl Directory {
    /// Serves this directory, which nobody has mounted yet.
    ///
    /// # Errors
    /// It cannot be opened, is no directory, or has a symbolic link on the way to it.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Arc<Self>> {
        Self::new(open_root(path)?, read_only, None, WATCHES_MAX)
    }

    /// The same with at most so many watches.
    #[cfg(test)]
    fn open_with_watches(path: &Path, watches: usize) -> io::Result<Arc<Self>> {
        Self::new(open_root(path)?, false, None, watches)
    }

    /// Serves a directory that a guest has mounted before it was saved, with what [`Directory::save`] left.
    ///
    /// # Errors
    /// As for [`Directory::open`], or the tables are damaged.
    pub fn reopen(path: &Path, read_only: bool, tables: &[u8]) -> Result<Arc<Self>, SavedError> {
        let root = open_root(path).map_err(SavedError::Directory)?;
        let saved = saved::decode(tables)?;
        Self::new(root, read_only, Some(saved), WATCHES_MAX).map_err(SavedError::Directory)
    }

    fn new(
        root: OwnedFd,
        read_only: bool,
        saved: Option<saved::Tables>,
        watches: usize,
    ) -> io::Result<Arc<Self>> {
        let found = locate::stat_fd(&root)?;
        let restored = saved.is_some();
        let table = match saved {
            Some(saved) => saved.into_table(root, &found),
            None => Table::new(root, &found),
        };
        let directory = Arc::new(Self {
            read_only,
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            root_dev: locate::key(&found).dev,
            first_unsaved: if restored { table.next_node } else { 0 },
            table: Mutex::new(table),
            searched: Once::new(),
            streams: Mutex::default(),
            watcher: Watcher::new(watches),
            notices: Mutex::default(),
            // What was changed while the guest was saved is found by looking.
            missed: AtomicBool::new(restored),
        });
        watch::start(&directory)?;
        Ok(directory)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while held")
    }

    /// What has to be known to go on after the guest was saved. No session may be running.
    ///
    /// # Errors
    /// None that is expected: the tables are plain data.
    pub fn save(&self) -> Result<Vec<u8>, SavedError> {
        saved::encode(&self.table())
    }

    /// Refuses a change to what is read-only.
    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(error(libc::EROFS)) } else { Ok(()) }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Its thread finds that nobody is left.
        self.watcher.wake();
    }
}

/// An error of this number.
fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Names of a directory that the guest knows.
type Children = HashMap<Box<std::ffi::CStr>, u64>;
