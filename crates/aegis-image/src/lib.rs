//! Root images: layers or a tar archive in, one read-only EROFS image out, without root.
//!
//! The daemon calls this crate to build what it pulled, to load, import and save images, to find them again and to
//! clear away what nobody needs. Images keep owners, modes, modification times, extended attributes, hard links,
//! symbolic links, device nodes and fifos exactly as the archives have them.
//!
//! Archives, manifests and configurations are hostile input. What always holds:
//! * Entry names never reach the host file system: they only become keys of an in-memory tree and bytes of the image.
//!   What has a name on the host is named by a digest that was verified or by a name that was checked.
//! * Memory is bounded by [`Limits`], whatever an archive claims; contents are streamed, never held.
//! * The same layers give the same image, byte for byte.
//!
//! How entries that disagree are settled (docs/design/root-images.md has the reasons):
//! * A leading `/` or `./` is dropped; a `..` component is an error.
//! * The last entry for a path wins; only a directory over a directory keeps what is below it.
//! * A whiteout hides what lower layers put at a name or in a directory, never what its own layer puts there.
//! * A parent that is missing or a file becomes a directory of mode 0755 owned by root. One that is a symbolic link is
//!   followed inside the tree, as a process in the image's root would follow it. The last component never is.
//! * A hard link names an earlier path of its own or a lower layer, or the archive is refused.
//!
//! It does not talk to registries.
#![forbid(unsafe_code)]

mod archive;
mod build;
mod compression;
mod config;
mod erofs;
mod error;
mod hash;
mod layer;
mod limits;
mod manifest;
mod store;
mod tree;

pub use build::{BuildSummary, build_erofs};
pub use compression::Compression;
pub use config::host_architecture;
pub use error::{ArchiveProblem, EntryProblem, ImageError};
pub use layer::{Description, Layer};
pub use limits::Limits;
pub use store::{Deleted, DiskUsage, Hold, ImageInfo, ImageUsage, PruneScope, Pruned, Store, StoredImage};
