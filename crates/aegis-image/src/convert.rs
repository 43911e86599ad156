//! From archive to image file.

use std::fs::Permissions;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use tempfile::NamedTempFile;

use crate::archive::{Content, Entry, EntryKind, Reader};
use crate::erofs::{ImageWriter, encode_xattrs};
use crate::error::{ImageError, printable};
use crate::limits::Limits;
use crate::tree::{Attributes, FileData, Node, Tree};

const READ_BUFFER_BYTES: usize = 256 << 10;
/// Content is passed on in pieces of this many bytes.
const COPY_BYTES: usize = 64 << 10;

/// What came of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildSummary {
    /// Archive members read.
    pub entries: u64,
    /// Inodes in the image.
    pub inodes: u64,
    /// Length of the image file.
    pub size_bytes: u64,
    /// Extended attributes left out because Linux has no such namespace, or because the archive holds them only as
    /// text (ACLs with user names).
    pub xattrs_skipped: u64,
}

/// Writes the tree that `tar` (plain or gzip) describes to `out` as an EROFS image.
///
/// `out` appears complete, with mode 0644, or not at all; an existing file is replaced. The same archive always gives
/// the same bytes. Contents pass through temporary files beside `out`; memory holds names and attributes only.
///
/// # Errors
/// See [`ImageError`]; those about the archive name the entry.
pub fn build_erofs(tar: impl Read, out: &Path, limits: &Limits) -> Result<BuildSummary, ImageError> {
    build(Box::new(tar), out, limits)
}

fn build(tar: Box<dyn Read + '_>, out: &Path, limits: &Limits) -> Result<BuildSummary, ImageError> {
    let input = decompressed(tar)?;
    let file_error = |action| move |source| ImageError::File { action, path: out.to_owned(), source };
    let directory = match out.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let temp = NamedTempFile::new_in(&directory).map_err(file_error("create"))?;
    let spool = tempfile::tempfile_in(&directory).map_err(file_error("create a temporary file beside"))?;
    let image = temp.as_file().try_clone().map_err(file_error("write"))?;
    let mut builder = Builder {
        reader: Reader::new(input, limits),
        writer: ImageWriter::new(image, spool).map_err(file_error("write"))?,
        tree: Tree::new(limits),
        buffer: vec![0; COPY_BYTES],
        out,
    };
    let (mut entries, mut xattrs_skipped) = (0, 0);
    while let Some(entry) = builder.reader.next_entry()? {
        entries += 1;
        xattrs_skipped += builder.add(entry)?;
    }
    builder.reader.drain()?;
    let totals = builder.writer.finish(&builder.tree).map_err(file_error("write"))?;
    // Explicit: the mode must not depend on the umask.
    temp.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(file_error("set the mode of"))?;
    temp.as_file().sync_all().map_err(file_error("write"))?;
    temp.persist(out).map_err(|e| file_error("create")(e.error))?;
    Ok(BuildSummary { entries, inodes: totals.inodes, size_bytes: totals.size_bytes, xattrs_skipped })
}

struct Builder<'a> {
    reader: Reader<'a, Box<dyn Read + 'a>>,
    writer: ImageWriter,
    tree: Tree<'a>,
    buffer: Vec<u8>,
    out: &'a Path,
}

impl Builder<'_> {
    /// Adds one entry; returns how many attributes were left out.
    fn add(&mut self, entry: Entry) -> Result<u64, ImageError> {
        let Entry { path, kind, mode, uid, gid, mtime, xattrs, xattrs_skipped } = entry;
        if let EntryKind::HardLink { target } = kind {
            // What the link says about the inode repeats what the first name said.
            self.tree.insert_hard_link(&path, &target)?;
            return Ok(0);
        }
        let (xattrs, unknown) = encode_xattrs(&xattrs)
            .map_err(|problem| ImageError::Entry { entry: printable(&path), problem })?;
        let node = match kind {
            EntryKind::File(content) => Node::File(self.store(&content, xattrs.len())?),
            EntryKind::Directory => Node::Directory(Default::default()),
            EntryKind::Symlink { target } => Node::Symlink(target.into()),
            EntryKind::CharDevice(device) => Node::CharDevice(device),
            EntryKind::BlockDevice(device) => Node::BlockDevice(device),
            EntryKind::Fifo => Node::Fifo,
            EntryKind::HardLink { .. } => unreachable!("handled above"),
        };
        self.tree.insert(&path, Attributes { mode, uid, gid, mtime, xattrs }, node)?;
        Ok(xattrs_skipped + unknown)
    }

    fn store(&mut self, content: &Content, xattr_len: usize) -> Result<FileData, ImageError> {
        let Builder { reader, writer, buffer, out, .. } = self;
        let write_error = |source| ImageError::File { action: "write", path: out.to_owned(), source };
        let mut file = writer.begin_file(content.size, xattr_len).map_err(write_error)?;
        let mut position = 0;
        for segment in &content.segments {
            file.hole(segment.offset - position).map_err(write_error)?;
            let mut left = segment.len;
            while left > 0 {
                let piece = &mut buffer[..left.min(COPY_BYTES as u64) as usize];
                reader.read_data(piece)?;
                file.write(piece).map_err(write_error)?;
                left -= piece.len() as u64;
            }
            position = segment.offset + segment.len;
        }
        file.hole(content.size - position).map_err(write_error)?;
        file.end().map_err(write_error)
    }
}

/// Looks at the first bytes and unpacks gzip.
fn decompressed<'r>(mut input: Box<dyn Read + 'r>) -> Result<Box<dyn Read + 'r>, ImageError> {
    let mut start = Vec::new();
    (&mut input).take(6).read_to_end(&mut start).map_err(ImageError::Read)?;
    let format = match &start[..] {
        [0x1f, 0x8b, ..] => "gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', 0] => "xz",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => "",
    };
    let input = BufReader::with_capacity(READ_BUFFER_BYTES, io::Cursor::new(start).chain(input));
    match format {
        "" => Ok(Box::new(input)),
        "gzip" => Ok(Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, MultiGzDecoder::new(input)))),
        format => Err(ImageError::Compressed { format }),
    }
}
