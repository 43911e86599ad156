//! Who was given which secret when: `data/logs/audit.ndjson`, and one older file. Lines are only ever added. Blocks.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aegis_api::AuditEntry;

const FILE: &str = "audit.ndjson";
const OLDER: &str = "audit.ndjson.1";
/// Size from which the file becomes the older one, in bytes: about 50 000 boots.
const FILE_MAX: u64 = 10 << 20;

pub(super) struct Audit {
    current: PathBuf,
    older: PathBuf,
    /// One line after the other.
    writing: Mutex<()>,
}

impl Audit {
    pub(super) fn new(logs: &Path) -> Self {
        Self { current: logs.join(FILE), older: logs.join(OLDER), writing: Mutex::default() }
    }

    /// Adds a line; it is with the kernel when this returns.
    pub(super) fn append(&self, entry: &AuditEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = File::options().append(true).create(true).mode(0o600).open(&self.current)?;
        let size = file.metadata()?.len();
        if size > 0 && size + line.len() as u64 > FILE_MAX {
            fs::rename(&self.current, &self.older)?;
            file = File::options().append(true).create(true).mode(0o600).open(&self.current)?;
        }
        let size = file.metadata()?.len();
        file.write_all(&line).inspect_err(|_| {
            // Half a line must not join the next one.
            let _ = file.set_len(size);
        })
    }

    /// The newest lines, newest last.
    pub(super) fn newest(&self, count: usize) -> io::Result<Vec<AuditEntry>> {
        let mut entries = Vec::new();
        for path in [&self.older, &self.current] {
            match fs::read(path) {
                Ok(bytes) => {
                    let lines = bytes.split(|&b| b == b'\n');
                    entries.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(entries.split_off(entries.len().saturating_sub(count)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_api::AuditEvent;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn lines_are_added_and_a_full_file_becomes_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path());
        assert_eq!(audit.newest(10).unwrap(), []);
        let entry = |name: &str| AuditEntry {
            ts: Timestamp::UNIX_EPOCH,
            event: AuditEvent::Set,
            secrets: vec![name.to_owned()],
            instance_id: None,
            handle: None,
            vm_id: None,
        };
        audit.append(&entry("A")).unwrap();
        File::options().write(true).open(dir.path().join(FILE)).unwrap().set_len(FILE_MAX).unwrap();
        audit.append(&entry("B")).unwrap();
        audit.append(&entry("C")).unwrap();
        assert_eq!(audit.newest(10).unwrap(), ["A", "B", "C"].map(entry));
        assert_eq!(audit.newest(2).unwrap(), ["B", "C"].map(entry));
        assert!(dir.path().join(OLDER).exists());
    }
}
