//! Who needs which image. Everything here blocks.

use std::collections::{HashMap, HashSet};

use aegis_lifecycle::record::InstanceSpec;
use aegis_types::InstanceId;

use super::{FindError, Images};

/// Users of root images, by their digests.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    instances: HashMap<String, Vec<InstanceId>>,
    templates: HashSet<String>,
}

impl Uses {
    /// Looks at every instance; those that have not had their first boot use what their name means now.
    pub(crate) fn of(
        images: &Images,
        specs: &[InstanceSpec],
        templates: impl IntoIterator<Item = String>,
    ) -> Result<Uses, FindError> {
        let mut instances = HashMap::<String, Vec<InstanceId>>::new();
        for spec in specs {
            let digest = match images.kept(&spec.id)?.pin {
                Some(pin) => pin.digest,
                None => match images.find(&spec.image) {
                    Ok(image) => image.digest,
                    // It will be pulled, or cannot be.
                    Err(FindError::Unknown(_) | FindError::NotInstalled(_)) => continue,
                    Err(error) => return Err(error),
                },
            };
            instances.entry(digest).or_default().push(spec.id.clone());
        }
        Ok(Uses { instances, templates: templates.into_iter().collect() })
    }

    /// Instances that need the root image with this digest.
    pub(crate) fn instances(&self, digest: &str) -> &[InstanceId] {
        self.instances.get(digest).map_or(&[], Vec::as_slice)
    }

    /// Whether anything needs it.
    pub(crate) fn contains(&self, digest: &str) -> bool {
        self.instances.contains_key(digest) || self.templates.contains(digest)
    }
}
