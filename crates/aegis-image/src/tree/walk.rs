//! Finding a place in the tree.
//!
//! A parent that is a symbolic link is followed, inside this tree and nowhere else: a layer that writes `bin/tool`
//! over a system whose `bin` is a link to `usr/bin` means the file in `usr/bin`. The last component is never followed.
//! Targets are taken as a process in the image's root would take them: absolute ones start at the root, `..` at the
//! root stays there.

use super::{Child, InodeId, Node, ROOT, Tree};
use crate::error::EntryProblem;

/// What Linux follows in one lookup.
const LINKS_MAX: usize = 40;
/// Components looked at in one lookup, those of link targets included: bounds what one entry can cost.
const STEPS_MAX: usize = 1024;

/// A path inside the tree: no empty, `.` or `..` components.
#[derive(Debug)]
pub(super) struct Components<'p>(Vec<&'p [u8]>);

/// How far a walk came.
pub(super) struct Reached<'n> {
    /// The last directory that exists.
    pub directory: InodeId,
    /// What is not there, or not a directory, from there on.
    pub missing: Vec<&'n [u8]>,
}

impl<'p> Components<'p> {
    /// The last component and those before it; `None` for the root.
    pub(super) fn split(&self) -> Option<(&'p [u8], &[&'p [u8]])> {
        self.0.split_last().map(|(name, parents)| (*name, parents))
    }
}

impl Tree<'_> {
    pub(super) fn components<'p>(&self, path: &'p [u8]) -> Result<Components<'p>, EntryProblem> {
        if path.contains(&0) {
            return Err(EntryProblem::Nul);
        }
        let mut components = Vec::new();
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(EntryProblem::ParentComponent),
                _ if part.len() > self.limits.max_name => {
                    return Err(EntryProblem::NameTooLong { max: self.limits.max_name });
                }
                _ if components.len() == self.limits.max_depth => {
                    return Err(EntryProblem::TooDeep { max: self.limits.max_depth });
                }
                _ => components.push(part),
            }
        }
        Ok(Components(components))
    }

    /// What is at a path; a symbolic link there is not followed.
    pub(super) fn lookup(&self, components: &Components<'_>) -> Result<Option<InodeId>, EntryProblem> {
        let Some((name, parents)) = components.split() else { return Ok(Some(ROOT)) };
        let reached = self.walk(parents)?;
        if !reached.missing.is_empty() {
            return Ok(None);
        }
        Ok(self.child(reached.directory, name).map(|child| child.id))
    }

    pub(super) fn child(&self, directory: InodeId, name: &[u8]) -> Option<Child> {
        match &self.get(directory).node {
            Node::Directory(directory) => directory.children.get(name).copied(),
            _ => None,
        }
    }

    /// Walks from the root through directories and the symbolic links to them.
    pub(super) fn walk<'n>(&'n self, parents: &[&'n [u8]]) -> Result<Reached<'n>, EntryProblem> {
        let mut directories = vec![ROOT];
        let mut missing: Vec<&[u8]> = Vec::new();
        let mut ahead: Vec<&[u8]> = parents.iter().rev().copied().collect();
        let (mut links, mut steps) = (0, ahead.len());
        while let Some(name) = ahead.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    // Of what is not there yet, or else of what is.
                    if missing.pop().is_none() && directories.len() > 1 {
                        directories.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = directories[directories.len() - 1];
            let child = if missing.is_empty() { self.child(here, name) } else { None };
            match child.map(|child| (child.id, &self.get(child.id).node)) {
                Some((id, Node::Directory(_))) => directories.push(id),
                Some((_, Node::Symlink(target))) => {
                    links += 1;
                    let before = ahead.len();
                    ahead.extend(target.rsplit(|&b| b == b'/'));
                    steps += ahead.len() - before;
                    if links > LINKS_MAX || steps > STEPS_MAX {
                        return Err(EntryProblem::TooManyLinks { max: LINKS_MAX });
                    }
                    if target.starts_with(b"/") {
                        directories.truncate(1);
                    }
                }
                _ => {
                    if name.len() > self.limits.max_name {
                        return Err(EntryProblem::NameTooLong { max: self.limits.max_name });
                    }
                    missing.push(name);
                }
            }
            // The entry itself is one level further down.
            if directories.len() + missing.len() > self.limits.max_depth {
                return Err(EntryProblem::TooDeep { max: self.limits.max_depth });
            }
        }
        Ok(Reached { directory: directories[directories.len() - 1], missing })
    }
}
