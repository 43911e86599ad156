//! From archives to an image file.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::archive::{Content, End, Entry, EntryKind, Reader, Spent};
use crate::compression::decompressed;
use crate::erofs::{ImageWriter, encode_xattrs};
use crate::error::{ImageError, printable};
use crate::limits::Limits;
use crate::tree::{Attributes, FileData, Node, Tree};

/// Content is passed on in pieces of this many bytes.
const COPY_BYTES: usize = 64 << 10;

/// What came of an archive, or of all layers.
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

/// Writes the tree that `tar` (plain, gzip or zstd) describes to `out` as an EROFS image.
///
/// `out` appears complete, with mode 0644, or not at all; an existing file is replaced. The same archive always gives
/// the same bytes. Contents pass through temporary files beside `out`; memory holds names and attributes only.
///
/// # Errors
/// See [`ImageError`]; those about the archive name the entry.
pub fn build_erofs(tar: impl Read, out: &Path, limits: &Limits) -> Result<BuildSummary, ImageError> {
    let (_, tar) = decompressed(Box::new(tar))?;
    let mut builder = Builder::create(out, limits)?;
    builder.apply(tar, End::Marker)?;
    builder.finish()
}

/// An image under construction, layer by layer.
pub(crate) struct Builder<'a> {
    out: &'a Path,
    limits: &'a Limits,
    temp: NamedTempFile,
    writer: ImageWriter,
    tree: Tree<'a>,
    spent: Spent,
    buffer: Vec<u8>,
    entries: u64,
    xattrs_skipped: u64,
}

impl<'a> Builder<'a> {
    pub(crate) fn create(out: &'a Path, limits: &'a Limits) -> Result<Self, ImageError> {
        let file_error = |action| move |source| file_error(action, out, source);
        let directory = match out.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let temp = NamedTempFile::new_in(&directory).map_err(file_error("create"))?;
        let spool =
            tempfile::tempfile_in(&directory).map_err(file_error("create a temporary file beside"))?;
        let image = temp.as_file().try_clone().map_err(file_error("write"))?;
        Ok(Builder {
            out,
            limits,
            temp,
            writer: ImageWriter::new(image, spool).map_err(file_error("write"))?,
            tree: Tree::new(limits),
            spent: Spent::default(),
            buffer: vec![0; COPY_BYTES],
            entries: 0,
            xattrs_skipped: 0,
        })
    }

    /// Puts the layer that `tar` describes over what is there. All of `tar` is read.
    pub(crate) fn apply(&mut self, tar: impl Read, end: End) -> Result<(), ImageError> {
        self.tree.begin_layer()?;
        let mut reader = Reader::new(tar, self.limits, self.spent, end);
        while let Some(entry) = reader.next_entry()? {
            self.entries += 1;
            self.add(&mut reader, entry)?;
        }
        self.spent = reader.finish()?;
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<BuildSummary, ImageError> {
        let Builder { out, temp, writer, tree, entries, xattrs_skipped, .. } = self;
        let file_error = |action| move |source| file_error(action, out, source);
        let totals = writer.finish(&tree).map_err(file_error("write"))?;
        // Explicit: the mode must not depend on the umask.
        temp.as_file()
            .set_permissions(Permissions::from_mode(0o644))
            .map_err(file_error("set the mode of"))?;
        temp.as_file().sync_all().map_err(file_error("write"))?;
        temp.persist(out).map_err(|e| file_error("create")(e.error))?;
        Ok(BuildSummary { entries, inodes: totals.inodes, size_bytes: totals.size_bytes, xattrs_skipped })
    }

    fn add<R: Read>(&mut self, reader: &mut Reader<'_, R>, entry: Entry) -> Result<(), ImageError> {
        let Entry { path, kind, mode, uid, gid, mtime, xattrs, xattrs_skipped } = entry;
        if self.tree.whiteout(&path)? {
            return Ok(());
        }
        if let EntryKind::HardLink { target } = kind {
            // What the link says about the inode repeats what the first name said.
            return self.tree.insert_hard_link(&path, &target);
        }
        let (xattrs, unknown) = encode_xattrs(&xattrs)
            .map_err(|problem| ImageError::Entry { entry: printable(&path), problem })?;
        let node = match kind {
            EntryKind::File(content) => Node::File(self.store(reader, &content, xattrs.len())?),
            EntryKind::Directory => Node::Directory(Default::default()),
            EntryKind::Symlink { target } => Node::Symlink(target.into()),
            EntryKind::CharDevice(device) => Node::CharDevice(device),
            EntryKind::BlockDevice(device) => Node::BlockDevice(device),
            EntryKind::Fifo => Node::Fifo,
            EntryKind::HardLink { .. } => unreachable!("handled above"),
        };
        self.tree.insert(&path, Attributes { mode, uid, gid, mtime, xattrs }, node)?;
        self.xattrs_skipped += xattrs_skipped + unknown;
        Ok(())
    }

    fn store<R: Read>(
        &mut self,
        reader: &mut Reader<'_, R>,
        content: &Content,
        xattr_len: usize,
    ) -> Result<FileData, ImageError> {
        let Builder { writer, buffer, out, .. } = self;
        let write_error = |source| file_error("write", out, source);
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

fn file_error(action: &'static str, path: &Path, source: io::Error) -> ImageError {
    ImageError::File { action, path: path.to_owned(), source }
}
