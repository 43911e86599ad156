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
//! without a multiplexer, and two answers are given in the guest: that a file was closed (`FUSE_RELEASE`, which the host
//! does not answer), and that nothing has an attribute of the kernel's own (`security.…`, `system.…`, `trusted.…`).

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

/// Position after the nonce in what was received, if it is there.
pub fn after_nonce(received: &[u8], nonce: &[u8; NONCE_BYTES]) -> Option<usize> {
    received.windows(NONCE_BYTES).position(|window| window == nonce).map(|at| at + NONCE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_found_wherever_it_begins() {
        let nonce = *b"0123456789abcdef";
        assert_eq!(after_nonce(b"", &nonce), None);
        assert_eq!(after_nonce(b"0123456789abcdef", &nonce), Some(16));
        assert_eq!(after_nonce(b"0120123456789abcdef!", &nonce), Some(19));
    }
}
