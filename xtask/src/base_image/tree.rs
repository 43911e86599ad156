//! The files of an image before they become an archive. All in memory: an image of this kind is ~100 MB.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::{deb, files};

/// Directories that merged-/usr systems have as links to their namesakes below `/usr`.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    /// Another name of the file at this path of the tree.
    HardLink(String),
}

/// A node with its inode's attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) node: Node,
    /// Permission bits.
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
}

/// Paths without a leading slash. Every parent directory is present.
#[derive(Default)]
pub(super) struct Tree {
    entries: BTreeMap<String, Entry>,
    newest: u64,
}

impl Tree {
    /// An empty tree with merged `/usr`.
    pub(super) fn new() -> Tree {
        let mut tree = Tree::default();
        for directory in MERGED {
            tree.directory(&format!("usr/{directory}"), 0o755);
            tree.symlink(directory, &format!("usr/{directory}"));
        }
        tree
    }

    /// Adds a package's files, except those for which `keep` says no.
    pub(super) fn add_package(&mut self, deb: &Path, keep: impl Fn(&str) -> bool) -> Result<()> {
        deb::for_each_entry(deb, |mut entry| {
            let path = normalise(&entry.path_bytes())?;
            if path.is_empty() || !keep(&path) {
                return Ok(());
            }
            let target = |entry: &tar::Entry<_>| -> Result<String> {
                let name = entry.link_name_bytes().context("link without a target")?;
                Ok(String::from_utf8(name.into_owned())?)
            };
            let kind = entry.header().entry_type();
            let node = if kind.is_dir() {
                Node::Directory
            } else if kind.is_symlink() {
                Node::Symlink(target(&entry)?)
            } else if kind.is_hard_link() {
                Node::HardLink(normalise(target(&entry)?.as_bytes())?)
            } else if kind.is_file() {
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents)?;
                Node::File(contents)
            } else {
                bail!("{path} is neither file, directory nor link");
            };
            let header = entry.header();
            let mtime = header.mtime()?;
            self.newest = self.newest.max(mtime);
            let owner = (header.uid()?, header.gid()?);
            let made = Entry { node, mode: header.mode()? & 0o7777, owner, mtime };
            // A directory belongs to the first package that has it; what lies in it stays.
            if made.node != Node::Directory || !self.entries.contains_key(&path) {
                self.insert(path, made);
            }
            Ok(())
        })
    }

    /// Adds or replaces a file owned by root.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path.to_owned(), self.ours(Node::File(contents.into()), mode));
    }

    /// Adds a directory owned by root, or changes the mode of one.
    pub(super) fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path.to_owned(), self.ours(Node::Directory, mode));
    }

    /// Adds or replaces a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path.to_owned(), self.ours(Node::Symlink(target.to_owned()), 0o777));
    }

    /// Whether something is at `path`.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// The contents of a regular file.
    pub(super) fn contents(&self, path: &str) -> Result<&[u8]> {
        match self.entries.get(path).map(|entry| &entry.node) {
            Some(Node::File(contents)) => Ok(contents),
            _ => bail!("the packages hold no file {path}"),
        }
    }

    /// Paths and nodes below `directory`, sorted.
    pub(super) fn below(&self, directory: &str) -> impl Iterator<Item = (&str, &Node)> {
        let prefix = format!("{directory}/");
        let from = self.entries.range(prefix.clone()..);
        from.take_while(move |(path, _)| path.starts_with(&prefix))
            .map(|(path, entry)| (path.as_str(), &entry.node))
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let size =
            |entry: &Entry| if let Node::File(contents) = &entry.node { contents.len() as u64 } else { 0 };
        self.entries.values().map(size).sum()
    }

    /// Writes the files and links at and below `paths` to a host directory, with their modification times. Owners and
    /// other modes than executable are not kept.
    pub(super) fn export(&self, root: &Path, paths: &[&str]) -> Result<()> {
        let wanted = |path: &str| {
            paths.iter().any(|wanted| {
                path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
        };
        for (path, entry) in self.entries.iter().filter(|(path, _)| wanted(path)) {
            let host = root.join(path);
            files::ensure_dir(host.parent().unwrap_or(root))?;
            match &entry.node {
                Node::File(contents) => {
                    fs::write(&host, contents)?;
                    let file = File::options().write(true).open(&host)?;
                    file.set_permissions(Permissions::from_mode(entry.mode & 0o755 | 0o600))?;
                    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(entry.mtime))?;
                }
                // An absolute target would lead to the host's own files.
                Node::Symlink(target) if !target.starts_with('/') => symlink(target, &host)?,
                Node::Directory | Node::Symlink(_) | Node::HardLink(_) => {}
            }
        }
        Ok(())
    }

    /// Writes the tree as a tar archive: sorted, hard links last because they name files that come before.
    pub(super) fn write(&self, out: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(out);
        let (links, others): (Vec<_>, Vec<_>) =
            self.entries.iter().partition(|(_, entry)| matches!(entry.node, Node::HardLink(_)));
        for (path, entry) in others.into_iter().chain(links) {
            append(&mut archive, path, entry).with_context(|| format!("cannot archive {path}"))?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn ours(&self, node: Node, mode: u32) -> Entry {
        Entry { node, mode, owner: (0, 0), mtime: self.newest }
    }

    fn insert(&mut self, path: String, entry: Entry) {
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.entries.contains_key(parent)
        {
            self.directory(parent, 0o755);
        }
        self.entries.insert(path, entry);
    }
}

/// `./bin/sh` → `usr/bin/sh`.
fn normalise(path: &[u8]) -> Result<String> {
    let path = str::from_utf8(path).context("file name that is not UTF-8")?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        bail!("file name {path} leads outside");
    }
    let path = parts.join("/");
    let merged = parts.first().is_some_and(|first| MERGED.contains(first));
    Ok(if merged { format!("usr/{path}") } else { path })
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, entry: &Entry) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(entry.mtime);
    header.set_size(0);
    let mut link = |kind, target: &String| {
        header.set_entry_type(kind);
        archive.append_link(&mut header, path, target)
    };
    match &entry.node {
        Node::Symlink(target) => link(tar::EntryType::Symlink, target),
        Node::HardLink(target) => link(tar::EntryType::Link, target),
        Node::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, format!("{path}/"), std::io::empty())
        }
        Node::File(contents) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(contents.len() as u64);
            archive.append_data(&mut header, path, contents.as_slice())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn package_paths_move_below_usr_and_never_leave_the_tree() {
        assert_eq!(normalise(b"./bin/sh").unwrap(), "usr/bin/sh");
        assert_eq!(normalise(b"./usr/bin/python3").unwrap(), "usr/bin/python3");
        assert_eq!(normalise(b"./binary").unwrap(), "binary");
        assert_eq!(normalise(b"./").unwrap(), "");
        assert!(normalise(b"./a/../../b").is_err());
    }

    #[test]
    fn the_archive_has_parents_first_and_hard_links_last() {
        let mut tree = Tree::new();
        let link = tree.ours(Node::HardLink("usr/bin/z".to_owned()), 0o755);
        tree.insert("a/perl".to_owned(), link);
        tree.file("usr/bin/z", 0o755, *b"z");
        let mut bytes = Vec::new();
        tree.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        let expected =
            ["a/", "bin", "lib", "lib64", "sbin", "usr/", "usr/bin/", "usr/bin/z", "usr/lib/", "usr/lib64/"];
        assert_eq!(paths[..10], expected);
        assert_eq!(paths.last().unwrap(), "a/perl");
    }
}
