//! What the guest's kernel knows: numbered nodes, the names that lead to them, and open files. No system calls.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use aegis_proto::fuse::HANDLES_END;
use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::fs::{OFlags, Statx};
use serde::{Deserialize, Serialize};

use crate::absent::Absent;
use crate::locate::{self, key};
use crate::{Children, error};

pub(crate) type NodeId = u64;
pub(crate) const ROOT: NodeId = ROOT_ID;

/// As many as a guest of 4 GiB can remember. The kernel forgets nodes when it needs memory.
const NODES_MAX: usize = 1 << 20;
/// Open files of one mount.
const HANDLES_MAX: usize = 16 * 1024;
/// Names of one node; the oldest is forgotten first.
const NAMES_MAX: usize = 8;
/// Descriptors that are kept of directories; others are opened again by their names.
const DIRECTORIES_MAX: usize = 1024;

/// Which inode of the host. With the time of its birth, because numbers are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) born: i128,
}

/// Changes whenever content or attributes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

/// One way to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) parent: NodeId,
    pub(crate) name: Box<CStr>,
}

/// How well changes of a directory by others are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Watch {
    /// Nobody has looked into it yet.
    #[default]
    None,
    /// The kernel reports them under this number.
    By(i32),
    /// Not at all: there were no watches left.
    Refused,
}

pub(crate) struct Node {
    pub(crate) key: Key,
    pub(crate) directory: bool,
    pub(crate) regular: bool,
    /// References that the guest's kernel has. With none, a node is on the way to one that has.
    pub(crate) lookups: u64,
    /// The newest last.
    pub(crate) names: Vec<Name>,
    /// As the guest was last told.
    pub(crate) seen: Stamp,
    /// Changes by the guest that are going on: of content, or of names in it.
    pub(crate) busy: u32,
    /// Open files.
    pub(crate) handles: Vec<u64>,
    /// Of a directory: what the guest knows in it.
    pub(crate) children: Children,
    pub(crate) fd: Option<Arc<OwnedFd>>,
    pub(crate) watch: Watch,
}

impl Node {
    pub(crate) fn new(found: &Statx) -> Self {
        let kind = rustix::fs::FileType::from_raw_mode(found.stx_mode.into());
        Self {
            key: key(found),
            directory: kind.is_dir(),
            regular: kind.is_file(),
            lookups: 0,
            names: Vec::new(),
            seen: locate::stamp(found),
            busy: 0,
            handles: Vec::new(),
            children: Children::new(),
            fd: None,
            watch: Watch::None,
        }
    }
}

/// An open file.
pub(crate) struct Handle {
    pub(crate) node: NodeId,
    pub(crate) file: File,
    pub(crate) flags: OFlags,
}

/// An open file, or one that was open when the guest was saved and is opened when it is used.
pub(crate) enum Slot {
    Open(Arc<Handle>),
    Saved { node: NodeId, flags: OFlags },
}

impl Slot {
    pub(crate) fn node(&self) -> NodeId {
        match self {
            Self::Open(handle) => handle.node,
            Self::Saved { node, .. } => *node,
        }
    }
}

/// See the module.
pub(crate) struct Table {
    pub(crate) nodes: HashMap<NodeId, Node>,
    pub(crate) by_key: HashMap<Key, NodeId>,
    pub(crate) handles: HashMap<u64, Slot>,
    pub(crate) by_watch: HashMap<i32, NodeId>,
    /// Never used again, so that a stale number finds nothing; numbers of handles not before all others were.
    pub(crate) next_node: NodeId,
    pub(crate) next_handle: u64,
    /// Names that the guest remembers as missing.
    pub(crate) absent: Absent,
    /// Directories with a descriptor, the oldest first.
    kept: VecDeque<NodeId>,
}

impl Table {
    pub(crate) fn new(root: OwnedFd, found: &Statx) -> Self {
        let mut table = Self {
            nodes: HashMap::new(),
            by_key: HashMap::new(),
            handles: HashMap::new(),
            by_watch: HashMap::new(),
            next_node: ROOT + 1,
            next_handle: 1,
            absent: Absent::default(),
            kept: VecDeque::new(),
        };
        table.set_root(root, found);
        table
    }

    /// The kernel never forgets the root.
    pub(crate) fn set_root(&mut self, root: OwnedFd, found: &Statx) {
        let mut node = Node::new(found);
        (node.lookups, node.fd) = (1, Some(Arc::new(root)));
        if let Some(saved) = self.nodes.remove(&ROOT) {
            self.by_key.remove(&saved.key);
            (node.children, node.seen) = (saved.children, saved.seen);
        }
        self.by_key.insert(node.key, ROOT);
        self.nodes.insert(ROOT, node);
    }

    pub(crate) fn node(&self, id: NodeId) -> io::Result<&Node> {
        self.nodes.get(&id).ok_or_else(|| error(libc::ESTALE))
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> io::Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| error(libc::ESTALE))
    }

    /// The node of what was found under a name, with one more reference of the kernel.
    pub(crate) fn refer(&mut self, parent: NodeId, name: &CStr, found: &Statx) -> io::Result<NodeId> {
        let id = self.refer_unnamed(found)?;
        self.name(id, parent, name);
        Ok(id)
    }

    /// The same for what has no name.
    pub(crate) fn refer_unnamed(&mut self, found: &Statx) -> io::Result<NodeId> {
        let id = self.know(found)?;
        self.node_mut(id)?.lookups += 1;
        Ok(id)
    }

    /// The node of what was found, without another reference: one is needed, or a name in it, for the node to stay.
    fn know(&mut self, found: &Statx) -> io::Result<NodeId> {
        let key = key(found);
        match self.by_key.get(&key) {
            Some(&id) => Ok(id),
            None if self.nodes.len() >= NODES_MAX => Err(error(libc::ENOMEM)),
            None => {
                let id = self.next_node;
                self.next_node += 1;
                self.nodes.insert(id, Node::new(found));
                self.by_key.insert(key, id);
                Ok(id)
            }
        }
    }

    /// Notes that a name in this directory leads to this node, whether or not the guest knows the directory. The directory,
    /// and whether the name was news.
    pub(crate) fn name_in(
        &mut self,
        id: NodeId,
        directory: &Statx,
        name: &CStr,
    ) -> io::Result<(NodeId, bool)> {
        let parent = self.know(directory)?;
        let news = self.child(parent, name) != Some(id);
        self.name(id, parent, name);
        Ok((parent, news))
    }

    /// Notes that this name leads to this node now.
    pub(crate) fn name(&mut self, id: NodeId, parent: NodeId, name: &CStr) {
        self.absent.remove(parent, name);
        let Some(directory) = self.nodes.get_mut(&parent) else { return };
        match directory.children.insert(name.into(), id) {
            Some(other) if other != id => self.drop_name(other, parent, name),
            _ => {}
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.names.last().is_some_and(|last| last.parent == parent && *last.name == *name) {
            return;
        }
        node.names.retain(|known| known.parent != parent || *known.name != *name);
        if node.names.len() == NAMES_MAX {
            let oldest = node.names.remove(0);
            self.drop_child(id, &oldest);
            self.release(oldest.parent);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.push(Name { parent, name: name.into() });
        }
    }

    /// Notes that this name leads to nothing any more. The node that it led to.
    pub(crate) fn unname(&mut self, parent: NodeId, name: &CStr) -> Option<NodeId> {
        let id = self.nodes.get_mut(&parent)?.children.remove(name)?;
        self.drop_name(id, parent, name);
        self.release(parent);
        Some(id)
    }

    fn drop_name(&mut self, id: NodeId, parent: NodeId, name: &CStr) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.names.retain(|known| known.parent != parent || *known.name != *name);
        }
    }

    fn drop_child(&mut self, id: NodeId, name: &Name) {
        if let Some(directory) = self.nodes.get_mut(&name.parent)
            && directory.children.get(&name.name) == Some(&id)
        {
            directory.children.remove(&name.name);
        }
    }

    /// The child of a directory that the guest knows under this name.
    pub(crate) fn child(&self, parent: NodeId, name: &CStr) -> Option<NodeId> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Takes references of the kernel back. The watch of a directory that it does not know any more.
    pub(crate) fn forget(&mut self, id: NodeId, count: u64) -> Option<i32> {
        let node = self.nodes.get_mut(&id).filter(|_| id != ROOT)?;
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return None;
        }
        let watch = std::mem::take(&mut node.watch);
        self.release(id);
        match watch {
            Watch::By(watch) => {
                self.by_watch.remove(&watch);
                Some(watch)
            }
            Watch::None | Watch::Refused => None,
        }
    }

    /// Lets go of a node that nobody needs, and then of directories that were only on the way to it.
    fn release(&mut self, id: NodeId) {
        let mut candidates = vec![id];
        while let Some(id) = candidates.pop() {
            let needed = |node: &Node| node.lookups > 0 || !node.children.is_empty();
            if id == ROOT || self.nodes.get(&id).is_none_or(needed) {
                continue;
            }
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.absent.forget(id);
            if self.by_key.get(&node.key) == Some(&id) {
                self.by_key.remove(&node.key);
            }
            for name in &node.names {
                self.drop_child(id, name);
                candidates.push(name.parent);
            }
        }
    }

    /// Keeps the descriptor of a directory, and lets go of another one that can be opened again.
    pub(crate) fn keep(&mut self, id: NodeId, fd: &Arc<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.fd.replace(Arc::clone(fd)).is_none() {
            self.kept.push_back(id);
        }
        while self.kept.len() > DIRECTORIES_MAX {
            let Some(oldest) = self.kept.pop_front() else { break };
            // One without a name could not be opened again.
            if let Some(node) = self.nodes.get_mut(&oldest).filter(|node| !node.names.is_empty()) {
                node.fd = None;
            }
        }
    }

    /// Takes an open file in. Its number.
    pub(crate) fn add_handle(&mut self, handle: Handle) -> io::Result<u64> {
        if self.handles.len() >= HANDLES_MAX {
            return Err(error(libc::ENFILE));
        }
        let number = loop {
            let number = self.next_handle;
            self.next_handle = if number + 1 < HANDLES_END { number + 1 } else { 1 };
            if !self.handles.contains_key(&number) {
                break number;
            }
        };
        self.node_mut(handle.node)?.handles.push(number);
        self.handles.insert(number, Slot::Open(Arc::new(handle)));
        Ok(number)
    }

    /// Lets go of an open file.
    pub(crate) fn remove_handle(&mut self, number: u64) -> io::Result<()> {
        let slot = self.handles.remove(&number).ok_or_else(|| error(libc::EBADF))?;
        if let Some(node) = self.nodes.get_mut(&slot.node()) {
            node.handles.retain(|&other| other != number);
        }
        Ok(())
    }

    /// Some open file of a node.
    pub(crate) fn open_file(&self, id: NodeId) -> Option<Arc<Handle>> {
        let handles = &self.nodes.get(&id)?.handles;
        handles.iter().rev().find_map(|number| match self.handles.get(number)? {
            Slot::Open(handle) => Some(Arc::clone(handle)),
            Slot::Saved { .. } => None,
        })
    }

    /// Whether what others do to this node, by its name, is noticed.
    pub(crate) fn is_watched(&self, id: NodeId) -> bool {
        let watched = |id| self.nodes.get(&id).is_some_and(|node| matches!(node.watch, Watch::By(_)));
        match self.nodes.get(&id) {
            Some(node) if node.directory => watched(id),
            Some(node) => node.names.last().is_some_and(|name| watched(name.parent)),
            None => false,
        }
    }
}
