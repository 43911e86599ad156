//! Small file helpers. Everything is written beside its place and renamed, so that a reader or an interrupted build
//! never meets half a file, and a running program's file is replaced rather than overwritten.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Makes a directory and its parents.
pub(crate) fn ensure_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// The name under which `path` is written before it is complete.
pub(crate) fn scratch(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", process::id()));
    path.with_file_name(name)
}

/// Calls `fill` with a path beside `path`, then moves the result into place.
pub(crate) fn replace_with(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(dir) = path.parent() {
        ensure_dir(dir)?;
    }
    let scratch = scratch(path);
    let filled = fill(&scratch).and_then(|()| {
        fs::rename(&scratch, path).with_context(|| format!("cannot write {}", path.display()))
    });
    if filled.is_err() {
        // Best effort: the error that counts is the one being returned.
        drop(fs::remove_file(&scratch));
    }
    filled
}

/// Keeps a second build in the same checkout waiting until the first is done. Released when dropped.
pub(crate) fn lock(path: &Path) -> Result<File> {
    ensure_dir(path.parent().unwrap_or(path))?;
    let lock = File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(lock)
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_with(path, |scratch| {
        fs::write(scratch, bytes).with_context(|| format!("cannot write {}", scratch.display()))
    })
}

/// Writes a file through a buffered writer.
pub(crate) fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    replace_with(path, |scratch| {
        let file = File::create(scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush().with_context(|| format!("cannot write {}", scratch.display()))
    })
}

/// Copies a file with its mode.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    replace_with(to, |scratch| {
        fs::copy(from, scratch)
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    })
}

/// Copies a file unless the destination already has the same contents: what did not change keeps its times.
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let same = to.exists() && sha256(from)? == sha256(to)?;
    if same { Ok(()) } else { copy(from, to) }
}

/// SHA-256 over the blocks of a sparse file that are not all zeros, each preceded by its number (64 bits, little
/// endian). Reads only what is allocated, where [`sha256`] would have to hash gigabytes of nothing.
pub(crate) fn sha256_blocks(path: &Path) -> Result<String> {
    const BLOCK: u64 = 4096;
    let open = File::open(path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    loop {
        match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            // The end of the last data.
            Err(rustix::io::Errno::NXIO) => return Ok(hex(&hash.finalize())),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(data) => at = data / BLOCK * BLOCK,
        }
        file.seek(SeekFrom::Start(at))?;
        let mut len = 0;
        while len < block.len() {
            match file.read(&mut block[len..])? {
                0 => break,
                n => len += n,
            }
        }
        if block[..len].iter().any(|byte| *byte != 0) {
            hash.update((at / BLOCK).to_le_bytes());
            hash.update(&block[..len]);
        }
        at += BLOCK;
    }
}

/// SHA-256 of a file's contents, holes read as zeros.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn holes_do_not_change_the_hash_of_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, full) = (dir.path().join("sparse"), dir.path().join("full"));
        let mut contents = vec![0; 1 << 20];
        contents[700_000] = 1;
        fs::write(&full, &contents).unwrap();
        let mut file = File::create(&sparse).unwrap();
        file.set_len(1 << 20).unwrap();
        file.seek(SeekFrom::Start(700_000)).unwrap();
        file.write_all(&[1]).unwrap();
        assert_eq!(sha256_blocks(&sparse).unwrap(), sha256_blocks(&full).unwrap());
        file.seek(SeekFrom::Start(300_000)).unwrap();
        file.write_all(&[1]).unwrap();
        assert_ne!(sha256_blocks(&sparse).unwrap(), sha256_blocks(&full).unwrap());
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |out| {
            out.write_all(b"half")?;
            anyhow::bail!("no")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
