//! What the command of an instance is and what it is given: its spec, its image, its secrets.

use std::sync::Arc;

use aegis_lifecycle::ports::{Injection, Injector, LaunchError};
use aegis_lifecycle::record::InstanceSpec;
use aegis_types::VmId;
use async_trait::async_trait;
use tokio::task;

use crate::images::{Defaults, Images, unavailable};
use crate::secrets::Secrets;
use crate::text::chain;

/// Composes it anew at each boot: nothing of an image is stored with the instance.
pub(crate) struct Processes {
    pub(crate) images: Arc<Images>,
    pub(crate) secrets: Arc<Secrets>,
}

#[async_trait]
impl Injector for Processes {
    async fn inject(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Injection, LaunchError> {
        let (images, wanted) = (Arc::clone(&self.images), spec.clone());
        let image = task::spawn_blocking(move || images.of(&wanted)).await;
        let image = image.expect("looking for an image does not panic").map_err(|e| unavailable(&e))?;
        let Defaults { command, workdir, user } =
            Defaults::of(spec, &image.config).map_err(|e| LaunchError {
                message: e.to_string(),
                hint: Some("delete the instance and create it with a command".to_owned()),
            })?;
        let mut injection = self
            .secrets
            .inject(spec, vm, &image.config.env)
            .await
            .map_err(|error| LaunchError { hint: error.hint(), message: chain(&error) })?;
        injection.command = command;
        injection.workdir = workdir;
        injection.user = user;
        Ok(injection)
    }
}
