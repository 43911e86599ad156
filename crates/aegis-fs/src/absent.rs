//! Names that the guest's kernel remembers as missing. It does not ask for them again, so that it has to be told when one of them
//! has come while nobody was looking: while the guest was saved, or when too much changed at once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CStr;

use crate::table::NodeId;

/// Names that are remembered here; the guest is told to forget the oldest one when there are more.
const NAMES_MAX: usize = 16 * 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Absent {
    names: HashMap<NodeId, HashSet<Box<CStr>>>,
    /// The oldest first. Some of them have come meanwhile.
    order: VecDeque<(NodeId, Box<CStr>)>,
}

impl Absent {
    /// Adds a name in this directory. One that has to be forgotten for it.
    pub(crate) fn add(&mut self, directory: NodeId, name: &CStr) -> Option<(NodeId, Box<CStr>)> {
        if !self.names.entry(directory).or_default().insert(name.into()) {
            return None;
        }
        self.order.push_back((directory, name.into()));
        let oldest = if self.order.len() > NAMES_MAX { self.order.pop_front() } else { None };
        oldest.filter(|(directory, name)| self.remove(*directory, name))
    }

    /// The name is there, or nobody remembers anything about it. Whether it was one.
    pub(crate) fn remove(&mut self, directory: NodeId, name: &CStr) -> bool {
        let Some(names) = self.names.get_mut(&directory) else { return false };
        let removed = names.remove(name);
        if names.is_empty() {
            self.names.remove(&directory);
        }
        removed
    }

    /// Nobody remembers anything about this directory.
    pub(crate) fn forget(&mut self, directory: NodeId) {
        self.names.remove(&directory);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &CStr)> {
        self.names.iter().flat_map(|(&directory, names)| names.iter().map(move |name| (directory, &**name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_name_makes_room() {
        let mut absent = Absent::default();
        assert_eq!(absent.add(1, c"first"), None);
        assert_eq!(absent.add(1, c"second"), None);
        assert!(absent.remove(1, c"first") && !absent.remove(1, c"first"));
        let name = |number: usize| std::ffi::CString::new(number.to_string()).expect("digits");
        for number in 0..NAMES_MAX - 2 {
            assert_eq!(absent.add(2, &name(number)), None);
            assert_eq!(absent.add(2, &name(number)), None, "it is there already");
        }
        assert_eq!(absent.add(2, c"one more"), None, "the first one has come");
        assert_eq!(absent.add(2, c"another"), Some((1, c"second".into())));
        absent.forget(2);
        assert_eq!(absent.iter().count(), 0);
    }
}
