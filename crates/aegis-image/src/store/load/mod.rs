//! Archives of images: what `docker save`, Podman, Skopeo, BuildKit and [`Store::save`] write.

mod docker;
mod members;
mod oci;

use std::io::Read;

use aegis_types::{Digest, ImageName};

use super::files;
use super::{Hold, ImageInfo, Store};
use crate::compression::Compression;
use crate::config;
use crate::error::{ArchiveProblem, ImageError};
use crate::hash;
use crate::layer::{Description, Layer};
use crate::manifest;
use members::{Members, Spooled};

/// An image in an archive, everything verified but what its layers unpack to.
struct Found {
    /// `None` in archives that have no manifests.
    manifest: Option<Digest>,
    config: Vec<u8>,
    layers: Vec<Spooled>,
    names: Vec<ImageName>,
}

impl Store {
    /// Builds the images of an archive (plain, gzip or zstd) and gives them the names that they have in it. `name` is
    /// what the only image, or an image without a name, is called instead; of several it selects the one of this name.
    ///
    /// # Errors
    /// [`ImageError::Archive`] names the member that is at fault; [`ImageError::Platform`] if nothing in it runs here;
    /// [`ImageError::Unnamed`] and [`ImageError::SeveralImages`] if it is not clear what to call what; otherwise as
    /// [`Store::build`]. Of several images those before the one at fault stay.
    pub fn load(&self, archive: impl Read, name: Option<&ImageName>) -> Result<Vec<ImageInfo>, ImageError> {
        let hold = self.hold()?;
        let members = Members::spool(archive, files::temp_dir(&self.dir)?, &self.limits)?;
        // Where both are there, the index knows more: the manifest that a registry knows the image by.
        let images = if members.has(oci::INDEX) {
            oci::images(&members)?
        } else if members.has(docker::MANIFEST) {
            docker::images(&members)?
        } else {
            return Err(ImageError::Archive {
                member: docker::MANIFEST.into(),
                problem: ArchiveProblem::NotAnImage,
            });
        };
        let images = named(images, name)?;
        let mut loaded = Vec::new();
        for image in images {
            self.load_image(&hold, image, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn load_image(&self, hold: &Hold, image: Found, loaded: &mut Vec<ImageInfo>) -> Result<(), ImageError> {
        let (_, listed) = config::parse(&image.config)?;
        if listed.len() != image.layers.len() {
            return Err(ImageError::LayerCount { layers: image.layers.len(), listed: listed.len() });
        }
        let mut layers = Vec::new();
        for (spooled, diff_id) in image.layers.iter().zip(listed) {
            layers.push(self.take_layer(spooled, diff_id)?);
        }
        let manifest =
            image.manifest.unwrap_or_else(|| hash::of_bytes(&manifest::manifest(&image.config, &layers)));
        let description = Description { manifest, config: image.config, layers };
        let (first, others) = image.names.split_first().expect("named() gives every image a name");
        let info = self.build(hold, first, &description, &|_, _| {})?;
        loaded.push(info);
        for name in others {
            loaded.extend(self.tag(name, &description.manifest)?);
        }
        Ok(())
    }

    /// Moves a layer to the blobs. One that is there already is replaced: the new one is known to be whole.
    fn take_layer(&self, spooled: &Spooled, diff_id: Digest) -> Result<Layer, ImageError> {
        let blob = if spooled.file.exists() {
            self.adopt_blob(&spooled.file, &spooled.digest)?;
            self.blob_path(&spooled.digest)
        } else {
            self.existing_blob(&spooled.digest)? // another image of the archive brought it there
        };
        let compression = Compression::of(&members::start(&blob)?)?;
        Ok(Layer { digest: spooled.digest.clone(), diff_id, size_bytes: spooled.size, compression })
    }
}

/// Settles what each image is called.
fn named(mut images: Vec<Found>, name: Option<&ImageName>) -> Result<Vec<Found>, ImageError> {
    if let Some(name) = name {
        let at = match images.len() {
            1 => Some(0),
            _ => images.iter().position(|image| image.names.contains(name)),
        };
        let Some(at) = at else {
            let found = images.iter().flat_map(|image| &image.names).map(ToString::to_string).collect();
            return Err(ImageError::SeveralImages { name: name.clone(), count: images.len(), found });
        };
        let mut image = images.swap_remove(at);
        image.names = vec![name.clone()];
        return Ok(vec![image]);
    }
    if images.iter().any(|image| image.names.is_empty()) {
        return Err(ImageError::Unnamed);
    }
    Ok(images)
}
