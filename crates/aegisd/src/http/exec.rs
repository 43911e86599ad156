//! Commands in instances.
//!
//! A task per exec owns the session: it turns output into log entries, stores them and offers them to the client. While
//! the client reads slowly the task waits, and the multiplexer holds the process back; when the client is gone the
//! task goes on for the log alone.

use std::time::Duration;

use aegis_api::{ErrorCode, ExecDone, ExecRequest, ExecStarted, LogEntry, LogSource, LogStream};
use aegis_lifecycle::{ExecError, ExecSession, Instance};
use aegis_proto::control::Process;
use aegis_proto::exec::{self, ExecEvent, Start};
use aegis_proto::lines::{LineSplitter, OutputLine};
use aegis_types::{InstanceId, ProcessInput};
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::checks::{check_process, check_user};
use super::error::{ApiError, exec_failed, label};
use super::extract::{Json, Target};
use super::{Shared, ndjson, write_line};

/// Pieces of the answer that may wait for the client.
const QUEUE: usize = 8;
/// A line without its end is shown when nothing follows for so long: it may be a prompt.
const PAUSE: Duration = Duration::from_millis(50);
/// Time between SIGKILL and the report of the process's end.
pub(super) const KILL_DEADLINE: Duration = Duration::from_secs(10);
pub(super) const SIGKILL: u8 = 9;
/// Exit codes of commands that did not end by themselves.
pub(super) const TIMED_OUT: u8 = 124;
pub(super) const LOST: u8 = 125;

/// Runs a command beside the instance's own, waking it.
#[utoipa::path(
    post,
    path = "/v1/instances/{target}/exec",
    request_body = ExecRequest,
    responses((
        status = 200,
        description = "One object a line: `ExecStarted`, then `LogEntry` of the output, then `ExecDone`",
        body = String,
        content_type = "application/x-ndjson"
    ))
)]
pub(super) async fn exec(
    State(app): State<Shared>,
    Target(instance): Target,
    Json(request): Json<ExecRequest>,
) -> Result<Response, ApiError> {
    let time_limit = request.timeout_ms.map(Duration::from_millis);
    let process = process(request)?;
    let start = Start { process, stdin: false, tty: None };
    let session = open(&app, &instance, instance.exec(start)).await?;
    let exec_id = format!("exec-{}", app.ids.next());
    let (client, answer) = mpsc::channel(QUEUE);
    let pump = Pump {
        app: app.clone(),
        instance: instance.spec().id.clone(),
        exec_id,
        client: Some(client),
        deadline: time_limit.and_then(|limit| Instant::now().checked_add(limit)),
        killed: None,
        time_limit,
        session,
    };
    app.tasks.spawn(pump.run());
    Ok(ndjson(stream::unfold(answer, |mut answer| async {
        answer.recv().await.map(|bytes| (bytes, answer))
    })))
}

/// The process that a request asks for.
pub(super) fn process(request: ExecRequest) -> Result<Process, ApiError> {
    check_process(&request.command, request.env.iter(), request.workdir.as_deref())?;
    check_user(request.user.as_deref())?;
    let ExecRequest { command, env, workdir, user, timeout_ms: _ } = request;
    Ok(Process { command, env, workdir, user })
}

/// Opens a session, waking the instance. A client waits as long as one boot may take; the boot goes on without it.
pub(super) async fn open(
    app: &Shared,
    instance: &Instance,
    opening: impl Future<Output = Result<ExecSession, ExecError>>,
) -> Result<ExecSession, ApiError> {
    let limit = app.settings.boot_timeout.value;
    match timeout(limit, opening).await {
        Ok(session) => session.map_err(|e| exec_failed(instance, e)),
        Err(_) => Err(too_slow(instance, limit)),
    }
}

/// An instance that was not awake in time.
pub(super) fn too_slow(instance: &Instance, limit: Duration) -> ApiError {
    let name = label(instance);
    let text = format!("instance `{name}` did not become ready within {} s", limit.as_secs());
    ApiError::new(ErrorCode::BootFailed, text)
        .with_hint(format!("it goes on starting; see `aegis logs {name}`"))
}

struct Pump {
    app: Shared,
    instance: InstanceId,
    exec_id: String,
    /// Gone when the client is.
    client: Option<mpsc::Sender<Bytes>>,
    time_limit: Option<Duration>,
    /// When the command is killed; none once it was.
    deadline: Option<Instant>,
    /// When its end is no longer waited for; it was killed then.
    killed: Option<Instant>,
    session: ExecSession,
}

/// How a command ended.
struct End {
    exit_code: u8,
    error: Option<String>,
}

/// Output of one stream on its way to lines.
struct Output {
    stream: LogStream,
    lines: LineSplitter,
}

impl Pump {
    async fn run(mut self) {
        let started = ExecStarted { exec_id: self.exec_id.clone(), started_at: Timestamp::now() };
        self.say(&started).await;
        let mut outputs = [LogStream::Stdout, LogStream::Stderr]
            .map(|stream| Output { stream, lines: LineSplitter::default() });
        let end = self.pump(&mut outputs).await;
        self.flush(&mut outputs).await;
        self.app.logs.exec_ended(&self.instance, &self.exec_id).await;
        let done = ExecDone {
            exec_id: self.exec_id.clone(),
            exit_code: end.exit_code,
            done: true,
            error: end.error,
        };
        self.say(&done).await;
    }

    /// Moves output until the command has ended.
    async fn pump(&mut self, outputs: &mut [Output; 2]) -> End {
        // When an unfinished line is shown.
        let mut pause: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = self.session.events.next() => event,
                () = at(pause) => {
                    pause = None;
                    self.flush(outputs).await;
                    continue;
                }
                () = at(self.deadline) => {
                    self.kill().await;
                    continue;
                }
                () = at(self.killed) => return self.timed_out(),
            };
            let [stdout, stderr] = outputs;
            let (output, bytes) = match event {
                Some(Ok(ExecEvent::Stdout(bytes))) => (stdout, bytes),
                Some(Ok(ExecEvent::Stderr(bytes))) => (stderr, bytes),
                Some(Ok(ExecEvent::Started(_))) => continue,
                Some(Ok(ExecEvent::Exit(_))) if self.killed.is_some() => return self.timed_out(),
                Some(Ok(ExecEvent::Exit(status))) => return End { exit_code: status.code, error: None },
                Some(Ok(ExecEvent::Refused(failure))) => {
                    return End { exit_code: failure.kind.exit_code(), error: Some(failure.message) };
                }
                Some(Err(lost)) => return End { exit_code: LOST, error: Some(lost.to_string()) },
                None => return End { exit_code: LOST, error: Some("the session ended early".to_owned()) },
            };
            let unfinished = bytes.last().is_some_and(|&last| last != b'\n');
            let lines = output.lines.push(&bytes);
            let stream = output.stream;
            self.deliver(stream, lines).await;
            pause = if unfinished { Some(Instant::now() + PAUSE) } else { pause };
        }
    }

    async fn flush(&mut self, outputs: &mut [Output; 2]) {
        for output in outputs {
            let rest = output.lines.flush().into_iter().collect();
            self.deliver(output.stream, rest).await;
        }
    }

    /// Stores lines and offers them to the client.
    async fn deliver(&mut self, stream: LogStream, lines: Vec<OutputLine>) {
        let mut answer = Vec::new();
        for line in lines {
            let (now, instance) = (Timestamp::now(), self.instance.clone());
            let mut entry =
                LogEntry::output(now, instance, LogSource::Exec, stream, line.bytes, line.partial);
            entry.exec_id = Some(self.exec_id.clone());
            if self.client.is_some() {
                write_line(&mut answer, &entry);
            }
            self.app.logs.append(entry).await;
        }
        if !answer.is_empty() {
            self.offer(answer.into()).await;
        }
    }

    async fn say<T: serde::Serialize>(&mut self, object: &T) {
        let mut line = Vec::new();
        write_line(&mut line, object);
        self.offer(line.into()).await;
    }

    /// Waits until the client takes the piece or is gone. The command's time goes on.
    async fn offer(&mut self, piece: Bytes) {
        while let Some(client) = &self.client {
            let taken = tokio::select! {
                room = client.reserve() => Some(room.map(|room| room.send(piece.clone())).is_ok()),
                () = at(self.deadline) => None,
            };
            match taken {
                Some(true) => return,
                Some(false) => self.client = None,
                None => self.kill().await,
            }
        }
    }

    async fn kill(&mut self) {
        self.deadline = None;
        let killed = Instant::now() + KILL_DEADLINE;
        self.killed = Some(killed);
        // An error means that it is over; the events tell. A guest that takes no signal is given up like one that
        // reports no end.
        let _ = tokio::time::timeout_at(
            killed,
            self.session.input.send(exec::ExecRequest::Input(ProcessInput::Signal(SIGKILL))),
        )
        .await;
    }

    fn timed_out(&self) -> End {
        End { exit_code: TIMED_OUT, error: Some(killed_after(self.time_limit.unwrap_or_default())) }
    }
}

/// What is said of a command that took too long.
pub(super) fn killed_after(limit: Duration) -> String {
    format!("the command was killed after {} ms", limit.as_millis())
}

pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
