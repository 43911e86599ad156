//! Reading a stream, entry by entry.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

use crate::BLOCK;
use crate::header::padding;
use crate::sparse::{SEGMENTS_MAX, Segment, fits};

/// Longest name, in bytes: more than any path can be.
const NAME_MAX: u64 = 64 << 10;
/// Longest block of PAX records, in bytes.
const RECORDS_MAX: u64 = 1 << 20;

/// What arrived is not a tar stream, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It could not be read, or ended early.
    #[error("the stream broke")]
    Io(#[from] io::Error),
    /// It makes no sense.
    #[error("it is no tar stream: {0}")]
    Malformed(&'static str),
}

/// One entry, with what earlier headers say of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its length, and the parts of it that follow in the stream; the rest is zeros.
    File(u64, Vec<Segment>),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    /// Something that is not copied.
    Other,
}

/// What records say of the next entry.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    /// It is a sparse file of the format 1.0.
    sparse: bool,
    length: Option<u64>,
    /// It is a sparse file of an older format.
    old_sparse: bool,
}

/// Entries of a stream. Content that is not read is skipped.
pub(crate) struct Entries<R> {
    input: R,
    /// Content of the entry that is still to come, and zeros after it.
    left: u64,
    padding: usize,
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, StreamError> {
        let mut records = Records::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = records.size.take().map_or_else(|| header.entry_size(), Ok);
            let size = size.map_err(|_| StreamError::Malformed("a size is no number"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => long_name = Some(self.text(size, NAME_MAX)?),
                EntryType::GNULongLink => long_link = Some(self.text(size, NAME_MAX)?),
                EntryType::XHeader => records = parse(&self.text(size, RECORDS_MAX)?)?,
                // Defaults for all entries: nothing that is needed.
                EntryType::XGlobalHeader => drop(self.text(size, RECORDS_MAX)?),
                EntryType::GNUSparse => {
                    return Err(StreamError::Malformed("old GNU sparse files are not read"));
                }
                _ => {
                    let path = records.path.take().or(long_name);
                    let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = records.link.take().or(long_link);
                    let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                    return self.entry(&header, records, size, path, link.unwrap_or_default()).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        records: Records,
        size: u64,
        path: Vec<u8>,
        link: Vec<u8>,
    ) -> Result<Entry, StreamError> {
        let number = |number: io::Result<u64>| {
            number
                .ok()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or(StreamError::Malformed("an id is too large"))
        };
        let bad = |_| StreamError::Malformed("a field is no number");
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                self.begin(size);
                // The oldest archives know directories only by their names.
                if path.ends_with(b"/") { Kind::Directory } else { self.file(&records, size)? }
            }
            EntryType::Directory => {
                self.begin(size);
                Kind::Directory
            }
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => {
                self.begin(size);
                Kind::HardLink(link)
            }
            _ => {
                self.begin(size);
                Kind::Other
            }
        };
        let seconds = header.mtime().map_err(bad)?;
        let plain = (i64::try_from(seconds).unwrap_or(i64::MAX), 0);
        Ok(Entry {
            path,
            kind,
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: records.uid.map_or_else(|| number(header.uid()), Ok)?,
            gid: records.gid.map_or_else(|| number(header.gid()), Ok)?,
            mtime: records.mtime.unwrap_or(plain),
        })
    }

    fn file(&mut self, records: &Records, size: u64) -> Result<Kind, StreamError> {
        let bad = StreamError::Malformed("the map of a sparse file makes no sense");
        if records.old_sparse {
            return Err(StreamError::Malformed("sparse files before format 1.0 are not read"));
        }
        if !records.sparse {
            return Ok(Kind::File(size, vec![Segment { offset: 0, length: size }]));
        }
        let Some(length) = records.length else { return Err(bad) };
        let segments = self.map()?;
        if fits(&segments, length, self.left) { Ok(Kind::File(length, segments)) } else { Err(bad) }
    }

    /// The map before the data of a sparse file, which fills whole blocks.
    fn map(&mut self) -> Result<Vec<Segment>, StreamError> {
        let bad = || StreamError::Malformed("the map of a sparse file makes no sense");
        let (mut block, mut used) = ([0; BLOCK], BLOCK);
        let mut number = |entries: &mut Self| -> Result<u64, StreamError> {
            let mut value = 0_u64;
            for _ in 0..=20 {
                if used == BLOCK {
                    if entries.left < BLOCK as u64 {
                        return Err(bad());
                    }
                    entries.read_exact(&mut block)?;
                    used = 0;
                }
                let byte = block[used];
                used += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(byte - b'0')));
                        value = next.ok_or_else(bad)?;
                    }
                    _ => return Err(bad()),
                }
            }
            Err(bad())
        };
        let count = number(self)?;
        if count > SEGMENTS_MAX as u64 {
            return Err(StreamError::Malformed("a sparse file has too many parts"));
        }
        (0..count).map(|_| Ok(Segment { offset: number(self)?, length: number(self)? })).collect()
    }

    /// Fills a buffer with content of the entry, which has as much.
    pub(crate) fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        debug_assert!(buffer.len() as u64 <= self.left);
        self.input.read_exact(buffer)?;
        self.left -= buffer.len() as u64;
        Ok(())
    }

    /// Reads what follows the end, so that whoever sends it is not cut off.
    pub(crate) fn drain(&mut self) -> Result<(), StreamError> {
        io::copy(&mut self.input, &mut io::sink())?;
        Ok(())
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = padding(size);
    }

    fn skip(&mut self) -> Result<(), StreamError> {
        let rest = self.left.saturating_add(self.padding as u64);
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.input).take(rest), &mut io::sink())? < rest {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// A header; `None` for the block of zeros at the end.
    fn header(&mut self) -> Result<Option<Header>, StreamError> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, &byte)| u32::from(if (148..156).contains(&at) { b' ' } else { byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(StreamError::Malformed("a checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The content of a header that is about the next entry.
    fn text(&mut self, size: u64, max: u64) -> Result<Vec<u8>, StreamError> {
        if size > max {
            return Err(StreamError::Malformed("a header is too long"));
        }
        self.begin(size);
        let mut text = vec![0; size as usize];
        self.read_exact(&mut text)?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

fn parse(text: &[u8]) -> Result<Records, StreamError> {
    let bad = || StreamError::Malformed("a PAX record makes no sense");
    let mut records = Records::default();
    for record in PaxExtensions::new(text) {
        let record = record.map_err(|_| bad())?;
        let value = record.value_bytes();
        let number = || std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok()).ok_or_else(bad);
        let id = || number().and_then(|n| u32::try_from(n).map_err(|_| bad()));
        match record.key_bytes() {
            b"path" => _ = records.path.get_or_insert(value.to_vec()),
            // It is the real one, whatever else there is.
            b"GNU.sparse.name" => records.path = Some(value.to_vec()),
            b"linkpath" => records.link = Some(value.to_vec()),
            b"size" => records.size = Some(number()?),
            b"uid" => records.uid = Some(id()?),
            b"gid" => records.gid = Some(id()?),
            b"mtime" => records.mtime = Some(time(value).ok_or_else(bad)?),
            b"GNU.sparse.major" => records.sparse = number()? == 1,
            b"GNU.sparse.realsize" => records.length = Some(number()?),
            b"GNU.sparse.map" | b"GNU.sparse.numblocks" => records.old_sparse = true,
            _ => {}
        }
    }
    Ok(records)
}

/// A decimal fraction of seconds.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    match (negative, nanos) {
        (false, nanos) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanos) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_fractions() {
        for (text, expected) in [
            ("5", Some((5, 0))),
            ("5.25", Some((5, 250_000_000))),
            ("5.1234567891", Some((5, 123_456_789))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-1.75", Some((-2, 250_000_000))),
            ("5.x", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
