//! Root images: a tar archive in, one read-only EROFS image out, without root.
//!
//! The daemon calls this crate to import images and to find them again. It keeps owners, modes, modification
//! times, extended attributes, hard links, symbolic links, device nodes and fifos exactly as the archive has them.
//!
//! The archive is hostile input. What always holds:
//! * Entry names never reach the host file system: they only become keys of an in-memory tree and bytes of the image.
//! * Memory is bounded by [`Limits`], whatever the archive claims; file contents are streamed, never held.
//! * The same archive gives the same image, byte for byte.
//!
//! How entries that disagree are settled (docs/design/root-images.md has the reasons):
//! * A leading `/` or `./` is dropped; a `..` component is an error.
//! * The last entry for a path wins; only a directory over a directory keeps what is below it.
//! * A parent that is missing, or that is not a directory (a symbolic link included), becomes a directory of mode
//!   0755 owned by root. Symbolic links are data: they are never followed.
//! * A hard link names an earlier path of the same archive, or the archive is refused.
//!
//! It does not pull from registries, merge layers or interpret whiteouts.
#![forbid(unsafe_code)]

mod archive;
mod convert;
mod erofs;
mod error;
mod limits;
mod store;
mod tree;

pub use convert::{BuildSummary, build_erofs};
pub use error::{EntryProblem, ImageError};
pub use limits::Limits;
pub use store::{ImageInfo, Store};
