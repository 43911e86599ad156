//! The messages of `linux/fuse.h`, as far as carrying them needs to look into them.

use aegis_proto::fuse::{ANSWER_HEADER, MESSAGE_MAX, PLACE_BYTES, REQUEST_HEADER};

// Operations of `linux/fuse.h`.
pub(super) const LOOKUP: u32 = 1;
pub(super) const FORGET: u32 = 2;
pub(super) const SYMLINK: u32 = 6;
pub(super) const MKNOD: u32 = 8;
pub(super) const MKDIR: u32 = 9;
pub(super) const RENAME: u32 = 12;
pub(super) const LINK: u32 = 13;
pub(super) const READ: u32 = 15;
pub(super) const RELEASE: u32 = 18;
pub(super) const GETXATTR: u32 = 22;
pub(super) const INIT: u32 = 26;
pub(super) const CREATE: u32 = 35;
pub(super) const INTERRUPT: u32 = 36;
pub(super) const NOTIFY_REPLY: u32 = 41;
pub(super) const BATCH_FORGET: u32 = 42;
pub(super) const RENAME2: u32 = 45;

// What a message without a request tells (`enum fuse_notify_code`).
const INVAL_INODE: u32 = 2;
const INVAL_ENTRY: u32 = 3;

/// Place of the node in the header of a request.
const NODE: usize = 16;
/// Bytes of `struct fuse_getxattr_in`, after which the name stands.
const GETXATTR_IN: usize = 8;
/// Bytes of `struct fuse_read_in` that are looked at.
const READ_IN: usize = 20;
/// Bytes of `struct fuse_entry_out`.
const ENTRY_OUT: usize = 128;
/// Attributes that only the kernel asks for.
const KERNELS_OWN: [&[u8]; 3] = [b"security.", b"system.", b"trusted."];

/// What the received bytes begin with.
pub(super) enum Frame<'a> {
    Complete(u32, &'a [u8]),
    Partial,
    Nonsense(usize),
}

pub(super) fn frame(received: &[u8]) -> Frame<'_> {
    if received.len() < PLACE_BYTES + 4 {
        return Frame::Partial;
    }
    let length = word(received, PLACE_BYTES) as usize;
    if !(ANSWER_HEADER..=MESSAGE_MAX).contains(&length) {
        return Frame::Nonsense(length);
    }
    match received[PLACE_BYTES..].get(..length) {
        Some(message) => Frame::Complete(word(received, 0), message),
        None => Frame::Partial,
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What a request reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Read {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// What this request reads, if it does.
pub(super) fn read(message: &[u8]) -> Option<Read> {
    let body =
        message.get(REQUEST_HEADER..).filter(|body| word(message, 4) == READ && body.len() >= READ_IN)?;
    Some(Read { handle: long(body, 0), offset: long(body, 8), size: word(body, 16) })
}

/// The number of a request, which is that of its answer: at the same place in both headers.
pub(super) fn unique(message: &[u8]) -> u64 {
    long(message, 8)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named<'a> {
    /// Number of the directory.
    pub(super) parent: u64,
    pub(super) name: &'a [u8],
}

/// The name that a request is about, or that it gives to something.
pub(super) fn named(message: &[u8]) -> Option<Named<'_>> {
    // Bytes before the name; which of the names counts; whether they begin with the number of another directory.
    let (skipped, which, elsewhere) = match word(message, 4) {
        LOOKUP | SYMLINK => (0, 0, false),
        MKDIR | LINK => (8, 0, false),
        MKNOD | CREATE => (16, 0, false),
        RENAME => (8, 1, true),
        RENAME2 => (16, 1, true),
        _ => return None,
    };
    let body = &message[REQUEST_HEADER..];
    let name = body.get(skipped..)?.split(|&byte| byte == 0).nth(which)?;
    let parent = if elsewhere { long(body, 0) } else { long(message, NODE) };
    Some(Named { parent, name })
}

/// What the answer to a request for a new directory says.
pub(super) struct Entry {
    pub(super) node: u64,
    /// How long its attributes are valid, in seconds.
    pub(super) attributes_valid: u64,
}

pub(super) fn made_entry(message: &[u8]) -> Option<Entry> {
    let entry = message.get(ANSWER_HEADER..).filter(|entry| entry.len() >= ENTRY_OUT)?;
    Some(Entry { node: long(entry, 0), attributes_valid: long(entry, 24) })
}

/// The number of what changed, a directory if a name did.
pub(super) fn node_told(message: &[u8]) -> Option<u64> {
    let known = matches!(word(message, 4), INVAL_INODE | INVAL_ENTRY) && message.len() >= ANSWER_HEADER + 8;
    known.then(|| long(message, ANSWER_HEADER))
}

pub(super) fn is_kernels_own(message: &[u8]) -> bool {
    let name = message.get(REQUEST_HEADER + GETXATTR_IN..).unwrap_or_default();
    KERNELS_OWN.iter().any(|own| name.starts_with(own))
}

/// An answer without content.
pub(super) fn answer(number: u64, error: i32) -> [u8; ANSWER_HEADER] {
    answer_header(number, error, 0)
}

/// What comes before so many bytes of content.
pub(super) fn answer_header(number: u64, error: i32, content: usize) -> [u8; ANSWER_HEADER] {
    let mut message = [0; ANSWER_HEADER];
    let length = u32::try_from(ANSWER_HEADER + content).expect("below 2 MiB");
    message[..4].copy_from_slice(&length.to_le_bytes());
    message[4..8].copy_from_slice(&error.to_le_bytes());
    message[8..].copy_from_slice(&number.to_le_bytes());
    message
}
