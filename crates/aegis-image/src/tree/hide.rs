//! Whiteouts: names by which a layer says what of the layers below it is gone.
//!
//! `.wh.NAME` hides NAME, `.wh..wh..opq` everything in its directory. Neither touches what its own layer puts there,
//! whichever of the two comes first in the archive.

use super::{Child, InodeId, Node, Tree, entry_error, implied_attributes};
use crate::error::{EntryProblem, ImageError};

const PREFIX: &[u8] = b".wh.";
/// Names that old storage drivers of Docker kept for themselves.
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Tree<'_> {
    /// Whether `path` is a whiteout rather than a file of this name. If so, it has been applied.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<bool, ImageError> {
        if !path.split(|&b| b == b'/').any(|part| part.starts_with(PREFIX)) {
            return Ok(false);
        }
        let problem = |problem| entry_error(path, problem);
        let components = self.components(path).map_err(problem)?;
        let Some((last, parents)) = components.split() else { return Ok(false) };
        if parents.iter().any(|part| part.starts_with(META_PREFIX)) {
            return Ok(true);
        }
        if parents.iter().any(|part| part.starts_with(PREFIX)) {
            return Err(problem(EntryProblem::BelowWhiteout));
        }
        let reached = self.walk(parents).map_err(problem)?;
        let directory = reached.missing.is_empty().then_some(reached.directory);
        let name = match last.strip_prefix(PREFIX) {
            None => unreachable!("the prefix is in some component"),
            Some(b"" | b"." | b"..") => return Err(problem(EntryProblem::BadWhiteout)),
            Some(_) if last == OPAQUE => {
                if let Some(directory) = directory {
                    self.hide_lower(directory);
                }
                return Ok(true);
            }
            Some(_) if last.starts_with(META_PREFIX) => return Ok(true),
            Some(name) => name,
        };
        if let Some(directory) = directory
            && let Some(child) = self.child(directory, name)
        {
            match self.without_lower(child) {
                Some(child) => self.children_mut(directory).insert(name.into(), child),
                None => self.children_mut(directory).remove(name),
            };
        }
        Ok(true)
    }

    /// Takes all names away that lower layers gave to what is in `directory`, and below it.
    ///
    /// Done at most once for each directory and layer, so that whiteouts cannot make a layer cost more than its entries:
    /// no name of a lower layer can come back.
    fn hide_lower(&mut self, directory: InodeId) {
        let layer = self.layer;
        let Node::Directory(node) = &mut self.inodes[directory.index()].node else { return };
        if node.hidden_by == layer {
            return;
        }
        node.hidden_by = layer;
        let children = std::mem::take(&mut node.children);
        let kept = children
            .into_iter()
            .filter_map(|(name, child)| self.without_lower(child).map(|child| (name, child)))
            .collect();
        *self.children_mut(directory) = kept;
    }

    /// What is left of a name without its lower layers.
    fn without_lower(&mut self, child: Child) -> Option<Child> {
        let own = child.layer == self.layer;
        if !matches!(self.get(child.id).node, Node::Directory(_)) {
            if !own {
                self.unlink(child.id);
            }
            return own.then_some(child);
        }
        self.hide_lower(child.id);
        if own {
            return Some(child);
        }
        if self.children_mut(child.id).is_empty() {
            self.unlink(child.id);
            return None;
        }
        // This layer has entries below it, but nothing said what the directory itself is.
        self.inodes[child.id.index()].attributes = implied_attributes();
        Some(Child { layer: self.layer, ..child })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::{Attributes, FileData};
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn what_whiteouts_cost_is_bounded_by_the_entries() {
        let limits = Limits::default();
        let mut tree = Tree::new(&limits);
        tree.begin_layer().unwrap();
        for i in 0..20_000 {
            let path = format!("a/b/{i}");
            tree.insert(path.as_bytes(), Attributes::default(), Node::File(FileData::default())).unwrap();
        }
        tree.begin_layer().unwrap();
        for i in 0..20_000 {
            let path = format!("a/b/{i}");
            tree.insert(path.as_bytes(), Attributes::default(), Node::File(FileData::default())).unwrap();
        }
        // Were each of these to look at every name, this test would not end.
        for _ in 0..50_000 {
            assert!(tree.whiteout(b".wh.a").unwrap());
            assert!(tree.whiteout(b"a/b/.wh..wh..opq").unwrap());
        }
        let components = tree.components(b"a/b/19999").unwrap();
        assert!(tree.lookup(&components).unwrap().is_some());
    }
}
