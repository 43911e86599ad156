//! The file of an unfinished download.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_types::Digest;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::error::Problem;

/// How often a file that another download has is looked at.
const LOCK_POLL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 1 << 20;

/// A download that is under way. While it exists, no other one writes the file: it is locked.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: tokio::fs::File,
    /// Of everything that is in the file.
    hasher: Sha256,
    length: u64,
}

impl Partial {
    /// Opens or creates (mode 0600) the file, waiting while another download has it, and reads what is in it. A file
    /// that is longer than `size` cannot be a beginning, and is emptied.
    pub(crate) async fn open(path: &Path, size: u64) -> Result<Self, Problem> {
        let opened =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
        let file = opened.map_err(failed("create", path))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A blocking wait could not be given up when the download is.
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
                Err(TryLockError::Error(e)) => return Err(failed("lock", path)(e)),
            }
        }
        let read = tokio::task::spawn_blocking(move || rehash(file, size)).await;
        let (file, hasher, length) =
            read.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(failed("read", path))?;
        Ok(Self { path: path.to_owned(), file: tokio::fs::File::from_std(file), hasher, length })
    }

    /// Bytes in the file.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.file.write_all(bytes).await.map_err(failed("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Hands everything to the system, so that errors of the disk are seen.
    pub(crate) async fn flush(&mut self) -> Result<(), Problem> {
        self.file.flush().await.map_err(failed("write", &self.path))
    }

    /// Begins anew.
    pub(crate) async fn discard(&mut self) -> Result<(), Problem> {
        self.flush().await?;
        self.file.set_len(0).await.map_err(failed("empty", &self.path))?;
        self.file.rewind().await.map_err(failed("empty", &self.path))?;
        self.hasher = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// The digest of what is in the file.
    pub(crate) fn digest(&self) -> Digest {
        Digest::from_sha256(&self.hasher.clone().finalize().into())
    }

    /// Gives the file its final name, once it is on the disk.
    pub(crate) async fn complete(self, target: &Path) -> Result<(), Problem> {
        self.file.sync_all().await.map_err(failed("write", &self.path))?;
        tokio::fs::rename(&self.path, target).await.map_err(failed("create", target))?;
        let directory = target.parent().unwrap_or(Path::new(".")).to_owned();
        let sync = tokio::task::spawn_blocking(move || File::open(&directory)?.sync_all()).await;
        sync.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(failed("create", target))
    }

    /// Removes the file, which is of no use.
    pub(crate) async fn remove(self) {
        // What cannot be removed is in the way of nothing, and gone with the next garbage collection.
        let _ = tokio::fs::remove_file(&self.path).await;
    }
}

fn rehash(mut file: File, size: u64) -> io::Result<(File, Sha256, u64)> {
    let mut hasher = Sha256::new();
    let length = file.metadata()?.len();
    if length > size {
        file.set_len(0)?;
        return Ok((file, hasher, 0));
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut read = 0;
    while read < length {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        read += count as u64;
    }
    file.seek(SeekFrom::Start(read))?;
    Ok((file, hasher, read))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let path = path.to_owned();
    move |source| Problem::File { action, path, source }
}
