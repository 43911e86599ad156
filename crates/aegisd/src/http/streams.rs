//! Commands with streams: see [`aegis_api::AttachedExec`] and [`aegis_api::Attach`].
//!
//! A task per connection moves frames between the client and the guest in both directions. Who is slow holds the other back.
//! A client that goes away ends the session: the guest then hangs a terminal up and leaves any other command alone. One that
//! ended the input before has detached: the session goes on without it.
//! Nothing of it goes to the log, but for what the instance's own command writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_api::{Attach, AttachedExec, ExecDone, ExecStarted, ProcessOutput, STREAMS};
use aegis_lifecycle::{ExecEvents, ExecInput, ExecSession};
use aegis_link::frames::{FrameReader, write_frame};
use aegis_proto::exec::{self, ExecEvent, ExecRequest, Start};
use aegis_types::ProcessInput;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Shared;
use super::error::ApiError;
use super::exec::{KILL_DEADLINE, LOST, SIGKILL, TIMED_OUT, at, killed_after, open, process};
use super::extract::{Json, Target};

/// A connection that the client wants to use for streams.
pub(super) struct Upgrade(OnUpgrade);

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let wanted = parts.headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
        match (wanted, parts.extensions.remove::<OnUpgrade>()) {
            (Some(protocol), Some(upgrade)) if protocol.eq_ignore_ascii_case(STREAMS) => Ok(Self(upgrade)),
            _ => Err(ApiError::invalid(format!(
                "this is for connections with `Connection: Upgrade` and `Upgrade: {STREAMS}`"
            ))
            .with_status(StatusCode::UPGRADE_REQUIRED)),
        }
    }
}

/// Runs a command beside the instance's own with input, signals and perhaps a terminal, waking the instance.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/exec/attach",
    request_body = AttachedExec,
    responses((status = 101, description = "Frames in both directions from now on"))
)]
pub(super) async fn exec_attached(
    State(app): State<Shared>,
    Target(instance): Target,
    upgrade: Upgrade,
    Json(request): Json<AttachedExec>,
) -> Result<Response, ApiError> {
    let AttachedExec { exec, stdin, tty } = request;
    let limit = exec.timeout_ms.map(Duration::from_millis);
    let start = Start { process: process(exec)?, stdin, tty };
    let session = open(&app, &instance, instance.exec(start)).await?;
    let id = format!("exec-{}", app.ids.next());
    Ok(upgrade.serve(&app, Streams { id, limit, session }))
}

/// Attaches to the instance's own command, waking the instance.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/attach",
    request_body = Attach,
    responses((status = 101, description = "Frames in both directions from now on"))
)]
pub(super) async fn attach(
    State(app): State<Shared>,
    Target(instance): Target,
    upgrade: Upgrade,
    Json(request): Json<Attach>,
) -> Result<Response, ApiError> {
    let attaching = instance.attach_streams(exec::Attach { size: request.size });
    let session = open(&app, &instance, attaching).await?;
    let id = instance.spec().id.to_string();
    Ok(upgrade.serve(&app, Streams { id, limit: None, session }))
}

impl Upgrade {
    fn serve(self, app: &Shared, streams: Streams) -> Response {
        app.tasks.spawn(async move {
            // A client that went away meanwhile wants nothing any more.
            if let Ok(connection) = self.0.await {
                let (reader, writer) = tokio::io::split(TokioIo::new(connection));
                streams.run(reader, writer).await;
            }
        });
        let headers = [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static(STREAMS)),
        ];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

/// A command and how long it may take.
struct Streams {
    id: String,
    limit: Option<Duration>,
    session: ExecSession,
}

/// Exit code of a command, and why it did not end by itself.
type End = (u8, Option<String>);

impl Streams {
    async fn run(self, reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin) {
        let Self { id, limit, session } = self;
        let ExecSession { mut events, mut input } = session;
        let (kill, killing) = mpsc::channel(1);
        let (killed, detachable) = (AtomicBool::new(false), AtomicBool::new(false));
        let output = async {
            tokio::select! {
                end = send_output(&id, &mut events, &mut writer) => end,
                () = time_out(limit, &kill, &killed) => Some((LOST, None)),
            }
        };
        let end = tokio::select! {
            end = output => end,
            () = receive_input(FrameReader::new(reader), &mut input, killing, &detachable) => None,
        };
        let Some((exit_code, error)) = end else {
            if detachable.load(Ordering::Relaxed) {
                while events.next().await.is_some() {}
            }
            return;
        };
        let (exit_code, error) = match limit.filter(|_| killed.load(Ordering::Relaxed)) {
            Some(limit) => (TIMED_OUT, Some(killed_after(limit))),
            None => (exit_code, error),
        };
        let done = ExecDone { exec_id: id, exit_code, done: true, error };
        // Nobody else could be told.
        let _ = write_frame(&mut writer, &ProcessOutput::Done(done).into_frame()).await;
        let _ = writer.shutdown().await;
    }
}

/// Has the command killed after its time, and ends when its end is no longer waited for.
async fn time_out(limit: Option<Duration>, kill: &mpsc::Sender<()>, killed: &AtomicBool) {
    at(limit.and_then(|limit| Instant::now().checked_add(limit))).await;
    killed.store(true, Ordering::Relaxed);
    // Whoever moves the input sends the signal.
    let _ = kill.send(()).await;
    tokio::time::sleep(KILL_DEADLINE).await;
}

/// Passes on what the command does until it has ended, or `None` if the client is gone.
async fn send_output(
    id: &str,
    events: &mut ExecEvents,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Option<End> {
    // Before it is known whether it can be started: what follows belongs to this id in any case.
    let started = ExecStarted { exec_id: id.to_owned(), started_at: Timestamp::now() };
    write_frame(writer, &ProcessOutput::Started(started).into_frame()).await.ok()?;
    loop {
        let output = match events.next().await {
            Some(Ok(ExecEvent::Started(_))) => continue,
            Some(Ok(ExecEvent::Stdout(bytes))) => ProcessOutput::Stdout(bytes),
            Some(Ok(ExecEvent::Stderr(bytes))) => ProcessOutput::Stderr(bytes),
            Some(Ok(ExecEvent::Exit(status))) => return Some((status.code, None)),
            Some(Ok(ExecEvent::Refused(failure))) => {
                return Some((failure.kind.exit_code(), Some(failure.message)));
            }
            Some(Err(lost)) => return Some((LOST, Some(lost.to_string()))),
            None => return Some((LOST, Some("the session ended early".to_owned()))),
        };
        write_frame(writer, &output.into_frame()).await.ok()?;
    }
}

/// Passes on what the client says until it is gone. Ends when the client breaks the rules, too.
async fn receive_input(
    mut frames: FrameReader<impl AsyncRead + Unpin>,
    input: &mut ExecInput,
    mut killing: mpsc::Receiver<()>,
    detachable: &AtomicBool,
) {
    loop {
        let request = tokio::select! {
            frame = frames.next() => match frame.map(|frame| frame.map(ProcessInput::from_frame)) {
                Ok(Some(Ok(request))) => request,
                Ok(None) => return,
                Ok(Some(Err(error))) => return tracing::debug!(%error, "a client sent no input"),
                Err(error) => return tracing::debug!(%error, "the connection of a client broke"),
            },
            // The sender lives as long as the session.
            Some(()) = killing.recv() => ProcessInput::Signal(SIGKILL),
        };
        if request == ProcessInput::End {
            detachable.store(true, Ordering::Relaxed);
        }
        // An error means that the command takes nothing any more; its events tell why.
        if input.send(ExecRequest::Input(request)).await.is_err() {
            return std::future::pending().await;
        }
    }
}
