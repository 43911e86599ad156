//! A connection to one worker.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use aegis_lifecycle::ports::{Worker, WorkerError};
use aegis_link::Carrier;
use aegis_link::rpc::{CallError, Client, Notification};
use aegis_proto::service::Service;
use aegis_proto::worker::{
    BootFailure, CONSOLE_FILE, CONTROL_SOCKET, EXIT_FILE, EXITED, ExitReason, Exited, HIBERNATE, PAUSE,
    RESUME, Ready, STATUS, STOP, STREAMS_SOCKET, Stop, WAIT_READY, WorkerStatus,
};
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::files;
use super::process::Process;
use super::spawn::WORKER_LOG;
use crate::text::printable;

/// Time for a worker to answer what it does at once.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Time on top of what a worker was given for a longer task.
const MARGIN: Duration = Duration::from_secs(10);
/// Time to save a VM: its memory is in its file already.
const SAVE_DEADLINE: Duration = Duration::from_secs(60);
/// Time for a worker to end after it hung up.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Time for what a dead worker sent to reach us: it is in the socket already.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// Longest answer on the stream socket before the stream begins, in bytes.
const ANSWER_MAX: u64 = 4096;
/// Lines of the console in a boot failure that a worker could not report itself.
const CONSOLE_LINES: usize = 20;

/// The worker of one live VM.
pub(crate) struct WorkerClient {
    rpc: Client,
    run_dir: PathBuf,
    process: Arc<Process>,
    /// Time for the worker to report the outcome of a boot.
    boot_deadline: Duration,
    end: watch::Receiver<Option<Exited>>,
}

impl WorkerClient {
    /// Takes over a connection to the control socket. The worker is watched from here on, and reaped if it is our child.
    pub(super) fn new(
        control: UnixStream,
        run_dir: &Path,
        process: Arc<Process>,
        child: Option<Child>,
        boot_deadline: Duration,
        tasks: &TaskTracker,
    ) -> WorkerClient {
        let (rpc, notifications) = Client::new(control);
        let (ended, end) = watch::channel(None);
        let watcher = Watcher {
            _connection: rpc.clone(),
            notifications,
            process: Arc::clone(&process),
            child,
            run_dir: run_dir.to_owned(),
            ended,
        };
        tasks.spawn(watcher.watch());
        WorkerClient { rpc, run_dir: run_dir.to_owned(), process, boot_deadline, end }
    }

    async fn call<P: Serialize, R: DeserializeOwned>(
        &self,
        method: &str,
        params: &P,
        deadline: Duration,
    ) -> Result<R, CallFailure> {
        match timeout(deadline, self.rpc.call(method, params)).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(CallError::Closed(_))) => Err(CallFailure::Gone(self.exited().await)),
            Ok(Err(e)) => Err(CallFailure::Failed(e)),
            Err(_) => Err(CallFailure::Silent { method: method.to_owned(), deadline }),
        }
    }
}

/// Why a call gave no result.
enum CallFailure {
    Gone(Exited),
    Failed(CallError),
    Silent { method: String, deadline: Duration },
}

impl From<CallFailure> for WorkerError {
    fn from(failure: CallFailure) -> WorkerError {
        WorkerError(match failure {
            CallFailure::Gone(exited) => format!("the worker is gone: {}", exited.message),
            CallFailure::Failed(e) => e.to_string(),
            CallFailure::Silent { method, deadline } => {
                format!("the worker did not answer `{method}` within {} s", deadline.as_secs())
            }
        })
    }
}

#[async_trait]
impl Worker for WorkerClient {
    async fn wait_ready(&self) -> Result<Ready, BootFailure> {
        let failure = match self.call(WAIT_READY, &(), self.boot_deadline).await {
            Ok(ready) => return Ok(ready),
            Err(failure) => failure,
        };
        if let CallFailure::Failed(CallError::Rpc(e)) = &failure
            && let Some(reported) = e.data.clone().and_then(|data| serde_json::from_value(data).ok())
        {
            return Err(reported);
        }
        if let CallFailure::Silent { .. } = failure {
            self.process.kill().await;
        }
        let message = match failure {
            CallFailure::Gone(exited) => exited.message,
            other => WorkerError::from(other).0,
        };
        Err(BootFailure { message, console: console_tail(&self.run_dir) })
    }

    async fn status(&self) -> Result<WorkerStatus, WorkerError> {
        Ok(self.call(STATUS, &(), CALL_DEADLINE).await?)
    }

    async fn pause(&self) -> Result<(), WorkerError> {
        Ok(self.call(PAUSE, &(), CALL_DEADLINE).await?)
    }

    async fn resume(&self) -> Result<(), WorkerError> {
        Ok(self.call(RESUME, &(), CALL_DEADLINE).await?)
    }

    async fn hibernate(&self) -> Result<(), WorkerError> {
        match self.call(HIBERNATE, &(), SAVE_DEADLINE).await {
            Ok(()) => Ok(()),
            Err(CallFailure::Gone(Exited { reason: ExitReason::Hibernated, .. })) => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    async fn stop(&self, grace: Duration) -> Result<(), WorkerError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let stopped: Result<(), _> = self.call(STOP, &Stop { grace_ms }, grace.saturating_add(MARGIN)).await;
        match stopped {
            Ok(()) | Err(CallFailure::Gone(_)) => Ok(()),
            Err(failure @ CallFailure::Silent { .. }) => {
                tracing::warn!("{}: killing it", WorkerError::from(failure));
                // Its VMM dies with it.
                self.process.kill().await;
                Ok(())
            }
            Err(failure @ CallFailure::Failed(_)) => Err(failure.into()),
        }
    }

    async fn open_with(&self, service: Service, first: &[u8]) -> Result<Box<dyn Carrier>, WorkerError> {
        let socket = self.run_dir.join(STREAMS_SOCKET);
        match timeout(CALL_DEADLINE, open_stream(&socket, service, first)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(e)) => Err(WorkerError(format!("cannot open a stream to the guest: {e}"))),
            Err(_) => Err(WorkerError(format!(
                "the guest did not open a stream within {} s",
                CALL_DEADLINE.as_secs()
            ))),
        }
    }

    async fn exited(&self) -> Exited {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await;
        ended.ok().and_then(|exited| exited.clone()).unwrap_or_else(|| Exited {
            // Only when the runtime goes down, which ends all tasks.
            reason: ExitReason::VmmDied,
            message: "the daemon stopped watching the worker".to_owned(),
        })
    }
}

/// Connects to the control socket of a worker.
pub(crate) async fn connect(run_dir: &Path) -> std::io::Result<UnixStream> {
    timeout(CALL_DEADLINE, UnixStream::connect(run_dir.join(CONTROL_SOCKET))).await?
}

/// `CONNECT <n>\n` and what the service is told first, answered by `OK\n` or `ERR <text>\n`. What follows `OK\n` belongs to
/// the service: not one byte more is read.
async fn open_stream(path: &Path, service: Service, first: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    let request = format!("CONNECT {}\n", service.number());
    stream.write_all(&[request.as_bytes(), first].concat()).await?;
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).await?;
    if &answer == b"OK\n" {
        return Ok(stream);
    }
    let mut rest = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut rest).await?;
    let text = [&answer[..], &rest].concat();
    let text = printable(&text);
    Err(std::io::Error::other(text.strip_prefix("ERR ").unwrap_or(&text).trim().to_owned()))
}

/// Waits for the end of a worker, finds out how it came, and reaps it.
struct Watcher {
    /// Keeps the connection open, so that its end means the worker's.
    _connection: Client,
    notifications: mpsc::Receiver<Notification>,
    process: Arc<Process>,
    child: Option<Child>,
    run_dir: PathBuf,
    ended: watch::Sender<Option<Exited>>,
}

impl Watcher {
    async fn watch(mut self) {
        let announced = self.announcement().await;
        // Its VM is gone by now. The process itself waits for us to close the streams to the guest.
        self.ended.send_if_modified(|ended| {
            ended.clone_from(&announced);
            ended.is_some()
        });
        if timeout(END_DEADLINE, self.process.exited()).await.is_err() {
            tracing::warn!(dir = %self.run_dir.display(), "a worker hung up and goes on: killing it");
            self.process.kill().await;
        }
        // At most a moment: the process has ended.
        let status = self.child.as_mut().and_then(|child| child.wait().ok());
        if announced.is_none() {
            let found = read_exit(&self.run_dir).unwrap_or_else(|| self.post_mortem(status));
            self.ended.send_replace(Some(found));
        }
    }

    /// The end of a worker that left no word about it.
    fn post_mortem(&self, status: Option<ExitStatus>) -> Exited {
        let how = match status {
            Some(status) => match status.signal() {
                Some(signal) => format!("it was killed by signal {signal}"),
                None => status.to_string(),
            },
            None => "it left no note".to_owned(),
        };
        let said = complaint(&self.run_dir).map(|line| format!("; it last said: {line}")).unwrap_or_default();
        Exited { reason: ExitReason::VmmDied, message: format!("the worker died: {how}{said}") }
    }

    /// What the worker says about its end before it hangs up or dies.
    async fn announcement(&mut self) -> Option<Exited> {
        let read = |(method, params): Notification| {
            if method == EXITED { serde_json::from_value(params).ok() } else { None }
        };
        loop {
            tokio::select! {
                notification = self.notifications.recv() => {
                    let announced = read(notification?);
                    if announced.is_some() {
                        return announced;
                    }
                }
                () = self.process.exited() => break,
            }
        }
        while let Ok(Some(notification)) = timeout(DRAIN_DEADLINE, self.notifications.recv()).await {
            let announced = read(notification);
            if announced.is_some() {
                return announced;
            }
        }
        None
    }
}

/// The note that a worker leaves at its end.
pub(super) fn read_exit(run_dir: &Path) -> Option<Exited> {
    serde_json::from_slice(&std::fs::read(run_dir.join(EXIT_FILE)).ok()?).ok()
}

/// The last thing that a worker printed, unless that was ordinary.
fn complaint(run_dir: &Path) -> Option<String> {
    let text = printable(&files::read_end(&run_dir.join(WORKER_LOG), 4096).ok()?);
    let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
    (!last.contains(" INFO ") && !last.contains(" DEBUG ")).then(|| last.trim().to_owned())
}

fn console_tail(run_dir: &Path) -> Vec<String> {
    let bytes = files::read_end(&run_dir.join(CONSOLE_FILE), 16 << 10).unwrap_or_default();
    let text = printable(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
