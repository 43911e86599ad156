//! What a worker leaves in its runtime directory for a daemon that was not there: who it is, and how it ended.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aegis_proto::worker::{EXIT_FILE, Exited, IDENTITY_FILE, WorkerIdentity};
use aegis_types::VmId;
use serde::Serialize;

/// Says which process runs this VM.
pub(crate) fn write_identity(runtime_dir: &Path, vm: &VmId) -> io::Result<()> {
    let start_ticks = WorkerIdentity::start_ticks(&fs::read("/proc/self/stat")?)
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "unexpected form of /proc/self/stat"))?;
    let identity = WorkerIdentity { pid: std::process::id(), start_ticks, vm_id: vm.clone() };
    write(runtime_dir, IDENTITY_FILE, &identity)
}

/// Says how it ended.
pub(crate) fn write_exit(runtime_dir: &Path, exited: &Exited) -> io::Result<()> {
    write(runtime_dir, EXIT_FILE, exited)
}

/// In one step: a reader sees all of it or nothing.
fn write(runtime_dir: &Path, name: &str, note: &impl Serialize) -> io::Result<()> {
    let fresh = runtime_dir.join(format!("{name}.new"));
    let text = serde_json::to_vec(note)?;
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?.write_all(&text)?;
    fs::rename(&fresh, runtime_dir.join(name))
}
