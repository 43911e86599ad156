//! The files of an image archive, spooled, by the names they have in it.
//!
//! Manifests tend to come after what they refer to, so everything is written down first. On the host the files are
//! called by numbers; the archive's names are keys of a map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use aegis_types::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::archive::{Content, End, EntryKind, Reader, Spent};
use crate::compression::decompressed;
use crate::error::{ArchiveProblem, EntryProblem, ImageError, printable};
use crate::limits::Limits;
use crate::store::files::file_error;

/// A hundred images of a hundred layers, three files each.
const MEMBERS_MAX: u64 = 30_000;
const PATH_BYTES_MAX: usize = 4096;
/// Manifests, indices and configurations.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Old versions of Docker write one link where a layer occurs again.
const LINKS_MAX: usize = 8;
const COPY_BYTES: usize = 64 << 10;

/// All files of an archive.
pub(super) struct Members {
    dir: TempDir,
    by_path: BTreeMap<Vec<u8>, Member>,
}

enum Member {
    File(Spooled),
    /// Path of what it leads to.
    Link(Vec<u8>),
}

/// A file of the archive, as it was.
#[derive(Debug, Clone)]
pub(super) struct Spooled {
    pub file: PathBuf,
    pub digest: Digest,
    pub size: u64,
}

impl Members {
    /// Reads `archive` (plain, gzip or zstd) to its end.
    pub(super) fn spool(archive: impl Read, dir: TempDir, limits: &Limits) -> Result<Members, ImageError> {
        let limits = Limits { max_entries: limits.max_entries.min(MEMBERS_MAX), ..limits.clone() };
        let (_, tar) = decompressed(Box::new(archive))?;
        let mut reader = Reader::new(tar, &limits, Spent::default(), End::Marker);
        let mut members = Members { dir, by_path: BTreeMap::new() };
        while let Some(entry) = reader.next_entry()? {
            let problem = |problem| ImageError::Entry { entry: printable(&entry.path), problem };
            let path = within(&[], &entry.path, false).map_err(problem)?;
            let member = match &entry.kind {
                EntryKind::File(content) => {
                    let file = members.dir.path().join(members.by_path.len().to_string());
                    Member::File(spool(&mut reader, content, file)?)
                }
                EntryKind::HardLink { target } => Member::Link(within(&[], target, false).map_err(problem)?),
                EntryKind::Symlink { target } => {
                    // Of `a/b` it is relative to `a`. One that leads out of the archive leads nowhere.
                    let parent = path.iter().rposition(|&b| b == b'/').map_or(&[][..], |at| &path[..at]);
                    Member::Link(within(parent, target, true).map_err(problem)?)
                }
                _ => continue,
            };
            members.by_path.insert(path, member);
        }
        reader.finish()?;
        Ok(members)
    }

    /// The file of this name, through links within the archive.
    pub(super) fn get(&self, path: &str) -> Result<&Spooled, ImageError> {
        let problem = |problem| ImageError::Archive { member: printable(path.as_bytes()), problem };
        let mut at = within(&[], path.as_bytes(), false).map_err(|_| problem(ArchiveProblem::Missing))?;
        for _ in 0..LINKS_MAX {
            match self.by_path.get(&at) {
                Some(Member::File(file)) => return Ok(file),
                Some(Member::Link(target)) => at.clone_from(target),
                None => return Err(problem(ArchiveProblem::Missing)),
            }
        }
        Err(problem(ArchiveProblem::TooMany { max: LINKS_MAX, what: "links on the way" }))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.get(path).is_ok()
    }

    /// A whole document, bounded.
    pub(super) fn document(&self, path: &str) -> Result<Vec<u8>, ImageError> {
        let member = self.get(path)?;
        if member.size > DOCUMENT_BYTES_MAX {
            let problem = ArchiveProblem::TooLarge { max: DOCUMENT_BYTES_MAX };
            return Err(ImageError::Archive { member: printable(path.as_bytes()), problem });
        }
        std::fs::read(&member.file).map_err(file_error("read", &member.file))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ImageError> {
        serde_json::from_slice(&self.document(path)?).map_err(|error| ImageError::Archive {
            member: printable(path.as_bytes()),
            problem: ArchiveProblem::Json { why: printable(error.to_string().as_bytes()) },
        })
    }
}

/// The first bytes of a file, by which formats are told apart.
pub(super) fn start(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(6).read_to_end(&mut start));
    read.map_err(file_error("read", path))?;
    Ok(start)
}

fn spool<R: Read>(
    reader: &mut Reader<'_, R>,
    content: &Content,
    file: PathBuf,
) -> Result<Spooled, ImageError> {
    let mut out = BufWriter::new(File::create(&file).map_err(file_error("create", &file))?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        out.write_all(bytes).map_err(file_error("write", &file))
    };
    let zeros = [0; 4096];
    let hole = |put: &mut dyn FnMut(&[u8]) -> Result<(), ImageError>, mut left: u64| {
        while left > 0 {
            let piece = left.min(zeros.len() as u64);
            put(&zeros[..piece as usize])?;
            left -= piece;
        }
        Ok::<_, ImageError>(())
    };
    let mut position = 0;
    for segment in &content.segments {
        hole(&mut put, segment.offset - position)?;
        let mut left = segment.len;
        while left > 0 {
            let piece = &mut buffer[..left.min(COPY_BYTES as u64) as usize];
            reader.read_data(piece)?;
            put(piece)?;
            left -= piece.len() as u64;
        }
        position = segment.offset + segment.len;
    }
    hole(&mut put, content.size - position)?;
    let out = out.into_inner().map_err(|e| file_error("write", &file)(e.into_error()))?;
    // It may become a blob, and those are complete.
    out.sync_all().map_err(file_error("write", &file))?;
    Ok(Spooled { file, digest: Digest::from_sha256(&hasher.finalize().into()), size: content.size })
}

/// `path` seen from the directory `base`, both within the archive, without `.` and empty components. `up` allows `..`.
fn within(base: &[u8], path: &[u8], up: bool) -> Result<Vec<u8>, EntryProblem> {
    if path.contains(&0) {
        return Err(EntryProblem::Nul);
    }
    if base.len() + path.len() > PATH_BYTES_MAX {
        return Err(EntryProblem::NameTooLong { max: PATH_BYTES_MAX });
    }
    let base = if path.starts_with(b"/") { &[][..] } else { base };
    let mut parts: Vec<&[u8]> = base.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if !up => return Err(EntryProblem::ParentComponent),
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn paths_stay_within_the_archive() {
        let path = |base: &str, path: &str| {
            String::from_utf8(within(base.as_bytes(), path.as_bytes(), true).unwrap()).unwrap()
        };
        assert_eq!(path("", "./a//b/"), "a/b");
        assert_eq!(path("a/b", "../c/layer.tar"), "a/c/layer.tar");
        assert_eq!(path("a", "../../../etc/passwd"), "etc/passwd");
        assert_eq!(path("a/b", "/c"), "c");
        assert!(within(b"", b"a/../b", false).is_err());
        assert!(within(b"", b"a\0b", true).is_err());
    }
}
