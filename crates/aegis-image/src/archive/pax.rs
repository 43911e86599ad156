//! PAX extension headers: `length key=value\n` records.

use std::collections::BTreeMap;

use super::{Mtime, Segment};
use crate::error::EntryProblem;

/// More segments than any real file has; each costs 16 bytes.
pub(crate) const SEGMENTS_MAX: usize = 1 << 20;

/// What the records of one header, or all global headers so far, say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Mtime>,
    pub device_major: Option<u64>,
    pub device_minor: Option<u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Access control lists as text, which only a system with the same user names could translate.
    pub xattrs_skipped: u64,
    pub sparse: PaxSparse,
}

/// The three PAX encodings of sparse files, as far as they live in the header.
#[derive(Debug, Clone, Default)]
pub(crate) struct PaxSparse {
    pub version_1: bool,
    pub real_size: Option<u64>,
    pub segments: Option<Vec<Segment>>,
    pending_offset: Option<u64>,
}

impl Pax {
    /// Applies the records of `data` over what is already there.
    pub(crate) fn apply(&mut self, mut data: &[u8]) -> Result<(), EntryProblem> {
        while !data.is_empty() {
            let (record, rest) = split_record(data).ok_or(EntryProblem::BadPax)?;
            let eq = record.iter().position(|&b| b == b'=').ok_or(EntryProblem::BadPax)?;
            self.record(&record[..eq], &record[eq + 1..])?;
            data = rest;
        }
        Ok(())
    }

    /// Leaves what makes sense for every entry: numbers. Names and attributes given globally would only let an
    /// archive make each entry expensive.
    pub(crate) fn keep_defaults(&mut self) {
        let Pax { size: _, uid, gid, mtime, device_major, device_minor, .. } = std::mem::take(self);
        *self = Pax { uid, gid, mtime, device_major, device_minor, ..Pax::default() };
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(decode_key(name), value.to_vec());
            return Ok(());
        }
        if key.starts_with(b"SCHILY.acl.") {
            self.xattrs_skipped += 1;
            return Ok(());
        }
        // An empty value takes a global record back.
        let text = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = text.map(<[u8]>::to_vec),
            b"linkpath" => self.link = text.map(<[u8]>::to_vec),
            b"size" => self.size = text.map(|v| decimal(v, "size")).transpose()?,
            b"uid" => self.uid = text.map(|v| decimal(v, "owner")).transpose()?,
            b"gid" => self.gid = text.map(|v| decimal(v, "group")).transpose()?,
            b"mtime" => self.mtime = text.map(timestamp).transpose()?,
            b"SCHILY.devmajor" => {
                self.device_major = text.map(|v| decimal(v, "device number")).transpose()?
            }
            b"SCHILY.devminor" => {
                self.device_minor = text.map(|v| decimal(v, "device number")).transpose()?
            }
            b"GNU.sparse.name" => self.path = text.map(<[u8]>::to_vec),
            b"GNU.sparse.major" => self.sparse.version_1 = decimal(value, "sparse version")? == 1,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(decimal(value, "size")?);
            }
            b"GNU.sparse.offset" => self.sparse.pending_offset = Some(decimal(value, "sparse map")?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.pending_offset.take().ok_or(EntryProblem::BadSparse)?;
                let len = decimal(value, "sparse map")?;
                let segments = self.sparse.segments.get_or_insert_default();
                if segments.len() == SEGMENTS_MAX {
                    return Err(EntryProblem::BadSparse);
                }
                segments.push(Segment { offset, len });
            }
            b"GNU.sparse.map" => self.sparse.segments = Some(sparse_map(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// Splits off one record, without its length and newline.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().take(20).position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(&data[..space], "length").ok()?).ok()?;
    let body = data.get(space + 1..len)?.strip_suffix(b"\n")?;
    Some((body, &data[len..]))
}

/// GNU tar escapes the two characters that a key cannot hold.
fn decode_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, used) = match rest.get(..3) {
            Some(b"%3D") => (b'=', 3),
            Some(b"%25") => (b'%', 3),
            _ => (first, 1),
        };
        out.push(byte);
        rest = &tail[used - 1..];
    }
    out
}

fn sparse_map(value: &[u8]) -> Result<Vec<Segment>, EntryProblem> {
    let mut numbers = value.split(|&b| b == b',').map(|n| decimal(n, "sparse map"));
    let mut segments = Vec::new();
    if value.is_empty() {
        return Ok(segments);
    }
    while let Some(offset) = numbers.next() {
        if segments.len() == SEGMENTS_MAX {
            return Err(EntryProblem::BadSparse);
        }
        segments.push(Segment { offset: offset?, len: numbers.next().ok_or(EntryProblem::BadSparse)?? });
    }
    Ok(segments)
}

pub(crate) fn decimal(text: &[u8], field: &'static str) -> Result<u64, EntryProblem> {
    let bad = EntryProblem::BadNumber { field };
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(bad)
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are dropped, as tar does.
fn timestamp(text: &[u8]) -> Result<Mtime, EntryProblem> {
    let bad = EntryProblem::BadNumber { field: "modification time" };
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |t| (true, t));
    let mut parts = text.splitn(2, |&b| b == b'.');
    let whole = decimal(parts.next().unwrap_or_default(), "modification time")?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let nanos = (0..9).fold(0u32, |n, i| n * 10 + u32::from(fraction.get(i).map_or(0, |digit| digit - b'0')));
    let secs = i64::try_from(whole).map_err(|_| bad)?;
    Ok(match (negative, nanos) {
        (false, _) => Mtime { secs, nanos },
        (true, 0) => Mtime { secs: -secs, nanos: 0 },
        (true, _) => Mtime { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn records_may_hold_any_byte_and_later_ones_win() {
        let mut pax = Pax::default();
        pax.apply(b"9 path=a\n9 path=b\n32 SCHILY.xattr.user.%3D%25=\0\n=\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"b");
        assert_eq!(pax.xattrs.into_iter().collect::<Vec<_>>(), [(b"user.=%".to_vec(), b"\0\n=".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            &b"x"[..],
            b"5 a=",
            b"0 a=b\n",
            b"3 a=b\n",
            b"6 abcd",
            b"99999999999999999999 a=b\n",
            b"7 abcd\n",
            b"9 size=x\n",
            b"9 path=a ",
        ] {
            assert!(Pax::default().apply(data).is_err(), "{:?}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction_forward() {
        assert_eq!(timestamp(b"-1.25").unwrap(), Mtime { secs: -2, nanos: 750_000_000 });
        assert_eq!(
            timestamp(b"1700000000.1234567899").unwrap(),
            Mtime { secs: 1_700_000_000, nanos: 123_456_789 }
        );
        assert_eq!(timestamp(b"-7").unwrap(), Mtime { secs: -7, nanos: 0 });
        assert!(timestamp(b"1.x").is_err());
        assert!(timestamp(b"--1").is_err());
    }
}
