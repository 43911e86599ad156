//! The note that a worker leaves behind, for a daemon that was not there at the end.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use aegis_proto::worker::{EXIT_FILE, Exited};

/// Writes the note in one step: a reader sees all of it or nothing.
pub(crate) fn write(runtime_dir: &Path, exited: &Exited) -> io::Result<()> {
    let fresh = runtime_dir.join(format!("{EXIT_FILE}.new"));
    let text = serde_json::to_vec(exited)?;
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?.write_all(&text)?;
    fs::rename(&fresh, runtime_dir.join(EXIT_FILE))
}
