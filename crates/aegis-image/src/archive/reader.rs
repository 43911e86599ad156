//! The stream of entries.

use std::io::{self, Read};

use super::header::{BLOCK, Header};
use super::pax::Pax;
use super::{Content, Device, Entry, EntryKind, Mtime, Segment, sparse};
use crate::error::{EntryProblem, ImageError, printable};
use crate::limits::Limits;

/// A path of 256 components is 64 KiB.
const LONG_NAME_BYTES_MAX: u64 = 128 << 10;
const PAX_BYTES_MAX: u64 = 4 << 20;
/// Linux encodes 12 bits of major and 20 bits of minor number.
const MAJOR_MAX: u64 = 0xfff;
const MINOR_MAX: u64 = 0xf_ffff;

/// What has been read so far, over all layers of an image, of what [`Limits`] allow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    headers: u64,
    /// Against [`Limits::max_bytes`].
    bytes: u64,
}

/// What may stand for the end of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Only the end marker: an archive that just stops is truncated.
    Marker,
    /// Also the end of the stream between two entries. For a stream whose digest is checked: some builders of images
    /// write no marker.
    MarkerOrStream,
}

/// Reads entries in order; the content of a file must be taken with [`Reader::read_data`] before the next entry, or
/// is skipped.
pub(crate) struct Reader<'a, R> {
    input: R,
    limits: &'a Limits,
    /// Bytes read from `input`.
    offset: u64,
    /// Content bytes of the current entry not read yet, and the padding after them.
    remaining: u64,
    padding: u64,
    spent: Spent,
    end: End,
    global: Pax,
    /// Name for error messages: the entry at hand, or the last one.
    current: Vec<u8>,
}

impl<'a, R: Read> Reader<'a, R> {
    /// `spent` is what the layers below came to.
    pub(crate) fn new(input: R, limits: &'a Limits, spent: Spent, end: End) -> Self {
        Reader {
            input,
            limits,
            offset: 0,
            remaining: 0,
            padding: 0,
            spent,
            end,
            global: Pax::default(),
            current: Vec::new(),
        }
    }

    /// The next entry, or `None` at the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut local: Option<Pax> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip(self.remaining.saturating_add(self.padding))?;
            (self.remaining, self.padding) = (0, 0);
            let Some(header) = self.read_header()? else {
                if local.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(self.truncated());
                }
                return Ok(None);
            };
            match header.kind() {
                b'L' => long_name = Some(self.read_long_name(&header)?),
                b'K' => long_link = Some(self.read_long_name(&header)?),
                b'x' | b'X' => {
                    let data = self.read_extension(&header, PAX_BYTES_MAX)?;
                    // A second header for one entry replaces the first, which bounds what is held.
                    let pax = local.insert(self.global.clone());
                    pax.apply(&data).map_err(|problem| self.extension_error(problem))?;
                }
                b'g' => {
                    let data = self.read_extension(&header, PAX_BYTES_MAX)?;
                    self.global.apply(&data).map_err(|problem| self.extension_error(problem))?;
                    self.global.keep_defaults();
                }
                // A volume label: nothing of the tree.
                b'V' => self.begin_content(header.size().map_err(|p| self.extension_error(p))?)?,
                _ => {
                    let mut pax = local.unwrap_or_else(|| self.global.clone());
                    let path = pax.path.take().or(long_name).unwrap_or_else(|| header.path());
                    let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
                    self.current.clone_from(&path);
                    return self.finish_entry(&header, pax, path, link).map(Some);
                }
            }
        }
    }

    /// Fills `buf` with content of the current file. The caller asks for no more than the entry's segments hold.
    pub(crate) fn read_data(&mut self, buf: &mut [u8]) -> Result<(), ImageError> {
        assert!(buf.len() as u64 <= self.remaining, "content is read by its segments");
        self.remaining -= buf.len() as u64;
        self.fill(buf)
    }

    /// Reads what follows the end marker, so that a writer of a pipe is not cut off, a compressed stream's checksum is
    /// verified and a digest covers everything. Bounded by the byte limit.
    pub(crate) fn finish(mut self) -> Result<Spent, ImageError> {
        let budget = self.limits.max_bytes.saturating_sub(self.spent.bytes);
        let trailing = io::copy(&mut (&mut self.input).take(budget.saturating_add(1)), &mut io::sink());
        self.charge(trailing.map_err(ImageError::Read)?)?;
        Ok(self.spent)
    }

    fn finish_entry(
        &mut self,
        header: &Header,
        pax: Pax,
        path: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Entry, ImageError> {
        let kind = match self.entry_kind(header, &pax, &path, link) {
            Ok(kind) => kind,
            Err(KindError::Image(error)) => return Err(error),
            Err(KindError::Problem(problem)) => return Err(entry_error(&path, problem)),
        };
        let attributes = || -> Result<_, EntryProblem> {
            let uid = owner(pax.uid.map_or_else(|| header.uid(), Ok)?, "owner")?;
            let gid = owner(pax.gid.map_or_else(|| header.gid(), Ok)?, "group")?;
            let mtime = match pax.mtime {
                Some(mtime) => mtime,
                None => Mtime { secs: header.mtime()?, nanos: 0 },
            };
            Ok((header.mode()?, uid, gid, mtime))
        };
        let (mode, uid, gid, mtime) = attributes().map_err(|problem| entry_error(&path, problem))?;
        let xattrs = pax.xattrs.into_iter().collect();
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs, xattrs_skipped: pax.xattrs_skipped })
    }

    fn entry_kind(
        &mut self,
        header: &Header,
        pax: &Pax,
        path: &[u8],
        link: Vec<u8>,
    ) -> Result<EntryKind, KindError> {
        let device = || -> Result<Device, EntryProblem> {
            let major = pax.device_major.map_or_else(|| header.device_major(), Ok)?;
            let minor = pax.device_minor.map_or_else(|| header.device_minor(), Ok)?;
            if major > MAJOR_MAX || minor > MINOR_MAX {
                return Err(EntryProblem::BadNumber { field: "device number" });
            }
            Ok(Device { major: major as u32, minor: minor as u32 })
        };
        Ok(match header.kind() {
            0 | b'0' | b'7' | b'S' => {
                let stored = pax.size.map_or_else(|| header.size(), Ok)?;
                // V7 has no directory type; a slash at the end says it.
                if path.ends_with(b"/") && header.kind() != b'S' {
                    self.begin_content(stored)?;
                    return Ok(EntryKind::Directory);
                }
                EntryKind::File(self.file_content(header, pax, stored)?)
            }
            b'1' => EntryKind::HardLink { target: link },
            b'2' => EntryKind::Symlink { target: link },
            b'3' => EntryKind::CharDevice(device()?),
            b'4' => EntryKind::BlockDevice(device()?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            // A directory of an incremental GNU archive; its content lists names.
            b'D' => {
                self.begin_content(pax.size.map_or_else(|| header.size(), Ok)?)?;
                EntryKind::Directory
            }
            other => return Err(EntryProblem::UnsupportedType(other).into()),
        })
    }

    fn file_content(&mut self, header: &Header, pax: &Pax, stored: u64) -> Result<Content, KindError> {
        let content = if header.kind() == b'S' {
            let (records, mut extended, real_size) = header.gnu_sparse()?;
            let mut segments = Vec::new();
            sparse::push_gnu(&mut segments, records)?;
            while extended {
                let block = self.read_block()?;
                sparse::push_gnu(&mut segments, &block[..504])?;
                extended = block[504] != 0;
                self.charge(BLOCK as u64)?;
            }
            self.begin_content(stored)?;
            sparse::content(real_size, segments, stored)?
        } else if pax.sparse.version_1 {
            let real_size = pax.sparse.real_size.ok_or(EntryProblem::BadSparse)?;
            self.begin_content(stored)?;
            let segments = self.read_sparse_map()?;
            sparse::content(real_size, segments, self.remaining)?
        } else if let Some(segments) = &pax.sparse.segments {
            let real_size = pax.sparse.real_size.ok_or(EntryProblem::BadSparse)?;
            self.begin_content(stored)?;
            sparse::content(real_size, segments.clone(), stored)?
        } else {
            self.begin_content(stored)?;
            Content { size: stored, segments: vec![Segment { offset: 0, len: stored }] }
        };
        // Holes cost no archive, but they cost an image.
        self.charge(content.size.saturating_sub(stored))?;
        Ok(content)
    }

    /// The map at the start of a PAX 1.0 sparse file, which is padded to a whole block.
    fn read_sparse_map(&mut self) -> Result<Vec<Segment>, KindError> {
        let mut block = [0; BLOCK];
        let mut used = BLOCK;
        sparse::read_map(|| {
            let mut line = Vec::new();
            loop {
                if used == BLOCK {
                    if self.remaining < BLOCK as u64 {
                        return Err(EntryProblem::BadSparse.into());
                    }
                    self.read_data(&mut block)?;
                    used = 0;
                }
                let byte = block[used];
                used += 1;
                if byte == b'\n' {
                    return Ok::<_, KindError>(line);
                }
                if line.len() == 20 {
                    return Err(EntryProblem::BadSparse.into());
                }
                line.push(byte);
            }
        })
    }

    fn read_long_name(&mut self, header: &Header) -> Result<Vec<u8>, ImageError> {
        let mut name = self.read_extension(header, LONG_NAME_BYTES_MAX)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn read_extension(&mut self, header: &Header, max: u64) -> Result<Vec<u8>, ImageError> {
        let size = header.size().map_err(|problem| self.extension_error(problem))?;
        if size > max {
            return Err(self.limit(max, "bytes of extension header"));
        }
        self.begin_content(size)?;
        let mut data = vec![0; size as usize];
        self.read_data(&mut data)?;
        Ok(data)
    }

    fn read_header(&mut self) -> Result<Option<Header>, ImageError> {
        let at = self.offset;
        let mut block = [0; BLOCK];
        let first = &mut block[..1];
        let empty = loop {
            match self.input.read(first) {
                Ok(count) => break count == 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        };
        if empty {
            return if self.end == End::MarkerOrStream { Ok(None) } else { Err(self.truncated()) };
        }
        self.offset += 1;
        self.fill(&mut block[1..])?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        self.spent.headers += 1;
        if self.spent.headers > self.limits.max_entries {
            return Err(self.limit(self.limits.max_entries, "entries"));
        }
        let header = Header::parse(block);
        if header.is_none() && at == 0 {
            return Err(ImageError::NotTar);
        }
        let entry = self.position();
        header.map(Some).ok_or(ImageError::CorruptHeader { offset: at, entry })
    }

    fn begin_content(&mut self, size: u64) -> Result<(), ImageError> {
        self.charge(size)?;
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.spent.bytes = self.spent.bytes.saturating_add(bytes);
        if self.spent.bytes > self.limits.max_bytes {
            return Err(self.limit(self.limits.max_bytes, "bytes"));
        }
        Ok(())
    }

    fn read_block(&mut self) -> Result<[u8; BLOCK], ImageError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        Ok(block)
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), ImageError> {
        self.input.read_exact(buf).map_err(|e| self.read_error(e))?;
        self.offset += buf.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ImageError> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink());
        let skipped = skipped.map_err(|e| self.read_error(e))?;
        self.offset += skipped;
        if skipped < bytes { Err(self.truncated()) } else { Ok(()) }
    }

    fn read_error(&self, error: io::Error) -> ImageError {
        if error.kind() == io::ErrorKind::UnexpectedEof { self.truncated() } else { ImageError::Read(error) }
    }

    fn truncated(&self) -> ImageError {
        ImageError::Truncated { entry: self.position() }
    }

    fn limit(&self, limit: u64, what: &'static str) -> ImageError {
        ImageError::Limit { entry: self.position(), limit, what }
    }

    fn extension_error(&self, problem: EntryProblem) -> ImageError {
        ImageError::Extension { after: self.position(), problem }
    }

    fn position(&self) -> String {
        if self.current.is_empty() { "start of the archive".into() } else { printable(&self.current) }
    }
}

fn owner(id: u64, field: &'static str) -> Result<u32, EntryProblem> {
    // The largest 32-bit id means "none" to the kernel.
    u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(EntryProblem::BadNumber { field })
}

fn entry_error(path: &[u8], problem: EntryProblem) -> ImageError {
    ImageError::Entry { entry: printable(path), problem }
}

/// While the kind of an entry is worked out, either the entry or the archive can be at fault.
enum KindError {
    Problem(EntryProblem),
    Image(ImageError),
}

impl From<EntryProblem> for KindError {
    fn from(problem: EntryProblem) -> Self {
        KindError::Problem(problem)
    }
}

impl From<ImageError> for KindError {
    fn from(error: ImageError) -> Self {
        KindError::Image(error)
    }
}
