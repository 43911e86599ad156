//! Giving ranges of a file back to the file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Makes `len` bytes at `start` read as zeros and, where the file system can do that, take no space.
pub(super) fn range(file: &File, start: u64, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;

        match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    zeros(file, start, len)
}

fn zeros(file: &File, start: u64, len: u64) -> io::Result<()> {
    const PIECE: [u8; 16 << 10] = [0; 16 << 10];
    let mut done = 0;
    while done < len {
        let piece = &PIECE[..(len - done).min(PIECE.len() as u64) as usize];
        file.write_all_at(piece, start + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn only_the_range_is_erased() {
        for erase in [range, zeros] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 100_000]).unwrap();
            erase(&file, 4096, 40_960).unwrap();
            file.rewind().unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 100_000);
            assert!(bytes.iter().enumerate().all(|(i, &b)| (b == 0) == (4096..45_056).contains(&i)));
        }
    }
}
