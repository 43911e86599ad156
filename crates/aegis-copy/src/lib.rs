//! Trees of files as tar streams, both ways: [`pack`] and [`unpack`]. The harness uses it in the guest and the command line
//! on the host, each with the other's stream.
//!
//! Streams are PAX: times to the nanosecond, names of any length and bytes, holes of sparse files left out. What other
//! programs write is read as well, but for the sparse files of the old GNU format.
//!
//! **Invariants.** A stream is hostile. Nothing is allocated by a size that it claims, and nothing outside of the directory that
//! was given is written: names have no `..`, each component is opened relative to a descriptor of its parent without
//! following symbolic links (unless the caller trusts those that are there), and a hard link leads only to a file that
//! the same stream made. Devices, pipes and sockets are not made. A file appears under its name when it is complete.
//!
//! One file that cannot be copied is a line in the [`CopyReport`]; the others go on. It blocks: callers have threads.
#![forbid(unsafe_code)]

mod header;
mod pack;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;

pub use aegis_types::CopyReport;
pub use pack::{pack, stat};
pub use stream::StreamError;
pub use unpack::{Owners, UnpackError, Unpacking, unpack};

/// Size of a block of a tar stream, in bytes.
const BLOCK: usize = 512;
/// Bytes that are moved at once.
const CHUNK: usize = 64 << 10;
/// Directories below each other. Each is a descriptor while its content is copied.
const DEPTH_MAX: usize = 256;

/// A name for people. Control characters would reach a terminal.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().take(400).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
