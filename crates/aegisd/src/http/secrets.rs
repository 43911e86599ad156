//! Secrets: store, list, delete, reveal; the key; and which of them an instance gets.

use std::sync::Arc;

use aegis_api::{
    AuditEntry, ErrorCode, InstanceSecrets, InstanceSecretsReply, KeyRotated, RevealedSecret, SecretSummary,
    SetSecret, StateReply,
};
use aegis_lifecycle::Instance;
use aegis_types::{InstanceState, SECRET_MAX, SecretName, WantedSecrets};
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use zeroize::Zeroize as _;

use super::error::{ApiError, label};
use super::extract::{Json, Target};
use super::instances::Answer;
use super::{App, Shared};
use crate::secrets::{InjectError, VaultError, locked_hint};
use crate::text;

/// The secret that the path names.
pub(super) struct Name(SecretName);

impl FromRequestParts<Arc<App>> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let name = match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(name)) => name,
            // The static path that shadows a secret of its name has no parameter.
            Err(_) => parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
        };
        SecretName::parse(&name).map(Name).map_err(|e| ApiError::invalid(e.to_string()))
    }
}

/// Secrets, by name.
#[utoipa::path(get, path = "/v1/secrets", responses((status = 200, body = Vec<SecretSummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Answer<Vec<SecretSummary>> {
    let listed = app.secrets.list().await.map_err(|e| refused("list the secrets", &e))?;
    let summary = |(name, created_at)| SecretSummary { name, created_at };
    Ok(axum::Json(listed.into_iter().map(summary).collect()))
}

/// Stores a secret, in place of an older one.
#[utoipa::path(put, path = "/v1/secrets/{name}", request_body = SetSecret, responses((status = 200, body = SecretSummary)))]
pub(super) async fn set(State(app): State<Shared>, Name(name): Name, body: Bytes) -> Answer<SecretSummary> {
    let request = serde_json::from_slice::<SetSecret>(&body);
    wipe(body);
    // What is wrong with it must not be quoted.
    let SetSecret { value } = request.map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        ApiError::invalid("invalid request: `value` must be a string, or an object with the member `base64`")
            .with_cause(place)
    })?;
    match value.expose().len() {
        0 => return Err(ApiError::invalid(format!("the value of secret `{name}` is empty"))),
        length if length > SECRET_MAX => {
            let text =
                format!("the value of secret `{name}` has {length} bytes; at most {SECRET_MAX} are kept");
            return Err(ApiError::invalid(text));
        }
        _ => {}
    }
    let stored = app.secrets.set(name.clone(), &value).await;
    let created_at = stored.map_err(|e| refused(&format!("store secret `{name}`"), &e))?;
    Ok(axum::Json(SecretSummary { name, created_at }))
}

/// The body is ours alone, unless the server still has a part of it.
fn wipe(body: Bytes) {
    if let Ok(mut body) = body.try_into_mut() {
        body.as_mut().zeroize();
    }
}

/// Deletes a secret. Running instances keep it until their next boot.
#[utoipa::path(delete, path = "/v1/secrets/{name}", responses((status = 200, body = StateReply)))]
pub(super) async fn delete(State(app): State<Shared>, Name(name): Name) -> Answer<StateReply> {
    match app.secrets.delete(name.clone()).await {
        Ok(true) => Ok(axum::Json(StateReply { status: "deleted".to_owned() })),
        Ok(false) => Err(unknown(&name)),
        Err(e) => Err(refused(&format!("delete secret `{name}`"), &e)),
    }
}

/// Shows the value of a secret, and notes that in the audit log.
#[utoipa::path(post, path = "/v1/secrets/{name}/reveal", responses((status = 200, body = RevealedSecret)))]
pub(super) async fn reveal(State(app): State<Shared>, Name(name): Name) -> Result<Response, ApiError> {
    let revealed = app.secrets.reveal(&name).await;
    let value = revealed.map_err(|e| match e {
        InjectError::Vault(e) => refused(&format!("reveal secret `{name}`"), &e),
        e => ApiError::internal(format!("cannot reveal secret `{name}`"), &e),
    })?;
    let value = value.ok_or_else(|| unknown(&name))?;
    let mut answer = axum::Json(RevealedSecret { name, value }).into_response();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Encrypts all secrets with a new master key.
#[utoipa::path(post, path = "/v1/secrets/rotate-key", responses((status = 200, body = KeyRotated)))]
pub(super) async fn rotate_key(State(app): State<Shared>) -> Answer<KeyRotated> {
    // A task of its own: a client that goes away would only make the next start tidy up.
    let secrets = Arc::clone(&app.secrets);
    let rotated = app.tasks.spawn(async move { secrets.rotate().await });
    let rotated = rotated.await.expect("encrypting does not panic");
    let secrets = rotated.map_err(|e| refused("change the master key", &e))?;
    Ok(axum::Json(KeyRotated { secrets }))
}

/// What was done with secrets, newest last; at most the newest 1000.
#[utoipa::path(get, path = "/v1/audit", responses((status = 200, body = Vec<AuditEntry>)))]
pub(super) async fn audit(State(app): State<Shared>) -> Answer<Vec<AuditEntry>> {
    let audited = app.secrets.audited().await;
    audited.map(axum::Json).map_err(|e| ApiError::internal("cannot read the audit log", &e))
}

/// Replaces which secrets an instance gets from its next boot on.
#[utoipa::path(put, path = "/v1/instances/{target}/secrets", request_body = InstanceSecrets, responses((status = 200, body = InstanceSecretsReply)))]
pub(super) async fn assign(
    State(app): State<Shared>,
    Target(instance): Target,
    Json(request): Json<InstanceSecrets>,
) -> Answer<InstanceSecretsReply> {
    let id = &instance.spec().id;
    let _changing = app.secrets.changing().await;
    let files = match request.secret_files {
        Some(files) => files,
        None => wanted(&app, &instance).await?.files,
    };
    let new = WantedSecrets { variables: request.secrets, files };
    let new = new.checked().map_err(|e| ApiError::invalid(e.to_string()))?;
    let warnings = check(&app, Some(label(&instance)), &new).await?;
    let saved = app.secrets.want(id, new.clone()).await;
    saved.map_err(|e| ApiError::internal("cannot keep the list of secrets", &e))?;
    Ok(axum::Json(InstanceSecretsReply {
        secret_keys: new.variables,
        secret_files: new.files,
        restart_required: instance.status().state != InstanceState::Stopped,
        warnings,
    }))
}

/// Which secrets an instance wants.
pub(super) async fn wanted(app: &Shared, instance: &Instance) -> Result<WantedSecrets, ApiError> {
    let wanted = app.secrets.wanted(&instance.spec().id).await;
    wanted.map_err(|e| ApiError::internal("cannot read which secrets the instance wants", &e))
}

/// Refuses what a boot could not have now. What the caller should know otherwise.
pub(super) async fn check(
    app: &Shared,
    name: Option<&str>,
    wanted: &WantedSecrets,
) -> Result<Vec<String>, ApiError> {
    let subject = name.map_or_else(|| "the instance".to_owned(), |name| format!("instance `{name}`"));
    app.secrets.check(wanted).await.map_err(|error| {
        let refusal = match &error {
            InjectError::NotStored(secret) => ApiError::new(
                ErrorCode::SecretNotFound,
                format!("{subject} needs secret `{secret}`, which is not stored"),
            ),
            InjectError::NotText(_) | InjectError::TooLarge => ApiError::invalid(error.to_string()),
            InjectError::Vault(e) => return refused(&format!("give {subject} its secrets"), e),
            InjectError::Audit(_) => ApiError::internal(format!("cannot give {subject} its secrets"), &error),
        };
        match error.hint() {
            Some(hint) => refusal.with_hint(hint),
            None => refusal,
        }
    })
}

fn refused(action: &str, error: &VaultError) -> ApiError {
    let code = match error {
        VaultError::Missing { .. } | VaultError::Wrong { .. } | VaultError::Key(_) => {
            ErrorCode::SecretsLocked
        }
        VaultError::Damaged(_) | VaultError::Store(_) => ErrorCode::Internal,
    };
    let refusal = ApiError::new(code, format!("cannot {action}")).with_cause(text::chain(error));
    match locked_hint(error) {
        Some(hint) => refusal.with_hint(hint),
        None => refusal,
    }
}

fn unknown(name: &SecretName) -> ApiError {
    ApiError::new(ErrorCode::SecretNotFound, format!("no secret named `{name}`"))
        .with_hint("`aegis secret list` shows all")
}
