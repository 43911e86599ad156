//! Archives of `docker save`: `manifest.json` says which files are configuration and layers.

use aegis_types::ImageName;

use super::Found;
use super::members::Members;
use crate::error::{ArchiveProblem, ImageError, printable};
use crate::manifest::DockerImage;

pub(super) const MANIFEST: &str = "manifest.json";
/// What Docker calls an image without a name.
const NO_NAME: &str = "<none>";

pub(super) fn images(members: &Members) -> Result<Vec<Found>, ImageError> {
    let images: Vec<DockerImage> = members.json(MANIFEST)?;
    if images.is_empty() {
        return Err(ImageError::Archive { member: MANIFEST.into(), problem: ArchiveProblem::Empty });
    }
    images.into_iter().map(|image| found(members, image)).collect()
}

fn found(members: &Members, image: DockerImage) -> Result<Found, ImageError> {
    let layers = image.layers.iter().flatten().map(|path| members.get(path).cloned());
    Ok(Found {
        manifest: None,
        config: members.document(&image.config)?,
        layers: layers.collect::<Result<_, _>>()?,
        names: names(&image)?,
    })
}

/// The names of one image.
pub(super) fn names(image: &DockerImage) -> Result<Vec<ImageName>, ImageError> {
    let tags = image.repo_tags.iter().flatten().filter(|tag| !tag.contains(NO_NAME));
    tags.map(|tag| {
        ImageName::parse(tag).map_err(|error| ImageError::Archive {
            member: MANIFEST.into(),
            problem: ArchiveProblem::Name { why: printable(error.to_string().as_bytes()) },
        })
    })
    .collect()
}
