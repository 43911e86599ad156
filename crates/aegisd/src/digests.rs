//! Digests of large files that rarely change, remembered by what `stat` says of them. Everything here blocks.
//!
//! They outlive the daemon in `data/digests.json`: the first start after `aegis up` must not read a whole kernel.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use aegis_config::Home;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::launcher::files;

const FILE: &str = "digests.json";
const READ_BYTES: usize = 256 << 10;

/// Tells a file from its replacement without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileStamp {
    fn of(meta: &Metadata) -> Self {
        let changed = (meta.ctime(), meta.ctime_nsec());
        Self { device: meta.dev(), inode: meta.ino(), size: meta.size(), changed }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: FileStamp,
    digest: String,
}

/// Remembers the digests of files.
#[derive(Debug)]
pub(crate) struct Digests {
    file: PathBuf,
    known: Mutex<HashMap<PathBuf, Known>>,
    /// Held while a file is read, so that two who need one digest do not both read the file.
    reading: Mutex<()>,
}

impl Digests {
    /// What an earlier daemon of this home knew. An unreadable file is an empty one.
    pub(crate) fn open(home: &Home) -> Self {
        let file = home.data().join(FILE);
        let known = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { file, known: Mutex::new(known.unwrap_or_default()), reading: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.known.lock().expect("no code panics while it holds this")
    }

    /// `sha256:` and the hexadecimal digest of the file, if that takes no reading of it.
    pub(crate) fn remembered(&self, path: &Path) -> io::Result<Option<String>> {
        let stamp = FileStamp::of(&fs::metadata(path)?);
        let known = self.known();
        Ok(known.get(path).filter(|known| known.stamp == stamp).map(|known| known.digest.clone()))
    }

    /// `sha256:` and the hexadecimal digest of the file. Reads all of it once for each of its versions.
    pub(crate) fn of(&self, path: &Path) -> io::Result<String> {
        if let Some(digest) = self.remembered(path)? {
            return Ok(digest);
        }
        let _reading = self.reading.lock().expect("no code panics while it holds this");
        if let Some(digest) = self.remembered(path)? {
            return Ok(digest);
        }
        let file = File::open(path)?;
        let stamp = FileStamp::of(&file.metadata()?);
        let digest = sha256(&file)?;
        let text = {
            let mut known = self.known();
            known.insert(path.to_owned(), Known { stamp, digest: digest.clone() });
            known.retain(|path, _| path.exists());
            serde_json::to_vec(&*known)?
        };
        if let Err(error) = files::write_atomically(&self.file, &text) {
            tracing::warn!(%error, path = %self.file.display(), "cannot keep digests for the next start");
        }
        Ok(digest)
    }
}

fn sha256(file: &File) -> io::Result<String> {
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut hasher = Sha256::new();
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let count = bytes.len();
        reader.consume(count);
    }
    Ok(format!("sha256:{}", hex(&hasher.finalize())))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_digest_follows_its_file_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::resolve(Some(dir.path().join("home"))).unwrap();
        home.ensure().unwrap();
        let file = dir.path().join("kernel");
        fs::write(&file, "abc").unwrap();
        let digests = Digests::open(&home);
        assert_eq!(digests.remembered(&file).unwrap(), None);
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digests.of(&file).unwrap(), abc);
        assert_eq!(Digests::open(&home).remembered(&file).unwrap().as_deref(), Some(abc));
        fs::write(&file, "abcd").unwrap();
        assert_eq!(digests.remembered(&file).unwrap(), None);
        assert_ne!(digests.of(&file).unwrap(), abc);
        fs::remove_file(&file).unwrap();
        assert!(digests.of(&file).is_err());
    }
}
