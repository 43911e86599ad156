//! Shutting the process in, before the guest runs: the worker and the VMM that it starts lose everything that
//! they do not need.
//!
//! Each layer is best effort of the kernel at hand and reported in [`Confinement`]; none is a reason not to boot.
//! All of them work without privileges. They apply to the calling thread and to what it starts later, so
//! [`apply`] is called before any other thread exists.

mod capabilities;
mod cgroup;
mod limits;
mod paths;
mod seccomp;

pub use cgroup::Scope;

use aegis_proto::worker::{Confinement, Restore};
use aegis_types::{Mount, NetSetup, VmSpec};

/// Confines the calling thread to what this VM needs, and to what it is restored from. The scope has to be kept until the VM has ended.
/// With a network, sockets beyond the machine stay possible until [`go_offline`].
/// The mounts can be reached until [`leave_mounts`].
pub fn apply(
    vm: &VmSpec,
    restore: Option<&Restore>,
    net: Option<&NetSetup>,
    mounts: &[Mount],
) -> (Confinement, Option<Scope>) {
    limits::apply();
    // First: joining a cgroup writes outside of what the other layers allow.
    let scope = Scope::enter(vm);
    let no_new_privs = report("no_new_privs", rustix::thread::set_no_new_privs(true)).is_some();
    // Not reported: whoever is no root has nothing to drop.
    let _ = report("drop of capabilities", capabilities::drop_all());
    let landlock_abi =
        report("Landlock", paths::restrict(vm, restore, net, mounts, scope.as_ref())).unwrap_or(0);
    // Last: it takes away the system calls of the others.
    let seccomp = report("seccomp", seccomp::apply(net.is_some())).is_some();
    let cgroup = scope.as_ref().map(|scope| scope.path().to_owned());
    (Confinement { landlock_abi, seccomp, no_new_privs, cgroup }, scope)
}

/// Takes the mounts from the calling thread and from what it starts later; other threads keep them.
pub fn leave_mounts(vm: &VmSpec, restore: Option<&Restore>, net: Option<&NetSetup>, scope: Option<&Scope>) {
    let _ = report("Landlock without mounts", paths::restrict(vm, restore, net, &[], scope));
}

/// Takes sockets beyond the machine from the calling thread and from what it starts later. Other threads keep them.
pub fn go_offline() {
    let _ = report("Landlock without TCP", paths::no_tcp());
    let _ = report("seccomp without a network", seccomp::go_offline());
}

fn report<T, E: std::error::Error>(layer: &str, outcome: Result<T, E>) -> Option<T> {
    outcome.inspect_err(|e| tracing::warn!("no {layer}: {}", crate::boot::message_of(e))).ok()
}
