//! The daemon itself.

use aegis_api::{BackendCapabilities, DaemonStatus, ShutdownMode, ShutdownRequest, StateReply};
use aegis_types::InstanceState;
use axum::extract::State;
use tokio::task;

use super::Shared;
use super::extract::Json;

/// The daemon and what it would use for the next VM.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = DaemonStatus)))]
pub(super) async fn status(State(app): State<Shared>) -> axum::Json<DaemonStatus> {
    let assets = app.assets.clone();
    let assets =
        task::spawn_blocking(move || assets.report()).await.expect("looking for files does not panic");
    let is_live = |state| !matches!(state, InstanceState::Stopped | InstanceState::Hibernated);
    let live = app.manager.list().iter().filter(|i| is_live(i.status().state)).count();
    let verdict = app.accel.known();
    axum::Json(DaemonStatus {
        status: "running".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        backend: "qemu".to_owned(),
        capabilities: BackendCapabilities {
            pause_resume: true,
            persistent_pause: true,
            boot_from_disk_layers: true,
            // Guests have no network device yet.
            network_backend: "none".to_owned(),
        },
        accelerator: verdict.map(|verdict| verdict.accelerator),
        accelerator_reason: verdict.map(|verdict| verdict.reason.clone()),
        assets,
        live_vms: u32::try_from(live).unwrap_or(u32::MAX),
        router: Some(app.router.clone()),
        ram_budget_mb: app.manager.memory().0,
    })
}

/// Ends the daemon, which begins when this is answered.
#[utoipa::path(
    post,
    path = "/v1/shutdown",
    request_body = ShutdownRequest,
    responses((status = 200, body = StateReply))
)]
pub(super) async fn shutdown(
    State(app): State<Shared>,
    Json(request): Json<ShutdownRequest>,
) -> axum::Json<StateReply> {
    app.ending.send_replace(Some(request.mode));
    let status = match request.mode {
        ShutdownMode::Hibernate => "hibernating",
        ShutdownMode::Stop => "stopping",
    };
    axum::Json(StateReply { status: status.to_owned() })
}
