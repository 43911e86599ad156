//! Logins at registries. Passwords go into the file of `aegis-registry` and nowhere else.

use aegis_api::{ErrorCode, RegistryLogin, RegistrySummary, StateReply};
use aegis_registry::{Credential, CredentialError, CredentialStore, Problem, RegistryError, registry_host};
use axum::body::Bytes;
use axum::extract::{Path, State};
use tokio::task;
use zeroize::Zeroize as _;

use super::error::ApiError;
use super::instances::Answer;
use super::{App, Shared};
use crate::text;

/// Registries that the daemon has credentials for.
#[utoipa::path(get, path = "/v1/registries", responses((status = 200, body = Vec<RegistrySummary>)))]
pub(super) async fn list(State(app): State<Shared>) -> Answer<Vec<RegistrySummary>> {
    let logins = with(&app, CredentialStore::list).await?;
    let summaries = logins
        .into_iter()
        .map(|login| RegistrySummary { registry: login.registry, username: login.username });
    Ok(axum::Json(summaries.collect()))
}

/// Checks a user name and a password at a registry, and keeps them for pulls.
#[utoipa::path(
    post,
    path = "/v1/registries",
    request_body = RegistryLogin,
    responses((status = 200, body = RegistrySummary))
)]
pub(super) async fn login(State(app): State<Shared>, body: Bytes) -> Answer<RegistrySummary> {
    let request = serde_json::from_slice::<RegistryLogin>(&body);
    if let Ok(mut body) = body.try_into_mut() {
        body.as_mut().zeroize();
    }
    // What is wrong with it must not be quoted.
    let RegistryLogin { registry, username, password } = request.map_err(|e| {
        let place = format!("line {}, column {}", e.line(), e.column());
        ApiError::invalid("invalid request: `registry`, `username` and `password` are required strings")
            .with_cause(place)
    })?;
    let registry = host(&registry)?;
    if username.is_empty() || password.expose().is_empty() {
        return Err(ApiError::invalid("user name and password must not be empty"));
    }
    let credential = Credential::Password { username: username.clone(), password };
    let checked = app.registry.check_login(&registry, &credential).await;
    checked.map_err(|e| not_logged_in(&registry, &e))?;
    let host = registry.clone();
    with(&app, move |store| store.put(&host, credential)).await?;
    app.registry.forget_tokens();
    Ok(axum::Json(RegistrySummary { registry, username: Some(username) }))
}

/// Forgets the credentials for a registry.
#[utoipa::path(
    delete,
    path = "/v1/registries/{registry}",
    responses((status = 200, body = StateReply))
)]
pub(super) async fn logout(State(app): State<Shared>, Path(registry): Path<String>) -> Answer<StateReply> {
    let registry = host(&registry)?;
    let wanted = registry.clone();
    let removed = with(&app, move |store| store.remove(&wanted)).await?;
    app.registry.forget_tokens();
    match removed {
        true => Ok(axum::Json(StateReply { status: "deleted".to_owned() })),
        false => {
            let text = format!("no credentials are kept for registry `{registry}`");
            Err(ApiError::new(ErrorCode::NotLoggedIn, text).with_hint("`aegis registry list` shows all"))
        }
    }
}

fn host(text: &str) -> Result<String, ApiError> {
    registry_host(text).map_err(|e| ApiError::invalid(e.to_string()))
}

async fn with<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&CredentialStore) -> Result<T, CredentialError> + Send + 'static,
) -> Result<T, ApiError> {
    let store = app.credentials.clone();
    let done =
        task::spawn_blocking(move || work(&store)).await.expect("the file of credentials does not panic");
    done.map_err(|e| ApiError::internal("cannot use the credentials for registries", &e))
}

fn not_logged_in(registry: &str, error: &RegistryError) -> ApiError {
    let refusal = match error {
        RegistryError::Request { problem, .. } if matches!(**problem, Problem::Denied { .. }) => {
            let text = format!("registry `{registry}` does not accept the user name and the password");
            ApiError::new(ErrorCode::LoginFailed, text)
        }
        _ => ApiError::new(ErrorCode::PullFailed, format!("cannot log in to registry `{registry}`")),
    };
    refusal.with_cause(text::chain(error))
}
