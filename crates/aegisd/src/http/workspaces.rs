//! Workspaces: list, measure, delete.

use aegis_api::{ErrorCode, StateReply, WorkspaceSummary, WorkspaceUsage};
use aegis_lifecycle::Instance;
use axum::extract::{Path, State};
use tokio::task;

use super::Shared;
use super::error::ApiError;
use super::instances::Answer;

/// Workspaces of the home.
#[utoipa::path(get, path = "/v1/workspaces", responses((status = 200, body = Vec<WorkspaceSummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Answer<Vec<WorkspaceSummary>> {
    let workspaces = app.workspaces.clone();
    let names =
        task::spawn_blocking(move || workspaces.names()).await.expect("reading a directory does not panic");
    let names = names.map_err(|e| ApiError::internal("cannot list the workspaces", &e))?;
    let instances = app.manager.list();
    let summary = |name: String| {
        let path = app.workspaces.path(&name)?;
        let users: Vec<&Instance> = users(&instances, &app, &name).collect();
        Some(WorkspaceSummary {
            path,
            auto: users.iter().any(|instance| instance.spec().auto_workspace && is_own(instance, &name)),
            instances: users.into_iter().map(|instance| instance.spec().id.clone()).collect(),
            name,
        })
    };
    Ok(axum::Json(names.into_iter().filter_map(summary).collect()))
}

/// What a workspace takes up.
#[utoipa::path(get, path = "/v1/workspaces/{name}/usage", responses((status = 200, body = WorkspaceUsage)))]
pub(super) async fn usage(State(app): State<Shared>, Path(name): Path<String>) -> Answer<WorkspaceUsage> {
    let (workspaces, wanted) = (app.workspaces.clone(), name.clone());
    let counted =
        task::spawn_blocking(move || workspaces.usage(&wanted)).await.expect("counting does not panic");
    let counted = counted.map_err(|e| ApiError::internal("cannot look into the workspace", &e))?;
    let counted = counted.ok_or_else(|| unknown(&name))?;
    Ok(axum::Json(WorkspaceUsage { name, bytes: counted.bytes, entries: counted.entries }))
}

/// Deletes a workspace that no instance mounts.
#[utoipa::path(delete, path = "/v1/workspaces/{name}", responses((status = 200, body = StateReply)))]
pub(super) async fn delete(State(app): State<Shared>, Path(name): Path<String>) -> Answer<StateReply> {
    let instances = app.manager.list();
    if let Some(user) = users(&instances, &app, &name).next() {
        let user = super::error::label(user);
        let text = format!("workspace `{name}` is in use by instance `{user}`");
        return Err(ApiError::new(ErrorCode::WorkspaceInUse, text)
            .with_hint(format!("delete the instance first: `aegis instance delete {user}`")));
    }
    let (workspaces, wanted) = (app.workspaces.clone(), name.clone());
    let deleted =
        task::spawn_blocking(move || workspaces.delete(&wanted)).await.expect("removing does not panic");
    match deleted {
        Ok(true) => Ok(axum::Json(StateReply { status: "deleted".to_owned() })),
        Ok(false) => Err(unknown(&name)),
        Err(e) => Err(ApiError::internal("cannot delete the workspace", &e)),
    }
}

/// Instances that mount a workspace, or something in it.
fn users<'a>(
    instances: &'a [Instance],
    app: &'a Shared,
    name: &'a str,
) -> impl Iterator<Item = &'a Instance> {
    // Paths of instances are without symbolic links.
    let path = app.workspaces.path(name).and_then(|path| path.canonicalize().ok());
    instances.iter().filter(move |instance| {
        path.as_ref()
            .is_some_and(|path| instance.spec().mounts.iter().any(|mount| mount.host.starts_with(path)))
    })
}

fn is_own(instance: &Instance, name: &str) -> bool {
    instance.spec().mounts.first().is_some_and(|mount| mount.host.ends_with(name))
}

fn unknown(name: &str) -> ApiError {
    let name: String = name.escape_debug().take(80).collect();
    ApiError::new(ErrorCode::WorkspaceNotFound, format!("no workspace named `{name}`"))
        .with_hint("`aegis workspace list` shows those that there are".to_owned())
}
