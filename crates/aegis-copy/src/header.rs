//! Headers that are written: ustar, with PAX records for what does not fit.

use std::io::{self, Write};

use tar::{EntryType, Header};

use crate::BLOCK;

/// What a header says of an entry.
pub(crate) struct Head<'a> {
    pub(crate) kind: EntryType,
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    /// Bytes that follow.
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the Unix epoch, and nanoseconds after that second.
    pub(crate) mtime: (i64, u32),
    /// The length of a sparse file, whose map is at the beginning of what follows.
    pub(crate) sparse: Option<u64>,
}

/// Largest size in eleven octal digits.
const OCTAL_SIZE_MAX: u64 = (1 << 33) - 1;
/// Largest number in seven octal digits.
const OCTAL_ID_MAX: u32 = (1 << 21) - 1;
const NAME_MAX: usize = 100;

impl Head<'_> {
    /// Writes the header, and one with records before it if there are some.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let records = self.records();
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.as_old_mut().name[..NAME.len()].copy_from_slice(NAME);
            header.set_mode(0o600);
            header.set_size(records.len() as u64);
            header.set_cksum();
            out.write_all(header.as_bytes())?;
            out.write_all(&records)?;
            out.write_all(&[0; BLOCK][..padding(records.len() as u64)])?;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(self.kind);
        copy_name(&mut header.as_old_mut().name, self.path);
        copy_name(&mut header.as_old_mut().linkname, self.link);
        header.set_mode(self.mode & 0o7777);
        header.set_uid(self.uid.min(OCTAL_ID_MAX).into());
        header.set_gid(self.gid.min(OCTAL_ID_MAX).into());
        header.set_mtime(u64::try_from(self.mtime.0).unwrap_or(0).min(OCTAL_SIZE_MAX));
        header.set_size(self.size.min(OCTAL_SIZE_MAX));
        header.set_cksum();
        out.write_all(header.as_bytes())
    }

    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if let Some(length) = self.sparse {
            record(&mut records, "GNU.sparse.major", b"1");
            record(&mut records, "GNU.sparse.minor", b"0");
            record(&mut records, "GNU.sparse.name", self.path);
            record(&mut records, "GNU.sparse.realsize", length.to_string().as_bytes());
        } else if self.path.len() > NAME_MAX {
            record(&mut records, "path", self.path);
        }
        if self.link.len() > NAME_MAX {
            record(&mut records, "linkpath", self.link);
        }
        if self.size > OCTAL_SIZE_MAX {
            record(&mut records, "size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > OCTAL_ID_MAX {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        if nanos != 0 || seconds < 0 {
            record(&mut records, "mtime", time(seconds, nanos).as_bytes());
        }
        records
    }
}

/// Name of the headers with records, which nobody sees.
const NAME: &[u8] = b"PaxHeaders/0";

/// A decimal fraction of seconds; before the epoch the fraction counts the other way.
fn time(seconds: i64, nanos: u32) -> String {
    if seconds >= 0 || nanos == 0 {
        format!("{seconds}.{nanos:09}")
    } else {
        let whole = seconds + 1;
        let sign = if whole == 0 { "-" } else { "" };
        format!("{sign}{whole}.{:09}", 1_000_000_000 - nanos)
    }
}

fn copy_name(field: &mut [u8; NAME_MAX], name: &[u8]) {
    let length = name.len().min(NAME_MAX);
    field[..length].copy_from_slice(&name[..length]);
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// Zeros after so many bytes, up to a whole block.
pub(crate) fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK as u64) - size) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        for (value, expected) in [("x".to_owned(), 7), ("y".repeat(92), 99), ("y".repeat(93), 101)] {
            let mut records = Vec::new();
            record(&mut records, "ab", value.as_bytes());
            assert_eq!(records.len(), expected);
            assert!(records.starts_with(format!("{expected} ").as_bytes()));
        }
    }

    #[test]
    fn times_before_the_epoch_are_negative_fractions() {
        assert_eq!(time(5, 1), "5.000000001");
        assert_eq!(time(-1, 500_000_000), "-0.500000000");
        assert_eq!(time(-2, 250_000_000), "-1.750000000");
        assert_eq!(time(-2, 0), "-2.000000000");
    }
}
