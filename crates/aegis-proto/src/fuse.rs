//! A mounted directory of the host, on a stream of its own.
//!
//! The host begins with the place of the mount in [`crate::hello::Hello::mounts`], as two bytes, big-endian. What follows are
//! the messages of the guest kernel's FUSE (`linux/fuse.h`), raw, in both directions: each begins with its length in bytes,
//! itself included, as a little-endian `u32`.
//!
//! A stream may end at any time; the host opens another one. Requests that were not answered before fail in the guest, but
//! parking waits for their answers.

/// Bytes of a message at most: 1 MiB of content, and what the kernel puts before it.
pub const MESSAGE_MAX: usize = (1 << 20) + 4096;
/// Bytes of the header of a request (`struct fuse_in_header`).
pub const REQUEST_HEADER: usize = 40;
/// Bytes of the header of an answer (`struct fuse_out_header`). One whose `unique` is 0 is a notification.
pub const ANSWER_HEADER: usize = 16;
