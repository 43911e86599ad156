//! Images in a registry, and clients for it.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_registry::{
    CredentialStore, Options, Problem, Registry, RegistryError, RemoteLayer, Resolved, Retries,
};
use aegis_types::{Digest, ImageName};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::server::{Body, Reply, Request, Server};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Bytes that no two layers share.
pub(crate) fn bytes(seed: u8, count: usize) -> Vec<u8> {
    (0..count).map(|i| (i as u64).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

/// What a registry has in repository `r`, by its path below that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content(HashMap<String, (String, Vec<u8>)>);

/// A descriptor.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

impl Content {
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = digest(bytes);
        self.0.insert(format!("blobs/{digest}"), ("application/octet-stream".to_owned(), bytes.to_vec()));
        digest
    }

    /// A document under its digest and, if there is one, a tag.
    pub(crate) fn document(&mut self, tag: Option<&str>, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        for reference in [Some(digest(&bytes).to_string()), tag.map(str::to_owned)].into_iter().flatten() {
            self.0.insert(format!("manifests/{reference}"), (media_type.to_owned(), bytes.clone()));
        }
        descriptor(media_type, &bytes)
    }

    pub(crate) fn config(&mut self, architecture: &str, layers: usize) -> Vec<u8> {
        let diff_ids: Vec<_> = (0..layers).map(|i| digest(&[u8::try_from(i).unwrap()])).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let bytes = config.to_string().into_bytes();
        self.blob(&bytes);
        bytes
    }

    /// An image for an architecture with these layers; its descriptor.
    pub(crate) fn image(&mut self, tag: Option<&str>, architecture: &str, layers: &[&[u8]]) -> Value {
        let config = self.config(architecture, layers.len());
        for layer in layers {
            self.blob(layer);
        }
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(OCI_GZIP, layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config), "layers": layers});
        self.document(tag, OCI_MANIFEST, &manifest)
    }

    /// What a registry that keeps to the protocol answers.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        if request.target == "/v2/" {
            return Reply::ok("{}");
        }
        let found = request.target.strip_prefix("/v2/r/").and_then(|path| self.0.get(path));
        let Some((media_type, bytes)) = found else {
            return Reply::new(404).with(Body::Whole(
                br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#.to_vec(),
            ));
        };
        let reply = match request.header("range").map(range) {
            Some(from) if from >= bytes.len() => return Reply::new(416),
            Some(from) => {
                let (last, total) = (bytes.len() - 1, bytes.len());
                Reply::new(206)
                    .header("content-range", &format!("bytes {from}-{last}/{total}"))
                    .with(Body::Whole(bytes[from..].to_vec()))
            }
            None => Reply::ok(bytes.clone()),
        };
        reply.header("content-type", media_type)
    }

    /// A registry that keeps to the protocol.
    pub(crate) async fn serve(&self) -> Server {
        let content = self.clone();
        Server::start(move |request, _| content.answer(request)).await
    }
}

pub(crate) fn range(text: &str) -> usize {
    text.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
}

/// A client with a directory of its own.
pub(crate) struct Client {
    pub(crate) registry: Registry,
    pub(crate) dir: TempDir,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Options, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(CredentialStore::new(dir.path().join("credentials.json")));
        options.retries = Retries {
            attempts_max: 3,
            first_wait: Duration::from_millis(1),
            wait_max: Duration::from_secs(2),
        };
        change(&mut options, dir.path());
        Self { registry: Registry::new(options), dir }
    }

    pub(crate) fn part(&self) -> PathBuf {
        self.dir.path().join("layer.part")
    }

    pub(crate) fn complete(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    pub(crate) async fn resolve(&self, server: &Server, reference: &str) -> Result<Resolved, RegistryError> {
        self.registry.resolve(&name(server, reference), "x86_64").await
    }

    pub(crate) async fn fetch(&self, server: &Server, layer: &RemoteLayer) -> Result<(), RegistryError> {
        self.registry.fetch(&name(server, ":t"), layer, &self.part(), &self.complete(), &|_| {}).await
    }
}

/// Repository `r` of a server.
pub(crate) fn name(server: &Server, reference: &str) -> ImageName {
    ImageName::parse(&format!("{}/r{reference}", server.host())).unwrap()
}

/// The layer that has these bytes.
pub(crate) fn layer(bytes: &[u8]) -> RemoteLayer {
    RemoteLayer {
        digest: digest(bytes),
        diff_id: digest(b"unpacked"),
        size_bytes: bytes.len() as u64,
        media_type: aegis_registry::LayerMedia::TarGzip,
    }
}

/// What went wrong at the registry itself.
#[track_caller]
pub(crate) fn problem<T>(result: Result<T, RegistryError>) -> Problem {
    match result {
        Err(RegistryError::Request { problem, .. }) => *problem,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}

/// An error with its causes and its hint.
pub(crate) fn text(error: &RegistryError) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        out.push_str(&format!(" | {cause}"));
        source = cause.source();
    }
    format!("{out} | {}", error.hint().unwrap_or_default())
}
