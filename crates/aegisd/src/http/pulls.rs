//! Pulls, told as they go.

use aegis_api::{ErrorBody, ErrorCode, PullEvent, PullImage};
use aegis_types::{ImageName, PullPolicy};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;

use super::error::{ApiError, no_image};
use super::extract::Json;
use super::images::{known, with};
use super::{Shared, ndjson, write_line};
use crate::images::{FindError, Following, PullState, is_built_in, not_pulled, pulls_first, summary};

/// Gets an image from its registry. Whoever asks for one that is on its way already follows the same pull; it goes on as
/// long as somebody reads such an answer or an instance waits for it.
#[utoipa::path(
    post,
    path = "/v1/images/pull",
    request_body = PullImage,
    responses((
        status = 200,
        description = "One `PullEvent` a line; the last is `ready` or `failed`",
        body = String,
        content_type = "application/x-ndjson"
    ))
)]
pub(super) async fn pull(
    State(app): State<Shared>,
    Json(request): Json<PullImage>,
) -> Result<Response, ApiError> {
    let PullImage { name, policy } = request;
    let policy = policy.unwrap_or(PullPolicy::Always);
    let wanted = name.clone();
    let here = with(&app, move |images| match images.find(&wanted) {
        Ok(image) => Ok(Some(image)),
        Err(FindError::Unknown(_) | FindError::NotInstalled(_)) => Ok(None),
        Err(error) => Err(error),
    });
    let here = here.await.map_err(|e| no_image(&e, &[]))?;
    // Whoever asks for it by name and wants it from a registry gets it from there, also one that was imported here.
    let asks = policy == PullPolicy::Always && name.digest().is_none();
    if !asks && !pulls_first(policy, &name, here.as_ref()) {
        return match here {
            Some(_) => ready(&app, name).await,
            None => Err(no_image(&FindError::Unknown(name), &known(&app).await)),
        };
    }
    let following = app.pulls.pull(&name).await;
    let told = Told { app, name, following, begun: false };
    Ok(ndjson(stream::unfold(Some(told), next)))
}

/// It is there, and nobody is asked. One that has been found by its digest is kept under that name as well, as the tag
/// that it was pulled by may move.
async fn ready(app: &Shared, name: ImageName) -> Result<Response, ApiError> {
    let wanted = name.clone();
    let found = with(app, move |images| {
        let found = images.store().resolve(&wanted)?;
        match found.as_ref().and_then(|image| Some((image, image.manifest.as_ref()?))) {
            Some((image, manifest)) if image.name != wanted => images.store().tag(&wanted, manifest),
            _ => Ok(found),
        }
    });
    let found = found.await.map_err(|e| ApiError::internal("cannot read the image store", &e))?;
    let image = match found {
        Some(image) => summary(image),
        None if is_built_in(&name) => with(app, |images| images.built_in_summary())
            .await
            .ok_or_else(|| no_image(&FindError::Unknown(name), &[]))?,
        None => return Err(no_image(&FindError::Unknown(name), &[])),
    };
    Ok(ndjson(stream::iter([line(&PullEvent::Ready { image, changed: false })])))
}

/// A pull that somebody is told of.
struct Told {
    app: Shared,
    name: ImageName,
    following: Following,
    /// They know how it was some time ago.
    begun: bool,
}

/// The next line, and what is still to be told.
async fn next(told: Option<Told>) -> Option<(Bytes, Option<Told>)> {
    let mut told = told?;
    if told.begun {
        told.following.changed().await;
    }
    told.begun = true;
    let event = match told.following.state() {
        PullState::Resolving => PullEvent::Resolving,
        PullState::Downloading(layers) => PullEvent::Downloading {
            done_bytes: layers.iter().map(|layer| layer.done_bytes).sum(),
            total_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
            layers,
        },
        PullState::Building(done_bytes, total_bytes) => PullEvent::Building { done_bytes, total_bytes },
        PullState::Done(Ok(pulled)) => {
            if pulled.changed {
                // The image that had the name may have lost its last one.
                told.app.garbage.notify_one();
            }
            let image = summary(pulled.image.clone());
            return Some((line(&PullEvent::Ready { image, changed: pulled.changed }), None));
        }
        PullState::Done(Err(error)) => {
            let why = not_pulled(&told.name, &error);
            let (error, cause) = match why.message.split_once(": ") {
                Some((error, cause)) => (error.to_owned(), Some(cause.to_owned())),
                None => (why.message, None),
            };
            let error = ErrorBody { error, code: ErrorCode::PullFailed, cause, hint: why.hint };
            return Some((line(&PullEvent::Failed { error }), None));
        }
    };
    Some((line(&event), Some(told)))
}

fn line(event: &PullEvent) -> Bytes {
    let mut line = Vec::new();
    write_line(&mut line, event);
    line.into()
}
