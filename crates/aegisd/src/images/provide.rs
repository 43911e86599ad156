//! Before an instance boots: its image is there, and from the first boot on it is always the same.

use std::sync::Arc;

use aegis_lifecycle::ports::{LaunchError, LogSink, SystemMessage};
use aegis_lifecycle::record::InstanceSpec;
use aegis_types::{ImageName, PullPolicy};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::task;

use super::pull::{PullError, PullState};
use super::{FindError, Images, Kept, Pin, Pulls, RootImage, is_built_in};
use crate::logs::LogStore;
use crate::text::chain;

/// Hundredths of a download between two lines about it.
const LINE_STEP: u64 = 5;

/// See the module.
pub(crate) struct Provider {
    images: Arc<Images>,
    pulls: Arc<Pulls>,
    logs: Arc<LogStore>,
    /// For instances that say nothing about it.
    policy: PullPolicy,
    /// Read while an image is chosen and kept, written while others are removed.
    choosing: RwLock<()>,
}

/// What is known of the image of an instance before anything is done.
enum Found {
    /// It is kept, and there.
    Kept,
    /// It is kept, and gone.
    Gone(Pin),
    /// This is its first boot.
    First(PullPolicy, Option<RootImage>),
}

impl Provider {
    pub(crate) fn new(
        images: Arc<Images>,
        pulls: Arc<Pulls>,
        logs: Arc<LogStore>,
        policy: PullPolicy,
    ) -> Self {
        Self { images, pulls, logs, policy, choosing: RwLock::default() }
    }

    /// Images of which nobody is choosing one while this is held.
    pub(crate) async fn settled(&self) -> RwLockWriteGuard<'_, ()> {
        self.choosing.write().await
    }

    /// Sees to it that the image of the instance is there and stays the same, pulling it if need be. Dropping this
    /// gives up.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn provide(&self, spec: &InstanceSpec) -> Result<(), LaunchError> {
        match self.look(spec).await.map_err(|e| unavailable(&e))? {
            Found::Kept => Ok(()),
            Found::Gone(pin) => self.get_back(spec, pin).await,
            Found::First(policy, here) => {
                if pulls(policy, &spec.image, here.as_ref()) {
                    self.pull(spec, &spec.image).await?;
                }
                self.keep(spec, None).await
            }
        }
    }

    async fn look(&self, spec: &InstanceSpec) -> Result<Found, FindError> {
        let (images, spec, policy) = (Arc::clone(&self.images), spec.clone(), self.policy);
        let look = move || match images.kept(&spec.id)? {
            Kept { pin: Some(pin), .. } => match images.pinned(&spec.image, &pin)? {
                Some(_) => {
                    images.mark_used(&spec.image);
                    Ok(Found::Kept)
                }
                None => Ok(Found::Gone(pin)),
            },
            Kept { pin: None, pull } => {
                let here = match images.find(&spec.image) {
                    Ok(image) => Some(image),
                    Err(FindError::Unknown(_)) => None,
                    Err(error) => return Err(error),
                };
                Ok(Found::First(pull.unwrap_or(policy), here))
            }
        };
        task::spawn_blocking(look).await.expect("looking for an image does not panic")
    }

    /// The image that the disk of the instance belongs to is gone.
    async fn get_back(&self, spec: &InstanceSpec, pin: Pin) -> Result<(), LaunchError> {
        if pin.manifest.is_none() && is_built_in(&spec.image) {
            // An update of the installation brings another one. Nobody keeps the old one.
            let line = "the image `base` was updated; the disk of the instance goes on with the new one";
            self.logs.system(&spec.id, SystemMessage::Error(line.to_owned())).await;
            return self.keep(spec, None).await;
        }
        let gone = unavailable(&FindError::Gone { name: spec.image.clone(), digest: pin.digest.clone() });
        if let Some(manifest) = &pin.manifest
            && self.policy != PullPolicy::Never
        {
            let name = &spec.image;
            let name = ImageName::parse(&format!("{}/{}@{manifest}", name.registry(), name.repository()));
            if let Ok(name) = name {
                // It may never have been at a registry.
                self.pull(spec, &name).await.map_err(|e| LaunchError {
                    message: format!("{}, and {}", gone.message, e.message),
                    hint: gone.hint.clone(),
                })?;
                return self.keep(spec, Some(pin)).await;
            }
        }
        Err(gone)
    }

    /// Keeps what the name means now; or what was kept, if it is there again.
    async fn keep(&self, spec: &InstanceSpec, pin: Option<Pin>) -> Result<(), LaunchError> {
        let _choosing: RwLockReadGuard<'_, ()> = self.choosing.read().await;
        let (images, spec) = (Arc::clone(&self.images), spec.clone());
        let keep = move || {
            let pin = match pin {
                Some(pin) => match images.pinned(&spec.image, &pin).map_err(|e| unavailable(&e))? {
                    Some(_) => return Ok(()),
                    None => {
                        let gone = FindError::Gone { name: spec.image.clone(), digest: pin.digest };
                        return Err(unavailable(&gone));
                    }
                },
                None => {
                    let image = images.find(&spec.image).map_err(|e| unavailable(&e))?;
                    Pin { digest: image.digest, manifest: image.manifest }
                }
            };
            images.mark_used(&spec.image);
            images.keep(&spec.id, &Kept { pull: None, pin: Some(pin) }).map_err(|e| LaunchError {
                message: format!("cannot note which image the instance has: {e}"),
                hint: Some("`aegis doctor` shows how much space is left".to_owned()),
            })
        };
        task::spawn_blocking(keep).await.expect("writing a file does not panic")
    }

    /// Pulls an image, and tells in the log of the instance how that goes.
    async fn pull(&self, spec: &InstanceSpec, name: &ImageName) -> Result<(), LaunchError> {
        let mut following = self.pulls.pull(name).await;
        let mut lines = Lines::new(name.clone());
        loop {
            let state = following.state();
            if let Some(line) = lines.line(&state) {
                self.logs.system(&spec.id, SystemMessage::Error(line)).await;
            }
            if let PullState::Done(outcome) = state {
                return match outcome {
                    Ok(_) => Ok(()),
                    Err(error) => Err(not_pulled(name, &error)),
                };
            }
            following.changed().await;
        }
    }
}

/// Whether a registry is asked.
pub(crate) fn pulls(policy: PullPolicy, name: &ImageName, here: Option<&RootImage>) -> bool {
    match (policy, here) {
        (PullPolicy::Never, _) | (PullPolicy::Missing, Some(_)) => false,
        (PullPolicy::Missing | PullPolicy::Always, None) => true,
        // A digest means the same for ever, and so does the built-in image until something takes its place.
        (PullPolicy::Always, Some(image)) => image.manifest.is_some() && name.digest().is_none(),
    }
}

/// A pull that failed, as the outcome of a start.
pub(crate) fn not_pulled(name: &ImageName, error: &PullError) -> LaunchError {
    let hint = match error {
        PullError::Registry(error) => error.hint(),
        PullError::NoSpace { .. } => Some("`aegis image prune` makes room".to_owned()),
        PullError::Store(_) | PullError::FileSystem(_) | PullError::GivenUp => None,
    };
    LaunchError { message: format!("cannot pull image `{name}`: {}", chain(error)), hint }
}

/// An image that cannot be had, as the outcome of a start.
pub(crate) fn unavailable(error: &FindError) -> LaunchError {
    let hint = match error {
        FindError::NotInstalled(e) => Some(e.hint.clone()),
        FindError::Unknown(name) => {
            Some(format!("get it with `aegis image pull {name}`, or import one with `aegis image import`"))
        }
        FindError::Gone { .. } => {
            Some("without it its disk cannot be used: delete the instance and create it anew".to_owned())
        }
        FindError::Unreadable { .. } => Some("`aegis doctor` checks the installation".to_owned()),
        FindError::Store(_) => None,
    };
    let message = match error {
        FindError::NotInstalled(e) => e.to_string(),
        error => chain(error),
    };
    LaunchError { message, hint }
}

/// Which lines a log gets of a pull.
struct Lines {
    name: ImageName,
    said: Option<&'static str>,
    percent: u64,
}

impl Lines {
    fn new(name: ImageName) -> Self {
        Self { name, said: None, percent: 0 }
    }

    /// The line that this state is worth.
    fn line(&mut self, state: &PullState) -> Option<String> {
        let name = &self.name;
        let (stage, percent, text) = match state {
            PullState::Resolving => ("resolving", 0, format!("image resolving: {name}")),
            PullState::Downloading(layers) => {
                let done: u64 = layers.iter().map(|layer| layer.done_bytes).sum();
                let total: u64 = layers.iter().map(|layer| layer.size_bytes).sum();
                let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
                let amount = format!("{} of {}", mebibytes(done), mebibytes(total));
                ("downloading", percent, format!("image downloading: {name} ({amount})"))
            }
            PullState::Building(..) => ("unpacking", 0, format!("image unpacking: {name}")),
            PullState::Done(Ok(_)) => ("ready", 0, format!("image ready: {name}")),
            PullState::Done(Err(_)) => return None,
        };
        if self.said == Some(stage) && percent < self.percent.saturating_add(LINE_STEP) {
            return None;
        }
        (self.said, self.percent) = (Some(stage), percent);
        Some(text)
    }
}

fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aegis_api::LayerProgress;
    use aegis_types::{Digest, ImageConfig};

    use super::*;

    fn digest() -> Digest {
        Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap()
    }

    #[test]
    fn registries_are_asked_for_what_came_from_them() {
        let image = |manifest| RootImage {
            path: "/x".into(),
            digest: "sha256:1".to_owned(),
            manifest,
            config: ImageConfig::default(),
        };
        let (built_in, pulled) = (image(None), image(Some(digest())));
        let tag = ImageName::parse("python:3").unwrap();
        let pinned = ImageName::parse(&format!("python@{}", digest())).unwrap();
        use PullPolicy::{Always, Missing, Never};
        for (policy, name, here, expected) in [
            (Missing, &tag, None, true),
            (Missing, &tag, Some(&pulled), false),
            (Missing, &tag, Some(&built_in), false),
            (Always, &tag, None, true),
            (Always, &tag, Some(&pulled), true),
            (Always, &tag, Some(&built_in), false),
            (Always, &pinned, Some(&pulled), false),
            (Always, &pinned, None, true),
            (Never, &tag, None, false),
            (Never, &tag, Some(&pulled), false),
        ] {
            assert_eq!(pulls(policy, name, here), expected, "{policy} {name} {here:?}");
        }
    }

    #[test]
    fn a_long_download_has_few_lines() {
        let mut lines = Lines::new(ImageName::parse("python:3").unwrap());
        let downloading = |done_bytes| {
            PullState::Downloading(vec![LayerProgress {
                digest: digest(),
                done_bytes,
                size_bytes: 100 << 20,
            }])
        };
        let mut all: Vec<String> = lines.line(&PullState::Resolving).into_iter().collect();
        all.extend(lines.line(&PullState::Resolving));
        for megabytes in 0..=100 {
            all.extend(lines.line(&downloading(megabytes << 20)));
        }
        all.extend(lines.line(&PullState::Building(0, 0)));
        all.extend(lines.line(&PullState::Building(1, 2)));
        assert_eq!(all.len(), 1 + 21 + 1, "{all:?}");
        assert_eq!(all[0], "image resolving: python:3");
        assert_eq!(all[2], "image downloading: python:3 (5.0 MiB of 100.0 MiB)");
        assert_eq!(all[22], "image unpacking: python:3");
    }
}
