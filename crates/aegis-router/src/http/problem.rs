//! Answers of the router itself.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

use super::Body;
use crate::backend::Refusal;

/// Why a request was not forwarded, for people.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    /// The same request may succeed soon.
    retry: bool,
    text: String,
}

impl Problem {
    /// Nothing to try again before something was changed.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, retry: false, text: text.into() }
    }

    pub(super) fn retry(text: impl Into<String>) -> Self {
        Self { retry: true, ..Self::unavailable(text) }
    }

    pub(super) fn bad_gateway(text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, ..Self::unavailable(text) }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, ..Self::unavailable(text) }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let text = Full::new(Bytes::from(self.text + "\n")).map_err(|never| match never {});
        let mut response = Response::new(text.boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.retry {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("3"));
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Disabled | Refusal::NotFound => Self::unavailable(text),
            Refusal::Failed { .. } | Refusal::Busy | Refusal::Timeout => Self::retry(text),
            Refusal::NobodyListens => Self::bad_gateway(text),
        }
    }
}
