//! Reading tar: V7, ustar, GNU (long names, sparse, base-256 numbers) and PAX (extended attributes, sparse).
//!
//! Written for hostile input: nothing is allocated by a size the archive claims, extension headers are bounded, and
//! which entries carry content is decided by their type alone, as Go and Python do, so that no header can hide in
//! what another reader takes for content.

mod header;
mod pax;
mod reader;
mod sparse;

pub(crate) use reader::{End, Reader, Spent};

/// One archive member, extension headers already applied.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As the archive has it: may be absolute, end in a slash, hold `..`.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits, without the file type.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Full attribute names and raw values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes that the archive holds in a form this reader does not translate.
    pub xattrs_skipped: u64,
}

#[derive(Debug)]
pub(crate) enum EntryKind {
    File(Content),
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// The bytes of a file: `size` in all, zero outside `segments`, which ascend and do not overlap.
#[derive(Debug)]
pub(crate) struct Content {
    pub size: u64,
    pub segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub offset: u64,
    pub len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub major: u32,
    pub minor: u32,
}

/// Seconds since the epoch, negative before it, and the nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mtime {
    pub secs: i64,
    pub nanos: u32,
}
