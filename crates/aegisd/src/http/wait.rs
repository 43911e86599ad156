//! Waiting for what an instance does.

use std::time::Duration;

use aegis_api::{ErrorCode, StateReply, WaitFor, WaitQuery};
use aegis_lifecycle::{ConnectError, Connection, Instance};
use aegis_types::{GuestPort, InstanceState};
use axum::extract::State;
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::error::{ApiError, denied, label, not_found};
use super::extract::{Params, Target};
use super::instances::Answer;

/// For waits that name no limit: until the client leaves.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);
/// Time that the guest is asked to wait for a listener before it is asked again.
const PORT_WAIT: Duration = Duration::from_secs(20);
/// Time that a program in the guest gets to answer the end of a connection.
const FAREWELL: Duration = Duration::from_millis(200);

/// Waits for a state, or for a listener on a port. Answers with the state that was reached.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/wait",
    params(WaitQuery),
    responses((status = 200, body = StateReply))
)]
pub(super) async fn wait(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(query): Params<WaitQuery>,
) -> Answer<StateReply> {
    let limit = query.timeout_ms.map_or(MAX_WAIT, Duration::from_millis).min(MAX_WAIT);
    let deadline = Instant::now() + limit;
    let reached = match query.goal.state() {
        Some(state) => timeout_at(deadline, until(&instance, state)).await,
        None => {
            let port =
                query.port.or_else(|| app.exposes.first_port(&instance.spec().id)).ok_or_else(|| {
                    ApiError::invalid("`port` is required: the instance has no exposed port")
                        .with_hint("wait with `--for port --port N`")
                })?;
            timeout_at(deadline, until_listening(&instance, port, deadline)).await
        }
    };
    reached.unwrap_or_else(|_| Err(timed_out(&instance, &query, limit)))?;
    Ok(axum::Json(StateReply { status: instance.status().state.to_string() }))
}

async fn until_listening(instance: &Instance, port: GuestPort, deadline: Instant) -> Result<(), ApiError> {
    loop {
        let wait = PORT_WAIT.min(deadline.saturating_duration_since(Instant::now()));
        match instance.connect(port, wait).await {
            Ok(connection) => {
                leave(connection).await;
                return Ok(());
            }
            // The caller's deadline ends this.
            Err(ConnectError::Refused { .. }) => {}
            Err(ConnectError::Denied(e)) => return Err(denied("reach", instance, e)),
            Err(e @ ConnectError::Worker(_)) => return Err(ApiError::internal("cannot reach the guest", &e)),
        }
    }
}

/// Ends a connection in order: to hang up at once is a reset to the program in the guest, and an error in its log.
async fn leave(mut connection: Connection) {
    let stream = &mut connection.stream;
    let farewell = async {
        stream.shutdown().await?;
        copy(stream, &mut sink()).await
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// An instance whose start failed meanwhile is not waited for.
async fn until(instance: &Instance, wanted: InstanceState) -> Result<(), ApiError> {
    let mut status = instance.watch();
    let mut started = false;
    loop {
        let now = status.borrow_and_update().clone();
        if now.state == wanted {
            return Ok(());
        }
        started |= now.state == InstanceState::Starting;
        if wanted == InstanceState::Running && started && now.state == InstanceState::Stopped {
            let why = now.stopped.and_then(|stop| stop.error).unwrap_or_else(|| "it stopped".to_owned());
            let text = format!("instance `{}` does not run", label(instance));
            return Err(ApiError::new(ErrorCode::BootFailed, text).with_cause(why));
        }
        if status.changed().await.is_err() {
            return Err(not_found(label(instance)));
        }
    }
}

fn timed_out(instance: &Instance, query: &WaitQuery, limit: Duration) -> ApiError {
    let name = label(instance);
    let what = match (query.goal, query.port) {
        (WaitFor::Port, Some(port)) => format!("nobody listened on port {port} of instance `{name}`"),
        (WaitFor::Port, None) => format!("nobody listened on the exposed port of instance `{name}`"),
        (goal, _) => format!("instance `{name}` was not {}", goal.as_str()),
    };
    let state = instance.status().state;
    ApiError::new(ErrorCode::Timeout, format!("{what} within {} ms: it is {state}", limit.as_millis()))
}
