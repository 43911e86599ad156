//! Resting on request, and being kept from it.

use aegis_api::{KeepaliveRequest, StateReply};

use super::error::ApiError;
use super::extract::{Json, Target};
use super::instances::{Answer, act};

/// Longest reason that is kept of a lease, in characters.
const REASON_MAX: usize = 200;

/// Writes the memory to disk and ends the VM.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/hibernate",
    responses((status = 200, body = StateReply))
)]
pub(super) async fn hibernate(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "hibernate", "hibernated", instance.hibernate()).await
}

/// Takes the lease of an instance, or renews it.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/keepalive",
    request_body = KeepaliveRequest,
    responses((status = 200, body = StateReply))
)]
pub(super) async fn keep_awake(
    Target(instance): Target,
    Json(request): Json<KeepaliveRequest>,
) -> Answer<StateReply> {
    let ttl = request.ttl().map_err(|e| ApiError::invalid(e.to_string()))?;
    let reason = request.reason.map(|text| text.chars().take(REASON_MAX).collect());
    act(&instance, "keep awake", "leased", instance.keep_awake(ttl, reason)).await
}

/// Gives the lease up.
#[utoipa::path(
    delete,
    path = "/v1/instances/{target}/keepalive",
    responses((status = 200, body = StateReply))
)]
pub(super) async fn release(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "release", "released", instance.release()).await
}
