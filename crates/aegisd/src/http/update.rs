//! Changing what an instance is asked for.
//!
//! Idle times and policies hold at once. Memory, CPUs and environment belong to a VM and its command, so they wait for the next
//! start; a VM that was saved with another memory or other CPUs cannot go on in the new one, and its instance boots from
//! its disk then. A larger disk waits for the next boot: a saved VM goes on with the one that it knows.

use std::time::Duration;

use aegis_api::{UpdateInstance, UpdatedInstance};
use aegis_lifecycle::record::{Idle, Update};
use aegis_types::InstanceState;

use super::checks::check_env;
use super::error::{ApiError, denied};
use super::extract::{Json, Target};
use super::instances::Answer;

/// Longest idle time: clocks of every kind can still count it.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Changes memory, disk, CPUs, environment or idle settings of an instance.
#[utoipa::path(
    patch,
    path = "/v1/instances/{target}",
    request_body = UpdateInstance,
    responses((status = 200, body = UpdatedInstance))
)]
pub(super) async fn update(
    Target(instance): Target,
    Json(request): Json<UpdateInstance>,
) -> Answer<UpdatedInstance> {
    let update = checked(request)?;
    let before = instance.status();
    instance.update(update).await.map_err(|e| denied("update", &instance, e))?;
    let now = instance.status();
    let machine = (before.spec.memory, before.spec.vcpus) != (now.spec.memory, now.spec.vcpus);
    let disk = before.spec.disk != now.spec.disk;
    let waits = machine || disk || before.spec.env != now.spec.env;
    let mut warnings = Vec::new();
    if machine && now.state != InstanceState::Stopped {
        let what = if now.state == InstanceState::Hibernated {
            "the saved memory"
        } else {
            "memory that is saved of this VM"
        };
        warnings
            .push(format!("{what} does not fit the new machine: after a hibernation it boots from its disk"));
    }
    if disk && !machine && now.state == InstanceState::Hibernated {
        warnings.push(format!(
            "it goes on from its memory with the disk that it has: {} from its next restart on",
            now.spec.disk
        ));
    }
    Ok(axum::Json(UpdatedInstance {
        id: now.spec.id.clone(),
        handle: now.spec.handle.clone(),
        restart_required: waits && now.state != InstanceState::Stopped,
        warnings,
    }))
}

fn checked(request: UpdateInstance) -> Result<Update, ApiError> {
    if request == UpdateInstance::default() {
        return Err(ApiError::invalid("nothing is to be changed"));
    }
    check_env(request.env.iter())?;
    if let Some(name) = request.unset_env.iter().find(|name| request.env.contains_key(*name)) {
        return Err(ApiError::invalid(format!("`{name}` is both in `env` and in `unset_env`")));
    }
    Ok(Update {
        memory: request.memory_mb,
        disk: request.disk_mb,
        vcpus: request.vcpus,
        env: request.env,
        unset_env: request.unset_env,
        pause: idle(request.pause_after_ms, request.never_pause, "pause_after_ms", "never_pause")?,
        hibernate: idle(
            request.hibernate_after_ms,
            request.no_hibernate,
            "hibernate_after_ms",
            "no_hibernate",
        )?,
        idle: request.idle_policy,
    })
}

fn idle(
    after_ms: Option<u64>,
    never: bool,
    after_name: &str,
    never_name: &str,
) -> Result<Option<Idle>, ApiError> {
    match (after_ms.map(Duration::from_millis), never) {
        (Some(_), true) => {
            Err(ApiError::invalid(format!("`{never_name}` and `{after_name}` contradict each other")))
        }
        (Some(time), _) if time > TIME_MAX => {
            Err(ApiError::invalid(format!("`{after_name}` is longer than 100 years")))
        }
        (Some(time), false) => Ok(Some(Idle::After(time))),
        (None, true) => Ok(Some(Idle::Never)),
        (None, false) => Ok(None),
    }
}
