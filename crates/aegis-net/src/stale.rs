//! Connections that a guest had when it was saved. After its rest nobody is at their other ends, and a process that
//! waits for somebody to say something would wait for ever.
//!
//! The stack leaves a list of them when the link of its guest ends. The one that serves the restored guest sends a
//! segment from nowhere to each; the guest answers with what it expects (RFC 9293, section 3.10.7.4), and that answer
//! belongs to no connection, so it is answered with a reset that the guest believes.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smoltcp::wire::EthernetAddress;

use crate::packet;

/// Name of the list in the directory of the log.
const FILE: &str = "connections.json";

/// Connections and where their guest is.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stale {
    pub(crate) guest: [u8; 6],
    /// Of the guest, and the other end.
    pub(crate) connections: Vec<(SocketAddrV4, SocketAddrV4)>,
}

impl Stale {
    /// Takes the list out of the directory.
    pub(crate) fn take(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let list = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Err(error) = remove(&path) {
            tracing::warn!(%error, path = %path.display(), "cannot remove a list of connections");
        }
        list.unwrap_or_default()
    }

    /// Leaves the list there.
    pub(crate) fn leave(&self, directory: &Path) {
        let path = directory.join(FILE);
        let left = if self.connections.is_empty() {
            remove(&path)
        } else {
            serde_json::to_vec(self).map_err(io::Error::other).and_then(|bytes| fs::write(&path, bytes))
        };
        if let Err(error) = left {
            tracing::warn!(%error, path = %path.display(), "cannot leave a list of connections");
        }
    }

    /// Frames for each connection.
    pub(crate) fn probes(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let guest = EthernetAddress(self.guest);
        // At opposite ends of the numbers: one of them is outside of what is expected, and in the future.
        let probes = move |(here, there): &(SocketAddrV4, SocketAddrV4)| {
            [0, i32::MIN].map(|number| packet::probe(guest, *there, *here, number))
        };
        self.connections.iter().flat_map(probes)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
