//! Capabilities: a worker that runs as root keeps none, and cannot get them back through an exec because of
//! `no_new_privs`. Unprivileged users have none to lose.

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Drops every capability of the calling thread. What it still owns stays reachable by ordinary file permissions.
pub(super) fn drop_all() -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}
