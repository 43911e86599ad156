//! One pull: from a name to an image in the store.

use std::io;
use std::sync::Arc;

use aegis_api::LayerProgress;
use aegis_image::{Compression, Description, ImageError, ImageInfo, Layer, host_architecture};
use aegis_registry::{LayerMedia, Registry, RegistryError, RemoteLayer, Resolved};
use aegis_types::ImageName;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;
use tokio::task;

use super::Images;

/// Layers that are downloaded at a time.
const PARALLEL: usize = 3;

/// How far a pull is.
#[derive(Debug, Clone)]
pub(crate) enum PullState {
    /// The registry is asked what the name means.
    Resolving,
    /// Layers are on their way.
    Downloading(Vec<LayerProgress>),
    /// The root image is made: bytes of layers that were unpacked, and all of them.
    Building(u64, u64),
    /// It has ended.
    Done(Result<Arc<Pulled>, Arc<PullError>>),
}

/// What came of a pull.
#[derive(Debug, Clone)]
pub(crate) struct Pulled {
    /// The image.
    pub(crate) image: ImageInfo,
    /// The name means another one than before.
    pub(crate) changed: bool,
}

/// The image could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// From its registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It could not be unpacked or stored.
    #[error(transparent)]
    Store(#[from] ImageError),
    /// Its layers alone need more than there is.
    #[error("its layers need {} MiB, and {} MiB are free", needed >> 20, free >> 20)]
    NoSpace {
        /// Bytes that are still to be downloaded.
        needed: u64,
        /// Bytes that the file system has for us.
        free: u64,
    },
    /// How much room there is cannot be told.
    #[error("cannot look at the file system of the image store")]
    FileSystem(#[source] io::Error),
    /// Nobody wants it any more.
    #[error("it was given up")]
    GivenUp,
}

/// Downloads what is missing and makes the image. Dropping this gives up; what was downloaded is kept.
pub(super) async fn pull(
    images: &Arc<Images>,
    registry: &Registry,
    name: &ImageName,
    state: &watch::Sender<PullState>,
) -> Result<Pulled, PullError> {
    let resolved = registry.resolve(name, host_architecture()).await?;
    let (store, wanted) = (images.store().clone(), name.clone());
    let before = blocking(move || match store.resolve(&wanted) {
        // A pull repairs it.
        Err(ImageError::MissingImage { .. } | ImageError::DamagedRecord { .. }) => Ok(None),
        found => found,
    });
    let before = before.await?.map(|image| image.digest);
    let (store, wanted, manifest) = (images.store().clone(), name.clone(), resolved.manifest.clone());
    let known = blocking(move || store.tag(&wanted, &manifest)).await?;
    let image = match known {
        Some(image) => image,
        None => {
            // Until there is an image, nothing else says that its layers are needed.
            let store = images.store().clone();
            let hold = blocking(move || store.hold()).await?;
            download(images, registry, name, &resolved, state).await?;
            let (store, wanted, state) = (images.store().clone(), name.clone(), state.clone());
            let description = describe(resolved);
            blocking(move || {
                let progress = |done, total| drop(state.send_replace(PullState::Building(done, total)));
                progress(0, 0);
                store.build(&hold, &wanted, &description, &progress)
            })
            .await?
        }
    };
    let changed = before.as_ref() != Some(&image.digest);
    Ok(Pulled { image, changed })
}

async fn download(
    images: &Images,
    registry: &Registry,
    name: &ImageName,
    resolved: &Resolved,
    state: &watch::Sender<PullState>,
) -> Result<(), PullError> {
    let store = images.store();
    let progress = |layer: &RemoteLayer| {
        let here = |path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        let complete = store.blob_path(&layer.digest);
        let done = if complete.exists() { layer.size_bytes } else { here(store.partial_path(&layer.digest)) };
        LayerProgress {
            digest: layer.digest.clone(),
            done_bytes: done.min(layer.size_bytes),
            size_bytes: layer.size_bytes,
        }
    };
    let layers: Vec<LayerProgress> = resolved.layers.iter().map(progress).collect();
    let needed = layers.iter().map(|layer| layer.size_bytes - layer.done_bytes).sum();
    check_space(images, needed)?;
    state.send_replace(PullState::Downloading(layers));
    let fetch = |(index, layer): (usize, &RemoteLayer)| {
        let (layer, size) = (layer.clone(), layer.size_bytes);
        async move {
            let (partial, complete) = (store.partial_path(&layer.digest), store.blob_path(&layer.digest));
            let tell = move |done: u64| {
                state.send_modify(|state| {
                    if let PullState::Downloading(layers) = state {
                        layers[index].done_bytes = done.min(size);
                    }
                });
            };
            // Images share layers, and an image may have one twice: it waits for whoever downloads this one already.
            registry.fetch(name, &layer, &partial, &complete, &tell).await?;
            Ok::<_, PullError>(())
        }
    };
    let fetches: Vec<_> = resolved.layers.iter().enumerate().map(fetch).collect();
    stream::iter(fetches).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    Ok(())
}

fn check_space(images: &Images, needed: u64) -> Result<(), PullError> {
    let space = rustix::fs::statvfs(images.home.images()).map_err(|e| PullError::FileSystem(e.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if needed > free { Err(PullError::NoSpace { needed, free }) } else { Ok(()) }
}

fn describe(resolved: Resolved) -> Description {
    let layers = resolved.layers.into_iter().map(|layer| Layer {
        digest: layer.digest,
        diff_id: layer.diff_id,
        size_bytes: layer.size_bytes,
        compression: match layer.media_type {
            LayerMedia::Tar => Compression::None,
            LayerMedia::TarGzip => Compression::Gzip,
            LayerMedia::TarZstd => Compression::Zstd,
        },
    });
    Description { manifest: resolved.manifest, config: resolved.config, layers: layers.collect() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, PullError> {
    Ok(task::spawn_blocking(work).await.expect("the image store does not panic")?)
}
