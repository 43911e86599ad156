//! Checking where the stored parts of a sparse file go.

use super::pax::{SEGMENTS_MAX, decimal};
use super::{Content, Segment, header};
use crate::error::EntryProblem;

/// Content of `size` bytes whose stored parts fill `segments` in order and are `stored` bytes together.
pub(crate) fn content(size: u64, segments: Vec<Segment>, stored: u64) -> Result<Content, EntryProblem> {
    let (mut end, mut total) = (0u64, 0u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(EntryProblem::BadSparse);
        }
        end = segment.offset.checked_add(segment.len).ok_or(EntryProblem::BadSparse)?;
        total += segment.len; // cannot overflow: the segments do not overlap and end below 2^64
    }
    if end > size || total != stored {
        return Err(EntryProblem::BadSparse);
    }
    Ok(Content { size, segments })
}

/// Appends the records of one old GNU sparse block; an all-empty record ends the list.
pub(crate) fn push_gnu(segments: &mut Vec<Segment>, records: &[u8]) -> Result<(), EntryProblem> {
    for record in records.chunks_exact(24) {
        if record[0] == 0 {
            break;
        }
        if segments.len() == SEGMENTS_MAX {
            return Err(EntryProblem::BadSparse);
        }
        let offset = header::unsigned(&record[..12], "sparse map")?;
        segments.push(Segment { offset, len: header::unsigned(&record[12..], "sparse map")? });
    }
    Ok(())
}

/// Reads the map in front of the content (PAX sparse 1.0): decimal lines, first the count. `next_line` gives lines
/// without their newline.
pub(crate) fn read_map<E: From<EntryProblem>>(
    mut next_line: impl FnMut() -> Result<Vec<u8>, E>,
) -> Result<Vec<Segment>, E> {
    let count = decimal(&next_line()?, "sparse map")?;
    if count > SEGMENTS_MAX as u64 {
        return Err(EntryProblem::BadSparse.into());
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        let offset = decimal(&next_line()?, "sparse map")?;
        segments.push(Segment { offset, len: decimal(&next_line()?, "sparse map")? });
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn seg(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        assert_eq!(content(10, vec![seg(2, 3), seg(10, 0)], 3).unwrap().size, 10);
        assert!(content(10, vec![seg(2, 3)], 4).is_err(), "stored bytes differ");
        assert!(content(10, vec![seg(8, 3)], 3).is_err(), "beyond the end");
        assert!(content(10, vec![seg(4, 2), seg(5, 1)], 3).is_err(), "overlap");
        assert!(content(10, vec![seg(u64::MAX, 2)], 2).is_err(), "overflow");
    }
}
