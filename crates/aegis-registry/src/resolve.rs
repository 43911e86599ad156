//! From a name to what is to be downloaded.

use std::collections::HashMap;

use aegis_types::{Digest, ImageName, OciConfig};
use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use sha2::{Digest as _, Sha256};

use crate::authorization::Query;
use crate::endpoint::Endpoint;
use crate::error::{Problem, RegistryError};
use crate::manifest::{self, Descriptor, Manifest, Refusal, choose, layer_media};
use crate::platform::Platform;
use crate::registry::Registry;
use crate::text::printable;

/// Indices within indices that are followed.
const DEPTH_MAX: usize = 3;
/// Bytes of a configuration.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// The digest of what is sent, in an answer.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// An image for one architecture. Every digest was verified, and every size is within its bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Of the image's own manifest, which is not that of the index that led to it.
    pub manifest: Digest,
    /// The configuration as it is in the registry: JSON of the OCI or Docker kind.
    pub config: Vec<u8>,
    /// Lowest first. One layer may be there several times.
    pub layers: Vec<RemoteLayer>,
    /// What the image is for, in the words of Go: `amd64`.
    pub architecture: String,
}

/// A layer in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteLayer {
    /// Of the layer as it is transferred.
    pub digest: Digest,
    /// Of the tar that it is when it is unpacked, as the configuration says.
    pub diff_id: Digest,
    /// Of the layer as it is transferred, in bytes.
    pub size_bytes: u64,
    /// How it is packed.
    pub media_type: LayerMedia,
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerMedia {
    /// Not at all.
    Tar,
    /// gzip.
    TarGzip,
    /// Zstandard.
    TarZstd,
}

/// A document as it came, verified.
struct Document {
    bytes: Bytes,
    digest: Digest,
    content_type: Option<String>,
}

/// A document to be got.
struct Wanted<'a> {
    /// For messages: manifest, configuration.
    what: &'static str,
    /// Below the repository.
    path: String,
    accept: Option<&'static str>,
    /// If it is known already.
    digest: Option<&'a Digest>,
    /// If it is known already, in bytes.
    size: Option<u64>,
    max: u64,
}

impl Registry {
    /// Finds the image of a name for Linux on an architecture, which may be in the words of Go (`amd64`) or those of
    /// Rust (`x86_64`), and reads its configuration.
    ///
    /// # Errors
    /// [`RegistryError`], which says what was tried and why it failed.
    pub async fn resolve(&self, name: &ImageName, architecture: &str) -> Result<Resolved, RegistryError> {
        let machine = Platform::linux(architecture);
        let (manifest, config, layers) = self.find(name, &machine).await?;
        let bytes = self.config(name, &config).await?;
        let parsed: OciConfig = serde_json::from_slice(&bytes)
            .map_err(|e| invalid(name, "configuration", printable(&e.to_string())))?;
        let (os, variant) = (parsed.os, parsed.variant);
        let platform = Platform { architecture: parsed.architecture, os, variant };
        if !platform.runs_on(&machine) {
            return Err(wrong_platform(name, &machine, vec![platform.to_string()]));
        }
        let layers =
            join(&layers, parsed.rootfs.diff_ids).map_err(|refusal| refused(name, "manifest", refusal))?;
        let total = layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size_bytes));
        let max = self.options().image_bytes_max;
        if total.is_none_or(|total| total > max) {
            return Err(invalid(name, "manifest", format!("its layers have more than {max} bytes together")));
        }
        Ok(Resolved { manifest, config: bytes.to_vec(), layers, architecture: machine.architecture })
    }

    /// Follows indices until there is the manifest of an image.
    async fn find(
        &self,
        name: &ImageName,
        machine: &Platform,
    ) -> Result<(Digest, Descriptor, Vec<Descriptor>), RegistryError> {
        let mut digest = name.digest();
        let mut size = None;
        for _ in 0..=DEPTH_MAX {
            let reference = digest.as_ref().map(Digest::as_str).or(name.tag()).unwrap_or("latest");
            let wanted = Wanted {
                what: "manifest",
                path: format!("manifests/{reference}"),
                accept: Some(manifest::ACCEPT),
                digest: digest.as_ref(),
                size,
                max: manifest::BYTES_MAX,
            };
            let document = self.document(name, wanted).await?;
            let parsed = manifest::parse(&document.bytes, document.content_type.as_deref());
            match parsed.map_err(|refusal| refused(name, "manifest", refusal))? {
                Manifest::Image { config, layers } => return Ok((document.digest, config, layers)),
                Manifest::Index(entries) => {
                    let entry = choose(&entries, machine)
                        .map_err(|offered| wrong_platform(name, machine, offered))?;
                    digest = Some(entry.digest.clone());
                    size = Some(entry.size);
                }
            }
        }
        Err(invalid(name, "index", format!("it leads through more than {DEPTH_MAX} others")))
    }

    async fn config(&self, name: &ImageName, config: &Descriptor) -> Result<Bytes, RegistryError> {
        let wanted = Wanted {
            what: "configuration",
            path: format!("blobs/{}", config.digest),
            accept: None,
            digest: Some(&config.digest),
            size: Some(config.size),
            max: CONFIG_BYTES_MAX,
        };
        Ok(self.document(name, wanted).await?.bytes)
    }

    /// Gets a document from the first endpoint that has the right one.
    async fn document(&self, name: &ImageName, wanted: Wanted<'_>) -> Result<Document, RegistryError> {
        let repository = name.repository();
        let mut mirrors = Vec::new();
        for endpoint in self.endpoints(name)? {
            let problem = match self.document_from(&endpoint, &repository, &wanted).await {
                Ok(document) => return Ok(document),
                Err(problem) => problem,
            };
            if endpoint.is_mirror && !problem.is_local() {
                tracing::warn!(mirror = endpoint.name, image = %name, %problem, "mirror left out");
                mirrors.push((endpoint.name, problem));
                continue;
            }
            let (what, registry) = (format!("the {} of `{name}`", wanted.what), endpoint.name);
            return Err(RegistryError::Request { what, registry, problem: Box::new(problem), mirrors });
        }
        unreachable!("the last endpoint is no mirror")
    }

    async fn document_from(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Document, Problem> {
        if let Some(size) = wanted.size.filter(|size| *size > wanted.max) {
            tracing::debug!(size, "refused by its size");
            return Err(Problem::TooLarge { max: wanted.max });
        }
        let mut backoff = self.backoff(endpoint);
        loop {
            match self.try_document(endpoint, repository, wanted).await {
                Ok(document) => return Ok(document),
                Err(problem) => backoff.wait(problem).await?,
            }
        }
    }

    async fn try_document(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Document, Problem> {
        let query = Query { repository, path: &wanted.path, accept: wanted.accept, skip: 0 };
        let response = self.get(endpoint, query).await?;
        let headers = response.headers().clone();
        check_encoding(&headers)?;
        let bytes = self.http().await?.body(response, wanted.max).await?;
        let actual = bytes.len() as u64;
        if let Some(expected) = wanted.size.filter(|expected| *expected != actual) {
            return Err(Problem::WrongSize { expected, actual });
        }
        let digest = Digest::from_sha256(&Sha256::digest(&bytes).into());
        // A tag says nothing of the content, but the registry does.
        let sent = header(&headers, CONTENT_DIGEST).and_then(|text| Digest::parse(&text).ok());
        match wanted.digest.cloned().or(sent) {
            Some(expected) if expected != digest => Err(Problem::WrongDigest { expected, actual: digest }),
            _ => Ok(Document { bytes, digest, content_type: header(&headers, CONTENT_TYPE.as_str()) }),
        }
    }
}

/// What is compressed on its way has another digest.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match header(headers, CONTENT_ENCODING.as_str()).as_deref() {
        None | Some("identity" | "") => Ok(()),
        Some(other) => Err(Problem::Malformed(format!("it is encoded as `{}`", printable(other)))),
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Layers of the manifest with what the configuration says of each.
fn join(layers: &[Descriptor], diff_ids: Vec<Digest>) -> Result<Vec<RemoteLayer>, Refusal> {
    if layers.len() != diff_ids.len() {
        let (layers, diff_ids) = (layers.len(), diff_ids.len());
        return Err(Refusal::Invalid(format!("it has {layers} layers, and its configuration {diff_ids}")));
    }
    let mut sizes = HashMap::new();
    let joined = layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
        if *sizes.entry(&layer.digest).or_insert(layer.size) != layer.size {
            return Err(Refusal::Invalid(format!("layer {} has two sizes", layer.digest)));
        }
        let media_type = layer_media(&layer.media_type)?;
        Ok(RemoteLayer { digest: layer.digest.clone(), diff_id, size_bytes: layer.size, media_type })
    });
    joined.collect()
}

fn wrong_platform(image: &ImageName, machine: &Platform, offered: Vec<String>) -> RegistryError {
    RegistryError::Platform { image: image.clone(), wanted: machine.to_string(), offered }
}

fn invalid(image: &ImageName, document: &'static str, why: String) -> RegistryError {
    RegistryError::Invalid { image: image.clone(), document, why }
}

fn refused(image: &ImageName, document: &'static str, refusal: Refusal) -> RegistryError {
    match refusal {
        Refusal::Other(why) => RegistryError::NotAnImage { image: image.clone(), why },
        Refusal::Invalid(why) => invalid(image, document, why),
    }
}
