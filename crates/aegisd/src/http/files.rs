//! Files of an instance's workspace, whose content is the guest's: see [`aegis_fs::Files`].

use aegis_api::{ErrorCode, StateReply, WorkspaceEntry};
use aegis_fs::{FileError, Files};
use aegis_lifecycle::Instance;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::{ApiError, label};
use super::extract::{Params, Target};
use super::instances::Answer;

/// Longest file that is read or written here, in bytes.
pub(super) const FILE_MAX: usize = 10 << 20;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PathParams {
    /// Relative to the workspace.
    path: Option<String>,
}

/// Names in a directory of the workspace: directories first, each kind by name.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/workspace/tree",
    params(PathParams),
    responses((status = 200, body = Vec<WorkspaceEntry>))
)]
pub(super) async fn tree(
    Target(instance): Target,
    Params(params): Params<PathParams>,
) -> Answer<Vec<WorkspaceEntry>> {
    let path = params.path.unwrap_or_else(|| ".".to_owned());
    let listed = with_files(&instance, path, |files, path| files.list(path)).await?;
    let entry = |listed: aegis_fs::Listed| WorkspaceEntry {
        name: listed.name,
        is_dir: listed.is_dir,
        size: listed.size,
    };
    Ok(axum::Json(listed.into_iter().map(entry).collect()))
}

/// The content of a file of the workspace, of at most 10 MiB.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/workspace",
    params(PathParams),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"))
)]
pub(super) async fn read(
    Target(instance): Target,
    Params(params): Params<PathParams>,
) -> Result<Response, ApiError> {
    let path = params.path.ok_or_else(|| ApiError::invalid("`path` is required"))?;
    let kind = content_type(&path);
    let max = u64::try_from(FILE_MAX).unwrap_or(u64::MAX);
    let content = with_files(&instance, path, move |files, path| files.read(path, max)).await?;
    let headers = [(header::CONTENT_TYPE, kind), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, content).into_response())
}

/// Writes a file of the workspace, with the directories above it.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/workspace",
    params(PathParams), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = StateReply))
)]
pub(super) async fn write(
    Target(instance): Target,
    Params(params): Params<PathParams>,
    content: Bytes,
) -> Answer<StateReply> {
    let path = params.path.ok_or_else(|| ApiError::invalid("`path` is required"))?;
    with_files(&instance, path, move |files, path| files.write(path, &content)).await?;
    Ok(axum::Json(StateReply { status: "ok".to_owned() }))
}

async fn with_files<T: Send + 'static>(
    instance: &Instance,
    path: String,
    work: impl FnOnce(&Files, &str) -> Result<T, FileError> + Send + 'static,
) -> Result<T, ApiError> {
    let Some(workspace) = instance.spec().mounts.first().map(|mount| mount.host.clone()) else {
        let text = format!("instance `{}` has no workspace", label(instance));
        return Err(ApiError::new(ErrorCode::WorkspaceNotFound, text));
    };
    let done = task::spawn_blocking(move || {
        let files = Files::open(&workspace).map_err(FileError::Io)?;
        work(&files, &path)
    });
    done.await.expect("using files does not panic").map_err(|e| refused(&e))
}

fn refused(error: &FileError) -> ApiError {
    let refusal = |status| ApiError::invalid(error.to_string()).with_status(status);
    match error {
        FileError::Path(_) | FileError::NotRegular => refusal(StatusCode::BAD_REQUEST),
        FileError::Link => refusal(StatusCode::FORBIDDEN),
        FileError::NotFound => refusal(StatusCode::NOT_FOUND),
        FileError::TooLarge(_) => refusal(StatusCode::PAYLOAD_TOO_LARGE),
        FileError::Io(e) => ApiError::internal("cannot use a file of the workspace", e),
    }
}

/// By the ending of the name. Nothing that a browser would run: the guest wrote it.
fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "json" => "application/json",
        "txt" | "md" | "log" | "csv" | "py" | "rs" | "js" | "ts" | "toml" | "yaml" | "yml" | "html" => {
            "text/plain; charset=utf-8"
        }
        _ => "application/octet-stream",
    }
}
