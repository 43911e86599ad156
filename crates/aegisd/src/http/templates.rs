//! Templates.

use std::sync::Arc;
use std::time::Duration;

use aegis_api::{
    BuildTemplate, ErrorCode, PruneTemplates, PrunedTemplates, TemplateState as ApiState, TemplateSummary,
};
use aegis_types::parse_duration;
use axum::extract::State;
use tokio::task;

use super::Shared;
use super::error::ApiError;
use super::extract::Json;
use super::instances::Answer;
use crate::templates::{TemplateInfo, TemplateState, Templates};

fn store(app: &Shared) -> Result<Arc<Templates>, ApiError> {
    app.templates.clone().ok_or_else(|| ApiError::new(ErrorCode::Internal, "there are no templates here"))
}

/// Templates, from which instances start as copies.
#[utoipa::path(get, path = "/v1/templates", responses((status = 200, body = Vec<TemplateSummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Answer<Vec<TemplateSummary>> {
    let templates = store(&app)?;
    let listed = task::spawn_blocking(move || templates.list());
    let listed = listed.await.expect("listing templates does not panic");
    Ok(axum::Json(listed.into_iter().map(summary).collect()))
}

/// Makes a template now, unless it is there. Answers when it is made.
#[utoipa::path(
    post,
    path = "/v1/templates",
    request_body = BuildTemplate,
    responses((status = 200, body = TemplateSummary))
)]
pub(super) async fn build(
    State(app): State<Shared>,
    Json(wish): Json<BuildTemplate>,
) -> Answer<TemplateSummary> {
    let templates = store(&app)?;
    let settings = &app.settings;
    let image = wish.image_ref.unwrap_or_else(|| settings.default_image.value.clone());
    let memory = wish.memory_mb.unwrap_or(settings.default_memory.value);
    let vcpus = wish.vcpus.unwrap_or(settings.default_vcpus.value);
    let verdict = app.accel.decide().await;
    let accelerator = verdict
        .map_err(|e| ApiError::internal("cannot choose an accelerator", &e).with_hint(e.hint))?
        .accelerator;
    let built = templates.build_now(image, memory, vcpus, accelerator).await;
    built.map(|info| axum::Json(summary(info))).map_err(|e| {
        let error = ApiError::new(ErrorCode::BootFailed, "cannot make the template").with_cause(e.message);
        match e.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

/// Deletes templates.
#[utoipa::path(
    post,
    path = "/v1/templates/prune",
    request_body = PruneTemplates,
    responses((status = 200, body = PrunedTemplates))
)]
pub(super) async fn prune(
    State(app): State<Shared>,
    Json(wish): Json<PruneTemplates>,
) -> Answer<PrunedTemplates> {
    let templates = store(&app)?;
    let age = match wish.max_age {
        Some(text) => parse_duration(&text).map_err(|e| ApiError::invalid(e.to_string()))?,
        None => Duration::ZERO,
    };
    let pruned = task::spawn_blocking(move || templates.prune(age, u64::MAX));
    let pruned = pruned.await.expect("pruning templates does not panic");
    Ok(axum::Json(PrunedTemplates { pruned: pruned.removed, freed_bytes: pruned.bytes }))
}

fn summary(info: TemplateInfo) -> TemplateSummary {
    let (state, problem) = match info.state {
        TemplateState::Ready => (ApiState::Ready, None),
        TemplateState::Building => (ApiState::Building, None),
        TemplateState::Failed(why) => (ApiState::Failed, Some(why)),
    };
    TemplateSummary {
        key: info.key,
        image: info.image,
        memory_mb: info.memory,
        disk_mb: info.disk_bytes >> 20,
        vcpus: info.vcpus,
        size_bytes: info.size_bytes,
        created_at: info.created_at,
        last_used_at: info.last_used_at,
        state,
        problem,
        loaded: info.loaded,
    }
}
