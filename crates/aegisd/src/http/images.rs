//! Images: list, look at, delete, and what they take up.

use std::sync::Arc;
use std::time::Duration;

use aegis_api::{
    ErrorCode, ImageDeleted, ImageInfo, ImageSummary, ImageUsage, ImageUsageEntry, PruneImages, PrunedImages,
};
use aegis_image::{ImageError, PruneScope};
use aegis_types::{ImageConfig, ImageName, PullPolicy, parse_duration};
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::{ApiError, no_image};
use super::extract::{Json, Params};
use super::instances::{Answer, before};
use super::{App, Shared};
use crate::images::{FindError, Images, NoCommand, Uses, full_command, is_built_in, pulls_first, summary};

/// Images, by name.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<ImageSummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Answer<Vec<ImageSummary>> {
    let list = with(&app, Images::list).await;
    list.map(axum::Json).map_err(|e| ApiError::internal("cannot list the images", &e))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NameParams {
    /// Of the image.
    #[param(required)]
    name: Option<String>,
}

/// Everything about an image.
#[utoipa::path(
    get,
    path = "/v1/images/inspect",
    params(NameParams),
    responses((status = 200, body = ImageInfo))
)]
pub(super) async fn inspect(
    State(app): State<Shared>,
    Params(params): Params<NameParams>,
) -> Answer<ImageInfo> {
    look(&app, &image_name(params.name)?).await.map(axum::Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParams {
    /// Of the image.
    #[param(required)]
    name: Option<String>,
    /// `1`: also if an instance uses the image, which keeps it.
    force: Option<String>,
}

/// Takes a name from an image, which goes with its last name unless an instance or a template uses it.
#[utoipa::path(
    delete,
    path = "/v1/images",
    params(DeleteParams),
    responses((status = 200, body = ImageDeleted))
)]
pub(super) async fn delete(
    State(app): State<Shared>,
    Params(params): Params<DeleteParams>,
) -> Answer<ImageDeleted> {
    let name = image_name(params.name)?;
    let force = matches!(params.force.as_deref(), Some("1" | "true"));
    let _settled = app.provider.settled().await;
    let wanted = name.clone();
    let is_damaged = with(&app, move |images| {
        let found = images.store().resolve(&wanted);
        matches!(found, Err(ImageError::MissingImage { .. } | ImageError::DamagedRecord { .. }))
    });
    // Of no use to anybody.
    if !is_damaged.await {
        let image = look(&app, &name).await?;
        if image.summary.builtin {
            let text = format!("cannot delete image `{name}`: it came with the installation");
            return Err(ApiError::invalid(text));
        }
        let listed = with(&app, Images::list).await.map_err(|e| unreadable(&e))?;
        let names = listed.iter().filter(|other| other.digest == image.summary.digest).count();
        if names <= 1 && !force && !image.used_by.is_empty() {
            return Err(in_use(&app, &image));
        }
    }
    let uses = uses(&app).await?;
    let wanted = name.clone();
    let deleted = with(&app, move |images| {
        let store = images.store();
        match store.delete(&wanted)? {
            Some(_) => store.prune(&|digest| uses.contains(digest), &PruneScope::default()).map(Some),
            // It was found by its digest, under another name.
            None => Ok(None),
        }
    });
    let freed_bytes = match deleted.await {
        Ok(Some(pruned)) => pruned.freed_bytes,
        Ok(None) => return Err(no_image(&FindError::Unknown(name), &known(&app).await)),
        // The name is gone. The rest goes later.
        Err(ImageError::Busy) => {
            app.garbage.notify_one();
            0
        }
        Err(error) => return Err(ApiError::internal(format!("cannot delete image `{name}`"), &error)),
    };
    Ok(axum::Json(ImageDeleted { name, freed_bytes }))
}

fn in_use(app: &App, image: &ImageInfo) -> ApiError {
    let users: Vec<String> = image
        .used_by
        .iter()
        .map(|id| match app.manager.find(id.as_str()) {
            Some(instance) => super::error::label(&instance).to_owned(),
            None => id.to_string(),
        })
        .collect();
    let text = format!("cannot delete image `{}`: it is used by {}", image.summary.name, users.join(", "));
    ApiError::new(ErrorCode::ImageInUse, text)
        .with_hint("delete the instances first, or take the name away with `--force`: they keep the image")
}

/// Deletes what nobody needs: images without a name that no instance and no template uses, layers of no image, and downloads
/// that were given up.
#[utoipa::path(
    post,
    path = "/v1/images/prune",
    request_body = PruneImages,
    responses((status = 200, body = PrunedImages))
)]
pub(super) async fn prune(State(app): State<Shared>, Json(wish): Json<PruneImages>) -> Answer<PrunedImages> {
    let age = match &wish.older_than {
        Some(text) => parse_duration(text).map_err(|e| ApiError::invalid(e.to_string()))?,
        None => Duration::ZERO,
    };
    let cutoff = before(Timestamp::now(), age);
    let _settled = app.provider.settled().await;
    let uses = uses(&app).await?;
    let scope = PruneScope { unused_before: wish.all.then_some(cutoff), partial_before: cutoff };
    let pruned = with(&app, move |images| images.store().prune(&|digest| uses.contains(digest), &scope));
    let pruned = pruned.await.map_err(|e| match e {
        ImageError::Busy => ApiError::new(ErrorCode::ImageInUse, "cannot prune while images are being added")
            .with_hint("try again when pulls and imports have ended"),
        e => ApiError::internal("cannot prune the images", &e),
    })?;
    Ok(axum::Json(PrunedImages {
        names: pruned.names,
        images: pruned.images.len(),
        freed_bytes: pruned.freed_bytes,
    }))
}

/// What images take up on the disk.
#[utoipa::path(get, path = "/v1/images/df", responses((status = 200, body = ImageUsage)))]
pub(super) async fn usage(State(app): State<Shared>) -> Answer<ImageUsage> {
    let uses = uses(&app).await?;
    let usage = with(&app, |images| images.store().disk_usage()).await.map_err(|e| unreadable(&e))?;
    let entry = |image: aegis_image::ImageUsage| ImageUsageEntry {
        used: uses.contains(&image.digest),
        name: image.name,
        digest: image.digest,
        image_bytes: image.image_bytes,
        layers_bytes: image.layer_bytes,
        shared_bytes: image.shared_bytes,
        unique_bytes: image.unique_bytes,
    };
    Ok(axum::Json(ImageUsage {
        images_bytes: usage.image_bytes,
        unnamed_bytes: usage.unnamed_bytes,
        layers_bytes: usage.layer_bytes,
        partial_bytes: usage.partial_bytes,
        reclaimable_bytes: usage.unneeded_bytes + usage.partial_bytes,
        images: usage.images.into_iter().map(entry).collect(),
    }))
}

/// The name in a query.
pub(super) fn image_name(text: Option<String>) -> Result<ImageName, ApiError> {
    let text = text.ok_or_else(|| ApiError::invalid("`name` is required"))?;
    ImageName::parse(&text).map_err(|e| ApiError::invalid(e.to_string()))
}

/// Everything about the image of this name.
pub(super) async fn look(app: &Shared, name: &ImageName) -> Result<ImageInfo, ApiError> {
    let wanted = name.clone();
    let found = with(app, move |images| {
        let Some(image) = images.store().resolve(&wanted)? else {
            let built_in = if is_built_in(&wanted) { images.built_in_summary() } else { None };
            return built_in.map(built_in_info).ok_or(FindError::Unknown(wanted));
        };
        let (config, layers) = (image.config.clone(), image.layers.clone());
        Ok(ImageInfo { summary: summary(image), config, layers, used_by: Vec::new() })
    });
    let mut image = match found.await {
        Ok(image) => image,
        Err(error) => return Err(no_image(&error, &known(app).await)),
    };
    image.used_by = uses(app).await?.instances(&image.summary.digest).to_vec();
    Ok(image)
}

fn built_in_info(image: ImageSummary) -> ImageInfo {
    ImageInfo { summary: image, config: ImageConfig::default(), layers: Vec::new(), used_by: Vec::new() }
}

/// Names of all images; only for hints.
pub(super) async fn known(app: &Shared) -> Vec<String> {
    let listed = with(app, Images::list).await.unwrap_or_default();
    listed.into_iter().map(|image| image.name.into()).collect()
}

/// Refuses an image for a new instance that is not there and will not be, and one that does not say what to run if
/// nobody else does. `command` is what follows the image's entry point, if that counts.
pub(super) async fn check(
    app: &Shared,
    image: &ImageName,
    pull: PullPolicy,
    command: Option<&Vec<String>>,
) -> Result<(), ApiError> {
    let wanted = image.clone();
    let here = match with(app, move |images| images.find(&wanted)).await {
        Ok(here) => Some(here),
        Err(FindError::Unknown(_)) => None,
        Err(error) => return Err(no_image(&error, &[])),
    };
    if pulls_first(pull, image, here.as_ref()) {
        return Ok(());
    }
    let Some(here) = here else {
        return Err(no_image(&FindError::Unknown(image.clone()), &known(app).await));
    };
    let runs = |command| full_command(command, &here.config).first().is_some_and(|name| !name.is_empty());
    match command {
        Some(command) if !runs(command) => {
            Err(ApiError::invalid(format!("`command` is required: {}", NoCommand(image.clone()))))
        }
        _ => Ok(()),
    }
}

/// Removes images that have lost their last name and that nobody uses, whenever something says that there may be some,
/// until the daemon ends.
pub(crate) async fn collect_garbage(app: Arc<App>) {
    loop {
        tokio::select! {
            () = app.garbage.notified() => collect(&app).await,
            () = app.closing.cancelled() => return,
        }
    }
}

/// What cannot be removed now is tried again another time.
async fn collect(app: &Shared) {
    let _settled = app.provider.settled().await;
    let collected = match uses(app).await {
        Ok(uses) => {
            let prune = move |images: &Images| {
                images.store().prune(&|digest| uses.contains(digest), &PruneScope::default())
            };
            with(app, prune).await
        }
        Err(error) => return tracing::warn!(?error, "cannot tell which images are used"),
    };
    match collected {
        Ok(pruned) if !pruned.images.is_empty() => {
            tracing::info!(images = pruned.images.len(), bytes = pruned.freed_bytes, "removed unused images");
        }
        // Whoever adds an image now says when there is garbage again.
        Ok(_) | Err(ImageError::Busy) => {}
        Err(error) => tracing::warn!(%error, "cannot remove unused images"),
    }
}

/// Who uses which image.
async fn uses(app: &Shared) -> Result<Uses, ApiError> {
    let specs = app.manager.list().iter().map(|instance| instance.spec().clone()).collect::<Vec<_>>();
    let templates = app.templates.clone();
    let uses = with(app, move |images| {
        let templates = templates.map(|templates| templates.list()).unwrap_or_default();
        Uses::of(images, &specs, templates.into_iter().map(|template| template.image_digest))
    });
    uses.await.map_err(|e| ApiError::internal("cannot tell which images are used", &e))
}

/// Does something with the images in a thread that may wait for disks.
pub(super) async fn with<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Images) -> T + Send + 'static,
) -> T {
    let images = app.images.clone();
    task::spawn_blocking(move || work(&images)).await.expect("the image store does not panic")
}

fn unreadable(error: &ImageError) -> ApiError {
    ApiError::internal("cannot read the image store", error)
}
