//! What an archive may make us spend.

/// Upper bounds on one image: on the one archive, or on all of its layers together. Crossing one is
/// [`ImageError::Limit`](crate::ImageError::Limit), naming the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Headers read, and separately inodes made (parents that no entry names count too).
    pub max_entries: u64,
    /// Bytes of file content (holes included) plus bytes of extension headers.
    pub max_bytes: u64,
    /// Components in one path.
    pub max_depth: usize,
    /// Bytes in one path component; EROFS stores no more than 255.
    pub max_name: usize,
    /// Bytes of names, link targets and extended attributes, all of which stay in memory during a build.
    pub max_metadata_bytes: u64,
    /// Layers of one image.
    pub max_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 2_000_000,
            max_bytes: 64 << 30,
            max_depth: 256,
            max_name: 255,
            max_metadata_bytes: 512 << 20,
            max_layers: 500, // no builder makes more than 127
        }
    }
}
