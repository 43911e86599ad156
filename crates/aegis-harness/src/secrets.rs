//! Files of secrets: in a small file system in memory, which is made before the first of them is written and never is part
//! of a disk.

use std::path::Path;

use aegis_proto::control::SecretContent;
use aegis_types::SECRETS_DIR;

use crate::sys::{Mount, MountFlags, Sys};

const MOUNT: Mount<'static> = Mount {
    source: "tmpfs",
    target: SECRETS_DIR,
    kind: "tmpfs",
    flags: MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC),
    // More than a message of the host holds.
    options: "mode=0755,size=4m",
};

/// Writes the files. Called before any process runs; a second time only when the first start failed, and then what was
/// mounted before is out of reach.
///
/// # Errors
/// The text says what could not be made.
pub(crate) fn write(sys: &dyn Sys, files: &[SecretContent]) -> Result<(), String> {
    if files.is_empty() {
        return Ok(());
    }
    sys.mount(&MOUNT).map_err(|error| format!("cannot mount {SECRETS_DIR}: {error}"))?;
    for SecretContent { path, value } in files {
        let path = path.as_str();
        sys.write_private_file(Path::new(path), value.expose())
            .map_err(|error| format!("cannot write {path}: {error}"))?;
    }
    Ok(())
}
