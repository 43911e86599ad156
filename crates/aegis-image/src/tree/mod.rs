//! The tree of inodes that an archive, or a stack of layers, describes, before it is laid out.
//!
//! Paths are only looked up here, component by component, in maps we made ourselves ([`walk`]); nothing is ever
//! resolved on the host. Replaced and hidden inodes stay in the arena, unreachable: it grows by at most one inode per
//! entry or implied parent, and both are limited. [`hide`] has the whiteouts.

mod hide;
mod walk;

use std::collections::BTreeMap;

use crate::archive::{Device, Mtime};
use crate::error::{EntryProblem, ImageError, printable};
use crate::limits::Limits;

pub(crate) const ROOT: InodeId = InodeId(0);
/// What Linux can follow: `PATH_MAX` without the final NUL.
const SYMLINK_TARGET_MAX: usize = 4095;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeId(u32);

impl InodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub attributes: Attributes,
    pub node: Node,
    /// Names that lead here, for anything but a directory. Zero once all of them were replaced.
    pub links: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// As the image stores them after the inode; empty for none.
    pub xattrs: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) enum Node {
    Directory(Directory),
    File(FileData),
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub children: BTreeMap<Box<[u8]>, Child>,
    /// The last layer that is known to find no name of a lower one in here, or below.
    hidden_by: Layer,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub id: InodeId,
    /// The layer that gave the name this meaning: whiteouts hide what lower ones did.
    layer: Layer,
}

/// Layers count from 1; what is there before them is of layer 0.
type Layer = u16;

/// Where the content of a file went while the archive was read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FileData {
    /// Bytes.
    pub size: u64,
    /// First block of the content in the image.
    pub start_block: u32,
    /// Offset in the tail spool of the bytes after the last whole block, if they are to be stored with the inode.
    pub tail: Option<u64>,
}

pub(crate) struct Tree<'a> {
    inodes: Vec<Inode>,
    limits: &'a Limits,
    metadata_bytes: u64,
    /// The one whose entries come.
    layer: Layer,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        let root =
            Inode { attributes: implied_attributes(), node: Node::Directory(Directory::default()), links: 0 };
        Tree { inodes: vec![root], limits, metadata_bytes: 0, layer: 0 }
    }

    /// What comes from now on belongs to a layer above all before it.
    pub(crate) fn begin_layer(&mut self) -> Result<(), ImageError> {
        let number = usize::from(self.layer) + 1;
        let limit = self.limits.max_layers;
        self.layer = u16::try_from(number)
            .ok()
            .filter(|_| number <= limit)
            .ok_or(ImageError::TooManyLayers { limit })?;
        Ok(())
    }

    pub(crate) fn get(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// The arena, by index: all inodes there ever were, whether a name still leads to them or not.
    pub(crate) fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// Puts `node` at `path`, over whatever was there. A directory over a directory only changes its attributes.
    pub(crate) fn insert(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        mut node: Node,
    ) -> Result<(), ImageError> {
        let mut metadata = attributes.xattrs.len() as u64;
        if let Node::Symlink(target) = &node {
            if target.is_empty() || target.len() > SYMLINK_TARGET_MAX {
                return Err(entry_error(path, EntryProblem::BadSymlinkTarget));
            }
            if target.contains(&0) {
                return Err(entry_error(path, EntryProblem::Nul));
            }
            metadata += target.len() as u64;
        }
        self.charge_metadata(path, metadata)?;
        let components = self.components(path).map_err(|problem| entry_error(path, problem))?;
        let is_directory = matches!(node, Node::Directory(_));
        let Some((name, parents)) = components.split() else {
            if !is_directory {
                return Err(entry_error(path, EntryProblem::RootNotDirectory));
            }
            self.inodes[ROOT.index()].attributes = attributes;
            return Ok(());
        };
        let parent = self.ensure_directories(path, parents)?;
        if is_directory
            && let Some(existing) = self.child(parent, name)
            && matches!(self.get(existing.id).node, Node::Directory(_))
        {
            self.inodes[existing.id.index()].attributes = attributes;
            // The name is of this layer now; those below it are not.
            let child = Child { id: existing.id, layer: self.layer };
            self.children_mut(parent).insert((*name).into(), child);
            return Ok(());
        }
        if let Node::Directory(directory) = &mut node {
            directory.hidden_by = self.layer;
        }
        let id = self.add(path, Inode { attributes, node, links: 0 })?;
        self.link(path, parent, name, id)
    }

    /// Gives the inode at `target` one more name.
    pub(crate) fn insert_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ImageError> {
        let problem = |problem| entry_error(path, problem);
        let target_components = self.components(target).map_err(problem)?;
        let id = self
            .lookup(&target_components)
            .map_err(problem)?
            .ok_or_else(|| problem(EntryProblem::MissingLinkTarget { target: printable(target) }))?;
        if matches!(self.get(id).node, Node::Directory(_)) {
            return Err(problem(EntryProblem::LinkToDirectory { target: printable(target) }));
        }
        let components = self.components(path).map_err(problem)?;
        let Some((name, parents)) = components.split() else {
            return Err(problem(EntryProblem::RootNotDirectory));
        };
        let parent = self.ensure_directories(path, parents)?;
        self.link(path, parent, name, id)
    }

    /// The directory at `parents`, making what is missing and replacing what is in the way.
    fn ensure_directories(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<InodeId, ImageError> {
        let reached = self.walk(parents).map_err(|problem| entry_error(path, problem))?;
        let mut directory = reached.directory;
        let missing: Vec<Box<[u8]>> = reached.missing.into_iter().map(Into::into).collect();
        for name in &missing {
            if self.child(directory, name).is_some() {
                // Not louder: an archive can do this a million times.
                tracing::debug!(
                    entry = printable(path),
                    parent = printable(name),
                    "a directory replaces a non-directory that has entries below it"
                );
            }
            let node = Node::Directory(Directory { hidden_by: self.layer, ..Directory::default() });
            let id = self.add(path, Inode { attributes: implied_attributes(), node, links: 0 })?;
            self.link(path, directory, name, id)?;
            directory = id;
        }
        Ok(directory)
    }

    fn add(&mut self, path: &[u8], inode: Inode) -> Result<InodeId, ImageError> {
        let id = u32::try_from(self.inodes.len()).ok().filter(|&n| u64::from(n) <= self.limits.max_entries);
        let Some(id) = id else {
            let entry = printable(path);
            return Err(ImageError::Limit { entry, limit: self.limits.max_entries, what: "inodes" });
        };
        self.inodes.push(inode);
        Ok(InodeId(id))
    }

    fn link(&mut self, path: &[u8], parent: InodeId, name: &[u8], id: InodeId) -> Result<(), ImageError> {
        self.charge_metadata(path, name.len() as u64)?;
        self.inodes[id.index()].links += 1;
        let child = Child { id, layer: self.layer };
        if let Some(replaced) = self.children_mut(parent).insert(name.into(), child) {
            self.unlink(replaced.id);
        }
        Ok(())
    }

    fn children_mut(&mut self, directory: InodeId) -> &mut BTreeMap<Box<[u8]>, Child> {
        match &mut self.inodes[directory.index()].node {
            Node::Directory(directory) => &mut directory.children,
            _ => unreachable!("walks end in directories"),
        }
    }

    /// Takes one name from `id`, and from everything below it if it is a directory: names that live on elsewhere as
    /// hard links must count right.
    fn unlink(&mut self, id: InodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let inode = &mut self.inodes[id.index()];
            inode.links -= 1;
            if let Node::Directory(directory) = &mut inode.node {
                pending.extend(std::mem::take(&mut directory.children).into_values().map(|child| child.id));
            }
        }
    }

    fn charge_metadata(&mut self, path: &[u8], bytes: u64) -> Result<(), ImageError> {
        let limit = self.limits.max_metadata_bytes;
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes);
        if self.metadata_bytes > limit {
            let entry = printable(path);
            return Err(ImageError::Limit {
                entry,
                limit,
                what: "bytes of names, link targets and attributes",
            });
        }
        Ok(())
    }
}

/// Of a directory that no entry describes.
fn implied_attributes() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

fn entry_error(path: &[u8], problem: EntryProblem) -> ImageError {
    ImageError::Entry { entry: printable(path), problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn at<'t>(tree: &'t Tree<'_>, path: &str) -> Option<&'t Inode> {
        let components = tree.components(path.as_bytes()).unwrap();
        tree.lookup(&components).unwrap().map(|id| tree.get(id))
    }

    fn file(tree: &mut Tree<'_>, path: &str) {
        tree.insert(path.as_bytes(), Attributes::default(), Node::File(FileData::default())).unwrap();
    }

    #[test]
    fn link_counts_follow_replacement_of_whole_subtrees() {
        let limits = Limits::default();
        let mut tree = Tree::new(&limits);
        file(&mut tree, "d/e/one");
        tree.insert_hard_link(b"two", b"./d/e/one").unwrap();
        tree.insert_hard_link(b"d/three", b"two").unwrap();
        assert_eq!(at(&tree, "two").unwrap().links, 3);
        file(&mut tree, "d"); // drops d/e/one and d/three
        assert_eq!(at(&tree, "two").unwrap().links, 1);
        assert!(at(&tree, "d/e").is_none());
    }

    #[test]
    fn a_link_to_itself_changes_nothing() {
        let limits = Limits::default();
        let mut tree = Tree::new(&limits);
        file(&mut tree, "a");
        tree.insert_hard_link(b"a", b"/a").unwrap();
        assert_eq!(at(&tree, "a").unwrap().links, 1);
    }

    #[test]
    fn a_link_below_its_own_target_keeps_the_file() {
        let limits = Limits::default();
        let mut tree = Tree::new(&limits);
        file(&mut tree, "a");
        tree.insert_hard_link(b"a/b", b"a").unwrap();
        assert!(matches!(at(&tree, "a").unwrap().node, Node::Directory(_)));
        assert!(matches!(at(&tree, "a/b").unwrap().node, Node::File(_)));
        assert_eq!(at(&tree, "a/b").unwrap().links, 1);
    }

    #[test]
    fn implied_parents_count_as_inodes() {
        let limits = Limits { max_entries: 3, ..Limits::default() };
        let mut tree = Tree::new(&limits);
        let result = tree.insert(b"a/b/c/d", Attributes::default(), Node::Fifo);
        assert!(matches!(result, Err(ImageError::Limit { limit: 3, .. })), "{result:?}");
    }
}
