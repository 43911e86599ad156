//! Instances: look at, change, delete.

use std::future::Future;
use std::time::Duration;

use aegis_api::{InstanceInfo, InstanceSummary, NetStatus, PruneReply, StateReply};
use aegis_lifecycle::{Denied, Instance};
use aegis_types::{InstanceState, StopReason, parse_duration};
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::{ApiError, denied, label};
use super::extract::{Params, Target};
use super::{Shared, images, ports, secrets, view};

pub(super) type Answer<T> = Result<axum::Json<T>, ApiError>;

pub(super) async fn instance_network(app: &Shared, instance: &Instance) -> Result<NetStatus, ApiError> {
    let (networks, id) = (app.networks.clone(), instance.spec().id.clone());
    let loaded =
        task::spawn_blocking(move || networks.load(&id)).await.expect("reading a file does not panic");
    loaded.map_err(|e| ApiError::internal("cannot read the network policy", &e))
}

/// Starts an instance and listens on its ports again, which it had not while it was disabled.
pub(super) async fn start_and_listen(app: &Shared, instance: &Instance) -> Result<(), ApiError> {
    if instance.status().state == InstanceState::Stopped {
        let wanted = secrets::wanted(app, instance).await?;
        secrets::check(app, Some(label(instance)), &wanted).await?;
    }
    instance.start().await.map_err(|e| denied("start", instance, e))?;
    ports::listen(app, instance).await;
    Ok(())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only those in this state.
    state: Option<String>,
}

/// Instances: running, starting, paused, hibernated, stopped, disabled; then by age.
#[utoipa::path(
    get,
    path = "/v1/instances",
    params(ListParams),
    responses((status = 200, body = Vec<InstanceSummary>))
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Params(params): Params<ListParams>,
) -> Answer<Vec<InstanceSummary>> {
    use InstanceState::{Hibernated, Paused, Running, Starting, Stopped};
    let state = match params.state.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let all = [Stopped, Starting, Running, Paused, Hibernated];
            Some(all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
                let names = all.map(|state| format!("`{state}`")).join(", ");
                ApiError::invalid(format!("unknown state: it is one of {names}"))
            })?)
        }
    };
    Ok(axum::Json(view::listed(app.manager.list(), state, &app.exposes)))
}

/// Everything about an instance.
#[utoipa::path(get, path = "/v1/instances/{target}", responses((status = 200, body = InstanceInfo)))]
pub(super) async fn info(State(app): State<Shared>, Target(instance): Target) -> Answer<InstanceInfo> {
    let accelerator = app.accel.known().map(|verdict| verdict.accelerator);
    let net = instance_network(&app, &instance).await?;
    let wanted = secrets::wanted(&app, &instance).await?;
    let endpoints = app.exposes.endpoints(&instance.spec().id);
    let id = instance.spec().id.clone();
    let kept = images::with(&app, move |images| images.kept(&id)).await;
    let image = kept.map_err(|e| ApiError::internal("cannot tell which image the instance has", &e))?.pin;
    Ok(axum::Json(view::info(&instance, endpoints, net, wanted, image, accelerator)))
}

pub(super) async fn act<F: Future<Output = Result<(), Denied>>>(
    instance: &Instance,
    action: &'static str,
    status: &str,
    work: F,
) -> Answer<StateReply> {
    work.await.map_err(|e| denied(action, instance, e))?;
    Ok(axum::Json(StateReply { status: status.to_owned() }))
}

/// Enables an instance and starts it, or lets it go on.
#[utoipa::path(post, path = "/v1/instances/{target}/start", responses((status = 200, body = StateReply)))]
pub(super) async fn start(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    start_and_listen(&app, &instance).await?;
    Ok(axum::Json(StateReply { status: "starting".to_owned() }))
}

/// Stops the VM. Its ports stay and wake the instance.
#[utoipa::path(post, path = "/v1/instances/{target}/stop", responses((status = 200, body = StateReply)))]
pub(super) async fn stop(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "stop", "stopped", instance.stop()).await
}

/// Stops the VM, enables the instance and starts it.
#[utoipa::path(post, path = "/v1/instances/{target}/restart", responses((status = 200, body = StateReply)))]
pub(super) async fn restart(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let wanted = secrets::wanted(&app, &instance).await?;
    secrets::check(&app, Some(label(&instance)), &wanted).await?;
    let answer = act(&instance, "restart", "restarting", instance.restart()).await;
    ports::listen(&app, &instance).await;
    answer
}

/// Stops the VM and closes the ports until a start.
#[utoipa::path(post, path = "/v1/instances/{target}/disable", responses((status = 200, body = StateReply)))]
pub(super) async fn disable(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let answer = act(&instance, "disable", "disabled", instance.disable()).await;
    // Whatever came of the stop: from now on nobody may wake it.
    if !instance.status().enabled {
        app.exposes.close(&instance.spec().id).await;
    }
    answer
}

/// Halts the CPUs; the memory stays.
#[utoipa::path(post, path = "/v1/instances/{target}/pause", responses((status = 200, body = StateReply)))]
pub(super) async fn pause(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "pause", "paused", instance.pause()).await
}

/// Lets a paused instance go on.
#[utoipa::path(post, path = "/v1/instances/{target}/resume", responses((status = 200, body = StateReply)))]
pub(super) async fn resume(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "resume", "running", instance.resume()).await
}

/// Stops the VM and removes the instance with its disk and logs.
#[utoipa::path(delete, path = "/v1/instances/{target}", responses((status = 200, body = StateReply)))]
pub(super) async fn delete(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let answer = act(&instance, "delete", "deleted", instance.delete()).await;
    if instance.status().deleted {
        app.exposes.forget(&instance.spec().id).await;
        app.garbage.notify_one();
    }
    answer
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PruneParams {
    /// For how long, such as `7d`.
    #[param(required)]
    older_than: Option<String>,
}

/// Deletes instances that have been stopped for long.
#[utoipa::path(
    post,
    path = "/v1/instances/prune",
    params(PruneParams),
    responses((status = 200, body = PruneReply))
)]
pub(super) async fn prune(
    State(app): State<Shared>,
    Params(params): Params<PruneParams>,
) -> Answer<PruneReply> {
    let text =
        params.older_than.ok_or_else(|| ApiError::invalid("`older_than` is required, such as `7d`"))?;
    let age = parse_duration(&text).map_err(|e| ApiError::invalid(e.to_string()))?;
    let cutoff = before(Timestamp::now(), age);
    let mut ids = Vec::new();
    for instance in app.manager.list() {
        let status = instance.status();
        // What was never started waits for its first start.
        let old =
            status.stopped.is_some_and(|stop| stop.reason != StopReason::NeverStarted && stop.at < cutoff);
        if status.state != InstanceState::Stopped || !old {
            continue;
        }
        match instance.delete().await {
            Ok(()) => {
                app.exposes.forget(&instance.spec().id).await;
                ids.push(instance.spec().id.clone());
            }
            // Somebody else deleted it.
            Err(Denied::Deleted) => {}
            Err(error) => tracing::warn!(%error, instance = %instance.spec().id, "cannot prune an instance"),
        }
    }
    app.garbage.notify_one();
    Ok(axum::Json(PruneReply { pruned: ids.len(), ids }))
}

/// The time so long before another; the beginning of time if there is none.
pub(super) fn before(time: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).ok();
    age.and_then(|age| time.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_age_beyond_all_time_prunes_nothing() {
        let now = Timestamp::now();
        assert_eq!(before(now, Duration::from_secs(u64::MAX)), Timestamp::MIN);
        assert!(before(now, Duration::from_secs(1)) < now);
    }
}
