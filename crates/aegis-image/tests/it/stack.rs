//! Images of several layers, in a store that has something worth attacking beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aegis_image::{Compression, Description, ImageError, ImageInfo, Layer, Limits, Store, host_architecture};
use aegis_types::{Digest, ImageName};
use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;

use super::support::*;

pub(crate) fn name(text: &str) -> ImageName {
    ImageName::parse(text).unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// A store in a home with files around it that nothing may touch.
pub(crate) struct Home {
    dir: TempDir,
    pub store: Store,
    before: BTreeMap<PathBuf, (Vec<u8>, u32, i64)>,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Home {
        let dir = tempfile::tempdir().unwrap();
        for file in ["etc/passwd", "canary", "data/canary", "data/registry.db"] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "untouched").unwrap();
        }
        let store = Store::open_with(&dir.path().join("data/images"), limits).unwrap();
        let mut home = Home { dir, store, before: BTreeMap::new() };
        home.before = home.surroundings();
        home
    }

    /// The directory of the store.
    pub(crate) fn images(&self) -> PathBuf {
        self.dir.path().join("data/images")
    }

    /// A file outside of the store.
    pub(crate) fn canary(&self) -> PathBuf {
        self.dir.path().join("canary")
    }

    fn surroundings(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32, i64)> {
        let mut found = BTreeMap::new();
        let mut pending = vec![self.dir.path().to_owned()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = fs::symlink_metadata(&path).unwrap();
                if path == self.images() {
                    continue;
                } else if meta.is_dir() {
                    found.insert(path.clone(), (Vec::new(), meta.mode(), 0));
                    pending.push(path);
                } else {
                    let content = fs::read(&path).unwrap();
                    found.insert(path, (content, meta.mode(), meta.mtime_nsec()));
                }
            }
        }
        found
    }

    pub(crate) fn put(&self, blob: &[u8]) -> Digest {
        let digest = sha256(blob);
        fs::write(self.store.blob_path(&digest), blob).unwrap();
        digest
    }

    /// A layer of this archive, packed.
    pub(crate) fn layer(&self, tar: &[u8], compression: Compression) -> Layer {
        let blob = match compression {
            Compression::None => tar.to_vec(),
            Compression::Gzip => gzip(tar),
            Compression::Zstd => zstd(tar),
        };
        let size_bytes = blob.len() as u64;
        Layer { digest: self.put(&blob), diff_id: sha256(tar), size_bytes, compression }
    }

    pub(crate) fn describe(&self, layers: Vec<Layer>) -> Description {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = config(&diff_ids).to_string().into_bytes();
        Description { manifest: sha256(&[&b"manifest of "[..], &config].concat()), config, layers }
    }

    pub(crate) fn build(&self, image: &str, layers: &[Vec<u8>]) -> Result<ImageInfo, ImageError> {
        let layers = layers.iter().map(|tar| self.layer(tar, Compression::Gzip)).collect();
        let hold = self.store.hold().unwrap();
        self.store.build(&hold, &name(image), &self.describe(layers), &|_, _| {})
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.surroundings(), self.before, "files beside the store were touched");
            let leftovers = |dir: &Path| {
                let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
                names.filter(|name| name.starts_with(".import")).collect::<Vec<_>>()
            };
            for dir in ["", "names", "manifests", "blobs"] {
                assert_eq!(leftovers(&self.images().join(dir)), [""; 0]);
            }
        }
    }
}

/// A configuration with something in it.
pub(crate) fn config(diff_ids: &[Digest]) -> Value {
    json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/srv" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// What an image of these layers looks like.
pub(crate) fn stacked(layers: &[Vec<u8>]) -> Listing {
    let home = Home::new();
    let info = home.build("stacked", layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
    fsck(&info.path);
    read_image(&info.path)
}

/// Why an image of these layers is refused.
pub(crate) fn stack_error(layers: &[Vec<u8>]) -> String {
    let home = Home::new();
    let error = home.build("stacked", layers).expect_err("the layers are refused");
    assert!(home.store.list().unwrap().is_empty());
    chain(&error)
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += ": ";
        text += &cause.to_string();
        source = cause.source();
    }
    text
}
