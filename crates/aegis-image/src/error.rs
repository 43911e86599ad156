//! The errors of this crate.

use std::io;
use std::path::PathBuf;

use aegis_types::ImageName;

/// Why an image could not be built, stored or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The source of the archive failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The first header is not a tar header.
    #[error("not a tar archive")]
    NotTar,
    /// Compressed with something other than gzip.
    #[error("the archive is compressed with {format}; decompress it first (plain tar and gzip are read)")]
    Compressed {
        /// Name of the compression format.
        format: &'static str,
    },
    /// The archive ends early. `entry` is the last name seen.
    #[error("the archive is truncated after `{entry}`")]
    Truncated {
        /// Printable name of the last entry, or `start of the archive`.
        entry: String,
    },
    /// A header whose checksum is wrong.
    #[error("corrupt header at byte {offset} of the archive, after `{entry}`")]
    CorruptHeader {
        /// Byte offset of the header in the (decompressed) archive.
        offset: u64,
        /// Printable name of the entry before it.
        entry: String,
    },
    /// One entry cannot be represented or is malformed.
    #[error("archive entry `{entry}`: {problem}")]
    Entry {
        /// Printable name of the entry.
        entry: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// An extension header (long name, PAX) is malformed; which entry it belongs to is not known yet.
    #[error("extension header after `{after}`: {problem}")]
    Extension {
        /// Printable name of the entry before it, or `start of the archive`.
        after: String,
        /// What is wrong with it.
        problem: EntryProblem,
    },
    /// The archive asks for more than [`Limits`](crate::Limits) allow.
    #[error("archive entry `{entry}` exceeds the limit of {limit} {what}")]
    Limit {
        /// Printable name of the entry.
        entry: String,
        /// The bound, in units of `what`.
        limit: u64,
        /// What is bounded, in the plural.
        what: &'static str,
    },
    /// The image or a file of the store could not be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Verb, as in `create`.
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A name record of the store is not what this program writes.
    #[error("image record {} is damaged; import the image again", path.display())]
    DamagedRecord {
        /// The record.
        path: PathBuf,
        /// What the parser said, where it is the parser that failed.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The store knows the name, but the image file is gone or is not what was stored.
    #[error("the stored file of image `{name}` is missing or damaged ({}); import the image again", path.display())]
    MissingImage {
        /// The name that was looked up.
        name: ImageName,
        /// Where the image should be.
        path: PathBuf,
    },
}

/// What is wrong with one archive entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// A `..` component.
    #[error("`..` in a path")]
    ParentComponent,
    /// A NUL byte inside a name or target.
    #[error("NUL byte in a name or link target")]
    Nul,
    /// A path with more components than allowed.
    #[error("path is more than {max} levels deep")]
    TooDeep {
        /// The bound.
        max: usize,
    },
    /// A path component longer than allowed.
    #[error("a path component is longer than {max} bytes")]
    NameTooLong {
        /// The bound, in bytes.
        max: usize,
    },
    /// The archive's root given as something else than a directory.
    #[error("the root can only be a directory")]
    RootNotDirectory,
    /// A hard link to a path that no earlier entry made.
    #[error("hard link to `{target}`, which is not in the archive before it")]
    MissingLinkTarget {
        /// Printable target.
        target: String,
    },
    /// A hard link to a directory.
    #[error("hard link to directory `{target}`")]
    LinkToDirectory {
        /// Printable target.
        target: String,
    },
    /// A symbolic link with an empty target or one longer than Linux can follow.
    #[error("symbolic link target is empty or longer than 4095 bytes")]
    BadSymlinkTarget,
    /// A numeric field that does not parse or does not fit.
    #[error("invalid {field}")]
    BadNumber {
        /// The field.
        field: &'static str,
    },
    /// A malformed PAX extension header.
    #[error("malformed PAX header")]
    BadPax,
    /// An extended attribute too large for the image format.
    #[error("extended attributes too large")]
    XattrTooLarge,
    /// A malformed or unknown sparse map.
    #[error("malformed or unsupported sparse file map")]
    BadSparse,
    /// An entry type this crate does not know.
    #[error("unsupported entry type `{}`", char::from(*.0).escape_default())]
    UnsupportedType(u8),
}

/// A name from an archive, made printable and short.
pub(crate) fn printable(name: &[u8]) -> String {
    const MAX_CHARS: usize = 200;
    let text = String::from_utf8_lossy(name);
    let mut out: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        out.push('…');
    }
    out
}
