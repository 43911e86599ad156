//! Mounted directories of the host: one session after the other, on the second port of the guest.
//!
//! ```text
//! stream  host → guest   16 random bytes                     the session lasts as long as its stream
//! port    guest → host   the same bytes                      what came before them is left from an earlier session
//!         host → guest   the same bytes
//!         both           frames: place in `Hello::mounts`, message
//!         guest → host   frame: [`END`], 40 zero bytes       parking: there is nothing to come
//! ```
//! A frame begins with a little-endian `u32`. The message that follows is one of the guest kernel's FUSE (`linux/fuse.h`), raw:
//! it begins with its length in bytes, itself included, as a little-endian `u32`.
//!
//! A message costs the guest much more than the host, above all where its CPU is emulated. So they have a port of their own,
//! without a multiplexer, and three answers are given in the guest: that a file was closed (`FUSE_RELEASE`, which the host
//! does not answer), that nothing has an attribute of the kernel's own (`security.…`, `system.…`, `trusted.…`), and that a name
//! is not in a directory that the guest has just made ([`TOLD_SECONDS`]).
//!
//! Content that is read in long pieces does not come over the port, whose driver takes 4 KiB at a time, but from a disk: the
//! one with the serial number [`CONTENT_DISK`]. No bytes are on it. A read at the address of a [`Content`] gives a sector that
//! begins with how much there is, or why there is nothing, as a little-endian `i32` (a count of bytes, or a negative `errno`), and
//! after it what is in the file.

/// Seconds for which the guest may believe what it was told if the host tells of changes by others. A directory that the guest
/// makes, and whose attributes are valid for so long, is empty.
pub const TOLD_SECONDS: u64 = 3600;
/// Bytes that begin a session.
pub const NONCE_BYTES: usize = 16;
/// In the place of a mount: the last frame of a session that is parked.
pub const END: u32 = u32::MAX;
/// Bytes of a message at most: 1 MiB of content, and what the kernel puts before it.
pub const MESSAGE_MAX: usize = (1 << 20) + 4096;
/// Bytes of the header of a request (`struct fuse_in_header`).
pub const REQUEST_HEADER: usize = 40;
/// Bytes of the header of an answer (`struct fuse_out_header`). One whose `unique` is 0 is a notification.
pub const ANSWER_HEADER: usize = 16;
/// Bytes before a message.
pub const PLACE_BYTES: usize = 4;

/// Serial number of the disk on which the content of open files is.
pub const CONTENT_DISK: &str = "aegis.content";
/// Bytes of that disk.
pub const CONTENT_BYTES: u64 = 1 << 62;
/// Bytes before the content.
pub const CONTENT_HEAD: usize = 512;
/// Bytes of content in one read at most, so that the guest's kernel never makes two of it.
pub const CONTENT_MAX: usize = 512 * 1024;
/// What addresses of content are multiples of.
pub const CONTENT_UNIT: u64 = 4096;
/// Numbers of open files are below this.
pub const HANDLES_END: u64 = 1 << HANDLE_BITS;

const PLACE_BITS: u32 = 3;
const HANDLE_BITS: u32 = 24;
const OFFSET_BITS: u32 = 35;
const _: () = assert!(CONTENT_BYTES == 1 << (PLACE_BITS + HANDLE_BITS + OFFSET_BITS));

/// Where content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Of the mount.
    pub place: u32,
    /// Number of the open file, as the host gave it.
    pub handle: u64,
    /// Position in the file, in bytes.
    pub offset: u64,
}

impl Content {
    /// Its address on the disk, unless there is none: those are for the first 32 GiB of a file, by whole units.
    pub fn address(self) -> Option<u64> {
        let fits = u64::from(self.place) >> PLACE_BITS == 0
            && self.handle < HANDLES_END
            && self.offset >> OFFSET_BITS == 0
            && self.offset.is_multiple_of(CONTENT_UNIT);
        let file = u64::from(self.place) << HANDLE_BITS | self.handle;
        fits.then_some(file << OFFSET_BITS | self.offset)
    }

    /// What is at this address.
    pub fn at(address: u64) -> Option<Self> {
        let file = address >> OFFSET_BITS;
        let content = Self {
            place: u32::try_from(file >> HANDLE_BITS).ok()?,
            handle: file & (HANDLES_END - 1),
            offset: address & ((1 << OFFSET_BITS) - 1),
        };
        (content.address() == Some(address)).then_some(content)
    }
}

/// Position after the nonce in what was received, if it is there.
pub fn after_nonce(received: &[u8], nonce: &[u8; NONCE_BYTES]) -> Option<usize> {
    received.windows(NONCE_BYTES).position(|window| window == nonce).map(|at| at + NONCE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_content_lead_back_to_it() {
        let content = |place, handle, offset| Content { place, handle, offset };
        for known in [content(0, 1, 0), content(7, HANDLES_END - 1, (32 << 30) - CONTENT_UNIT)] {
            assert_eq!(known.address().and_then(Content::at), Some(known));
        }
        for none in
            [content(8, 1, 0), content(0, HANDLES_END, 0), content(0, 1, 32 << 30), content(0, 1, 512)]
        {
            assert_eq!(none.address(), None, "{none:?}");
        }
        assert_eq!((Content::at(512), Content::at(CONTENT_BYTES), Content::at(u64::MAX)), (None, None, None));
    }

    #[test]
    fn a_nonce_is_found_wherever_it_begins() {
        let nonce = *b"0123456789abcdef";
        assert_eq!(after_nonce(b"", &nonce), None);
        assert_eq!(after_nonce(b"0123456789abcdef", &nonce), Some(16));
        assert_eq!(after_nonce(b"0120123456789abcdef!", &nonce), Some(19));
    }
}
