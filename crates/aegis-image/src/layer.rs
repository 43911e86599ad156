//! Layers and images as registries and archives describe them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aegis_types::Digest;
use serde::{Deserialize, Serialize};

use crate::archive::End;
use crate::build::Builder;
use crate::compression::{Compression, decompressed};
use crate::error::ImageError;
use crate::hash::Hashing;

/// One layer, complete in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Of the layer as it is stored.
    pub digest: Digest,
    /// Of the uncompressed archive; verified while it is applied.
    pub diff_id: Digest,
    /// As it is stored.
    pub size_bytes: u64,
    /// How it is stored, as far as is known before it was looked at.
    pub compression: Compression,
}

/// An image as a registry or an archive describes it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Of the manifest, which is what a registry knows the image by.
    pub manifest: Digest,
    /// The raw JSON document, in the form of OCI or Docker. Its digest has been verified.
    pub config: Vec<u8>,
    /// Lowest first. Their blobs are in the store.
    pub layers: Vec<Layer>,
}

/// Applies the layer in `blob`; returns how it is really compressed. `read` hears of every piece that was read.
pub(crate) fn apply(
    builder: &mut Builder<'_>,
    blob: &Path,
    diff_id: &Digest,
    read: &mut dyn FnMut(u64),
) -> Result<Compression, ImageError> {
    let open = |source| ImageError::File { action: "open", path: blob.to_owned(), source };
    let input = Counting { input: File::open(blob).map_err(open)?, read };
    let (compression, tar) = decompressed(Box::new(input))?;
    let mut tar = Hashing::new(tar);
    builder.apply(&mut tar, End::MarkerOrStream)?;
    let found = tar.digest();
    if found != *diff_id {
        return Err(ImageError::WrongDigest {
            what: "the uncompressed archive",
            expected: diff_id.clone(),
            found,
        });
    }
    Ok(compression)
}

struct Counting<'f, R> {
    input: R,
    read: &'f mut dyn FnMut(u64),
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        (self.read)(count as u64);
        Ok(count)
    }
}
