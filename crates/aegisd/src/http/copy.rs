//! Files of guests, in and out as tar streams.
//!
//! Nothing is looked into here: a stream from a guest is as hostile as the guest, and whoever unpacks it knows that.

use aegis_api::{ErrorCode, REPORT_TRAILER, STAT_HEADER, paths};
use aegis_lifecycle::{Copying, FilePiece, FromGuest, Instance, ToGuest};
use aegis_proto::files::Request;
use aegis_types::{CopyReport, FileStat};
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::Shared;
use super::error::{ApiError, copy_failed, label};
use super::extract::{Params, Target};
use super::instances::Answer;
use super::logs::flag;

const TAR: &str = "application/x-tar";
/// Longest trailer in bytes: clients read 16 KiB.
const TRAILER_MAX: usize = 8 << 10;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReadParams {
    /// Absolute path in the guest.
    #[param(required)]
    path: Option<String>,
    /// `1`: of a symbolic link, what it leads to.
    follow: Option<String>,
}

impl ReadParams {
    fn check(self) -> Result<(String, bool), ApiError> {
        Ok((absolute(self.path)?, flag("follow", self.follow.as_deref())?))
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WriteParams {
    /// Absolute path of an existing directory in the guest.
    #[param(required)]
    path: Option<String>,
    /// `keep`: files belong to whom the stream says; to root otherwise.
    owners: Option<String>,
}

fn absolute(path: Option<String>) -> Result<String, ApiError> {
    match path {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(path),
        _ => Err(ApiError::invalid("`path` is required: an absolute path in the guest")),
    }
}

/// What is at a path in the guest, which is woken for it.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/files/stat",
    params(ReadParams),
    responses((status = 200, body = FileStat))
)]
pub(super) async fn stat(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(params): Params<ReadParams>,
) -> Answer<FileStat> {
    let (path, follow) = params.check()?;
    Ok(axum::Json(open(&app, &instance, Request::Stat { path, follow }).await?.stat))
}

/// A tar stream of what is at a path in the guest, with everything below it. The guest is woken for it.
#[utoipa::path(
    get,
    path = "/v1/instances/{target}/files",
    params(ReadParams),
    responses((
        status = 200,
        description = "Its root has the last name of the path. The header `aegis-stat` has a `FileStat`; with `TE: trailers`, \
            the trailer `aegis-report` a percent-encoded `CopyReport`",
        body = Vec<u8>,
        content_type = "application/x-tar"
    ))
)]
pub(super) async fn read(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(params): Params<ReadParams>,
) -> Result<Response, ApiError> {
    let (path, follow) = params.check()?;
    let Copying { stat, from_guest, to_guest } =
        open(&app, &instance, Request::Read { path, follow }).await?;
    let mut answer = Body::new(StreamBody::new(frames(from_guest, to_guest))).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(TAR));
    headers.insert(header::TRAILER, HeaderValue::from_static(REPORT_TRAILER));
    let stat = serde_json::to_string(&stat).expect("API types serialise");
    headers.insert(STAT_HEADER, HeaderValue::try_from(stat).expect("names and numbers are ASCII"));
    Ok(answer)
}

/// The stream from the guest as an answer, the report as its trailer.
fn frames(
    from_guest: FromGuest,
    to_guest: ToGuest,
) -> impl Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send {
    // The other direction stays open as long as this one.
    stream::unfold((from_guest, to_guest), |(mut from_guest, to_guest)| async move {
        let frame = match from_guest.next().await? {
            Ok(FilePiece::Data(bytes)) => Ok(Frame::data(Bytes::from(bytes))),
            // A stream without its end must not look complete.
            Ok(FilePiece::Report(CopyReport { failure: Some(why), .. })) => Err(std::io::Error::other(why)),
            Ok(FilePiece::Report(report)) => Ok(Frame::trailers(trailer(report))),
            Err(lost) => Err(std::io::Error::other(lost)),
        };
        Some((frame, (from_guest, to_guest)))
    })
}

fn trailer(mut report: CopyReport) -> HeaderMap {
    let value = loop {
        let json = serde_json::to_string(&report).expect("API types serialise");
        let value = paths::encode(&json);
        if value.len() <= TRAILER_MAX || report.problems.pop().is_none() {
            break value;
        }
        report.more_problems += 1;
    };
    let value = HeaderValue::try_from(value).expect("encoded text is ASCII");
    HeaderMap::from_iter([(REPORT_TRAILER.parse().expect("it is a name"), value)])
}

/// Unpacks a tar stream into a directory of the guest, which is woken for it. Files that cannot be made are in the report.
#[utoipa::path(
    put,
    path = "/v1/instances/{target}/files",
    params(WriteParams),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = CopyReport))
)]
pub(super) async fn write(
    State(app): State<Shared>,
    Target(instance): Target,
    Params(params): Params<WriteParams>,
    body: Body,
) -> Answer<CopyReport> {
    let path = absolute(params.path)?;
    let keep_owners = match params.owners.as_deref() {
        Some("keep") => true,
        None | Some("") => false,
        Some(_) => return Err(ApiError::invalid("`owners` must be `keep`, or absent")),
    };
    let mut body = body.into_data_stream();
    let report = match open(&app, &instance, Request::Write { path, keep_owners }).await {
        Ok(Copying { mut from_guest, to_guest, .. }) => {
            tokio::select! {
                // A copy that has failed is known before its body is at its end.
                biased;
                report = report(&mut from_guest) => report,
                sent = send(&mut body, to_guest) => match sent {
                    // The stream to the guest is kept until it has said what came of it.
                    Ok(_to_guest) => report(&mut from_guest).await,
                    Err(error) => return Err(error),
                },
            }
        }
        Err(error) => {
            drain(body).await;
            return Err(error);
        }
    };
    drain(body).await;
    let failed = || format!("cannot copy files to instance `{}`", label(&instance));
    match report {
        Ok(CopyReport { failure: Some(why), .. }) => Err(ApiError::invalid(failed()).with_cause(why)),
        Ok(report) => Ok(axum::Json(report)),
        Err(why) => Err(ApiError::new(ErrorCode::Internal, failed()).with_cause(why)),
    }
}

/// Clients look for an answer only after they could send everything.
async fn drain(mut body: BodyDataStream) {
    while let Some(Ok(_)) = body.next().await {}
}

/// Passes a body on. A guest that takes no more of it has a reason, which it tells itself.
async fn send(body: &mut BodyDataStream, mut to_guest: ToGuest) -> Result<ToGuest, ApiError> {
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| ApiError::invalid("the body broke off").with_cause(e.to_string()))?;
        if to_guest.send(&piece).await.is_err() {
            return Ok(to_guest);
        }
    }
    // As above.
    let _ = to_guest.finish().await;
    Ok(to_guest)
}

async fn report(from_guest: &mut FromGuest) -> Result<CopyReport, String> {
    match from_guest.next().await {
        Some(Ok(FilePiece::Report(report))) => Ok(report),
        Some(Ok(FilePiece::Data(_))) => Err("the guest sent files that nobody asked for".to_owned()),
        Some(Err(lost)) => Err(lost.to_string()),
        None => Err("the guest said nothing".to_owned()),
    }
}

/// Asks the guest, waking the instance. A client waits as long as one boot may take; the boot goes on without it.
async fn open(app: &Shared, instance: &Instance, request: Request) -> Result<Copying, ApiError> {
    let limit = app.settings.boot_timeout.value;
    let (Request::Stat { path, .. } | Request::Read { path, .. } | Request::Write { path, .. }) =
        request.clone();
    match timeout(limit, instance.copy(request)).await {
        Ok(copying) => copying.map_err(|e| copy_failed(instance, &path, e)),
        Err(_) => Err(super::exec::too_slow(instance, limit)),
    }
}
