//! Manifests and indices: the OCI forms, Docker's forms of the same, and `manifest.json` of `docker save`.

use std::collections::BTreeMap;

use aegis_types::Digest;
use serde::{Deserialize, Serialize};

use crate::compression::Compression;
use crate::hash;
use crate::layer::Layer;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The name with registry and everything, as containerd and Docker write it beside each image of an archive.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
/// By the specification a name within the archive: some write a tag, some a full name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One document refers to another, or to a layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing)]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

/// A manifest or an index, as read: which of the two it is shows in its members.
#[derive(Debug, Deserialize)]
pub(crate) struct Document {
    pub manifests: Option<Vec<Descriptor>>,
    pub config: Option<Descriptor>,
    pub layers: Option<Vec<Descriptor>>,
}

/// An image in `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    /// Paths within the archive.
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index<'a> {
    schema_version: u8,
    media_type: &'a str,
    manifests: Vec<Descriptor>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// Whether a manifest whose config has this type is of an image rather than of something else that registries keep.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, CONFIG | DOCKER_CONFIG)
}

/// Whether what is behind a layer's type can be applied: not what is encrypted, nor what is no archive.
pub(crate) fn is_layer(media_type: &str) -> bool {
    const KNOWN: [&str; 3] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.",
    ];
    let name = media_type.split('+').next().unwrap_or_default();
    KNOWN.iter().any(|known| name.starts_with(known)) && !media_type.ends_with("+encrypted")
}

/// The manifest of an image that has none of its own, or whose own was not kept. The same image gives the same bytes.
pub(crate) fn manifest(config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let layers = layers.iter().map(|layer| {
        let media_type = match layer.compression {
            Compression::None => TAR,
            Compression::Gzip => TAR_GZIP,
            Compression::Zstd => TAR_ZSTD,
        };
        Descriptor::new(media_type, layer.digest.clone(), layer.size_bytes)
    });
    let config = Descriptor::new(CONFIG, hash::of_bytes(config), config.len() as u64);
    json(&Manifest { schema_version: 2, media_type: MANIFEST, config, layers: layers.collect() })
}

pub(crate) fn index(manifest: Descriptor) -> Vec<u8> {
    json(&Index { schema_version: 2, media_type: INDEX, manifests: vec![manifest] })
}

pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("documents have only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_archives_are_told_from_others() {
        for good in [
            TAR,
            TAR_GZIP,
            TAR_ZSTD,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(is_layer(good), "{good}");
        }
        for bad in [
            "",
            "application/vnd.in-toto+json",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        ] {
            assert!(!is_layer(bad), "{bad}");
        }
    }
}
