//! Parts of requests, with refusals in our own form.

use std::sync::Arc;

use aegis_lifecycle::Instance;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::{ApiError, not_found};
use super::{App, BODY_MAX};

/// How alike a name must be to be suggested; 1 is equal.
const ALIKE: f64 = 0.6;

/// The instance that the path names.
pub(super) struct Target(pub(super) Instance);

impl FromRequestParts<Arc<App>> for Target {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let target = match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(target)) => target,
            // The static path that shadows an instance of its name has no parameter.
            Err(_) => parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned(),
        };
        app.manager.find(&target).map(Target).ok_or_else(|| {
            let shown: String = target.chars().take(80).collect();
            let error = not_found(&shown);
            match similar(app, &shown) {
                Some(name) => error.with_hint(format!("did you mean `{name}`?")),
                None => error.with_hint("`aegis instance list` shows all"),
            }
        })
    }
}

fn similar(app: &App, target: &str) -> Option<String> {
    let names = app.manager.list().into_iter().filter_map(|instance| instance.spec().handle.clone());
    let scored = names.map(|name| (strsim::normalized_damerau_levenshtein(name.as_str(), target), name));
    let best = scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, name)| name.into())
}

/// A JSON body. Its content type is not looked at.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let body = Bytes::from_request(request, app).await.map_err(unreadable)?;
        serde_json::from_slice(&body)
            .map(Json)
            .map_err(|e| ApiError::invalid(format!("invalid request: {e}")))
    }
}

fn unreadable(rejection: BytesRejection) -> ApiError {
    let status = rejection.status();
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::invalid(format!("the request body is larger than {BODY_MAX} bytes"))
            .with_status(status);
    }
    ApiError::invalid("cannot read the request body").with_cause(rejection.body_text()).with_status(status)
}

/// The query of a request.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri)
            .map_err(|e| ApiError::invalid("the query is not what was expected").with_cause(e.body_text()))?;
        Ok(Params(query.0))
    }
}
