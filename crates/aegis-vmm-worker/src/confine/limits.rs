//! Resource limits and the file mode mask.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Streams of guests and clients, several descriptors each, and every file that a guest has open in a directory of the host.
const OPEN_FILES_MAX: u64 = 32 * 1024;

/// Lowers what can be lowered. Nothing is raised above the limits that we were given.
pub(super) fn apply() {
    umask(Mode::from_raw_mode(0o077));
    // A core file would hold the memory of the guest.
    limit(Resource::Core, 0);
    limit(Resource::Nofile, OPEN_FILES_MAX);
}

fn limit(resource: Resource, max: u64) {
    let max = getrlimit(resource).maximum.map_or(max, |now| now.min(max));
    if let Err(e) = setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) }) {
        tracing::warn!("no limit on {resource:?}: {e}");
    }
}
