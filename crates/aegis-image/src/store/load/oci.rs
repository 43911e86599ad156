//! OCI image layouts: `index.json` lists manifests, or further indices with one manifest for each platform.

use std::collections::BTreeSet;

use aegis_types::{Digest, ImageName, OciConfig};

use super::members::{Members, Spooled};
use super::{Found, docker};
use crate::config;
use crate::error::{ArchiveProblem, ImageError, printable};
use crate::hash;
use crate::manifest::{Descriptor, DockerImage, Document, FULL_NAME, REF_NAME, is_image_config, is_layer};

pub(super) const INDEX: &str = "index.json";
/// Indices within indices.
const DEPTH_MAX: usize = 4;
/// Manifests and indices looked at.
const DOCUMENTS_MAX: usize = 2000;

struct Search<'m> {
    members: &'m Members,
    documents: usize,
    /// Platforms that are there but do not run here.
    foreign: BTreeSet<String>,
}

/// A manifest of this machine's platform.
struct Chosen {
    digest: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// All images for this machine.
pub(super) fn images(members: &Members) -> Result<Vec<Found>, ImageError> {
    let index: Document = members.json(INDEX)?;
    let tags = docker_names(members)?;
    let mut search = Search { members, documents: 0, foreign: BTreeSet::new() };
    let mut images: Vec<Found> = Vec::new();
    for descriptor in index.manifests.unwrap_or_default() {
        let Some(chosen) = search.choose(&descriptor, 0)? else { continue };
        let mut names: Vec<ImageName> = annotated(&descriptor).into_iter().collect();
        for (config, tagged) in &tags {
            if *config == chosen.config.digest {
                names.extend(tagged.iter().cloned());
            }
        }
        names.sort();
        names.dedup();
        // One image with several names is listed once for each.
        if let Some(same) = images.iter_mut().find(|image| image.manifest.as_ref() == Some(&chosen.digest)) {
            same.names.extend(names);
            same.names.sort();
            same.names.dedup();
            continue;
        }
        images.push(search.found(chosen, names)?);
    }
    if images.is_empty() {
        return Err(match search.foreign.is_empty() {
            true => ImageError::Archive { member: INDEX.into(), problem: ArchiveProblem::Empty },
            false => ImageError::Platform {
                found: search.foreign.into_iter().collect::<Vec<_>>().join(", "),
                wanted: config::platform(),
            },
        });
    }
    Ok(images)
}

/// What `manifest.json`, if Docker wrote one too, says that images are called: by their configurations.
fn docker_names(members: &Members) -> Result<Vec<(Digest, Vec<ImageName>)>, ImageError> {
    if !members.has(docker::MANIFEST) {
        return Ok(Vec::new());
    }
    let images: Vec<DockerImage> = members.json(docker::MANIFEST)?;
    let named = |image: &DockerImage| -> Result<_, ImageError> {
        Ok((members.get(&image.config)?.digest.clone(), docker::names(image)?))
    };
    images.iter().map(named).collect()
}

/// The name that annotations give. A reference that is only a tag, as some write it, names nothing.
fn annotated(descriptor: &Descriptor) -> Option<ImageName> {
    let full = descriptor.annotation(FULL_NAME);
    let reference = descriptor.annotation(REF_NAME).filter(|name| name.contains([':', '/']));
    [full, reference].into_iter().flatten().find_map(|name| ImageName::parse(name).ok())
}

impl Search<'_> {
    /// The manifest for this machine that is behind a descriptor.
    fn choose(&mut self, descriptor: &Descriptor, depth: usize) -> Result<Option<Chosen>, ImageError> {
        if let Some(platform) = &descriptor.platform
            && !config::runs_here(&platform.os, &platform.architecture)
        {
            // Not a platform, but how builders mark what they attest about an image.
            if platform.architecture != "unknown" {
                self.foreign.insert(described(&platform.os, &platform.architecture));
            }
            return Ok(None);
        }
        let path = path(&descriptor.digest);
        let problem = |problem| ImageError::Archive { member: path.clone(), problem };
        self.documents += 1;
        if self.documents > DOCUMENTS_MAX {
            return Err(problem(ArchiveProblem::TooMany { max: DOCUMENTS_MAX, what: "manifests beside it" }));
        }
        self.checked(descriptor)?;
        let document: Document = self.members.json(&path)?;
        match document {
            Document { manifests: Some(_), config: Some(_), .. }
            | Document { manifests: Some(_), layers: Some(_), .. } => Err(problem(ArchiveProblem::Ambiguous)),
            Document { manifests: Some(inner), .. } => {
                if depth == DEPTH_MAX {
                    let what = "indices within each other";
                    return Err(problem(ArchiveProblem::TooMany { max: DEPTH_MAX, what }));
                }
                for descriptor in &inner {
                    if let Some(chosen) = self.choose(descriptor, depth + 1)? {
                        return Ok(Some(chosen));
                    }
                }
                Ok(None)
            }
            Document { config: Some(config), layers: Some(layers), .. } => {
                self.manifest(descriptor, config, layers)
            }
            Document { .. } => Err(problem(ArchiveProblem::Unknown)),
        }
    }

    fn manifest(
        &mut self,
        descriptor: &Descriptor,
        config: Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Option<Chosen>, ImageError> {
        if !is_image_config(&config.media_type) {
            return Err(unsupported(&descriptor.digest, &config.media_type));
        }
        if let Some(layer) = layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            return Err(unsupported(&descriptor.digest, &layer.media_type));
        }
        self.checked(&config)?;
        // Descriptors need not say the platform.
        let said: OciConfig = self.members.json(&path(&config.digest))?;
        if !config::runs_here(&said.os, &said.architecture) {
            self.foreign.insert(described(&said.os, &said.architecture));
            return Ok(None);
        }
        Ok(Some(Chosen { digest: descriptor.digest.clone(), config, layers }))
    }

    fn found(&self, chosen: Chosen, names: Vec<ImageName>) -> Result<Found, ImageError> {
        let config = self.members.document(&path(&chosen.config.digest))?;
        debug_assert_eq!(hash::of_bytes(&config), chosen.config.digest);
        let layers = chosen.layers.iter().map(|layer| self.checked(layer).cloned());
        Ok(Found { manifest: Some(chosen.digest), config, layers: layers.collect::<Result<_, _>>()?, names })
    }

    /// The blob that a descriptor means, if it is what the descriptor says.
    fn checked(&self, descriptor: &Descriptor) -> Result<&Spooled, ImageError> {
        let path = path(&descriptor.digest);
        let blob = self.members.get(&path)?;
        let problem = if blob.digest != descriptor.digest {
            let (expected, found) = (descriptor.digest.clone(), blob.digest.clone());
            ArchiveProblem::WrongDigest { expected, found }
        } else if blob.size != descriptor.size {
            ArchiveProblem::WrongSize { expected: descriptor.size, found: blob.size }
        } else {
            return Ok(blob);
        };
        Err(ImageError::Archive { member: path, problem })
    }
}

fn unsupported(manifest: &Digest, media_type: &str) -> ImageError {
    let media_type = printable(media_type.as_bytes());
    let problem = ArchiveProblem::UnsupportedType { media_type };
    ImageError::Archive { member: path(manifest), problem }
}

fn described(os: &str, architecture: &str) -> String {
    printable(format!("{os}/{architecture}").as_bytes())
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
