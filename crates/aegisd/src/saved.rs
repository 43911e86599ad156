//! Saved VMs on disk: whether the files that `aegis_proto::saved` names are complete and fit. Used for hibernated
//! instances and for templates. Everything here blocks.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aegis_proto::saved::{RAM_FILE, SAVED_FILE, SAVED_VERSION, STATE_FILE, SavedVm};
use aegis_types::Mib;
use sha2::{Digest as _, Sha256};

use crate::digests::hex;

/// Longest state of devices that is read to check it; QEMU writes some 50 KB.
const STATE_MAX: u64 = 64 << 20;

/// A saved VM cannot be used. The text completes "it cannot be used: ".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// Its description makes no sense.
    #[error("its description {} is damaged", .0.display())]
    Description(PathBuf),
    /// Another version of the format.
    #[error("it has format {0} and this is format {SAVED_VERSION}")]
    Version(u32),
    /// Saved state fits only the same machine.
    #[error("the VMM, the image or the machine has changed since")]
    Machine,
    /// The memory is not what was saved.
    #[error("its memory has {found} bytes instead of {expected}")]
    Memory {
        /// Length of the file.
        found: u64,
        /// Length that it must have.
        expected: u64,
    },
    /// The devices are not what was saved.
    #[error("the state of its devices is damaged")]
    Devices,
    /// The host may have gone down before all of it was on the disk.
    #[error("the host was restarted before its memory was safe on the disk")]
    NotDurable,
    /// Memory and disk belong together.
    #[error("its disk is gone")]
    NoDisk,
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The description of the saved VM in this directory, if there is one.
pub(crate) fn read(dir: &Path) -> Result<Option<SavedVm>, Unusable> {
    let path = dir.join(SAVED_FILE);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| Unusable::Description(path)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Unusable::Io { path, source }),
    }
}

/// Checks that the files in this directory are those that `saved` describes, and that a VM with this machine and this
/// much memory can go on from them. The memory is not read: only its length is checked.
pub(crate) fn check(dir: &Path, saved: &SavedVm, machine: &str, memory: Mib) -> Result<(), Unusable> {
    if saved.version != SAVED_VERSION {
        return Err(Unusable::Version(saved.version));
    }
    if saved.machine != machine {
        return Err(Unusable::Machine);
    }
    if !saved.durable && (saved.host_boot != host_boot() || host_boot().is_empty()) {
        return Err(Unusable::NotDurable);
    }
    let expected = bytes(memory);
    let found = length(&dir.join(RAM_FILE))?;
    if saved.ram_bytes != expected || found != expected {
        return Err(Unusable::Memory { found, expected });
    }
    let state = dir.join(STATE_FILE);
    let length = length(&state)?;
    if length != saved.state_bytes || length > STATE_MAX {
        return Err(Unusable::Devices);
    }
    let content = fs::read(&state).map_err(|source| Unusable::Io { path: state, source })?;
    if hex(&Sha256::digest(content)) != saved.state_sha256 {
        return Err(Unusable::Devices);
    }
    Ok(())
}

fn length(path: &Path) -> Result<u64, Unusable> {
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(source) => Err(Unusable::Io { path: path.to_owned(), source }),
    }
}

/// Memory in bytes.
pub(crate) fn bytes(memory: Mib) -> u64 {
    u64::from(memory) << 20
}

/// Tells this boot of the host from all others; empty where that cannot be told.
pub(crate) fn host_boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::fs::File;

    use aegis_types::VmId;

    use super::*;

    pub(crate) const STATE: &[u8] = b"devices";

    /// A complete saved VM in this directory, which exists.
    pub(crate) fn leave(dir: &Path, machine: &str, memory: Mib) -> SavedVm {
        File::create(dir.join(RAM_FILE)).unwrap().set_len(bytes(memory)).unwrap();
        fs::write(dir.join(STATE_FILE), STATE).unwrap();
        let saved = SavedVm {
            version: SAVED_VERSION,
            machine: machine.to_owned(),
            boot_id: VmId::from_random(1),
            ram_bytes: bytes(memory),
            state_bytes: STATE.len() as u64,
            state_sha256: hex(&Sha256::digest(STATE)),
            host_boot: host_boot().to_owned(),
            durable: false,
            generation: 1,
            saved_unix_ns: 1,
        };
        fs::write(dir.join(SAVED_FILE), serde_json::to_vec(&saved).unwrap()).unwrap();
        saved
    }

    #[test]
    fn only_a_complete_saved_vm_of_the_same_machine_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(read(dir).unwrap().is_none());
        let memory = Mib::new(128).unwrap();
        let saved = leave(dir, "m", memory);
        assert_eq!(read(dir).unwrap(), Some(saved.clone()));
        let verdict = |saved: &SavedVm| check(dir, saved, "m", memory).map_err(|e| e.to_string());
        assert_eq!(verdict(&saved), Ok(()));
        let refused = |saved: &SavedVm| verdict(saved).unwrap_err();
        assert!(refused(&SavedVm { version: 9, ..saved.clone() }).contains("format 9"));
        assert!(refused(&SavedVm { machine: "n".to_owned(), ..saved.clone() }).contains("has changed"));
        let earlier = SavedVm { host_boot: "earlier".to_owned(), ..saved.clone() };
        assert!(refused(&earlier).contains("restarted"));
        assert_eq!(verdict(&SavedVm { durable: true, ..earlier }), Ok(()));
        assert!(refused(&SavedVm { ram_bytes: 1, ..saved.clone() }).contains("bytes instead of"));

        fs::write(dir.join(STATE_FILE), b"DEVICES").unwrap();
        assert!(refused(&saved).contains("devices"));
        fs::write(dir.join(STATE_FILE), b"dev").unwrap();
        assert!(refused(&saved).contains("devices"));
        fs::remove_file(dir.join(STATE_FILE)).unwrap();
        assert!(refused(&saved).contains("cannot read"));
        leave(dir, "m", memory);
        File::options().write(true).open(dir.join(RAM_FILE)).unwrap().set_len(4096).unwrap();
        assert!(refused(&saved).contains("has 4096 bytes"));
        fs::write(dir.join(SAVED_FILE), "{").unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("damaged"));
    }
}
