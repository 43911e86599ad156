//! Writing EROFS: uncompressed, 4 KiB blocks, extended inodes, tails stored with their inodes.
//!
//! The image, in blocks: the superblock; file contents in archive order; directory blocks; metadata (inodes with
//! their attributes and tails). Contents come first so that they can be written while the archive is read; the
//! superblock, which says where the metadata is, is written last.
//!
//! Written from the documented on-disk format. It needs no feature that Linux 5.4 does not have.

mod directory;
mod erase;
mod format;
mod layout;
mod writer;
mod xattr;

pub(crate) use writer::ImageWriter;
pub(crate) use xattr::encode_xattrs;
