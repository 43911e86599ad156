//! One request on one connection.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use aegis_api::{ErrorBody, ErrorCode};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::ClientError;

const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// More than any list of instances has.
const JSON_MAX: usize = 64 << 20;
const ERROR_MAX: usize = 1 << 20;

/// A request body whose failure is the failure of its source.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// An answer and the task that drives its connection; dropping it closes the connection.
pub(crate) struct Answer {
    response: Response<Incoming>,
    driver: JoinSet<()>,
}

/// Sends a request and waits for the head of its answer. Errors of the API become errors here.
pub(crate) async fn request(
    socket: &Path,
    method: Method,
    path: &str,
    body: RequestBody,
) -> Result<Answer, ClientError> {
    let answer = exchange(socket, method, path, None, body).await?;
    if answer.response.status().is_success() { Ok(answer) } else { Err(answer.into_error().await) }
}

/// The same, for a request to go on in another protocol. The answer is `101 Switching Protocols`.
pub(crate) async fn upgrade(
    socket: &Path,
    path: &str,
    protocol: &'static str,
    body: RequestBody,
) -> Result<Answer, ClientError> {
    let answer = exchange(socket, Method::POST, path, Some(protocol), body).await?;
    match answer.status() {
        101 => Ok(answer),
        200..=299 => Err(ClientError::Protocol(format!("it does not switch to `{protocol}`"))),
        _ => Err(answer.into_error().await),
    }
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    upgrade: Option<&'static str>,
    body: RequestBody,
) -> Result<Answer, ClientError> {
    let stream = dial(socket).await?;
    let (mut sender, connection) =
        http1::handshake::<_, RequestBody>(TokioIo::new(stream)).await.map_err(ClientError::Lost)?;
    let mut driver = JoinSet::new();
    // Its failure reaches the reader of the answer as well.
    driver.spawn(async move { drop(connection.with_upgrades().await) });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "aegis")
        .header("content-type", "application/json");
    let request = match upgrade {
        Some(protocol) => request.header("connection", "upgrade").header("upgrade", protocol),
        None => request.header("te", "trailers"),
    };
    let request = request.body(body).map_err(|e| ClientError::Protocol(e.to_string()))?;
    let response = sender.send_request(request).await.map_err(ClientError::Lost)?;
    Ok(Answer { response, driver })
}

async fn dial(socket: &Path) -> Result<UnixStream, ClientError> {
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, UnixStream::connect(socket)).await;
    dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|source| {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket, source }
            }
            _ => ClientError::Connect { socket, source },
        }
    })
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The value of a header, if there is one that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The whole answer as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let bytes = self.bytes(JSON_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Protocol(e.to_string()))
    }

    /// The whole answer, at most so many bytes.
    pub(crate) async fn bytes(self, max: usize) -> Result<Bytes, ClientError> {
        match Limited::new(self.response.into_body(), max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) => Err(body_error(e, max)),
        }
    }

    /// The body as it arrives, with the task that drives it.
    pub(crate) fn into_stream(self) -> (Incoming, JoinSet<()>) {
        (self.response.into_body(), self.driver)
    }

    /// The connection, once both sides have left HTTP.
    pub(crate) async fn into_upgraded(self) -> Result<Upgraded, ClientError> {
        // The driver hands the connection over, so it must last until then.
        let upgraded = hyper::upgrade::on(self.response).await.map_err(ClientError::Lost);
        drop(self.driver);
        upgraded
    }

    async fn into_error(self) -> ClientError {
        let status = self.status();
        let bytes = match self.bytes(ERROR_MAX).await {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
            error: format!("aegisd answered with status {status}"),
            code: ErrorCode::Internal,
            cause: Some(String::from_utf8_lossy(&bytes).trim().to_owned()).filter(|text| !text.is_empty()),
            hint: None,
        });
        ClientError::Api { status, body }
    }
}

fn body_error(error: Box<dyn Error + Send + Sync>, max: usize) -> ClientError {
    match error.downcast::<hyper::Error>() {
        Ok(error) => ClientError::Lost(*error),
        Err(e) if e.is::<LengthLimitError>() => {
            ClientError::Protocol(format!("it is longer than {max} bytes"))
        }
        Err(e) => ClientError::Protocol(e.to_string()),
    }
}
