//! What has to outlive the process when a guest is saved: the numbers that its kernel knows, and what they stand for.
//!
//! Written once, when no session runs, because a guest never outlives its worker in any other way. Everything is found again
//! by its names when it is used, or looked for once (see [`crate::moved`]): what is gone is stale, and nothing else is
//! affected.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, Statx};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Children;
use crate::table::{Key, Name, Node, NodeId, ROOT, Slot, Stamp, Table, Watch};

/// First bytes, with the version of the format.
const MAGIC: &[u8; 8] = b"aegisfs2";
/// What all versions begin with.
const KIND: &[u8] = b"aegisfs";
const DIGEST_BYTES: usize = 32;

/// Tables could not be saved, or a directory not be served again.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The directory cannot be opened.
    #[error("cannot open the directory")]
    Directory(#[source] io::Error),
    /// Another version of AegisVM wrote them.
    #[error("another version of AegisVM saved what the guest knows of a mounted directory")]
    Version,
    /// They are not what was written.
    #[error("what was saved of a mounted directory is damaged")]
    Damaged,
    /// They cannot be written down.
    #[error("cannot write down what the guest knows of a directory")]
    Encode(#[source] postcard::Error),
}

/// The tables, in a form that can be written down.
#[derive(Serialize, Deserialize)]
pub(crate) struct Tables {
    next_node: NodeId,
    next_handle: u64,
    /// File system of the root: its number may be another one after the host was started again.
    root_dev: u64,
    nodes: Vec<SavedNode>,
    handles: Vec<SavedHandle>,
    absent: Vec<(NodeId, CString)>,
}

#[derive(Serialize, Deserialize)]
struct SavedNode {
    id: NodeId,
    key: Key,
    directory: bool,
    regular: bool,
    lookups: u64,
    names: Vec<(NodeId, CString)>,
    seen: Stamp,
}

#[derive(Serialize, Deserialize)]
struct SavedHandle {
    number: u64,
    node: NodeId,
    flags: u32,
}

pub(crate) fn encode(table: &Table) -> Result<Vec<u8>, SavedError> {
    let nodes = table.nodes.iter().map(|(&id, node)| SavedNode {
        id,
        key: node.key,
        directory: node.directory,
        regular: node.regular,
        lookups: node.lookups,
        names: node.names.iter().map(|name| (name.parent, CString::from(name.name.clone()))).collect(),
        seen: node.seen,
    });
    let handles = table.handles.iter().map(|(&number, slot)| match slot {
        Slot::Open(handle) => SavedHandle { number, node: handle.node, flags: handle.flags.bits() },
        Slot::Saved { node, flags } => SavedHandle { number, node: *node, flags: flags.bits() },
    });
    let tables = Tables {
        next_node: table.next_node,
        next_handle: table.next_handle,
        root_dev: table.nodes.get(&ROOT).map_or(0, |root| root.key.dev),
        nodes: nodes.collect(),
        handles: handles.collect(),
        absent: table.absent.iter().map(|(directory, name)| (directory, name.to_owned())).collect(),
    };
    let body = postcard::to_stdvec(&tables).map_err(SavedError::Encode)?;
    Ok([&MAGIC[..], &Sha256::digest(&body), &body].concat())
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Tables, SavedError> {
    let unknown = if bytes.starts_with(KIND) { SavedError::Version } else { SavedError::Damaged };
    let rest = bytes.strip_prefix(MAGIC).ok_or(unknown)?;
    let (digest, body) = rest.split_at_checked(DIGEST_BYTES).ok_or(SavedError::Damaged)?;
    if Sha256::digest(body)[..] != *digest {
        return Err(SavedError::Damaged);
    }
    postcard::from_bytes(body).map_err(|_| SavedError::Damaged)
}

impl Tables {
    /// The tables, for the same directory in another process.
    pub(crate) fn into_table(self, root: OwnedFd, found: &Statx) -> Table {
        let now = crate::locate::key(found).dev;
        let mut table = Table::new(root, found);
        (table.next_node, table.next_handle) = (self.next_node, self.next_handle);
        let mut children: HashMap<NodeId, Children> = HashMap::new();
        for saved in self.nodes {
            let mut key = saved.key;
            if key.dev == self.root_dev {
                key.dev = now;
            }
            for (parent, name) in &saved.names {
                children.entry(*parent).or_default().insert(name.clone().into(), saved.id);
            }
            if saved.id == ROOT {
                if let Ok(root) = table.node_mut(ROOT) {
                    root.seen = saved.seen;
                }
                continue;
            }
            let names = saved.names.into_iter().map(|(parent, name)| Name { parent, name: name.into() });
            let node = Node {
                key,
                directory: saved.directory,
                regular: saved.regular,
                lookups: saved.lookups,
                names: names.collect(),
                seen: saved.seen,
                busy: 0,
                handles: Vec::new(),
                children: Children::new(),
                fd: None,
                watch: Watch::None,
            };
            table.by_key.insert(key, saved.id);
            table.nodes.insert(saved.id, node);
        }
        for (parent, names) in children {
            if let Ok(node) = table.node_mut(parent) {
                node.children = names;
            }
        }
        for SavedHandle { number, node, flags } in self.handles {
            if let Ok(known) = table.node_mut(node) {
                known.handles.push(number);
                let flags = OFlags::from_bits_retain(flags);
                table.handles.insert(number, Slot::Saved { node, flags });
            }
        }
        for (directory, name) in self.absent {
            // No more than there were.
            let _ = table.absent.add(directory, &name);
        }
        table
    }
}
