//! What somebody moved while the guest was saved.
//!
//! A node that was saved is found by its names. When they lead nowhere, everything below the root is looked at, once, and each
//! node that is met under another name gets that name. So one that is still not found is gone. Directories on the way that
//! the guest does not know become nodes, for as long as they are needed.

use std::ffi::CStr;
use std::io;
use std::ops::ControlFlow;

use rustix::fs::Statx;

use crate::Directory;
use crate::beneath::{Step, walk};
use crate::locate::key;
use crate::table::{NodeId, ROOT};
use crate::watch::Notice;

/// Names that are looked at: a guest can make more than it may have us read, while its requests wait.
const NAMES_MAX: usize = 200_000;

impl Directory {
    /// What `find` finds of a node by its names, if need be by those that a search adds.
    pub(crate) fn even_if_moved<T>(&self, id: NodeId, find: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match find() {
            Err(e) if id < self.first_unsaved && e.raw_os_error() == Some(libc::ESTALE) => {
                self.searched.call_once(|| self.search());
                find()
            }
            found => found,
        }
    }

    fn search(&self) {
        let (mut met, mut moved) = (0, 0);
        let walked = self.known_directory(ROOT).and_then(|root| {
            walk(&root, |way, name, found| {
                met += 1;
                moved += usize::from(self.meet(way, name, found));
                if met < NAMES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        });
        if let Err(e) = walked {
            tracing::warn!("what was moved while the guest was saved is not found: {e}");
        }
        tracing::debug!("{moved} of {met} names lead to what was moved while the guest was saved");
    }

    /// Notes where a node is that is not where it was. Whether it is one.
    fn meet(&self, way: &[Step], name: &CStr, found: &Statx) -> bool {
        let key = key(found);
        // Without a time of birth it may be a new file that got the number of one that was removed.
        if key.born == 0 {
            return false;
        }
        let (id, directory) = {
            let table = self.table();
            let Some(&id) = table.by_key.get(&key) else { return false };
            (id, table.node(id).is_ok_and(|node| node.directory))
        };
        // Another name of the same file is not needed, and may be one of very many.
        let known = if directory { self.known_directory(id).is_ok() } else { self.known_place(id).is_ok() };
        if known {
            return false;
        }
        // From below, so that each directory is needed by the time that it is a node.
        let (mut id, mut name) = (id, name);
        for step in way.iter().rev() {
            let named = self.table().name_in(id, &step.found, name);
            let Ok((parent, news)) = named else { break };
            if news {
                // It may remember another file there, or none.
                self.notify(Notice::Name(parent, name.into()));
            }
            (id, name) = (parent, &step.name);
        }
        true
    }
}
