//! Failures as clients see them. Every reason of the lifecycle is put into words here and nowhere else.

use aegis_api::{ErrorBody, ErrorCode};
use aegis_lifecycle::{CopyError, CreateError, Denied, ExecError, Instance};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::images::FindError;
use crate::text;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.http_status()).expect("codes have valid statuses");
        Self { status, body: ErrorBody { error: error.into(), code, cause: None, hint: None } }
    }

    pub(super) fn invalid(error: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, error)
    }

    pub(super) fn internal(error: impl Into<String>, source: &dyn std::error::Error) -> Self {
        Self::new(ErrorCode::Internal, error).with_cause(text::chain(source))
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    pub(super) fn with_cause(mut self, cause: impl Into<String>) -> Self {
        self.body.cause = Some(cause.into());
        self
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ErrorBody { error, cause, .. } = &self.body;
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), cause, "{error}");
        } else {
            tracing::debug!(status = self.status.as_u16(), cause, "{error}");
        }
        (self.status, Json(self.body)).into_response()
    }
}

/// The name that its user knows an instance by.
pub(super) fn label(instance: &Instance) -> &str {
    let spec = instance.spec();
    spec.handle.as_ref().map_or(spec.id.as_str(), |handle| handle.as_str())
}

/// A refusal by the lifecycle; `action` is a verb, as in `pause`.
pub(super) fn denied(action: &str, instance: &Instance, denied: Denied) -> ApiError {
    let name = label(instance);
    let refused = |code, why: &str| ApiError::new(code, format!("cannot {action} instance `{name}`: {why}"));
    match denied {
        Denied::NotRunning { state } => refused(ErrorCode::WrongState, &format!("it is {state}")),
        Denied::Stopping => {
            refused(ErrorCode::WrongState, "it is being stopped").with_hint("try again in a moment")
        }
        Denied::Disabled => refused(ErrorCode::Disabled, "it is disabled")
            .with_hint(format!("`aegis instance start --name {name}` enables and starts it")),
        Denied::CommandEnded { exit_code } => {
            let code = exit_code.map(|code| format!(" with exit code {code}")).unwrap_or_default();
            refused(ErrorCode::WrongState, &format!("its command ended{code}"))
                .with_hint(format!("`aegis instance restart {name}` runs it again"))
        }
        Denied::BootFailed { message } => {
            ApiError::new(ErrorCode::BootFailed, format!("cannot boot instance `{name}`"))
                .with_cause(message)
                .with_hint(format!("see `aegis logs {name}`"))
        }
        Denied::NoMemory { message } => {
            ApiError::new(ErrorCode::NoMemory, format!("cannot {action} instance `{name}`"))
                .with_cause(message)
                .with_hint("stop or hibernate other instances, or raise `ram_budget_mb` in config.toml")
        }
        Denied::CrashLoop { count } => {
            ApiError::new(ErrorCode::CrashLoop, format!("cannot {action} instance `{name}`"))
                .with_cause(format!("it failed right after its start {count} times in a row"))
                .with_hint(format!("see `aegis logs {name}`, then `aegis instance start --name {name}`"))
        }
        Denied::LifetimeOver => refused(ErrorCode::WrongState, "it reached its `--max-lifetime`")
            .with_hint(format!("`aegis instance start --name {name}` gives it another life")),
        Denied::ParentStopped => refused(ErrorCode::WrongState, "the instance that it belongs to is stopped")
            .with_hint("start its parent first: `aegis instance info` names it"),
        Denied::KeepsMemory { why } => refused(ErrorCode::WrongState, why),
        Denied::DiskShrinks { has, wanted } => ApiError::invalid(format!(
            "cannot {action} instance `{name}`: its disk has {has} and cannot shrink to {wanted}"
        ))
        .with_hint("a disk can only grow: for a smaller one create another instance and copy its files with `aegis cp`"),
        Denied::Hibernating => {
            refused(ErrorCode::WrongState, "it is being hibernated").with_hint("try again in a moment")
        }
        Denied::InUse => refused(ErrorCode::WrongState, "it is in use"),
        Denied::Interrupted { reason } => {
            refused(ErrorCode::WrongState, &format!("it stopped in the meantime ({reason})"))
        }
        Denied::Deleted => not_found(name),
        Denied::ShuttingDown => shutting_down(),
        Denied::Busy => refused(ErrorCode::WrongState, "too many requests wait for it")
            .with_status(StatusCode::SERVICE_UNAVAILABLE),
        Denied::Registry(cause) => {
            ApiError::new(ErrorCode::Internal, format!("cannot {action} instance `{name}`")).with_cause(cause)
        }
        e @ (Denied::Files(_) | Denied::Worker(_)) => {
            ApiError::new(ErrorCode::Internal, format!("cannot {action} instance `{name}`"))
                .with_cause(e.to_string())
        }
    }
}

/// A process that could not be asked for.
pub(super) fn exec_failed(instance: &Instance, error: ExecError) -> ApiError {
    let name = label(instance);
    match error {
        ExecError::Denied(reason) => denied("run a command in", instance, reason),
        ExecError::TooLarge { length } => {
            ApiError::invalid(format!("the command and its environment are too large ({length} bytes)"))
        }
        ExecError::Worker(e) => {
            ApiError::new(ErrorCode::Internal, format!("cannot run a command in instance `{name}`"))
                .with_cause(e.to_string())
        }
    }
}

/// Files that could not be asked for.
pub(super) fn copy_failed(instance: &Instance, path: &str, error: CopyError) -> ApiError {
    let name = label(instance);
    let path: String = path.escape_debug().take(400).collect();
    match error {
        CopyError::Denied(reason) => denied("copy files of", instance, reason),
        CopyError::Refused { not_found, message } => {
            let code = if not_found { ErrorCode::FileNotFound } else { ErrorCode::InvalidRequest };
            ApiError::new(code, format!("cannot use `{path}` in instance `{name}`")).with_cause(message)
        }
        CopyError::Worker(e) => {
            ApiError::new(ErrorCode::Internal, format!("cannot copy files of instance `{name}`"))
                .with_cause(e.to_string())
        }
    }
}

/// An instance that could not be created.
pub(super) fn not_created(error: CreateError) -> ApiError {
    match error {
        CreateError::HandleTaken { handle, state } => ApiError::new(
            ErrorCode::AlreadyExists,
            format!("instance `{handle}` exists already and is {state}"),
        )
        .with_hint(format!("choose another name, or remove it: `aegis instance delete {handle}`")),
        e @ CreateError::NoParent(_) => ApiError::invalid(e.to_string()),
        CreateError::ShuttingDown => shutting_down(),
        e @ (CreateError::IdTaken(_) | CreateError::Registry(_)) => {
            ApiError::new(ErrorCode::Internal, "cannot create the instance").with_cause(e.to_string())
        }
    }
}

/// An image that could not be found.
pub(super) fn no_image(error: &FindError, known: &[String]) -> ApiError {
    match error {
        FindError::Unknown(name) => {
            let hint = match known {
                [] => {
                    format!("get it with `aegis image pull {name}`, or import one with `aegis image import`")
                }
                _ => format!(
                    "there is {}; get others with `aegis image pull` or `aegis image import`",
                    known.join(", ")
                ),
            };
            ApiError::new(ErrorCode::ImageNotFound, error.to_string()).with_hint(hint)
        }
        FindError::Gone { .. } => ApiError::new(ErrorCode::ImageNotFound, error.to_string()),
        FindError::NotInstalled(e) => {
            ApiError::new(ErrorCode::ImageNotFound, "the image `base` is not installed")
                .with_cause(e.to_string())
                .with_hint(e.hint.clone())
        }
        FindError::Store(e) => ApiError::internal("cannot read the image store", e),
        FindError::Unreadable { .. } => ApiError::internal("cannot read the image", error),
    }
}

pub(super) fn not_found(target: &str) -> ApiError {
    ApiError::new(ErrorCode::InstanceNotFound, format!("no instance named `{target}`"))
}

fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::ShuttingDown, "aegisd is shutting down")
}
