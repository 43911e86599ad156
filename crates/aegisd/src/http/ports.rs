//! Exposed ports.

use aegis_api::{Endpoint, ErrorCode, ExposeReply, ExposeRequest, StateReply};
use aegis_lifecycle::Instance;
use aegis_lifecycle::ports::{LogSink as _, SystemMessage};
use aegis_lifecycle::record::InstanceSpec;
use aegis_router::OpenError;
use aegis_types::{Expose, GuestPort, InstanceId};
use axum::extract::{Path, State};

use super::Shared;
use super::error::{ApiError, label, not_found};
use super::extract::{Json, Target};
use super::instances::Answer;
use crate::exposes::ExposeError;

/// Makes a guest port reachable from the host.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/expose",
    request_body = ExposeRequest,
    responses((status = 200, body = ExposeReply))
)]
pub(super) async fn expose(
    State(app): State<Shared>,
    Target(instance): Target,
    Json(request): Json<ExposeRequest>,
) -> Answer<ExposeReply> {
    let endpoint = expose_now(&app, &instance, request.into()).await?;
    Ok(axum::Json(ExposeReply::new(endpoint.guest_port, endpoint.public_port, endpoint.protocol)))
}

/// Closes a port again.
#[utoipa::path(
    delete,
    path = "/v1/instances/{target}/expose/{guest_port}",
    responses((status = 200, body = StateReply))
)]
pub(super) async fn unexpose(
    State(app): State<Shared>,
    Path((target, port)): Path<(String, String)>,
) -> Answer<StateReply> {
    let instance = app.manager.find(&target).ok_or_else(|| not_found(&target))?;
    let port: GuestPort = port.parse().map_err(|e| ApiError::invalid(format!("{e}")))?;
    let removed = app.exposes.unexpose(&instance.spec().id, port).await;
    if removed.map_err(|e| ApiError::internal("cannot write the registry", &e))? {
        return Ok(axum::Json(StateReply { status: "ok".to_owned() }));
    }
    let text = format!("port {port} of instance `{}` is not exposed", label(&instance));
    Err(ApiError::new(ErrorCode::NotExposed, text))
}

/// Exposes a port of an instance that exists.
pub(super) async fn expose_now(
    app: &Shared,
    instance: &Instance,
    expose: Expose,
) -> Result<Endpoint, ApiError> {
    let spec = instance.spec();
    let exposed = app.exposes.expose(&spec.id, expose, instance.status().enabled).await;
    let endpoint = exposed.map_err(|e| refused(app, spec, e))?;
    record(app, &spec.id).await?;
    Ok(endpoint)
}

/// Opens the ports of an instance that is about to be created: all of them or none.
pub(super) async fn open_all(
    app: &Shared,
    spec: &InstanceSpec,
    wanted: Vec<ExposeRequest>,
) -> Result<Vec<Endpoint>, ApiError> {
    let mut endpoints = Vec::new();
    for expose in wanted {
        match app.exposes.expose(&spec.id, expose.into(), true).await {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) => {
                app.exposes.forget(&spec.id).await;
                return Err(refused(app, spec, error));
            }
        }
    }
    Ok(endpoints)
}

/// Remembers the ports of an instance that is in the registry.
pub(super) async fn record(app: &Shared, id: &InstanceId) -> Result<(), ApiError> {
    app.exposes.record(id).await.map_err(|e| ApiError::internal("cannot write the registry", &e))
}

/// Listens on the ports of an instance that may have been disabled; what goes wrong is in its log.
pub(super) async fn listen(app: &Shared, instance: &Instance) {
    let id = &instance.spec().id;
    for problem in app.exposes.open(id).await {
        app.logs.system(id, SystemMessage::Error(problem)).await;
    }
}

fn refused(app: &Shared, spec: &InstanceSpec, error: ExposeError) -> ApiError {
    let name = spec.handle.as_ref().map_or(spec.id.as_str(), |handle| handle.as_str());
    match error {
        ExposeError::Open(OpenError::Busy { port, by }) => {
            let (owner, hint) = match by.and_then(|id| app.manager.find(id.as_str())) {
                Some(owner) => {
                    let owner = label(&owner);
                    let hint = format!("choose another, or `aegis instance disable {owner}`");
                    (format!("instance `{owner}`"), hint)
                }
                None => {
                    let hint = "choose another, or leave it out for any free one".to_owned();
                    ("another program".to_owned(), hint)
                }
            };
            let text = format!("public port {port} is already used by {owner}");
            ApiError::new(ErrorCode::PortTaken, text).with_hint(hint)
        }
        ExposeError::Open(e @ OpenError::Elsewhere { guest, .. }) => {
            ApiError::new(ErrorCode::PortTaken, e.to_string())
                .with_hint(format!("`aegis instance unexpose {name} {guest}` frees it"))
        }
        ExposeError::Open(e) => ApiError::internal("cannot expose the port", &e),
        ExposeError::Store(e) => ApiError::internal("cannot write the registry", &e),
    }
}
