//! Long reads, from the disk on which the host shows the content of open files: [`aegis_proto::fuse`]. What comes over the port
//! costs the kernel an interrupt for every 4 KiB.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use aegis_proto::fuse::{ANSWER_HEADER, CONTENT_HEAD, CONTENT_MAX, CONTENT_UNIT, Content};
use rustix::io::{Errno, preadv, writev};
use tracing::debug;

use super::message::Read;

/// Bytes of a file that one request reads at most.
const READ_MAX: usize = 1 << 20;
/// Memory that is read without the page cache has to be aligned to sectors. Aligned to this, it is one page where the kernel has
/// huge ones, and the disk is given one piece instead of hundreds. What is not touched costs nothing.
const ALIGNMENT: usize = 2 << 20;

/// Memory for one read.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Of the first aligned byte.
    start: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let bytes = vec![0; 2 * ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start }
    }

    /// Reads what was asked for: how many bytes there are, or the error to answer with.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub(super) fn fill(&mut self, disk: &OwnedFd, place: u32, read: &Read) -> io::Result<Result<usize, i32>> {
        let size = read.size as usize;
        let (head, content) = self.bytes[self.start..].split_at_mut(CONTENT_HEAD);
        let content = content.get_mut(..size).ok_or(Errno::INVAL)?;
        let mut filled = 0;
        for piece in content.chunks_mut(CONTENT_MAX) {
            let wanted = Content { place, handle: read.handle, offset: read.offset + filled as u64 };
            let address = wanted.address().ok_or(Errno::INVAL)?;
            let length = piece.len();
            let count = preadv(disk, &mut [IoSliceMut::new(head), IoSliceMut::new(piece)], address)?;
            if count != CONTENT_HEAD + length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match i32::from_le_bytes(head[..4].try_into().expect("four bytes")) {
                error if error < 0 && filled == 0 => return Ok(Err(error)),
                // Whoever wants the rest asks for it, and is told then.
                error if error < 0 => break,
                there => filled += usize::try_from(there).map_or(0, |there| there.min(length)),
            }
            if filled % CONTENT_MAX != 0 {
                break;
            }
        }
        Ok(Ok(filled))
    }

    /// Gives the kernel the answer.
    pub(super) fn answer(&self, device: &OwnedFd, header: &[u8; ANSWER_HEADER], count: usize) {
        let content = &self.bytes[self.start + CONTENT_HEAD..][..count];
        match writev(device, &[IoSlice::new(header), IoSlice::new(content)]) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => debug!("the kernel does not take {count} bytes of a file: {error}"),
        }
    }
}

/// Whether the disk has what is asked for.
pub(super) fn has(place: u32, read: &Read) -> bool {
    let whole = |bytes: u64| bytes.is_multiple_of(CONTENT_UNIT);
    let last = u64::from(read.size).checked_add(read.offset).map(|end| end.saturating_sub(1));
    let of = |offset| Content { place, handle: read.handle, offset }.address().is_some();
    read.size as usize <= READ_MAX
        && whole(read.size.into())
        && of(read.offset)
        && last.is_some_and(|last| of(last - last % CONTENT_UNIT))
}
