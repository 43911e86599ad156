//! The daemon itself.

use aegis_api::{BackendCapabilities, DaemonStatus};
use aegis_types::InstanceState;
use axum::extract::State;
use tokio::task;

use super::Shared;

/// `GET /v1/status`
pub(super) async fn status(State(app): State<Shared>) -> axum::Json<DaemonStatus> {
    let assets = app.assets.clone();
    let assets =
        task::spawn_blocking(move || assets.report()).await.expect("looking for files does not panic");
    let live = app.manager.list().iter().filter(|i| i.status().state != InstanceState::Stopped).count();
    let verdict = app.accel.known();
    axum::Json(DaemonStatus {
        status: "running".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        backend: "qemu".to_owned(),
        capabilities: BackendCapabilities {
            pause_resume: true,
            persistent_pause: false,
            boot_from_disk_layers: true,
            // Guests have no network device yet.
            network_backend: "none".to_owned(),
        },
        accelerator: verdict.map(|verdict| verdict.accelerator),
        accelerator_reason: verdict.map(|verdict| verdict.reason.clone()),
        assets,
        live_vms: u32::try_from(live).unwrap_or(u32::MAX),
        router: None,
        ram_budget_mb: None,
    })
}
