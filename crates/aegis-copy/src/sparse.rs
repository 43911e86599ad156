//! Where the data of a sparse file is, and the map of it in a stream (PAX sparse format 1.0).

use std::fs::File;
use std::io;

use crate::BLOCK;
use crate::header::padding;

/// Parts of one file. A file that has more is sent with its later holes filled.
pub(crate) const SEGMENTS_MAX: usize = 4096;

/// Bytes that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The parts of a file that are no holes, as far as its file system can tell.
#[cfg(target_os = "linux")]
pub(crate) fn segments(file: &File, size: u64) -> io::Result<Vec<Segment>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let mut segments = Vec::new();
    let mut at = 0;
    while at < size && segments.len() < SEGMENTS_MAX - 1 {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole to the end.
            Err(Errno::NXIO) => return Ok(segments),
            Err(e) => return Err(e.into()),
        };
        if start >= size {
            return Ok(segments);
        }
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        segments.push(Segment { offset: start, length: end - start });
        at = end;
    }
    if at < size {
        segments.push(Segment { offset: at, length: size - at });
    }
    Ok(segments)
}

/// The same where nobody can tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn segments(_: &File, size: u64) -> io::Result<Vec<Segment>> {
    Ok(vec![Segment { offset: 0, length: size }])
}

/// The map as it stands before the data: decimal lines, padded to a whole block.
pub(crate) fn map(segments: &[Segment]) -> Vec<u8> {
    let mut text = format!("{}\n", segments.len());
    for segment in segments {
        text.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut map = text.into_bytes();
    map.resize(map.len() + padding(map.len() as u64), 0);
    debug_assert_eq!(map.len() % BLOCK, 0);
    map
}

/// Whether the parts ascend, end within the file and are as long together as what is stored.
pub(crate) fn fits(segments: &[Segment], size: u64, stored: u64) -> bool {
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in segments {
        let Some(next) = segment.offset.checked_add(segment.length) else { return false };
        if segment.offset < end || next > size {
            return false;
        }
        end = next;
        // Cannot overflow: they do not overlap.
        total += segment.length;
    }
    total == stored
}
