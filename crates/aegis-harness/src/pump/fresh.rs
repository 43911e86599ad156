//! Directories that the guest has made a moment ago. Nothing is in them but what it puts there, so that whether a name is there
//! can be said without the host: before each file that is made the kernel asks for its name, and half of what making a small
//! file costs are such exchanges.
//!
//! **Invariant:** a name that is not noted is not there, or the host is about to say so: it has promised to tell of what others
//! do in the directory ([`TOLD_SECONDS`]), and the first word about it ends this.

use std::collections::{HashMap, HashSet, VecDeque};

use aegis_proto::fuse::TOLD_SECONDS;

use super::message::{Named, made_entry, node_told};

/// Directories that are remembered; programs fill one after the other.
const DIRECTORIES_MAX: usize = 64;
/// Names in one of them.
const NAMES_MAX: usize = 4096;

/// Those of one mount.
#[derive(Default)]
pub(super) struct Fresh {
    /// Names that may be there, by the number of the directory.
    names: HashMap<u64, HashSet<Vec<u8>>>,
    /// The oldest first.
    order: VecDeque<u64>,
    /// Requests to make a directory that have no answer.
    making: usize,
    /// The host told of something meanwhile, perhaps of what is being made.
    told: bool,
}

impl Fresh {
    /// Notes what a request puts into a directory, or may put.
    pub(super) fn puts(&mut self, named: &Named<'_>) {
        let Some(names) = self.names.get_mut(&named.parent) else { return };
        if names.len() < NAMES_MAX {
            names.insert(named.name.to_vec());
        } else {
            self.forget(named.parent);
        }
    }

    /// Whether a name is certainly not there.
    pub(super) fn lacks(&self, named: &Named<'_>) -> bool {
        self.names.get(&named.parent).is_some_and(|names| !names.contains(named.name))
    }

    /// A directory is being made.
    pub(super) fn begin(&mut self) {
        self.told &= self.making > 0;
        self.making += 1;
    }

    /// The answer to that. It has to be noted before the kernel has it.
    pub(super) fn made(&mut self, message: &[u8]) {
        // Of one that was asked for before everything was forgotten the host may have told meanwhile.
        let Some(making) = self.making.checked_sub(1) else { return };
        self.making = making;
        let Some(entry) = made_entry(message) else { return };
        if self.told || entry.attributes_valid < TOLD_SECONDS {
            return;
        }
        if self.order.len() >= DIRECTORIES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.names.insert(entry.node, HashSet::new());
        self.order.push_back(entry.node);
    }

    /// The host tells of a change.
    pub(super) fn tell(&mut self, message: &[u8]) {
        self.told |= self.making > 0;
        match node_told(message) {
            Some(node) => self.forget(node),
            None => self.clear(),
        }
    }

    /// Whatever was known may be wrong.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn forget(&mut self, node: u64) {
        if self.names.remove(&node).is_some() {
            self.order.retain(|&other| other != node);
        }
    }
}
