//! The 512-byte header block.

use std::ops::Range;

use crate::error::EntryProblem;

pub(crate) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const DEV_MAJOR: Range<usize> = 329..337;
const DEV_MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;
/// The older `star` archiver keeps times after a shorter prefix, and says so at the end of the block.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_SPARSE: Range<usize> = 386..482;
const GNU_SPARSE_EXTENDED: usize = 482;
const GNU_REAL_SIZE: Range<usize> = 483..495;

/// A header block whose checksum is right.
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    /// `None` if the checksum is wrong.
    pub(crate) fn parse(block: [u8; BLOCK]) -> Option<Header> {
        let stored = number(&block[CHECKSUM], "checksum").ok()?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, &byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&i) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed()); // some old writers summed signed chars
        }
        (stored == unsigned || stored == signed).then_some(Header(block))
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[NAME]);
        let prefix = if !self.is_posix() {
            &[]
        } else if &self.0[STAR_TRAILER] == b"tar\0" {
            until_nul(&self.0[STAR_PREFIX])
        } else {
            until_nul(&self.0[PREFIX])
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[LINK]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u16, EntryProblem> {
        // Bits above the permissions repeat the type in some archives.
        Ok((number(&self.0[MODE], "mode")? & 0o7777) as u16)
    }

    pub(crate) fn uid(&self) -> Result<u64, EntryProblem> {
        unsigned(&self.0[UID], "owner")
    }

    pub(crate) fn gid(&self) -> Result<u64, EntryProblem> {
        unsigned(&self.0[GID], "group")
    }

    pub(crate) fn size(&self) -> Result<u64, EntryProblem> {
        unsigned(&self.0[SIZE], "size")
    }

    pub(crate) fn mtime(&self) -> Result<i64, EntryProblem> {
        number(&self.0[MTIME], "modification time")
    }

    pub(crate) fn device_major(&self) -> Result<u64, EntryProblem> {
        self.device(DEV_MAJOR)
    }

    pub(crate) fn device_minor(&self) -> Result<u64, EntryProblem> {
        self.device(DEV_MINOR)
    }

    fn device(&self, field: Range<usize>) -> Result<u64, EntryProblem> {
        // V7 headers have no such fields; what lies there is not a number.
        if self.is_posix() || self.is_gnu() { unsigned(&self.0[field], "device number") } else { Ok(0) }
    }

    /// The sparse records in the header, whether more follow in blocks of their own, and the file's real size.
    pub(crate) fn gnu_sparse(&self) -> Result<(&[u8], bool, u64), EntryProblem> {
        let real = unsigned(&self.0[GNU_REAL_SIZE], "size")?;
        Ok((&self.0[GNU_SPARSE], self.0[GNU_SPARSE_EXTENDED] != 0, real))
    }

    fn is_posix(&self) -> bool {
        &self.0[MAGIC][..6] == b"ustar\0"
    }

    fn is_gnu(&self) -> bool {
        &self.0[MAGIC] == b"ustar  \0"
    }
}

pub(crate) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

pub(crate) fn unsigned(field: &[u8], what: &'static str) -> Result<u64, EntryProblem> {
    u64::try_from(number(field, what)?).map_err(|_| EntryProblem::BadNumber { field: what })
}

/// Octal text, or GNU base-256 (first bit set, two's complement). An empty field is zero.
fn number(field: &[u8], what: &'static str) -> Result<i64, EntryProblem> {
    let bad = EntryProblem::BadNumber { field: what };
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, &byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative { byte & 0x7f } else { byte };
            // Twelve bytes at most: 96 bits fit.
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad);
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => {
            value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or(bad.clone())
        }
        _ => Err(bad.clone()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0", "x").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0", "x").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0", "x").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 0], "x").unwrap(), 65536);
        assert_eq!(number(&[0xff; 12], "x").unwrap(), -1);
        let mut minus_two_pow_33 = [0xff; 12];
        minus_two_pow_33[7..].copy_from_slice(&[0xfe, 0, 0, 0, 0]);
        assert_eq!(number(&minus_two_pow_33, "x").unwrap(), -(1 << 33));
    }

    #[test]
    fn numbers_that_are_not_numbers_are_refused() {
        for field in [&b"00009\0"[..], b"-1\0", b"abc", b"6 4", &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(number(field, "x"), Err(EntryProblem::BadNumber { field: "x" }), "{field:?}");
        }
        assert!(unsigned(&[0xff; 8], "x").is_err());
    }
}
