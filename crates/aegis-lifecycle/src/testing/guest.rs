//! A worker whose guest does what a test tells it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_link::rpc::{Handler, serve};
use aegis_link::tcp;
use aegis_proto::control::{self, StartFailure, StartFailureKind, Started};
use aegis_proto::exec::{ExecEvent, ExecRequest};
use aegis_proto::frame::Frame;
use aegis_proto::jsonrpc::{METHOD_NOT_FOUND, RpcError};
use aegis_proto::logs::{LogEvent, LogLine, OutputStream, Subscribe};
use aegis_proto::service::Service;
use aegis_proto::tcp::Answer;
use aegis_proto::worker::{
    BootFailure, Confinement, ExitReason, Exited, Phase, Ready, StartPhases, WorkerStatus,
};
use aegis_types::{ExitStatus, ProcessInput, StartKind, VmId};
use serde_json::Value;
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::watch;

use crate::ports::{Worker, WorkerError};

/// What the guest answers to `run`.
#[derive(Debug, Clone)]
pub(crate) enum RunMode {
    Start,
    Refuse(StartFailureKind),
    Hang,
    Nonsense,
    CloseStream,
}

/// The primary process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Primary {
    pub(crate) started: bool,
    pub(crate) lines: Vec<Vec<u8>>,
    pub(crate) exit: Option<ExitStatus>,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) ready: Option<Result<Ready, BootFailure>>,
    pub(crate) exited: Option<Exited>,
    pub(crate) phase: Phase,
    pub(crate) primary: Primary,
    pub(crate) run: RunMode,
    /// Log streams that were opened in an earlier epoch end.
    pub(crate) log_epoch: u32,
    pub(crate) logs_garbage: bool,
    pub(crate) logs_refused: bool,
    pub(crate) ignores_stop: bool,
    pub(crate) pause_fails: bool,
    pub(crate) hibernate_fails: bool,
    /// From the end of its streams to the end of its worker.
    pub(crate) hibernate_takes: Duration,
    pub(crate) status_fails: bool,
    /// A server listens on every port.
    pub(crate) listens: bool,
}

pub(crate) struct Guest {
    pub(crate) vm: VmId,
    pub(crate) state: watch::Sender<State>,
    pub(crate) calls: Mutex<Vec<String>>,
    /// Its memory is on disk.
    pub(crate) saved: std::sync::atomic::AtomicBool,
}

pub(crate) fn ready(attempts: u8) -> Ready {
    Ready {
        harness_version: "1".to_owned(),
        generation: 1,
        boot_ms: 1,
        attempts,
        start: StartKind::Cold,
        fallback: None,
        boot_id: None,
        phases: StartPhases::default(),
    }
}

impl Guest {
    pub(crate) fn new(vm: VmId) -> Self {
        let state = State {
            ready: Some(Ok(ready(1))),
            exited: None,
            phase: Phase::Running,
            primary: Primary::default(),
            run: RunMode::Start,
            log_epoch: 0,
            logs_garbage: false,
            logs_refused: false,
            ignores_stop: false,
            pause_fails: false,
            hibernate_fails: false,
            hibernate_takes: Duration::ZERO,
            status_fails: false,
            listens: false,
        };
        Self {
            vm,
            state: watch::Sender::new(state),
            calls: Mutex::default(),
            saved: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Has the memory of a guest that was saved.
    pub(crate) fn go_on_from(&self, saved: &Guest) {
        let primary = saved.state.borrow().primary.clone();
        let boot_id = match &saved.state.borrow().ready {
            Some(Ok(Ready { boot_id: Some(boot), .. })) => boot.clone(),
            _ => saved.vm.clone(),
        };
        let ready = Ready { start: StartKind::Restore, boot_id: Some(boot_id), ..ready(1) };
        self.set(|s| (s.primary, s.ready) = (primary, Some(Ok(ready))));
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    pub(crate) fn print(&self, line: &str) {
        self.set(|s| s.primary.lines.push(line.into()));
    }

    pub(crate) fn exit(&self, code: u8) {
        self.set(|s| s.primary.exit = Some(ExitStatus::exited(code)));
    }

    pub(crate) fn die(&self, reason: ExitReason) {
        self.set(|s| s.exited = Some(Exited { reason, message: format!("{reason:?}") }));
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.state.borrow().exited.is_none()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn run_mode(&self) -> RunMode {
        self.state.borrow().run.clone()
    }

    fn called(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }

    async fn until<T>(&self, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|s| find(s).is_some()).await.unwrap();
        find(&state).unwrap()
    }
}

#[async_trait::async_trait]
impl Worker for Arc<Guest> {
    async fn wait_ready(&self) -> Result<Ready, BootFailure> {
        self.until(|s| s.ready.clone()).await
    }

    async fn status(&self) -> Result<WorkerStatus, WorkerError> {
        let state = self.state.borrow();
        if state.status_fails {
            return Err(WorkerError("no answer".to_owned()));
        }
        let confinement = Confinement { landlock_abi: 4, seccomp: true, no_new_privs: true, cgroup: None };
        Ok(WorkerStatus { phase: state.phase, vmm_pid: None, confinement, version: "1".to_owned() })
    }

    async fn pause(&self) -> Result<(), WorkerError> {
        self.called("pause");
        if self.state.borrow().pause_fails {
            return Err(WorkerError("the VMM refused".to_owned()));
        }
        self.set(|s| s.phase = Phase::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<(), WorkerError> {
        self.called("resume");
        self.set(|s| s.phase = Phase::Running);
        Ok(())
    }

    async fn hibernate(&self) -> Result<(), WorkerError> {
        self.called("hibernate");
        if self.state.borrow().hibernate_fails {
            return Err(WorkerError("the disk is full".to_owned()));
        }
        let takes = self.state.borrow().hibernate_takes;
        if !takes.is_zero() {
            self.set(|s| s.log_epoch += 1);
            tokio::time::sleep(takes).await;
        }
        self.saved.store(true, std::sync::atomic::Ordering::SeqCst);
        self.set(|s| {
            s.exited.get_or_insert(Exited { reason: ExitReason::Hibernated, message: "saved".to_owned() });
        });
        Ok(())
    }

    async fn stop(&self, grace: Duration) -> Result<(), WorkerError> {
        self.called(format!("stop {}", grace.as_secs()));
        // A guest that ignores a polite stop must still obey force.
        if self.state.borrow().ignores_stop && !grace.is_zero() {
            self.until(|s| s.exited.clone()).await;
        }
        self.set(|s| {
            if s.primary.started && s.primary.exit.is_none() && !grace.is_zero() {
                s.primary.exit = Some(ExitStatus::killed(15));
            }
        });
        // The guest's last words are on their way before the worker is gone.
        tokio::task::yield_now().await;
        self.set(|s| {
            s.exited.get_or_insert(Exited { reason: ExitReason::Stopped, message: "stopped".to_owned() });
        });
        Ok(())
    }

    async fn open_with(&self, service: Service, first: &[u8]) -> Result<Box<dyn Carrier>, WorkerError> {
        self.called(format!("open {service:?}"));
        if !self.is_alive() || (service == Service::Logs && self.state.borrow().logs_refused) {
            return Err(WorkerError("refused".to_owned()));
        }
        let (mut ours, theirs) = duplex(64 * 1024);
        ours.write_all(first).await.map_err(|e| WorkerError(e.to_string()))?;
        let guest = Arc::clone(self);
        tokio::spawn(async move {
            match service {
                Service::Control => guest.control(theirs).await,
                Service::Logs => guest.logs(theirs).await,
                Service::Exec | Service::Streams => guest.exec(theirs).await,
                Service::Tcp => guest.tcp(theirs).await,
                Service::Activity | Service::Fuse | Service::Files => {}
            }
        });
        Ok(Box::new(ours))
    }

    async fn exited(&self) -> Exited {
        self.until(|s| s.exited.clone()).await
    }
}

impl Guest {
    async fn control(self: Arc<Self>, stream: DuplexStream) {
        if matches!(self.state.borrow().run, RunMode::CloseStream) {
            return;
        }
        let handler = Arc::new(Control(Arc::clone(&self)));
        tokio::select! {
            _ = serve(stream, handler, None) => {}
            _ = self.until(|s| s.exited.clone()) => {}
        }
    }

    async fn logs(&self, stream: DuplexStream) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FrameReader::new(reader);
        let Ok(Some(frame)) = frames.next().await else { return };
        let mut sent = usize::try_from(Subscribe::from_frame(&frame).unwrap().after_seq).unwrap();
        let mut state = self.state.subscribe();
        let epoch = state.borrow().log_epoch;
        loop {
            let now = state.borrow_and_update().clone();
            if now.logs_garbage {
                let _ = writer.write_all(&[9, 0xff, 0xff, 0xff, 0xff]).await;
                return;
            }
            for (index, bytes) in now.primary.lines.iter().enumerate().skip(sent) {
                let line = LogLine {
                    seq: index as u64 + 1,
                    time_unix_ns: 0,
                    stream: OutputStream::Stdout,
                    partial: false,
                    bytes: bytes.clone(),
                };
                if write_frame(&mut writer, &LogEvent::Line(line).into_frame()).await.is_err() {
                    return;
                }
                sent = index + 1;
            }
            if let Some(status) = now.primary.exit {
                let _ = write_frame(&mut writer, &LogEvent::Exited(status).into_frame()).await;
                return;
            }
            if now.exited.is_some() || now.log_epoch != epoch || state.changed().await.is_err() {
                return;
            }
        }
    }

    async fn tcp(&self, mut stream: DuplexStream) {
        tcp::receive(&mut stream).await.unwrap();
        let answers = |s: &State| s.listens && s.phase == Phase::Running;
        self.until(|s| (answers(s) || s.exited.is_some()).then_some(())).await;
        if self.is_alive() {
            tcp::answer(&mut stream, Answer::Connected).await.unwrap();
        }
    }

    async fn exec(&self, stream: DuplexStream) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut frames = FrameReader::new(reader);
        let Ok(Some(frame)) = frames.next().await else { return };
        let ExecRequest::Start(start) = ExecRequest::from_frame(frame).unwrap() else { return };
        let started = ExecEvent::Started(Started { pid: 2 });
        let exit = ExecEvent::Exit(ExitStatus::exited(0));
        let program = start.process.command[0].clone();
        let script = match program.as_str() {
            "echo" => vec![started, ExecEvent::Stdout(b"hi".to_vec()), exit],
            "missing" => {
                let failure =
                    StartFailure { kind: StartFailureKind::NotFound, message: "no `missing`".to_owned() };
                vec![ExecEvent::Refused(failure)]
            }
            "early" => vec![ExecEvent::Stdout(b"hi".to_vec())],
            _ => vec![started],
        };
        for event in script {
            // Whoever asked may be gone.
            if write_frame(&mut writer, &event.into_frame()).await.is_err() {
                return;
            }
        }
        match program.as_str() {
            "garbage" => write_frame(&mut writer, &Frame::new(77, [])).await.unwrap(),
            "cat" => {
                while let Ok(Some(frame)) = frames.next().await {
                    let event = match ExecRequest::from_frame(frame).unwrap() {
                        ExecRequest::Input(ProcessInput::Data(bytes)) => ExecEvent::Stdout(bytes),
                        _ => ExecEvent::Exit(ExitStatus::exited(0)),
                    };
                    write_frame(&mut writer, &event.into_frame()).await.unwrap();
                }
            }
            "hang" => {
                self.until(|s| s.exited.clone()).await;
            }
            _ => {}
        }
    }
}

struct Control(Arc<Guest>);

#[async_trait::async_trait]
impl Handler for Control {
    async fn call(&self, method: &str, _params: Value) -> Result<Value, RpcError> {
        let guest = &self.0;
        guest.called(method);
        match method {
            control::STATUS => {
                let Primary { started, exit, .. } = guest.state.borrow().primary.clone();
                let status = control::Status {
                    version: "1".to_owned(),
                    primary_pid: started.then_some(1),
                    primary_exit: exit,
                    secret_files: true,
                    streams: true,
                };
                Ok(serde_json::to_value(status).unwrap())
            }
            control::RUN => match guest.run_mode() {
                RunMode::Start => {
                    guest.set(|s| s.primary.started = true);
                    Ok(serde_json::to_value(Started { pid: 1 }).unwrap())
                }
                RunMode::Refuse(kind) => {
                    let failure = StartFailure { kind, message: "cannot run `x`".to_owned() };
                    let data = Some(serde_json::to_value(failure).unwrap());
                    Err(RpcError { data, ..RpcError::failed("cannot run `x`") })
                }
                RunMode::Nonsense => Ok(Value::String("what?".to_owned())),
                RunMode::Hang => std::future::pending().await,
                RunMode::CloseStream => Err(RpcError::failed("unreachable")),
            },
            _ => Err(RpcError { code: METHOD_NOT_FOUND, ..RpcError::failed("unknown") }),
        }
    }
}
