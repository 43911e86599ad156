//! The errors of this crate.

use std::io;
use std::path::PathBuf;

use aegis_types::{Digest, ImageName, InvalidImageConfig};

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
    /// Compressed with something other than gzip or zstd.
    #[error(
        "the archive is compressed with {format}; decompress it first (plain tar, gzip and zstd are read)"
    )]
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
    /// More layers than [`Limits`](crate::Limits) allow.
    #[error("the image has more than {limit} layers")]
    TooManyLayers {
        /// The bound.
        limit: usize,
    },
    /// One layer cannot be applied.
    #[error("cannot apply layer {number} of {count} ({digest})")]
    Layer {
        /// From 1, lowest first.
        number: usize,
        /// Of all layers.
        count: usize,
        /// Of the layer as it is stored.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<ImageError>,
    },
    /// Content is not what it was announced to be.
    #[error("{what} is {found}, but should be {expected}")]
    WrongDigest {
        /// What was hashed.
        what: &'static str,
        /// What was announced.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The configuration is not JSON, or lacks what every image has.
    #[error("the image configuration cannot be read: {why}")]
    UnreadableConfig {
        /// What the parser said, printable and short: it may quote the document.
        why: String,
    },
    /// The configuration says something that no process can be started with.
    #[error(transparent)]
    BadConfig(#[from] InvalidImageConfig),
    /// The configuration is of other layers than those that came with it.
    #[error("the image has {layers} layers, but its configuration lists {listed}")]
    LayerCount {
        /// Layers of the image.
        layers: usize,
        /// Layers in the configuration.
        listed: usize,
    },
    /// The configuration lists another layer than the one that came with it.
    #[error("layer {number} of the image is said to be {found}, but its configuration lists {listed}")]
    LayerOrder {
        /// From 1, lowest first.
        number: usize,
        /// As announced beside the configuration.
        found: Digest,
        /// As in the configuration.
        listed: Digest,
    },
    /// Nothing in it runs here.
    #[error("the image is made for {found}, but this machine runs {wanted}")]
    Platform {
        /// `os/architecture`, or several of them.
        found: String,
        /// `os/architecture`.
        wanted: String,
    },
    /// A tar archive, but not one of an image, or an inconsistent one.
    #[error("`{member}` of the image archive {problem}")]
    Archive {
        /// Printable name of the member.
        member: String,
        /// What is wrong with it.
        problem: ArchiveProblem,
    },
    /// The archive does not say what its image is called, and neither did the caller.
    #[error("the archive does not name its image; choose a name for it")]
    Unnamed,
    /// A name was given, which none of the several images has.
    #[error("the archive has {count} images, and none of them is named `{name}` (names in it: {})", found.join(", "))]
    SeveralImages {
        /// What was asked for.
        name: ImageName,
        /// Number of images.
        count: usize,
        /// What is there, printable.
        found: Vec<String>,
    },
    /// Whoever should get the archive does not take it.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// Nothing in the store has this name.
    #[error("no image named `{0}`")]
    NoSuchImage(ImageName),
    /// An image from before archives were kept cannot be saved.
    #[error("image `{0}` was imported when archives were not kept yet; import it again")]
    NotKept(ImageName),
    /// The store lacks a part of an image.
    #[error("{digest}, a part of the image, is missing or damaged ({}); pull, load or import the image again", path.display())]
    MissingBlob {
        /// The part.
        digest: Digest,
        /// Where it should be.
        path: PathBuf,
    },
    /// Nothing can be removed while others add.
    #[error("images are being pulled, loaded or imported; try again when that is done")]
    Busy,
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
    #[error("image record {} is damaged or missing; pull, load or import the image again", path.display())]
    DamagedRecord {
        /// The record.
        path: PathBuf,
        /// What the parser said, where it is the parser that failed.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The store knows the name, but the image file is gone or is not what was stored.
    #[error("the stored file of image `{name}` is missing or damaged ({}); pull, load or import the image again", path.display())]
    MissingImage {
        /// The name that was looked up.
        name: ImageName,
        /// Where the image should be.
        path: PathBuf,
    },
}

/// What is wrong with a member of an image archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveProblem {
    /// Named, but not there.
    #[error("is missing")]
    Missing,
    /// Neither `index.json` nor `manifest.json` is there.
    #[error(
        "is missing: this is no archive of `docker save` or an OCI layout; \
         `aegis image import` reads archives of root file systems"
    )]
    NotAnImage,
    /// Larger than any such document.
    #[error("is larger than {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// Not the JSON that it should be.
    #[error("cannot be read: {why}")]
    Json {
        /// What the parser said, printable and short: it may quote the document.
        why: String,
    },
    /// The digest in its name, or the one by which it was referred to, is not that of its content.
    #[error("has the digest {found}, but should have {expected}")]
    WrongDigest {
        /// As announced.
        expected: Digest,
        /// As found.
        found: Digest,
    },
    /// Its length is not what was announced.
    #[error("is {found} bytes long, but should be {expected}")]
    WrongSize {
        /// As announced.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// A manifest and an index at once: which of the two depends on who reads it.
    #[error("is a manifest and an index at the same time")]
    Ambiguous,
    /// Neither a manifest nor an index of images.
    #[error("is neither a manifest nor an index of images")]
    Unknown,
    /// Of a type that is not an image of a root file system.
    #[error("has the unsupported type `{media_type}`")]
    UnsupportedType {
        /// Printable.
        media_type: String,
    },
    /// No image in it.
    #[error("lists no image")]
    Empty,
    /// Indices within indices, or more of everything than any archive has.
    #[error("has more than {max} {what}")]
    TooMany {
        /// The bound.
        max: usize,
        /// What there is too much of, in the plural.
        what: &'static str,
    },
    /// The name of an image in it is not one.
    #[error("names an image wrongly: {why}")]
    Name {
        /// What is wrong with the name, printable.
        why: String,
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
    /// Parents that are symbolic links to symbolic links, and so on.
    #[error("more than {max} symbolic links, or very long ones, on the way")]
    TooManyLinks {
        /// The bound.
        max: usize,
    },
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("whiteout of a name that no file can have")]
    BadWhiteout,
    /// A path through a name that only whiteouts have.
    #[error("entry below a whiteout")]
    BelowWhiteout,
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
